"""The reward `map` equals pycocotools' AP: detections of equal scores, in the order of the text."""

from __future__ import annotations

import random

import numpy as np
import pytest

from reward_answers import SIZE, answer_of
from spr.rewards import REWARDS, Truth, TruthObject

LABELS = ("dog", "cat", "cup", "plate", "tree")


def coco_map(truth: Truth, placed: list, labelled: bool) -> float:
    """AP of one image by pycocotools: mean over the categories that have objects."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def category(label: str) -> int:
        return LABELS.index(label) + 1 if labelled else 1

    def entry(number: int, label: str, box: tuple) -> dict:
        x1, y1, x2, y2 = box
        size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        return {"id": number + 1, "image_id": 1, "category_id": category(label), "iscrowd": 0, **size}

    data, found = COCO(), COCO()
    data.dataset = {
        "images": [{"id": 1, "width": SIZE[0], "height": SIZE[1]}],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(LABELS)],
        "annotations": [entry(number, item.label, item.box) for number, item in enumerate(truth.objects)],
    }
    found.dataset = data.dataset | {
        "annotations": [entry(number, label, box) | {"score": 0.5} for number, (label, box) in enumerate(placed)]
    }
    data.createIndex()
    found.createIndex()
    evaluation = COCOeval(data, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def near(draw: random.Random, box: tuple, spread: float) -> tuple:
    x1, y1, x2, y2 = (v + draw.gauss(0, spread) for v in box)
    x1, y1 = min(max(x1, 0), SIZE[0] - 1), min(max(y1, 0), SIZE[1] - 1)
    return x1, y1, min(max(x2, x1 + 1), SIZE[0]), min(max(y2, y1 + 1), SIZE[1])


def anywhere(draw: random.Random) -> tuple:
    x, y = draw.uniform(0, 560), draw.uniform(0, 400)
    return x, y, x + draw.uniform(20, 80), y + draw.uniform(20, 80)


def coarse(draw: random.Random) -> tuple:
    x, y = draw.randint(0, 4) * 10, draw.randint(0, 4) * 10
    return x, y, x + draw.randint(1, 10) * 10, y + draw.randint(1, 10) * 10


def case(draw: random.Random) -> tuple[Truth, list]:
    """An image with up to 12 objects, and an answer: none or several boxes per object, boxes of others, right ones."""
    labels = draw.sample(LABELS, draw.randint(1, 4))
    objects = [TruthObject(draw.choice(labels), anywhere(draw)) for _ in range(draw.randint(1, 12))]
    objects += [TruthObject(item.label, near(draw, item.box, 5)) for item in objects if draw.random() < 0.3]
    placed = []
    for item in objects:
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
            label = item.label if draw.random() < 0.85 else draw.choice(LABELS)
            box = item.box if draw.random() < 0.2 else near(draw, item.box, draw.choice((1, 4, 12)))
            placed.append((label, box))
    placed += [(draw.choice(LABELS), anywhere(draw)) for _ in range(draw.choice((0, 0, 3, 150)))]
    draw.shuffle(placed)
    if draw.random() < 0.3:  # few different boxes: equal ones, and overlaps of exactly a threshold
        objects = [TruthObject(item.label, coarse(draw)) for item in objects]
        placed = [(label, coarse(draw)) for label, _ in placed]
    return Truth(tuple(objects), "ferret", SIZE, draw.choice(("ignore", "name"))), placed


@pytest.mark.filterwarnings("ignore")
def test_map_is_that_of_pycocotools_for_300_answers(capsys: pytest.CaptureFixture) -> None:
    draw, values = random.Random(0), []
    for _ in range(300):
        truth, placed = case(draw)
        value = REWARDS["map"](answer_of(placed), truth)
        assert value == pytest.approx(coco_map(truth, placed, truth.labels == "name"), abs=1e-9)
        values.append(value)
    # The cases are worth comparing: neither all alike nor mostly 0 or 1.
    assert len(set(np.round(values, 6))) > 200
    assert 0.2 < np.mean(values) < 0.8
    capsys.readouterr()  # pycocotools prints
