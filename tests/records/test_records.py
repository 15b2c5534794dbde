"""Records are validated, and survive the round trip through their tables."""

import dataclasses

import pyarrow as pa
import pytest

from spr.core.errors import RecordError
from spr.records import (
    BoxEdit,
    Candidate,
    Detection,
    ImageObject,
    ImageObjects,
    Match,
    PreferencePair,
    RegionObject,
    RegionQuery,
    Scores,
    Span,
    check_box,
)
from spr.records.schemas import CANDIDATES, OBJECTS, PAIRS, from_table, to_table, with_points

DOG = ImageObject("7", "dog", (10.0, 10.0, 50.0, 40.0))
FOUND = ImageObject("9#0", "person", (0.0, 0.0, 20.0, 20.0), "detector", 0.5)
IMAGE = ImageObjects("1", "a/b.jpg", 100, 80, (DOG, FOUND))
QUERY = RegionQuery(
    "1/0", "1", "a/b.jpg", 100, 80, (0.0, 0.0, 50.0, 40.0), "7", (RegionObject("7", "dog", DOG.box, inside=True),)
)
SPAN = Span("a dog", 0, 5, ((1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)), ((1.5, 2.5),))
CANDIDATE = Candidate("1/0/c0", "1/0", "crop", "a dog [1]", "a dog", "a dog", (SPAN,), ("cut",), None, 3, "m", "ferret")
SCORES = Scores(
    "1/0/c0", "1/0", 0.25, -0.5, -0.125, 0.5, 0.0, (Detection("a dog", DOG.box, 0.5),), (Match("7", 0.75, "text"),)
)
PAIR = PreferencePair(
    "1/0", "1", "a/b.jpg", 100, 80, (0.0, 0.0, 50.0, 40.0), "Describe.", "a dog", "a cat", (SPAN,), (), "1/0/c0",
    "1/0/c1", 0.5, 0.25, 0.25,
    (BoxEdit("a dog", DOG.box, DOG.box, "kept"), BoxEdit("a dog", DOG.box, None, "box_removed")),
)  # fmt: skip

CUT = dataclasses.replace(CANDIDATE, finish_reason="length")
CUT_PAIR = dataclasses.replace(PAIR, chosen_finish_reason="length", rejected_finish_reason="stop")


@pytest.mark.parametrize(
    "record", [IMAGE, QUERY, CANDIDATE, CUT, SCORES, PAIR, CUT_PAIR], ids=lambda r: type(r).__name__
)
def test_a_record_survives_the_round_trip_through_its_table(record):
    assert from_table(to_table([record, record], type(record)), type(record)) == [record, record]


def test_an_empty_table_has_its_schema():
    assert to_table([], ImageObjects).schema == OBJECTS


def test_a_table_that_lacks_a_column_is_an_error_that_names_it():
    with pytest.raises(RecordError, match="file_name"):
        from_table(to_table([IMAGE], ImageObjects).drop_columns(["file_name"]), ImageObjects)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 0, 5), "has no area"),
        ((5, 0, 1, 5), "has no area"),
        ((0, 0, float("nan"), 5), "not finite"),
        ((0, 0, float("inf"), 5), "not finite"),
        ((0, 0, 5), "not a box"),
        ("abcd", "not a box"),
        (None, "not a box"),
    ],
)
def test_an_invalid_box_is_an_error(box, message):
    with pytest.raises(RecordError, match=message):
        check_box(box)


def test_a_box_beyond_the_image_is_an_error():
    with pytest.raises(RecordError, match="extends beyond its image"):
        dataclasses.replace(IMAGE, width=49)


def test_two_objects_with_the_same_id_are_an_error():
    with pytest.raises(RecordError, match="two objects with the same id"):
        dataclasses.replace(IMAGE, objects=(DOG, DOG))


def test_an_empty_id_is_an_error():
    with pytest.raises(RecordError, match="image_id is not an id"):
        dataclasses.replace(IMAGE, image_id="")


def test_an_unknown_start_object_is_an_error():
    with pytest.raises(RecordError, match="start_object"):
        dataclasses.replace(QUERY, start_object="8")


def test_a_span_that_does_not_match_its_text_is_an_error():
    with pytest.raises(RecordError, match="does not match its text"):
        dataclasses.replace(CANDIDATE, plain_text="the dog")


def test_a_score_out_of_range_is_an_error():
    with pytest.raises(RecordError, match="localization"):
        dataclasses.replace(SCORES, localization=1.5)


@pytest.mark.parametrize(
    ("chosen", "rejected", "truncated"),
    [
        ("length", "stop", True),
        ("stop", "length", True),
        ("stop", None, False),
        ("stop_string", "stop", False),
        ("abort", "stop", True),
    ],
)
def test_a_pair_with_a_truncated_answer_says_so(chosen, rejected, truncated):
    pair = dataclasses.replace(PAIR, chosen_finish_reason=chosen, rejected_finish_reason=rejected)
    assert pair.truncated == truncated


def test_the_finish_reasons_have_their_place_in_the_tables():
    assert CANDIDATES.names[7:10] == ["problems", "finish_reason", "seed"]
    assert PAIRS.names[-5:] == ["box_edits", "chosen_finish_reason", "rejected_finish_reason", "kind", "split"]
    assert CANDIDATES.field("finish_reason") == pa.field("finish_reason", pa.string(), nullable=True)


@pytest.mark.parametrize("record", [IMAGE, QUERY, PAIR])
def test_a_split_is_train_or_holdout(record):
    assert dataclasses.replace(record, split="holdout").to_row()["split"] == "holdout"
    with pytest.raises(RecordError, match="split of image 1 is unknown"):
        dataclasses.replace(record, split="test")


def test_a_pair_of_equal_answers_is_an_error():
    with pytest.raises(RecordError, match="chosen equals rejected"):
        dataclasses.replace(PAIR, rejected="a dog")


def test_inside_is_the_ground_truth_of_the_region():
    outside = RegionObject("8", "cat", (60.0, 60.0, 90.0, 70.0))
    query = dataclasses.replace(QUERY, objects=(*QUERY.objects, outside))
    assert [o.id for o in query.inside] == ["7"]


@pytest.mark.parametrize("box", [(1, 2, 3), (1, 2, 3, float("nan")), (1, 2, 3, float("inf")), "abc", (1, 2, None, 4)])
def test_a_span_with_an_invalid_box_is_an_error(box):
    with pytest.raises(RecordError, match="four finite numbers"):
        Span("a dog", 0, 5, (box,))


@pytest.mark.parametrize("point", [(1, 2, 3), (1, float("nan")), (float("inf"), 2), "a", (1, None), 5])
def test_a_span_with_an_invalid_point_is_an_error(point):
    with pytest.raises(RecordError, match="two finite numbers"):
        Span("a dog", 0, 5, points=(point,))


def test_spans_of_an_earlier_version_have_no_points():
    row = {"phrase": "a dog", "start": 0, "end": 5, "boxes": [[1, 2, 3, 4]]}
    assert Span.from_row(row) == Span("a dog", 0, 5, ((1, 2, 3, 4),))
    two = dataclasses.replace(CANDIDATE, plain_text="a dog a dog", spans=(SPAN, Span("a dog", 6, 11)))
    table = to_table([CANDIDATE, dataclasses.replace(CANDIDATE, spans=()), two], Candidate)
    lists = table["spans"].combine_chunks()
    structs = lists.flatten()
    kept = [field for field in structs.type if field.name != "points"]
    old_structs = pa.StructArray.from_arrays([structs.field(field.name) for field in kept], fields=kept)
    of_old = pa.list_(pa.field("element", old_structs.type, nullable=False))
    old = pa.chunked_array([pa.ListArray.from_arrays(lists.offsets, old_structs, type=of_old)])
    for column in (old, old.slice(2), pa.chunked_array([*old.slice(0, 1).chunks, *old.slice(1).chunks])):
        filled = with_points(column, table["spans"].type)
        filled.validate(full=True)
        assert filled.type == table["spans"].type
        assert filled.to_pylist() == [[span | {"points": []} for span in spans] for spans in column.to_pylist()]
    for name in ("spans", "problems"):  # what has points, or is no column of spans, stays as it is
        assert with_points(table[name], table["spans"].type).equals(table[name])
