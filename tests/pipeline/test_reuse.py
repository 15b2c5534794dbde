"""`spr run … --reuse RUN` takes over the stages whose inputs and settings agree, and says why the others not."""

import shutil
from importlib.resources import files as files_of

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from run_folders import FAKES, files
from spr.cli import app
from spr.config import make_config
from spr.core.errors import ConfigError, RunError
from spr.models.loading import source_name
from spr.pipeline.runner import run
from spr.runs.folder import lock_run
from spr.runs.store import StageStore

STAGES = ["objects", "regions", "candidates", "scores", "pairs"]


@pytest.fixture
def small(make_dataset, tmp_path):
    return make_dataset(tmp_path / "data", images=6)


def reused(summaries):
    return {summary.name: summary.reuse for summary in summaries}


def test_stages_that_agree_are_taken_over_and_the_rest_is_computed(small, tmp_path):
    a, b, plain = (tmp_path / name for name in ("a", "b", "plain"))
    run(make_config(small.config(**FAKES)), a)
    before = files(a)
    changed = make_config(small.config(**FAKES, scoring={"semantic_weight": 0.25}))
    notes = reused(run(changed, b, reuse=[a]))
    assert [notes[name] for name in STAGES[:3]] == [f"taken over from {a}"] * 3
    assert "scoring.semantic_weight" in notes["scores"]
    assert "→ 0.25" in notes["scores"]
    assert notes["pairs"] == f"not taken over from {a}: its input `scores` differs"
    # The same bytes as without --reuse, and the other run is as it was.
    run(changed, plain)
    assert files(b) == files(plain)
    assert files(a) == before
    assert (b / "objects" / "part-00000.parquet").samefile(a / "objects" / "part-00000.parquet")
    # Again: everything was done before, and nothing is said of the other run.
    summaries = run(changed, b, reuse=[a])
    assert all(summary.done_before for summary in summaries)
    assert set(reused(summaries).values()) == {None}


def test_damaged_unfinished_and_foreign_stages_are_not_taken_over(small, tmp_path):
    a = tmp_path / "a"
    config = make_config(small.config(**FAKES))
    run(config, a, until="regions")
    part = a / "regions" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    notes = reused(run(config, tmp_path / "b", reuse=[a]))
    assert notes["objects"] == f"taken over from {a}"
    assert "part-00000.parquet changed or missing there" in notes["regions"]
    assert "it is not finished there" in notes["candidates"]

    small.coco["annotations"].pop()
    small.write()
    notes = reused(run(config, tmp_path / "c", reuse=[a], until="objects"))
    assert notes == {"objects": f"not taken over from {a}: the annotations differ"}


def test_images_that_have_changed_stop_the_command_before_anything_is_taken_over(small, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    config = make_config(small.config(**FAKES))
    run(config, a, until="regions")
    image = next(small.images.iterdir())
    image.write_bytes(image.read_bytes() + b"0")
    with pytest.raises(RunError, match="images have changed"):
        run(config, b, reuse=[a])
    assert not (b / "objects").exists()
    # Nor is a later stage taken over, made from the old pixels, if the new run has objects of its own.
    run(config, b, until="objects")
    with pytest.raises(RunError, match="images have changed"):
        run(config, b, reuse=[a], until="regions")


def test_a_stage_of_other_weights_in_the_same_folder_is_neither_taken_over_nor_continued(small, tmp_path):
    model, weights = tmp_path / "model", tmp_path / "model" / "model.safetensors"
    shutil.copytree(files_of("spr") / "embedded" / "weights" / "scorer", model)
    config = make_config(small.config(**FAKES | {"scorer": {"backend": "clip", "model": str(model)}}, shard_rows=2))
    a, b = tmp_path / "a", tmp_path / "b"
    run(config, a)
    assert StageStore(a / "candidates").manifest().weights == {}
    before = StageStore(a / "scores").manifest().weights
    assert before == {"scorer.model": source_name(model)}
    tensors = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights, {"format": "pt"})
    changed = f"the weights of `scorer.model` have changed: {before['scorer.model']} → {source_name(model)}"
    assert source_name(model) != before["scorer.model"]

    taken = {summary.name: summary.reuse for summary in run(config, b, reuse=[a])}
    assert taken["candidates"] == f"taken over from {a}"
    assert taken["scores"] == f"not taken over from {a}: {changed}"
    assert taken["pairs"].startswith(f"not taken over from {a}: ")
    assert StageStore(a / "scores").part(0).read_bytes() != StageStore(b / "scores").part(0).read_bytes()
    # Nor is a stage that is not finished: its shards would be of two models.
    StageStore(a / "scores").part(1).unlink()
    with pytest.raises(RunError, match=r"was begun with other weights[\s\S]*--reuse") as refused:
        run(config, a)
    assert refused.value.got == changed


def test_a_run_that_is_in_use_the_run_itself_and_other_folders_are_refused(small, tmp_path):
    a = tmp_path / "a"
    config = make_config(small.config(**FAKES))
    run(config, a, until="objects")
    with pytest.raises(ConfigError, match="names the run itself"):
        run(config, a, reuse=[a])
    with lock_run(a), pytest.raises(RunError, match="in use by another run"):
        run(config, tmp_path / "b", reuse=[a])
    with pytest.raises(RunError, match="is not a run folder"):
        run(config, tmp_path / "b", reuse=[small.folder])
    assert not (tmp_path / "b").exists()
    arguments = ["run", str(a / "config.yaml"), "--out", str(tmp_path / "b"), "--until", "objects", "--reuse", str(a)]
    assert f"  taken over from {a}\n" in CliRunner().invoke(app, arguments).output
