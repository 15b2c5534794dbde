import numpy as np
import pytest
import torch

from spr.embedded.sprites import CATEGORIES
from tools.embedded.models import make_scorer
from tools.embedded.train_scorer import contrast, local_image_embeddings, region_patches, spoil, vary, word_ids
from tools.embedded.views import resample
from tools.embedded.vocabulary import END, IDS, UNKNOWN


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


def test_a_corrupted_description_differs_from_the_correct_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        kinds = [int(k) for k in rng.integers(64, size=6)]
        spoilt, sides = spoil(kinds, [20.0] * 6, rng)
        assert sorted(spoilt) != sorted(kinds)
        assert len(spoilt) == len(sides)
        assert abs(len(spoilt) - len(kinds)) <= 1


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
    loss, right = contrast(images, torch.cat([images, -images]), torch.tensor(10.0))  # capped at a factor of 100
    assert right == 1
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_what_lies_outside_a_crop_is_grey_in_its_padded_square() -> None:
    pixels = torch.ones(1, 3, 8, 8)
    # A square window over the image's left half and as much beyond its border; the crop keeps rows 2 to 6.
    view = resample(pixels, torch.tensor([[-4.0, 0.0, 4.0, 8.0]]), torch.tensor([[0.0, 2.0, 4.0, 6.0]]))
    assert (view[0, 0, :, :4] == 0).all()
    assert (view[0, 0, 2:6, 4:] == 1).all()
    assert (view[0, 0, :2] == 0).all()
    assert (view[0, 0, 6:] == 0).all()
