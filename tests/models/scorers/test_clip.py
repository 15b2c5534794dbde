"""Tolerances: 1e-5 where only the order of summation differs, 1e-4 where the batches differ."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel

from spr.core.errors import RecordError
from spr.models.batching import DeviceMemoryError
from spr.models.protocols import View
from spr.models.scorers.clip import ClipScorer, before_last_layer, last_layer, overlapped


def noise(side, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def scorer(clip_folder):
    return ClipScorer(clip_folder, device="cpu")


@pytest.fixture(scope="module")
def model(clip_folder):
    return CLIPModel.from_pretrained(clip_folder).eval()


def own_image(model, folder, image):
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        features = model.get_image_features(pixel_values=pixels).pooler_output
    return torch.nn.functional.normalize(features, dim=-1)[0].numpy()


def own_text(model, tokenizer, text):
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=77)
    with torch.inference_mode():
        features = model.get_text_features(**inputs).pooler_output
    return torch.nn.functional.normalize(features, dim=-1)[0].numpy()


@pytest.mark.parametrize("side", [1, 3, 56, 57, 200])
def test_a_whole_view_gets_clips_own_embedding(scorer, model, clip_folder, side):
    image = noise(side)
    found = scorer.embed_views([View(image)])
    assert found.dtype == np.float32
    assert found.shape == (1, 24)
    np.testing.assert_allclose(found[0], own_image(model, clip_folder, image), atol=1e-5)


@pytest.mark.parametrize("side", [1, 57, 200])
def test_a_region_that_is_the_whole_square_gives_clips_own_embedding(scorer, model, clip_folder, side):
    found = scorer.embed_views([View(noise(side), (0.0, 0.0, float(side), float(side)))])[0]
    np.testing.assert_allclose(found, own_image(model, clip_folder, noise(side)), atol=1e-5)


def test_local_attention_is_the_whole_last_layer_with_a_mask_on_the_class_tokens_row(model):
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    attended = torch.rand(2, 17, generator=torch.Generator().manual_seed(1)) < 0.4
    attended[:, 0] = True
    with torch.inference_mode():
        hidden = before_last_layer(model, pixels)
        found = last_layer(model, hidden, torch.arange(2), attended)
        mask = torch.zeros(2, 1, 17, 17)
        mask[:, 0, 0].masked_fill_(~attended, float("-inf"))
        whole = model.vision_model.encoder.layers[-1](hidden, mask)[:, 0]
        expected = model.visual_projection(model.vision_model.post_layernorm(whole))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_only_patches_inside_the_region_count_in_the_last_layer(scorer):
    # Of 4 × 4 patches of 25 px, the region of 30..60 × 0..25 overlaps columns 1 and 2 of row 0: tokens 2 and 3.
    inside = overlapped((30, 0, 60, 25), 100, 56, 14)
    attended = torch.from_numpy(np.concatenate([[True], inside.ravel()]))[None]
    assert attended[0].nonzero().ravel().tolist() == [0, 2, 3]
    torch.manual_seed(0)
    with torch.inference_mode():
        hidden = before_last_layer(scorer.model, torch.randn(1, 3, 56, 56))
        view = torch.zeros(1, dtype=torch.long)
        before = last_layer(scorer.model, hidden, view, attended)
        outside = hidden.clone()
        outside[:, [1, *range(4, 17)]] = 100 * torch.randn(1, 14, 48)
        assert torch.equal(last_layer(scorer.model, outside, view, attended), before)
        for token in (2, 3):
            changed = hidden.clone()
            changed[:, token] += torch.randn(48)
            assert (last_layer(scorer.model, changed, view, attended) - before).abs().max() > 1e-4


def test_patches_are_attended_to_as_soon_as_they_share_some_area():
    # Patches of 10 px in a square of 40: a region that ends exactly at 10 overlaps only the first.
    assert overlapped((0, 0, 10, 10), 40, 4, 1).nonzero()[0].tolist() == [0]
    assert overlapped((0, 0, 10.001, 10), 40, 4, 1)[0].tolist() == [True, True, False, False]
    assert overlapped((19.999, 39, 30, 50), 40, 4, 1)[3].tolist() == [False, True, True, False]
    assert not overlapped((5, 5, 5, 9), 40, 4, 1).any()
    # 100 px on 24 patches (CLIP ViT-L/14-336): 25/6 px each, so 25 px are exactly 6 patches.
    assert overlapped((0, 0, 25, 100), 100, 336, 14)[0].sum() == 6


def test_the_region_decides_the_embedding(scorer):
    image = noise(90)
    left, right, whole = scorer.embed_views(
        [View(image, (0, 0, 30, 90)), View(image, (60, 0, 90, 90)), View(image)],
    )
    assert min(np.abs(left - right).max(), np.abs(left - whole).max()) > 1e-3


def test_the_class_token_can_attend_to_the_regions_patches_alone(scorer, clip_folder, model):
    blind = ClipScorer(clip_folder, class_token_sees_itself=False, device="cpu")
    image, region = noise(56), (14.0, 0.0, 28.0, 14.0)
    whole, local = blind.embed_views([View(image), View(image, region)])
    np.testing.assert_allclose(whole, own_image(model, clip_folder, image), atol=1e-5)
    # The region is exactly the second patch of the first row: token 2 has all of the attention.
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(image, return_tensors="pt")["pixel_values"]
    layer = model.vision_model.encoder.layers[-1]
    with torch.inference_mode():
        hidden = before_last_layer(model, pixels)
        token = hidden[:, 0] + layer.self_attn.out_proj(layer.self_attn.v_proj(layer.layer_norm1(hidden[:, 2])))
        token = token + layer.mlp(layer.layer_norm2(token))
        expected = model.visual_projection(model.vision_model.post_layernorm(token))[0]
    expected = torch.nn.functional.normalize(expected, dim=-1).numpy()
    np.testing.assert_allclose(local, expected, atol=1e-5)
    assert np.abs(scorer.embed_views([View(image, region)])[0] - expected).max() > 1e-3


def test_neither_the_batch_nor_its_order_changes_an_embedding(scorer, clip_folder):
    shared = noise(70)
    views = [View(noise(40 + k, k), (1, 2, 20 + k, 30) if k % 2 else None) for k in range(5)]
    views += [View(shared), View(noise(9)), View(shared, (0, 0, 9, 9)), View(shared, (40, 40, 70, 70))]
    alone = np.concatenate([ClipScorer(clip_folder, batch_size=1, device="cpu").embed_views([v]) for v in views])
    np.testing.assert_allclose(scorer.embed_views(views), alone, atol=1e-4)
    np.testing.assert_allclose(scorer.embed_views(views[::-1]), alone[::-1], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)


def test_views_of_one_image_share_all_layers_but_the_last(scorer):
    seen = []
    handle = scorer.model.vision_model.encoder.layers[0].register_forward_hook(
        lambda _module, args, _output: seen.append(len(args[0]))
    )
    image = noise(50)
    scorer.embed_views([View(image), View(noise(50, 1)), View(image, (0, 0, 9, 9)), View(image, (9, 9, 20, 20))])
    handle.remove()
    assert seen == [2]


def test_views_that_are_not_square_or_regions_outside_are_refused(scorer):
    with pytest.raises(RecordError, match="not square"):
        scorer.embed_views([View(Image.new("RGB", (3, 4)))])
    for region in [(10.0, 0.0, 12.0, 4.0), (-5.0, 0.0, 0.0, 4.0), (3.0, 3.0, 3.0, 5.0)]:
        with pytest.raises(RecordError, match="outside"):
            scorer.embed_views([View(noise(10), region)])


def test_other_modes_than_rgb_are_converted(scorer):
    grey = noise(60).convert("L")
    found = scorer.embed_views([View(grey), View(grey.convert("RGB"))])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


TEXTS = [
    "",
    " ",
    "a cat",
    "A Cat",
    "the dog sits, the man runs.",
    "två hundar på en röd stol",
    "一只猫坐在椅子上。",
    "\x00\x07\x1b",
    "🐈‍⬛ naïve",
]


def test_short_texts_get_clips_own_embedding(scorer, model):
    found = scorer.embed_texts(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(vector, own_text(model, scorer.tokenizer, text), atol=1e-4, err_msg=repr(text))


def test_a_long_text_is_the_mean_of_its_pieces_by_their_tokens(scorer, model):
    # "cat" is one token, "x" one, "," and "." one each: 40 × "cat," + "cat." is 82; 30 × "x" + "." is 31.
    first, second = "cat, " * 40 + "cat.", " ".join("x" * 30) + "."
    assert [len(t) for t in scorer.tokenizer([first, second], add_special_tokens=False)["input_ids"]] == [82, 31]
    # The first piece is the longest that ends with a phrase, 37 × "cat," = 74 tokens; the second is the rest of the
    # first sentence, 8 tokens, because the end of a sentence is preferred to a later end of a word; the third has 31.
    third = "y " * 60
    text = f"{first} {second} {third}"
    pieces = [("cat, " * 37, 74), ("cat, cat, cat, cat. " + second, 39), (third, 60)]
    mean = sum(count * own_text(model, scorer.tokenizer, piece) for piece, count in pieces)
    found = scorer.embed_texts([text])[0]
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-4)


def test_truncation_equals_that_of_transformers(clip_folder, model):
    scorer = ClipScorer(clip_folder, long_text="truncate", device="cpu")
    text = "the cat and the dog, " * 40
    np.testing.assert_allclose(scorer.embed_texts([text])[0], own_text(model, scorer.tokenizer, text), atol=1e-4)


def test_a_text_has_the_same_embedding_in_any_batch_and_equal_texts_are_embedded_once(scorer, clip_folder):
    texts = [*TEXTS, "a cat", "the cat, " * 100, "a cat"]
    single = ClipScorer(clip_folder, batch_size=1, device="cpu")
    alone = np.concatenate([single.embed_texts([text]) for text in texts])
    np.testing.assert_allclose(scorer.embed_texts(texts), alone, atol=1e-4)
    rows = []
    handle = scorer.model.text_model.register_forward_hook(
        lambda _m, _a, kwargs, _o: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    scorer.embed_texts(["a cat", "a dog", "a cat", "a cat"])
    handle.remove()
    assert sum(rows) == 2


def test_special_tokens_written_out_in_a_text_are_plain_characters(scorer):
    end = scorer.tokenizer.eos_token
    cut, whole = scorer.embed_texts(["a cat", f"a cat {end} a dog {end}"])
    assert np.abs(cut - whole).max() > 1e-3


def test_a_text_of_10000_words_is_embedded(scorer):
    found = scorer.embed_texts(["the red cat runs " * 2500, "x" * 3000, "\ud800 half a surrogate"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_empty_input_gives_no_rows(scorer):
    assert scorer.embed_views([]).shape == scorer.embed_texts([]).shape == (0, 24)


def test_out_of_memory_halves_the_batch_and_changes_nothing(clip_folder, scorer, monkeypatch):
    small = ClipScorer(clip_folder, device="cpu", batch_size=8)
    embeddings = type(small.model.vision_model.embeddings)
    forward = embeddings.forward

    def limited(self, pixels, **kwargs):
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("no room")
        return forward(self, pixels, **kwargs)

    views = [View(noise(30, k)) for k in range(7)]
    expected = scorer.embed_views(views)
    monkeypatch.setattr(embeddings, "forward", limited)
    np.testing.assert_allclose(small.embed_views(views), expected, atol=1e-4)
    assert small._image_batches.size == 3
    monkeypatch.setattr(embeddings, "forward", lambda *_args, **_kwargs: limited(None, range(9)))
    with pytest.raises(DeviceMemoryError):
        small.embed_views(views)


def test_bfloat16_gives_unit_vectors_near_those_of_float32(clip_folder, scorer):
    half = ClipScorer(clip_folder, dtype="bfloat16", device="cpu")
    views = [View(noise(56, 3)), View(noise(56, 4), (0, 0, 30, 30))]
    found = half.embed_views(views)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found * scorer.embed_views(views)).sum(axis=1).min() > 0.99
    assert (half.embed_texts(["a cat"]) * scorer.embed_texts(["a cat"])).sum() > 0.99
