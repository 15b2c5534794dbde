"""Pairs of held-out images are in files of their own, in every format."""

import json

import pytest
import yaml
from datasets import load_dataset

from spr.exports.formats import FORMATS
from spr.exports.writing import export

HELD_OUT = ["47/0", "50/0"]
TRAIN = ["44/0", "45/0", "46/0", "48/0", "49/0", "51/0"]
ID = {"trl": "query_id", "rlaif-v": "idx"}


@pytest.mark.parametrize("key", ["trl", "rlaif-v", "llamafactory", "ms-swift", "llava"])
def test_each_split_is_loaded_by_itself_and_the_card_says_so(key, held_out_run, tmp_path):
    out = tmp_path / "out"
    summary = export(held_out_run, out, key)
    assert (summary.pairs, summary.held_out) == (8, 2)
    assert export(held_out_run, out, key) == summary.__class__(
        8, 2, {}, summary.images, summary.dialect, done_before=True
    )
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    ids = {split: sorted(rows[ID.get(key, "query_id")]) for split, rows in loaded.items()}
    assert ids == {"train": TRAIN, "test": HELD_OUT}
    assert all(row["image"].size == (200, 160) for rows in loaded.values() for row in rows if "image" in row)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"2 of the pairs are of held-out images: the split `test`, in `{FORMATS[key].files('test')}`" in card


@pytest.mark.parametrize("key", ["llamafactory", "ms-swift", "llava"])
def test_the_trainers_own_files_are_split_too(key, held_out_run, tmp_path):
    out = tmp_path / "out"
    export(held_out_run, out, key)
    for split, expected in (("train", TRAIN), ("test", HELD_OUT)):
        text = (out / FORMATS[key].files(split)).read_text(encoding="utf-8")
        rows = json.loads(text) if key == "llava" else list(map(json.loads, text.splitlines()))
        assert sorted(row["id" if key == "llava" else "query_id"] for row in rows) == expected
        if key == "llava":
            assert {row["split"] for row in rows} == {"train" if split == "train" else "holdout"}
        images = [row["image"] if key == "llava" else row["images"][0] for row in rows]
        assert all((out / image).is_file() for image in images)
        assert all(image.startswith("test/images/") == (split == "test") for image in images)
    if key == "llamafactory":
        info = json.loads((out / "dataset_info.json").read_text())
        assert {name: entry["file_name"] for name, entry in info.items()} == {
            "spr_pairs": "train.jsonl",
            "spr_pairs_test": "test.jsonl",
        }
        assert yaml.safe_load((out / "train_dpo.yaml").read_text())["dataset"] == "spr_pairs"


def test_without_held_out_images_there_is_no_test_split(small_run, tmp_path):
    assert export(small_run, tmp_path / "out", "llava").held_out == 0
    assert not (tmp_path / "out" / "test.json").exists()
    head = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert [part["split"] for part in yaml.safe_load(head)["configs"][0]["data_files"]] == ["train"]
    assert "held-out" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
