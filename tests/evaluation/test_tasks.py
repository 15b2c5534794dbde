"""Phrase grounding, referring and POPE: their files, their questions, and errors for invalid files."""

import dataclasses
import json
import os
import random
import re

import pytest
from PIL import Image

from spr.annotations import read_coco
from spr.config import DescriberConfig
from spr.core.errors import ConfigError, InputError
from spr.evaluation.ferret_rules import entities
from spr.evaluation.predictions import Answers
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.phrase_grounding import PhraseGrounding
from spr.evaluation.tasks.pope import Pope
from spr.evaluation.tasks.referring import Referring, is_right, write_lvis_questions
from spr.grounding import get_dialect
from spr.models.fakes import FakeDescriber
from spr.models.protocols import Answer

FERRET = get_dialect("ferret")


class Says(FakeDescriber):
    """Gives an answer that depends on the question."""

    def __init__(self, answers, dialect="ferret"):
        super().__init__(DescriberConfig(backend="fake", dialect=dialect))
        self.answers, self.asked = answers, []

    def describe(self, requests):
        self.asked += [request.prompt for request in requests]
        return [Answer(self.answers.get(request.prompt, ""), "stop") for request in requests]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (200, 100)).save(folder / name)
    return folder


@pytest.fixture
def flickr(tmp_path):
    folder = tmp_path / "entities"
    for name in ("Annotations", "Sentences"):
        (folder / name).mkdir(parents=True)
    box = "<bndbox><xmin>20</xmin><ymin>10</ymin><xmax>100</xmax><ymax>50</ymax></bndbox>"
    (folder / "Annotations" / "1.xml").write_text(f"<annotation><object><name>5</name>{box}</object></annotation>")
    (folder / "Sentences" / "1.txt").write_text("[/EN#5/people A man, alone] waits .\n")
    size = {"file_name": "1.jpg", "width": 200, "height": 100}
    row = {
        "caption": "A man, alone waits .",
        "tokens_positive_eval": [[[0, 12]]],
        "original_img_id": 1,
        "sentence_id": 0,
    }
    path = tmp_path / "final_flickr_mergedGT_test.json"
    path.write_text(json.dumps({"images": [{**row, **size}]}))
    return path, folder


def test_phrases_are_asked_about_as_in_ferrets_evaluation_and_matched_by_their_words(flickr, images, tmp_path):
    path, folder = flickr
    task = PhraseGrounding(entities=folder)
    items = task.load(path)
    # The comma is removed from the question; the answer's phrase is compared without punctuation.
    # Box 20, 10, 100, 50 of 200 × 100 px is 100, 100, 500, 500 of 1000.
    question = "What are the locations of a man alone?"
    model = Says({question: "a man alone [100, 100, 500, 500]."})
    result = evaluate(task, items, describer=model, images=images)
    assert {name: share.value() for name, share in result.shares.items()} == {
        "recall@1": 1, "recall@5": 1, "recall@10": 1, "upper_bound": 1,
    }  # fmt: skip
    assert result.ids == ("1_0#0",)
    written = result.write(tmp_path / "out.json")
    assert evaluate(task, items, predictions=tmp_path / written["answers"]).metrics == result.metrics
    # Ferret's own file identifies an answer by image and sentence.
    (tmp_path / "f.jsonl").write_text(
        json.dumps({"image_id": 1, "sentence_id": 0, "text": "a man alone [100, 100, 500, 500]"})
    )
    ferret = PhraseGrounding(entities=folder, protocol="ferret")
    again = evaluate(ferret, items, predictions=tmp_path / "f.jsonl", dialect="ferret")
    assert again.value("recall@1", "people") == 1


def test_phrases_without_boxes_or_files_are_errors(flickr, tmp_path):
    path, folder = flickr
    with pytest.raises(ConfigError, match="--boxes is not known"):
        PhraseGrounding(entities=folder, boxes="both")
    with pytest.raises(InputError, match="is not Flickr30k Entities"):
        PhraseGrounding(entities=tmp_path).load(path)
    task = PhraseGrounding(entities=folder)
    (folder / "Sentences" / "1.txt").write_text("[/EN#5/people A woman] waits .\n")
    with pytest.raises(InputError, match="has no such phrase"):
        task.load(path)
    (folder / "Annotations" / "1.xml").write_text("<annotation>")
    with pytest.raises(InputError, match="can't be read"):
        task.load(path)
    (folder / "Annotations" / "1.xml").write_text(
        "<annotation><object><bndbox><xmin>x</xmin></bndbox></object></annotation>"
    )
    with pytest.raises(InputError, match=r"1\.xml can't be read"):
        task.load(path)
    (folder / "Annotations" / "1.xml").write_text(
        '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><annotation>&d;</annotation>'
    )
    with pytest.raises(InputError, match="document type"):
        task.load(path)
    (folder / "Annotations" / "1.xml").write_text("<?xml version='1.0' encoding='nonsense'?><a/>")
    with pytest.raises(InputError, match=r"1\.xml can't be read"):
        task.load(path)
    (folder / "Annotations" / "1.xml").unlink()
    os.mkfifo(folder / "Annotations" / "1.xml")
    with pytest.raises(InputError, match=r"Entities is missing[\s\S]*1\.xml"):
        task.load(path)
    row = json.loads(path.read_text())["images"][0]
    for name in ("../Annotations/1", "/etc/passwd", "a\\1", "", "1\0"):
        path.write_text(json.dumps({"images": [{**row, "original_img_id": name}]}))
        with pytest.raises(InputError, match="`original_img_id` is not valid"):
            task.load(path)
    for content, message in (
        ("{}", "in no layout that `phrase-grounding` reads"),
        ("[]", "is empty"),
        ('{"images": [{}]}', "is not MDETR's Flickr30k JSON"),
        ("<html>", "is not MDETR's Flickr30k JSON"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            task.load(path)


def pope_lines(count=4):
    labels = ["yes", "no"]
    return [
        {"question_id": k + 1, "image": f"{k % 2 + 1}.jpg", "text": f"Is there a {k}?", "label": labels[k % 2]}
        for k in range(count)
    ]


def test_pope_questions_are_asked_and_scored_by_id(images, tmp_path, write_lines):
    items = Pope().load(write_lines(tmp_path / "pope.json", pope_lines()))
    answers = {
        "Is there a 0?": "Yes.",
        "Is there a 1?": "Yes.",
        "Is there a 2?": "No.",
        "Is there a 3?": "There is no 3.",
    }
    result = evaluate("pope", items, describer=Says(answers), images=images)
    # Yes is right once and wrong once, no is right once and wrong once.
    assert {name: share.value() for name, share in result.shares.items()} == {
        "accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_share": 0.5,
    }  # fmt: skip
    assert result.protocol["parser"] == "ferret"
    shuffled = [{"question_id": p.id, "answer": p.answer} for p in result.predictions][::-1]
    again = evaluate("pope", items, predictions=write_lines(tmp_path / "a.jsonl", shuffled))
    assert again.metrics == result.metrics


def test_a_pope_question_without_an_answer_is_wrong_and_lowers_recall(tmp_path, write_lines):
    items = Pope().load(write_lines(tmp_path / "pope.json", pope_lines()))
    result = Pope(parser="exact").score(items, Answers([None, None, "yes", "no"], {"missing": ["1", "2"]}))
    # Two of four are right; one of the two questions whose answer is yes was answered with yes.
    assert (result.value("accuracy"), result.value("recall"), result.value("precision")) == (0.5, 0.5, 1.0)
    assert result.value("yes_share") == 0.25


def test_the_exact_parser_asks_for_one_word(images, tmp_path, write_lines):
    model = Says({})
    path = write_lines(tmp_path / "p.json", pope_lines(1))
    evaluate(Pope(parser="exact"), path, describer=model, images=images)
    assert model.asked == ["Is there a 0?\nAnswer the question using a single word or phrase."]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, r"at `\$.label`"),
        ({"image": None}, r"at `\$.image`"),
        ({"text": 3}, r"at `\$.text`"),
        ({"question_id": 1.5}, "`question_id` of row 0"),
    ],
)
def test_an_invalid_row_of_a_pope_file_is_named(tmp_path, change, message, write_lines):
    with pytest.raises(InputError, match=message):
        Pope().load(write_lines(tmp_path / "pope.json", [{**pope_lines(1)[0], **change}]))


def test_pope_refuses_unknown_parsers_and_repeated_ids(tmp_path, write_lines):
    path = write_lines(tmp_path / "pope.json", pope_lines(2) + pope_lines(1))
    with pytest.raises(InputError, match="`question_id` of row 2"):
        Pope().load(path)
    with pytest.raises(ConfigError, match="--parser is not known"):
        Pope(parser="regex")


LVIS = {
    "images": [
        {"id": 1, "width": 200, "height": 100, "coco_url": "http://images.cocodataset.org/val2017/1.jpg",
         "neg_category_ids": [3], "not_exhaustive_category_ids": []},
        {"id": 2, "width": 200, "height": 100, "coco_url": "http://images.cocodataset.org/val2017/2.jpg",
         "neg_category_ids": [], "not_exhaustive_category_ids": [2]},
    ],
    "annotations": [
        {"id": 11, "image_id": 1, "category_id": 1, "bbox": [20, 10, 80, 40],
         "segmentation": [[20, 10, 60, 10, 60, 50, 20, 50]]},
        {"id": 12, "image_id": 2, "category_id": 1, "bbox": [0, 0, 10, 10], "segmentation": []},
    ],
    "categories": [
        {"id": 1, "name": "wine_glass", "synonyms": ["goblet"], "frequency": "f"},
        {"id": 2, "name": "cup", "synonyms": [], "frequency": "c"},
        {"id": 3, "name": "fork", "synonyms": [], "frequency": "r"},
    ],
}  # fmt: skip


@pytest.fixture
def lvis(tmp_path):
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(LVIS))
    return path


def test_lvis_questions_depend_on_the_seed_and_their_wrong_categories_are_not_in_the_image(lvis, tmp_path):
    assert write_lvis_questions(lvis, tmp_path / "a.jsonl") == 2
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())}
    # A fork was searched for and not found in one image, and is neither annotated nor left open in the other.
    assert rows[11]["neg_class"] == "fork"
    assert rows[12]["neg_class"] == "fork"
    assert rows[11]["bbox_norm"] == [0.1, 0.1, 0.5, 0.5]
    x, y = rows[11]["sample_point"]
    assert 20 <= x < 60  # the outline is the left half of the box
    assert 10 <= y < 50
    assert rows[12]["sample_point"] == [5, 5]
    changed = {**LVIS, "annotations": LVIS["annotations"][::-1]}
    lvis.write_text(json.dumps(changed))
    write_lvis_questions(lvis, tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert write_lvis_questions(lvis, tmp_path / "c.jsonl", min_area=200) == 1


@pytest.mark.parametrize("ids", [(7, 7), (7, None), (None, None)])
def test_lvis_questions_have_unique_ids_where_the_annotations_have_none(lvis, tmp_path, ids):
    annotations = [{**entry, "id": own} for entry, own in zip(LVIS["annotations"], ids, strict=True)]
    lvis.write_text(json.dumps({**LVIS, "annotations": annotations}))
    write_lvis_questions(lvis, tmp_path / "q.jsonl")
    items = Referring().load(tmp_path / "q.jsonl")
    assert {(item.id, item.file_name) for item in items} == {("1", "val2017/1.jpg"), ("2", "val2017/2.jpg")}


def test_files_that_are_not_lvis_json_are_refused(lvis, tmp_path):
    for content, message in (
        ("{}", "is not LVIS JSON"),
        ('{"images": [], "annotations": [], "categories": []}', "nothing to ask"),
    ):
        lvis.write_text(content)
        with pytest.raises(InputError, match=message):
            write_lvis_questions(lvis, tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="no such file"):
        write_lvis_questions(tmp_path / "gone.json", tmp_path / "a.jsonl")


def test_questions_have_ferrets_wording_with_the_right_category_first_in_even_rows(lvis, tmp_path):
    write_lvis_questions(lvis, tmp_path / "q.jsonl")
    item = next(item for item in Referring().load(tmp_path / "q.jsonl") if item.id == "11")

    def question_of(item, number, dialect, region):
        _, questions = Referring(region=region).questions([item] * (number + 1), dialect, "")
        return questions[number].prompt

    # 0.1, 0.1, 0.5, 0.5 of the image.
    place = "[100, 100, 500, 500] <region_fea>"
    assert question_of(item, 0, FERRET, "box") == f"Is the object {place} of the image a wine glass or a fork?"
    assert question_of(item, 1, FERRET, "box") == f"Is the object {place} of the image a fork or a wine glass?"
    x, y = item.point
    point = f"[{int(x * 1000 / 200)}, {int(y * 1000 / 100)}] <region_fea>"
    assert question_of(item, 0, FERRET, "point") == f"Is the object {point} of the image a wine glass or a fork?"
    with pytest.raises(ConfigError, match="--region point can't be used"):
        question_of(item, 0, get_dialect("llava"), "point")


def test_lvis_questions_and_their_answers_use_readable_names(lvis, tmp_path):
    names = ["bow_(weapon)", "bow_(decorative_ribbons)", "sofa [1, 2, 3, 4]", "<image>", "fork"]
    categories = [{"id": k, "name": name, "synonyms": [name]} for k, name in enumerate(names, start=1)]
    annotations = [{**LVIS["annotations"][1], "id": k, "category_id": k} for k in range(1, 6)]
    images = [{**image, "neg_category_ids": [1, 2, 3, 4, 5]} for image in LVIS["images"]]
    lvis.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    assert write_lvis_questions(lvis, tmp_path / "q.jsonl") == 3
    items = {item.id: item for item in Referring().load(tmp_path / "q.jsonl")}
    assert {(item.id, item.name, item.other) for item in items.values()} == {
        ("1", "bow", "fork"),
        ("2", "bow", "fork"),
        ("5", "fork", "bow"),
    }
    odd = dataclasses.replace(items["5"], name="{second}", other="<b>")
    _, asked = Referring().questions([items["5"], items["1"], odd], FERRET, "")
    shown = [question.prompt.split("image ")[1] for question in asked]
    assert shown == ["a fork or a bow?", "a fork or a bow?", "a {second} or a <b>?"]
    assert is_right("a bow", "bow", items["1"].synonyms)
    assert is_right("a red car", "car_(automobile)", [])
    assert not is_right("an automobile", "car_(automobile)", [])
    lvis.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories[:4]}))
    with pytest.raises(InputError, match="nothing to ask about"):
        write_lvis_questions(lvis, tmp_path / "q.jsonl")


def test_images_of_lvis_questions_are_found_in_the_folder_of_their_url_and_without_it(tmp_path):
    entries = [
        {"id": 1, "coco_url": "http://images.cocodataset.org/train2017/1.jpg"},
        {"id": 2, "file_name": "a/b/2.jpg"},
        {"id": 3, "file_name": None, "coco_url": "http://images.cocodataset.org/val2017/3.jpg"},
        {"id": 4},  # no name: not asked about
    ]
    lvis = {
        "images": [{**entry, "width": 200, "height": 100} for entry in entries],
        "annotations": [{"id": k, "image_id": k, "category_id": 1, "bbox": [0, 0, 9, 9]} for k in (1, 2, 3, 4)],
        "categories": LVIS["categories"],
    }
    (tmp_path / "lvis.json").write_text(json.dumps(lvis))
    assert write_lvis_questions(tmp_path / "lvis.json", tmp_path / "q.jsonl") == 3
    items = Referring().load(tmp_path / "q.jsonl")
    names = {item.id: item.file_name for item in items}
    assert names == {"1": "train2017/1.jpg", "2": "a/b/2.jpg", "3": "val2017/3.jpg"}
    read = read_coco(tmp_path / "lvis.json")
    assert names == {str(read.image_ids[k]): name for k, name in enumerate(read.file_names)}
    row = json.loads((tmp_path / "q.jsonl").read_text().splitlines()[0])
    (tmp_path / "far.jsonl").write_text(json.dumps({**row, "image_path": "/other/machine/val2017/3.jpg"}))
    assert Referring().load(tmp_path / "far.jsonl")[0].file_name == "val2017/3.jpg"
    for flat in (False, True):
        folder = tmp_path / f"images{flat}"
        for name in names.values():
            path = folder / (name.rsplit("/", 1)[-1] if flat else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (200, 100)).save(path)
        result = evaluate("referring", items, describer=Says({}), images=folder)
        assert "image" not in result.problems
    (folder / "3.jpg").unlink()
    result = evaluate("referring", items, describer=Says({}), images=folder)
    assert result.problems["image"] == ["3 (val2017/3.jpg: image_missing)"]


def test_referring_gives_the_same_score_from_a_model_and_from_its_predictions(lvis, images, tmp_path):
    write_lvis_questions(lvis, tmp_path / "q.jsonl")
    items = Referring().load(tmp_path / "q.jsonl")
    asked = [question.prompt for question in Referring().questions(items, FERRET, "")[1]]
    model = Says({asked[0]: "a goblet", asked[1]: "a fork, no goblet."})
    result = evaluate("referring", items, describer=model, images=images)
    assert result.value("accuracy") == 0.5
    assert result.value("accuracy", "frequent") == 0.5
    written = result.write(tmp_path / "out.json")
    assert evaluate("referring", items, predictions=tmp_path / written["answers"]).metrics == result.metrics


def test_answers_of_100_kilobytes_are_read_by_the_published_rule():
    # The published patterns are the reference, where they are fast enough.
    draw = random.Random(2)
    for _ in range(400):
        text = "".join(draw.choice([" ", "  ", "not", "no", "dog", ",", ".", "\n"]) for _ in range(draw.randint(0, 25)))
        expected = re.sub(r"\s+no[^,.]*[,.]", "", re.sub(r"\s+not[^,.]*[,.]", "", text))
        assert is_right(text, "dog", []) == ("dog" in expected), repr(text)
    for text in (" " * 100_000, " not" * 30_000, " no" * 30_000 + ".", "x, not" * 20_000):
        assert is_right(text + " dog", "dog", [])
    assert entities("[" * 100_000, (9, 9)) == []
    assert entities(f"[{'9' * 4000}, 0, 0, 0]", (9, 9)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox_norm": [0, 0, 1]}, r"at `\$.bbox_norm`"),
        ({"bbox_norm": [0.5, 0, 0.1, 1]}, "`bbox_norm`"),
        ({"sample_point": [1]}, r"at `\$.sample_point`"),
        ({"synonyms": "cup"}, r"at `\$.synonyms`"),
        ({"neg_class": ""}, r"at `\$.neg_class`"),
        ({"width": None}, r"at `\$.width`"),
    ],
)
def test_an_invalid_row_of_a_question_file_is_named(lvis, tmp_path, change, message, write_lines):
    write_lvis_questions(lvis, tmp_path / "q.jsonl")
    row = json.loads((tmp_path / "q.jsonl").read_text().splitlines()[0])
    with pytest.raises(InputError, match=message):
        Referring().load(write_lines(tmp_path / "q.jsonl", [{**row, **change}]))


def test_questions_about_missing_images_have_no_answer_and_are_listed(images, tmp_path, write_lines):
    (images / "2.jpg").write_text("no image")
    items = Pope().load(write_lines(tmp_path / "pope.json", pope_lines(3)))
    result = evaluate("pope", items, describer=Says({"Is there a 0?": "yes", "Is there a 2?": "yes"}), images=images)
    assert result.problems["image"] == ["2 (2.jpg: image_unreadable)"]
    assert result.value("accuracy") == pytest.approx(2 / 3)
