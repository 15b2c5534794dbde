"""Small cases whose expected results come from the published evaluators' own code.

Ferret's ``eval_refexp.py``, ``eval_flickr_entities.py``, ``eval_lvis.py`` and ``eval_pope.py`` (ml-ferret), POPE's
``evaluate.py`` and lmms-eval's ``pope/utils.py`` were run on these inputs; the last column is their output.
"""

import json

import numpy as np
import pytest

from spr.evaluation.expressions import Expressions
from spr.evaluation.predictions import Answers
from spr.evaluation.tasks.phrase_grounding import PhraseGrounding
from spr.evaluation.tasks.pope import Pope, PopeItems, says_yes
from spr.evaluation.tasks.rec import THRESHOLDS, Rec
from spr.evaluation.tasks.referring import Referring, ReferringItem, is_right
from spr.grounding import get_dialect

FERRET = get_dialect("ferret")

# Dataset, width, height, xywh, answer, whether right at IoU 0.5, 0.6, 0.7, 0.8, 0.9.
REFEXP = [
    ("refcoco", 640, 480, [64, 72, 128, 24], "the dog [100, 150, 300, 200].", [1, 1, 1, 1, 1]),
    ("refcoco", 640, 480, [64, 72, 128, 24], "[100, 150, 300, 200]", [1, 1, 1, 1, 1]),
    ("refcoco", 640, 480, [64, 72, 128, 24], "a cat [100, 150, 300, 200].", [1, 1, 1, 1, 1]),
    ("refcoco", 640, 480, [64, 72, 128, 24], "the dog [100, 150, 200, 200].", [1, 0, 0, 0, 0]),
    ("refcoco", 640, 480, [64, 72, 128, 24], "a [0, 0, 50, 50], the dog [100, 150, 300, 200].", [0, 0, 0, 0, 0]),
    ("refcoco", 640, 480, [64, 72, 128, 24], "the dog [100, 150, 300, 200], a [0, 0, 50, 50].", [1, 1, 1, 1, 1]),
    ("refcoco+", 640, 480, [64, 72, 128, 24], "the dog is on the left", [0, 0, 0, 0, 0]),
    ("refcoco+", 640, 480, [64, 72, 128, 24], "", [0, 0, 0, 0, 0]),
    ("refcoco+", 640, 480, [64, 72, 128, 24], "the dog [100, 150, 300, 200] and [x].", [0, 0, 0, 0, 0]),
    ("refcoco+", 640, 480, [64, 72, 128, 24], "the dog [100, 150, 300, 200", [0, 0, 0, 0, 0]),
    ("refcoco+", 640, 480, [64, 72, 128, 24], "the dog [100.0, 150.0, 300.0, 200.0]", [0, 0, 0, 0, 0]),
    ("refcoco+", 640, 480, [64, 72, 128, 24], "the dog [100, 150, 300, 200, 7]", [1, 1, 1, 1, 1]),
    ("refcoco+", 640, 480, [64, 72, 128, 24], "the dog [300, 200, 100, 150]", [0, 0, 0, 0, 0]),
    ("refcocog", 640, 480, [64, 72, 128, 24], "the dog [ 100 ,150,  300 , 200 ] . ", [1, 1, 1, 1, 1]),
    ("refcocog", 333, 501, [33.3, 75.15, 66.6, 25.05], "the dog [100, 150, 300, 200].", [1, 1, 1, 1, 1]),
    ("refcocog", 333, 501, [33, 75, 66, 25], "the dog [100, 150, 300, 200].", [1, 1, 1, 1, 1]),
    ("refcocog", 640, 480, [600, 400, 40, 80], "the dog [930, 830, 1200, 1100].", [0, 0, 0, 0, 0]),
    ("refcocog", 640, 480, [600, 400, 40, 80], "the dog [930, 830, 999, 999].", [1, 1, 1, 1, 0]),
    ("refcocog", 20, 20, [2, 3, 4, 1], "the dog [100, 150, 300, 200].", [1, 1, 1, 1, 1]),
    ("refcocog", 20, 20, [2, 3, 4, 2], "the dog [149, 199, 349, 299].", [1, 1, 1, 1, 1]),
    ("refcoco", 100, 100, [0, 0, 10, 10], "a [0, 0, 100, 50]", [1, 0, 0, 0, 0]),
    ("refcoco", 100, 100, [0, 0, 10, 10], "a [0, 0, 100, 59]", [1, 0, 0, 0, 0]),
    ("refcoco", 100, 100, [0, 0, 10, 10], "a [0, 0, 100, 60]", [1, 1, 0, 0, 0]),
    ("refcoco", 100, 100, [0, 0, 10, 10], "a [0, 0, 100, 70]", [1, 1, 1, 0, 0]),
    ("refcoco", 100, 100, [0, 0, 10, 10], "a [0, 0, 100, 80]", [1, 1, 1, 1, 0]),
    ("refcoco", 100, 100, [0, 0, 10, 10], "a [0, 0, 100, 90]", [1, 1, 1, 1, 1]),
    ("refcoco", 100, 100, [0, 0, 10, 10], "a [0, 0, 100, 99]", [1, 1, 1, 1, 1]),
    ("refcoco", 100, 100, [29, 29, 28, 28], "a [290, 290, 570, 570]", [1, 1, 1, 1, 1]),
    ("refcoco", 100, 100, [0, 0, 0.5, 0.5], "a [0, 0, 0, 0]", [0, 0, 0, 0, 0]),
    ("refcoco", 100, 100, [0, 0, 10, 10], "] a [0, 0, 100, 100]", [0, 0, 0, 0, 0]),
]


def expressions() -> Expressions:
    boxes = [[x, y, x + w, y + h] for _, _, _, (x, y, w, h), _, _ in REFEXP]
    count = len(REFEXP)
    return Expressions(
        ids=tuple(map(str, range(count))),
        file_names=tuple(map(str, range(count))),
        sentences=("the dog",) * count,
        boxes_xyxy=np.array(boxes, dtype=np.float64),
        sizes_wh=tuple((row[1], row[2]) for row in REFEXP),
        datasets=tuple(row[0] for row in REFEXP),
    )


def test_referring_expressions_are_right_where_ferrets_evaluator_says_so():
    result = Rec(protocol="ferret").score(expressions(), Answers([row[4] for row in REFEXP], dialect=FERRET))
    right = np.stack([result.shares[f"acc@{threshold}"].parts for threshold in THRESHOLDS], axis=1)
    for row, ours in zip(REFEXP, right.tolist(), strict=True):
        assert ours == row[5], row
    # The output of the official evaluator for the whole file, by dataset at IoU 0.5 and 0.9.
    whole = {"refcoco": (0.8125, 0.4375), "refcoco+": (1 / 7, 1 / 7), "refcocog": (6 / 7, 5 / 7)}
    for name, (half, most) in whole.items():
        assert result.value("acc@0.5", name) == pytest.approx(half)
        assert result.value("acc@0.9", name) == pytest.approx(most)


def test_the_spr_protocol_differs_from_ferrets_in_these_cases_only():
    # Kept: a well-formed box beside a malformed bracket, decimals, and a box after a stray bracket. Refused: five
    # numbers. Sorted: swapped corners. Clipped: what leaves the image, here to (595.2, 398.4, 640, 480), whose IoU is
    # 3200 / (44.8 × 81.6) = 0.875. Edges are not rounded to whole pixels: (2.98, 3.98, 6.98, 5.98) is no longer
    # (2, 3, 6, 5), and shares 3.02 × 1.02 px² of 8 with it.
    result = Rec().score(expressions(), Answers([row[4] for row in REFEXP], dialect=FERRET))
    right = np.stack([result.shares[f"acc@{threshold}"].parts for threshold in THRESHOLDS], axis=1)
    differ = {row[4]: ours for row, ours in zip(REFEXP, right.tolist(), strict=True) if ours != row[5]}
    assert differ == {
        "the dog [100, 150, 300, 200] and [x].": [1, 1, 1, 1, 1],
        "the dog [100.0, 150.0, 300.0, 200.0]": [1, 1, 1, 1, 1],
        "the dog [100, 150, 300, 200, 7]": [0, 0, 0, 0, 0],
        "the dog [300, 200, 100, 150]": [1, 1, 1, 1, 1],
        "the dog [930, 830, 1200, 1100].": [1, 1, 1, 1, 0],
        "the dog [149, 199, 349, 299].": [0, 0, 0, 0, 0],
        "] a [0, 0, 100, 100]": [1, 1, 1, 1, 1],
    }


SIZES = {"1": (500, 400), "2": (333, 500)}
BOXES = {
    "1": {
        "10": [(10, 20, 110, 220)],
        "11": [(200, 50, 300, 150), (300, 50, 400, 150)],
        "12": [(0, 0, 500, 400)],
    },
    "2": {"20": [(33, 75, 99, 100)], "21": [(100, 100, 200, 200)]},
}
SENTENCES = {
    "1": [
        "[/EN#10/people A man] in [/EN#13/clothing a hat] holds [/EN#11/animals/other two dogs] .",
        "[/EN#10/people The man] and [/EN#10/people the man] at [/EN#12/scene home] .",
    ],
    "2": ["[/EN#20/people A boy 's friend] with [/EN#21/other a ball] ."],
}
CAPTIONS = {
    ("1", 0): ("A man in a hat holds two dogs .", ["A man", "two dogs"]),
    ("1", 1): ("The man and the man at home .", ["The man", "home"]),
    ("2", 0): ("A boy 's friend with a ball .", ["A boy 's friend", "a ball"]),
}
MAN = "a man [20, 50, 220, 550]"
SIX = ", ".join(f"a man [{k}, {k}, {k + 10}, {k + 10}]" for k in range(5)) + f", {MAN}."
# Image, sentence, answer, recall at 1, 5, 10 and upper bound, recall at 1 by category: merged boxes, then any box.
FLICKR = [
    ("1", 0, f"{MAN}, two dogs [400, 125, 580, 375].", [0.5] * 4, {"people": 1, "animals": 0, "other": 0}, [1.0] * 4),
    (
        "1",
        0,
        f"{MAN}, two dogs [450, 125, 750, 375], two dogs [600, 125, 790, 370].",
        [1.0] * 4,
        {"people": 1, "animals": 1, "other": 1},
        [0.5, 1.0, 1.0, 1.0],
    ),
    ("1", 0, f"{MAN}, two dogs [400, 125, 800, 375].", [1.0] * 4, {"people": 1, "animals": 1, "other": 1}, [1.0] * 4),
    ("1", 0, f"{MAN}, two dogs [400, 125, 600, 375].", [1.0] * 4, {"people": 1, "animals": 1, "other": 1}, [1.0] * 4),
    ("1", 0, SIX, [0, 0, 0.5, 0.5], {"people": 0, "animals": 0, "other": 0}, [0, 0, 0.5, 0.5]),
    (
        "1",
        0,
        "A MAN, [20, 50, 220, 550]. Two  dogs! [400, 125, 800, 375]",
        [1.0] * 4,
        {"people": 1, "animals": 1, "other": 1},
        [1.0] * 4,
    ),
    (
        "1",
        0,
        f"{MAN} and two dogs [400, 125, 800, 375].",
        [0.5] * 4,
        {"people": 1, "animals": 0, "other": 0},
        [0.5] * 4,
    ),
    ("1", 0, "the man [20, 50, 220, 550].", [0] * 4, {"people": 0, "animals": 0, "other": 0}, [0] * 4),
    ("1", 0, f"{MAN}, two dogs [400, 125, x].", [0] * 4, {"people": 0, "animals": 0, "other": 0}, [0] * 4),
    ("1", 0, "", [0] * 4, {"people": 0, "animals": 0, "other": 0}, [0] * 4),
    ("1", 1, "the man [20, 50, 120, 550], home [0, 0, 999, 999].", [1.0] * 4, {"people": 1, "scene": 1}, [1.0] * 4),
    ("1", 1, "the man [20, 50, 119, 550], home [0, 0, 700, 700].", [0] * 4, {"people": 0, "scene": 0}, [0] * 4),
    (
        "2",
        0,
        "a boy's friend [100, 150, 300, 200], a ball [301, 201, 602, 401].",
        [1.0] * 4,
        {"people": 1, "other": 1},
        [1.0] * 4,
    ),
    (
        "2",
        0,
        "a boy 's friend [100, 150, 300, 200], a ball [301, 200, 450, 400].",
        [0.5] * 4,
        {"people": 1, "other": 0},
        [0.5] * 4,
    ),
]


@pytest.fixture(scope="module")
def entities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flickr30k")
    for name in ("Annotations", "Sentences"):
        (folder / name).mkdir()
    for image, (width, height) in SIZES.items():
        items = "".join(
            f"<object><name>{key}</name><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin><xmax>{b[2]}</xmax>"
            f"<ymax>{b[3]}</ymax></bndbox></object>"
            for key, boxes in BOXES[image].items()
            for b in boxes
        )
        nobox = "<object><name>13</name><scene>0</scene><nobndbox>1</nobndbox></object>"
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{image}.xml").write_text(f"<annotation>{size}{items}{nobox}</annotation>")
        (folder / "Sentences" / f"{image}.txt").write_text("\n".join(SENTENCES[image]) + "\n")
    return folder


def mdetr_row(image, number):
    caption, phrases = CAPTIONS[image, number]
    spans = [[[caption.index(phrase), caption.index(phrase) + len(phrase)]] for phrase in phrases]
    width, height = SIZES[image]
    size = {"width": width, "height": height, "file_name": f"{image}.jpg", "caption": caption}
    return {"tokens_positive_eval": spans, "original_img_id": int(image), "sentence_id": number, **size}


@pytest.mark.parametrize("boxes", ["merged", "any"])
@pytest.mark.parametrize(("image", "number", "answer", "merged", "categories", "any_box"), FLICKR)
def test_phrases_are_found_where_ferrets_evaluator_says_so(
    image, number, answer, merged, categories, any_box, boxes, entities, tmp_path
):
    (tmp_path / "a.json").write_text(json.dumps({"images": [mdetr_row(image, number)]}))
    task = PhraseGrounding(entities=entities, boxes=boxes, protocol="ferret")
    result = task.score(task.load(tmp_path / "a.json"), Answers([answer], dialect=FERRET))
    assert [share.value() for share in result.shares.values()] == (merged if boxes == "merged" else any_box)
    if boxes == "merged":
        assert {name: result.value("recall@1", name) for name in result.groups} == categories


LVIS = [
    ("dog", [], "It is a dog.", 1),
    ("dog", [], "dog", 1),
    ("dog", [], "It is a Dog.", 0),
    ("dog", [], "It is not a dog.", 0),
    ("dog", ["puppy"], "a puppy", 1),
    ("wine_glass", [], "a wine glass", 1),
    ("wine_glass", [], "a wine_glass", 0),
    ("dog", [], "It is a cat, not a dog.", 0),
    ("dog", [], "It is not a cat, it is a dog.", 1),
    ("dog", [], "There is no dog here, only a cat.", 0),
    ("dog", [], "It is nothing like a dog.", 0),
    ("dog", [], "It is not a dog", 1),  # nothing ends the denial
    ("cat", [], "a hotdog, a cathedral", 1),
    ("ball", ["ball_(round)"], "it is round", 1),
    ("ball", ["sphere_(toy)"], "a toy", 1),
    ("dog", [], "", 0),
    ("bath_mat ", [], "a bath mat.", 1),
    ("dog", [], "I notice a dog.", 0),
    ("dog", [], "I see northern dog.", 0),
    ("earring", ["ear ring"], "an ear ring no, not that", 1),
]


@pytest.mark.parametrize(("name", "synonyms", "text", "right"), LVIS)
def test_lvis_answers_are_right_where_ferrets_evaluator_says_so(name, synonyms, text, right):
    assert is_right(text, name, synonyms) == bool(right)


def test_lvis_accuracy_is_the_share_of_right_answers():
    items = [
        ReferringItem(str(k), "1.jpg", (9, 9), (0, 0, 1, 1), None, name, tuple(synonyms), "other")
        for k, (name, synonyms, _, _) in enumerate(LVIS)
    ]
    result = Referring().score(items, Answers([text for _, _, text, _ in LVIS]))
    assert result.value("accuracy") == sum(row[3] for row in LVIS) / len(LVIS)


POPE = [
    ("Yes, there is.", "yes"),
    ("No, there isn't.", "no"),
    ("no", "no"),
    ("No.", "no"),
    ("There is not a dog.", "no"),
    ("There is no dog.", "no"),
    ("Yes. There is no cat.", "yes"),
    ("NO", "yes"),
    ("Not at all", "yes"),
    ("There isn't", "yes"),
    ("nothing", "yes"),
    ("no,dog", "yes"),
    ("", "yes"),
    ("yes", "yes"),
    ("I do not know. Yes", "no"),
    ("Yes there is not", "no"),
    ("No\nthere", "yes"),
    ("  no", "no"),
    ("A dog.No", "yes"),
]


@pytest.mark.parametrize(("text", "read"), POPE)
def test_the_ferret_parser_reads_yes_where_popes_own_evaluator_does(text, read):
    assert says_yes(text, "ferret") == (read == "yes")


def test_the_metrics_of_pope_equal_those_of_its_own_evaluator():
    # Both POPE's evaluate.py and Ferret's copy, on labels no, yes, yes, no, …: TP 6, FP 5, TN 2, FN 6.
    labels = tuple(k % 3 != 0 for k in range(len(POPE)))
    ids = tuple(map(str, range(len(POPE))))
    items = PopeItems(ids, ids, ("?",) * len(POPE), labels)
    result = Pope().score(items, Answers([text for text, _ in POPE]))
    official = {
        "accuracy": 0.42105263157894735,
        "precision": 0.5454545454545454,
        "recall": 0.5,
        "f1": 0.5217391304347826,
        "yes_share": 0.5789473684210527,
    }
    assert {name: share.value() for name, share in result.shares.items()} == pytest.approx(official, abs=1e-15)


def test_the_exact_parser_gives_the_metrics_of_lmms_eval():
    texts = ["Yes", "no", " YES\n", "No.", "yes, it is", "", "NO", "yes", "maybe", "no"]
    labels = ["yes", "no", "no", "no", "yes", "yes", "yes", "yes", "no", "yes"]
    right = [1, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    ids = tuple(map(str, range(len(texts))))
    items = PopeItems(ids, ids, ("?",) * len(texts), tuple(label == "yes" for label in labels))
    result = Pope(parser="exact").score(items, Answers(list(texts)))
    assert result.shares["accuracy"].parts.tolist() == right
    official = {"accuracy": 0.3, "precision": 0.6666666666666666, "recall": 0.5, "f1": 0.5714285714285715}
    assert {name: result.value(name) for name in official} == pytest.approx(official, abs=1e-15)
    assert result.problems["neither"] == ["3", "4", "5", "8"]
