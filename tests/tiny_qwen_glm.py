"""Tiny models of the Qwen3.5, Qwen3-VL MoE and GLM-V families, and of InternVL3.5, whose family is InternVL3's."""

from pathlib import Path
from typing import Any

import transformers as hf

from tiny_mllms import QWEN_TOKENS, make_internvl, save, tokenizer
from tiny_mllms import TEXT as SIZES

TEXT = {**SIZES, "vocab_size": 128}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
QWEN_VISION = {**VISION, "patch_size": 16, "num_position_embeddings": 16}
THINK = ("<think>", "</think>")  # in the published vocabularies, but not special

# As published: the turn opens a block of reasoning, or closes an empty one; answers begin with their reasoning.
QWEN3_5_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}"
    "{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
QWEN3_VL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# GLM-4.5V and 4.6V: the user's turn ends with /nothink; no token ends an answer before the next turn.
GLM_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n"
    "{% if message.role == 'assistant' %}<think></think>\n{% endif %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% if message.role == 'user' and enable_thinking is defined and not enable_thinking %}/nothink{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>\n{% endif %}{% endif %}"
)
# GLM-4.1V-Thinking: no switch; the model opens the block of reasoning itself.
GLM_4_1V_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GLM_TOKENS = [
    *("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|video|>"),
    "/nothink",
]


def qwen_parts() -> tuple[hf.PreTrainedTokenizerFast, hf.Qwen2VLImageProcessorPil, dict[str, Any]]:
    words = tokenizer(QWEN_TOKENS, eos="<|im_end|>", pad="<|endoftext|>")
    words.add_tokens(list(THINK))
    limits = {"shortest_edge": 4 * 32 * 32, "longest_edge": 16 * 32 * 32}
    images = hf.Qwen2VLImageProcessorPil(size=limits, patch_size=16, merge_size=2)
    tokens = {
        "image": "image_pad",
        "video": "video_pad",
        "vision_start": "vision_start",
        "vision_end": "vision_end",
    }
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{token}|>") for name, token in tokens.items()}
    return words, images, {**ids, "tie_word_embeddings": False}


def linear_attention(layers: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "full_attention_interval": 2,
        "head_dim": 16,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    }


def make_qwen3_5(folder: Path) -> None:
    words, images, ids = qwen_parts()
    config = hf.Qwen3_5Config(text_config={**TEXT, **linear_attention(4)}, vision_config=QWEN_VISION, **ids)
    model = hf.Qwen3_5ForConditionalGeneration(config)
    save(folder, model, [words, images], {"chat_template": QWEN3_5_TEMPLATE}, hf.Qwen3VLProcessor)


def make_qwen3_5_moe(folder: Path) -> None:
    words, images, ids = qwen_parts()
    experts = {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16}
    text = {**TEXT, **linear_attention(4), **experts}
    config = hf.Qwen3_5MoeConfig(text_config=text, vision_config=QWEN_VISION, **ids)
    model = hf.Qwen3_5MoeForConditionalGeneration(config)
    save(folder, model, [words, images], {"chat_template": QWEN3_5_TEMPLATE}, hf.Qwen3VLProcessor)


def make_qwen3_vl_moe(folder: Path) -> None:
    words, images, ids = qwen_parts()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2], "mrope_interleaved": True}
    text = {**TEXT, **EXPERTS, "num_experts": 4, "head_dim": 8, "rope_parameters": rope}
    vision = {**QWEN_VISION, "deepstack_visual_indexes": [0]}
    model = hf.Qwen3VLMoeForConditionalGeneration(hf.Qwen3VLMoeConfig(text_config=text, vision_config=vision, **ids))
    save(folder, model, [words, images], {"chat_template": QWEN3_VL_TEMPLATE}, hf.Qwen3VLProcessor)


def make_glm(folder: Path, model_class: Any, config_class: Any, text: dict[str, Any], template: str) -> None:
    of_4_6 = "46" in config_class.__name__
    words = tokenizer(GLM_TOKENS, eos="<|endoftext|>", pad="<|endoftext|>")
    words.add_tokens([*THINK, "<answer>", "</answer>", "<|begin_of_box|>", "<|end_of_box|>"])
    # The limits are those of two frames, since an image counts as two.
    limits = {"shortest_edge": 2 * 4 * 28 * 28, "longest_edge": 2 * 16 * 28 * 28}
    kind = hf.Glm46VImageProcessorPil if of_4_6 else hf.Glm4vImageProcessorPil
    images = kind(size=limits, patch_size=14, merge_size=2)
    tokens = {"image": "image", "video": "video", "image_start": "begin_of_image", "image_end": "end_of_image"}
    tokens |= {"video_start": "begin_of_video", "video_end": "end_of_video"}
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{token}|>") for name, token in tokens.items()}
    config = config_class(
        text_config=text,
        vision_config={**VISION, "image_size": 56, "patch_size": 14, "rms_norm_eps": 1e-5},
        tie_word_embeddings=False,
        **ids,
    )
    processor = hf.Glm46VProcessor if of_4_6 else hf.Glm4vProcessor
    save(folder, model_class(config), [words, images], {"chat_template": template}, processor)


def rope(head: int) -> dict[str, Any]:
    half = head // 4
    sections = [half - 2, 1, 1]
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return {"rope_parameters": {**parameters, "mrope_section": sections}}


def make_glm4v(folder: Path) -> None:
    text = {**TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, **rope(16)}
    make_glm(folder, hf.Glm4vForConditionalGeneration, hf.Glm4vConfig, text, GLM_4_1V_TEMPLATE)


def make_glm4v_moe(folder: Path) -> None:
    experts = {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
    text = {**TEXT, **experts, "head_dim": 16, **rope(16)}
    make_glm(folder, hf.Glm4vMoeForConditionalGeneration, hf.Glm4vMoeConfig, text, GLM_TEMPLATE)


def make_glm46v(folder: Path) -> None:
    text = {"model_type": "glm4v_text", **TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, **rope(16)}
    make_glm(folder, hf.Glm46VForConditionalGeneration, hf.Glm46VConfig, text, GLM_TEMPLATE)


def make_internvl3_5(folder: Path) -> None:
    make_internvl(folder, hf.Qwen3Config(**TEXT, head_dim=8))


def make_internvl3_5_moe(folder: Path) -> None:
    make_internvl(folder, hf.Qwen3MoeConfig(**TEXT, **EXPERTS, num_experts=4, head_dim=8))


MAKERS = {
    "internvl3_5": make_internvl3_5,
    "internvl3_5_moe": make_internvl3_5_moe,
    "qwen3_5": make_qwen3_5,
    "qwen3_5_moe": make_qwen3_5_moe,
    "qwen3_vl_moe": make_qwen3_vl_moe,
    "glm4v": make_glm4v,
    "glm4v_moe": make_glm4v_moe,
    "glm46v": make_glm46v,
}
