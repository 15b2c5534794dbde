"""URLs on the command line: they reach the store, or are refused; no command makes a local folder named `s3:`."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from run_folders import FAKES
from s3_server import upload
from spr.cli import app, main
from spr.config import make_config
from spr.pipeline.runner import run as run_pipeline


@pytest.fixture(scope="module")
def made(make_dataset, tmp_path_factory):
    """A dataset and a run of it, on the local disk."""
    folder = tmp_path_factory.mktemp("made")
    make_dataset(folder / "data", images=4, objects=8)
    paths = {"path": f"{folder}/data/instances.json", "images": f"{folder}/data/images", "min_objects": 1}
    run_pipeline(make_config({**FAKES, "annotations": paths}), folder / "run")
    return folder


@pytest.fixture
def config(made, bucket, tmp_path, monkeypatch):
    """A config in the current folder, whose annotations and images are in the bucket."""
    monkeypatch.chdir(tmp_path)
    upload(made / "data", bucket / "data")
    paths = {"path": f"{bucket}/data/instances.json", "images": f"{bucket}/data/images", "min_objects": 1}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**FAKES, "annotations": paths}))
    return "run.yaml"


def spr(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_is_made_shown_reported_and_exported_by_its_url(config, bucket, tmp_path):
    out = bucket / "run"
    assert f"To see the rows:  spr show {out}/pairs" in spr("run", config, "--out", out)
    assert spr("show", out).startswith(f"{out}:")
    assert "── row 0" in spr("show", f"{out}/pairs")
    assert spr("show", f"{out}/dropped.parquet").startswith(f"{out}/dropped.parquet")
    assert f"Report:  {out}/report/index.html" in spr("report", out)
    assert f"pairs in {bucket}/export" in spr("export", out, "--format", "llava", "--out", bucket / "export")
    assert "done before" in spr("run", f"{out}/config.yaml", "--out", out)
    assert f"taken over from {out}" in spr("run", config, "--out", "local", "--reuse", out)
    assert json.loads((bucket / "export" / "export.json").read_bytes())["counts"]["pairs"] > 0
    assert "drawn into" in spr("show", f"{out}/pairs", "--draw", bucket / "rows.png")
    assert (bucket / "rows.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local", "run.yaml"]


LOCAL = "is not on a local disk"
REFUSED = {
    "review": (["review", "{run}"], LOCAL),
    "clean": (["clean", "{run}", "--checkpoints"], LOCAL),
    "scenes": (["scenes", "--out", "{new}"], LOCAL),
    "quickstart": (["quickstart", "--out", "{new}"], LOCAL),
    "merge": (["merge", "{run}", "--out", "merged"], LOCAL),
    "convert": (["convert", "annotations", "images", "--from", "yolo", "--out", "{new}.json"], LOCAL),
    "train": (["train", "{run}", "--pairs", "{new}"], "There is nothing at s3://"),
    "evaluate": (["evaluate", "rec", "--annotations", "e", "--predictions", "{run}/p.jsonl", "--out", "r.json"], LOCAL),
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_needs_a_local_disk_is_refused_and_leaves_nothing(command, made, bucket, tmp_path, monkeypatch, capsys):
    arguments, message = REFUSED[command]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    upload(made / "run", bucket / "run")
    (bucket / "run" / "adapter" / "adapter_config.json").write_bytes(b"{}")
    before = sorted(bucket.below())
    arguments = [part.format(run=bucket / "run", new=bucket / "new") for part in arguments]
    monkeypatch.setattr("sys.argv", ["spr", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert message in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith("s3:")]
    assert sorted(bucket.below()) == before
