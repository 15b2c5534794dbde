"""Which categories are absent from an image, and how often each strategy draws them."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from spr.annotations import read_coco
from spr.config import AnnotationsConfig
from spr.pipeline.askable import MOST, Askable
from spr.pipeline.objects import load_objects

NAMES = {1: "dog", 2: "cat", 3: "cup", 4: "bow_(weapon)", 5: "bow_(ribbon)", 6: "kite"}


def coco(images, **fields):
    """COCO JSON in which image k has one object of 50 × 50 px per listed category; others as ``(category, bbox)``."""
    rows, objects = [], []
    for number, listed in enumerate(images, start=1):
        rows.append({"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 100, **fields.get("more", {})})
        for item in listed:
            category, bbox, crowd = (item, [0, 0, 50, 50], 0) if isinstance(item, int) else item
            entry = {"image_id": number, "category_id": category, "bbox": bbox, "iscrowd": crowd}
            objects.append({"id": len(objects) + 1, **entry})
    return {
        "images": rows,
        "annotations": objects,
        "categories": [{"id": key, "name": name} for key, name in NAMES.items()],
    }


@pytest.fixture
def askable(tmp_path):
    def make(content, seed=0, small=()):
        path = tmp_path / "coco.json"
        path.write_text(json.dumps(content))
        parsed = read_coco(path)
        kept = ~parsed.crowd & ~np.isin(np.arange(len(parsed.crowd)), small)
        ids = pa.array([str(number) for number in parsed.image_ids])
        counted = np.arange(len(ids))
        return Askable(parsed, ids, kept, counted, seed).of(counted).to_pylist()

    return make


def test_absent_is_what_is_not_annotated_in_any_way(askable):
    crowd, bad_box, outside = (2, [0, 0, 9, 9], 1), (3, [0, 0, -5, 5], 0), (6, [500, 0, 9, 9], 0)
    (row,) = askable(coco([[1, crowd, bad_box, outside]]))
    # The crowd of cats, the cup with a negative width and the kite outside of the image are annotated all the same.
    assert sorted(row["random"]) == ["bow_(ribbon)", "bow_(weapon)"]
    assert row["single"] == ["dog"]


def test_a_category_with_the_name_of_a_present_one_is_not_absent(askable):
    (row,) = askable(coco([[4, 1]]))
    assert sorted(row["random"]) == ["cat", "cup", "kite"]


def test_single_are_categories_with_one_object_that_is_kept(askable):
    (row,) = askable(coco([[1, 2, 2, 3]]), small=[3])
    assert row["single"] == ["dog"]


def test_popular_and_adversarial_weights_are_counts_of_images(tmp_path, askable):
    # With the dog: the cup in two images, the cat in one. Without: the kite in three. No image has a bow.
    content = coco([[1], [1, 3], [1, 3, 3], [1, 2], [6], [6], [6]])
    (tmp_path / "coco.json").write_text(json.dumps(content))
    parsed = read_coco(tmp_path / "coco.json")
    made = Askable(parsed, pa.array(list("abcdefg")), ~parsed.crowd, np.arange(7), 0)
    assert made._popularity.tolist() == [4, 1, 2, 0, 0, 3]  # dog, cat, cup, bows, kite
    assert made._likely(np.array([0])).tolist() == [4, 1, 2, 0, 0, 0]
    rows = [askable(content, seed)[0] for seed in range(300)]
    assert {name for row in rows for name in row["adversarial"]} == {"cup", "cat"}
    assert {name for row in rows for name in row["popular"]} == {"cup", "cat", "kite"}
    first = Counter(row["adversarial"][0] for row in rows)
    assert first["cup"] / 300 == pytest.approx(2 / 3, abs=0.09)  # 3 standard errors
    assert Counter(row["random"][0] for row in rows)["kite"] / 300 == pytest.approx(1 / 5, abs=0.07)


def test_lists_depend_on_the_image_and_the_seed_alone(askable):
    images = [[1], [2], [3]]
    alone, others = askable(coco(images))[0], askable(coco([*images, [4], [5]]))[0]
    assert alone["random"] == others["random"]
    assert any(askable(coco(images), seed)[0]["random"] != alone["random"] for seed in range(1, 5))
    assert len(alone["random"]) <= MOST


def test_of_lvis_only_what_annotators_looked_for_is_absent(askable):
    content = coco([[1], [2], [3]])
    for image, listed in zip(content["images"], ([3, 6, 1], [], None), strict=True):
        image |= {} if listed is None else {"neg_category_ids": listed}
    first, second, third = askable(content)
    assert sorted(first["random"]) == ["cup", "kite"]  # not the dog, which is annotated
    assert second["random"] == third["random"] == []


@pytest.mark.parametrize("odd", ["string ids", "an odd entry"])
def test_both_decoders_read_what_annotators_looked_for(askable, odd):
    content = coco([[1]])
    content["images"][0]["neg_category_ids"] = [3, 6]
    expected = askable(content)
    if odd == "string ids":
        content["images"][0]["neg_category_ids"] = ["3", "6", None, True]
    else:
        content["images"].append("not an object")
    assert askable(content) == expected


def test_the_objects_of_an_image_have_them(dataset):
    dataset.write()
    settings = AnnotationsConfig(path=dataset.json, images=dataset.images, min_objects=1, max_images=5)
    for image in load_objects(settings):
        present = {item.category for item in image.objects}
        assert image.askable is not None
        assert not present.intersection(image.askable.random)
        assert set(image.askable.single) <= present
