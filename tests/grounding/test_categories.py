import numpy as np
import pytest
from PIL import Image

from spr.grounding.categories import CategoryRequest, find_categories
from spr.models.detectors.grounding_dino import GroundingDinoDetector
from spr.models.detectors.owl import Owlv2Detector
from spr.records import Detection


class Fixed:
    """Answers each request with a box of 1, 2, 3, 4 in the crop, and remembers what it was asked."""

    name = "fixed"

    def __init__(self):
        self.asked = []

    def detect(self, requests):
        self.asked += [(request.image.size, request.image.getpixel((0, 0)), request.text) for request in requests]
        return [[Detection("cup", (1, 2, 3, 4), 0.75)] if k == 0 else [] for k in range(len(requests))]


def test_a_crowds_box_is_cropped_and_finds_are_mapped_back():
    image = Image.new("RGB", (50, 40))
    image.putpixel((10, 20), (9, 8, 7))
    detector = Fixed()
    requests = [
        CategoryRequest(image, "tea_cup", (10.5, 20.0, 30.0, 39.2)),
        CategoryRequest(image, "dog", (0, 0, 5, 5)),
    ]
    found = find_categories(detector, requests)
    # The crop goes outwards to 10, 20, 30, 40, so its corner is pixel 10, 20, and its box lies 10, 20 further.
    assert detector.asked == [((20, 20), (9, 8, 7), "tea cup"), ((5, 5), (0, 0, 0), "dog")]
    assert found[0].boxes_xyxy.tolist() == [[11, 22, 13, 24]]
    assert found[0].scores.tolist() == [0.75]
    assert found[1].boxes_xyxy.shape == (0, 4)
    assert found[1].scores.shape == (0,)
    assert find_categories(detector, []) == []


@pytest.mark.parametrize("which", ["grounding_dino_folder", "owlv2_folder"])
def test_real_detectors_find_categories_within_the_crop(which, request):
    kind = Owlv2Detector if which == "owlv2_folder" else GroundingDinoDetector
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8))
    detector = kind(request.getfixturevalue(which), device="cpu")
    found = find_categories(detector, [CategoryRequest(image, "cat", (20.5, 10.0, 90.0, 70.0))])[0]
    assert len(found.scores) == len(found.boxes_xyxy) > 3
    assert (found.boxes_xyxy[:, :2] >= [20, 10]).all()
    assert (found.boxes_xyxy[:, 2:] <= [90, 70]).all()
