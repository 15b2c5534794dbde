"""Tiny models of Molmo2 and MiniCPM-V, as their publishers save them."""

from pathlib import Path

import transformers as hf
from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor

from tiny_mllms import TEXT, VISION, save, tokenizer

# As in the published template: the image stands before the first turn; an answer has no end of its own, and a space
# before its turn, which the start of an answer to be generated has not.
MOLMO2_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>"
    "{% endif %}{% endfor %}{% endfor %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% if not loop.first %}<|im_end|>\n{% endif %}<|im_start|>user\nTEXT<|im_end|>\n"
    "{% else %} <|im_start|>assistant\nTEXT{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
).replace(
    "TEXT", "{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}"
)


def make_molmo2(folder: Path) -> None:
    image = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>"]
    image += ["<frame_start>", "<frame_end>", "<|video|>"]
    turns = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = tokenizer(turns + image, bos="<|im_end|>", eos="<|im_end|>", pad="<|endoftext|>")
    names = {
        "image_start_token_id": "<im_start>",
        "image_end_token_id": "<im_end>",
        "image_patch_id": "<im_patch>",
        "low_res_image_start_token_id": "<low_res_im_start>",
        "frame_start_token_id": "<frame_start>",
        "frame_end_token_id": "<frame_end>",
    }
    vision = {**VISION, "num_key_value_heads": 4, "head_dim": 8, "image_size": [42, 42], "patch_size": 14}
    adapter = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    config = hf.Molmo2Config(
        # As published: the tokens of images come after the vocabulary, and the model can read but not write them.
        text_config={**TEXT, "head_dim": 8, "vocab_size": len(words) - len(image), "additional_vocab_size": 16}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        vision_config=vision,
        adapter_config=adapter | {"vision_feature_layer": [1, 0], "intermediate_size": 64, "text_hidden_size": 32},
        **{name: words.convert_tokens_to_ids(token) for name, token in names.items()},
    )
    images = Molmo2ImageProcessor(size={"height": 42, "width": 42}, max_crops=4, overlap_margins=[1, 0])
    settings = {"chat_template": MOLMO2_TEMPLATE}
    save(folder, hf.Molmo2ForConditionalGeneration(config), [words, images], settings, hf.Molmo2Processor)


# As in the published template: parts on lines of their own, and answers with a block of reasoning, which may be empty.
MINICPM_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "<think>\n\n</think>\n\n{% endif %}{% for part in message.content %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{% if part.type == 'image' %}<|image_pad|>{% else %}{{ part.text | trim }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if not enable_thinking | default(false) %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)


def minicpm_parts() -> tuple[hf.PreTrainedTokenizerFast, hf.MiniCPMV4_6ImageProcessorPil, dict]:
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    named |= {f"{name}_{end}_token": f"<{'/' * (end == 'end')}{name}>" for name in NAMES for end in ("start", "end")}
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()]
    words = tokenizer(specials, named, eos="<|im_end|>", pad="<|endoftext|>")
    words.add_tokens(["<think>", "</think>"])
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    text = {**TEXT, "vocab_size": 128, "layer_types": ["linear_attention", "full_attention"], "head_dim": 16}
    text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
    text |= {"linear_num_value_heads": 4, "model_type": "qwen3_5_text"}
    text["rope_parameters"] = {**rope, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = {
        "text_config": text,
        "vision_config": {**VISION, "image_size": 56, "patch_size": 14},
        "image_token_id": words.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": words.convert_tokens_to_ids("<|video_pad|>"),
        "insert_layer_id": 0,
    }
    return words, hf.MiniCPMV4_6ImageProcessorPil(scale_resolution=56, max_slice_nums=4, patch_size=14), config


NAMES = ("image", "slice", "image_id")


def make_minicpmv4_6(folder: Path) -> None:
    words, images, config = minicpm_parts()
    model = hf.MiniCPMV4_6ForConditionalGeneration(hf.MiniCPMV4_6Config(**config))
    save(folder, model, [words, images], {"chat_template": MINICPM_TEMPLATE}, hf.MiniCPMV4_6Processor)


def make_minicpmv4_7(folder: Path) -> None:
    words, images, config = minicpm_parts()
    tokens = {"image_start_id": "<image>", "image_end_id": "</image>"}
    tokens |= {"slice_start_id": "<slice>", "slice_end_id": "</slice>", "newline_id": "Ċ"}
    config |= {name: words.convert_tokens_to_ids(token) for name, token in tokens.items()}
    model = hf.MiniCPMV4_7ForConditionalGeneration(hf.MiniCPMV4_7Config(**config))
    save(folder, model, [words, images], {"chat_template": MINICPM_TEMPLATE}, hf.MiniCPMV4_7Processor)


MAKERS = {"molmo2": make_molmo2, "minicpmv4_6": make_minicpmv4_6, "minicpmv4_7": make_minicpmv4_7}
