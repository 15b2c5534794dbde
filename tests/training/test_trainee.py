"""The adapter: on the language model's linear layers, and on nothing else."""

import pytest
import torch
from torch.nn import Linear
from transformers import AutoModelForImageTextToText

from spr.config import LoraSection
from spr.core.errors import ConfigError, SprError
from spr.models.custom_models import load_config, register_custom_models
from spr.models.families import FAMILIES
from spr.training.trainee import add_adapter, check_trained, describe_trained

KIND = FAMILIES["llava_onevision"]


@pytest.fixture
def base(trainable_folder):
    return AutoModelForImageTextToText.from_pretrained(trainable_folder("llava_onevision")).requires_grad_(False)


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_all_linear_layers_of_the_language_model_get_an_adapter_of_the_rank(base):
    adapted = add_adapter(base, LoraSection(r=4, lora_alpha=8), KIND)
    names = trained(adapted)
    # Two layers of seven linear ones, two matrices each.
    assert len(names) == 2 * 7 * 2
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in names)
    assert {min(p.shape) for p in names.values()} == {4}
    # (in + out) · rank a layer: q and o 32 + 32, k and v 32 + 16, the three of the MLP 32 + 64.
    assert sum(p.numel() for p in names.values()) == 2 * 4 * (128 + 96 + 288)
    remark = "trains 4,096 parameters; "
    assert describe_trained(adapted).startswith(remark)
    assert "LoRA of rank 4 on 2 × q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in (
        describe_trained(adapted)
    )


def test_the_second_matrices_are_zero_and_the_seed_decides_the_first(base, trainable_folder):
    adapted = trained(add_adapter(base, LoraSection(r=4), KIND, seed=1))
    assert all(not p.any() for name, p in adapted.items() if "lora_B" in name)
    made = {}
    for seed in (1, 2):
        other = AutoModelForImageTextToText.from_pretrained(trainable_folder("llava_onevision")).requires_grad_(False)
        torch.manual_seed(99 + seed)  # what was drawn before does not matter
        before = torch.get_rng_state()
        made[seed] = trained(add_adapter(other, LoraSection(r=4), KIND, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(made[1][name], p) for name, p in adapted.items())
    assert any(not torch.equal(made[2][name], p) for name, p in adapted.items())


def test_targets_of_the_config_are_the_only_ones(base):
    adapted = add_adapter(base, LoraSection(r=4, target_modules=("q_proj", "v_proj")), KIND)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained(adapted)} == {"q_proj", "v_proj"}


def test_names_that_the_vision_tower_has_too_are_adapted_in_the_language_model_alone(base):
    # SigLIP's attention has a q_proj as well.
    assert any("vision_tower" in name and name.endswith("q_proj") for name, _ in base.named_modules())
    adapted = add_adapter(base, LoraSection(r=4, target_modules=("q_proj",)), KIND)
    assert len(trained(adapted)) == 2 * 2
    assert not any("vision_tower" in name for name in trained(adapted))


@pytest.mark.parametrize(
    ("target", "near"),
    [("q_prj", "did you mean `q_proj`?"), ("lm_head", None), ("fc1", None), ("embed_tokens", None)],
)
def test_a_target_that_is_no_linear_layer_of_the_language_model_is_refused_with_the_nearest_name(target, near, base):
    with pytest.raises(ConfigError, match=r"training\.lora\.target_modules") as caught:
        add_adapter(base, LoraSection(target_modules=("q_proj", target)), KIND)
    assert caught.value.got == target
    assert caught.value.fix == near
    assert "down_proj, gate_proj" in caught.value.expected


@pytest.mark.parametrize(
    "name",
    [
        "model.vision_tower.encoder.layers.0.mlp.fc1.weight",
        "model.multi_modal_projector.linear_1.weight",
        "model.language_model.embed_tokens.weight",
        "model.language_model.layers.0.input_layernorm.weight",
        "lm_head.weight",
    ],
)
def test_a_trained_parameter_elsewhere_is_an_error_that_names_it(name, base):
    adapted = add_adapter(base, LoraSection(r=4), KIND)
    parameters = dict(adapted.named_parameters())
    (full,) = [full for full in parameters if full.endswith(name)]
    parameters[full].requires_grad_()
    with pytest.raises(SprError, match=r"outside of the language model's adapter") as caught:
        check_trained(adapted, KIND)
    assert caught.value.got == full


def test_a_model_that_is_not_frozen_is_refused_and_the_list_is_short(trainable_folder):
    base = AutoModelForImageTextToText.from_pretrained(trainable_folder("llava_onevision"))
    adapted = add_adapter(base, LoraSection(r=4), KIND)  # PEFT freezes it
    adapted.requires_grad_()
    with pytest.raises(SprError, match="would be trained") as caught:
        check_trained(adapted, KIND)
    assert ", and " in caught.value.got
    assert caught.value.got.endswith(" more")


def test_an_adapter_that_is_frozen_too_is_an_error(base):
    adapted = add_adapter(base, LoraSection(r=4), KIND).requires_grad_(False)
    with pytest.raises(SprError, match="No parameter would be trained"):
        check_trained(adapted, KIND)


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
LINEAR_ATTENTION = {"in_proj_qkv", "in_proj_z", "out_proj"}


@pytest.mark.parametrize(
    ("folder", "targets"),
    [
        ("qwen3_vl", ATTENTION | MLP),
        ("qwen3_vl_moe", ATTENTION),
        ("qwen3_5", ATTENTION | MLP | LINEAR_ATTENTION),
        ("qwen3_5_moe", ATTENTION | LINEAR_ATTENTION),
        ("internvl3_5", ATTENTION | MLP),
        ("internvl3_5_moe", ATTENTION),
        ("glm4v", ATTENTION | {"gate_up_proj", "down_proj"}),
        ("glm4v_moe", ATTENTION),
        ("glm46v", ATTENTION),
    ],
)
def test_experts_get_no_adapter_and_every_kind_of_attention_gets_one(folder, targets, mllm_folder):
    base = AutoModelForImageTextToText.from_pretrained(mllm_folder(folder)).requires_grad_(False)
    adapted = add_adapter(base, LoraSection(r=4), FAMILIES[base.config.model_type])
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained(adapted)} == targets
    # In transformers 5 the experts of a layer are one tensor of three dimensions, which LoRA's matrices don't fit.
    experts = [p for name, p in adapted.named_parameters() if ".experts." in name]
    assert all(p.dim() == 3 and not p.requires_grad for p in experts)
    assert bool(experts) == ("moe" in folder)


# Linear layers of the language model that get no adapter by default, by the ends of their names. All others get one.
MOE = ("shared_experts.gate_proj", "shared_experts.up_proj", "shared_experts.down_proj")
DENSE = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # the first layers of a mixture of experts
ONE_PER_HEAD = ("in_proj_a", "in_proj_b")
SHARED_EXPERT = tuple(f"shared_expert.{name}_proj" for name in ("gate", "up", "down"))
VISION = tuple(f"vision_mlp.{name}_proj" for name in ("gate", "up", "down"))
WITHOUT_ADAPTER = {
    "qwen3_5": ONE_PER_HEAD,
    "qwen3_5_moe": (*ONE_PER_HEAD, *SHARED_EXPERT, "shared_expert_gate"),
    "minicpmv4_6": ONE_PER_HEAD,
    "minicpmv4_7": ONE_PER_HEAD,
    "glm4v_moe": (*DENSE, *MOE),
    "glm46v": ("gate_up_proj", "down_proj"),
    "kimi_k25": (*DENSE, *MOE),
    "gemma4": ("router.proj",),
    "cogvlm": ("vision_expert_query_key_value", "vision_expert_dense", *VISION),
}


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.trainable])
def test_all_linear_layers_get_an_adapter_but_for_known_ones(name, mllm_folder):
    family, config = FAMILIES[name], load_config(mllm_folder(name))
    register_custom_models()
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    parts = model.get_submodule(family.language_model).named_modules()
    layers = [key for key, part in parts if isinstance(part, Linear)]
    left = [key for key in layers if not any(f".{key}".endswith(f".{target}") for target in family.target_modules)]
    known = WITHOUT_ADAPTER.get(name, ())
    assert [key for key in left if not key.endswith(known)] == []
    assert all(any(key.endswith(end) for key in left) for end in known)
