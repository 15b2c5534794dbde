"""The formulas of benchmarks/dpo_counts.py equal what PyTorch counts while a tiny model is trained."""

import importlib
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
models, trainers = importlib.import_module("gpu_models"), importlib.import_module("dpo_trainers")
counts = importlib.import_module("dpo_counts")

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
"""Attention is not among them: PyTorch counts all of its rectangle, the formulas what tokens may see."""


def train(model: str, trainer: str, folder: Path) -> tuple[float, dict]:
    """Multiply-adds of the matrix products per pair, and what the trainer found."""
    run = models.Run(True, torch.float32, folder, {})
    models.use(run, model)
    given = models.training(run, model)
    # PEFT's own layers: faster ones multiply in another order, and partly in place, which the counter leaves out.
    layers = patch("spr.training.trainer.speed_up_layers", create=True)
    with models.random_weights(run), models.without_saving(), layers, FlopCounterMode(display=False) as counter:
        found = getattr(trainers, trainer)(given, run.folder)
    products = {str(name).split(".")[-1]: flops for name, flops in counter.get_flop_counts()["Global"].items()}
    return sum(products.get(name, 0) for name in PRODUCTS) / 2 / given.pairs, found


def without_attention(work: dict[str, int], looks: int, unneeded: int) -> int:
    return sum(work.values()) - work["attention"] - looks - unneeded


# The tiny models: 2 layers of width 32, keys and values of width 16, LoRA of rank 8, a tower of width 32.
# The first layer's inputs need no gradient, neither through q, k and v (32 × 64) nor their adapters (3 × 32 × 8).
FIRST_LAYER = 32 * (32 + 16 + 16) + 3 * 32 * 8
ANSWER = 11  # tokens that are learned: the chat template's last newline is not


@pytest.mark.parametrize(
    ("model", "looks"),
    # Attention in the tower, 2 products of width 32: 2 layers whose 20 patches see the 4 of their tile. Qwen has
    # 8 × 6 patches, of which one layer sees all 48; windows, in the other one, are counted as 64.
    [("llava-onevision-0.5b", 2 * 32 * 2 * 20 * 4), ("qwen2.5-vl-7b", 2 * 32 * 48 * (48 + 64))],
)
def test_products_of_our_trainer_are_counted_exactly(tmp_path: Path, model: str, looks: int) -> None:
    products, found = train(model, "ours", tmp_path)
    sizes = counts.sizes_of(model, ANSWER, prompt=found["prompt"], patches=found["patches"])
    tokens = found["prompt"] + 2 * ANSWER
    assert products == without_attention(counts.our_work(sizes, 1), looks, tokens * FIRST_LAYER)


def test_products_of_trl_are_counted_exactly_but_for_a_token_per_sequence(tmp_path: Path) -> None:
    model, (prompt, patches) = "llava-onevision-0.5b", (104, 20)
    products, _ = train(model, "trl", tmp_path)
    sizes = counts.sizes_of(model, ANSWER, prompt=prompt, patches=patches)
    work = counts.trl_work(sizes, 1, fused=False)
    length = prompt + ANSWER
    looks = 4 * 2 * 32 * 2 * 20 * 4  # the tower runs for policy and reference, in two sequences each
    # The output head of 32 × 600: forward for reference and policy, and again in the backward pass, where its gradient
    # is a product in place, which PyTorch's counter leaves out. The last token predicts none; the formula counts it.
    assert work["head"] == 4 * 2 * length * 32 * 600
    head = 3 * 2 * (length - 1) * 32 * 600
    others = without_attention(work, looks, 2 * length * FIRST_LAYER) - work["head"]
    assert products == others + head
