"""`spr doctor CONFIG`: what is there, what is missing, and what it exits with. No model is loaded."""

import json
import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from spr.cli import app
from spr.config import load_config
from spr.models.hub_cache import find_model, hub_cache
from spr.workflows.check import check, gigabytes

CONFIG = {"model_type": "x", "text_config": {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}}
COMMIT = "0123456789abcdef"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def write_model(folder, shards=2, present=2):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = [f"model-{k}.safetensors" for k in range(shards)]
    index = {"weight_map": {f"layer.{k}": name for k, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names[:present]:
        (folder / name).write_bytes(b"x" * 1000)


def write_cached(cache, model, **options):
    folder = cache / f"models--{model.replace('/', '--')}"
    write_model(folder / "snapshots" / COMMIT, **options)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "blobs").mkdir()
    return folder


def test_a_cached_model_is_complete_incomplete_or_missing(cache):
    write_cached(cache, "me/whole")
    part = write_cached(cache, "me/part", present=1)
    (part / "blobs" / "abc.incomplete").write_bytes(b"")
    whole = find_model("me/whole")
    assert (whole.lacking, whole.weights, whole.config) == (None, 2000, CONFIG)
    assert whole.folder == cache / "models--me--whole" / "snapshots" / COMMIT
    lacking = "the download is not complete: 1 of 2 weight files are missing, such as model-1.safetensors"
    assert find_model("me/part").lacking == lacking
    assert find_model("me/none").lacking == "not in the cache"
    assert find_model("me/whole", "v2").lacking == "the cache has no revision v2 of it"
    assert find_model("me/whole", COMMIT).lacking is None


def test_folders_and_embedded_models_need_no_cache(tmp_path):
    write_model(tmp_path / "model", present=0)
    assert find_model(str(tmp_path / "model")).lacking.startswith("2 of 2 weight files are missing")
    assert find_model(str(tmp_path / "gone")).lacking == "there is no such folder"
    (tmp_path / "model" / "config.json").write_text("{")
    assert find_model(str(tmp_path / "model")).lacking == "config.json is missing"
    assert find_model("embedded/describer").lacking is None
    assert find_model("embedded/describer").weights > 1e6


def test_the_cache_is_where_huggingface_hub_has_it(monkeypatch, tmp_path):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_cache() == tmp_path / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert hub_cache() == tmp_path / "x" / "huggingface" / "hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "h"))
    assert hub_cache() == tmp_path / "h" / "hub"


def findings(config):
    return {about: (status, text) for status, about, text in check(config)}


def test_a_config_with_nothing_missing_exits_with_0(dataset, tmp_path):
    paths = [f"annotations.path={dataset.json}", f"annotations.images={dataset.images}"]
    result = CliRunner().invoke(app, ["doctor", "quickstart", *paths])
    assert result.exit_code == 0, result.stdout
    statuses = {line[8:32].strip(): line[:8].strip() for line in result.stdout.splitlines()}
    assert statuses["describer.model"] == statuses["annotations.path"] == statuses["memory, training"] == "ok"
    assert "(estimate)" in result.stdout
    # a run folder stands for its config; overrides apply to it
    (tmp_path / "config.yaml").write_text(load_config("quickstart", paths).to_yaml())
    assert CliRunner().invoke(app, ["doctor", str(tmp_path)]).stdout == result.stdout
    changed = CliRunner().invoke(app, ["doctor", str(tmp_path), f"annotations.path={tmp_path}/none.json"])
    assert changed.exit_code == 1
    assert f"{tmp_path}/none.json" in changed.stdout
    assert CliRunner().invoke(app, ["doctor", str(dataset.images)]).exit_code != 0  # a folder without a config


def test_what_is_missing_is_named_with_the_way_to_get_it(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cached(cache, "openai/clip-vit-large-patch14-336")
    result = CliRunner().invoke(app, ["doctor", "ferret-7b"])
    assert result.exit_code == 1
    found = findings(load_config("ferret-7b"))
    assert found["scorer.model"][0] == "ok"
    assert {about for about, (status, _) in found.items() if status == "MISSING"} == {
        "annotations.path",
        "annotations.images",
        "describer.model",
        "detector.model",
    }
    assert "hf download IDEA-Research/grounding-dino-base (about 929.3 MB)" in found["detector.model"][1]
    assert "spr convert ferret --out checkpoints/ferret-7b-v1-3" in found["describer.model"][1]
    assert found["vision cache"][1].startswith("47.3 GB for at most 10,000 pairs")  # 10,000 · 577 · 4096 · 2 bytes


def test_the_images_of_a_dataset_are_not_missing_before_they_are_written(tmp_path):
    (tmp_path / "data").mkdir()
    for name, status in (("hf:cppe-5:train", "note"), (f"hf:{tmp_path}/data:train", "ok"), ("hf:./gone", "MISSING")):
        found = findings(load_config("quickstart", [f"annotations.path={name}", f"annotations.images={tmp_path}/new"]))
        assert (found["annotations.path"][0], found["annotations.images"][0]) == (status, "note")


def test_too_little_memory_is_said_with_what_to_lower(monkeypatch):
    monkeypatch.setattr("spr.workflows.check.cuda_devices", lambda: {"cuda:0": 24 * 10**9, "cuda:1": 40 * 10**9})
    found = findings(load_config("ferret-7b", ["training.device=cuda:0"]))
    status, text = found["memory, training"]
    assert (status, "cuda:0 has 24.0 GB" in text) == ("LOW", True)
    assert "training.gradient_checkpointing" in text
    assert found["memory, describing"][0] == "ok"
    assert "cuda:1 has 40.0 GB" in found["memory, describing"][1]
    spread = findings(load_config("ferret-7b", ["describer.device_map=auto"]))
    assert "all GPUs together has 64.0 GB" in spread["memory, describing"][1]


def test_an_adapter_must_be_a_folder(tmp_path):
    for adapter, status in ((tmp_path, "ok"), (tmp_path / "gone", "MISSING")):
        found = findings(load_config("quickstart", [f"describer.peft_adapter={adapter}"]))
        assert found["describer.peft_adapter"][0] == status


def test_a_server_and_fakes_need_no_models(dataset, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(dataset.config(describer={"backend": "fake", "model": None, "dialect": "ferret"})))
    found = findings(load_config(path, ["scorer.backend=fake", "detector.backend=none"]))
    assert {status for status, _ in found.values()} == {"ok", "note"}
    server = ["backend=openai", "base_url=http://127.0.0.1:1/v1", "model=m", "dialect=ferret"]
    found = findings(load_config(path, [f"describer.{field}" for field in server]))
    assert "http://127.0.0.1:1/v1, which is not contacted" in found["describer.base_url"][1]


def test_vllm_needs_its_extra_alone_and_a_gpu(dataset, tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(dataset.config(describer={"backend": "vllm", "model": "embedded/describer"})))
    config = load_config(path, ["describer.gpu_memory_utilization=0.5"])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    found = findings(config)
    assert found["extra `vllm`"] == (
        "MISSING",
        "vllm is not installed: pip install 'spatial-preference-rewarding[vllm]'",
    )
    assert "extra `models`" not in found
    assert found["memory, describing"] == ("MISSING", "vLLM needs a GPU, and there is none here")
    monkeypatch.setattr("spr.workflows.check.cuda_devices", lambda: {"cuda:0": 24e9, "cuda:1": 80e9})
    assert findings(config)["memory, describing"] == (
        "note",
        "vLLM takes 50% of a GPU at its start; the smallest has 24.0 GB",
    )


def test_a_family_that_is_not_known_or_not_trained_is_said(dataset, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(dataset.config(describer={"backend": "hf", "model": str(tmp_path / "model")})))
    write_model(tmp_path / "model")

    def said(model_type, *options):
        (tmp_path / "model" / "config.json").write_text(json.dumps({**CONFIG, "model_type": model_type}))
        return findings(load_config(path, options))["describer.model"]

    status, text = said("llavaonevision1_5")
    assert status == "MISSING"
    assert "expected: the nearest is llava_onevision" in text
    assert "docs/how-to/add-a-model-family.md" in text
    assert said("qwen4_exp")[0] == "MISSING"
    assert said("llava_next")[0] == "MISSING"
    assert said("llava_next", "describer.dialect=llava")[0] == "note"
    assert said("bert")[0] == "MISSING"
    assert said("qwen3_vl")[0] == "ok"
    assert said("florence2") == (
        "note",
        f"{tmp_path / 'model'} can describe, but not be trained: model_type florence2",
    )


def test_a_file_to_mix_in_must_be_there(dataset, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(dataset.config(describer={"backend": "fake", "model": None, "dialect": "ferret"})))
    for name, status in ((dataset.json, "ok"), (tmp_path / "gone.jsonl", "MISSING")):
        assert findings(load_config(path, [f"training.mix.path={name}"]))["training.mix.path"][0] == status


def test_models_are_found_without_importing_torch():
    code = "import sys\nfrom spr.models.hub_cache import find_model\nprint(find_model('embedded/scorer').lacking)\n"
    code += "print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["None", "set()"]


def test_sizes_have_units():
    assert [gigabytes(size) for size in (2.5e9, 5e6)] == ["2.5 GB", "5.0 MB"]
