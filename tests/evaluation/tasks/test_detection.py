"""Detection: reading the files, questions, names of categories, confidences, and hand-worked metrics."""

import json

import numpy as np
import pytest
from PIL import Image

from spr.config import DescriberConfig
from spr.core.errors import ConfigError, InputError
from spr.evaluation.detection.confidence import token_probabilities
from spr.evaluation.detection.synonyms import read_synonyms
from spr.evaluation.predictions import Answers
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.detection import JSON_PROMPT, Detection
from spr.grounding import get_dialect, parse
from spr.grounding.category_names import CategoryNames
from spr.models.fakes import FakeDescriber

DIALECT = get_dialect("ferret")  # numbers from 0 to 1000; the images are 1000 × 1000 px, so they are pixels
CATEGORIES = [{"id": 7, "name": "person"}, {"id": 3, "name": "wine_glass"}, {"id": 5, "name": "dog"}]


def coco(objects, images=2, **more):
    rows = [{"id": k, "file_name": f"{k}.jpg", "width": 1000, "height": 1000} for k in range(images, 0, -1)]
    entries = [
        {"id": k, "image_id": image, "category_id": category, "bbox": box, **flags}
        for k, (image, category, box, flags) in enumerate(objects, start=1)
    ]
    return {"images": rows, "annotations": entries, "categories": CATEGORIES, **more}


# Image 1: two persons and a wine glass. Image 2: a dog.
OBJECTS = [
    (1, 7, [0, 0, 100, 100], {}),
    (1, 7, [200, 0, 100, 100], {}),
    (1, 3, [400, 400, 100, 100], {}),
    (2, 5, [0, 0, 500, 500], {}),
]


@pytest.fixture
def write(tmp_path):
    def call(content, name="instances.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return call


@pytest.fixture
def items(write):
    return Detection().load(write(coco(OBJECTS)))


def score(items, *texts, task=None, **fields):
    answers = Answers(list(texts), {}, DIALECT, raw=list(texts), **fields)
    return (task or Detection()).score(items, answers)


def test_images_and_categories_are_sorted_by_id_and_areas_are_those_of_the_file_or_the_box(write):
    objects = [(2, 3, [0, 0, 10, 20], {"area": 50.5}), (1, 5, [1, 2, 3, 4], {"iscrowd": 1})]
    items = Detection().load(write(coco(objects)))
    assert items.image_ids == ("1", "2")
    assert items.categories == ("wine_glass", "dog", "person")
    assert (items.image.tolist(), items.category.tolist()) == ([1, 0], [0, 1])
    assert items.areas.tolist() == [50.5, 12.0]
    assert (items.crowd.tolist(), items.ignored.tolist(), items.federated) == ([False, True], [False, True], False)


def test_lvis_is_recognised_by_its_negative_categories(write):
    content = coco([(1, 7, [0, 0, 9, 9], {"ignore": 1, "iscrowd": 1}), (2, 3, [0, 0, 9, 9], {})])
    content["images"][0] |= {"neg_category_ids": [5], "not_exhaustive_category_ids": [3]}  # of image 2
    content["images"][1] |= {"neg_category_ids": [], "file_name": "", "coco_url": "http://x/val2017/000001.jpg"}
    for row, letter in zip(content["categories"], "frc", strict=True):
        row["frequency"] = letter
    items = Detection().load(write(content))
    assert items.federated
    assert items.frequencies == ("r", "c", "f")
    assert items.file_names == ("val2017/000001.jpg", "2.jpg")
    assert (items.crowd.tolist(), items.ignored.tolist()) == ([False, False], [True, False])
    # Pairs image * 3 + category: person is category 2 in image 0; wine glass 0 and dog 1 in image 1.
    assert items.checked.tolist() == [0 * 3 + 2, 1 * 3 + 0, 1 * 3 + 1]
    assert items.inexhaustive.tolist() == [1 * 3 + 0]


LINES = '{"id": 1, "image": "a.jpg", "sentence": "s", "box": [1, 2, 3, 4]}\n' * 2
NO_CATEGORIES = {"images": coco([])["images"], "annotations": []}
NAMED_TWICE = coco([]) | {"categories": [{"id": 9, "name": "Wine glass"}, *CATEGORIES]}
CAPTIONED = {
    "images": [{"id": 1, "file_name": "1.jpg", "caption": "a dog", "width": 9, "height": 9}],
    "annotations": [],
}


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ("", ["is empty"]),
        ("x", ["is not COCO's or LVIS's detection annotations", "malformed"]),
        (LINES, ["JSON lines with id, image, sentence, box", "which has width, height as well", "spr evaluate rec"]),
        (
            [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}],
            ["a JSON list: image_id", "--annotations"],
        ),
        (NO_CATEGORIES, ["the keys `images`, `annotations`", "add `categories`"]),
        (CAPTIONED, ["`caption` per image", "multi-rec"]),
        ({"images": [], "annotation": [], "categories": []}, ["name the list `annotations` instead of `annotation`"]),
        (coco([], images=0), ["has no images"]),
        (coco([]) | {"categories": []}, ["has no categories", "instances_val2017.json"]),
        (coco([(1, 8, [0, 0, 1, 1], {})]), ["belongs to no category", "category_id 8"]),
        (coco([(9, 7, [0, 0, 1, 1], {})]), ["belongs to no image", "image_id 9"]),
        (coco([(1, 7, [0, 0, 1], {})]), [r"length 4 - at `$.annotations[0].bbox`"]),
        (coco([]) | {"categories": [*CATEGORIES, {"id": 3, "name": "x"}]}, ["Two categories", "same id"]),
        ("5", ["got:", "int"]),
        (coco([(1, 7, [0, 0, 1, 1], {}), (1, 7, [9, 9, 3, -4], {})]), ["`bbox` of row 1", "[9.0, 9.0, 3.0, -4.0]"]),
        (coco([(1, 7, [0, 0, 1e300, 1e300], {})]), ["`bbox` of row 0"]),
        (coco([(1, 7, [0, 0, 9, 9], {}), (1, 7, [0, 0, 9, 9], {"area": -81})]), ["`area` of row 1", "-81.0"]),
        (coco([(1, 7, [0, 0, 9, 9], {"area": 1e300})]), ["`area` of row 0"]),
        (NAMED_TWICE, ["Two categories", "same name", "'wine_glass' and 'Wine glass'"]),
        (coco([(1, 9, [0, 0, 9, 9], {})]) | {"categories": [{"id": 9, "name": "-"}]}, ["has no words", "'-'"]),
        ([{"image": "a", "question": "b", "boxes": []}], ["questions about points", "spr evaluate pointing"]),
    ],
)
def test_files_of_another_layout_are_refused_with_what_they_are(content, messages, write):
    with pytest.raises(InputError) as error:
        Detection().load(write(content))
    for message in messages:
        assert message in str(error.value)


def test_f1_precision_and_recall_of_a_hand_worked_case(items):
    """Four objects and seven boxes.

    Image 1: person 1 exactly; person 2 with an IoU of 0.8 (a box of 100 × 80 inside 100 × 100); a wine glass shifted by
    50 of 100 px, IoU 50 / 150 = 1/3; a cat, which is no category. Image 2: the dog twice, exactly, and a person who is
    not there.

    Up to 0.8, three boxes are true: precision 3/7, recall 3/4, F1 = 6 / (7 + 4) = 6/11. Above, two are: F1 = 4/11.
    Seven of the ten thresholds are at most 0.8, so the mean F1 is (7 · 6 + 3 · 4) / 110 = 54/110.
    """
    one = "person [0, 0, 100, 100], person [200, 0, 300, 80], wine glass [450, 400, 550, 500], cat [0, 0, 9, 9]"
    two = "a dog [0, 0, 500, 500], the dogs [0, 0, 500, 500], person [600, 600, 700, 700]"
    result = score(items, one, two)
    for name in ("0.5", "0.8"):
        assert result.value(f"f1@{name}") == pytest.approx(6 / 11)
    for name in ("0.85", "0.95"):
        assert result.value(f"f1@{name}") == pytest.approx(4 / 11)
    assert result.value("f1") == pytest.approx(54 / 110)
    assert (result.value("precision@0.5"), result.value("recall@0.5")) == pytest.approx((3 / 7, 3 / 4))
    assert result.value("precision") == pytest.approx((7 * 3 + 3 * 2) / 70)
    assert result.value("recall") == pytest.approx((7 * 3 + 3 * 2) / 40)
    # By image at 0.5: recall 2/3 and 1, precision 2/4 and 1/3; F1 of their means 5/6 and 5/12.
    assert result.value("recall_by_image@0.5") == pytest.approx(5 / 6)
    assert result.value("precision_by_image@0.5") == pytest.approx(5 / 12)
    assert result.value("f1_by_image@0.5") == pytest.approx(2 * (5 / 6) * (5 / 12) / (5 / 6 + 5 / 12))
    # By category at 0.5. Person: 2 of 3 boxes true, the false one last, so the curve reaches recall 1 with precision 1.
    # Dog: the second box is false, but recall 1 is reached with precision 1. Wine glass: 0, left out of the means.
    assert result.value("f1_by_category@0.5") == pytest.approx(1.0)
    assert result.value("AP50") == pytest.approx(2 / 3)
    assert result.problems["category"] == ["1 (cat)"]
    assert result.notes == (
        "1 of 7 boxes (14.3 %) have no name, or one that is not a category: --synonyms gives more names",
    )
    assert result.ids == ("1", "2")
    assert {name: mask.tolist() for name, mask in result.groups.items()} == {"1-5 objects": [True, True]}


def test_boxes_on_a_crowd_and_objects_in_it_do_not_count(write):
    """A crowd region of persons over the left half. Two boxes inside it are ignored; one on the right is false."""
    items = Detection().load(write(coco([(1, 7, [0, 0, 500, 1000], {"iscrowd": 1}), *OBJECTS[2:]])))
    text = (
        "person [0, 0, 100, 100], person [100, 0, 300, 300], person [600, 0, 700, 100], wine glass [400, 400, 500, 500]"
    )
    result = score(items, text, "dog [0, 0, 500, 500]")
    assert result.value("precision@0.5") == pytest.approx(2 / 3)
    assert result.value("recall@0.5") == 1
    # Only the wine glass and the dog are objects, so the category person has no AP.
    assert result.value("AP") == pytest.approx(1)


def test_an_image_without_objects_counts_by_image_as_right_without_a_box(write):
    items = Detection().load(write(coco([(1, 7, [0, 0, 100, 100], {})], images=3)))
    result = score(items, "person [0, 0, 100, 100]", "nothing", "person [0, 0, 100, 100]")
    # Images 1 and 2 count 1, image 3 counts 0.
    assert result.value("recall_by_image@0.5") == pytest.approx(2 / 3)
    assert result.value("precision_by_image@mIoU") == pytest.approx(2 / 3)
    assert result.problems["no_box"] == []  # there is nothing to find in image 2
    assert {name: mask.tolist() for name, mask in result.groups.items()} == {
        "no objects": [False, True, True],
        "1-5 objects": [True, False, False],
    }


def test_an_image_without_objects_is_not_right_without_an_answer(write):
    items = Detection().load(write(coco([(1, 7, [0, 0, 100, 100], {})], images=3)))
    result = score(items, "person [0, 0, 100, 100]", "nothing", None)
    assert result.value("recall_by_image@0.5") == result.value("precision_by_image@mIoU") == pytest.approx(2 / 3)
    # One question per category: of image 2, one of three has no answer.
    task = Detection(per="category")
    texts = ["", "", "[0, 0, 100, 100]", "none", "none", None, "none", "none", "none"]
    result = score(items, *texts, task=task)
    assert result.value("recall_by_image@0.5") == pytest.approx(2 / 3)
    assert result.value("f1@0.5") == 1


def test_images_that_no_question_is_about_do_not_count(write):
    items = Detection().load(write(coco([(1, 7, [0, 0, 100, 100], {}), (2, 7, [0, 0, 100, 100], {})], images=4)))
    result = score(items, "person [0, 0, 100, 100]", "none", task=Detection(categories="present"))
    assert result.ids == ("1", "2")
    assert result.value("recall_by_image@0.5") == result.value("precision_by_image@0.5") == 1 / 2
    with pytest.raises(ConfigError, match="nothing to ask about"):
        Detection(categories="present").ids(Detection().load(write(coco([]))))


def test_answers_of_points_are_noted_and_a_dialect_without_boxes_is_refused(write, tmp_path, write_lines):
    path = write(coco([(1, 7, [0, 0, 100, 100], {})]))
    text = '[{"point_2d": [50, 50], "label": "person"}]'
    answers = write_lines(tmp_path / "a.jsonl", [{"id": k, "answer": text} for k in (1, 2)])
    result = evaluate("detection", path, predictions=answers, dialect="qwen3_vl")
    assert result.notes == ("none of the 2 answers has a box that its dialect can read",)
    with pytest.raises(ConfigError, match=r"detection needs boxes, and the dialect `molmo` has only points"):
        evaluate("detection", path, predictions=answers, dialect="molmo")
    with pytest.raises(ConfigError, match="spr evaluate pointing"):
        evaluate(
            "detection",
            path,
            describer=FakeDescriber(DescriberConfig(backend="fake", dialect="molmo2")),
            images=tmp_path,
        )


def test_lvis_ignores_boxes_of_categories_that_an_image_says_nothing_about(write):
    content = coco([(1, 7, [0, 0, 100, 100], {})], images=1)
    content["images"][0] |= {"neg_category_ids": [5], "not_exhaustive_category_ids": []}
    text = "person [0, 0, 100, 100], wine glass [1, 1, 9, 9], dog [1, 1, 9, 9], cat [1, 1, 9, 9]"
    result = score(Detection().load(write(content)), text)
    # The dog is known not to be there; nothing is known of wine glasses and cats.
    assert result.value("precision@0.5") == 1 / 2
    assert result.problems["category"] == ["1 (cat)"]
    assert result.protocol["rules"] == "LVIS"
    content["images"][0]["not_exhaustive_category_ids"] = [7]
    more = text + ", person [500, 500, 600, 600]"
    assert score(Detection().load(write(content)), more).value("precision@0.5") == 1 / 2


def test_the_answers_order_gives_confidences_and_a_missing_answer_has_no_boxes(write):
    """Two images with a dog each, and two boxes per answer.

    A false box, then a true one; a true box, then a false one. In the answers' order, the scores are false 1, true 1/2
    and true 1, false 1/2: false, true, true, false, as with constant confidences. If both answers begin with the true
    box, then constant confidences give true, false, true, false: precision 1 up to a recall of 1/2 (51 levels), then
    2/3 (50 levels). In the answers' order, both true ones come first.
    """
    items = Detection().load(write(coco([(1, 5, [0, 0, 100, 100], {}), (2, 5, [0, 0, 100, 100], {})])))
    good, bad = "dog [0, 0, 100, 100]", "dog [500, 500, 600, 600]"
    texts = f"{bad}, {good}", f"{good}, {bad}"
    assert score(items, *texts).value("AP") == pytest.approx(2 / 3)
    by_order = score(items, *texts, task=Detection(confidence="order"))
    assert by_order.value("AP") == pytest.approx(2 / 3)
    texts = f"{good}, {bad}", f"{good}, {bad}"
    assert score(items, *texts).value("AP") == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert score(items, *texts, task=Detection(confidence="order")).value("AP") == pytest.approx(1)
    result = score(items, texts[0], None)
    assert (result.value("AR@100"), result.value("recall@0.5")) == (0.5, 0.5)


def test_confidences_come_from_the_scores_of_a_predictions_file(write, tmp_path, write_lines):
    path = write(coco([(1, 5, [0, 0, 100, 100], {}), (2, 5, [0, 0, 100, 100], {})]))
    good, bad = "dog [0, 0, 100, 100]", "dog [500, 500, 600, 600]"
    rows = [{"id": 1, "answer": f"{bad}, {good}", "scores": [0.1, 0.9]}, {"id": 2, "answer": good, "scores": [0.5]}]
    task = Detection(confidence="scores")
    answers = write_lines(tmp_path / "a.jsonl", rows)
    result = evaluate(task, path, predictions=answers, dialect="ferret")
    assert result.value("AP") == pytest.approx(1)
    assert result.protocol["confidence"] == "scores"
    # The number of scores differs: this answer's boxes get the lowest confidence, so its false box comes last but one.
    rows[0]["scores"] = [0.9]
    result = evaluate(task, path, predictions=write_lines(answers, rows), dialect="ferret")
    assert result.problems["confidence"] == ["1"]
    assert result.value("AP") == pytest.approx((51 + 50 * 2 / 3) / 101)
    for row in rows:
        del row["scores"]
    with pytest.raises(ConfigError, match="needs the field `scores`"):
        evaluate(task, path, predictions=write_lines(answers, rows), dialect="ferret")
    with pytest.raises(ConfigError, match="logprobs: true"):
        evaluate(Detection(confidence="token-probability"), path, predictions=answers, dialect="ferret")
    with pytest.raises(ConfigError, match="only for --predictions"):
        evaluate(task, path, describer=FakeDescriber(), images=tmp_path)


def test_the_probability_of_a_box_is_the_geometric_mean_of_its_tokens(write, tmp_path, write_lines):
    raw = "<think>hm</think>a dog [100, 0, 200, 50] and [7, 7, 9, 9]"
    pieces = [
        "<think>",
        "hm",
        "</think>",
        "a dog",
        " [",
        "100",
        ",",
        " 0,",
        " 20",
        "0",
        ", 50",
        "]",
        " and [7, 7, 9, 9]",
        ".",
    ]
    logprobs = [-9, -9, -9, -9, -9, -0.1, -9, -0.2, -0.3, -0.4, -0.5, -9, -1.0, -9]
    tokens = [{"token": piece, "logprob": value} for piece, value in zip(pieces, logprobs, strict=True)]
    grounded = parse(raw.split("</think>")[1], DIALECT, (1000, 1000))
    found = token_probabilities(raw, {"content": tokens}, grounded, DIALECT, (1000, 1000))
    assert found == pytest.approx([np.exp(-(0.1 + 0.2 + 0.3 + 0.4 + 0.5) / 5), np.exp(-1)])
    assert token_probabilities(raw, tokens[1:], grounded, DIALECT, (1000, 1000)) is None
    assert token_probabilities(raw, "text", grounded, DIALECT, (1000, 1000)) is None
    for wrong in (1e4, float("nan"), 10**400):
        changed = [*tokens[:5], {"token": "100", "logprob": wrong}, *tokens[6:]]
        assert token_probabilities(raw, changed, grounded, DIALECT, (1000, 1000)) is None
    path = write(coco([(1, 5, [100, 0, 100, 50], {})], images=1))
    answers = write_lines(tmp_path / "a.jsonl", [{"id": 1, "answer": raw, "logprobs": tokens}])
    result = evaluate(Detection(confidence="token-probability"), path, predictions=answers, dialect="ferret")
    assert (result.value("AP"), result.problems["confidence"]) == (pytest.approx(1), [])


def test_boxes_without_a_confidence_come_after_those_with_negative_scores(write, tmp_path, write_lines):
    """A false box without a score and a true one with the score -3: the true one comes first, so AP is 1."""
    path = write(coco([(2, 5, [0, 0, 100, 100], {})]))
    lines = [
        {"id": 1, "answer": "dog [500, 500, 600, 600]", "scores": [10**400]},
        {"id": 2, "answer": "dog [0, 0, 100, 100]", "scores": [-3]},
    ]
    answers = write_lines(tmp_path / "a.jsonl", lines)
    result = evaluate(Detection(confidence="scores"), path, predictions=answers, dialect="ferret")
    assert result.value("AP") == pytest.approx(1)
    assert result.problems["confidence"] == ["1"]
    assert result.notes == (
        "the boxes of 1 of 2 answers (50.0 %) can't be given their confidences, which AP and AR need",
    )


@pytest.mark.parametrize(
    ("task", "ids", "first"),
    [
        (Detection(), ["1", "2", "3"], "wine glass, dog, person"),
        (Detection(categories="present"), ["1", "2"], "wine glass, person"),
        (Detection(per="category", categories="present"), ["1#wine_glass", "1#person", "2#dog"], "wine glass"),
        (Detection(per="category"), [f"{k}#{n}" for k in "123" for n in ("wine_glass", "dog", "person")], "wine glass"),
    ],
)
def test_questions_name_the_categories(task, ids, first, write):
    items = task.load(write(coco(OBJECTS, images=3)))
    qwen = get_dialect("qwen3_vl")
    prompt, questions = task.questions(items, qwen, "")
    assert (
        list(task.ids(items))
        == [question.id for question in questions]
        == [item.id for item in task.about(items)]
        == ids
    )
    assert prompt == JSON_PROMPT
    assert questions[0].prompt == JSON_PROMPT.replace("{categories}", first)
    assert questions[0].file_name == "1.jpg"
    _, questions = task.questions(items, get_dialect("paligemma"), "")
    assert questions[0].prompt == "detect " + first.replace(", ", " ; ")


def test_all_boxes_of_an_answer_about_one_category_are_of_it(items):
    task = Detection(per="category", categories="present")
    result = score(items, "[400, 400, 500, 500]", "a man [0, 0, 100, 100] and [200, 0, 300, 100]", "no dogs", task=task)
    assert (result.value("recall@0.5"), result.value("precision@0.5")) == (3 / 4, 1)
    assert result.problems["category"] == []
    assert [item.question for item in task.about(items)] == ["wine glass", "person", "dog"]
    assert result.problems["no_box"] == ["2#dog"]
    assert (result.ids, result.value("AP")) == (("1", "2"), pytest.approx(2 / 3))


def test_a_prompt_needs_its_placeholder(items):
    with pytest.raises(ConfigError, match=r"lacks \{categories\}"):
        Detection(prompt="Find all.").questions(items, DIALECT, "")
    with pytest.raises(ConfigError, match=r"constant \| order"):
        Detection(confidence="random")


def test_names_are_compared_as_words_and_synonyms_are_added(tmp_path):
    categories = ["person", "wine_glass", "bow_(weapon)", "bow_(ribbon)", "Cabinet/shelf", "scissors", "bus"]
    names = CategoryNames(categories, {"person": ("man", "Human being")})
    expected = {
        "Person": 0, "persons": 0, "a person": 0, "human beings": 0, "the man": 0, "wine-glass": -1, "Wine Glasses": 1,
        "bow": -1, "bow (ribbon)": 3, "shelf": 4, "cabinet/shelf": 4, "scissors": 5, "scissor": 5, "buses": 6, "": -1,
        "the": -1, "woman": -1, "wine glass.": 1, "personal": -1,
    }  # fmt: skip
    assert {name: names.find(name) for name in expected} == expected
    assert names.readable == [
        "person",
        "wine glass",
        "bow (weapon)",
        "bow (ribbon)",
        "Cabinet/shelf",
        "scissors",
        "bus",
    ]
    path = tmp_path / "synonyms.json"
    path.write_text('{"person": ["man", "woman"]}')
    assert read_synonyms(path, categories) == {"person": ("man", "woman")}
    path.write_text('{"persn": ["man"]}')
    with pytest.raises(InputError, match="did you mean `person`"):
        read_synonyms(path, categories)
    path.write_text('["man"]')
    with pytest.raises(InputError, match="not a file of synonyms"):
        read_synonyms(path, categories)


def test_synonyms_change_what_an_answer_finds(items, tmp_path):
    path = tmp_path / "synonyms.json"
    path.write_text('{"dog": ["puppy"]}')
    texts = "person [0, 0, 100, 100], person [200, 0, 300, 100]", "puppy [0, 0, 500, 500]"
    assert score(items, *texts).value("recall@0.5") == 2 / 4
    result = score(items, *texts, task=Detection(synonyms=path))
    assert (result.value("recall@0.5"), result.notes) == (3 / 4, ())
    assert result.protocol["names"].endswith("a synonym of synonyms.json")


def test_a_model_is_asked_once_per_image_and_its_file_gives_the_same_figures(write, tmp_path):
    for k in (1, 2, 3):
        Image.new("RGB", (1000, 1000)).save(tmp_path / f"{k}.jpg")
    path = write(coco(OBJECTS, images=3))
    result = evaluate("detection", path, describer=FakeDescriber(), images=tmp_path)
    assert [line.id for line in result.predictions] == ["1", "2", "3"]
    assert "wine glass, dog, person" in result.predictions[0].prompt
    assert (result.protocol["asked"], result.protocol["model"]) == ("all categories, one question per image", "fake")
    written = result.write(tmp_path / "out.json")
    again = evaluate("detection", path, predictions=tmp_path / written["answers"])
    assert again.metrics == result.metrics


def test_the_figures_by_image_are_those_that_rex_omnis_evaluator_gave(write):
    # From `calculate_detection_metrics` of `evaluation/metrics/other_metric.py`, run on these 200 dense images.
    draw = np.random.default_rng(3)
    objects, texts = [], []
    for image in range(200):
        truth, boxes = [], []
        for _ in range(int(draw.integers(0, 30))):
            (x, y), (w, h) = draw.integers(0, 900, 2), draw.integers(10, 100, 2)
            truth.append([int(x), int(y), int(x + w), int(y + h)])
        for box in truth:
            for _ in range(int(draw.integers(0, 2) + (draw.random() < 0.1))):
                x1, y1, x2, y2 = (int(edge) for edge in np.array(box) + draw.integers(-5, 6, 4))
                boxes.append([max(x1, 0), max(y1, 0), min(x2, 1000), min(y2, 1000)])
        texts.append("; ".join(f"dog {box}" for box in boxes) or "none")
        objects += [(image + 1, 5, [x1, y1, x2 - x1, y2 - y1], {}) for x1, y1, x2, y2 in truth]
    result = score(Detection().load(write(coco(objects, images=200))), *texts)
    expected = {
        "recall_by_image@0.5": 0.5363345515780287,
        "recall_by_image@0.95": 0.04183787333356299,
        "recall_by_image@mIoU": 0.34861396372505027,
        "precision_by_image@0.5": 0.838782520884688,
        "precision_by_image@0.95": 0.04283199643493761,
        "precision_by_image@mIoU": 0.5366036667752613,
        "f1_by_image@0.5": 0.6542978139374017,
        "f1_by_image@0.95": 0.042329098801453725,
        "f1_by_image@mIoU": 0.4224163825186727,
    }
    assert {name: result.value(name) for name in expected} == pytest.approx(expected, abs=1e-9)
