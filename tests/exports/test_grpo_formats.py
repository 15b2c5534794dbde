"""The rows of RL trainers, read back as each trainer's own loader reads them.

TRL and 🤗 datasets are installed. The other trainers pin other versions of transformers, so the rules of their loaders
are written down here as data and code:

- ms-swift 4.6.0: `RowPreprocessor` and `MessagesPreprocessor` of ``swift/dataset/preprocessor/core.py``, and
  ``_init_grpo`` of ``swift/arguments/rlhf_args.py``, which keeps all other columns for the reward;
- verl 0.9.0: ``_build_messages`` of ``verl/utils/dataset/rl_dataset.py`` and ``run_single`` of
  ``verl/experimental/reward_loop/reward_manager/naive.py``;
- EasyR1 (hiyouga/EasyR1, commit b44b311): ``verl/utils/dataset.py`` and ``verl/workers/reward/function.py``;
- VLM-R1 (om-ai-lab/VLM-R1, commit 90052f4): ``src/open-r1-multimodal/src/open_r1/grpo_jsonl.py``;
- Visual-RFT (Liuziyu77/Visual-RFT, commit 9486633): ``src/virft/src/open_r1/grpo.py``.
"""

import io
import json
import os
import re
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import DatasetDict, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from spr.config import load_config
from spr.core.images import ImageSource
from spr.exports import grpo_easyr1, grpo_ms_swift, grpo_verl, grpo_visual_rft, grpo_vlm_r1
from spr.exports.formats import FORMATS, ImageFile, Prompt, PromptRow
from spr.exports.prompt_options import PromptOptions
from spr.exports.saved_dataset import SavedDatasetWriter
from spr.exports.writing import export
from spr.grounding import get_dialect
from spr.pipeline.describe import training_prompt
from spr.records import RegionQuery
from spr.records.schemas import from_table
from spr.rewards import Truth
from spr.runs.reader import Run

KEYS = [key for key in FORMATS if key.startswith("grpo-")]
LIMITED = get_dialect("qwen2_5_vl:min_pixels=100000,max_pixels=1003600")


@pytest.fixture(scope="module")
def exported(held_out_run, tmp_path_factory):
    folders = {key: tmp_path_factory.mktemp(key) / "out" for key in KEYS}
    for key, folder in folders.items():
        export(held_out_run, folder, key)
    return folders


@pytest.fixture(scope="module")
def queries(held_out_run):
    """The region queries by their ids, with the prompt, the truth and the pixels that rows must have."""
    run = Run(held_out_run)
    config = load_config(held_out_run / "config.yaml")
    source, (_, dialect) = ImageSource(config.annotations.images), run.describer
    return {
        query.query_id: {
            "query": query,
            "prompt": training_prompt(query, dialect, config.prompts),
            "truth": Truth.from_query(query, dialect).to_json(),
            "pixels": np.asarray(source.load(query.file_name, (query.width, query.height))),
        }
        for query in from_table(run.table("regions"), RegionQuery)
    }


def check(found, queries, split):
    """``found``: by id, the prompt, the truth, and the image."""
    assert set(found) == {name for name, one in queries.items() if one["query"].split == split}
    for name, (prompt, truth, image) in found.items():
        assert (prompt, truth) == (queries[name]["prompt"], queries[name]["truth"])
        assert np.array_equal(np.asarray(image.convert("RGB")), queries[name]["pixels"])


SPLITS = [("train", "train"), ("test", "holdout")]


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_trls_own_code_makes_the_prompt_with_its_image_of_a_row(name, split, exported, queries, tmp_path):
    from trl.data_utils import is_conversational, prepare_multimodal_messages

    loaded = load_dataset(str(exported["grpo-trl"]), split=name, cache_dir=str(tmp_path))
    found = {}
    for row in loaded:
        assert is_conversational(row)
        (turn,) = prepare_multimodal_messages(row["prompt"], images=row["images"])
        image, text = turn["content"]
        assert (turn["role"], image["type"], text["type"]) == ("user", "image", "text")
        found[row["query_id"]] = text["text"], row["truth"], image["image"]
        assert (row["task"], row["region"]) == ("describe", list(queries[row["query_id"]]["query"].region))
    check(found, queries, split)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_ms_swift_finds_messages_that_end_with_the_user_and_gives_the_truth_to_the_reward(
    name, split, exported, queries
):
    out, found = exported["grpo-ms-swift"], {}
    for line in (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        # `objects` would rewrite boxes, and `solution` and `label` have meanings of their own.
        assert set(row) == {"messages", "images", "truth", "query_id", "task"}
        (turn,) = row["messages"]
        assert set(turn) == {"role", "content"}
        assert turn["role"] == "user"
        assert turn["content"].count("<image>") == len(row["images"]) == 1
        (path,) = row["images"]
        prompt = turn["content"].removeprefix("<image>")
        found[row["query_id"]] = prompt, row["truth"], Image.open(out / path)
    check(found, queries, split)


@pytest.mark.parametrize(("name", "split"), SPLITS)
@pytest.mark.parametrize("images", ["embed", "path"])
def test_verl_builds_the_messages_of_a_row_and_finds_its_ground_truth(
    images, name, split, held_out_run, queries, tmp_path
):
    out, found = tmp_path / "out", {}
    export(held_out_run, out, "grpo-verl", images=images)
    files = str(out / "data" / f"{name}-*.parquet")
    assert files.endswith(".parquet")  # verl decides by the end of the name
    for row in load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]:
        (message,) = row["prompt"]
        segments = [part for part in re.split("(<image>|<video>|<audio>)", message["content"]) if part]
        assert (message["role"], segments[0], len(segments), len(row["images"])) == ("user", "<image>", 2, 1)
        assert isinstance(row["images"][0], Image.Image)
        assert row["data_source"] == "spr/describe"
        assert row["reward_model"]["style"] == "rule"
        assert isinstance(row["extra_info"], dict)  # the reward manager adds keys to it
        found[row["extra_info"]["query_id"]] = segments[1], row["reward_model"]["ground_truth"], row["images"][0]
    check(found, queries, split)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_easyr1_loads_the_folder_by_split_and_finds_its_columns_by_the_config(name, split, exported, queries, tmp_path):
    out, found = exported["grpo-easyr1"], {}
    data = yaml.safe_load((out / grpo_easyr1.SETTINGS).read_text())["data"]
    folder, wanted = f"{out}/data@{name}".split("@")
    file_type = next(Path(folder).iterdir()).suffix[1:]
    loaded = load_dataset(file_type, data_dir=folder, split=wanted, cache_dir=str(tmp_path))
    for row in loaded:
        parts = row[data["prompt_key"]].split("<image>")
        assert (parts[0], len(parts), len(row[data["image_key"]])) == ("", 2, 1)
        found[row["query_id"]] = parts[1], row[data["answer_key"]], row[data["image_key"]][0]
    check(found, queries, split)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_vlm_r1_reads_problem_solution_and_image_of_a_line(name, split, exported, queries):
    out, found = exported["grpo-vlm-r1"], {}
    for line in (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        problem = item["conversations"][0]["value"].replace("<image>", "")
        solution = item["conversations"][1]["value"].replace("<answer>", "").replace("</answer>", "").strip()
        assert [turn["from"] for turn in item["conversations"]] == ["human", "gpt"]
        found[item["id"]] = problem, solution, Image.open(out / item["image"])
    check(found, queries, split)


@pytest.mark.parametrize("images", ["embed", "path"])
def test_visual_rft_loads_the_dataset_from_disk(images, held_out_run, queries, tmp_path):
    export(held_out_run, tmp_path / "out", "grpo-visual-rft", images=images)
    dataset = DatasetDict.load_from_disk(str(tmp_path / "out"))
    assert list(dataset) == ["train", "test"]
    assert isinstance(dataset["train"].features["image"], ImageFeature)
    mapped = dataset.map(lambda row: {"prompt": [{"role": "user", "content": row["problem"]}]})
    for name, split in SPLITS:
        check(
            {row["query_id"]: (row["problem"], row["solution"], row["image"]) for row in mapped[name]}, queries, split
        )


@pytest.mark.parametrize("key", KEYS)
def test_datasets_loads_each_folder_by_its_card(key, exported, queries, tmp_path):
    loaded = load_dataset(str(exported[key]), cache_dir=str(tmp_path))
    for name, split in SPLITS:
        column = "query_id" if "query_id" in loaded[name].column_names else "extra_info"
        ids = [one["query_id"] if column == "extra_info" else one for one in loaded[name][column]]
        assert set(ids) == {query for query, one in queries.items() if one["query"].split == split}


@pytest.mark.parametrize("key", KEYS)
def test_the_card_explains_every_column_and_names_the_reward(key, exported):
    text = (exported[key] / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([a-z_]+)` \|", text.split("## Columns")[1].split("## How")[0], re.MULTILINE)
    row = PromptRow(
        Prompt("1/0", "1", "1.png", 9, 9, "train", "describe", None, "?", "{}", 0), ImageFile("1.png", None)
    )
    module = __import__(f"spr.exports.{key.replace('-', '_')}", fromlist=["to_row"])
    assert named == list(module.to_row(row))
    assert "spr.rewards." in text
    assert f"format of {FORMATS[key].reader}" in text
    assert "There are no answers" in text


def test_the_script_of_verl_passes_files_limits_and_further_overrides(tmp_path):
    out = tmp_path / "my export"
    out.mkdir()
    (out / "train.sh").write_text(grpo_verl.script(LIMITED, held_out=True))
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "$IMAGE_MIN_TOKEN_NUM $IMAGE_MAX_TOKEN_NUM $MAX_PIXELS"\n')
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    command = ["sh", str(out / "train.sh"), "trainer.total_epochs=1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.splitlines() == [
        "-m",
        "verl.trainer.main_ppo",
        "algorithm.adv_estimator=grpo",
        f"data.train_files='{out}/data/train-*.parquet'",
        f"data.val_files='{out}/data/test-*.parquet'",
        "data.max_prompt_length=2304",
        "+data.mm_processor_kwargs.size={shortest_edge:100000,longest_edge:1003600}",
        "trainer.total_epochs=1",
        "128 1280 1003600",
    ]
    tokens = grpo_verl.script(get_dialect("qwen2_vl"), held_out=False)
    assert "reward.reward_manager.module.path=pkg://spr.rewards.verl" in tokens
    plain = grpo_verl.script(get_dialect("qwen3_vl"), held_out=False)
    assert "reward_manager" not in plain
    assert "PIXELS" not in plain
    assert "mm_processor_kwargs" not in plain
    assert "data.val_files='$here/data/train-*.parquet'" in plain


def test_the_settings_of_the_other_trainers_have_the_limits_that_the_boxes_need():
    limits = {"min_pixels": 100000, "max_pixels": 1003600}
    plain = get_dialect("qwen3_vl")
    assert yaml.safe_load(grpo_ms_swift.settings(LIMITED))["ENV"] == {
        "MIN_PIXELS": 100000,
        "MAX_PIXELS": 1003600,
        "IMAGE_MIN_TOKEN_NUM": 128,
        "IMAGE_MAX_TOKEN_NUM": 1280,
    }
    assert yaml.safe_load(grpo_ms_swift.settings(plain))["ENV"] == {}
    for module in (grpo_vlm_r1, grpo_visual_rft):
        assert limits.items() <= yaml.safe_load(module.settings(LIMITED)).items()
        assert not limits.keys() & yaml.safe_load(module.settings(plain)).keys()
    own = yaml.safe_load(grpo_easyr1.settings(LIMITED))
    # EasyR1's own limits, 262144 and 4194304, would resize before the processor does.
    assert (own["data"]["min_pixels"], own["data"]["max_pixels"]) == (None, None)
    assert "#   min_pixels: 100000\n#   max_pixels: 1003600\n" in grpo_easyr1.settings(LIMITED)
    assert "min_pixels" not in yaml.safe_load(grpo_easyr1.settings(plain))["data"]
    assert "worker" not in yaml.safe_load(grpo_easyr1.settings(plain))
    tokens = yaml.safe_load(grpo_easyr1.settings(get_dialect("qwen2_vl")))
    assert tokens["worker"] == {"reward": {"skip_special_tokens": False}}


def test_a_large_dataset_on_disk_is_cut_into_numbered_files_with_all_rows_in_order(tmp_path):
    from datasets import Features, Value

    features = Features({"image": ImageFeature(), "problem": Value("string")})
    writer = SavedDatasetWriter(tmp_path, features, lambda row: row, shard_bytes=20_000)
    sink = io.BytesIO()
    Image.effect_noise((120, 120), 50).save(sink, "PNG")
    for number in range(3):
        image = {"bytes": sink.getvalue(), "path": "x.png"}
        writer.write([{"image": image, "problem": f"{number}{letter}"} for letter in "ab"])
    writer.close()
    names = sorted(path.name for path in (tmp_path / "train").glob("*.arrow"))
    assert names == [f"data-0000{number}-of-00003.arrow" for number in range(3)]
    rows = DatasetDict.load_from_disk(str(tmp_path))["train"]
    assert rows["problem"][:] == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert rows[5]["image"].size == (120, 120)


def test_every_task_has_rows_in_one_schema(held_out_run, tmp_path):
    options = PromptOptions(("describe", "detect", "locate", "absent"))
    summary = export(held_out_run, tmp_path / "out", "grpo-trl", prompts=options)
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == summary.prompts - summary.held_out
    assert {row["task"]: row["region"] is None for row in rows} == {"describe": False, "detect": True}
