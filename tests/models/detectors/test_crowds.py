"""Crowds are annotated again by a detector that searches for their category in a crop of their box."""

import numpy as np
import pytest
from PIL import Image

from spr.annotations import CrowdQuery
from spr.config import make_config
from spr.models.detectors.grounding_dino import GroundingDinoDetector
from spr.models.detectors.owl import OwlDetector
from spr.pipeline.objects import detect_in_crowds
from spr.records import Detection


class Fixed:
    """Answers the first request with a box of 1, 2, 3, 4 in the crop, and records all requests."""

    name = "fixed"

    def __init__(self):
        self.asked = []

    def detect(self, requests):
        for request in requests:
            assert request.phrases == (request.text,)
            self.asked.append((request.image.size, request.image.getpixel((0, 0)), request.text))
        return [[Detection("cup", (1, 2, 3, 4), 0.75)] if k == 0 else [] for k in range(len(requests))]


@pytest.fixture
def look(tmp_path):
    """Save an image and ask a detector about crowds in it, given as (category, box)."""

    def call(detector, image, *crowds):
        image.save(tmp_path / "1.png")
        settings = make_config({"annotations": {"path": "a.json", "images": str(tmp_path)}}).annotations
        queries = [CrowdQuery("1", "1.png", image.size, category, box) for category, box in crowds]
        return detect_in_crowds(queries, detector=detector, images=settings.image_source)

    return call


def test_a_crowds_box_is_cropped_and_detections_are_mapped_back_to_the_image(look):
    image = Image.new("RGB", (50, 40))
    image.putpixel((10, 20), (9, 8, 7))
    detector = Fixed()
    detections = look(detector, image, ("tea_cup", (10.5, 20.0, 30.0, 39.2)), ("dog", (0, 0, 5, 5)))
    # The crop is rounded outwards to 10, 20, 30, 40: its corner is pixel 10, 20, and boxes are shifted by 10, 20.
    assert detector.asked == [((20, 20), (9, 8, 7), "tea cup"), ((5, 5), (0, 0, 0), "dog")]
    assert detections == [[Detection("cup", (11, 22, 13, 24), 0.75)], []]
    assert look(detector, image) == []


@pytest.mark.parametrize("which", ["grounding_dino_folder", "owlv2_folder"])
def test_real_detectors_find_categories_within_the_crop(which, request, look):
    kind = OwlDetector if which == "owlv2_folder" else GroundingDinoDetector
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8))
    detector = kind(request.getfixturevalue(which), device="cpu")
    (detections,) = look(detector, image, ("cat", (20.5, 10.0, 90.0, 70.0)))
    boxes = np.array([found.box for found in detections])
    assert len(boxes) > 3
    assert (boxes[:, :2] >= [20, 10]).all()
    assert (boxes[:, 2:] <= [90, 70]).all()
