"""All settings of a model in the config reach it."""

import sys

import pytest

from spr.config import DescriberConfig
from spr.config.backends import DESCRIBERS
from spr.core.errors import ConfigError, SprError
from spr.models import registry
from spr.models.describers import hf as hf_mllm


@pytest.fixture(autouse=True)
def nothing_is_kept():
    yield
    registry.release()


def test_the_backend_gets_the_whole_section():
    got = []
    DESCRIBERS.register("recorder", got.append)
    try:
        section = DescriberConfig(backend="recorder", model="owner/name", temperature=0.25)
        registry.load_describer(section)
    finally:
        DESCRIBERS.unregister("recorder")
    assert got == [section]


def test_attention_and_device_map_are_those_of_the_config(mllm_folder, ask, picture, monkeypatch):
    placed, real = [], hf_mllm.load_mllm

    def load(*given, **named):
        placed.append(named.get("device_map"))
        return real(*given, **named)

    monkeypatch.setattr(hf_mllm, "load_mllm", load)
    settings = {"model": str(mllm_folder("llava")), "max_new_tokens": 4, "temperature": 0}
    plain = registry.load_describer(DescriberConfig(**settings, device="cpu"))
    assert plain.model.config._attn_implementation == "sdpa"
    request = ask(picture(60, 40))
    (expected,) = plain.describe([request])
    spread = registry.load_describer(DescriberConfig(**settings, device_map="auto", attn_implementation="eager"))
    assert spread.model.config._attn_implementation == "eager"
    assert placed == [None, "auto"]
    assert spread.describe([request]) == [expected]


def test_a_config_is_loaded_once():
    first = DescriberConfig(backend="fake", request_fields={"a": [1]})
    assert registry.load_describer(first) is registry.load_describer(first.model_copy(deep=True))
    assert registry.load_describer(first) is not registry.load_describer(DescriberConfig(backend="fake"))


def test_device_and_device_map_exclude_each_other():
    with pytest.raises(ValueError, match="both given"):
        DescriberConfig(model="x", device="cpu", device_map="auto")


def test_a_missing_key_is_an_error_before_any_request(monkeypatch):
    monkeypatch.delenv("SPR_TEST_KEY", raising=False)
    settings = {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "dialect": "llava"}
    with pytest.raises(ConfigError, match="SPR_TEST_KEY"):
        registry.load_describer(DescriberConfig(**settings, api_key_env="SPR_TEST_KEY"))


def test_a_describer_behind_a_server_without_httpx_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)  # its import fails
    for module in ("openai", "json_client"):
        monkeypatch.delitem(sys.modules, f"spr.models.describers.{module}", raising=False)
    DESCRIBERS.register("not_imported_yet", "spr.models.describers.openai:OpenAiDescriber")
    try:
        with pytest.raises(
            SprError, match=r"httpx is not installed[\s\S]*pip install 'spatial-preference-rewarding\[openai\]'"
        ):
            registry.load_describer(DescriberConfig(backend="not_imported_yet", model="m"))
    finally:
        DESCRIBERS.unregister("not_imported_yet")


def test_training_starts_from_the_model_and_never_silently_without_its_adapter():
    assert registry.trained_model(DescriberConfig(model="owner/name")) == "owner/name"
    with pytest.raises(ConfigError, match="There is no model to train"):
        registry.trained_model(DescriberConfig(backend="fake"))
    with pytest.raises(ConfigError, match="without an adapter") as caught:
        registry.trained_model(DescriberConfig(model="owner/name", peft_adapter="runs/a/adapter"))
    assert "spr merge" in str(caught.value)
