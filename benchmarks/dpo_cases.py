"""The models and pairs of bench_dpo.py: random weights of the real classes, noise as images, letters as texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from datasets import Dataset, Image, List
from PIL import Image as Pictures
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from spr.training.schedule import steps_of_training

PATCH, QUESTION, BYTES = 14, 60, 256
LLAVA = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
QWEN = [*LLAVA[:3], "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
ROLES = ("image", "video", "vision_start", "vision_end")
"""What Qwen's last four are."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{% if part['type'] == 'image' %}"
    "IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>"
    "{{ '\n' if add_generation_prompt or not loop.last }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _text(width: int, inner: int, layers: int, heads: int, kv: int, words: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": words,
        "max_position_embeddings": 32_768,
    }


def _siglip(width: int, inner: int, layers: int, heads: int) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(zip(names, (width, inner, layers, heads), strict=True))


_QWEN_VISION = {
    "depth": 6,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_heads": 6,
    "out_hidden_size": 512,
    "patch_size": PATCH,
    "window_size": 112,
    "fullatt_block_indexes": [2, 5],
}
CASES: dict[str, dict[str, Any]] = {
    # A light language model with a long vocabulary: 59 million parameters.
    "small": {"side": 378, "rank": 128, "vision": _siglip(384, 1024, 6, 6), "text": _text(512, 1408, 6, 8, 2, 32_000)},
    # The proportions of Qwen2-7B with SigLIP: a patch costs 6 % of a token, the head 7 %, the adapter 2.5 %.
    "heavy": {"side": 378, "rank": 8, "vision": _siglip(256, 704, 3, 4), "text": _text(512, 2712, 8, 8, 2, 5_000)},
    # A Qwen2.5-VL of the first one's size; 38 by 38 image tokens.
    "qwen": {"side": 1064, "rank": 128, "vision": _QWEN_VISION, "text": _text(512, 1408, 6, 8, 2, 32_000)},
    # LLaVA-OneVision as published: SigLIP-SO400M without its last layer, and Qwen2.
    "0.5b": {
        "side": 384,
        "rank": 128,
        "tied": True,
        "vision": _siglip(1152, 4304, 26, 16),
        "text": _text(896, 4864, 24, 14, 2, 152_000),
    },
    "7b": {
        "side": 384,
        "rank": 128,
        "vision": _siglip(1152, 4304, 26, 16),
        "text": _text(3584, 18_944, 28, 28, 4, 152_128),
    },
}
"""Sizes by name: the image's side, the adapter's rank, the vision tower and the language model.

Optional: ``picture``, width and height of the images, by default the side; ``tiles``, how many tiles a LLaVA-OneVision
image may have in a row, by default 1; ``mrope``, Qwen's rotary sections. Names that begin with ``qwen`` are Qwen2.5-VL.
"""


def model_config(case: str) -> hf.PreTrainedConfig:
    """The config of a case's model."""
    sizes = CASES[case]
    side, tied = sizes["side"], sizes.get("tied", False)
    if case.startswith("qwen"):
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sizes.get("mrope", [8, 12, 12])}
        ids = {f"{role}_token_id": BYTES + 3 + k for k, role in enumerate(ROLES)}
        text = {**sizes["text"], "rope_parameters": rope}
        return hf.Qwen2_5_VLConfig(text_config=text, vision_config=sizes["vision"], **ids, tie_word_embeddings=tied)
    return hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(
            **sizes["vision"], image_size=side, patch_size=PATCH, vision_use_head=False
        ),
        text_config=hf.Qwen2Config(**sizes["text"], tie_word_embeddings=tied),
        image_token_index=BYTES + LLAVA.index("<image>"),
        video_token_index=BYTES + LLAVA.index("<video>"),
        vision_feature_select_strategy="full",
        image_grid_pinpoints=_grid(case),
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=tied,
    )


def _grid(case: str) -> list[list[int]]:
    side, tiles = CASES[case]["side"], range(1, CASES[case].get("tiles", 1) + 1)
    return [[side * rows, side * columns] for rows in tiles for columns in tiles]


def make_processor(case: str, folder: Path) -> None:
    """A model's folder without weights: config, tokenizer, image processor and chat template."""
    backend = Tokenizer(models.BPE(vocab={c: k for k, c in enumerate(sorted(_alphabet()))}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = QWEN if case.startswith("qwen") else LLAVA
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)
    side = CASES[case]["side"]
    if case.startswith("qwen"):
        size = {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28 * 2}
        hf.Qwen2VLImageProcessorPil(size=size, patch_size=PATCH, merge_size=2).save_pretrained(folder)
        image, settings = "<|vision_start|><|image_pad|><|vision_end|>", {"processor_class": "Qwen2_5_VLProcessor"}
    else:
        size = {"height": side, "width": side}
        hf.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=_grid(case)).save_pretrained(folder)
        image = "<image>\n"
        settings = {"num_image_tokens": (side // PATCH) ** 2, "vision_aspect_ratio": "anyres_max_9"}
        settings |= {"vision_feature_select_strategy": "full", "processor_class": "LlavaOnevisionProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("IMAGE", image))
    model_config(case).save_pretrained(folder)


def make_model(case: str, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """A model of random weights with its processor, on disk."""
    make_processor(case, folder)
    torch.manual_seed(0)
    with device:
        model = hf.AutoModelForImageTextToText.from_config(model_config(case), dtype=dtype)
    model.save_pretrained(folder)


def _alphabet() -> list[str]:
    return list(pre_tokenizers.ByteLevel.alphabet())


def make_pairs(case: str, count: int, answer: int, batch: int, accumulate: int, folder: Path) -> None:
    """Pairs about noise: ``folder/pairs``, and ``folder/ordered``, in the order in which our trainer takes them.

    Args:
        case: Decides the images' size.
        count: How many.
        answer: Tokens of each answer, its end of turn and the line's end among them.
        batch: Pairs a step.
        accumulate: Our batches a step.
        folder: Of both.
    """
    draw = np.random.default_rng(0)
    width, height = CASES[case].get("picture", [CASES[case]["side"]] * 2)

    def said(length: int) -> list[dict[str, str]]:
        return [{"type": "text", "text": "".join(chr(97 + k) for k in draw.integers(0, 26, length))}]

    rows = [
        {
            "images": [Pictures.fromarray(draw.integers(0, 255, (height, width, 3), dtype=np.uint8))],
            "prompt": [{"role": "user", "content": [{"type": "image", "text": ""}, *said(QUESTION)]}],
            "chosen": [{"role": "assistant", "content": said(answer - 2)}],
            "rejected": [{"role": "assistant", "content": said(answer - 2)}],
        }
        for _ in range(count)
    ]
    sizes = {"batch_size": batch // accumulate, "batches_per_step": accumulate}
    steps = steps_of_training([1] * count, **sizes, epochs=1, max_steps=None, seed=0)
    order = [k for step in steps for micro in step for k in micro]
    given = Dataset.from_list(rows).cast_column("images", List(Image()))
    given.save_to_disk(str(folder / "pairs"))
    given.select(order).save_to_disk(str(folder / "ordered"))
