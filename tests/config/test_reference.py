"""`spr config`: every field with its type, default, meaning and source, and the values of a config."""

import re

import pytest
import yaml
from typer.testing import CliRunner

from spr.cli import app
from spr.config import Config, load_config, presets
from spr.config.reference import annotated_yaml, describe, sections
from spr.core.errors import ConfigError

FIELDS = {field.name: field for section in sections() for field in section.fields}


def run(*arguments):
    return CliRunner().invoke(app, ["config", *arguments])


def leaves(content, prefix=""):
    for key, value in content.items():
        inner = isinstance(value, dict) and f"{prefix}{key}" not in FIELDS
        yield from leaves(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]


def test_every_field_of_every_section_is_there_once_with_a_meaning():
    config = load_config("quickstart").model_dump(mode="json")
    assert sorted(leaves(config)) == sorted(FIELDS)
    assert [field.name for field in FIELDS.values() if not field.meaning] == []


def test_types_defaults_and_sources_are_those_of_the_sections():
    beta, r, path = FIELDS["training.beta"], FIELDS["training.lora.r"], FIELDS["annotations.path"]
    assert (beta.type, beta.default, beta.source) == ("a number, above 0", "0.1", "our choice")
    assert (r.type, r.default, r.source, r.meaning) == ("an integer, at least 1", "128", "supplement, Sec. 2", "Rank.")
    assert (path.default, path.source) == ("required", "")
    assert FIELDS["pairing.kind"].source == "paper, Sec. 3.3; our choice"
    assert FIELDS["prompts.crop"].source == "our choice"  # said of the whole section
    assert FIELDS["describer.device"].source == ""


def test_a_section_shows_its_fields_and_those_of_sections_in_it():
    printed = run("training").stdout
    shown = re.findall(r"^  (training\.[\w.]+): ", printed, re.MULTILINE)
    assert shown == [name for name in FIELDS if name.startswith("training.")]
    assert "training.beta: 0.1\n      a number, above 0 · our choice\n" in printed
    assert re.findall(r"^  ([\w.]+): ", run("training.lora").stdout, re.MULTILINE)[0] == "training.lora.r"


def test_one_field_is_found_by_its_name_with_and_without_the_section():
    assert run("learning_rate").stdout == run("training.learning_rate").stdout
    assert run("training.learning_rate").stdout.startswith("  training.learning_rate: 1.0e-05\n")
    assert "training.num_train_epochs: 1" in run("training.epochs").stdout  # its name in SPR 0.1


def test_the_overview_names_every_section_config_and_field_outside_of_sections():
    printed = run().stdout
    assert all(re.search(rf"^  {re.escape(s.name)} +\d+ fields?", printed, re.MULTILINE) for s in sections() if s.name)
    assert all(name in printed for name in presets())
    assert "  seed: 0\n" in printed


@pytest.mark.parametrize("name", sorted(presets()))
def test_the_values_of_a_config_are_yaml_of_the_same_config(name):
    config = load_config(name)
    printed = annotated_yaml(config)
    assert yaml.safe_load(printed) == yaml.safe_load(config.to_yaml())
    assert Config.model_validate({k: v for k, v in yaml.safe_load(printed).items() if k != "format_version"}) == config


def test_values_that_are_not_the_default_are_marked(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("annotations: {path: a.json, images: i}\nseed: 0\nprompts: {object_join: '; '}\n")
    result = run(str(path), "regions.per_image=2", "training.lora.target_modules=[q_proj]")
    marked = [line.strip() for line in result.stdout.splitlines() if "#" in line]
    assert marked[0].endswith("a.json  # no default")
    assert marked[2:] == [
        "crowds: drop  # default: null",  # without a describer, crowds are dropped
        "per_image: 2  # default: 1",
        "object_join: '; '  # default: \"\\n\"",
        "target_modules: [q_proj]  # default: null",
    ]


def test_a_run_folder_stands_for_its_config(tmp_path):
    (tmp_path / "config.yaml").write_text("annotations: {path: a.json, images: i}\nseed: 7\n")
    assert "seed: 7  # default: 0" in run(str(tmp_path)).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describr"], "did you mean `describer`?"),
        (["learning_rat"], "did you mean `learning_rate`?"),
        (["lr"], "did you mean `training.learning_rate`?"),
        (["quickstar"], "did you mean `quickstart`?"),
        (["xyzzy"], "`spr config` lists the sections and the configs"),
        (["gone.yaml"], "There is no config gone.yaml"),
        (["training", "training.beta=1"], "`training` is part of every config"),
        (["quickstart", "regions.per_imag=2"], "did you mean `regions.per_image`?"),
    ],
)
def test_unknown_names_are_errors_that_help(arguments, message):
    error = run(*arguments).exception
    assert isinstance(error, ConfigError)
    assert message in str(error)


def test_lines_fit_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    for name in (None, "training", "annotations"):
        wide = [line for line in describe(name) if len(line) > 70 and "`spr config CONFIG" not in line]
        assert wide == [], wide
