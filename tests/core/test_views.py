"""Crops and squares worked out by hand, including image borders and extreme aspect ratios."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spr.core.views import CLIP_MEAN, crop_window, cut, pad_to_square, shift, square_window, unshift


@pytest.mark.parametrize(
    ("region", "size_wh", "window"),
    [
        # 40×20 at the centre (60, 50): 60×30.
        ((40, 40, 80, 60), (200, 100), (30, 35, 90, 65)),
        # At the upper left border: 60×30 about (20, 10), cut at 0.
        ((0, 0, 40, 20), (200, 100), (0, 0, 50, 25)),
        # At the lower right border.
        ((160, 80, 200, 100), (200, 100), (150, 75, 200, 100)),
        # The whole image stays the whole image.
        ((0, 0, 200, 100), (200, 100), (0, 0, 200, 100)),
        # 3×3 about (11.5, 11.5): 9.25 to 13.75, outwards to whole pixels.
        ((10, 10, 13, 13), (200, 100), (9, 9, 14, 14)),
        # An extreme strip: 1500×6 about (500, 2), cut at 0 and at 1000.
        ((0, 0, 1000, 4), (1000, 10), (0, 0, 1000, 5)),
        # An image of one pixel.
        ((0, 0, 1, 1), (1, 1), (0, 0, 1, 1)),
    ],
)
def test_the_crop_is_the_region_enlarged_one_and_a_half_times(region, size_wh, window):
    assert crop_window(region, size_wh) == window


@pytest.mark.parametrize(
    ("region", "size_wh", "window"),
    [
        # Side 100, the image's short one; centred would be 50–150 and holds the region.
        ((60, 10, 140, 60), (200, 100), (50, 0, 150, 100)),
        # The region begins at 20: the square moves left just so far.
        ((20, 10, 90, 60), (200, 100), (20, 0, 120, 100)),
        # The region ends at 190: the square moves right just so far.
        ((120, 10, 190, 60), (200, 100), (90, 0, 190, 100)),
        # A region longer than the short side makes the square as long as itself, about the image's middle row.
        ((10, 40, 190, 60), (200, 100), (10, -40, 190, 140)),
        # The same lying on the image's lower edge: centred is −40 to 140, which holds 90–100.
        ((10, 90, 190, 100), (200, 100), (10, -40, 190, 140)),
        # A portrait image.
        ((10, 150, 40, 190), (100, 200), (0, 90, 100, 190)),
        # An extreme strip.
        ((0, 0, 1000, 4), (1000, 10), (0, -495, 1000, 505)),
    ],
)
def test_the_square_contains_the_region_and_is_close_to_the_centre(region, size_wh, window):
    assert square_window(region, size_wh) == window


@given(st.data())
def test_every_square_window_is_square_and_contains_its_region(data):
    width, height = data.draw(st.integers(1, 500)), data.draw(st.integers(1, 500))
    x1, y1 = data.draw(st.floats(0, width - 0.5)), data.draw(st.floats(0, height - 0.5))
    x2, y2 = data.draw(st.floats(x1 + 0.25, width)), data.draw(st.floats(y1 + 0.25, height))
    left, top, right, bottom = square_window((x1, y1, x2, y2), (width, height))
    assert right - left == bottom - top >= min(width, height)
    assert left <= x1
    assert top <= y1
    assert right >= x2
    assert bottom >= y2
    crop = crop_window((x1, y1, x2, y2), (width, height))
    assert 0 <= crop[0] <= x1 < x2 <= crop[2] <= width
    assert 0 <= crop[1] <= y1 < y2 <= crop[3] <= height


def gradient(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, columns * 0], axis=-1).astype(np.uint8))


def test_pixels_outside_the_image_have_clips_mean_colour():
    pixels = np.asarray(cut(gradient(4, 2), (-1, -1, 5, 3)))
    assert pixels.shape == (4, 6, 3)
    np.testing.assert_array_equal(pixels[1:3, 1:5], np.asarray(gradient(4, 2)))
    assert {tuple(pixels[0, 0]), tuple(pixels[3, 5]), tuple(pixels[1, 0]), tuple(pixels[3, 3])} == {CLIP_MEAN}


def test_a_cut_inside_the_image_has_the_pixels_of_the_image():
    np.testing.assert_array_equal(np.asarray(cut(gradient(9, 9), (2, 3, 5, 8))), np.asarray(gradient(9, 9))[3:8, 2:5])


def test_padding_centres_the_image():
    pixels = np.asarray(pad_to_square(gradient(5, 2)))
    # Three rows are missing: one above, two below.
    assert pixels.shape == (5, 5, 3)
    np.testing.assert_array_equal(pixels[1:3], np.asarray(gradient(5, 2)))
    assert (pixels[0] == CLIP_MEAN).all()
    assert pad_to_square(gradient(3, 3)).size == (3, 3)


def test_shift_and_unshift_are_inverse():
    assert shift((10, 20, 30, 40), (5, 6, 50, 60)) == (5, 14, 25, 34)
    assert unshift((5, 14, 25, 34), (5, 6, 50, 60)) == (10, 20, 30, 40)
