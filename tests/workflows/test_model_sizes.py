"""Estimates of memory and time: the shapes are those of the real models, and the sums follow the stated formulas."""

import json
from dataclasses import replace

import pytest

from spr.config import DescriberConfig, LoraSection, TrainingConfig, load_config, presets
from spr.models.hub_cache import find_model
from spr.workflows import model_sizes
from spr.workflows.model_sizes import GIB, SHAPES, Shape

# Two layers of width 8 with MLPs of width 12, queries of width 8 and keys of width 4, for 5 image tokens.
SMALL = Shape(10_000, 2, 8, 12, 8, 4, 100, 5)


def test_the_adapter_and_the_decoder_are_counted_layer_by_layer():
    training = TrainingConfig(lora=LoraSection(r=3))
    # q 8+8, k and v 8+4 each, o 8+8, gate and up 8+12 each, down 12+8: 116 per rank and layer.
    assert SMALL.adapter(training) == 3 * 2 * 116
    some = TrainingConfig(lora=LoraSection(r=3, target_modules=("q_proj", "self_attn.v_proj")))
    assert SMALL.adapter(some) == 3 * 2 * (16 + 12)
    # q and o 64 each, k and v 32 each, three MLP matrices of 96, two norms of 8.
    assert SMALL.decoder == 2 * (2 * 64 + 2 * 32 + 3 * 96 + 16)
    assert SMALL.vision == 10_000 - SMALL.decoder - 2 * 100 * 8


def test_memory_follows_the_stated_formulas():
    training = TrainingConfig(lora=LoraSection(r=3))
    tokens = 2 * (5 + 140 + 2 * 200)
    adapter, layer = 696, tokens * (16 * 8 + 2 * 8 + 4 * 4 + 8 * 12)
    assert model_sizes.step_tokens(SMALL, training) == tokens
    assert model_sizes.training_memory(SMALL, training) == 20_000 + 16 * adapter + 2 * layer + 2 * GIB
    checkpointed = training.model_copy(update={"gradient_checkpointing": True})
    kept = max(4 * adapter, layer + tokens * 2 * 2 * 8)
    assert model_sizes.training_memory(SMALL, checkpointed) == 20_000 + 16 * adapter + kept + 2 * GIB
    describer = DescriberConfig(model="m", batch_size=4, max_new_tokens=100)
    keys = 4 * (5 + 140 + 100) * 4 * 2 * 4
    assert model_sizes.describing_memory(SMALL, describer) == 20_000 + keys + 2 * GIB
    assert model_sizes.vision_cache_bytes(SMALL, training, 10) == 10 * 5 * 8 * 2
    assert model_sizes.checkpoint_bytes(SMALL, training) == 28 * adapter
    # With moments in 8 bits, 2 bytes instead of 8 per parameter.
    in_8_bits = training.model_copy(update={"optim": "adamw_8bit"})
    assert model_sizes.training_memory(SMALL, in_8_bits) == 20_000 + 10 * adapter + 2 * layer + 2 * GIB
    assert model_sizes.checkpoint_bytes(SMALL, in_8_bits) == 16 * adapter


# GiB that benchmarks/sizes.py, which follows every tensor, gives with 8 descriptions per batch and 2 pairs per step.
FOLLOWED = {"ferret-7b": (20.0, 30.9, 21.2), "ferret-13b": (34.4, 51.4, 36.2), "cogvlm-17b": (42.2, 57.8, 40.2)}


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_formulas_agree_with_following_every_tensor(name):
    config = load_config(name, ["describer.batch_size=8"])
    shape = SHAPES[config.describer.model]
    with_all, checkpointed = (config.training.model_copy(update={"gradient_checkpointing": on}) for on in (False, True))
    found = [
        model_sizes.describing_memory(shape, config.describer),
        model_sizes.training_memory(shape, with_all),
        model_sizes.training_memory(shape, checkpointed),
    ]
    assert [size / GIB for size in found] == pytest.approx(FOLLOWED[name], rel=0.04)


def test_every_shipped_config_has_a_known_shape():
    for name in presets():
        model = load_config(name).describer.model
        assert model in SHAPES or model.startswith("embedded/")


def test_the_shape_of_a_folder_is_read_from_its_config():
    folder = find_model("embedded/describer")
    shape = Shape.from_config(folder.config, 1_000_000)
    text = folder.config["text_config"]
    assert (shape.layers, shape.hidden, shape.vocabulary) == (
        text["num_hidden_layers"],
        text["hidden_size"],
        text["vocab_size"],
    )
    vision = folder.config["vision_config"]
    assert shape.image_tokens == (vision["image_size"] // vision["patch_size"]) ** 2
    assert Shape.from_config({"hidden_size": 8}) is None


def test_image_tokens_of_a_photograph():
    text = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12}
    common = {"text_config": {**text, "vocab_size": 100}}
    qwen = Shape.from_config({**common, "vision_config": {"patch_size": 14, "spatial_merge_size": 2}})
    assert qwen.image_tokens == 23 * 17  # 640 × 480 becomes 644 × 476, with 28 pixels per token
    vision = {"image_size": 384, "patch_size": 14}
    tiled = {"model_type": "llava_onevision", "image_grid_pinpoints": [[384, 384], [768, 768]]}
    # 27² tokens of the whole; of 54 rows of four tiles, 54 · 480/640 = 40 remain, each with 54 tokens and a newline.
    assert Shape.from_config({**common, **tiled, "vision_config": vision}).image_tokens == 729 + 40 * 55


def test_the_shapes_are_those_of_the_models():
    torch = pytest.importorskip("torch")
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2_5_VLConfig
    from transformers import Qwen2_5_VLForConditionalGeneration as QwenModel

    from spr.models.ported.cogvlm.configuration import CogVLMConfig
    from spr.models.ported.cogvlm.modeling import CogVLMForCausalLM
    from spr.models.ported.ferret.configuration import FerretConfig
    from spr.models.ported.ferret.modeling import FerretForConditionalGeneration

    def text(shape, **more):
        heads = shape.queries // 128
        sizes = {"hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_attention_heads": heads}
        sizes |= {"num_hidden_layers": shape.layers, "num_key_value_heads": shape.keys // 128}
        return {**sizes, "vocab_size": shape.vocabulary, **more}

    ferret, bigger, cogvlm, llava, qwen = SHAPES.values()
    siglip = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}
    siglip |= {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14, "vision_use_head": False}
    tower = {"hidden_size": 1280, "out_hidden_size": 3584, "depth": 32, "intermediate_size": 3420, "num_heads": 16}
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24]}
    qwen_text = text(qwen, rope_parameters=rope)
    llava_config = LlavaOnevisionConfig(text_config=text(llava, model_type="qwen2"), vision_config=siglip)
    qwen_config = Qwen2_5_VLConfig(text_config=qwen_text, vision_config=tower, tie_word_embeddings=False)
    bigger_config = FerretConfig(text_config=text(bigger, model_type="llama"))
    made = (
        (ferret, FerretForConditionalGeneration, FerretConfig()),
        (bigger, FerretForConditionalGeneration, bigger_config),
        (cogvlm, CogVLMForCausalLM, CogVLMConfig()),
        (llava, LlavaOnevisionForConditionalGeneration, llava_config),
        (qwen, QwenModel, qwen_config),
    )
    for shape, model, config in made:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in model(config).parameters())
        assert shape.parameters == parameters, model
        read = Shape.from_config(json.loads(config.to_json_string()), parameters)
        sizes = ("layers", "hidden", "intermediate", "queries", "keys", "vocabulary")
        assert [getattr(read, name) for name in sizes] == [getattr(shape, name) for name in sizes]


def test_times_grow_with_the_work_and_fall_with_the_card():
    config = load_config("ferret-7b")
    shape, training = SHAPES[config.describer.model], config.training
    longer = replace(shape, image_tokens=2 * shape.image_tokens)
    for seconds in (model_sizes.step_seconds, model_sizes.reference_seconds):
        assert seconds(longer, training, "A100 80 GB") > seconds(shape, training, "A100 80 GB")
        ratio = seconds(shape, training, "A100 80 GB") / seconds(shape, training, "H100 80 GB")
        assert ratio == pytest.approx(989 / 312)
