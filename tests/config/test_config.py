"""The config: all errors together, the nearest known key, overrides, presets, formats."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from spr.config import (
    PRESETS,
    Config,
    DetectorConfig,
    apply_overrides,
    changed_fields,
    load_config,
    make_config,
    make_section,
)
from spr.config.renamed import ALSO_KNOWN_AS, RENAMED
from spr.core.errors import ConfigError

MINIMAL = {"annotations": {"path": "a.json", "images": "images"}}


def test_a_minimal_config_has_the_defaults_of_the_paper():
    config = make_config(MINIMAL)
    assert (config.annotations.min_area, config.annotations.min_objects, config.annotations.max_images) == (
        300.0,
        9,
        10_000,
    )
    assert (config.regions.min_inside, config.regions.min_aspect) == (5, 1 / 3)


def test_paths_become_absolute_so_that_a_run_can_be_resumed_from_elsewhere():
    assert make_config(MINIMAL).annotations.path == Path.cwd() / "a.json"


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("training.lr", "`training.learning_rate`"),
        ("lr", "`training.learning_rate`"),
        ("learning_rate", "`training.learning_rate`"),
        ("training.lora_r", "`training.lora.r`"),
        ("target_modules", "`training.lora.target_modules`"),
        ("annotations.json", "`annotations.path`"),
        ("box_threshold", "`detector.box_threshold`"),
        ("model", "`describer.model` or `scorer.model` or `detector.model`"),
        ("training.seed", "`seed` or `describer.seed`"),
    ],
)
def test_names_of_other_tools_and_of_other_sections_are_suggested(key, suggestion):
    with pytest.raises(ConfigError) as error:
        make_config(apply_overrides(MINIMAL, [f"{key}=1"]))
    assert f"`{key}` is not a known key; did you mean {suggestion}?" in str(error.value)


def test_the_suggested_fields_exist():
    for name in ALSO_KNOWN_AS.values():
        with pytest.raises(ConfigError, match=f"`{name}`.* is not valid|`{name}`: "):
            make_config(apply_overrides(MINIMAL, [f"{name}={{a: {{b: 1}}}}"]))


def test_one_word_is_a_list_of_one():
    def training(*overrides):
        return make_config(apply_overrides(MINIMAL, overrides)).training

    assert training("training.report_to=wandb").report_to == ("wandb",)
    assert training("training.report_to=wandb, tensorboard").report_to == ("wandb", "tensorboard")
    assert training("training.report_to=[]").report_to == ()
    assert training("training.lora.target_modules=q_proj").lora.target_modules == ("q_proj",)
    assert training("training.lora.target_modules=q_proj,v_proj").lora.target_modules == ("q_proj", "v_proj")
    assert training("training.lora.target_modules=null").lora.target_modules is None


def test_all_errors_are_reported_together_with_the_nearest_key():
    raw = {
        "annotations": {"path": "a.json", "min_aera": 200, "min_objects": 0},
        "regions": {"min_aspect": "0.3"},
        "sead": 1,
    }
    with pytest.raises(ConfigError) as caught:
        make_config(raw, "x.yaml")
    message = str(caught.value)
    assert "x.yaml has 5 problems" in message
    assert "`annotations.images` is missing" in message
    assert "`annotations.min_aera` is not a known key; did you mean `annotations.min_area`?" in message
    assert "`annotations.min_objects` is not valid: got 0, expected an integer, at least 1" in message
    assert "`regions.min_aspect` is not valid: got '0.3', expected a finite number, at least 0 and below 1" in message
    assert "`sead` is not a known key; did you mean `seed`?" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"training": {"gradie.t": 1}}, "`training.gradie.t` is not a known key; known keys: loss_type"),
        ({"train.ing": {"x": 1}}, "`train.ing` is not a known key; did you mean `training`"),
        ({"": 1}, "`` is not a known key; known keys: seed"),
        ({"training": {".": 1}}, "`training..` is not a known key"),
        ({"training.beta": 0.1}, "`training.beta` is one key; nest it: `training: {beta: …}`"),
        ({"training": {"lora.r": 8}}, "`training.lora.r` is one key; nest it: `training: {lora: {r: …}}`"),
    ],
)
def test_keys_with_dots_are_not_known(content, message):
    with pytest.raises(ConfigError) as caught:
        make_config({**MINIMAL, **content})
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [True, "3", float("nan"), 1.5])
def test_an_integer_field_accepts_no_bool_string_nan_or_fraction(value):
    with pytest.raises(ConfigError, match=r"regions\.per_image"):
        make_config({**MINIMAL, "regions": {"per_image": value}})


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.box_token_weight=abc", " is not valid: got 'abc', expected a finite number, at least 1"),
        ("training.box_token_weight=.nan", " is not valid: got nan, expected a finite number, at least 1"),
        ("training.beta=1e999", " is not valid: got inf, expected a finite number, above 0"),
        ("training.max_steps=0", " is not valid: got 0, expected null or an integer, at least 1"),
        ("training.loss_type={dpo: .inf}", ": the weight of `dpo` is not a finite number above 0; leave out a loss"),
        ("training.loss_type=[]", ": not a loss, and not a mapping from losses to their weights"),
        ("training.lora.target_modules=[1]", " is not valid: got 1 in it, expected null or a list, each entry text"),
        ("pairing.box_iou=0.5", " is not valid: got 0.5, expected a list of 2, each a finite number"),
        ("pairing.box_iou=[0.5, a]", " is not valid: got 'a' in it, expected a list of 2, each a finite number"),
        ("pairing.kind=box", " is not valid: got 'box', expected one of answers, boxes, both"),
        ("engine.name=dask", " is not valid: got 'dask', expected one of local, ray"),
        ("describer.num_processes=0", " is not valid: got 0, expected an integer, at least 1 or auto"),
        ("scorer.num_gpus=2", " is not valid: got 2, expected a finite number, above 0 and at most 1"),
        ("describer.samples=3", " is not valid: got 3, expected a mapping with fields such as `full`"),
        ("describer.load_in_4bit=2", " is not valid: got 2, expected true or false"),
        ("annotations.path=3", " is not valid: got 3, expected a path"),
        ("describer.request_fields=[1]", " is not valid: got [1], expected a mapping, each entry any value"),
        ("describer.base_url=a", ": not a URL such as http://127.0.0.1:8000/v1, got 'a'"),
    ],
)
def test_an_error_names_the_given_and_the_expected_value_and_blames_the_command_line(override, line):
    with pytest.raises(ConfigError) as error:
        load_config("quickstart", [override])
    name = override.partition("=")[0]
    message = str(error.value)
    assert message.startswith("The command line has a problem:\n")
    assert f"  - `{name}`{line}" in message
    assert message.count("\n  - ") == 1


def test_problems_of_the_file_and_of_the_command_line_are_told_apart(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("annotations: {path: a.json, images: images, min_objects: 0}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, ["seed=x"])
    head, *lines = str(error.value).splitlines()
    assert head == f"{path} has 2 problems:"
    assert [line.endswith("(from the command line)") for line in sorted(lines)] == [False, True]


def test_an_unknown_key_without_a_near_one_lists_the_known_keys():
    with pytest.raises(ConfigError, match="known keys: per_image, min_inside"):
        make_config({**MINIMAL, "regions": {"zzzzz": 1}})


def test_an_unknown_field_of_a_model_constructor_names_the_nearest_field_of_its_section():
    with pytest.raises(ConfigError, match="`box_thresold` is not a known key; did you mean `box_threshold`"):
        make_section(DetectorConfig, "model", box_thresold=0.3)


def test_overrides_win_over_the_file_and_are_read_as_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    config = load_config(path, ["annotations.max_images=null", "regions.per_image=2", "seed=5"])
    assert (config.annotations.max_images, config.regions.per_image, config.seed) == (None, 2, 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [("seed", "key=value"), ("=3", "key=value"), ("seed.x=1", "is a value"), ("seed=[", "not YAML")],
)
def test_a_malformed_override_is_an_error(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"seed": 0}, [override])


def test_overrides_do_not_change_their_input():
    raw = {"regions": {"per_image": 1}}
    apply_overrides(raw, ["regions.per_image=2"])
    assert raw == {"regions": {"per_image": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "an empty file"),
        ("[1]", "list"),
        ("a: [", "not YAML"),
        ("a: \x00", "binary data"),
        ("a: b\x07", "not YAML"),
    ],
)
def test_a_file_that_is_not_a_config_is_an_error(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_missing_config_names_the_nearest_preset(tmp_path):
    with pytest.raises(ConfigError, match="did you mean `quickstart`"):
        load_config("quickstrat")
    with pytest.raises(ConfigError, match="a folder"):
        load_config(tmp_path)


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_is_valid_and_survives_the_round_trip(path):
    config = load_config(path.stem)
    assert make_config(yaml.safe_load(config.to_yaml())) == config


def test_changed_fields_have_both_values():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert changed_fields(old, new) == {"a.c": (2, 5), "d": (3, None), "e": (None, 4)}


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_field_name_of_version_0_1_gives_an_error_with_the_new_name(old, new, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("annotations: {path: a.json, images: images}\ndescriber: {backend: fake}\n")
    with pytest.raises(ConfigError, match=re.escape(f"`{old}` is now called `{new}`")):
        load_config(path, [f"{old}=1"])


@pytest.mark.parametrize("new", RENAMED.values())
def test_every_new_field_name_exists(new):
    section = Config
    *parents, field = new.split(".")
    for name in parents:
        kind = section.model_fields[name].annotation
        section = next((k for k in get_args(kind) if hasattr(k, "model_fields")), kind)
    assert field in section.model_fields


def test_a_config_is_written_with_its_format_version_and_read_again(tmp_path):
    config = make_config({"annotations": {"path": "/a.json", "images": "/images"}})
    text = config.to_yaml()
    assert text.startswith("format_version: 2\n")
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert load_config(path) == config


def test_a_config_of_another_format_version_is_an_error(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("format_version: 3\nannotations: {path: a.json, images: images}\n")
    with pytest.raises(ConfigError, match="another format version"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scorer.batch_size=automatic", "expected an integer, at least 1 or auto"),
        ("scorer.batch_size=0", "expected an integer, at least 1 or auto"),
        ("describer.backend=hff", "there is no describer backend `hff`; did you mean `hf`"),
        ("scorer.backend=clipp", "there is no scorer backend `clipp`; did you mean `clip`"),
        ("detector.backend=nonne", "there is no detector backend `nonne`; did you mean `none`"),
        ("training.loss_type=dop", "there is no loss `dop`; did you mean `dpo`"),
    ],
)
def test_an_unknown_backend_or_loss_is_an_error_that_names_the_nearest(override, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("annotations: {path: a.json, images: images}\n")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(path, ["describer.backend=fake", override])


ANNOTATIONS = {"path": "a.json", "images": "images"}


@pytest.mark.parametrize(
    ("sections", "crowds"),
    [
        ({"detector": {"backend": "fake"}}, "detect"),
        ({"detector": {}}, "detect"),
        ({"detector": {"backend": "none"}}, "drop"),
        # The default detector scores the describer's answers; without one, the run ends after the region queries.
        ({"describer": {"backend": "fake"}}, "detect"),
        ({"describer": {"backend": "fake"}, "detector": {"backend": "none"}}, "drop"),
        ({}, "drop"),
    ],
)
def test_crowds_are_replaced_where_a_detector_is_configured(sections, crowds):
    config = make_config({"annotations": ANNOTATIONS, **sections})
    assert config.annotations.crowds == crowds
    assert yaml.safe_load(config.to_yaml())["annotations"]["crowds"] == crowds
    assert make_config(yaml.safe_load(config.to_yaml())) == config


def test_the_given_value_for_crowds_is_kept():
    for crowds, sections in (("drop", {"detector": {"backend": "fake"}}), ("detect", {})):
        config = make_config({"annotations": {**ANNOTATIONS, "crowds": crowds}, **sections})
        assert config.annotations.crowds == crowds


@pytest.mark.parametrize(
    "sections",
    [
        {"annotations": {**ANNOTATIONS, "crowds": "detect"}},
        {"annotations": ANNOTATIONS, "scoring": {"ground_truth": "annotations+detections"}},
    ],
)
def test_what_needs_a_detector_is_an_error_without_one(sections):
    with pytest.raises(ConfigError, match=r"\n  - [a-z_.]+: [a-z+]+ needs a detector; set detector\.backend") as raised:
        make_config({**sections, "detector": {"backend": "none"}})
    assert str(raised.value).count("\n") == 1


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ({"backend": "owlv2", "prompt": "text"}, "prompt: text is for grounding_dino"),
        ({"backend": "grounding_dino", "text_threshold": 0.3}, "no effect with prompt: phrases"),
        ({"backend": "owlv2", "text_threshold": 0.3}, "no effect with prompt: phrases"),
    ],
)
def test_a_detector_option_without_effect_is_an_error(detector, message):
    with pytest.raises(ConfigError, match=message):
        make_config({"annotations": ANNOTATIONS, "detector": detector})
    config = make_config({"annotations": ANNOTATIONS, "detector": {"prompt": "text", "text_threshold": 0.3}})
    assert config.detector.text_threshold == 0.3


def test_a_padding_colour_has_three_bytes():
    config = make_config({"annotations": ANNOTATIONS, "scoring": {"padding_colour": [0, 0, 255]}})
    assert config.scoring.padding_colour == (0, 0, 255)
    for colour in ([0, 0], [0, 0, 256], [0, 0, 0.5], "black"):
        with pytest.raises(ConfigError, match=r"scoring\.padding_colour"):
            make_config({"annotations": ANNOTATIONS, "scoring": {"padding_colour": colour}})
