"""Attention with causal leading rows gives the same result as attention under the whole mask."""

import dataclasses

import pytest
import torch
from torch import nn

from spr.training.batches import EncodedPair, collate
from spr.training.shared_prefix import attend
from spr.training.trainee import load_trainee
from spr.training.vision_cache import Features

NO_FEATURES = Features(torch.zeros(0, 8))


def pair(prompt: int, chosen: int, rejected: int) -> EncodedPair:
    def tokens(count):
        return torch.ones(count, dtype=torch.int64)

    return EncodedPair("", tokens(prompt), torch.arange(prompt)[None], tokens(chosen), tokens(rejected), NO_FEATURES)


@pytest.mark.parametrize("shared", [True, False])
def test_the_rows_before_the_first_that_predicts_an_answers_token_are_causal(shared):
    # The shorter prompt has 5 tokens; its last one predicts the answers' first ones.
    batch = collate([pair(5, 3, 2), pair(6, 1, 4)], pad=0, shared=shared)
    assert batch.begin == batch.columns.min() == 4
    if shared:
        causal = torch.ones(4, batch.mask.shape[-1], dtype=torch.bool).tril()
        assert torch.equal(batch.mask[:, 0, :4], causal.expand(2, -1, -1))
        # The last row of the first is rejected's last token, which does not see chosen's three.
        assert batch.mask[0, 0, 9].tolist() == [True] * 5 + [False] * 3 + [True] * 2 + [False]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_mask_of_the_last_rows_gives_what_the_whole_mask_gives(groups):
    draw = torch.Generator().manual_seed(3)
    batch = collate([pair(5, 3, 2), pair(6, 1, 4)], pad=0, shared=True)
    layer = nn.Module()
    layer.num_key_value_groups, layer.is_causal = groups, True
    made = []
    inputs = [torch.randn(2, heads, batch.mask.shape[-1], 8, generator=draw) for heads in (4, 4 // groups, 4 // groups)]
    weights = torch.randn(2, batch.mask.shape[-1], 4, 8, generator=draw)
    for mask in (batch.mask, batch.mask[:, :, batch.begin :]):
        parts = [part.clone().requires_grad_() for part in inputs]
        output, _ = attend(layer, *parts, mask, scaling=0.3)
        (output * weights).sum().backward()
        made.append([output, *(part.grad for part in parts)])
    for whole, split in zip(*made, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llava_onevision", "qwen2_5_vl", "cogvlm"])
def test_only_the_rows_that_predict_answers_run_under_a_mask(
    model_type, trainable_folder, settings, tmp_path, monkeypatch
):
    calls, kernel = [], nn.functional.scaled_dot_product_attention

    def counting(query, key, value, attn_mask=None, **options):
        calls.append((query.shape[2], None if attn_mask is None else attn_mask.shape[2]))
        return kernel(query, key, value, attn_mask=attn_mask, **options)

    trainee = load_trainee(str(trainable_folder(model_type)), settings(), torch.device("cpu"), features=tmp_path)
    hidden = trainee.model.base.config.get_text_config().hidden_size
    given = dataclasses.replace(pair(6, 3, 2), features=Features(torch.zeros(0, hidden)))
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counting)
    with torch.no_grad():
        trainee.model(collate([given], pad=0, shared=True))
    # 6 + 3 + 2 tokens: the prompt's last token and the answers run under a mask, the 5 tokens before them are causal.
    layers = trainee.model.base.config.get_text_config().num_hidden_layers
    assert calls.count((6, 6)) == layers
    # The last layer skips the leading rows, except in CogVLM.
    assert calls.count((5, None)) == (layers if model_type == "cogvlm" else layers - 1)
    assert len(calls) == calls.count((6, 6)) + calls.count((5, None))


def test_a_kernel_that_the_user_chose_is_left_alone(trainable_folder, settings, tmp_path):
    folder = str(trainable_folder("llava"))
    trainee = load_trainee(folder, settings(attn_implementation="eager"), torch.device("cpu"), features=tmp_path)
    assert trainee.model.base.model.language_model.config._attn_implementation == "eager"
