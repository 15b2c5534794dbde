"""TRL and RLAIF-V: Parquet that 🤗 datasets gives back, images and all, and that TRL's own trainer trains on."""

import json
import math

import numpy as np
import pytest
from datasets import Image as ImageFeature
from datasets import load_dataset

from spr.config import load_config
from spr.core.errors import ConfigError
from spr.core.images import ImageSource
from spr.exports.formats import ExportRow, ImageFile, Labels, Texts
from spr.exports.parquet import ParquetWriter
from spr.exports.trl import FORMAT as TRL
from spr.exports.writing import export
from spr.grounding import get_dialect
from spr.models.describers.hf import HfDescriber
from spr.models.loading import model_source


def load(folder, tmp_path):
    return load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("trl") / "out"
    export(small_run, out, "trl")
    return out


def test_trl_rows_come_back_as_conversations_with_their_images(exported, small_run, pairs_of, tmp_path):
    pairs, rows = pairs_of(small_run), load(exported, tmp_path)
    assert len(rows) == len(pairs) >= 6
    root = load_config(small_run / "config.yaml").annotations.images
    for pair, row in zip(pairs, rows, strict=True):
        text = {"type": "text", "text": pair.prompt}
        assert row["prompt"] == [{"role": "user", "content": [{"type": "image", "text": None}, text]}]
        for side in ("chosen", "rejected"):
            answer = [{"type": "text", "text": getattr(pair, side)}]
            assert row[side] == [{"role": "assistant", "content": answer}]
        (image,) = row["images"]
        seen = ImageSource(root).load(pair.file_name, (pair.width, pair.height))
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(seen))
        assert (row["query_id"], row["width"], row["height"]) == (pair.query_id, 200, 160)
        assert row["region"] == list(pair.region)
        assert row["margin"] == pytest.approx(pair.chosen_score - pair.rejected_score, abs=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("images", ["embed", "path"])
def test_trls_own_trainer_takes_a_step_on_it(images, small_run, tmp_path):
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    export(small_run, tmp_path / "out", "trl", images=images)
    describer = HfDescriber(model_source("embedded/describer"), dtype="float32", device="cpu")
    arguments = DPOConfig(
        output_dir=str(tmp_path / "dpo"),
        per_device_train_batch_size=2,
        max_steps=1,
        logging_steps=1,
        learning_rate=1e-3,
        warmup_steps=0,
        beta=0.1,
        max_length=None,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = DPOTrainer(
        model=describer.model,
        args=arguments,
        train_dataset=load(tmp_path / "out", tmp_path),
        processing_class=describer.processor,
        peft_config=LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)"),
    )
    trainer.train()
    (step,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    # At the first step policy and reference are the same, so the loss is −log σ(0) = log 2.
    assert step["loss"] == pytest.approx(math.log(2), abs=1e-4)
    # LoRA's B starts at zero: whatever is in it now came from this step.
    moved = [p.abs().max().item() for name, p in trainer.model.named_parameters() if "lora_B" in name]
    assert moved
    assert min(moved) > 0


def test_trl_by_path_names_the_files_and_holds_no_bytes(small_run, pairs_of, tmp_path):
    export(small_run, tmp_path / "out", "trl", images="path")
    rows = load(tmp_path / "out", tmp_path).cast_column("images", [ImageFeature(decode=False)])
    root = load_config(small_run / "config.yaml").annotations.images
    for pair, row in zip(pairs_of(small_run), rows, strict=True):
        assert row["images"] == [{"bytes": None, "path": str((root / pair.file_name).resolve())}]


def test_rlaif_v_has_the_published_columns(small_run, pairs_of, tmp_path):
    export(small_run, tmp_path / "out", "rlaif-v", name="Mine")
    rows = load(tmp_path / "out", tmp_path)
    # The features that the data set card of openbmb/RLAIF-V-Dataset on the Hugging Face hub declares, in its order.
    published = ["ds_name", "image", "question", "chosen", "rejected", "origin_dataset", "origin_split", "idx"]
    assert rows.column_names == [*published, "image_path"]
    kinds = {name: feature.dtype for name, feature in rows.features.items() if name != "image"}
    assert set(kinds.values()) == {"string"}
    raw = rows.cast_column("image", ImageFeature(decode=False))
    root = load_config(small_run / "config.yaml").annotations.images
    for pair, row in zip(pairs_of(small_run), raw, strict=True):
        assert (row["question"], row["chosen"], row["rejected"]) == (pair.prompt, pair.chosen, pair.rejected)
        # A file that any reader reads alike goes in byte for byte.
        assert row["image"] == {"bytes": (root / pair.file_name).read_bytes(), "path": pair.file_name}
        assert (row["ds_name"], row["origin_dataset"]) == ("Mine", "instances.json")
        assert json.loads(row["origin_split"]) == {"model": "fake", "type": "region_description"}
        assert (row["idx"], row["image_path"]) == (pair.query_id, pair.file_name)


def test_an_image_mode_that_the_format_does_not_support_is_an_error(small_run, tmp_path):
    with pytest.raises(ConfigError, match=r"`rlaif-v` doesn't support --images path[\s\S]*expected: embed"):
        export(small_run, tmp_path / "out", "rlaif-v", images="path")
    assert not (tmp_path / "out").exists()


def test_large_exports_are_cut_into_numbered_files_with_all_rows_in_order(small_run, pairs_of, tmp_path):
    pair = pairs_of(small_run)[0]
    whole = TRL.open(tmp_path / "schema", Labels("n", "o", "d", get_dialect("ferret")), "train")
    # Noise, which does not compress: each batch of two rows is over 20,000 bytes, and so a file.
    noise = np.random.default_rng(0)
    writer = ParquetWriter(tmp_path / "out", whole._schema, whole._row, shard_bytes=20_000)
    for number in range(3):
        texts = Texts(f"prompt {number}", "a", "b")
        writer.write([ExportRow(pair, texts, ImageFile("x.png", noise.bytes(12_000))) for _ in range(2)])
    writer.close()
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert names == [f"train-0000{number}-of-00003.parquet" for number in range(3)]
    files = str(tmp_path / "out" / "data" / "train-*.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    asked = [prompt[0]["content"][1]["text"] for prompt in rows["prompt"]]
    assert asked == ["prompt 0", "prompt 0", "prompt 1", "prompt 1", "prompt 2", "prompt 2"]
