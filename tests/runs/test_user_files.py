"""Files of the user in and around a run folder are never overwritten or removed."""

import json
import shutil

import pytest
import yaml

from run_folders import files
from spr.config import TrainingPart, load_config, make_config
from spr.core.errors import RunError
from spr.core.images import ImageSource
from spr.pipeline.runner import run
from spr.report.page import write_report
from spr.runs.folder import lock_run, open_run
from spr.runs.reader import Run
from spr.training.pairs import run_pairs

CONFIG = "# my notes on this experiment\nformat_version: 2\nseed: 7\n"
MINE = {
    "objects/part-of-my-model.stl": "solid",
    "objects/part-1.parquet": "not one of ours",
    "objects/dropped-notes.txt": "why I dropped them",
    "objects/unfinished-notes.jsonl": "{}",
    "objects/.notes.1.tmp": "an editor's",
    ".notes.1.tmp": "an editor's",
    ".config.yaml.1.old": "my backup",
    ".lock": "mine",
    "adapter/adapter_model.safetensors": "my weights",
    "notes/manifest.json": "{}",
}


def put(folder, contents):
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "contents",
    [
        {"config.yaml": CONFIG},
        {"config.yaml": CONFIG, **MINE},
        {"config.yaml": "seed: 7\n", "training/log.jsonl": "{}"},  # without a version: no run of SPR 0.1 either
        {"config.yaml": CONFIG, "run.json": '{"name": "morning"}', "inputs.json": '{"sha256": "of something"}'},
        {"config.yaml": CONFIG, "web/manifest.json": '{"stage": "production"}'},
    ],
)
def test_a_folder_with_a_config_is_no_run_and_is_left_unchanged(contents, dataset, tmp_path):
    out = tmp_path / "mine"
    put(out, contents)
    before = read(out)
    config = make_config(dataset.config())
    for use in (lambda: run(config, out), lambda: open_run(out, TrainingPart()).__enter__(), lock_run(out).__enter__):
        with pytest.raises(RunError, match=r"not a run folder[\s\S]*config\.yaml[\s\S]*new or empty folder"):
            use()
    assert read(out) == before


def test_readers_say_that_a_folder_with_a_config_is_no_run(tmp_path):
    put(tmp_path, {"config.yaml": "seed: 7\n", "objects/part-of-my-model.stl": "solid"})
    for read_run in (Run, lambda folder: run_pairs(folder, ImageSource(folder)), write_report):
        with pytest.raises(RunError, match=r"not a run folder[\s\S]*did not write"):
            read_run(tmp_path)


def test_a_run_leaves_files_that_it_did_not_write(dataset, tmp_path):
    config = make_config(dataset.config(shard_rows=8))
    out, undisturbed = tmp_path / "run", tmp_path / "other"
    run(config, undisturbed, until="objects")
    run(config, out, until="objects")
    put(out, MINE)
    (out / "objects" / "part-00099.parquet").write_text("left by a killed process")
    (out / "objects" / "part-00000.parquet").unlink()
    run(config, out, until="objects")
    found = read(out)
    assert {name: found.pop(name).decode() for name in MINE} == MINE
    assert files(out).keys() - MINE.keys() == files(undisturbed).keys()


@pytest.mark.parametrize("kept", ["objects/manifest.json", "inputs.json", "training/finished.json"])
def test_a_run_of_an_earlier_version_is_recognised_by_what_spr_wrote(kept, dataset, tmp_path):
    config = make_config(dataset.config(annotations={"max_images": 3}))
    out = tmp_path / "run"
    run(config, out, until="objects")
    put(out, {"training/finished.json": '{"format_version": 2}'})
    whole = read(out)
    for name in {"run.json", "objects/manifest.json", "inputs.json", "training/finished.json"} - {kept}:
        (out / name).unlink()
    run(config, out, until="objects")
    assert files(out).keys() | {"training/finished.json"} == whole.keys() - {"log.jsonl", ".lock"} | {
        "training/finished.json"
    }
    assert json.loads((out / "run.json").read_text())["format"] == "spr run"


def test_a_config_edited_by_hand_is_never_rewritten(dataset, tmp_path):
    out = tmp_path / "run"
    run(make_config(dataset.config()), out, until="objects")
    path = out / "config.yaml"
    edited = "# on the old laptop\n" + path.read_text() + "# end\n"
    path.write_text(edited)
    run(load_config(path), out, until="objects")
    assert path.read_text() == edited
    changed = edited.replace("device: auto", "device: cpu  # no GPU here")
    path.write_text(changed)
    run(load_config(path), out, until="objects")
    assert path.read_text() == changed
    for given in (load_config(path, ["scorer.batch_size=3"]), make_config(dataset.config(regions={"per_image": 2}))):
        with pytest.raises(RunError, match=r"edited by hand[\s\S]*→[\s\S]*make the change in this file"):
            run(given, out, until="objects")
        assert path.read_text() == changed


def test_a_config_that_gives_fewer_fields_says_the_same_and_stays(dataset, tmp_path):
    out = tmp_path / "run"
    config = make_config(dataset.config())
    run(config, out, until="objects")
    short = yaml.safe_load((out / "config.yaml").read_text())
    del short["training"]
    (out / "config.yaml").write_text(yaml.safe_dump(short))
    run(config, out, until="objects")
    assert yaml.safe_load((out / "config.yaml").read_text()) == short


def test_a_config_that_spr_wrote_follows_the_command(dataset, tmp_path):
    out = tmp_path / "run"
    run(make_config(dataset.config()), out, until="objects")
    run(make_config(dataset.config(scorer={"batch_size": 3})), out, until="objects")
    assert load_config(out / "config.yaml").scorer.batch_size == 3


def test_the_marker_is_the_first_file_and_damage_to_it_heals(dataset, tmp_path):
    with lock_run(tmp_path / "run"):
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "run.json"]
    config = make_config(dataset.config(annotations={"max_images": 3}))
    run(config, tmp_path / "run", until="objects")  # as after a kill right behind the marker
    whole = read(tmp_path / "run")
    for damage in (b"", b"{", b"[" * 9999):
        (tmp_path / "run" / "run.json").write_bytes(damage)
        run(config, tmp_path / "run", until="objects")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert read(tmp_path / "copy").keys() == whole.keys()
