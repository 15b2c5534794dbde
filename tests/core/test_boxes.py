"""Box arithmetic against numbers worked out by hand."""

import numpy as np
import pytest

from spr.core import boxes


def test_area_of_a_reversed_box_is_zero():
    assert boxes.area([10, 10, 5, 20]) == 0.0


def test_iou_of_half_overlapping_squares_is_a_third():
    # Two 10×10 squares sharing 5×10: 50 / (100 + 100 − 50).
    assert boxes.iou([0, 0, 10, 10], [5, 0, 15, 10]) == pytest.approx(1 / 3)


def test_iou_of_boxes_without_area_is_zero_not_nan():
    assert boxes.iou([3, 3, 3, 3], [3, 3, 3, 3]) == 0.0


def test_iou_matrix_has_a_row_per_box_of_the_first_array():
    matrix = boxes.iou_matrix([[0, 0, 4, 4], [0, 0, 2, 4]], [[0, 0, 4, 4], [4, 0, 8, 4], [0, 0, 4, 2]])
    # Row 2: 8/16, none, 4/(8+8−4).
    np.testing.assert_allclose(matrix, [[1, 0, 0.5], [0.5, 0, 1 / 3]])


def test_iou_matrix_of_no_boxes_is_empty():
    assert boxes.iou_matrix([], [[0, 0, 1, 1]]).shape == (0, 1)


def test_an_object_exactly_half_inside_counts_as_half():
    assert boxes.fraction_inside([90, 0, 110, 10], [0, 0, 100, 100]) == 0.5


def test_fraction_inside_refers_to_the_area_of_the_object():
    assert boxes.fraction_inside([0, 0, 200, 200], [0, 0, 100, 100]) == 0.25


def test_gap_is_zero_for_touching_and_overlapping_boxes():
    assert boxes.gap_distance([0, 0, 10, 10], [10, 0, 20, 10]) == 0.0
    assert boxes.gap_distance([0, 0, 10, 10], [5, 5, 20, 20]) == 0.0


def test_gap_is_along_one_axis_if_the_other_overlaps_and_diagonal_otherwise():
    assert boxes.gap_distance([0, 0, 10, 10], [17, 5, 20, 8]) == 7.0
    assert boxes.gap_distance([0, 0, 10, 10], [13, 14, 20, 20]) == 5.0


def test_growing_keeps_the_centre_unless_the_box_is_clipped():
    assert boxes.grow([40, 40, 60, 80], 1.5).tolist() == [35, 30, 65, 90]
    assert boxes.grow([0, 40, 20, 80], 1.5, (100, 85)).tolist() == [0, 30, 25, 85]


def test_suppression_keeps_the_best_box_and_overlaps_at_the_threshold():
    # IoU of the first two is 0.5 exactly: over the threshold only when the threshold is lower.
    found = [[0, 0, 10, 10], [0, 0, 10, 5], [30, 30, 40, 40]]
    assert boxes.non_maximum_suppression(found, [0.9, 0.8, 0.7], 0.5).tolist() == [0, 1, 2]
    assert boxes.non_maximum_suppression(found, [0.8, 0.9, 0.7], 0.49).tolist() == [1, 2]


def test_suppression_of_no_boxes_is_empty():
    assert boxes.non_maximum_suppression([], [], 0.5).tolist() == []


def test_boxes_with_a_wrong_last_axis_are_an_error():
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 4\), got \(2, 3\)"):
        boxes.area([[1, 2, 3], [4, 5, 6]])
