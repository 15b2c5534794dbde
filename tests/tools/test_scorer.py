import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from spr.core.errors import InputError
from spr.embedded.sprites import CATEGORIES
from tools.embedded.corpus import build_corpus
from tools.embedded.models import make_scorer
from tools.embedded.train_scorer import (
    FIRST,
    SECOND,
    Difficulty,
    contrast,
    description_maker,
    local_image_embeddings,
    region_patches,
    region_views,
    spoil,
    spoil_hard,
    vary,
    word_ids,
)
from tools.embedded.views import ImageBank, resample
from tools.embedded.vocabulary import END, IDS, TOKENS, UNKNOWN


def test_the_patches_of_a_region_are_those_that_it_overlaps() -> None:
    # Patches of 14 px: x from 14 to 28 touches column 1 only, y from 11 to 17 rows 0 and 1.
    patches = region_patches(np.array([[14.0, 11.0, 28.0, 17.0]]))
    assert patches.view(8, 8).nonzero().tolist() == [[0, 1], [1, 1]]


@torch.no_grad()
def test_a_region_of_the_whole_image_gives_the_models_own_embedding() -> None:
    torch.manual_seed(0)
    model, pixels = make_scorer().eval(), torch.randn(2, 3, 112, 112)
    whole = torch.ones(2, 64, dtype=torch.bool)
    expected = model.visual_projection(model.vision_model(pixels).pooler_output)
    torch.testing.assert_close(local_image_embeddings(model, pixels, whole), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_another_region_gives_another_embedding_and_other_images_do_not_matter() -> None:
    torch.manual_seed(0)
    model, pixels = make_scorer().eval(), torch.randn(2, 3, 112, 112)
    patches = region_patches(np.array([[0.0, 0.0, 56.0, 56.0], [56.0, 56.0, 112.0, 112.0]]))
    embeddings = local_image_embeddings(model, pixels, patches)
    alone = local_image_embeddings(model, pixels[:1], patches[:1])
    torch.testing.assert_close(embeddings[:1], alone, atol=1e-5, rtol=1e-4)
    other = local_image_embeddings(model, pixels[:1], patches[1:])
    assert (alone - other).abs().max() > 1e-4


def test_a_corrupted_description_has_one_or_two_errors() -> None:
    rng = np.random.default_rng(0)
    kinds, outside = [0, 9, 9, 18, 27, 36], [45, 54]
    sizes, taken = [], 0
    for _ in range(400):
        spoilt, sides = spoil_hard(kinds, [20.0] * 6, outside, rng)
        assert len(spoilt) == len(sides)
        wrong, gone = Counter(spoilt) - Counter(kinds), Counter(kinds) - Counter(spoilt)
        assert 1 <= max(wrong.total(), gone.total()) <= 2
        sizes.append(len(spoilt) - 6)
        taken += any(kind in outside for kind in spoilt)
    assert {-2, -1, 0, 1, 2} == set(sizes)
    assert 0.25 < taken / 400 < 0.5  # (0.2 + 0.2 · 0.8) · 0.75 for one error, more for two


def test_a_region_with_one_object_is_not_left_without_any() -> None:
    rng = np.random.default_rng(0)
    assert all(spoil_hard([5], [20.0], [], rng)[0] not in ([], [5]) for _ in range(100))


def test_the_first_phases_corruptions_which_the_benchmark_shares_stay_as_they_were() -> None:
    rng = np.random.default_rng(0)
    drawn = [spoil([0, 9, 18], [20.0] * 3, rng)[0] for _ in range(4)]
    assert drawn == [[6, 9, 34], [0, 11, 2], [0, 9, 18, 35], [7, 9, 18]]


@pytest.mark.parametrize("difficulty", [FIRST, SECOND])
def test_a_batch_has_the_regions_of_its_scenes_and_their_descriptions(difficulty: Difficulty, tmp_path: Path) -> None:
    corpus = build_corpus(tmp_path, n=12, seed=3)
    batch = description_maker(corpus, 0, 6, difficulty)(4)
    versions, per_scene = 1 + difficulty.spoilt, difficulty.per_scene
    assert (batch.rows.shape, batch.regions.shape, len(batch.ids)) == ((6 // per_scene,), (6, 4), 6 * versions)
    for b in range(6):
        row = batch.rows[b // per_scene]
        (number,) = np.flatnonzero((corpus.regions[row] == batch.regions[b]).all(axis=1))
        inside = Counter(corpus.kinds[row, corpus.inside[row, number]].tolist())
        said = [Counter({k: int(n) for k, n in enumerate(batch.counts[v * 6 + b]) if n}) for v in range(versions)]
        assert said[0] == inside
        assert all(other != inside for other in said[1:])
        words = " ".join(TOKENS[i] for i in batch.ids[b])
        assert Counter({CATEGORIES.index(name): words.count(name) for name in CATEGORIES if name in words}) == inside
    by_scene = batch.regions.reshape(-1, per_scene, 4)
    assert all(len(np.unique(regions, axis=0)) == per_scene for regions in by_scene)


def test_a_batch_that_does_not_divide_into_scenes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a multiple of 2"):
        description_maker(build_corpus(tmp_path, n=12, seed=3), 0, 5, SECOND)


@torch.no_grad()
def test_both_regions_of_a_scene_are_seen_in_their_own_scene() -> None:
    torch.manual_seed(0)
    model, pixels = make_scorer().eval(), torch.randn(2, 3, 112, 112)
    regions = np.array([[0.0, 0, 56, 56], [56, 56, 112, 112], [0, 0, 30, 90], [14, 14, 40, 40]])
    together = local_image_embeddings(model, pixels, region_patches(regions))
    for k in range(4):
        alone = local_image_embeddings(model, pixels[k // 2 : k // 2 + 1], region_patches(regions[k : k + 1]))
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-5, rtol=1e-4)
    images = np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3), dtype=np.uint8)
    bank = ImageBank(images, torch.device("cpu"))
    crops, scenes, patches = region_views(bank, np.array([2, 1]), regions)
    assert (crops.shape, scenes.shape, patches.shape) == ((4, 3, 112, 112), (2, 3, 112, 112), (4, 64))
    assert torch.equal(scenes, bank.views(np.array([2, 1])))
    for k, row in enumerate((2, 2, 1, 1)):
        assert torch.equal(crops[k : k + 1], region_views(bank, np.array([row]), regions[k : k + 1])[0])


def test_every_wording_names_every_object_with_known_words() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        kinds = [int(k) for k in rng.integers(64, size=5)]
        text = vary(kinds, [12.0, 20.0, 30.0, 14.0, 25.0], rng)
        assert all(CATEGORIES[kind] in text for kind in kinds)
        ids = word_ids([text])[0]
        assert IDS[UNKNOWN] not in ids
        assert ids[-1] == IDS[END]


def test_perfect_embeddings_have_a_low_contrastive_loss() -> None:
    images = torch.eye(4)
    nothing = torch.zeros(4, 8, dtype=torch.bool)
    loss, right = contrast(images, torch.cat([images, -images]), torch.tensor(10.0), nothing)  # capped at 100
    assert right == 1
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_a_text_that_says_the_same_is_not_held_against_an_image() -> None:
    # Two images with equal descriptions and one spoilt text, cosines 0, at a scale of 1. Each image chooses between its
    # own and the spoilt text, and each text has only its own image left.
    images, texts = torch.eye(2, 8), torch.eye(3, 8).roll(4, dims=1)
    same = torch.tensor([[True, True, False], [True, True, False]])
    loss, _ = contrast(images, texts, torch.tensor(0.0), same)
    assert loss.item() == pytest.approx(math.log(2) / 2)
    loss, _ = contrast(images, texts, torch.tensor(0.0), torch.zeros(2, 3, dtype=torch.bool))
    assert loss.item() == pytest.approx((math.log(3) + math.log(2)) / 2)


def test_what_lies_outside_a_crop_is_grey_in_its_padded_square() -> None:
    pixels = torch.ones(1, 3, 8, 8)
    # A square window over the image's left half and as much beyond its border; the crop keeps rows 2 to 6.
    view = resample(pixels, torch.tensor([[-4.0, 0.0, 4.0, 8.0]]), torch.tensor([[0.0, 2.0, 4.0, 6.0]]))
    assert (view[0, 0, :, :4] == 0).all()
    assert (view[0, 0, 2:6, 4:] == 1).all()
    assert (view[0, 0, :2] == 0).all()
    assert (view[0, 0, 6:] == 0).all()
