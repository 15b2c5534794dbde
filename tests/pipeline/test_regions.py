"""Region growth on scenes worked out by hand, and its invariants on any scene."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from example_counts import examples
from spr.config import Config, RegionsConfig, make_config
from spr.core import boxes as bx
from spr.pipeline.regions import find_regions, grow_regions, process
from spr.records import ImageObject, ImageObjects, RegionQuery
from spr.records.schemas import OBJECTS, REGIONS, from_table, to_table


def config_with(seed: int = 0, **regions: object) -> Config:
    return make_config({"seed": seed, "annotations": {"path": "a", "images": "b"}, "regions": regions})


def grow(boxes, start=0, **settings):
    grown = grow_regions([boxes], [[True] * len(boxes)], [start], RegionsConfig(**settings))
    return grown.regions_xyxy[0].tolist(), grown.inside[0].tolist(), bool(grown.valid[0])


# Four 10×10 squares in a row with growing gaps: edges 0–10, 12–22, 26–36, 44–54.
ROW = [[0, 0, 10, 10], [12, 0, 22, 10], [26, 0, 36, 10], [44, 0, 54, 10]]


def test_a_region_takes_in_the_closest_object_and_stops_when_enough_are_inside():
    # From 26–36: gaps are 16, 4 (to 12–22) and 8. Then 12–36: gaps 2 and 8. Then 0–36, three inside.
    assert grow(ROW, start=2, min_inside=3, min_aspect=0.0) == ([0, 0, 36, 10], [True, True, True, False], True)


def test_distance_is_between_the_edges_or_if_configured_between_the_centres():
    # From the wide box 0–100: edge gaps 5 and 4; centres 50 against 102.5 and 134.
    boxes = [[0, 0, 100, 10], [105, 0, 110, 10], [104, 20, 264, 30]]
    # The second box is 4 right and 10 down: hypot(4, 10) = 10.8 > 5, so the first is closer by edges too …
    assert grow(boxes, min_inside=2, min_aspect=0.0)[0] == [0, 0, 110, 10]
    # … and with the lower box moved up beside, it is closer by its edge (4) but not by its centre.
    boxes[2] = [104, 0, 264, 10]
    assert grow(boxes, min_inside=2, min_aspect=0.0)[0] == [0, 0, 264, 10]
    assert grow(boxes, min_inside=2, min_aspect=0.0, distance="centre")[0] == [0, 0, 110, 10]


def test_equal_gaps_are_decided_by_the_centres_and_then_by_the_order_of_ids():
    # Gaps of 5 on both sides; the left box is 30 wide (centre at −20), the right one 10 (centre at 20).
    boxes = [[0, 0, 10, 10], [-35, 0, -5, 10], [15, 0, 25, 10]]
    assert grow(boxes, min_inside=2, min_aspect=0.0)[0] == [0, 0, 25, 10]
    # Same gap, same centre distance: the first wins.
    boxes[1] = [-15, 0, -5, 10]
    assert grow(boxes, min_inside=2, min_aspect=0.0)[0] == [-15, 0, 10, 10]


def test_an_object_half_inside_counts_and_one_just_under_half_is_taken_in():
    # The start box 0–100 covers 50 of the second's 100 px width, and 49 of the third's.
    boxes = [[0, 0, 100, 100], [50, 0, 150, 100], [51, 0, 151, 100]]
    assert grow(boxes, min_inside=2) == ([0, 0, 100, 100], [True, True, False], True)
    assert grow(boxes, min_inside=3) == ([0, 0, 151, 100], [True, True, True], True)


def test_a_region_that_is_too_narrow_keeps_growing():
    # After two: 22×10, ratio 0.45; after three: 36×10, 0.28 fails; the next in reach is below: 36×30, 0.83.
    boxes = [*ROW[:3], [0, 20, 10, 30]]
    assert grow(boxes, min_inside=3, min_aspect=1 / 3) == ([0, 0, 36, 30], [True] * 4, True)


def test_a_region_that_is_too_narrow_fails_at_once_when_so_configured():
    boxes = [*ROW[:3], [0, 20, 10, 30]]
    region, inside, valid = grow(boxes, min_inside=3, failed_aspect="next_start")
    assert (region, inside, valid) == ([0, 0, 36, 10], [True, True, True, False], False)


def test_a_ratio_of_exactly_a_third_is_too_narrow():
    boxes = [[0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]]
    assert grow(boxes, min_inside=3) == ([0, 0, 30, 10], [True] * 3, False)
    boxes[2] = [20, 0, 29.9, 10]
    assert grow(boxes, min_inside=3)[2] is True


def test_an_exhausted_image_gives_no_region():
    assert grow(ROW, min_inside=5, min_aspect=0.0) == ([0, 0, 54, 10], [True] * 4, False)


def test_the_next_start_is_tried_when_one_fails():
    # From the right end the row 0–30 stays under a third whatever happens; every start of this scene ends the same.
    row = np.array([[[0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 31, 10]]], dtype=float)
    assert find_regions(row, np.ones((1, 3), bool), np.array([[0, 1, 2]]), RegionsConfig(min_inside=2)) != [[]]
    assert find_regions(row, np.ones((1, 3), bool), np.array([[0, 1, 2]]), RegionsConfig(min_inside=3)) == [[]]


def test_the_start_that_succeeds_is_recorded():
    # Starting at the far narrow strip, growing reaches 0–100 × 0–1 first (ratio 0.01) and, at next_start, fails;
    # the squares 0 and 1 touch and make 20×10.
    scene = np.array([[[0, 0, 10, 10], [10, 0, 20, 10], [60, 0, 100, 1], [100, 0, 140, 1]]], dtype=float)
    settings = RegionsConfig(min_inside=2, failed_aspect="next_start")
    found = find_regions(scene, np.ones((1, 4), bool), np.array([[2, 0, 1, 3]]), settings)
    assert [(f.start, f.region_xyxy.tolist()) for f in found[0]] == [(0, [0, 0, 20, 10])]


def test_several_regions_of_an_image_differ():
    squares = [[[0, 0, 10, 10], [11, 0, 21, 10], [100, 0, 110, 10], [111, 0, 121, 10]]]
    found = find_regions(
        np.array(squares, dtype=float),
        np.ones((1, 4), bool),
        np.array([[0, 1, 2, 3]]),
        RegionsConfig(min_inside=2, per_image=3),
    )
    # Starts 0 and 1 give the same region; it is kept once, so there are only two.
    assert [(f.start, f.region_xyxy.tolist()) for f in found[0]] == [(0, [0, 0, 21, 10]), (2, [100, 0, 121, 10])]


def image(image_id: str, boxes, size=(1000, 1000)) -> ImageObjects:
    objects = tuple(ImageObject(str(k), "thing", tuple(map(float, box))) for k, box in enumerate(boxes))
    return ImageObjects(image_id, f"{image_id}.jpg", *size, objects)


def stage(images, config):
    output = process({"objects": to_table(images, ImageObjects)}, config)
    return from_table(output.table, RegionQuery), output.dropped.to_pylist()


def test_images_without_a_region_are_dropped_with_their_reason():
    few = image("few", ROW[:2])
    narrow = image("narrow", [[20 * k, 0, 20 * k + 19, 3] for k in range(6)])
    queries, dropped = stage([few, narrow], config_with())
    assert queries == []
    assert dropped == [
        {"id": "few", "kind": "image", "stage": "regions", "reason": "too_few_objects", "file_name": None},
        {"id": "narrow", "kind": "image", "stage": "regions", "reason": "no_valid_region", "file_name": None},
    ]


def test_missing_regions_of_an_image_are_dropped_queries():
    queries, dropped = stage([image("1", ROW)], config_with(per_image=2, min_inside=4, min_aspect=0.1))
    assert [q.query_id for q in queries] == ["1/0"]
    assert [(d["id"], d["kind"], d["reason"]) for d in dropped] == [("1/1", "query", "no_further_region")]


def test_an_empty_shard_gives_an_empty_shard():
    output = process({"objects": OBJECTS.empty_table()}, config_with())
    assert (len(output.table), output.table.schema, len(output.dropped)) == (0, REGIONS, 0)


def test_all_other_fields_of_a_row_are_kept():
    original = image("7", [[10 * k, 10 * k, 10 * k + 10, 10 * k + 10] for k in range(6)], (640, 480))
    detected = dataclasses.replace(original.objects[2], source="detector", score=0.5, category="person")
    original = dataclasses.replace(original, objects=(*original.objects[:2], detected, *original.objects[3:]))
    ((query,), _) = stage([original], config_with())
    assert (query.image_id, query.file_name, query.width, query.height) == ("7", "7.jpg", 640, 480)
    assert [(o.id, o.category, o.box, o.source, o.score) for o in query.objects] == [
        (o.id, o.category, o.box, o.source, o.score) for o in original.objects
    ]


coordinate = st.integers(0, 200)
box = st.tuples(coordinate, coordinate, st.integers(1, 80), st.integers(1, 80)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
scene = st.lists(box, min_size=1, max_size=14)


@settings(max_examples=examples(150), deadline=None)
@given(
    scenes=st.lists(scene, min_size=1, max_size=5), per_image=st.integers(1, 3), order=st.randoms(use_true_random=False)
)
def test_region_invariants_hold_on_any_scene(scenes, per_image, order):
    config = config_with(per_image=per_image)
    images = [image(str(k), boxes, (300, 300)) for k, boxes in enumerate(scenes)]
    queries, dropped = stage(images, config)
    for query in queries:
        boxes = np.array([o.box for o in query.objects])
        inside = np.array([o.inside for o in query.objects])
        region = np.array(query.region)
        assert inside.sum() > 4
        assert bx.aspect(region) > 1 / 3
        assert inside.tolist() == bx.at_least(bx.fraction_inside(boxes, region), 0.5).tolist()
        # The region is the union of boxes of objects that it holds whole, its start object's among them.
        whole = boxes[(boxes[:, :2] >= region[:2]).all(1) & (boxes[:, 2:] <= region[2:]).all(1)]
        assert [*whole[:, :2].min(0), *whole[:, 2:].max(0)] == region.tolist()
        start = next(o for o in query.objects if o.id == query.start_object)
        assert bx.fraction_inside(start.box, region) == 1.0
        assert (region >= 0).all()
        assert (region <= 300).all()
    regions_of = {i.image_id: [q.region for q in queries if q.image_id == i.image_id] for i in images}
    assert all(len(set(regions)) == len(regions) <= per_image for regions in regions_of.values())
    without = {d["id"] for d in dropped if d["kind"] == "image"}
    assert without == {image_id for image_id, regions in regions_of.items() if not regions}

    shuffled = list(images)
    order.shuffle(shuffled)
    again, dropped_again = stage(shuffled, config)
    assert sorted(again, key=lambda q: q.query_id) == sorted(queries, key=lambda q: q.query_id)
    assert {tuple(d.values()) for d in dropped_again} == {tuple(d.values()) for d in dropped}

    one_by_one = [query for picture in images for query in stage([picture], config)[0]]
    assert one_by_one == queries


def test_another_seed_starts_elsewhere():
    boxes = [[50 * (k % 10), 50 * (k // 10), 50 * (k % 10) + 40, 50 * (k // 10) + 40] for k in range(100)]
    starts = {stage([image("1", boxes)], config_with(seed))[0][0].start_object for seed in range(20)}
    assert len(starts) > 10


def test_a_sliced_table_gives_the_rows_of_the_slice():
    images = [
        image(str(k), [[10 * j, 10 * j, 10 * j + 10 + k, 10 * j + 10] for j in range(6 + k)], (300, 300))
        for k in range(4)
    ]
    table = to_table(images, ImageObjects)
    whole = process({"objects": table}, config_with()).table
    sliced = process({"objects": table.slice(2, 1)}, config_with()).table
    assert sliced.to_pylist() == whole.slice(2, 1).to_pylist()
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert process({"objects": chunked}, config_with()).table.to_pylist() == whole.to_pylist()


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_the_share_that_counts_as_inside_is_configurable(fraction):
    boxes = [[0, 0, 100, 100], [60, 0, 160, 100]]
    expected = [True, fraction <= 0.4]
    assert grow(boxes, min_inside=1, inside_fraction=fraction)[1] == expected
