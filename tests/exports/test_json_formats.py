"""LLaMA-Factory, ms-swift and LLaVA: held against what their own readers ask for, written down here as data.

These packages pin other versions of transformers, so they can't be installed beside this one. The rules are theirs:
LLaMA-Factory 0.9.5 `data/parser.py` and `data/converter.py`, ms-swift 4.6.0 `dataset/preprocessor/core.py`, LLaVA
`llava/train/train.py` and LLaVA-NeXT `llava/train/train_dpo.py`.
"""

import json

import pytest
from datasets import Image as ImageFeature
from datasets import load_dataset
from PIL import Image

from spr.exports.formats import FORMATS
from spr.exports.writing import export


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    folders = {key: tmp_path_factory.mktemp(key) / "out" for key in ("llamafactory", "ms-swift", "llava")}
    for key, folder in folders.items():
        export(small_run, folder, key)
    return folders


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_llamafactory_finds_the_file_and_its_columns_by_the_entry(exported, small_run, pairs_of):
    out = exported["llamafactory"]
    ((name, entry),) = json.loads((out / "dataset_info.json").read_text()).items()
    assert name == "spr_pairs"
    # DatasetAttr.join reads these keys; ranking needs dicts under chosen and rejected, and an odd number of turns.
    assert (entry["formatting"], entry["ranking"]) == ("sharegpt", True)
    rows = lines_of(out / entry["file_name"])
    columns = entry["columns"]
    assert set(columns) == {"messages", "chosen", "rejected", "images"}
    for pair, row in zip(pairs_of(small_run), rows, strict=True):
        (turn,) = row[columns["messages"]]
        assert turn == {"from": "human", "value": f"<image>{pair.prompt}"}
        assert row[columns["chosen"]] == {"from": "gpt", "value": pair.chosen}
        assert row[columns["rejected"]] == {"from": "gpt", "value": pair.rejected}
        # As many placeholders as images; paths are taken relative to the data set's folder.
        (image,) = row[columns["images"]]
        assert (out / image).is_file()


def test_ms_swift_rows_have_messages_a_rejected_response_and_literal_boxes(exported, small_run, pairs_of):
    rows = lines_of(exported["ms-swift"] / "train.jsonl")
    for pair, row in zip(pairs_of(small_run), rows, strict=True):
        # RowPreprocessor.standard_keys has the first three; others are left out. `objects` would rewrite boxes.
        assert set(row) == {"messages", "rejected_response", "images", "query_id"}
        assert row["query_id"] == pair.query_id
        user, assistant = row["messages"]
        assert user == {"role": "user", "content": f"<image>{pair.prompt}"}
        assert assistant == {"role": "assistant", "content": pair.chosen}
        # _check_rejected_response refuses one that equals the chosen.
        assert row["rejected_response"] == pair.rejected != pair.chosen
        assert "[0." in row["rejected_response"]
        assert (exported["ms-swift"] / row["images"][0]).is_file()


def test_llava_rows_serve_fine_tuning_and_dpo(exported, small_run, pairs_of):
    out = exported["llava"]
    rows = json.loads((out / "train.json").read_text(encoding="utf-8"))
    for pair, row in zip(pairs_of(small_run), rows, strict=True):
        assert row["id"] == pair.query_id
        human, gpt = row["conversations"]
        assert human == {"from": "human", "value": f"<image>\n{pair.prompt}"}
        assert gpt == {"from": "gpt", "value": pair.chosen}
        # DPODataset reads these and puts <image> before the prompt itself; it counts the words of `answer`.
        assert row["prompt"] == pair.prompt
        assert row["answer"] == row["chosen"] == pair.chosen
        assert row["rejected"] == pair.rejected
        with Image.open(out / row["image"]) as image:
            assert image.size == (pair.width, pair.height)


@pytest.mark.parametrize("key", ["llamafactory", "ms-swift", "llava"])
def test_datasets_loads_each_folder_by_its_card_with_images(key, exported, small_run, pairs_of, tmp_path):
    """The hub's dataset viewer shows the first config, as `load_dataset` reads it: with a thumbnail per pair."""
    pairs = pairs_of(small_run)
    rows = load_dataset(str(exported[key]), split="train", cache_dir=str(tmp_path))
    assert isinstance(rows.features["image"], ImageFeature)
    for pair, row in zip(pairs, rows, strict=True):
        assert row["image"].size == (pair.width, pair.height)
        assert (row["query_id"], row["prompt"]) == (pair.query_id, pair.prompt)
        assert (row["chosen"], row["rejected"]) == (pair.chosen, pair.rejected)
    files = str(exported[key] / FORMATS[key].files("train"))
    trainers = load_dataset("json", data_files=files, split="train", cache_dir=str(tmp_path))
    assert len(trainers) == len(pairs)
    assert set(trainers.column_names) == set(FORMATS[key].columns)


@pytest.mark.parametrize("images", ["copy", "none"])
def test_a_new_export_in_a_folder_of_the_same_name_is_not_read_from_the_cache_of_the_old_one(
    images, small_run, tmp_path
):
    chosen = []
    for dialect in (None, "qwen_vl"):
        out = tmp_path / str(dialect) / "out"
        export(small_run, out, "llava", dialect=dialect, images=images)
        rows = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
        assert rows["chosen"][:] == [row["chosen"] for row in json.loads((out / "train.json").read_text())]
        chosen.append(rows["chosen"][:])
    assert chosen[0] != chosen[1]


def test_the_card_recommends_no_script_that_does_not_start(exported):
    card = (exported["llava"] / "README.md").read_text()
    assert "python llava/train/train_dpo.py" not in card
    assert "issues/333" in card


def test_by_path_the_files_stay_where_they_are(small_run, tmp_path):
    export(small_run, tmp_path / "out", "llava", images="path")
    (first, *_) = json.loads((tmp_path / "out" / "train.json").read_text())
    assert first["image"].startswith(str(small_run.parent))
    assert not (tmp_path / "out" / "images").exists()
