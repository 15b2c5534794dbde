"""Outputs equal those of the published code with the same small random weights."""

import pytest
import torch
from torch.testing import assert_close

EQUAL = {"atol": 1e-4, "rtol": 0}
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@ATTENTION
@torch.no_grad()
def test_an_image_and_a_text_get_the_published_logits(attention, make_cogvlm, rows, pixels, published):
    inputs = rows((0, 0, 6))
    logits = make_cogvlm(attention)(**inputs, pixel_values=pixels[:1]).logits
    assert_close(logits, published["image"], **EQUAL)
    del inputs["attention_mask"]
    assert_close(make_cogvlm(attention)(**inputs, pixel_values=pixels[:1]).logits, published["image"], **EQUAL)


@ATTENTION
@torch.no_grad()
def test_text_alone_gets_the_published_logits(attention, make_cogvlm, rows, published):
    inputs = rows((0, 0, 7), image=False)
    model = make_cogvlm(attention)
    assert_close(model(**inputs).logits, published["text"], **EQUAL)
    assert_close(model(input_ids=inputs["input_ids"]).logits, published["text"], **EQUAL)


@ATTENTION
@torch.no_grad()
def test_a_padded_batch_gets_the_published_logits(attention, make_cogvlm, rows, pixels, published):
    inputs = rows((0, 4, 3), (1, 0, 7))
    logits = make_cogvlm(attention)(**inputs, pixel_values=pixels).logits
    real = inputs["attention_mask"].bool()
    assert_close(logits[real], published["padded"][real], **EQUAL)


@ATTENTION
@torch.no_grad()
def test_generated_tokens_are_the_published_ones(attention, make_cogvlm, rows, pixels, published):
    model, inputs = make_cogvlm(attention), rows((0, 4, 3), (1, 0, 7))
    ids = model.generate(
        **inputs,
        pixel_values=pixels,
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert ids.sequences[:, -8:].tolist() == published["generated"].tolist()
    assert_close(ids.logits[-1], published["last"], **EQUAL)


@torch.no_grad()
def test_image_features_are_the_published_ones(cogvlm, pixels, published):
    features = torch.stack(cogvlm.get_image_features(pixels).pooler_output)
    assert features.shape == (2, 11, 32)
    assert_close(features[:, [0, 1, 5, 10]], published["features"], **EQUAL)


def test_the_published_numbers_depend_on_experts_and_positions(make_cogvlm, rows, pixels, published):
    """With tokens sent to the wrong expert, or separate positions for patches, the logits differ."""
    inputs = rows((0, 0, 6))
    model = make_cogvlm()
    with torch.no_grad():
        spread = model(**inputs, pixel_values=pixels[:1], position_ids=torch.arange(18)[None]).logits
        attention = model.model.layers[1].self_attn
        attention.vision_expert_dense, attention.language_expert_dense = (
            attention.language_expert_dense,
            attention.vision_expert_dense,
        )
        swapped = model(**inputs, pixel_values=pixels[:1]).logits
    for other in (spread, swapped):
        assert (other - published["image"]).abs().max() > 0.05
