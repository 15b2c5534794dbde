"""Counting tokens without loading a model."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from spr.config import DescriberConfig
from spr.models.loading import model_source
from spr.models.token_counts import token_counter

TEXTS = ["a red dog [0.10, 0.20, 0.30, 0.40] and a lamp", "", "a dog", "<|im_end|>"]


@pytest.fixture
def folder(tmp_path):
    """The files of the embedded describer's tokenizer, with a setting that truncates and pads."""
    source = model_source("embedded/describer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{source}/{name}", tmp_path / name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=5)
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_the_counts_are_those_of_the_models_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(model_source("embedded/describer"))
    expected = [len(ids) for ids in tokenizer(TEXTS, add_special_tokens=False)["input_ids"]]
    assert max(expected) > 5
    assert token_counter(DescriberConfig(model="embedded/describer"))(TEXTS) == expected
    assert token_counter(DescriberConfig(model=str(folder)))(TEXTS) == expected


def test_a_tokenizer_in_the_cache_of_the_hub_is_used(folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "cache" / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.copy(folder / "tokenizer.json", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert token_counter(DescriberConfig(model="some/model"))(["a dog"]) == [
        len(AutoTokenizer.from_pretrained(model_source("embedded/describer"))("a dog")["input_ids"])
    ]
    assert token_counter(DescriberConfig(model="some/model", revision="other")) is None


def test_without_a_readable_tokenizer_nothing_is_counted(tmp_path):
    damaged, other = tmp_path / "damaged", tmp_path / "other"
    damaged.mkdir()
    other.mkdir()
    (damaged / "tokenizer.json").write_text(json.dumps({"model": 3}))
    for model in (str(damaged), str(other), str(tmp_path / "missing" / "deep"), "no/such-model", "embedded/nothing"):
        assert token_counter(DescriberConfig(model=model)) is None
    assert token_counter(DescriberConfig(backend="fake")) is None
    assert token_counter(None) is None
