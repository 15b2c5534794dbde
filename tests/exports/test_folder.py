"""An export's folder is complete or missing, and never replaces anything else."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest

from spr.core.errors import GroundingError, RunError
from spr.exports import llava, pair_rows
from spr.exports.formats import FORMATS
from spr.exports.json_lines import JsonWriter
from spr.exports.writing import export


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def export_watched(small_run):
    """Export to LLaVA's format; the functions are called before its writer writes rows, and before it closes."""

    def export_it(out, *, on_write=lambda _: None, on_close=lambda: None):
        class Watched(JsonWriter):
            def write(self, rows):
                on_write(rows)
                super().write(rows)

            def close(self):
                on_close()
                super().close()

        def open_writer(folder, *_):
            return Watched(folder / "train.json", llava.to_row, "list")

        FORMATS.register("watched", dataclasses.replace(llava.FORMAT, open=open_writer))
        try:
            return export(small_run, out, "watched")
        finally:
            FORMATS.unregister("watched")

    return export_it


def test_a_second_identical_export_changes_nothing_not_even_a_card_filled_in(small_run, tmp_path):
    out = tmp_path / "out"
    first = export(small_run, out, "llava")
    (out / "README.md").write_text("mine")
    before = files(out)
    second = export(small_run, out, "llava")
    assert (first.done_before, second.done_before) == (False, True)
    assert second.pairs == first.pairs
    assert files(out) == before


def test_two_exports_of_one_run_are_the_same_bytes(small_run, tmp_path):
    export(small_run, tmp_path / "a" / "out", "trl")
    export(small_run, tmp_path / "b" / "out", "trl")
    assert files(tmp_path / "a" / "out") == files(tmp_path / "b" / "out")


def test_other_settings_for_a_folder_that_holds_an_export_are_refused_by_name(small_run, tmp_path):
    export(small_run, tmp_path / "out", "llava")
    with pytest.raises(RunError, match=r"another export[\s\S]*dialect: llava_onevision → ferret"):
        export(small_run, tmp_path / "out", "llava", dialect="ferret")
    with pytest.raises(RunError, match=r"format: llava → ms-swift"):
        export(small_run, tmp_path / "out", "ms-swift")


def test_a_damaged_export_is_an_error(small_run, tmp_path):
    export(small_run, tmp_path / "out", "llava")
    (tmp_path / "out" / "train.json").write_text("[]")
    with pytest.raises(RunError, match=r"damaged export[\s\S]*train\.json has 2 bytes"):
        export(small_run, tmp_path / "out", "llava")
    (tmp_path / "out" / "train.json").unlink()
    with pytest.raises(RunError, match=r"train\.json is missing"):
        export(small_run, tmp_path / "out", "llava")


@pytest.mark.parametrize("what", ["file", "folder", "foreign marker"])
def test_anything_else_at_the_destination_is_left_unchanged(what, small_run, tmp_path):
    out = tmp_path / "out"
    if what == "file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / ("export.json" if what == "foreign marker" else "thesis.tex")).write_text('{"precious": 1}')
    before = out.read_bytes() if what == "file" else files(out)
    with pytest.raises(RunError, match="is not an export"):
        export(small_run, out, "trl")
    assert (out.read_bytes() if what == "file" else files(out)) == before


def test_an_empty_folder_is_used(small_run, tmp_path):
    (tmp_path / "out").mkdir()
    export(small_run, tmp_path / "out", "llava")
    assert (tmp_path / "out" / "export.json").is_file()


def test_a_place_given_relative_to_the_current_folder_is_the_same_place(small_run, tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    export(small_run, Path("../out/."), "llava")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"b", "out"}


def test_an_export_that_fails_midway_leaves_nothing(export_watched, tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_watched(tmp_path / "out", on_write=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(export_watched, tmp_path):
    def fill(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"out can't be written[\s\S]*No space left[\s\S]*free some disk space"):
        export_watched(tmp_path / "out", on_write=fill)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_export_are_removed_but_not_those_of_a_running_one(small_run, tmp_path):
    gone = 2**22 + 1  # over the largest process id that Linux gives
    (tmp_path / f".out.{gone}.spr-tmp").mkdir()
    live = tmp_path / f".out.{os.getppid()}.spr-tmp"
    live.mkdir()
    export(small_run, tmp_path / "out", "llava")
    assert {path.name for path in tmp_path.iterdir()} == {"out", live.name}


def test_a_folder_that_appears_during_an_export_is_not_replaced(export_watched, tmp_path):
    def appear():
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("precious")

    with pytest.raises(RunError, match="can't be written"):
        export_watched(tmp_path / "out", on_close=appear)
    assert files(tmp_path / "out") == {"thesis.tex": b"precious"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_can_not_be_written_to_is_one_clear_error(small_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can't be written"):
        export(small_run, tmp_path / "file" / "out", "trl")


def test_a_folder_that_is_not_a_run_and_a_run_without_pairs_are_errors(tmp_path, make_dataset, make_run):
    with pytest.raises(RunError, match=r"is not a run folder[\s\S]*spr run"):
        export(tmp_path, tmp_path / "out", "trl")
    run = make_run(make_dataset(tmp_path / "data", images=2))
    for path in (run / "pairs").iterdir():
        path.unlink()
    with pytest.raises(RunError, match=r"does not hold a finished stage[\s\S]*--until pairs"):
        export(run, tmp_path / "out", "trl")
    assert not (tmp_path / "out").exists()


def test_an_unknown_dialect_is_named_with_the_nearest(small_run, tmp_path):
    with pytest.raises(GroundingError, match="did you mean `ferret`"):
        export(small_run, tmp_path / "out", "trl", dialect="feret")


def test_the_runs_own_dialect_changes_nothing(small_run, pairs_of, tmp_path):
    summary = export(small_run, tmp_path / "out", "llava", dialect="llava_onevision")
    rows = json.loads((tmp_path / "out" / "train.json").read_text())
    assert summary.dialect == "llava_onevision"
    assert [row["chosen"] for row in rows] == [pair.chosen for pair in pairs_of(small_run)]


def test_no_more_than_a_batch_is_held_whatever_the_number_of_pairs(
    export_watched, small_run, pairs_of, tmp_path, monkeypatch
):
    held = []
    monkeypatch.setattr(pair_rows, "BATCH", 2)
    export_watched(tmp_path / "out", on_write=lambda rows: held.append(len(rows)))
    # Shards of three pairs, in batches of two and one.
    assert max(held) == 2
    assert sum(held) == len(pairs_of(small_run))
