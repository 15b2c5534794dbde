"""Every preset loads, has the values of the paper, and runs on annotated images with fake models."""

import json
import re

import pytest

from spr.config import PRESETS, load_config
from spr.grounding import get_dialect, parse
from spr.pipeline.describe import training_prompt
from spr.pipeline.runner import run
from spr.records import PreferencePair, RegionObject, RegionQuery
from spr.records.schemas import from_table
from spr.runs.store import StageStore

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
PAPER = ["cogvlm-17b", "ferret-13b", "ferret-7b", "llava-onevision-7b", "qwen2.5-vl-7b"]
# Peak learning rates from the supplement for Ferret, CogVLM and LLaVA-OneVision; our choice for Qwen2.5-VL.
RATES = {
    "cogvlm-17b": 1e-5,
    "ferret-13b": 1e-5,
    "ferret-7b": 1e-5,
    "llava-onevision-7b": 2e-7,
    "qwen2.5-vl-7b": 2e-7,
}
MODELS = {
    "cogvlm-17b": ("zai-org/cogvlm-grounding-generalist-hf", "cogvlm"),
    "ferret-13b": ("checkpoints/ferret-13b-v1-3", "ferret"),
    "ferret-7b": ("checkpoints/ferret-7b-v1-3", "ferret"),
    "llava-onevision-7b": ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava_onevision"),
    "qwen2.5-vl-7b": ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl"),
}
FAKES = ["describer.backend=fake", "scorer.backend=fake", "detector.backend=fake"]


def test_there_is_a_preset_for_each_model_and_for_the_quickstart():
    assert sorted([*PAPER, "quickstart"]) == NAMES


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_has_the_values_of_the_paper(name):
    config = load_config(name)
    annotations, regions = config.annotations, config.regions
    assert annotations.path.name == "zhiyuan_objv2_train.json"
    assert (annotations.min_area, annotations.min_objects, round(0.95 * annotations.max_images)) == (300, 9, 10_000)
    assert annotations.holdout == 0.05
    assert annotations.crowds == "detect"
    assert (regions.min_inside, regions.inside_fraction) == (5, 0.5)
    assert regions.min_aspect == pytest.approx(1 / 3)
    assert config.describer.crop_factor == 1.5
    assert config.pairing.unmatched == "auto"  # a dialect that lists objects keeps the words of unmatched boxes
    assert config.describer.samples.crop > 0
    assert config.describer.samples.crop_objects > 0
    assert config.scorer.model == "openai/clip-vit-large-patch14-336"
    assert config.detector.backend == "grounding_dino"
    assert config.scoring.semantic_weight == 0.8
    training = config.training
    assert (training.loss_type, training.beta, training.per_device_train_batch_size) == ("dpo", 0.1, 2)
    assert (training.lora.r, training.lora.lora_alpha) == (128, 256)
    assert training.learning_rate == RATES[name]


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_names_its_model_and_a_known_dialect(name):
    config = load_config(name)
    assert config.describer.backend == "hf"
    assert (config.describer.model, config.describer.dialect) == MODELS[name]
    assert get_dialect(config.describer.dialect).key == config.describer.dialect


@pytest.mark.parametrize("name", PAPER)
def test_every_number_has_its_source_in_a_comment(name):
    lines = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if re.match(r"  [a-z_]+: \S", line)]
    # Models, paths and prompts need no source.
    sourced = [line for line in values if re.search(r": (\d|\{[a-z]+: \d)", line)]
    assert len(sourced) >= 18
    assert [line for line in sourced if not re.search(r"#.*(supplement|paper|our choice)", line)] == []


@pytest.mark.parametrize("name", PAPER)
def test_the_training_prompt_writes_the_region_in_the_models_dialect(name):
    config = load_config(name)
    dialect = get_dialect(config.describer.dialect)
    whole = (0.0, 0.0, 1000.0, 500.0)
    query = RegionQuery(
        "1/0", "1", "1.jpg", 1000, 500, (100.0, 75.0, 300.0, 400.0), "a", (RegionObject("a", "b", whole),)
    )
    prompt = training_prompt(query, dialect, config.prompts)
    assert "{" not in prompt
    # 75 and 400 of 500 px are 150 and 800 thousandths; Qwen2.5-VL counts pixels of 1008 × 504.
    written = {
        "ferret": "[100, 150, 300, 800] <region_fea>",
        "cogvlm": "[[100,150,300,800]]",
        "llava_onevision": "[0.10, 0.15, 0.30, 0.80]",
        "qwen2_5_vl": "[101, 76, 302, 403]",
    }
    assert written[dialect.key] in prompt


def as_objects365(dataset):
    """Rename the dataset's files as in Objects365: unpacked into train/, with two links."""
    train = dataset.images.rename(dataset.folder / "train")
    (train / "patch16").mkdir()
    for image in dataset.coco["images"]:
        new = f"objects365_v2_{image['id']:08d}.png"
        (train / image["file_name"]).rename(train / "patch16" / new)
        image["file_name"] = f"images/v2/patch16/{new}"
    for annotation in dataset.coco["annotations"]:
        annotation |= {"isfake": 0, "isreflected": 0}
    dataset.coco["annotations"][0]["iscrowd"] = 1
    (dataset.folder / "images").mkdir()
    for version in ("v1", "v2"):
        (dataset.folder / "images" / version).symlink_to("../train")
    dataset.write()


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_runs_from_objects365_to_pairs_with_fake_models(name, make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "objects365", images=6)
    as_objects365(dataset)
    paths = {"path": dataset.json, "images": dataset.folder}
    overrides = [f"annotations.{key}={json.dumps(str(path))}" for key, path in paths.items()] + FAKES
    config = load_config(name, overrides)
    run(config, tmp_path / "run")
    (table,) = StageStore(tmp_path / "run" / "pairs").tables()
    pairs = from_table(table, PreferencePair)
    assert len(pairs) >= 4
    for pair in pairs:
        assert pair.file_name.startswith("images/v2/patch16/objects365_v2_")
        chosen = parse(pair.chosen, config.describer.dialect, (pair.width, pair.height))
        assert chosen.boxes
        assert chosen.problems == ()
