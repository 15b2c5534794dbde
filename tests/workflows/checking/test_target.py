"""A model's dialect and resize settings are found from its files or its name, without loading it."""

import json

import pytest

from spr.core.errors import ConfigError
from spr.grounding.geometry import Resized
from spr.models.errors import ModelError
from spr.workflows.checking.target import find_target


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


def model_folder(tmp_path, model_type, **processor):
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava"),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava_onevision"),
        ("Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl"),
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl"),
        ("OpenGVLab/InternVL3-8B-hf", "internvl"),
        ("google/paligemma2-3b-mix-448", "paligemma"),
        ("google/gemma-3-4b-it", "gemini"),
        ("zai-org/GLM-4.1V-9B-Thinking", "glm_v"),
        ("qwen2_5_vl", "qwen2_5_vl"),
    ],
)
def test_the_family_is_seen_from_the_name_if_there_are_no_files(name, dialect):
    target = find_target(model=name)
    assert target.dialect.key == dialect
    assert "by its name" in target.note


def test_files_decide_over_the_name(tmp_path):
    size = {"shortest_edge": 65536, "longest_edge": 1003520}
    folder = model_folder(tmp_path, "qwen2_5_vl", size=size, patch_size=14, merge_size=2)
    target = find_target(model=folder)
    assert target.dialect.geometry == Resized(28, 65536, 1003520)
    assert target.note == "of the family qwen2_5_vl; resize settings of its preprocessor_config.json"
    assert find_target(model=folder, max_pixels=500_000).dialect.geometry == Resized(28, 65536, 500_000)


def test_the_older_names_of_the_settings_are_read(tmp_path):
    limits = {"min_pixels": 3136, "max_pixels": 12845056}
    folder = model_folder(tmp_path, "qwen2_5_vl", **limits, patch_size=14, merge_size=2)
    assert find_target(model=folder).dialect.geometry == Resized(28, **limits)


def test_the_trainers_settings_change_only_dialects_that_have_them():
    assert find_target("qwen2_5_vl", max_pixels=1003520).dialect.spec == "qwen2_5_vl:max_pixels=1003520"
    target = find_target("qwen3_vl", min_pixels=100, max_pixels=1003520)
    assert (target.dialect.spec, target.min_pixels, target.max_pixels) == ("qwen3_vl", 100, 1003520)
    assert find_target() == find_target(None)
    assert find_target().dialect is None


def test_unknown_models_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="family of org/thing is not known") as caught:
        find_target(model="org/thing")
    assert "--dialect" in caught.value.fix
    with pytest.raises(ModelError, match=r"dialect of .* is not known"):
        find_target(model=model_folder(tmp_path, "resnet"))


def test_contradictions_are_errors():
    with pytest.raises(ConfigError, match="two ways to say the same"):
        find_target("ferret", "qwen2_vl")
    with pytest.raises(ConfigError, match="Unknown dialect"):
        find_target("feret")
    with pytest.raises(ConfigError, match="leave no size"):
        find_target("qwen2_5_vl", min_pixels=100, max_pixels=50)
