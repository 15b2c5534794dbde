"""Reading a run folder."""

import json

import pytest

from spr.config import make_config
from spr.core.errors import RunError
from spr.evaluation.run_results import check_target
from spr.runs.reader import Run, read_json_lines
from spr.runs.store import Manifest, StageOutput, StageStore, dropped_table
from spr.runs.trainings import run_config
from spr.workflows.clean import find_waste


@pytest.fixture
def run(tmp_path):
    config = make_config({"annotations": {"path": "a.json", "images": "images"}, "describer": {"backend": "fake"}})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    return tmp_path


def write_stage(run, name, shards):
    """A finished stage whose shards hold the ids of dropped images, as a table of any columns would be."""
    store, manifest = StageStore(run / name), Manifest(name, "f", complete=True)
    for index, ids in enumerate(shards):
        table = dropped_table(name, "image", [(id_, "r") for id_ in ids])
        manifest.shards.append(store.write_shard(index, StageOutput(table, table.slice(0, 0)), inputs=len(ids)))
    store.save(manifest)


def test_a_table_has_the_rows_of_all_shards_in_order(run):
    write_stage(run, "blur_check", ["ab", "", "c"])
    assert Run(run).table("blur_check")["id"].to_pylist() == ["a", "b", "c"]
    assert Run(run).table("blur_check", ["reason"]).column_names == ["reason"]


def test_stages_are_in_the_order_of_the_data(run):
    for name in ("pairs", "regions", "objects"):
        write_stage(run, name, ["a"])
    assert Run(run).stages == ["objects", "regions", "pairs"]
    # A stage of another package stands where the log says that it ran; without a log it is last.
    write_stage(run, "blur_check", ["a"])
    assert Run(run).stages == ["objects", "regions", "pairs", "blur_check"]
    events = [{"event": "stage started", "stage": name} for name in ("objects", "blur_check", "regions", "pairs")]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, events)))
    assert Run(run).stages == ["objects", "blur_check", "regions", "pairs"]


def test_a_stage_that_has_not_finished_has_no_table(run):
    with pytest.raises(RunError, match="does not hold a finished stage"):
        Run(run).table("pairs")


def test_a_folder_that_is_not_a_run_is_an_error_that_says_how_to_create_one(tmp_path):
    with pytest.raises(RunError, match=r"is not a run folder(.|\n)*a folder without config.yaml(.|\n)*spr run CONFIG"):
        Run(tmp_path)
    with pytest.raises(RunError, match="no such folder"):
        Run(tmp_path / "x")


def test_a_folder_of_rounds_or_a_sweep_names_the_runs_inside(tmp_path):
    for name in ("round-00", "round-01"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    for refused in (Run, run_config, find_waste, lambda path: check_target(path, "after", "rec", answers=False)):
        with pytest.raises(RunError, match=r"is not a run folder[\s\S]*the runs in it: round-00, round-01$"):
            refused(tmp_path)


def test_a_run_folder_of_version_0_1_is_refused(run):
    write_stage(run, "objects", [])
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("format_version: 2\n", ""))
    with pytest.raises(RunError, match=r"SPR 0\.1"):
        Run(run)


def test_log_lines_that_are_not_json_objects_are_counted(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n\n[1]\n{"b"')
    assert read_json_lines(tmp_path / "log.jsonl") == ([{"a": 1}], 2)
    assert read_json_lines(tmp_path / "missing.jsonl") == ([], 0)
