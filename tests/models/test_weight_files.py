"""Models whose weights are only pickles, as those of the default scorer on the Hub, load without running code."""

import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from spr.models.loading import ModelError, load_pretrained, source_name
from spr.models.scorers.clip import ClipScorer
from spr.models.weight_files import has_only_pickles, weights_are_cached, without_conversion

COMMIT = "ce19dc912ca5cd21c8a653c79e251e808ccabcd1"


@pytest.fixture
def pickled(clip_folder, tmp_path):
    """CLIP as published: one pickle, with positions that the class does not keep."""
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights |= {f"{part}_model.embeddings.position_ids": torch.arange(5)[None] for part in ("text", "vision")}
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def offline_hub(monkeypatch, tmp_path):
    """A model's folder → its id in a Hub's cache, without the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder):
        cached = tmp_path / "hub" / "models--owner--name"
        shutil.copytree(folder, cached / "snapshots" / COMMIT)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(COMMIT)
        return "owner/name"

    return put


def test_a_folder_with_a_pickle_of_tensors_loads(pickled, clip_folder):
    model = load_pretrained(CLIPModel, pickled)
    expected = load_pretrained(CLIPModel, clip_folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert sorted(path.name for path in pickled.glob("*.safetensors")) == []


def test_its_name_follows_the_pickle(pickled):
    before = source_name(pickled)
    torch.save({"other": torch.zeros(1)}, pickled / "pytorch_model.bin")
    assert source_name(pickled) != before


def test_a_model_of_the_hub_with_a_pickle_loads_from_the_cache_without_the_hub(pickled, offline_hub):
    model = offline_hub(pickled)
    assert has_only_pickles(model)
    assert weights_are_cached(model)
    scorer = ClipScorer(model, device="cpu", dtype="float32")
    assert scorer.name == f"owner/name@{COMMIT}"
    assert scorer.embed_texts(["a cat"]).shape == (1, 24)


def test_safetensors_are_preferred(pickled, clip_folder, offline_hub):
    shutil.copy(clip_folder / "model.safetensors", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    assert not has_only_pickles(pickled)
    load_pretrained(CLIPModel, pickled)
    model = offline_hub(pickled)
    assert not has_only_pickles(model)
    load_pretrained(CLIPModel, model)


def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(pickled, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps({"logit_scale": Trap()}))
    with pytest.raises(ModelError, match="is not a complete model"):
        load_pretrained(CLIPModel, pickled)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_missing_from_the_cache_are_noticed(pickled, offline_hub):
    (pickled / "pytorch_model.bin").unlink()
    model = offline_hub(pickled)
    assert not has_only_pickles(model)
    assert not weights_are_cached(model)
    with pytest.raises(ModelError):
        load_pretrained(CLIPModel, model)


@pytest.mark.parametrize("before", [None, "0"])
def test_transformers_is_kept_from_asking_for_a_conversion(before, monkeypatch):
    name = "DISABLE_SAFETENSORS_CONVERSION"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with without_conversion():
        assert os.environ[name] == "1"
    assert os.environ.get(name) == before
