"""Published models at full width, on the meta device: parameters, LoRA targets, image tokens and memory."""

import json
import math
from functools import cache

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    Qwen2VLImageProcessorPil,
)

from published_configs import PUBLISHED
from spr.config import LoraSection, TrainingConfig
from spr.models.chat import user_turn
from spr.models.custom_models import register_custom_models
from spr.models.families import FAMILIES
from spr.models.image_processors import load_processor
from spr.training.encoding import PairEncoder
from spr.training.pairs import TrainingPair
from spr.training.trainee import add_adapter, describe_trained
from spr.training.vision_cache import MemoryFeatures
from spr.workflows.model_sizes import SHAPES, Shape

SIZES = [
    (640, 480),
    (480, 640),
    (1024, 1024),
    (333, 500),
    (1920, 1080),
    (100, 80),
    (28, 28),
    (3000, 2000),
    (4032, 3024),
    (1280, 320),
    (200, 1400),
    (448, 449),
]
RANK = 128


@cache
def config_of(model_type):
    register_custom_models()
    fields = dict(PUBLISHED[model_type].config)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


@cache
def model_of(model_type):
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config_of(model_type)).requires_grad_(False)


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_the_number_of_parameters_is_the_published_one(model_type):
    model = model_of(model_type)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[model_type].parameters


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_the_adapter_is_on_the_language_models_layers_and_has_the_numbers_worked_out_by_hand(model_type):
    published, family = PUBLISHED[model_type], FAMILIES[model_type]
    with torch.device("meta"):
        adapted = add_adapter(model_of(model_type), LoraSection(r=RANK, lora_alpha=RANK), family)
        try:
            names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
            trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
            line = describe_trained(adapted)
        finally:
            adapted.unload()
    assert trained == RANK * published.layers * sum(published.adapter.values())
    assert f"trains {trained:,} parameters; {published.parameters:,} are frozen" in line
    modules = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in names}
    assert len(modules) == published.layers * len(published.adapter)
    for layer in range(published.layers):
        inside = {name for name in modules if name.startswith(f"{family.decoder}.layers.{layer}.")}
        assert {name.rsplit(".", 1)[-1] for name in inside} == set(published.adapter)
    # As `spr check` estimates it from the config alone.
    shape = Shape.from_config(published_json(model_type), published.parameters)
    assert shape.adapter(TrainingConfig(lora=LoraSection(r=RANK))) == trained


def published_json(model_type):
    """The config.json, as `save_pretrained` writes it."""
    return json.loads(config_of(model_type).to_json_string(use_diff=False)) | PUBLISHED[model_type].config


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_the_estimates_know_the_shape_from_the_config_and_the_bytes_of_the_weights(model_type):
    published = PUBLISHED[model_type]
    shape = Shape.from_config(published_json(model_type), published.parameters)
    assert shape.weights("bfloat16") == 2 * published.parameters
    if model_type == "qwen2_5_vl":
        assert shape.weights("bfloat16") == 16_584_333_312  # total_size in its model.safetensors.index.json
    known = SHAPES.get("checkpoints/ferret-7b-v1-3" if model_type == "ferret" else published.model)
    if known is not None:
        names = ("parameters", "layers", "hidden", "intermediate", "queries", "keys", "vocabulary", "experts")
        assert [getattr(shape, name) for name in names] == [getattr(known, name) for name in names]
    expected = by_hand(model_type, 640, 480)
    assert abs(shape.image_tokens - expected) <= 2  # begin and end tokens
    if known is not None:
        assert abs(known.image_tokens - expected) <= 2


def qwen_tokens(width, height, factor=28, least=3136, most=12_845_056):
    """Qwen2.5-VL: sides that are multiples of 28, between two numbers of pixels, and a token per 28 × 28 pixels."""
    h, w = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if h * w > most:
        scale = math.sqrt(height * width / most)
        h, w = (max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
    elif h * w < least:
        scale = math.sqrt(least / (height * width))
        h, w = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return h * w // factor**2


def internvl_tokens(width, height, most=12, side=448):
    """InternVL: the grid of tiles with the nearest aspect ratio, and a thumbnail if there are several; 256 each."""
    grids = sorted(
        {(i, j) for n in range(1, most + 1) for i in range(1, n + 1) for j in range(1, n + 1) if i * j <= most},
        key=lambda g: g[0] * g[1],
    )
    best, least = (1, 1), math.inf
    for columns, rows in grids:
        gap = abs(width / height - columns / rows)
        if gap < least or (gap == least and width * height > 0.5 * side * side * columns * rows):
            best, least = (columns, rows), gap
    tiles = best[0] * best[1]
    return 256 * (tiles + (tiles > 1))


def onevision_tokens(width, height, side=27, tile=384, most=9):
    """LLaVA-OneVision (anyres_max_9): the whole image, and the cropped tiles with a token at the end of each row."""
    best = max(
        ((tile * r, tile * c) for r in range(1, 7) for c in range(1, 7)),
        key=lambda grid: onevision_fit(width, height, *grid),
    )
    rows, columns = best[0] // tile * side, best[1] // tile * side
    if width / height > columns / rows:
        kept = int(round(height * (columns / width), 7))
        rows -= (rows - kept) // 2 * 2
    else:
        kept = int(round(width * (rows / height), 7))
        columns -= (columns - kept) // 2 * 2
    ratio = math.sqrt(rows * columns / (most * side**2))
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    return side**2 + rows * (columns + 1)


def onevision_fit(width, height, grid_height, grid_width):
    """Pixels of the image that remain in a grid, then as few wasted ones as possible."""
    scale = min(grid_width / width, grid_height / height)
    used = min(int(width * scale) * int(height * scale), width * height)
    return used, -(grid_width * grid_height - used)


def by_hand(model_type, width, height):
    rules = {"llava_onevision": onevision_tokens, "qwen2_5_vl": qwen_tokens, "internvl": internvl_tokens}
    square = PUBLISHED[model_type].square
    return rules[model_type](width, height) if square is None else square[1]


@pytest.fixture(scope="module")
def encoder_of(mllm_folder):
    """A family → an encoder of pairs with the published settings of images, and a toy tokenizer."""

    def make(model_type):
        processor = load_processor(str(mllm_folder(model_type)), model_type, family=FAMILIES[model_type])
        published = PUBLISHED[model_type]
        if model_type == "llava_onevision":
            grid = published.config["image_grid_pinpoints"]
            images = LlavaOnevisionImageProcessorPil(**published.preprocessor, image_grid_pinpoints=grid)
            processor.num_image_tokens = 27**2
        elif model_type == "qwen2_5_vl":
            images = Qwen2VLImageProcessorPil(**published.preprocessor)
        elif model_type == "internvl":
            images = GotOcr2ImageProcessorPil(**published.preprocessor)
            processor.image_seq_length = published.config["image_seq_length"]
        else:
            side, tokens = published.square
            images = CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False)
            if model_type == "cogvlm":
                processor.num_image_tokens = tokens
        processor.image_processor = images
        encoder = PairEncoder(None, processor, FAMILIES[model_type], MemoryFeatures(), identity="")
        encoder._positions = lambda prompt, _vision: torch.zeros(1, len(prompt))
        return encoder

    return make


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_image_tokens_of_twelve_sizes_are_those_of_the_published_rules(model_type, encoder_of):
    encoder = encoder_of(model_type)
    images = [Image.new("RGB", size) for size in SIZES]
    pairs = [
        TrainingPair(str(k), user_turn("?"), "a", "b", lambda image=image: image, lambda: "", size_wh=image.size)
        for k, image in enumerate(images)
    ]
    planned, dropped = encoder.plan(pairs, 10**6)
    assert not dropped
    counted = []
    for one in planned:
        prompt = encoder.process(one).prompt  # raises if the count of `plan` differs
        counted.append(int((prompt == encoder._image_token).sum()))
    assert counted == [by_hand(model_type, *size) for size in SIZES]


def test_some_image_tokens_by_hand():
    # 640 × 480 → 644 × 476 pixels: 23 × 17 tokens. 100 × 80 → 112 × 84.
    assert [qwen_tokens(*size) for size in ((640, 480), (100, 80), (28, 28))] == [391, 12, 4]
    # 4:3 is a grid of 12 tiles, 1:1 is one of 4 for large images and one tile for small ones.
    assert [internvl_tokens(*size) for size in ((640, 480), (1024, 1024), (28, 28))] == [13 * 256, 10 * 256, 256]
    # 2 × 2 tiles of 27² tokens; 40 of the 54 rows show the image, and each ends with a token.
    assert onevision_tokens(640, 480) == 729 + 40 * 55
    # One tile.
    assert onevision_tokens(28, 28) == 729 + 27 * 28
