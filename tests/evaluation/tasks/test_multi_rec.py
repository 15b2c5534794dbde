"""Expressions with any number of targets: their files, hand-worked metrics, rejection, and published evaluators."""

import json

import numpy as np
import pytest

from spr.core.errors import ConfigError, InputError
from spr.evaluation.multi_expressions import MultiExpression, read_multi_expressions
from spr.evaluation.predictions import Answers
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.multi_rec import ABSENT, MultiRec
from spr.grounding import get_dialect

DIALECT = get_dialect("ferret")  # numbers from 0 to 1000; the images are 1000 × 1000 px, so they are pixels
SIZE = (1000, 1000)


def expression(name, *boxes, groups=()):
    return MultiExpression(name, f"{name}.jpg", SIZE, "the dogs, left", boxes, groups)


def score(items, *texts, dialect=DIALECT):
    return MultiRec().score(items, Answers(list(texts), {}, dialect))


ITEMS = [
    expression("a", (0, 0, 100, 100), (200, 0, 300, 100), groups=("attribute",)),
    expression("b", (0, 0, 100, 100), groups=("position",)),
    expression("c", groups=("rejection", "rejection/color")),
    expression("d", groups=("rejection",)),
]


def test_f1_density_f1_and_rejection_of_a_hand_worked_case():
    """Two expressions with targets, two without.

    a: two targets; boxes: the first exactly, the second with an IoU of 0.8 (100 × 80 inside 100 × 100), one elsewhere.
       Up to 0.8: recall 2/2, precision 2/3, F1 4/5, density 2/3, so DensityF1 8/15. Above: 1/2, 1/3, 2/5, 4/15.
    b: one target, no box: 0 everywhere.
    c: no target, no box: rejected. d: no target, one box: not rejected.
    """
    texts = "dogs [0, 0, 100, 100], [200, 0, 300, 80], [500, 500, 600, 600]", "I see none", "none", "a dog [1, 1, 9, 9]"
    result = score(ITEMS, *texts)
    # Averaged over a and b; seven of the ten thresholds are at most 0.8.
    expected = {"recall": (1, 1 / 2), "precision": (2 / 3, 1 / 3), "f1": (4 / 5, 2 / 5), "density_f1": (8 / 15, 4 / 15)}
    for name, (low, high) in expected.items():
        assert result.value(f"{name}@0.5") == pytest.approx(low / 2)
        assert result.value(name) == pytest.approx((0.7 * low + 0.3 * high) / 2)
    # Right: c alone, of four. Of the boxes at 0.5: 2 true, 2 false (one of a, one of d), 1 target missed.
    assert (result.value("acc@0.5"), result.value("acc@0.9"), result.value("macc")) == (1 / 4, 1 / 4, 1 / 4)
    assert result.value("instance_f1@0.5") == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))
    assert result.value("instance_acc@0.5") == pytest.approx((2 + 1) / (2 + 2 + 1 + 1))
    assert result.value("image_f1@0.5") == 0
    # Rejected are b and c; without a target are c and d.
    for name in ("rejection_acc", "rejection_precision", "rejection_f1"):
        assert result.value(name) == 1 / 2
    assert result.value("rejection_acc", "rejection/color") == 1
    assert result.value("recall@0.5", "attribute") == 1
    assert result.value("recall@0.5", "rejection") is None
    assert list(result.groups) == [
        *("attribute", "position", "rejection", "rejection/color"),
        *("with a target", "without a target", "1 target", "2-5 targets"),
    ]
    assert result.problems["no_box"] == ["b"]
    assert not result.notes


def test_an_expression_is_right_if_all_targets_are_found_and_no_box_is_left():
    items = [expression("a", (0, 0, 100, 100), (200, 0, 300, 100))]
    both = "dogs [0, 0, 100, 100], [200, 0, 300, 80]"
    result = score(items, both)  # an IoU of 1 and of 0.8
    assert [result.value(name) for name in ("acc@0.5", "acc@0.75", "acc@0.9")] == [1, 1, 0]
    assert result.value("macc") == pytest.approx(0.7)
    assert score(items, both + ", [0, 0, 100, 100]").value("acc@0.5") == 0
    assert score(items, "dogs [0, 0, 100, 100]").value("acc@0.5") == 0


@pytest.mark.parametrize(
    ("text", "rejects"),
    [
        ("There is no such dog.", True),
        ("none", True),
        ("a dog [0, 0, 0, 0]", True),  # as GroundingME writes it
        ("a dog [1, 2, 9, 9]", False),
        ("a dog [1, 2, 3]", False),  # a box was tried
        ("a dog [2000, 2000, 2100, 2100]", False),
        ("", False),
        (None, False),
    ],
)
def test_an_answer_rejects_if_it_is_a_text_without_a_box(text, rejects):
    result = score([expression("a")], text)
    assert result.value("rejection_acc") == result.value("acc@0.5") == rejects


@pytest.mark.parametrize(
    ("text", "rejects"),
    [
        ('{"bbox_2d": null}', True),
        ('```json\n{"bbox_2d": null}\n```', True),
        ("[]", True),
        ('{"bbox_2d": [0, 0, 0, 0]}', True),
        ('{"bbox_2d": [10, 20', False),
        ('{"bbox_2d": [10, 20, 30, 40]}', False),
        ('{"point_2d": [10, 20]}', False),
        ('{"point_2d": [10, 2000]}', False),
    ],
)
def test_null_in_json_is_a_rejection(text, rejects):
    result = score([expression("a")], text, dialect=get_dialect("qwen3_vl"))
    assert result.value("rejection_acc") == rejects
    assert result.problems["malformed"] == (["a"] if text.endswith("20") or "2000" in text else [])


def test_none_between_the_tags_of_a_box_is_a_rejection():
    text = "<|object_ref_start|>dog<|object_ref_end|><|box_start|>None<|box_end|>"
    assert score([expression("a")], text, dialect=get_dialect("qwen2_vl")).value("rejection_acc") == 1


def random_case(seed, count):
    """Targets and boxes in whole pixels: shifted targets in random order, twice or not at all, and others."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        targets, boxes = [], []
        for _ in range(0 if draw.random() < 0.25 else int(draw.integers(1, 8))):
            (x, y), (w, h) = draw.integers(0, 500, 2), draw.integers(20, 200, 2)
            targets.append((int(x), int(y), int(x + w), int(y + h)))
        for target in targets:
            for _ in range(int(draw.integers(0, 3))):
                x1, y1, x2, y2 = (int(edge) for edge in np.array(target) + draw.integers(-12, 13, 4))
                boxes.append([max(x1, 0), max(y1, 0), x2, y2])
        if draw.random() < 0.3:
            x, y = draw.integers(0, 500, 2)
            boxes.append([int(x), int(y), int(x) + 30, int(y) + 30])
        yield targets, [boxes[k] for k in draw.permutation(len(boxes))]


def test_the_metrics_are_those_that_the_published_evaluators_gave():
    # From `rexseek/metric/recall_precision_densityf1.py` and `refdrone_metric.py`, run on these 60 expressions.
    humanref = {
        "recall@0.5": 0.6381448412698413,
        "recall": 0.4272668650793651,
        "precision@0.5": 0.5265136483886484,
        "precision": 0.3455097101972102,
        "density_f1@0.5": 0.4321208611649788,
        "density_f1": 0.2834740977296124,
        "rejection_acc": 8 / 12,
    }
    refdrone = {
        "instance_f1@0.5": 0.6113744075829384,
        "instance_acc@0.5": 0.45514950166112955,
        "image_f1@0.5": 0.03773584905660377,
        "acc@0.5": 0.15,
    }
    cases = list(random_case(1, 60))
    items = [expression(str(k), *targets) for k, (targets, _) in enumerate(cases)]
    result = score(items, *("; ".join(f"x {box}" for box in boxes) or "none" for _, boxes in cases))
    assert {name: result.value(name) for name in (*humanref, *refdrone)} == pytest.approx(humanref | refdrone)


LINE = {"id": 7, "image": "a.jpg", "sentence": "s", "boxes": [[1, 2, 3, 4]], "width": 10, "height": 20, "group": "g"}


def test_json_lines_are_read(tmp_path, write_lines):
    rows = [LINE, LINE | {"id": "8", "boxes": [], "group": ["g", "h"]}, {k: v for k, v in LINE.items() if k != "group"}]
    rows[2]["id"] = 9
    assert read_multi_expressions(write_lines(tmp_path / "a.jsonl", rows)) == [
        MultiExpression("7", "a.jpg", (10, 20), "s", ((1, 2, 3, 4),), ("g",)),
        MultiExpression("8", "a.jpg", (10, 20), "s", (), ("g", "h")),
        MultiExpression("9", "a.jpg", (10, 20), "s", ((1, 2, 3, 4),)),
    ]


def test_refdrones_file_is_read(tmp_path):
    size = {"file_name": "a.jpg", "width": 960, "height": 540, "dataset_name": "RefDrone"}
    images = [{"id": k, "caption": f"cars {k}", **size} for k in range(3)]
    annotations = [
        {"id": 0, "image_id": 0, "bbox": [1.0, 2.0, 10.0, 20.0], "category_id": "5", "empty": False, "iscrowd": 0},
        {"id": 1, "image_id": 0, "bbox": [5.0, 5.0, 5.0, 5.0], "category_id": "5", "empty": False, "iscrowd": 0},
        {"id": 2, "image_id": 1, "bbox": [0, 0, 0, 0], "category_id": -1, "empty": True, "area": -1, "iscrowd": -1},
    ]
    path = tmp_path / "RefDrone_test_mdetr.json"
    path.write_text(json.dumps({"info": "RefDrone", "images": images, "annotations": annotations, "categories": []}))
    rows = read_multi_expressions(path)
    assert [row.boxes for row in rows] == [((1, 2, 11, 22), (5, 5, 10, 10)), (), ()]
    assert (rows[1].sentence, rows[1].size_wh, rows[1].groups) == ("cars 1", (960, 540), ("RefDrone",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (json.dumps(LINE | {"boxes": [1, 2, 3, 4]}), r"Expected `array`, got `int` - at `\$.boxes"),
        (json.dumps(LINE | {"boxes": [[3, 2, 1, 4]]}), "A box of expression 7 has no area"),
        (json.dumps(LINE | {"width": 0}), r">= 1 - at `\$.width`"),
        (f"{json.dumps(LINE)}\n{json.dumps(LINE)}", "`id` of row 1"),
        ('{"images": [], "annotations": []}', "is empty"),
        ('{"images": [{"id": 1}], "annotations": []}', "in no layout that `multi-rec` reads"),
        ('{"id": "1", "image_name": "a.jpg", "referring": "s", "answer_boxes": []}', "HumanRef's file"),
    ],
)
def test_files_with_other_content_are_refused(content, message, tmp_path):
    path = tmp_path / "expressions.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        MultiRec().load(path)


def test_an_annotation_of_no_expression_is_refused(tmp_path):
    row = {"id": 1, "file_name": "a.jpg", "caption": "s", "width": 9, "height": 9}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [row], "annotations": [{"image_id": 2, "bbox": [0, 0, 1, 1]}]}))
    with pytest.raises(InputError, match="image_id 2"):
        MultiRec().load(path)


def test_questions_can_say_that_there_may_be_no_such_object():
    prompt, questions = MultiRec().questions(ITEMS, DIALECT, "")
    assert questions[0].prompt == "What is the location of the dogs left in the image?"
    prompt, questions = MultiRec(absent="said").questions(ITEMS, get_dialect("qwen3_vl"), "")
    assert prompt == get_dialect("qwen3_vl").rec_prompt + ABSENT
    assert questions[0].prompt.startswith("Locate the dogs, left,")
    with pytest.raises(ConfigError, match=r"lacks \{expression\}"):
        MultiRec(prompt="Find it.").questions(ITEMS, DIALECT, "")


def test_answers_of_which_none_has_a_box_are_noted(tmp_path, write_lines):
    path = write_lines(tmp_path / "a.jsonl", [{"id": item.id, "answer": "at (10, 20)"} for item in ITEMS])
    result = evaluate("multi-rec", ITEMS, predictions=path, dialect="ferret")
    assert result.notes == ("none of the 4 answers has a box that its dialect can read",)
    result = evaluate("multi-rec", ITEMS[:2], predictions=path, dialect="ferret")
    assert result.notes == ("none of the 2 answers has a box that its dialect can read",)
