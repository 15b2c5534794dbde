"""`read_coco`: valid entries are read, malformed ones are dropped with a reason, and order does not matter."""

from __future__ import annotations

import copy
import json
import math
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from example_counts import examples
from spr.annotations import Annotations, read_coco
from spr.annotations.columns import name_of_url
from spr.core.errors import InputError

Json = dict[str, Any]


def image(id_: object = 1, **more: object) -> Json:
    return {"id": id_, "file_name": f"{id_}.jpg", "width": 100, "height": 50, **more}


def annotation(id_: object = 1, **more: object) -> Json:
    return {"id": id_, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 5], "iscrowd": 0, **more}


def coco(images: object = None, annotations: object = None, categories: object = None) -> Json:
    return {
        "images": [image()] if images is None else images,
        "annotations": [annotation()] if annotations is None else annotations,
        "categories": [{"id": 1, "name": "dog"}] if categories is None else categories,
    }


def read(tmp_path: Path, content: object, **options: Any) -> Annotations:
    path = tmp_path / "instances.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_coco(path, **options)


def fails(tmp_path: Path, content: object) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert "instances.json" in str(caught.value)
    return str(caught.value)


def as_plain(annotations: Annotations) -> Json:
    """All columns as lists."""
    columns = {name: getattr(annotations, name) for name in Annotations.__slots__ if name != "dropped"}
    plain = {name: c.tolist() if isinstance(c, np.ndarray) else c for name, c in columns.items()}
    dropped = annotations.dropped
    return {**plain, "dropped": [dropped.ids, dropped.kinds, dropped.reasons, dropped.file_names]}


def drops(annotations: Annotations) -> list[tuple[str, str, str]]:
    dropped = annotations.dropped
    return list(zip(dropped.kinds, dropped.ids, dropped.reasons, strict=True))


def test_images_objects_and_categories_are_sorted_by_id(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        coco(
            [image(30), image(4, width=640, height=480)],
            [
                annotation(9, image_id=30, category_id=7),
                annotation(2, image_id=4, bbox=[1.5, 2, 3, 4.25], iscrowd=1),
                annotation(1, image_id=30, isfake=1),
                annotation(5, image_id=30, isreflected=1),
            ],
            [{"id": 7, "name": "cat"}, {"id": 1, "name": "dog"}],
        ),
    )
    assert found.image_ids.tolist() == [4, 30]
    assert found.file_names == ["4.jpg", "30.jpg"]
    assert found.sizes_wh.tolist() == [[640, 480], [100, 50]]
    assert found.categories == ("dog", "cat")
    assert found.offsets.tolist() == [0, 1, 4]
    assert found.object_ids.tolist() == [2, 1, 5, 9]
    assert found.category.tolist() == [0, 0, 0, 1]
    # x, y, width, height → x1, y1, x2, y2: 1.5 + 3 = 4.5, 2 + 4.25 = 6.25; 10 + 30 = 40, 20 + 5 = 25
    assert found.boxes_xyxy.tolist() == [[1.5, 2, 4.5, 6.25]] + [[10, 20, 40, 25]] * 3
    assert found.crowd.tolist() == [True, False, False, False]
    assert len(found.dropped) == found.clipped == 0
    dtypes = {name: str(getattr(found, name).dtype) for name in ("image_ids", "sizes_wh", "offsets", "object_ids")}
    assert dtypes == {"image_ids": "int64", "sizes_wh": "int32", "offsets": "int64", "object_ids": "int64"}
    assert (found.boxes_xyxy.dtype, found.category.dtype, found.crowd.dtype) == (np.float32, np.int32, np.bool_)


def test_the_objects_of_an_image_include_its_crowds_which_are_marked(tmp_path: Path) -> None:
    found = read(tmp_path, coco([image(), image(2)], [annotation(5), annotation(6, iscrowd=1)]))
    assert (found.image_ids.tolist(), found.file_names) == ([1, 2], ["1.jpg", "2.jpg"])
    assert found.sizes_wh.tolist() == [[100, 50]] * 2
    assert found.object_ids.tolist() == [5, 6]
    assert [found.categories[k] for k in found.category] == ["dog", "dog"]
    assert found.boxes_xyxy.tolist() == [[10, 20, 40, 25]] * 2
    assert found.crowd.tolist() == [False, True]
    assert (found.rows(0), found.rows(1)) == (slice(0, 2), slice(2, 2))


def test_boxes_partly_outside_the_image_are_clipped_and_counted(tmp_path: Path) -> None:
    boxes = [[-10, -5, 30, 20], [90, 40, 30, 30], [0, 0, 100, 50], [70, 20, 30.0000001, 10]]
    found = read(tmp_path, coco(annotations=[annotation(i, bbox=box) for i, box in enumerate(boxes)]))
    # the last box exceeds the image by less than the precision of float32 at 100
    assert found.boxes_xyxy.tolist() == [[0, 0, 20, 15], [90, 40, 100, 50], [0, 0, 100, 50], [70, 20, 100, 30]]
    assert found.clipped == 2
    assert not found.dropped.ids


@pytest.mark.parametrize("crowd", [0, "true"], ids=["fast", "lenient"])
def test_no_corner_is_negative_zero(tmp_path: Path, crowd: object) -> None:
    # The last entry, which is dropped, leaves the whole block to the lenient decoder.
    entries = [annotation(1, bbox=[-0.0, -1e-320, 30, 5]), annotation(2, iscrowd=crowd)]
    found = read(tmp_path, coco(annotations=entries)).boxes_xyxy[0]
    assert found.tolist() == [0, 0, 30, 5]
    assert not np.signbit(found).any()


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (None, "entry_not_an_object"),
        ([1], "entry_not_an_object"),
        (annotation(9, iscrowd="1"), "object_crowd_invalid"),
        (annotation(9, bbox=None), "box_missing"),
        (annotation(9, bbox=["1", "2", "3", "4"]), "box_not_four_numbers"),
        (annotation(9, bbox=[1, 2, 3]), "box_not_four_numbers"),
        (annotation(9, bbox=[1, 2, 3, 4, 5]), "box_not_four_numbers"),
        (annotation(9, bbox=[1, 2, 3, True]), "box_not_four_numbers"),
        (annotation(9, bbox=[1, 2, 3, None]), "box_not_four_numbers"),
        (annotation(9, bbox="1 2 3 4"), "box_not_four_numbers"),
        (annotation(9, bbox=[math.nan, 2, 3, 4]), "box_not_finite"),
        (annotation(9, bbox=[1, 2, math.inf, 4]), "box_not_finite"),
        (annotation(9, bbox=[1, 2, 10**400, 4]), "box_not_finite"),
        (annotation(9, bbox=[1, 2, -3, 4]), "box_size_negative"),
        (annotation(9, bbox=[1, 2, 3, -0.5]), "box_size_negative"),
        (annotation(9, bbox=[1, 2, 0, -4]), "box_size_negative"),
        (annotation(9, bbox=[1, 2, 0, 4]), "box_size_zero"),
        (annotation(9, bbox=[1, 2, 3, 0.0]), "box_size_zero"),
        (annotation(9, image_id=2), "object_image_unknown"),
        (annotation(9, image_id=None), "object_image_unknown"),
        (annotation(9, image_id="one"), "object_image_unknown"),
        (annotation(9, image_id=[1]), "object_image_unknown"),
        (annotation(9, image_id=66), "object_image_dropped"),
        (annotation(9, category_id=2), "object_category_unknown"),
        (annotation(9, category_id=None), "object_category_unknown"),
        (annotation(9, bbox=[100, 0, 5, 5]), "box_outside_image"),
        (annotation(9, bbox=[0, -9, 5, 9]), "box_outside_image"),
        (annotation(9, bbox=[1e300, 0, 1e308, 5]), "box_outside_image"),
        (annotation(9, bbox=[99, 0, 1e-9, 5]), "box_without_area"),
    ],
)
def test_a_malformed_annotation_is_dropped_with_its_reason(tmp_path: Path, entry: Any, reason: str) -> None:
    bad_image = image(66, width=0)
    for entries in ([annotation(), entry], [entry, annotation()]):
        found = read(tmp_path, coco([image(), bad_image], entries))
        assert found.object_ids.tolist() == [1]
        shown = entry["id"] if isinstance(entry, dict) and entry["id"] == 9 else ""
        assert drops(found)[1:] == [("object", str(shown), reason)]


def test_dropped_images_and_objects_have_the_file_name_of_their_image_in_any_order(tmp_path: Path) -> None:
    images = [
        image(1, file_name="cup.jpg"),
        image(2, file_name="tea.jpg", width=0),
        image(3, file_name="a.jpg"),
        image(3, file_name="b.jpg"),
        image(4, file_name="../up.jpg"),
        image(5, file_name="bad\ud800.jpg"),
        image(None, file_name="no id.jpg"),
        image(6, file_name=""),
        7,
    ]
    bad: Json = {"bbox": [1, 2, 0, 4]}
    objects = [
        annotation(10, image_id=1),
        annotation(11, image_id=1, **bad),
        annotation(12, image_id=2),
        annotation(13, image_id=3),
        annotation(14, image_id=9),
        annotation(None, image_id=2),
        annotation(None, image_id=4),
        annotation(15, image_id=None),
    ]
    expected = {
        ("image", "", "entry_not_an_object", None),
        ("image", "", "image_without_id", "no id.jpg"),
        ("image", "2", "image_size_invalid", "tea.jpg"),
        ("image", "3", "image_id_conflicting", "a.jpg"),
        ("image", "3", "image_id_conflicting", "b.jpg"),
        ("image", "4", "image_file_name_unsafe", "../up.jpg"),
        ("image", "5", "image_file_name_unsafe", None),
        ("image", "6", "image_without_file_name", None),
        ("object", "11", "box_size_zero", "cup.jpg"),
        ("object", "12", "object_image_dropped", "tea.jpg"),
        ("object", "13", "object_image_dropped", None),  # a.jpg or b.jpg
        ("object", "14", "object_image_unknown", None),
        ("object", "", "object_image_dropped", "tea.jpg"),
        ("object", "", "object_image_dropped", "../up.jpg"),
        ("object", "15", "object_image_unknown", None),
    }
    found = []
    for step in (1, -1):
        dropped = read(tmp_path, coco(images[::step], objects[::step])).dropped
        found.append(list(zip(dropped.kinds, dropped.ids, dropped.reasons, dropped.file_names, strict=True)))
    assert found[0] == found[1]
    assert len(found[0]) == len(expected)
    assert set(found[0]) == expected


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("1.jpg", "entry_not_an_object"),
        (image(None), "image_without_id"),
        (image([2]), "image_without_id"),
        (image(2, width=None), "image_size_invalid"),
        (image(2, width="100"), "image_size_invalid"),
        (image(2, height=0), "image_size_invalid"),
        (image(2, height=-50), "image_size_invalid"),
        (image(2, height=50.5), "image_size_invalid"),
        (image(2, height=math.nan), "image_size_invalid"),
        (image(2, width=2**31), "image_size_invalid"),
        (image(2, file_name=None), "image_without_file_name"),
        (image(2, file_name=""), "image_without_file_name"),
        (image(2, file_name="/etc/passwd"), "image_file_name_unsafe"),
        (image(2, file_name="a/../../b.jpg"), "image_file_name_unsafe"),
        (image(2, file_name="..\\b.jpg"), "image_file_name_unsafe"),
        (image(2, file_name="C:\\b.jpg"), "image_file_name_unsafe"),
        (image(2, file_name="a\0.jpg"), "image_file_name_unsafe"),
        (image(2, file_name="a\ud800.jpg"), "image_file_name_unsafe"),
    ],
)
def test_a_malformed_image_is_dropped_with_its_reason(tmp_path: Path, entry: Any, reason: str) -> None:
    found = read(tmp_path, coco([entry, image()]))
    assert found.image_ids.tolist() == [1]
    shown = "2" if isinstance(entry, dict) and entry["id"] == 2 else ""
    assert drops(found) == [("image", shown, reason)]


def test_malformed_categories_are_dropped_with_their_objects(tmp_path: Path) -> None:
    categories = [
        {"id": 1, "name": "dog"},
        {"name": "cat"},
        {"id": 2, "name": " "},
        {"id": 3},
        4,
        {"id": 1, "name": "dog"},
    ]
    found = read(tmp_path, coco(annotations=[annotation(), annotation(8, category_id=2)], categories=categories))
    assert found.categories == ("dog",)
    assert sorted(drops(found)) == [
        ("category", "", "category_without_id"),
        ("category", "", "entry_not_an_object"),
        ("category", "2", "category_without_name"),
        ("category", "3", "category_without_name"),
        ("object", "8", "object_category_dropped"),
    ]


def test_a_repeated_image_is_kept_once_and_a_conflicting_one_not_at_all(tmp_path: Path) -> None:
    other = image(2, file_name="other.jpg")
    for images in ([image(), image(), image(2), other, other], [other, image(), image(2), other, image()]):
        found = read(tmp_path, coco(images, [annotation(), annotation(8, image_id=2)]))
        assert found.image_ids.tolist() == [1]
        assert drops(found) == [("image", "2", "image_id_conflicting")] * 3 + [
            ("image", "1", "image_id_repeated"),
            ("object", "8", "object_image_dropped"),
        ]


@pytest.mark.parametrize("base", [0, 2**31 - 2, 2**53 - 2, 2**53 + 5, 2**62, -(2**31) - 1, -(2**53) - 1])
def test_ids_of_any_size_are_exact(tmp_path: Path, base: int) -> None:
    ids = [base + k for k in range(4)]
    found = read(tmp_path, coco([image(k) for k in ids], [annotation(k, image_id=k) for k in ids]))
    assert found.object_ids.tolist() == found.image_ids.tolist() == ids
    assert found.object_ids.dtype == np.int64
    assert found.offsets.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [1, 15, 16, 17])
@pytest.mark.parametrize("crowd", [1, -1, 0.5, 200, 2**70, True])
def test_any_number_but_0_marks_a_crowd_in_blocks_of_any_length(tmp_path: Path, count: int, crowd: object) -> None:
    entries = [annotation(k + 1, iscrowd=0 if k else crowd) for k in range(count)]
    found = read(tmp_path, coco(annotations=entries))
    assert found.object_ids.tolist() == list(range(1, count + 1))
    assert found.crowd.tolist() == [True] + [False] * (count - 1)
    assert found.boxes_xyxy.tolist() == [[10, 20, 40, 25]] * count


def test_an_annotation_that_is_listed_again_is_kept_once(tmp_path: Path) -> None:
    annotations = [annotation(7, image_id=2), annotation(3), annotation(3), annotation("3")]
    for order in (annotations, annotations[::-1]):
        found = read(tmp_path, coco([image(), image(2)], order))
        assert (found.object_ids.tolist(), found.offsets.tolist(), found.numbered) == ([3, 7], [0, 1, 2], 0)
        assert drops(found) == [("object", "3", "object_id_repeated")] * 2


def test_ids_that_are_unique_per_image_only_are_replaced_by_numbers_in_any_order(tmp_path: Path) -> None:
    images = [image(number) for number in (30, 20, 10)]
    annotations = [annotation(k, image_id=number, bbox=[k, 0, 5, 5]) for number in (10, 20, 30) for k in range(4)]
    for order in (annotations, annotations[::-1]):
        found = read(tmp_path, coco(images, order))
        assert (found.object_ids.tolist(), found.numbered) == (list(range(1, 13)), 12)
        assert found.boxes_xyxy[:, 0].tolist() == [0, 1, 2, 3] * 3
        assert drops(found) == []


def test_of_ids_that_only_some_annotations_share_all_are_replaced(tmp_path: Path) -> None:
    annotations = [
        annotation(7, image_id=2),
        annotation(7, bbox=[5, 0, 5, 5]),
        annotation(7, bbox=[5, 0, 5, 5], iscrowd=1),
        annotation(7, bbox=[4, 0, 5, 5]),
        annotation(3),
        annotation(3),  # the same again
        annotation(9, bbox=None),
    ]
    for order in (annotations, annotations[::-1]):
        found = read(tmp_path, coco([image(), image(2)], order))
        # In the first image 3, 3, 7 (left edge 4), 7 and 7 (left edge 5), 9; in the second 7.
        assert (found.object_ids.tolist(), found.numbered) == ([1, 3, 4, 5, 7], 4)
        assert found.boxes_xyxy[:, 0].tolist() == [10, 4, 5, 5, 10]
        assert found.crowd.tolist() == [False, False, False, True, False]
        assert drops(found) == [("object", "6", "box_missing"), ("object", "2", "object_id_repeated")]


@pytest.mark.parametrize("missing", ["no id", None, "", 1.5, True, [1], "\ud800"])
def test_annotations_without_a_valid_id_are_numbered_and_none_is_dropped(tmp_path: Path, missing: object) -> None:
    entries = [annotation(missing, bbox=[k, 0, 5, 5]) for k in (2, 1, 1)]
    if missing == "no id":
        entries = [{key: value for key, value in entry.items() if key != "id"} for entry in entries]
    found = read(tmp_path, coco(annotations=entries))
    assert (found.object_ids.tolist(), found.numbered) == ([1, 2, 3], 3)
    assert found.boxes_xyxy[:, 0].tolist() == [1, 1, 2]  # two equal boxes without ids may be two objects
    assert drops(found) == []
    found = read(tmp_path, coco(annotations=[entries[0], annotation("x")]))
    assert (found.object_ids.tolist(), found.numbered) == ([1, 2], 1)


@pytest.mark.parametrize("name", ["sofa [1, 2, 3, 4]", "<image>", "<|im_end|>", "a\u0000b", "(1, 2, 3, 4)", "x" * 201])
def test_a_category_whose_name_is_not_words_is_dropped_with_its_objects(tmp_path: Path, name: str) -> None:
    categories = [{"id": 1, "name": "dog"}, {"id": 5, "name": name}]
    found = read(tmp_path, coco(annotations=[annotation(), annotation(8, category_id=5)], categories=categories))
    assert (found.categories, found.object_ids.tolist()) == (("dog",), [1])
    assert drops(found) == [("category", "5", "category_name_not_words"), ("object", "8", "object_category_dropped")]


def test_ids_may_be_strings_or_integers(tmp_path: Path) -> None:
    images = [image("b", width=9), image("12"), image(7), image("a"), image(2**64)]
    annotations = [
        annotation("x", image_id=12),
        annotation(3, image_id=12.0),
        annotation(10, image_id="a"),
        annotation("9", image_id="7"),
        annotation("07", image_id=2**64),
    ]
    found = read(tmp_path, coco(images, annotations, [{"id": "1", "name": "dog"}]))
    # integers by value, then strings by code point; 2**64 is beyond int64 and is treated as a string
    assert found.image_ids.tolist() == ["7", "12", "18446744073709551616", "a", "b"]
    assert found.object_ids.tolist() == ["9", "3", "x", "07", "10"]
    assert found.offsets.tolist() == [0, 1, 3, 4, 5, 5]
    assert found.object_ids[found.rows(1)].tolist() == ["3", "x"]
    assert not found.dropped.ids


def test_ids_of_any_size_are_read(tmp_path: Path) -> None:
    large = 2**63 - 2**32 - 1
    found = read(
        tmp_path,
        coco([image(large), image(-5)], [annotation(large, image_id=large), annotation(-(2**63), image_id=-5)]),
    )
    assert found.image_ids.tolist() == [-5, large]
    assert found.object_ids.tolist() == [-(2**63), large]


def test_lvis_images_are_named_by_their_url(tmp_path: Path) -> None:
    lvis = {
        "id": 391895,
        "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg",
        "width": 9,
        "height": 9,
    }
    assert read(tmp_path, coco([lvis])).file_names == ["train2017/000000391895.jpg"]
    nulled = {**lvis, "file_name": None, "neg_category_ids": [1, 2], "not_exhaustive_category_ids": []}
    assert read(tmp_path, coco([nulled])).file_names == ["train2017/000000391895.jpg"]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://host/val2017/1.jpg?size=2#top", "val2017/1.jpg"),
        ("http://host/a/b/two%20words.jpg", "b/two words.jpg"),
        ("http://host/1.jpg", "1.jpg"),  # the host is no folder
        ("s3://bucket/a/b/1.jpg", "b/1.jpg"),
        ("val2017/1.jpg", "val2017/1.jpg"),
        ("1.jpg", "1.jpg"),
        ("http://host/", ""),
        ("http://[host/val2017/1.jpg", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_the_name_of_a_url_is_its_last_folder_and_file(url: str | None, name: str) -> None:
    assert name_of_url(url) == name


def test_a_url_does_not_lead_out_of_the_image_folder(tmp_path: Path) -> None:
    images = [image(), {"id": 2, "width": 9, "height": 9, "coco_url": "http://host/%2e%2e/1.jpg"}]
    assert drops(read(tmp_path, coco(images))) == [("image", "2", "image_file_name_unsafe")]


def test_iscrowd_may_be_true_or_null_and_sizes_whole_floats(tmp_path: Path) -> None:
    entries = [annotation(1, iscrowd=True), annotation(2, iscrowd=None), annotation(3, iscrowd=1.0)]
    found = read(tmp_path, coco([image(width=100.0)], entries))
    assert found.crowd.tolist() == [True, False, True]
    assert found.sizes_wh.tolist() == [[100, 50]]


def test_a_byte_order_mark_and_invalid_utf8_are_accepted(tmp_path: Path) -> None:
    text = json.dumps(coco([image(), image(2, file_name="BAD.jpg", flickr="ODD")])).encode()
    text = b"\xef\xbb\xbf" + text.replace(b"BAD", b"\xff").replace(b"ODD", b"\xfe")
    found = read(tmp_path, text)
    assert drops(found) == [("image", "2", "image_file_name_unsafe")]


def test_file_names_that_leave_the_folder_are_kept_only_if_allowed(tmp_path: Path) -> None:
    names = ["/data/a.jpg", "../b.jpg", "C:\\c.jpg", "d\0.jpg", "e\ud800.jpg"]
    content = coco([image(), *(image(2 + k, file_name=name) for k, name in enumerate(names))])
    assert read(tmp_path, content).file_names == ["1.jpg"]
    found = read(tmp_path, content, allow_outside_images=True)
    assert found.file_names == ["1.jpg", *names[:3]]
    assert drops(found) == [("image", id_, "image_file_name_unsafe") for id_ in ("5", "6")]


def test_an_image_without_objects_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, coco(annotations=[], categories=[]))
    assert found.offsets.tolist() == [0, 0]
    assert found.boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\x1f\x8b\x08\x00abc", "ended before the end-of-stream"),
        (b"PK\x03\x04abc", "zip"),
        (b"\x80\x04\x95abc", "pickle"),
        ('{"images": []}'.encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"[]", "a JSON list"),
        (b"12", "expected '{', got '1'"),
        (b"{}", "no `images` and `annotations` and `categories`"),
        (b'{"info": {"a": "\\"}"}, "x": "y", "z": -1.5e3, "n": null}', "the keys `info`, `x`, `z`, `n`"),
        (b'{"images": [], "categories": []}', "has no `annotations`"),
        (b'{"images": {"a": 1}, "annotations": []}', "has a `images` member that is not a list"),
        (b'{"images": "none"}', "got:      a string"),
        (b'{"images": null}', "a number, true, false or null"),
        (b'{"images": [], "annotations": [], "categories": []}', "lists no images"),
        (b'{"images": [], "images": []}', "`images` twice"),
        (b'{"images": [', "truncated: it ends at byte 12 within `images`"),
        (b'{"images": [{"id": 1}, {"id"', "truncated: it ends at byte 28 within `images`"),
        (b'{"images": [], "info', "truncated: it ends at byte 20"),
        (b'{"images": []', "truncated"),
        (b'{"info": {"a": [1, 2]', "truncated"),
        (b'{"images": []} {}', "not valid JSON at byte 15"),
        (b'{"images": [], }', "not valid JSON at byte 15"),
        (b'{"images": [] "a": 1}', "not valid JSON at byte 14"),
        (b"{images: []}", "not valid JSON at byte 1"),
        (b'{"images": [{"id": 1},]}', "not valid JSON"),
        (b'{"images": [,{"id": 1}]}', "not valid JSON"),
        (b'{"images": [{"id": 1} {"id": 2}]}', "not valid JSON at byte 22, within `images`"),
        (b'{"images": [{"id": }]}', "not valid JSON at byte 19, within `images`"),
        (b'{"images": [{"id": 1]}', "not valid JSON"),
        (b'{"images": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}", "nested too deeply"),
    ],
)
def test_a_file_that_is_not_an_annotations_file_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in fails(tmp_path, content)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json can't be read(.|\n)*no such file"):
        read_coco(tmp_path / "none.json")
    with pytest.raises(InputError, match="a folder"):
        read_coco(tmp_path)


@pytest.mark.parametrize("size", range(1, 90, 7))
def test_a_file_truncated_anywhere_is_reported_as_truncated(tmp_path: Path, size: int) -> None:
    text = json.dumps(coco()).encode()
    assert "truncated" in fails(tmp_path, text[: len(text) * size // 90])


@pytest.mark.parametrize(
    ("key", "kind"), [("caption", "captions"), ("segments_info", "panoptic segmentation"), ("note", "has no boxes")]
)
def test_the_error_for_a_file_without_boxes_names_its_kind(tmp_path: Path, key: str, kind: str) -> None:
    # panoptic annotations have no id of their own
    entries = [{**({} if key == "segments_info" else {"id": n}), "image_id": 1, key: []} for n in range(3)]
    message = fails(tmp_path, coco(annotations=entries))
    assert kind in message
    assert f"`{key}`" in message


def test_a_category_id_with_two_names_is_an_error(tmp_path: Path) -> None:
    message = fails(tmp_path, coco(categories=[{"id": 1, "name": "dog"}, {"id": "1", "name": "cat"}]))
    assert "two categories with the id 1" in message
    assert "'cat' and 'dog'" in message


def test_a_file_without_usable_images_is_an_error(tmp_path: Path) -> None:
    assert "image_size_invalid" in fails(tmp_path, coco([image(width=0), image(2, width=0)]))


def test_progress_reaches_the_size_of_the_file(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    content = json.dumps(coco([image(n) for n in range(50)])).encode()
    read(tmp_path, content, block_size=256, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert seen[-1] == (len(content), len(content))


def test_an_element_much_larger_than_a_block_is_read(tmp_path: Path) -> None:
    outline = [[float(n) for n in range(5000)]]
    entries = [annotation(n, segmentation=outline, note='"},{"') for n in range(3)]
    found = read(tmp_path, coco(annotations=entries), block_size=64)
    assert found.object_ids.tolist() == [0, 1, 2]


_ids = st.one_of(st.integers(1, 4), st.sampled_from(["1", "3", "b", None, 2.0, 2**63, True]))
_numbers = st.one_of(st.integers(-20, 120), st.floats(-20, 120), st.sampled_from([math.nan, "5", 0, 1e39, None]))
_noise = st.dictionaries(
    st.sampled_from(["segmentation", "area", "note", "url"]),
    st.one_of(
        st.text(alphabet='ab"\\{}[],: \n', max_size=8), st.just([[1.5, 2]]), st.just({"counts": [{}, {}], "size": [1]})
    ),
    max_size=2,
)
_images = st.builds(
    lambda base, noise: {**noise, **base},
    st.fixed_dictionaries(
        {"id": _ids, "width": st.sampled_from([100, 60, 0]), "height": st.sampled_from([50, 80.0])},
        optional={"file_name": st.sampled_from(["a.jpg", "b.jpg", "../c.jpg", "é.jpg"])},
    ),
    _noise,
)
_annotations = st.builds(
    lambda base, noise: {**noise, **base},
    st.fixed_dictionaries(
        {"id": _ids, "image_id": _ids, "category_id": st.sampled_from([1, 2, 9])},
        optional={"bbox": st.lists(_numbers, min_size=4, max_size=4), "iscrowd": st.sampled_from([0, 1, False, "x"])},
    ),
    _noise,
)


@settings(max_examples=examples(80), deadline=None)
@given(
    images=st.lists(_images, max_size=6),
    annotations=st.lists(st.one_of(_annotations, st.none()), max_size=12),
    block_size=st.integers(64, 700),
    rng=st.randoms(use_true_random=False),
)
def test_order_layout_and_block_size_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    images: list[Json],
    annotations: list[Json],
    block_size: int,
    rng: random.Random,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    images = [image(50), *images]
    annotations = [annotation(50, image_id=50), *annotations]
    content = {"info": {"x": ["}"]}, **coco(images, annotations, [{"id": 2, "name": "cat"}, {"id": 1, "name": "dog"}])}
    expected = as_plain(read(folder, content))

    shuffled = copy.deepcopy(content)
    for name in ("images", "annotations", "categories"):
        rng.shuffle(shuffled[name])
        shuffled[name] = [_shuffle_keys(entry, rng) for entry in shuffled[name]]
    shuffled = _shuffle_keys(shuffled, rng)
    layouts = ({}, {"indent": 2}, {"separators": (",", ":")}, {"indent": "\t", "ensure_ascii": False})
    for layout in layouts:
        text = json.dumps(shuffled, **layout).encode("utf-8", "surrogatepass")
        assert as_plain(read(folder, text, block_size=block_size)) == expected


def _shuffle_keys(entry: Any, rng: random.Random) -> Any:
    if not isinstance(entry, dict):
        return entry
    return dict(rng.sample(list(entry.items()), len(entry)))


def test_the_fast_and_the_lenient_decoder_agree_on_every_float(tmp_path: Path) -> None:
    rng = random.Random(0)
    entries = [
        annotation(n, bbox=[rng.uniform(0, 60), rng.uniform(0, 30), rng.uniform(1, 40), 10 ** -rng.uniform(0, 9)])
        for n in range(2000)
    ]
    fast = as_plain(read(tmp_path, coco(annotations=entries)))
    # If one entry has another type, its block (here the whole list) is read by the lenient decoder.
    lenient = as_plain(read(tmp_path, coco(annotations=[*entries, None]), block_size=2**24))
    assert {**lenient, "dropped": fast["dropped"]} == fast


def assert_read_as_by_pycocotools(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pycocotools.coco import COCO
    theirs = COCO(str(path))
    ours = read_coco(path)
    assert ours.image_ids.tolist() == sorted(theirs.getImgIds())
    names = {key: category["name"] for key, category in theirs.cats.items()}
    assert ours.categories == tuple(names[key] for key in sorted(names))
    assert len(ours.object_ids) + len(ours.dropped) == len(theirs.getAnnIds())
    assert not ours.dropped.ids
    for index, image_id in enumerate(ours.image_ids.tolist()):
        listed = theirs.loadImgs([image_id])[0]
        assert ours.file_names[index] == listed["file_name"]
        assert ours.sizes_wh[index].tolist() == [listed["width"], listed["height"]]
        entries = sorted(theirs.loadAnns(theirs.getAnnIds([image_id])), key=lambda a: a["id"])
        rows = ours.rows(index)
        assert ours.object_ids[rows].tolist() == [a["id"] for a in entries]
        assert [ours.categories[k] for k in ours.category[rows]] == [names[a["category_id"]] for a in entries]
        assert ours.crowd[rows].tolist() == [bool(a["iscrowd"]) for a in entries]
        for box, (x, y, w, h) in zip(ours.boxes_xyxy[rows].tolist(), (a["bbox"] for a in entries), strict=True):
            assert box == pytest.approx([x, y, min(x + w, listed["width"]), min(y + h, listed["height"])], abs=1e-4)


def test_generated_images_are_read_as_by_pycocotools(make_dataset: Any, tmp_path: Path) -> None:
    assert_read_as_by_pycocotools(make_dataset(tmp_path, images=4).json)


def test_photos_are_read_as_by_pycocotools(photos: Path) -> None:
    assert_read_as_by_pycocotools(photos / "instances.json")
