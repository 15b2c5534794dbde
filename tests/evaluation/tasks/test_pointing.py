"""Pointing: the share of points in the target, Point-Bench's success, and PixMo-Points' precision and recall."""

import numpy as np
import pytest
from PIL import Image

from benchmark_samples import SAMPLES, write_lines
from spr.core.errors import InputError
from spr.evaluation.points import BoxTarget, MaskTarget, PointItem, PointItems, mask_of
from spr.evaluation.predictions import Answers
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.pointing import Pointing
from spr.grounding import get_dialect
from spr.models.protocols import Answer

MOLMO = get_dialect("molmo")  # points in percent of the image's sides
BOXES = get_dialect("llava_onevision")


def item(target, count=None, places=None, name="1"):
    return PointItem(name, "a.png", (200, 100), "Where?", target, count=count, places=places)


def score(items, texts, dialect=MOLMO, **options):
    return Pointing(**options).score(PointItems(items), Answers(texts, dialect=dialect))


def points(*places):
    """An answer with points, in percent."""
    if len(places) == 1:
        ((x, y),) = places
        return f'<point x="{x}" y="{y}" alt="cup">cup</point>'
    numbers = " ".join(f'x{k}="{x}" y{k}="{y}"' for k, (x, y) in enumerate(places, start=1))
    return f'<points {numbers} alt="cup">cup</points>'


BOX = BoxTarget(((20, 10, 60, 50),))  # 10 to 30 % of the width, 10 to 50 % of the height


@pytest.mark.parametrize(
    ("text", "accuracy", "success"),
    [
        (points((20, 20)), 1, 1),
        (points((50, 20)), 0, 0),
        # Three of four lie in the box, and the first one does.
        (points((20, 20), (29, 49), (11, 11), (80, 80)), 0.75, 1),
        # One of two lies in the box, but not the first.
        (points((80, 80), (20, 20)), 0.5, 0),
        # Both edges belong to the box.
        (points((10, 10), (30, 50)), 1, 1),
        # A point out of the range counts as one that is wrong.
        (points((20, 20), (120, 20)), 0.5, 1),
        (points((120, 20), (20, 20)), 0.5, 0),
        ("I can't see it.", 0, 0),
        (None, 0, 0),
    ],
)
def test_points_in_a_box_are_counted(text, accuracy, success):
    result = score([item(BOX)], [text])
    assert result.value("accuracy") == pytest.approx(accuracy)
    assert result.value("success") == success
    assert result.problems["no_point"] == (["1"] if text == "I can't see it." else [])
    assert "precision" not in result.shares


@pytest.mark.parametrize(
    ("text", "success"),
    [
        (points((20, 20), (25, 25)), 1),
        (points((20, 20)), 0),
        (points((20, 20), (25, 25), (26, 26)), 0),
        (points((20, 20), (80, 80)), 0),
        (points((20, 20), (25, 25), (120, 25)), 0),
    ],
)
def test_where_objects_are_counted_all_points_must_be_right_and_as_many(text, success):
    assert score([item(BOX, count=2)], [text]).value("success") == success


def test_nothing_to_point_at_is_right_without_a_point():
    nothing = [item(BoxTarget(()), places=(), name=name) for name in "abc"]
    result = score(nothing, ["There is none.", points((20, 20)), None])
    for metric in ("accuracy", "success", "precision", "recall", "f1"):
        assert result.value(metric) == pytest.approx(1 / 3)
    assert result.problems["no_point"] == []
    # Coordinates that can't be read don't say that there is none.
    result = score(nothing, ["There is none.", points((120, 20)), '<points x1="20" y1="'])
    for metric in ("accuracy", "success", "precision", "recall", "f1"):
        assert result.value(metric) == pytest.approx(1 / 3)


def test_the_centre_of_a_box_is_a_point_unless_boxes_are_ignored():
    texts = ["[0.10, 0.10, 0.30, 0.50]"]  # its centre is (40, 30)
    assert score([item(BOX)], texts, BOXES).value("accuracy") == 1
    ignored = score([item(BOX)], texts, BOXES, boxes="ignore")
    assert ignored.value("accuracy") == 0
    assert ignored.problems["no_point"] == ["1"]
    assert "boxes are ignored" in ignored.protocol["points"]


def test_a_point_lies_in_the_pixel_of_its_coordinates_rounded_down():
    mask = np.zeros((100, 200), dtype=bool)
    mask[50, 100] = True
    target = MaskTarget(lambda: [mask])
    found = target.holds([(100.0, 50.0), (100.9, 50.9), (99.9, 50.0), (101.0, 50.0), (200.0, 50.0), (-0.1, 50.0)])
    assert found.tolist() == [[True, True, False, False, False, False]]


def test_points_are_assigned_to_objects_by_distance_and_must_lie_in_them():
    # Two objects at (20, 10) and (180, 90), as wide as 20 px. The first point lies in the first object; the second one
    # is nearer to the second object, but outside; the third one lies in the first object, which is taken.
    target = BoxTarget(((10, 0, 30, 20), (170, 80, 190, 100)))
    result = score([item(target, places=((20, 10), (180, 90)))], [points((10, 10), (70, 70), (12, 12))])
    assert result.value("precision") == pytest.approx(1 / 3)
    assert result.value("recall") == pytest.approx(1 / 2)
    assert result.value("f1") == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    # A point out of the range is one more that is wrong: 1 of 4.
    result = score([item(target, places=((20, 10), (180, 90)))], [points((10, 10), (70, 70), (12, 12), (120, 5))])
    assert result.value("precision") == pytest.approx(1 / 4)
    assert result.value("f1") == pytest.approx(2 / 6)
    # Questions whose objects are not counted one by one don't count for these metrics.
    both = score([item(target, places=((20, 10), (180, 90))), item(BOX, name="2")], [points((10, 10)), None])
    assert both.value("recall") == pytest.approx(1 / 2)
    assert both.value("accuracy") == pytest.approx(1 / 2)


class Asked:
    """A model that keeps the questions and points at the centre."""

    name = "asked"

    def __init__(self, dialect):
        self.dialect, self.prompts = dialect, []

    def describe(self, requests):
        for request in requests:
            self.prompts.append(request.prompt)
            yield Answer(points((50, 50)))


def test_labels_are_asked_about_in_the_wording_of_the_family(tmp_path):
    sample = SAMPLES["pixmo-points"](tmp_path)
    task = Pointing()
    items = task.load(sample.path)
    assert items.rows[0].file_name == "0" * 64 + ".png"
    assert items.rows[1].size_wh == (100, 200)
    prompt, questions = task.questions(items, MOLMO, "")
    assert [question.prompt for question in questions] == [
        prompt.replace("{expression}", row.label) for row in items.rows
    ]
    assert prompt == MOLMO.point_prompt
    # A family without its own question, and a question of the user's.
    assert task.questions(items, BOXES, "")[1][0].prompt == "Point to cup."
    assert Pointing(prompt="{question} Now!").questions(items, MOLMO, "")[1][0].prompt == "Point to cup. Now!"


def test_answers_without_any_point_are_noted(tmp_path):
    sample = SAMPLES["pointing-lines"](tmp_path)
    answers = write_lines(tmp_path / "answers.jsonl", [{"id": k, "answer": "there"} for k in "ab"])
    result = evaluate("pointing", sample.path, predictions=answers, dialect="molmo")
    assert result.notes == ("none of the 2 answers has a point that its dialect can read",)


def test_ids_are_not_repeated(tmp_path):
    row = {"id": 1, "image": "a.png", "question": "?", "boxes": [], "width": 9, "height": 9}
    with pytest.raises(InputError, match="`id` of row 1"):
        Pointing().load(write_lines(tmp_path / "a.jsonl", [row, row]))
    with pytest.raises(InputError, match="same id"):
        PointItems([item(BOX), item(BOX)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": [[0, 0, 5, 5], [9, 0, 3, 5]]}, r"A box of question 1 has no area[\s\S]*\[9\.0, 0\.0, 3\.0, 5\.0\]"),
        ({"boxes": [[0, 0, 1e300, 5]]}, "has no area"),
        ({"count": -1}, r"Expected `int` >= 0"),
    ],
)
def test_rows_that_no_answer_can_meet_are_refused(change, message, tmp_path):
    row = {"id": 1, "image": "a.png", "question": "?", "boxes": [], "width": 9, "height": 9}
    with pytest.raises(InputError, match=message):
        Pointing().load(write_lines(tmp_path / "a.jsonl", [row | change]))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "LA", "RGBA", "P"])
def test_a_mask_is_where_a_channel_is_bright_whatever_the_images_mode(mode):
    image = Image.new("L", (4, 2), 0)
    image.paste(255, (1, 0, 3, 1))
    # A transparent pixel has its colour.
    image = image.convert("RGB").convert(mode) if mode != "RGBA" else Image.merge("RGBA", [image] * 3 + [image])
    assert mask_of(image).tolist() == [[False, True, True, False], [False] * 4]
