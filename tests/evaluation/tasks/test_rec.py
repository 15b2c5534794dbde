"""Referring expressions: reading both file formats, the metrics, and asking a model."""

import json

import numpy as np
import pytest
from PIL import Image

from spr.core.errors import ConfigError, InputError
from spr.evaluation.predictions import Answers
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.rec import Rec
from spr.grounding import get_dialect
from spr.models.fakes import FakeDescriber

DIALECT = get_dialect("llava_onevision")


def mdetr(rows):
    images, annotations = [], []
    for k, (caption, name, box) in enumerate(rows):
        size = {"file_name": f"{k // 2}.png", "width": 100, "height": 200, "original_id": k // 2}
        images.append({"id": k + 10, "caption": caption, "dataset_name": name, **size})
        annotations.append({"id": 500 - k, "image_id": k + 10, "bbox": box, "area": 1, "iscrowd": 0})
    return {"info": {}, "images": images, "annotations": annotations[::-1], "categories": []}


ROWS = [("the cup", "refcoco", [10, 20, 30, 40]), ("left, cup", "refcoco+", [0, 0, 100, 100])]


def test_mdetrs_json_is_read_with_its_boxes_as_corners(tmp_path):
    path = tmp_path / "finetune_refcoco_val.json"
    path.write_text(json.dumps(mdetr(ROWS)))
    items = Rec().load(path)
    assert items.ids == ("10", "11")
    assert items.file_names == ("0.png", "0.png")
    assert items.sentences == ("the cup", "left, cup")
    assert items.datasets == ("refcoco", "refcoco+")
    # (10, 20) + (30, 40) = (40, 60)
    assert items.boxes_xyxy.tolist() == [[10, 20, 40, 60], [0, 0, 100, 100]]
    assert items.sizes_wh == ((100, 200), (100, 200))


def test_json_lines_without_an_id_are_numbered(tmp_path):
    path = tmp_path / "mine.jsonl"
    row = {"image": "a.png", "sentence": "the cup", "box": [1, 2, 3, 4], "width": 10, "height": 10}
    path.write_text("\n".join(json.dumps(r) for r in (row, {**row, "image": "b.png"})))
    items = Rec().load(path)
    assert (items.ids, items.file_names, items.datasets) == (("0", "1"), ("a.png", "b.png"), ("", ""))
    path.write_text(json.dumps(row))  # a file of a single line
    assert len(Rec().load(path)) == 1


LINE = {"id": "a", "image": "a.png", "sentence": "s", "box": [1, 2, 3, 4], "width": 10, "height": 10}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": [1, 2, 3]}, r"length 4 - at `\$.box`"),
        ({"box": [3, 2, 1, 4]}, "has no area"),
        ({"box": [1, 2, float("inf"), 4]}, "JSON is malformed"),
        ({"width": 0}, r">= 1 - at `\$.width`"),
        ({"height": "10"}, r"got `str` - at `\$.height`"),
        ({"sentence": None}, r"got `null` - at `\$.sentence`"),
        ({"image": 3}, r"got `int` - at `\$.image`"),
        ({"id": 1.5}, r"got `float` - at `\$.id`"),
    ],
)
def test_an_invalid_row_is_named_with_its_field(tmp_path, change, message):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({**LINE, **change}) + "\n")
    with pytest.raises(InputError, match=message):
        Rec().load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\x80", "Line 1 of .* is not valid"),
        ("{}\n{}", r"in no layout that `rec` reads[\s\S]*JSON lines without keys"),
        ('{"images": 1, "annotations": []}', r"Expected `array`, got `int` - at `\$.images`"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": []}', "images\\[\\].caption, images\\[\\].width"),
        ('{"images": [], "annotations": []}', "is empty"),
        (json.dumps({**mdetr(ROWS), "annotations": []}), "does not have exactly one box"),
        (json.dumps(LINE) + "\n" + json.dumps(LINE), "Two expressions have the same id"),
    ],
)
def test_files_with_other_content_are_refused(tmp_path, content, message):
    path = tmp_path / "annotations.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        Rec().load(path)


@pytest.fixture
def items(tmp_path):
    path = tmp_path / "items.json"
    boxes = [[0, 0, 50, 100], [0, 0, 50, 100], [0, 0, 10, 10], [0, 0, 100, 200], [0, 0, 50, 100]]
    path.write_text(
        json.dumps(mdetr([(f"cup {k}", "refcoco" if k < 3 else "refcocog", b) for k, b in enumerate(boxes)]))
    )
    return Rec().load(path)


def test_the_first_box_counts_and_no_box_is_a_miss(items):
    # Exact; two boxes of which the second is exact and the first does not overlap; a tenth of the box too wide in
    # one direction: 10 × 10 of 10 × 12; no box; no answer.
    texts = [
        "the cup [0.00, 0.00, 0.50, 0.50]",
        "[0.60, 0.60, 0.80, 0.80] or [0.00, 0.00, 0.50, 0.50]",
        "[0.00, 0.00, 0.10, 0.06]",
        "I see no cup",
        None,
    ]
    result = Rec().score(items, Answers(texts, {"missing": ["14"]}, DIALECT))
    # IoU 1, 0, 100/120 = 0.833, 0, 0.
    assert result.value("mean_iou") == pytest.approx((1 + 100 / 120) / 5)
    assert [result.value(f"acc@{t}") for t in (0.5, 0.6, 0.7, 0.8, 0.9)] == [0.4, 0.4, 0.4, 0.4, 0.2]
    assert result.problems["no_box"] == ["13"]
    assert result.problems["missing"] == ["14"]
    assert result.value("acc@0.5", "refcoco") == pytest.approx(2 / 3)
    assert result.value("acc@0.5", "refcocog") == 0
    assert result.value("acc@0.5", "with a box") == pytest.approx(2 / 3)
    assert result.groups["without a box"].tolist() == [False, False, False, True, True]


def test_sizes_are_cocos_areas_or_shares_of_the_image(items):
    # Areas 5000, 5000, 100, 20000, 5000 px² of 20000: COCO's bounds are 32² = 1024 and 96² = 9216; as shares of a 640 ×
    # 640 image 0.0025 and 0.0225, and even 100/20000 = 0.005 is above the first.
    answers = Answers(["" for _ in items.ids], dialect=DIALECT)
    by_pixels = Rec().score(items, answers).groups
    assert by_pixels["small"].tolist() == [False, False, True, False, False]
    assert by_pixels["large"].tolist() == [False, False, False, True, False]
    assert by_pixels["medium"].sum() == 3
    by_share = Rec(areas="share").score(items, answers).groups
    assert by_share["medium"].tolist() == [False, False, True, False, False]
    assert "small" not in by_share


def test_malformed_boxes_are_counted_and_the_rest_of_the_answer_is_read(items):
    texts = ["the cup [0.1, 0.2] and [0.00, 0.00, 0.50, 0.50]", "x" * 100_000, "[[[[[[[", "", "[0.1, 0.2, 0.3"]
    result = Rec().score(items, Answers(texts, dialect=DIALECT))
    assert result.value("acc@0.9") == 0.2
    assert result.problems["malformed"] == ["10", "14"]
    assert result.problems["no_box"] == ["11", "12", "13", "14"]


def test_the_ferret_protocol_reads_ferrets_dialect_only(items):
    with pytest.raises(ConfigError, match="one dialect only"):
        Rec(protocol="ferret").score(items, Answers([""] * 5, dialect=DIALECT))
    with pytest.raises(ConfigError, match=r"spr \| ferret"):
        Rec(protocol="official")


def test_a_model_is_asked_once_per_expression_and_its_file_gives_the_same_scores(items, tmp_path):
    for k in range(3):
        Image.new("RGB", (100, 200)).save(tmp_path / f"{k}.png")
    (tmp_path / "1.png").unlink()  # of expressions 12 and 13
    result = evaluate(Rec(prompt="Find {expression} now"), items, describer=FakeDescriber(), images=tmp_path)
    assert [p.prompt for p in result.predictions] == [f"Find cup {k} now" for k in range(5)]
    assert result.problems["image"] == [f"{k} (1.png: image_missing)" for k in (12, 13)]
    assert [p.answer is None for p in result.predictions] == [False, False, True, True, False]
    assert result.protocol["model"] == "fake"
    written = result.write(tmp_path / "out.json")
    again = evaluate("rec", items, predictions=tmp_path / written["answers"])
    assert again.metrics == result.metrics
    assert again.problems["not_text"] == ["12", "13"]
    for first, second in zip(result.shares.values(), again.shares.values(), strict=True):
        np.testing.assert_array_equal(first.parts, second.parts)


def test_a_prompt_without_the_placeholder_is_refused(items, tmp_path):
    with pytest.raises(ConfigError, match=r"lacks \{expression\}"):
        evaluate(Rec(prompt="Where is it?"), items, describer=FakeDescriber(), images=tmp_path)


def test_the_result_file_has_the_documented_form(items, tmp_path):
    answers = Answers(["[0.00, 0.00, 0.50, 0.50]"] * 5, {"unknown": [str(k) for k in range(99)]}, DIALECT)
    result = Rec().score(items, answers)
    result.write(tmp_path / "deep" / "rec.json")
    content = json.loads((tmp_path / "deep" / "rec.json").read_text())
    assert content["format_version"] == 2
    assert content["task"] == "rec"
    assert content["n"] == 5
    assert list(content["metrics"]) == ["acc@0.5", "acc@0.6", "acc@0.7", "acc@0.8", "acc@0.9", "mean_iou"]
    assert content["metrics"]["acc@0.5"]["ci95"] is None
    assert content["metrics"]["acc@0.5"]["no_ci95"] == "3 images, fewer than 6"
    assert content["groups"]["refcoco"]["n"] == 3
    assert set(content["groups"]["refcoco"]["metrics"]) == set(content["metrics"])
    assert content["problems"]["unknown"] == {"count": 99, "ids": [str(k) for k in range(20)]}
    assert content["items"] == "rec.items.parquet"
    # In a run's metrics.json the paths are relative to the run.
    inside = result.write(tmp_path / "run" / "evaluation" / "after-rec.json", root=tmp_path / "run")
    assert inside["items"] == "evaluation/after-rec.items.parquet"
