"""Tiny models of Molmo2 and MiniCPM-V, as their publishers save them."""

from pathlib import Path

import transformers as hf
from tiny_mllms import TEXT, VISION, save, tokenizer
from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor

# As in the published template: the image stands before the first turn, and an answer has no end of its own.
MOLMO2_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>"
    "{% endif %}{% endfor %}{% endfor %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% if not loop.first %}<|im_end|>\n{% endif %}<|im_start|>user\nTEXT<|im_end|>\n"
    "{% else %}<|im_start|>assistant\nTEXT{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
).replace("TEXT", "{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}")


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


MAKERS = {"molmo2": make_molmo2}
