"""Boxes, points and masks become pixels, and pixels become points; invalid regions are refused."""

import numpy as np
import pytest
import torch

from spr.models.ported.ferret.regions import RegionError, draw_points, prompt_regions, region_mask

SIZE = 50, 40  # width, height


def extent(mask):
    """First and last column and row, and the number of pixels."""
    rows, columns = np.nonzero(mask)
    return columns.min(), columns.max(), rows.min(), rows.max(), int(mask.sum())


def test_a_box_covers_the_pixels_of_both_its_ends():
    # As the published code paints it: columns int(5.9) to int(10.2), rows 3 to 3 + 4.
    assert extent(region_mask((5.9, 3, 10.2, 7), SIZE)) == (5, 10, 3, 7, 6 * 5)
    assert region_mask((0, 0, 50, 40), SIZE).all()
    assert extent(region_mask((-9, -9, 4, 2), SIZE)) == (0, 4, 0, 2, 15)


def test_a_point_covers_five_pixels_around_it_where_the_image_has_them():
    assert extent(region_mask((20, 10), SIZE)) == (15, 25, 5, 15, 121)
    # int(47.5 − 5) = 42 to the last column, int(3 − 5) → 0 to 8.
    assert extent(region_mask((47.5, 3), SIZE)) == (42, 49, 0, 8, 8 * 9)


def test_coordinates_in_a_prompt_are_thousandths_of_the_image_sides():
    text = "What is [100, 250, 500, 500] <region_fea>, and [999,0]<region_fea>? Not [1, 2, 3, 4]. <b>"
    text += " [0, 0, 999, 1000] <region_fea>"
    box, point, whole = prompt_regions(text, SIZE)
    # 100/1000 of 50 is 5, 500/1000 is 25; 250/1000 of 40 is 10, 500/1000 is 20.
    assert extent(box) == (5, 25, 10, 20, 21 * 11)
    # 49.95: columns 44 to 49; rows 0 to 5.
    assert extent(point) == (44, 49, 0, 5, 36)
    assert whole.all()


def test_a_box_narrower_than_a_unit_is_still_a_region():
    # Coordinates are rounded down, so both ends of a thin object can be equal.
    assert extent(prompt_regions("[500, 500, 500, 600] <region_fea>", SIZE)[0]) == (25, 25, 20, 24, 5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What is <region_fea>?", "has no coordinates"),
        ("[1, 2, 3, 4] <region_fea> <region_fea>", "has no coordinates"),
        ("[1, 2, 3] <region_fea>", "has no coordinates"),
        ("[a, b] <region_fea>", "has no coordinates"),
        ("[1, 2, 1001, 4] <region_fea>", "outside the image"),
        ("[1000, 1000] <region_fea>", "no area within the image"),
        ("[1000, 0, 1000, 10] <region_fea>", "no area within the image"),
        ("[300, 200, 100, 400] <region_fea>", "no area within the image"),
    ],
)
def test_prompts_without_a_usable_region_are_refused(text, words):
    with pytest.raises(RegionError, match=words):
        prompt_regions(text, SIZE)


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ((5, 5, 5, 9), "has no area"),
        ((9, 5, 5, 9), "has no area"),
        ((50.5, 5, 60, 9), "no area within the image"),
        ((-9, -9, -1, -1), "no area within the image"),
        ((50, 3), "no area within the image"),
        ((-0.5, 3), "no area within the image"),
        ((float("nan"), 3), "finite"),
        ((1, 2, 3), "A region has the wrong shape"),
        (("a", "b"), "finite"),
        (np.zeros((40, 50)), "mask is empty"),
        (np.ones((50, 40)), "does not have the image's size"),
        (np.ones((1, 40, 50)), "A region has the wrong shape"),
    ],
)
def test_invalid_regions_are_refused(region, words):
    with pytest.raises(RegionError, match=words):
        region_mask(region, SIZE)


def test_points_are_drawn_without_repeats_where_there_are_enough_pixels():
    mask = region_mask((0, 0, 29, 29), SIZE)  # 900
    points = draw_points(mask, 512)
    assert points.shape == (512, 2)
    assert points.dtype == torch.int32
    assert len({tuple(point) for point in points.tolist()}) == 512
    assert all(mask[y, x] for x, y in points.tolist())
    assert torch.equal(points, draw_points(mask, 512))
    other = draw_points(mask, 512, torch.Generator().manual_seed(5))
    assert not torch.equal(points, other)
    assert torch.equal(other, draw_points(mask, 512, torch.Generator().manual_seed(5)))


def test_few_pixels_are_all_drawn_and_then_some_again():
    mask = np.zeros((40, 50), dtype=bool)
    mask[[2, 1, 3], [7, 9, 7]] = True
    points = draw_points(mask, 8)
    # By columns: x = 7 (y 2, then 3), then x = 9.
    assert points[:3].tolist() == [[7, 2], [7, 3], [9, 1]]
    assert {tuple(point) for point in points.tolist()} == {(7, 2), (7, 3), (9, 1)}
    assert draw_points(mask, 3).tolist() == [[7, 2], [7, 3], [9, 1]]
