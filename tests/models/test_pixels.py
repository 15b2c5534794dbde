import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, Owlv2ImageProcessorPil

from spr.models.pixels import normalise, resized_bytes, shrink_to_square


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("side", [1, 17, 56, 300])
def test_squares_get_the_same_pixels_as_from_clips_own_processor(side):
    processor = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    expected = processor(noise(side, side), return_tensors="pt")["pixel_values"]
    found = normalise([resized_bytes(noise(side, side), (56, 56), processor)], processor, torch.device("cpu"))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_shrinking_worked_out_by_hand():
    # 6 rows to 2: factor 3, so σ = 1 and the Gaussian reaches 4 rows; its weights are exp(-k²/2) / 2.50660, k = -4..4.
    # Rows 0..5 hold their number; mirrored, rows -4..9 hold 4 3 2 1 0 1 2 3 4 5 4 3 2 1.
    # The new rows' centres are old rows 1 and 4, so no interpolation: row 1 smoothed is Σ w(k) row(1 + k)
    # = (w0·1 + w1·(0 + 2) + w2·(1 + 3) + w3·(2 + 4) + w4·(3 + 5)), w = 0.39894, 0.24197, 0.05399, 0.00443, 0.00013.
    row_1 = 0.39894 * 1 + 0.24197 * 2 + 0.05399 * 4 + 0.00443 * 6 + 0.00013 * 8
    pixels = torch.arange(6.0).view(1, 6, 1).expand(1, 6, 6)
    found = shrink_to_square(pixels, 2)
    assert found.shape == (1, 2, 2)
    np.testing.assert_allclose(found[0, :, 0], [row_1, 5 - row_1], atol=1e-4)


def test_growing_interpolates_between_the_middles_of_pixels():
    # 2 rows to 4: centres at -0.25, 0.25, 0.75, 1.25; mirrored at the edge rows' middles: 0.25, 0.25, 0.75, 0.75.
    pixels = torch.tensor([0.0, 1.0]).view(1, 2, 1).expand(1, 2, 2)
    np.testing.assert_allclose(shrink_to_square(pixels, 4)[0, :, 0], [0.25, 0.25, 0.75, 0.75], atol=1e-6)
    assert torch.equal(shrink_to_square(torch.full((3, 1, 1), 0.5), 4), torch.full((3, 4, 4), 0.5))


@pytest.mark.parametrize("size_wh", [(1, 1), (2, 2), (64, 64), (65, 65), (500, 500), (300, 100), (20, 90), (700, 1)])
def test_squares_are_those_of_owlv2s_own_processor(size_wh):
    pytest.importorskip("scipy")
    processor = Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    array = np.random.default_rng(1).random((3, size_wh[1], size_wh[0])).astype(np.float32)
    expected = processor.resize(processor.pad(array), {"height": 64, "width": 64})
    np.testing.assert_allclose(shrink_to_square(torch.from_numpy(array), 64), expected, atol=1e-5)


@pytest.mark.parametrize("size_wh", [(9, 5), (3, 9)])
def test_padding_is_below_and_on_the_right(size_wh):
    # An image padded in advance gives the same pixels.
    pixels = torch.rand(3, size_wh[1], size_wh[0], generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(3, 9, 9)
    padded[:, : size_wh[1], : size_wh[0]] = pixels
    for size in (4, 12):
        torch.testing.assert_close(shrink_to_square(pixels, size), shrink_to_square(padded, size), atol=1e-6, rtol=0)
