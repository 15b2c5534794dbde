"""All models that are missing are named at once, before any of them is loaded or a stage begins."""

import json

import pytest

from spr.config import DescriberConfig, DetectorConfig, ScorerConfig, make_config
from spr.core.errors import GroundingError, SprError
from spr.models.available import check_models
from spr.models.errors import ModelError, UnreachableError
from spr.models.registry import check_loadable
from spr.pipeline.runner import run

HUB = [DescriberConfig(model="a/describer"), ScorerConfig(model="b/scorer"), DetectorConfig(model="c/detector")]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Offline, with an empty cache; returns a function that puts a model into it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(model, files):
        folder = tmp_path / "hub" / f"models--{model.replace('/', '--')}"
        snapshot = folder / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0123")
        for name, text in files.items():
            (snapshot / name).write_text(text)

    return put


@pytest.mark.usefixtures("cache")
def test_offline_all_missing_models_are_named_at_once_with_how_to_get_them():
    with pytest.raises(ModelError) as raised:
        check_models(HUB)
    assert raised.value.what == "The Hub is unreachable, and 3 models can't be found here"
    assert raised.value.got == "a/describer, b/scorer, c/detector"
    assert "hf download a/describer && hf download b/scorer && hf download c/detector" in raised.value.fix
    with pytest.raises(ModelError, match="spr convert ferret --out checkpoints/ferret-7b … && hf download b/scorer"):
        check_models([DescriberConfig(model="checkpoints/ferret-7b"), HUB[1]])
    with pytest.raises(UnreachableError, match="a/describer is neither cached nor a folder"):
        check_models(HUB[:1])


def test_a_model_is_cached_if_its_config_and_all_its_weights_are(cache):
    cache("a/describer", {"config.json": "{}", "model.safetensors": ""})
    index = {"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors"}}
    shards = {"config.json": "{}", "model.safetensors.index.json": json.dumps(index), "model-1.safetensors": ""}
    cache("b/scorer", shards)
    cache("c/detector", {**shards, "model-2.safetensors": ""})
    with pytest.raises(UnreachableError, match="b/scorer is neither"):
        check_models(HUB)
    check_models([HUB[0], HUB[2]])


@pytest.mark.usefixtures("cache")
def test_other_problems_are_named_beside_the_missing_models(tmp_path):
    folder = DescriberConfig(model=str(tmp_path / "gone"))
    with pytest.raises(
        ModelError, match=r"(?s)2 models can't be found here.*b/scorer, c/detector.*no such model folder"
    ):
        check_models([folder, *HUB[1:]])
    with pytest.raises(ModelError, match="no such model folder"):
        check_models([folder])
    with pytest.raises(SprError, match="no such embedded model"):
        check_models([ScorerConfig(model="embedded/nothing")])


def test_what_can_be_read_is_accepted_and_a_wrong_dialect_or_adapter_is_not(tmp_path):
    check_models([DescriberConfig(model="embedded/describer"), ScorerConfig(model="embedded/scorer")])
    with pytest.raises(ModelError, match="has no PEFT adapter"):
        check_models([DescriberConfig(model="embedded/describer", peft_adapter=str(tmp_path))])
    with pytest.raises(GroundingError, match="nonsense"):
        check_loadable([DescriberConfig(backend="fake", dialect="nonsense")])


@pytest.mark.usefixtures("cache")
def test_a_run_names_the_missing_models_before_its_first_stage_and_only_those_it_needs(dataset, tmp_path):
    hub = {"describer": {"model": "a/describer"}, "scorer": {"model": "b/scorer"}, "detector": {"backend": "none"}}
    with pytest.raises(ModelError, match="a/describer, b/scorer"):
        run(make_config(dataset.config(**hub)), tmp_path / "run")
    assert not (tmp_path / "run" / "objects").exists()
    assert run(make_config(dataset.config(**hub)), tmp_path / "run", until="regions")[-1].rows
