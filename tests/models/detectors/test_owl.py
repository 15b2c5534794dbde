"""Tolerances: 1e-4 against transformers called directly, unbatched, and against other batches."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Owlv2ForObjectDetection, OwlViTForObjectDetection, OwlViTImageProcessorPil

from spr.core.errors import ConfigError
from spr.grounding.noun_phrases import phrases_to_detect
from spr.models.detectors.owl import OwlDetector
from spr.models.errors import ModelError
from spr.models.protocols import DetectRequest


def asking(image, text):
    return DetectRequest(image, text, phrases_to_detect(text))


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def v2(owlv2_folder):
    return OwlDetector(owlv2_folder, device="cpu", box_threshold=0.1)


@pytest.fixture(scope="module")
def vit(owlvit_folder):
    return OwlDetector(owlvit_folder, device="cpu", box_threshold=0.1)


def direct(folder, model_class, pixels, phrases, threshold=0.1):
    """Boxes cxcywh relative to the model's input, scores and phrases, best first, as transformers computes them."""
    model, tokenizer = model_class.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(phrases, padding="max_length", max_length=16, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(pixel_values=pixels, **inputs)
    best, labels = outputs.logits[0].max(dim=-1)
    scores = best.sigmoid()
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[scores[order] > threshold]
    return outputs.pred_boxes[0][order].numpy(), scores[order].numpy(), [phrases[k] for k in labels[order]]


def in_pixels(boxes, canvas, size):
    """Clipped boxes xyxy, and which of them are kept."""
    centres, sides = boxes[:, :2] * canvas, boxes[:, 2:] * canvas
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).clip(0, [*size, *size])
    return corners, (corners[:, :2] < corners[:, 2:]).all(axis=1)


def assert_close(detections, boxes, scores, phrases, atol=1e-4):
    assert len(detections) == len(scores) > 0
    np.testing.assert_allclose([d.score for d in detections], scores, atol=atol)
    # Boxes are pixels of images of about 100 px: the tolerance is relative to that.
    np.testing.assert_allclose([d.box for d in detections], boxes, atol=100 * atol)
    assert [d.phrase for d in detections] == list(phrases)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if b:
            assert_close(a, [d.box for d in b], [d.score for d in b], [d.phrase for d in b])


@pytest.mark.parametrize("size", [(100, 70), (40, 90)])
def test_owlv2_agrees_with_transformers_and_maps_boxes_back_from_the_padded_square(v2, owlv2_folder, size):
    image, side = noise(*size), max(size)
    pixels = v2._pixels([image])
    expected, scores, phrases = direct(owlv2_folder, Owlv2ForObjectDetection, pixels, ["A red cat", "the dog"])
    boxes, left = in_pixels(expected, (side, side), size)
    assert_close(
        v2.detect([asking(image, "A red cat, and the dog.")])[0],
        boxes[left],
        scores[left],
        [phrase for phrase, stays in zip(phrases, left, strict=True) if stays],
    )


def test_owlv2_gets_the_same_pixels_as_from_its_own_processor(v2, owlv2_folder):
    pytest.importorskip("scipy")
    from transformers import Owlv2ImageProcessorPil

    for size in ((100, 70), (40, 30), (1, 1), (9, 700)):
        expected = Owlv2ImageProcessorPil.from_pretrained(owlv2_folder)(noise(*size), return_tensors="pt")
        torch.testing.assert_close(v2._pixels([noise(*size)]), expected["pixel_values"].float(), atol=1e-4, rtol=0)


def test_owlvit_agrees_with_transformers_and_maps_boxes_back_from_the_stretched_image(vit, owlvit_folder):
    size = (100, 70)
    pixels = OwlViTImageProcessorPil.from_pretrained(owlvit_folder)(noise(*size), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(vit._pixels([noise(*size)]), pixels.float(), atol=1e-5, rtol=0)
    expected, scores, phrases = direct(owlvit_folder, OwlViTForObjectDetection, pixels, ["A red cat", "the dog"])
    boxes, left = in_pixels(expected, size, size)
    assert left.all()
    assert_close(vit.detect([asking(noise(*size), "A red cat and the dog.")])[0], boxes, scores, phrases)


@pytest.mark.parametrize("which", ["v2", "vit"])
def test_neither_the_batch_nor_its_padding_changes_the_detections(which, request):
    batched = request.getfixturevalue(which)
    shared = noise(80, 60)
    requests = [
        asking(shared, "a cat"),
        asking(noise(30, 90, 1), "a red umbrella. the man with the blue chair. a bird"),
        asking(shared, "the man on the left, a dog"),
        asking(shared, ""),
        asking(noise(80, 60, 3), "a cat"),
    ]
    alone = [batched.detect([each])[0] for each in requests]
    assert sum(map(len, alone)) > 20
    assert not alone[3]
    assert_same(batched.detect(requests), alone)
    assert_same(batched.detect(requests[::-1]), alone[::-1])


def test_equal_phrases_and_images_are_embedded_once(v2):
    texts, images = [], []
    hooks = [
        v2.model.owlv2.text_model.register_forward_hook(
            lambda _m, _a, kwargs, _o: texts.append(len(kwargs["input_ids"])), with_kwargs=True
        ),
        v2.model.owlv2.vision_model.embeddings.register_forward_hook(lambda _m, args, _o: images.append(len(args[0]))),
    ]
    image = noise(50, 50)
    v2.detect([asking(image, "A cat, a dog, a cat."), asking(image, "a dog. a bird")])
    for hook in hooks:
        hook.remove()
    assert (sum(texts), sum(images)) == (3, 1)


def test_phrases_of_more_than_16_tokens_are_cut(v2):
    # Each letter is a token, and 14 fit between the start and end tokens.
    phrases = ("abcdefghijklmnopqrstuvwxyz",)
    assert list(v2._queries([phrases])[phrases].values()) == ["abcdefghijklmn", "opqrstuvwxyz"]


def test_a_prompt_of_text_is_an_error(owlv2_folder):
    with pytest.raises(ConfigError, match="prompt: text"):
        OwlDetector(owlv2_folder, prompt="text", device="cpu")


@pytest.mark.parametrize("text", ["", " \n", "...", "and with on", "the a"])
def test_a_text_without_phrases_gives_no_detections(v2, text):
    assert v2.detect([asking(noise(40, 40), text)]) == [[]]


@pytest.mark.parametrize("which", ["v2", "vit"])
@pytest.mark.parametrize("size", [(1, 1), (1, 400), (20000, 2), (1500, 1200)])
def test_images_of_any_size_give_boxes_within_them(which, size, request):
    found = request.getfixturevalue(which).detect([asking(noise(*size), "a cat. \x07 двa собаки, 一只猫。")])[0]
    for d in found:
        assert 0 <= d.box[0] < d.box[2] <= size[0]
        assert 0 <= d.box[1] < d.box[3] <= size[1]
    assert min(size) < 100 or found
    assert found == sorted(found, key=lambda d: -d.score)


def test_a_text_of_10000_words_is_accepted(v2):
    text = " ".join(f"the cat {k} on a chair," for k in range(1667))
    found = v2.detect([asking(noise(20, 20), text)])[0]
    assert {d.phrase in text for d in found} == {True}


def test_another_kind_of_model_is_refused(clip_folder):
    with pytest.raises(ModelError, match="another kind"):
        OwlDetector(clip_folder)


def test_half_precision_gives_nearly_the_same_detections(owlv2_folder, v2):
    half = OwlDetector(owlv2_folder, dtype="bfloat16", device="cpu", box_threshold=0.1)
    request = asking(noise(100, 70), "a red cat. a dog")
    assert half.detect([request])[0][0].score == pytest.approx(v2.detect([request])[0][0].score, abs=0.05)
