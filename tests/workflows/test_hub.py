"""Pairs, adapters and runs go to a Hub and come back unchanged, without anything about this machine."""

import json
import re
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import save_file

from fake_hub import TOKEN, FakeHub
from spr.config import make_config
from spr.core.atomic import sha256
from spr.core.errors import ConfigError, InputError, RunError, SprError
from spr.core.outputs import write_marker
from spr.evaluation.metrics import Share
from spr.evaluation.result import Result
from spr.evaluation.run_results import add_result
from spr.exports.writing import export
from spr.pipeline.runner import run
from spr.runs.reader import Run
from spr.runs.store import read_table
from spr.workflows import hub as sharing
from spr.workflows.hub import pull, push
from spr.workflows.hub_cards import adapter_card
from spr.workflows.hub_package import PUSHED, make_package

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content")  # the Hub's client uses an old name of its own
FAKES = {"describer": {"backend": "fake"}, "scorer": {"backend": "fake"}, "detector": {"backend": "none"}}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as fake:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        constants = huggingface_hub.constants
        template = fake.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield fake


@pytest.fixture(scope="module")
def a_run(make_dataset, tmp_path_factory):
    """A run with a missing image, a training that has finished, and results."""
    dataset = make_dataset(tmp_path_factory.mktemp("secret-name"), images=8)
    (dataset.images / "1000.png").unlink()
    folder = dataset.folder / "run"
    run(make_config(dataset.config(**FAKES)), folder)
    adapter = folder / "trainings" / "slow" / "adapter"
    for place in (folder / "adapter", adapter):
        place.mkdir(parents=True)
        weights = Path(sys.modules["spr"].__file__).parent / "embedded" / "weights" / "describer"
        content = {"base_model_name_or_path": str(weights), "peft_type": "LORA", "r": 8}
        (place / "adapter_config.json").write_text(json.dumps(content))
        save_file({"w": np.ones(500, np.float32)}, place / "adapter_model.safetensors")
        files = write_marker(place, "spr train")
        training = place.parent / "training"
        (training / "checkpoints" / "step-000003").mkdir(parents=True)
        (training / "checkpoints" / "step-000003" / "state.pt").write_bytes(b"0" * 100)
        finished = {"format_version": 2, "steps": 3, "last": {"loss": 0.5, "margin": 1, "accuracy": 1}}
        (training / "finished.json").write_text(json.dumps({**finished, "fingerprint": {}, "adapter": files}))
        (training / "log.jsonl").write_text(json.dumps({"event": "start", "out": str(folder)}) + '\n{"half')
    result = {"rec": {"metrics": {"acc@0.5": {"value": 0.5, "ci95": [0.4, 0.6]}}}}
    better = {"rec": {"metrics": {"acc@0.5": {"value": 0.75, "ci95": [0.6, 0.9]}}}}
    (folder / "metrics.json").write_text(json.dumps({"format_version": 2, "before": result, "after": better}))
    (folder / "notes.txt").write_text("my own")
    (folder / "report").mkdir()
    return folder


def on_hub(hub, kind="dataset", branch="main"):
    return hub.repos[(kind, "me/thing")][branch]


def test_a_run_goes_to_the_hub_and_comes_back(hub, a_run, tmp_path):
    said = []
    assert push(a_run, "me/thing", private=True, license_id="mit", say=said.append).endswith("datasets/me/thing")
    assert ("dataset", "me/thing") in hub.private
    assert "private dataset me/thing" in said[0]
    (left,) = [line for line in said if "not uploaded" in line]
    assert all(f" {name}" in left for name in ("notes.txt", "report/", "images.parquet", "training/checkpoints/"))
    assert "License on the card: mit" in said
    files = on_hub(hub)
    assert {"run.json", "config.yaml", "pairs/manifest.json", "trainings/slow/adapter/adapter_config.json"} <= set(
        files
    )
    assert not [name for name in files if "checkpoints" in name or "notes" in name or name == ".lock"]
    # Nothing about the machine: neither the folder of the run nor that of the package.
    for name, content in files.items():
        assert b"secret-name" not in content, name
        assert str(Path(sys.modules["spr"].__file__).parent).encode() not in content, name
    assert json.loads(files["adapter/adapter_config.json"])["base_model_name_or_path"] == "embedded/describer"
    assert yaml.safe_load(files["README.md"].split(b"---\n")[1])["license"] == "mit"
    assert (
        "| rec | acc@0.5 | 0.5000 [0.4000–0.6000] | 0.7500 [0.6000–0.9000] | +0.2500 |".encode() in files["README.md"]
    )

    out = tmp_path / "pulled"
    assert pull("me/thing", out) == "run"
    assert Run(out).table("pairs").equals(Run(a_run).table("pairs"))
    assert Run(out).config.annotations.images.name == "images"
    assert not (out / PUSHED).exists()
    assert not (out / ".cache").exists()
    # The training is still recognised as finished: its adapter has the hashes that it wrote.
    for place in (out, out / "trainings" / "slow"):
        expected = json.loads((place / "training" / "finished.json").read_text())["adapter"]
        assert expected == {name: sha256(place / "adapter" / name) for name in expected}
    with pytest.raises(RunError, match="is not a new folder"):
        pull("me/thing", out)


def test_an_adapter_has_a_card_with_its_model_its_results_and_its_config(hub, a_run, tmp_path):
    said = []
    push(a_run / "adapter", "me/thing", say=said.append)
    assert any("the license is not stated" in line for line in said)
    files = on_hub(hub, "model")
    assert set(files) == {
        *(".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "spr.json", PUSHED)
    }
    card = files["README.md"].decode()
    assert "| rec | acc@0.5 | 0.5000 [0.4000–0.6000] | 0.7500 [0.6000–0.9000] | +0.2500 |" in card
    assert "3 steps; last step: loss 0.5" in card
    assert "backend: fake" in card
    assert pull("me/thing", tmp_path / "pulled") == "adapter"
    weights = "adapter_model.safetensors"
    assert (tmp_path / "pulled" / weights).read_bytes() == (a_run / "adapter" / weights).read_bytes()


def test_a_card_has_the_paired_differences_and_calls_noise_no_difference(a_run):
    run = a_run.parent / "measured"
    shutil.copytree(a_run, run)
    images, turns = tuple(map(str, range(40))), np.tile([1.0, -1.0], 20)
    (run / "metrics.json").unlink()
    for name, mean, sign in (("before", 0.5, 1), ("slow", 0.7, -1)):
        shares = {"s_loc": Share.mean(mean + sign * turns / 4), "recall@0.5": Share.mean(0.5 + sign * turns / 4)}
        add_result(run, name, Result("description", {}, images, images, shares))
    card = adapter_card("me/thing", "embedded/describer", (run, "slow"), "mit")
    shown = dict(re.findall(r"\| description \| (\S+) \| [^|]+ \| [^|]+ \| ([^|]+) \|", card))
    better = re.fullmatch(r"\+0\.2000 \[\+0\.(\d+) to \+0\.(\d+)\]: better", shown["s_loc"])
    # 40 differences of 0.2 ± 0.5: 1.96 standard errors are 0.155.
    assert [float(f"0.{edge}") for edge in better.groups()] == pytest.approx([0.045, 0.355], abs=0.015)
    assert re.fullmatch(r"±0\.0000 \[−0\.\d+ to \+0\.\d+\]: no significant difference", shown["recall@0.5"])
    # Nothing is shown of a training without results.
    assert "## Results" not in adapter_card("me/thing", "embedded/describer", (run, None), "mit")


def test_pairs_go_with_the_card_of_their_export(hub, a_run, tmp_path):
    export(a_run, tmp_path / "exported", "trl", license_id="cc-by-4.0")
    push(tmp_path / "exported", "me/thing", revision="v2")
    files = on_hub(hub, branch="v2")
    assert files["README.md"] == (tmp_path / "exported" / "README.md").read_bytes()
    assert set(on_hub(hub)) == {".gitattributes"}
    assert pull("me/thing", tmp_path / "pulled", revision="v2") == "pairs"
    (name,) = [path.relative_to(tmp_path / "pulled") for path in (tmp_path / "pulled").rglob("*.parquet")]
    assert pq.read_table(tmp_path / "pulled" / name).equals(pq.read_table(tmp_path / "exported" / name))
    with pytest.raises(InputError, match=r"no such revision|not what"):
        pull("me/thing", tmp_path / "other", revision="v3")


def test_an_interrupted_upload_continues_and_a_second_one_sends_nothing(hub, a_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "TOGETHER", 5)
    hub.fail_after = 3
    with pytest.raises(SprError, match="refuses an upload"):
        push(a_run, "me/thing")
    with pytest.raises((RunError, InputError), match=r"not complete|not what"):
        pull("me/thing", tmp_path / "pulled")
    hub.fail_after = None
    push(a_run, "me/thing")
    assert len(hub.uploaded) == len(set(hub.uploaded))
    before = len(hub.uploaded), len(hub.commits)
    push(a_run, "me/thing")
    assert (len(hub.uploaded), len(hub.commits)) == before
    assert pull("me/thing", tmp_path / "pulled") == "run"


def test_what_others_put_there_is_never_replaced(hub, a_run):
    hub.repos[("model", "me/thing")] = {"main": {".gitattributes": b"", "weights.bin": b"mine"}}
    with pytest.raises(RunError, match="did not upload"):
        push(a_run / "adapter", "me/thing")
    assert on_hub(hub, "model")["weights.bin"] == b"mine"
    del hub.repos[("model", "me/thing")]
    push(a_run / "adapter", "me/thing")
    on_hub(hub, "model")["README.md"] = b"---\nlicense: mit\n---\nedited on the Hub"
    said = []
    push(a_run / "adapter", "me/thing", say=said.append)
    assert any("stays as it is there" in line for line in said)
    assert on_hub(hub, "model")["README.md"].endswith(b"edited on the Hub")
    with pytest.raises(RunError, match="was edited on the Hub"):
        push(a_run / "adapter", "me/thing", license_id="mit")


def test_files_that_are_gone_are_deleted_on_the_hub(hub, a_run, tmp_path):
    push(a_run / "adapter", "me/thing")
    copy = tmp_path / "adapter"
    copy.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (copy / name).write_bytes((a_run / "adapter" / name).read_bytes())
    push(copy, "me/thing")
    assert "spr.json" not in on_hub(hub, "model")


def test_a_changed_file_is_found_when_it_is_pulled(hub, a_run, tmp_path):
    push(a_run, "me/thing")
    files = on_hub(hub)
    name = next(name for name in files if name.startswith("pairs/part"))
    files[name] = files[name][:-1] + b"x"
    with pytest.raises(RunError, match=f"{name} missing or changed"):
        pull("me/thing", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_name_that_leads_out_of_the_folder_is_refused(hub, a_run, tmp_path):
    push(a_run, "me/thing")
    on_hub(hub)["../../evil.txt"] = b"evil"
    with pytest.raises(InputError, match=r"me/thing is not what[\s\S]*evil"):
        pull("me/thing", tmp_path / "a" / "pulled")
    assert not (tmp_path / "evil.txt").exists()
    assert not (tmp_path / "a" / "pulled").exists()
    with pytest.raises(InputError, match="in the revision v9"):
        pull("me/thing", tmp_path / "pulled", revision="v9")


def test_reviews_are_pointed_out_because_they_name_people(a_run):
    (a_run / "reviews.jsonl").write_text("")
    assert any("names of the reviewers" in warning for warning in make_package(a_run).warnings)
    (a_run / "reviews.jsonl").unlink()
    assert not make_package(a_run).warnings


def test_a_dry_run_needs_neither_network_nor_token(a_run, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    said = []
    assert push(a_run, "me/thing", dry_run=True, say=said.append) is None
    total = sum(make_package(a_run, name="me/thing").sizes.values())
    assert f"{total / 1000:.1f} kB" in said[0]
    # A training is its adapter.
    slow = make_package(a_run / "trainings" / "slow")
    assert slow.sizes.keys() == make_package(a_run / "trainings" / "slow" / "adapter").sizes.keys()
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(slow.sizes)


@pytest.mark.usefixtures("hub")
def test_wrong_inputs_are_refused(a_run, tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match="not the name of a repository"):
        push(a_run, "thing")
    with pytest.raises(InputError, match="can't be pushed"):
        push(tmp_path, "me/thing")
    with pytest.raises(InputError, match="not what `spr push` uploads"):
        pull("me/nothing", tmp_path / "pulled")
    export(a_run, tmp_path / "paths", "trl", images="path")
    with pytest.raises(InputError, match="names image files of this machine"):
        push(tmp_path / "paths", "me/thing")
    push(a_run / "adapter", "me/thing")
    push(a_run, "me/thing")
    with pytest.raises(InputError, match="--repo-type"):
        pull("me/thing", tmp_path / "pulled")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SprError, match="hf auth login") as caught:
        push(a_run, "me/thing")
    assert "hf_wrong" not in str(caught.value) + str(capsys.readouterr())


def test_a_damaged_run_is_not_uploaded(hub, make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "data", images=8)
    folder = tmp_path / "run"
    run(make_config(dataset.config(**FAKES)), folder, until="regions")
    (folder / "regions" / "part-00000.parquet").write_bytes(b"damaged")
    with pytest.raises(RunError, match="regions is damaged"):
        push(folder, "me/thing")
    assert hub.repos == {}


@pytest.mark.parametrize("name", ["/home/me/photos/1.png", "C:\\photos\\1.png", "../photos/1.png"])
def test_a_run_whose_dropped_images_have_absolute_names_is_not_uploaded(make_dataset, tmp_path, name):
    dataset = make_dataset(tmp_path / "data", images=8)
    dataset.coco["images"][0]["file_name"] = name
    dataset.write()
    folder = tmp_path / "run"
    run(make_config(dataset.config(**FAKES)), folder, until="regions")
    (row,) = [row for row in read_table(folder / "dropped.parquet").to_pylist() if row["kind"] == "image"]
    assert (row["reason"], row["file_name"]) == ("image_file_name_unsafe", name)
    if name.startswith(".."):
        assert make_package(folder).kind == "run"
        return
    with pytest.raises(InputError, match="names images of this machine") as caught:
        make_package(folder)
    assert caught.value.got == name
