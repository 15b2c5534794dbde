"""Masks of one sequence per pair for models with sliding windows and with images that attend in both directions."""

import pytest
import torch
from transformers import Gemma3TextConfig, Gemma4TextConfig

from spr.models.families import FAMILIES
from spr.training.batches import EncodedPair, collate
from spr.training.layer_masks import layer_masks
from spr.training.vision_cache import Features

BOTH = ["full_attention", "sliding_attention"]
# The prompt is a word, an image of three tokens and a word; then the chosen answer, and the rejected one.
WORD, IMAGE = 1, 9


def rows_of(mask):
    """``T`` strings of the tokens that each token attends to."""
    return ["".join("x" if seen else "." for seen in row) for row in mask[0, 0].tolist()]


@pytest.fixture
def batch():
    prompt = torch.tensor([WORD, IMAGE, IMAGE, IMAGE, WORD])
    answers = torch.tensor([WORD, WORD]), torch.tensor([WORD])
    pair = EncodedPair("a", prompt, torch.arange(5)[None], *answers, Features(torch.zeros(3, 2)))
    return collate([pair], pad=0, shared=True)


def masks_of(batch, family, config):
    rules = FAMILIES[family].layer_masks
    return layer_masks(rules, config, batch.mask, batch.positions[0], batch.input_ids == IMAGE)


def test_gemma_3s_images_attend_in_both_directions_in_all_layers(batch):
    config = Gemma3TextConfig(num_hidden_layers=2, layer_types=BOTH, sliding_window=3)
    masks = masks_of(batch, "gemma3", config)
    assert rows_of(masks["full_attention"]) == [
        "x.......",
        "xxxx....",
        "xxxx....",
        "xxxx....",
        "xxxxx...",
        "xxxxxx..",
        "xxxxxxx.",
        "xxxxx..x",  # the rejected answer does not see the chosen one
    ]
    assert rows_of(masks["sliding_attention"]) == [
        "x.......",
        "xxxx....",
        "xxxx....",
        ".xxx....",
        "..xxx...",
        "...xxx..",
        "....xxx.",
        "...xx..x",  # it follows the prompt, as the first token of the chosen answer does
    ]


def test_gemma_4s_do_so_in_its_sliding_layers_if_the_config_says_so(batch):
    options = {"num_hidden_layers": 2, "layer_types": BOTH[::-1], "sliding_window": 3}
    causal = ["x.......", "xx......", "xxx.....", "xxxx....", "xxxxx...", "xxxxxx..", "xxxxxxx.", "xxxxx..x"]
    masks = masks_of(batch, "gemma4", Gemma4TextConfig(**options, use_bidirectional_attention="vision"))
    assert rows_of(masks["full_attention"]) == causal
    assert rows_of(masks["sliding_attention"])[1:4] == ["xxxx....", "xxxx....", ".xxx...."]
    masks = masks_of(batch, "gemma4", Gemma4TextConfig(**options))
    assert rows_of(masks["full_attention"]) == causal
    assert rows_of(masks["sliding_attention"])[1:4] == ["xx......", "xxx.....", ".xxx...."]


def test_two_images_do_not_attend_to_each_other_in_both_directions(batch):
    two = torch.tensor([[False, True, True, False, True, True, False, False]])
    config = Gemma3TextConfig(num_hidden_layers=2, layer_types=BOTH, sliding_window=3)
    masks = layer_masks(FAMILIES["gemma3"].layer_masks, config, batch.mask, batch.positions[0], two)
    assert rows_of(masks["full_attention"])[1:6] == ["xxx.....", "xxx.....", "xxxx....", "xxxxxx..", "xxxxxx.."]


def test_padding_attends_to_itself_so_that_no_row_is_empty():
    short, long = (
        EncodedPair(
            name, torch.tensor([WORD, IMAGE, WORD]), torch.arange(3)[None], answer, answer, Features(torch.zeros(1, 2))
        )
        for name, answer in (("short", torch.tensor([WORD])), ("long", torch.tensor([WORD] * 4)))
    )
    config = Gemma3TextConfig(num_hidden_layers=2, layer_types=BOTH, sliding_window=1)
    masks = masks_of(collate([short, long], pad=0, shared=True), "gemma3", config)
    assert all(mask.any(dim=-1).all() for mask in masks.values())
