"""The dataset card: counts, statistics, plots, columns, sources, and what the user must fill in."""

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import yaml

from spr.config import make_config
from spr.config.public import public_config, public_name
from spr.exports.writing import export
from spr.runs.store import StageStore


@pytest.fixture(scope="module")
def card(small_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("card") / "out"
    export(small_run, out, "llava", license_id="cc-by-4.0", name="Shapes | of *mine*")
    return out


def test_the_front_matter_is_what_the_hub_reads(card):
    text = (card / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "cc-by-4.0"
    assert head["pretty_name"] == "Shapes | of *mine*"
    assert head["size_categories"] == ["n<1K"]
    (viewed,) = head["configs"]
    assert re.fullmatch(r"SPR pairs [0-9a-f]{16}", viewed.pop("description"))
    files = [{"split": "train", "path": ["metadata.jsonl", "images/**"]}]
    assert viewed == {"config_name": "default", "data_files": files}
    assert "# Shapes \\| of \\*mine\\*\n" in text
    assert "fill in" in text


def test_the_card_counts_every_stage_and_each_drop(card, small_run):
    text = (card / "README.md").read_text(encoding="utf-8")
    for name in ("objects", "regions", "candidates", "scores", "pairs"):
        manifest = StageStore(small_run / name).finished()
        (row,) = re.findall(rf"^\| {name} \| ([\d,]+) \| (.*) \|$", text, re.MULTILINE)
        assert row[0] == f"{manifest.rows:,}"
        for reason, count in manifest.dropped.items():
            assert f"{reason} {count:,}".replace("_", r"\_") in row[1]
    pairs = StageStore(small_run / "pairs").finished().rows
    assert f"| this export | {pairs} | – |" in text


def test_the_means_on_the_card_are_those_of_the_pairs(card, small_run, pairs_of):
    text = (card / "README.md").read_text(encoding="utf-8")
    pairs = pairs_of(small_run)
    (words,) = re.findall(r"^\| words \| ([\d.]+) .*\| ([\d.]+) .*\|$", text, re.MULTILINE)
    expected = [np.mean([len(getattr(p, side).split()) for p in pairs]) for side in ("chosen", "rejected")]
    assert [float(word) for word in words] == pytest.approx(expected, abs=0.051)
    scores = {
        row["candidate_id"]: row["localization"]
        for table in StageStore(small_run / "scores").tables()
        for row in table.to_pylist()
    }
    (scored,) = re.findall(r"^\| S_loc as scored.*?\| ([\d.]+) .*\| ([\d.]+) .*\|$", text, re.MULTILINE)
    chosen = np.mean([scores[p.chosen_candidate] for p in pairs])
    rejected = np.mean([scores[p.rejected_candidate] for p in pairs])
    assert [float(value) for value in scored] == pytest.approx([chosen, rejected], abs=0.00051)


def test_words_are_counted_in_the_texts_as_they_are_exported(small_run, tmp_path):
    export(small_run, tmp_path / "out", "llava", dialect="qwen3_vl")
    rows = json.loads((tmp_path / "out" / "train.json").read_text())
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"^\| words \| ([\d.]+) ", text, re.MULTILINE)
    assert float(words) == pytest.approx(np.mean([len(row["chosen"].split()) for row in rows]), abs=0.051)


def test_the_card_names_its_sources_without_folders(card, small_run):
    text = (card / "README.md").read_text(encoding="utf-8")
    digest = json.loads((small_run / "inputs.json").read_text())["sha256"]
    assert f"`instances.json`, sha256 `{digest}`" in text
    assert "| describer | `fake` |" in text
    assert str(small_run.parent) not in text
    config = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert config["annotations"]["path"] == "instances.json"
    assert config["scoring"]["semantic_weight"] == 0.8


def test_the_address_of_the_describers_server_is_not_published():
    # The config of the run is enough; no server is contacted.
    config = make_config(
        {
            "annotations": {"path": "/secret/place/a.json", "images": "/secret/place/images"},
            "describer": {
                "backend": "openai",
                "model": "m",
                "dialect": "ferret",
                "base_url": "http://host.inside:8000/v1",
            },
        }
    )
    shown = public_config(config)
    assert shown["describer"]["base_url"] == "not published"
    assert shown["annotations"]["path"] == "a.json"
    assert "host.inside" not in str(shown)
    assert "secret" not in str(shown)


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("/a/b/ferret@1f", "ferret@1f"),
        ("/a/b/ferret@1f+/runs/x/adapter@2e", "ferret@1f+adapter@2e"),
        ("Qwen/Qwen2.5-VL-7B-Instruct@main+/runs/x/adapter@2e", "Qwen/Qwen2.5-VL-7B-Instruct@main+adapter@2e"),
        ("embedded/describer", "embedded/describer"),
        ("Describe the region {region} and/or its objects.", "Describe the region {region} and/or its objects."),
    ],
)
def test_a_models_name_is_published_without_its_folders(name, public):
    assert public_name(name) == public


def test_the_card_explains_every_key_of_a_row(card):
    text = (card / "README.md").read_text(encoding="utf-8")
    row = json.loads((card / "train.json").read_text())[0]
    named = re.findall(r"^\| `([a-z_]+)` \|", text.split("## Columns")[1].split("## How")[0], re.MULTILINE)
    assert named == list(row)


def test_each_plot_is_there_and_shows_something(card):
    text = (card / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[.*\]\((plots/\w+\.svg)\)", text)
    assert shown == [f"plots/{name}.svg" for name in ("scores", "margins", "localization", "lengths")]
    marks = {"scores": "cell", "margins": "line all", "localization": "line chosen", "lengths": "line rejected"}
    panels = {"scores": 1, "margins": 1, "localization": 2, "lengths": 2}
    for path in shown:
        picture = ET.fromstring((card / path).read_text(encoding="utf-8"))  # noqa: S314 - our own file
        name = path.split("/")[1].removesuffix(".svg")
        nodes = list(picture.iter())
        assert sum(node.get("class") == "plot" for node in nodes) == panels[name]
        assert [node for node in nodes if node.get("class") == marks[name]]
        # A ground of its own keeps it readable on a dark page.
        assert picture.find("{*}rect").get("class") == "ground"


def test_a_single_pair_is_enough_for_a_card(make_dataset, make_run, tmp_path):
    run = make_run(make_dataset(tmp_path / "data", images=1))
    assert export(run, tmp_path / "out", "llava").pairs == 1
    assert (tmp_path / "out" / "plots" / "margins.svg").is_file()
