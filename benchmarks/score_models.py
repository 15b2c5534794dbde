"""Random-weight models of the real classes, and generated images with descriptions, for `bench_score.py`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import transformers as hf
from PIL import Image

from spr.records import Candidate, RegionObject, RegionQuery, Span
from spr.records.schemas import to_table

# fmt: off
NAMES = (
    "man", "woman", "child", "dog", "cat", "bird", "horse", "car", "bus", "truck", "bicycle", "bench", "table",
    "chair", "lamp", "plate", "cup", "bottle", "book", "tree", "sign", "window", "door", "wall", "floor", "grass",
    "road", "sky", "building", "umbrella", "bag", "hat", "shirt",
)
WORDS = (
    *NAMES,
    "a", "the", "of", "on", "in", "and", "with", "near", "behind", "under", "above", "beside", "left", "right",
    "small", "large", "red", "blue", "green", "white", "black", "brown", "stands", "sits", "lies", "holding",
    "wearing", "is", "are",
)
# fmt: on

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vision": (64, 2, 4, 32, 16),
        "text": (64, 2, 4),
        "projection": 32,
        "swin": (16, [1, 1, 1, 1], [1, 2, 4, 8], 4),
        "bert_layers": 1,
        "layers": 2,
        "queries": 30,
        "edges": (64, 96),
        "batches": (8, 4),
    },
    "mid": {
        "vision": (768, 12, 12, 224, 16),
        "text": (512, 12, 8),
        "projection": 512,
        "swin": (96, [2, 2, 6, 2], [3, 6, 12, 24], 7),
        "bert_layers": 4,
        "layers": 3,
        "queries": 300,
        "edges": (192, 320),
        "batches": (32, 8),
    },
    "real": {
        "vision": (1024, 24, 16, 336, 14),
        "text": (768, 12, 12),
        "projection": 768,
        "swin": (128, [2, 2, 18, 2], [4, 8, 16, 32], 12),
        "bert_layers": 12,
        "layers": 6,
        "queries": 900,
        "edges": (800, 1333),
        "batches": (64, 16),
    },
}
"""Model shapes and batch sizes. ``real``: those of the paper. ``mid``: small enough for one core, with about the same
proportions: CLIP ViT-B/16, and GroundingDINO on Swin-T with half of the layers and crops of a quarter of the size.
``tiny`` is for tests.

``vision`` is (width, layers, heads, image side, patch side); ``text`` is (width, layers, heads); ``swin`` is (width,
depths, heads, window); ``batches`` is (scorer, detector).
"""


def save_clip(folder: Path, size: str) -> None:
    """Save a `CLIPModel` whose tokenizer has one token per word of `WORDS` and splits other words into bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars = [chr(b) for b in kept] + [chr(256 + k) for k in range(256 - len(kept))]
    parts = [[*word[:-1], word[-1] + "</w>"] for word in WORDS]
    merges = list(dict.fromkeys(("".join(part[:k]), part[k]) for part in parts for k in range(1, len(part))))
    merged = [first + second for first, second in merges]
    tokens = dict.fromkeys([*chars, *(char + "</w>" for char in chars), *merged, "<|startoftext|>", "<|endoftext|>"])
    vocab = {token: k for k, token in enumerate(tokens)}
    tokenizer = hf.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder)
    shape = SIZES[size]
    width, layers, heads, side, patch = shape["vision"]
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    vision |= {"num_attention_heads": heads, "image_size": side, "patch_size": patch}
    width, layers, heads = shape["text"]
    text = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    text |= {"num_attention_heads": heads, "vocab_size": len(vocab), "max_position_embeddings": 77}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape["projection"])
    hf.CLIPModel(config).save_pretrained(folder)
    crop = {"height": side, "width": side}
    hf.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop).save_pretrained(folder)


def save_dino(folder: Path, size: str) -> None:
    """Save a `GroundingDinoForObjectDetection` whose tokenizer has one token per word of `WORDS`."""
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    free = iter(sorted(set(range(2000)) - set(special.values())))
    vocab = special | {name: next(free) for name in [*WORDS, ","]}
    hf.BertTokenizer(vocab=vocab, model_max_length=512).save_pretrained(folder)
    shape = SIZES[size]
    width, depths, heads, window = shape["swin"]
    backbone = {"model_type": "swin", "embed_dim": width, "depths": depths, "num_heads": heads}
    backbone |= {"window_size": window, "image_size": 224, "out_indices": [2, 3, 4]}
    text = {"model_type": "bert", "vocab_size": 2000, "num_hidden_layers": shape["bert_layers"]}
    torch.manual_seed(1)
    layers = {"encoder_layers": shape["layers"], "decoder_layers": shape["layers"], "num_queries": shape["queries"]}
    config = hf.GroundingDinoConfig(backbone_config=backbone, text_config=text, **layers)
    hf.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    shortest, longest = shape["edges"]
    edges = {"shortest_edge": shortest, "longest_edge": longest}
    hf.GroundingDinoImageProcessorPil(size=edges).save_pretrained(folder)


def make_tables(images: Path, queries: int, descriptions: int) -> dict[str, pa.Table]:
    """Write one 640 × 480 JPEG per region, and return tables of regions and of 45-word descriptions."""
    draw = random.Random(0)
    regions, candidates = [], []
    for k in range(queries):
        coarse = Image.merge("RGB", [Image.effect_noise((80, 60), 40 + k) for _ in range(3)])
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(images / f"{k}.jpg", quality=90)
        x, y = draw.uniform(20, 200), draw.uniform(20, 150)
        region = (x, y, x + draw.uniform(200, 400), y + draw.uniform(150, 300))
        objects = tuple(
            RegionObject(f"{k}-{j}", name, _within(region, draw), inside=True)
            for j, name in enumerate(draw.sample(NAMES, 5))
        )
        regions.append(RegionQuery(f"{k}/0", str(k), f"{k}.jpg", 640, 480, region, objects[0].id, objects))
        candidates += [_describe(regions[-1], number, draw) for number in range(descriptions)]
    return {"regions": to_table(regions, RegionQuery), "candidates": to_table(candidates, Candidate)}


def _within(region: tuple[float, float, float, float], draw: random.Random) -> tuple[float, float, float, float]:
    x, y = draw.uniform(region[0], region[2] - 60), draw.uniform(region[1], region[3] - 60)
    return x, y, x + draw.uniform(30, 60), y + draw.uniform(30, 60)


def _describe(query: RegionQuery, number: int, draw: random.Random) -> Candidate:
    plain, spans = "", []
    for item in query.objects:
        phrase = f"a {draw.choice(['red', 'blue', 'small', 'large'])} {item.category}"
        spans.append(Span(phrase, len(plain), len(plain) + len(phrase), (item.box,)))
        plain += phrase + " " + " ".join(draw.choices(WORDS, k=6)) + ". "
    candidate_id = f"{query.query_id}/full{number}"
    return Candidate(
        candidate_id, query.query_id, "full", plain, plain, plain, tuple(spans), (), None, number, "random", "llava"
    )
