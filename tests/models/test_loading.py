import json
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, CLIPModel
from transformers.utils import logging

from spr.core.progress import Progress
from spr.models.batching import DeviceMemoryError
from spr.models.errors import ModelError
from spr.models.loading import load_part, load_pretrained, read_model_type, source_name
from spr.models.scorers.clip import ClipScorer


@pytest.fixture
def copy(clip_folder, tmp_path):
    return shutil.copytree(clip_folder, tmp_path / "model")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_saved_model_loads_completely_in_eval_mode_and_without_gradients(clip_folder):
    model = load_pretrained(CLIPModel, clip_folder, dtype="bfloat16", device="cpu")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_loading_weights_shows_our_own_progress_and_no_bar_of_transformers(clip_folder, monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    counts = []
    monkeypatch.setattr(Progress, "advance", lambda self, count=1: counts.append((self.label, self.total, count)))
    load_pretrained(CLIPModel, clip_folder)
    assert "Loading weights" not in capfd.readouterr().err
    label, total, _ = counts[0]
    assert label == f"loading {clip_folder.name}"
    assert counts == [(label, total, 1)] * total
    assert isinstance(logging.tqdm([1], disable=True), tqdm)  # the hook is gone


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(copy):
    def change(weights):
        del weights["visual_projection.weight"]
        weights["surplus.weight"] = torch.zeros(2)
        weights["text_projection.weight"] = torch.zeros(3, 4)

    change_weights(copy, change)
    with pytest.raises(ModelError) as raised:
        load_pretrained(CLIPModel, copy)
    message = str(raised.value)
    assert "1 missing: visual_projection.weight" in message
    assert "1 unexpected: surplus.weight" in message
    assert "1 misshapen: text_projection.weight (3, 4) for (24, 32)" in message


def test_position_ids_in_old_checkpoints_are_not_reported_as_unexpected(copy):
    change_weights(copy, lambda w: w.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}))
    load_pretrained(CLIPModel, copy)


def test_the_error_for_weights_of_another_model_names_a_few_tensors(copy, owlv2_folder):
    shutil.copy(owlv2_folder / "model.safetensors", copy / "model.safetensors")
    with pytest.raises(ModelError, match="more") as raised:
        load_pretrained(CLIPModel, copy)
    assert len(str(raised.value)) < 2500


def test_pickled_weights_are_never_read(copy):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps("code could run here"))
    with pytest.raises(ModelError, match="safetensors"):
        load_pretrained(CLIPModel, copy)


def test_code_of_a_model_folder_is_never_run(copy, tmp_path):
    ran = tmp_path / "ran"
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {name: f"their_code.{name}" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "their_code.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    load_pretrained(CLIPModel, copy)  # the architecture is known, so its own class is used
    assert not ran.exists()
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "theirs"}))
    with pytest.raises(ModelError):
        load_pretrained(AutoModel, copy)
    assert not ran.exists()


@pytest.mark.parametrize("content", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", b"\xff" * 64])
def test_damaged_weights_give_one_clear_error(copy, content):
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="is not a complete model"):
        load_pretrained(CLIPModel, copy)


def test_truncated_weights_give_one_clear_error(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is not a complete model"):
        load_pretrained(CLIPModel, copy)


@pytest.mark.parametrize("config", ["", "{", "[]", '{"model_type": "no-such-model"}'])
def test_a_wrong_config_gives_one_clear_error(copy, config):
    (copy / "config.json").write_text(config)
    with pytest.raises(ModelError):
        read_model_type(copy, ["clip"])
    with pytest.raises(ModelError):
        ClipScorer(copy)


def test_an_empty_folder_gives_one_clear_error(tmp_path):
    for load in (lambda: load_pretrained(CLIPModel, tmp_path), lambda: load_part(AutoTokenizer, tmp_path)):
        with pytest.raises(ModelError, match="is not a complete model"):
            load()


def test_a_folder_without_a_processor_gives_one_clear_error(copy):
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="is not a complete model"):
        ClipScorer(copy)


def test_a_folder_without_a_tokenizer_gives_one_clear_error(copy):
    # transformers would create a tokenizer of three tokens, which makes all texts equal.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(ModelError, match="is not this model's"):
        ClipScorer(copy)


def test_a_tokenizer_with_tokens_that_the_model_does_not_know_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["vocab_size"] = 500
    (copy / "config.json").write_text(json.dumps(config))

    def change(weights):
        name = "text_model.embeddings.token_embedding.weight"
        weights[name] = weights[name][:500].clone()

    change_weights(copy, change)
    with pytest.raises(ModelError, match="expected: 16 to 500"):
        ClipScorer(copy)


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "a/b/c"])
def test_a_path_that_is_not_a_folder_is_not_looked_up_on_the_hub(path):
    with pytest.raises(ModelError, match="no such model folder"):
        load_pretrained(CLIPModel, path)


def hub_answers(error):
    """A class whose loading fails as in transformers: an OSError raised from the hub's error."""

    class Answers:
        @staticmethod
        def from_pretrained(*_args, **_kwargs):
            raise OSError("something long and technical") from error

    return Answers


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            lambda r: RepositoryNotFoundError("404", response=r),
            "no model owner/name, neither as a folder nor on the Hub",
        ),
        (lambda r: RevisionNotFoundError("404", response=r), "no such revision"),
        (lambda _: LocalEntryNotFoundError("no network"), "is unreachable"),
        (lambda _: ConnectionError("no network"), "is unreachable"),
        (lambda _: None, "can't be loaded"),
    ],
)
def test_an_error_of_the_hub_becomes_one_clear_message(error, message):
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    with pytest.raises(ModelError, match=message):
        load_pretrained(hub_answers(error(response)), "owner/name", revision="v2")


def test_without_network_an_uncached_model_gives_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="is unreachable"):
        load_pretrained(CLIPModel, "owner/name", cache_dir=tmp_path)


def test_a_device_with_too_little_memory_gives_one_clear_error():
    class Big:
        @staticmethod
        def from_pretrained(*_args, **_kwargs):
            raise torch.OutOfMemoryError("tried to allocate 999 GiB")

    with pytest.raises(DeviceMemoryError, match="owner/name does not fit"):
        load_pretrained(Big, "owner/name")


def test_a_name_depends_on_the_weights_and_not_on_their_folder(copy, clip_folder, tmp_path):
    other = shutil.copytree(copy, tmp_path / "elsewhere" / "model")
    assert source_name(copy) == source_name(other)
    assert source_name(copy).startswith("model@")
    assert source_name(clip_folder).split("@")[1] == source_name(copy).split("@")[1]
    change_weights(other, lambda weights: weights["logit_scale"].add_(1))
    assert source_name(copy) != source_name(other)
    assert source_name("owner/name") == "owner/name@main"
    assert source_name("owner/name", "v2") == "owner/name@v2"


def test_the_name_of_a_hub_model_contains_the_loaded_commit(clip_folder):
    model = load_pretrained(CLIPModel, clip_folder)
    model.config._commit_hash = "0123abc"
    assert source_name("owner/name", "v2", model) == "owner/name@0123abc"
