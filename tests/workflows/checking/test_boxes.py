"""What is wrong with boxes, by hand-made rows."""

import pytest

from spr.workflows.checking.boxes import KEPT_EXAMPLES, BoxChecks
from spr.workflows.checking.findings import KEPT_ROWS
from spr.workflows.checking.readings import Reading
from spr.workflows.checking.rows import Batch, DataRow

PIXELS = Reading.of_stated("xyxy_pixels")
THOUSANDTHS = Reading.of_dialect("qwen3_vl")


def row(number, *boxes, labels=None, size=(100, 50), image="a.jpg", answer="", prompt_boxes=0):
    labels = ("",) * len(boxes) if labels is None else labels
    return DataRow(number, f"d.jsonl, line {number}", image, size, "", answer, boxes, labels, prompt_boxes=prompt_boxes)


def found(rows, reading=PIXELS):
    checks = BoxChecks([reading])
    for one in rows:
        checks.add(Batch([one]))
    return {finding.kind: finding for finding in checks.findings(reading)}, checks


def test_each_kind_is_counted_with_its_rows():
    rows = [
        row(1, (10, 10, 30, 30)),
        row(2, (90, 10, 103, 30)),  # 3 px outside: more than 1 % and one pixel
        row(3, (90, 10, 101.9, 30)),  # 1.9 px: less
        row(4, (30, 10, 10, 30)),
        row(5, (10, 10, 10, 30)),
        row(6, (10, 10, 10.5, 30)),
        row(7, (0, 0, 100, 50), (0.5, 0.2, 99.5, 49.8)),
        row(8, (-50, -50, -40, -40)),
    ]
    kinds, _ = found(rows)
    assert {kind: (one.count, one.of, one.things) for kind, one in kinds.items()} == {
        "beyond": (2, 9, "boxes"),
        "inverted": (1, 9, "boxes"),
        "no_area": (1, 9, "boxes"),
        "tiny": (1, 9, "boxes"),
        "whole_image": (2, 9, "boxes"),
    }
    assert kinds["beyond"].places[0] == "d.jsonl, line 2: [90, 10, 103, 30] in an image of 100 × 50 pixels"
    assert kinds["inverted"].places == ("d.jsonl, line 4: [30, 10, 10, 30] in an image of 100 × 50 pixels",)
    assert kinds["tiny"].places[0].startswith("d.jsonl, line 6:")


def test_the_reading_decides_what_is_wrong():
    rows = [row(1, (100, 100, 900, 900), size=(640, 480))]
    assert set(found(rows)[0]) == {"beyond"}
    assert found(rows, THOUSANDTHS)[0] == {}
    corners_first = Reading.of_stated("xywh_pixels")
    assert set(found([row(1, (300, 100, 50, 50), size=(640, 480))], corners_first)[0]) == set()
    assert set(found([row(1, (300, 100, 50, 50), size=(640, 480))])[0]) == {"inverted"}


def test_tiny_boxes_are_under_a_pixel_or_under_a_thousandth_if_the_size_is_unknown():
    assert "tiny" in found([row(1, (10, 10, 11, 500), size=(640, 480))], THOUSANDTHS)[0]  # 0.64 px
    assert "tiny" not in found([row(1, (10, 10, 12, 500), size=(640, 480))], THOUSANDTHS)[0]  # 1.28 px
    assert "tiny" not in found([row(1, (10, 10, 11, 500), size=None)], THOUSANDTHS)[0]
    assert "tiny" in found([row(1, (10, 10, 10.5, 500), size=None)], THOUSANDTHS)[0]


def test_boxes_in_images_of_unknown_size_are_not_counted_where_the_size_is_needed():
    kinds, _ = found([row(1, (30, 10, 10, 30), size=None), row(2, (30, 10, 10, 30))])
    assert (kinds["inverted"].count, kinds["inverted"].of) == (1, 1)


def test_the_same_box_with_the_same_label_in_a_row_is_a_duplicate():
    box = (10.0, 10.0, 30.0, 30.0)
    rows = [
        row(1, box, box, box, labels=("dog", "dog", "dog")),
        row(2, box, box, labels=("dog", "cat")),
        row(3, box, box, labels=("", "")),
        row(4, box, box, labels=("", "dog"), prompt_boxes=1),  # asked for, and answered
    ]
    kinds, checks = found(rows)
    assert (kinds["duplicate_box"].count, kinds["duplicate_box"].of) == (3, 9)
    assert kinds["duplicate_box"].places == (
        "d.jsonl, line 1: [10, 10, 30, 30] dog",
        "d.jsonl, line 3: [10, 10, 30, 30]",
    )
    assert [one.number for one in checks.examples(PIXELS)["duplicate_box"]] == [1, 3]


def test_rows_that_are_there_before_are_found_over_batches():
    box = (10.0, 10.0, 30.0, 30.0)
    rows = [row(1, box), row(2, box, image="b.jpg"), row(3, box), row(4, box, answer="a dog"), row(5, box)]
    kinds, checks = found(rows)
    assert (kinds["repeated_row"].count, kinds["repeated_row"].of, kinds["repeated_row"].things) == (2, 5, "rows")
    assert kinds["repeated_row"].places == ("d.jsonl, line 3", "d.jsonl, line 5")
    assert set(checks.examples(None)) == {"repeated_row"}
    assert [one.kind for one in checks.findings(None)] == ["repeated_row"]
    without = BoxChecks([PIXELS], repeated=False)
    without.add(Batch(rows))
    assert without.findings(PIXELS) == []


def test_places_and_examples_are_the_first_ones():
    rows = [row(k, (30, 10, 10, 30), (31, 10, 10, 30), image=f"{k}.jpg") for k in range(1, 9)]
    kinds, checks = found(rows)
    assert kinds["inverted"].count == 16
    assert len(kinds["inverted"].places) == KEPT_ROWS
    assert [one.number for one in checks.examples(PIXELS)["inverted"]] == [1, 2, 3][:KEPT_EXAMPLES]


def test_batches_without_boxes_and_unknown_readings():
    checks = BoxChecks([PIXELS])
    checks.add(Batch([]))
    checks.add(Batch([row(1)]))
    assert checks.findings(PIXELS) == []
    with pytest.raises(ValueError, match="not in list"):
        checks.findings(THOUSANDTHS)


def test_huge_numbers_are_beyond_and_raise_nothing():
    kinds, _ = found([row(1, (1e300, -1e300, 1e308, 1e308))])
    assert kinds["beyond"].count == 1
