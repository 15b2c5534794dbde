"""`evaluate` with a model and with predictions, and its errors for options that have no effect."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from spr.commands.evaluate import summary
from spr.config import DescriberConfig
from spr.core.errors import ConfigError, GroundingError, InputError, SprError
from spr.core.images import ImageProblem, ImageSource
from spr.evaluation.expressions import Expressions
from spr.evaluation.task import TASKS, evaluate
from spr.evaluation.tasks.description import Description, Regions
from spr.evaluation.tasks.phrase_grounding import Phrase, PhraseGrounding, Sentence
from spr.evaluation.tasks.pope import Pope, PopeItems
from spr.evaluation.tasks.rec import Rec
from spr.evaluation.tasks.referring import Referring, ReferringItem
from spr.models.fakes import FakeDescriber
from spr.models.protocols import Answer
from spr.records import RegionObject, RegionQuery


class Fixed(FakeDescriber):
    """Gives the same answer to every question."""

    def __init__(self, answer, dialect="ferret", temperature=None, finish_reason="stop"):
        super().__init__(DescriberConfig(backend="fake", dialect=dialect))
        self.answer, self.temperature = Answer(answer, finish_reason), temperature

    def describe(self, requests):
        return [self.answer] * len(requests)


ITEMS = Expressions(("a",), ("1.png",), ("the dog",), np.array([[64.0, 72.0, 192.0, 96.0]]), ((640, 480),), ("",))
BOX = "the dog [100, 150, 300, 200]"


@pytest.fixture
def images(tmp_path):
    Image.new("RGB", (640, 480)).save(tmp_path / "1.png")
    return tmp_path


def test_the_ferret_protocol_also_reads_answers_of_a_model(images):
    # SPR reads the first box and reports the second bracket; Ferret's evaluator discards the whole answer.
    how = {"describer": Fixed(BOX + " and [x]"), "images": images}
    assert evaluate(Rec(protocol="spr"), ITEMS, **how).value("acc@0.9") == 1
    result = evaluate(Rec(protocol="ferret"), ITEMS, **how)
    assert result.value("acc@0.5") == 0
    assert result.protocol["answers"] == "ferret"


def test_the_ferret_protocol_refuses_a_model_of_another_dialect_before_asking_it(images):
    class Silent(Fixed):
        def describe(self, requests):
            raise AssertionError(f"the model was asked {len(requests)} questions")

    with pytest.raises(ConfigError, match="one dialect only"):
        evaluate(Rec(protocol="ferret"), ITEMS, describer=Silent("", "llava"), images=images)


def test_images_are_a_folder_a_source_or_a_function(images):
    def load(question):
        return Image.new("RGB", question.size_wh)

    for given in (images, str(images), ImageSource(images), load):
        assert evaluate("rec", ITEMS, describer=Fixed(BOX), images=given).value("acc@0.9") == 1


class Seeing(Fixed):
    """Remembers the images that it was asked about."""

    def describe(self, requests):
        self.seen = [request.image for request in requests]
        return super().describe(requests)


def test_images_without_an_annotated_size_are_upright_scaled_and_white_like_all_others(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.array([[32896]], np.uint16)).save(tmp_path / "grey.png")
    Image.new("RGB", (1, 1)).save(tmp_path.with_name(tmp_path.name + ".png"))
    names = ["turned.jpg", "clear.png", "grey.png", "/dev/zero", f"../{tmp_path.name}.png"]
    rows = [{"question_id": k, "image": name, "text": "Is there a cat?", "label": "no"} for k, name in enumerate(names)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = Seeing("no")
    result = evaluate("pope", tmp_path / "q.jsonl", describer=model, images=tmp_path)
    assert [(image.size, image.getpixel((0, 0))[0]) for image in model.seen] == [
        ((20, 40), 0),
        ((1, 1), 255),
        ((1, 1), 128),
    ]
    assert [why.split(": ")[-1] for why in result.problems["image"]] == ["path_outside_images)"] * 2
    evaluate("pope", tmp_path / "q.jsonl", describer=model, images=ImageSource(tmp_path, allow_outside=True))
    assert len(model.seen) == 4


def test_a_result_records_how_the_model_was_asked(images):
    result = evaluate(Rec(), ITEMS, describer=Fixed(BOX, temperature=0.5), images=images, seed=3)
    protocol = {"model": "fake", "dialect": "ferret", "temperature": 0.5, "seed": 3}
    assert protocol.items() <= result.protocol.items()
    assert result.protocol["prompt"] == "What is the location of {expression} in the image?"


@pytest.mark.parametrize(("reason", "ids"), [("length", ["a"]), ("stop", []), ("stop_string", []), (None, [])])
def test_a_truncated_answer_is_read_and_counted(reason, ids, images, tmp_path):
    result = evaluate(Rec(), ITEMS, describer=Fixed(BOX, finish_reason=reason), images=images)
    assert result.value("acc@0.9") == 1
    assert list(result.problems.get("truncated", ())) == ids
    result.write(tmp_path / "result.json")
    (line,) = (tmp_path / "result.answers.jsonl").read_text().splitlines()
    assert json.loads(line).get("finish_reason") == reason
    # The file of answers gives the same result.
    again = evaluate(Rec(), ITEMS, predictions=tmp_path / "result.answers.jsonl")
    assert again.value("acc@0.9") == 1
    assert list(again.problems.get("truncated", ())) == ids


def test_a_describer_that_answers_with_plain_texts_is_an_error(images):
    class Plain(Fixed):
        def describe(self, requests):
            return [BOX] * len(requests)

    with pytest.raises(SprError, match=r"Describer fake returned an answer of another type[\s\S]*an Answer"):
        evaluate(Rec(), ITEMS, describer=Plain(""), images=images)


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        (Rec(), {}, "neither"),
        (Rec(), {"describer": Fixed(BOX), "predictions": "a"}, "both"),
        (Rec(), {"describer": Fixed(BOX), "dialect": "ferret"}, "only for predictions"),
        (Rec(), {"describer": Fixed(BOX)}, "give --images FOLDER"),
        (Rec(), {"describer": Fixed(BOX), "images": "gone"}, "--images is not a folder or a tar file"),
        (Rec(), {"predictions": "a", "images": "b", "seed": 1}, "--images, --seed"),
        (Rec(prompt="Where is {expression}?"), {"predictions": "a"}, "--prompt"),
        (Referring(region="point"), {"predictions": "a"}, "--region"),
        (Pope(), {"predictions": "a", "dialect": "ferret"}, "--dialect has no effect"),
        (
            Rec(),
            {"describer": Fixed(BOX), "answer_field": "text", "id_field": "id"},
            "--answer-field text, --id-field id",
        ),
        (Description(samples=2), {"describer": Fixed(BOX, temperature=0)}, "--samples needs a --temperature"),
        ("reg", {"predictions": "a"}, "did you mean `rec`"),
    ],
)
def test_options_without_an_effect_are_errors(task, given, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(task, ITEMS, **given)


def test_the_dialect_of_predictions_is_given_or_read_from_the_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "a", "answer": "[100, 150, 300, 200]"}\n')
    assert evaluate("rec", ITEMS, predictions=path, dialect="ferret").value("acc@0.9") == 1
    with pytest.raises(ConfigError, match="give --dialect"):
        evaluate("rec", ITEMS, predictions=path)
    with pytest.raises(GroundingError, match="Unknown dialect"):
        evaluate("rec", ITEMS, predictions=path, dialect="feret")
    path.write_text('{"id": "a", "answer": "[100, 150, 300, 200]", "dialect": "ferret"}\n')
    assert evaluate("rec", ITEMS, predictions=path).value("acc@0.9") == 1


def test_every_task_has_its_registered_name_and_help_for_itself_and_its_options():
    for name, task in TASKS.items():
        assert task.name == name
        assert task.__doc__
        for own in task.options():
            assert own.option.help.endswith("."), (name, own.name)


def test_fewer_than_one_sample_is_refused():
    with pytest.raises(ConfigError, match="--samples is out of range"):
        Description(samples=0)


def expressions(count):
    boxes = np.tile(ITEMS.boxes_xyxy, (count, 1))
    names = tuple(map(str, range(count)))
    return Expressions(names, ("1.png",) * count, ("the dog",) * count, boxes, ((640, 480),) * count, ("",) * count)


@pytest.fixture
def no_model(monkeypatch):
    """Makes it an error to load a model."""

    def refuse(config):
        raise AssertionError(f"{config.model} was loaded")

    monkeypatch.setattr("spr.models.registry.load_describer", refuse)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("size", "name", "reason"),
    [
        ((640, 480), "2.png", r"there is no such file[\s\S]*expected: the file .*1\.png"),
        ((640, 481), "1.png", r"640 × 481\s+expected: 640 × 480"),
        (None, "1.png", r"can't be decoded|UnidentifiedImageError"),
    ],
)
def test_no_usable_image_stops_before_the_model_is_loaded_and_names_the_first(size, name, reason, tmp_path):
    if size is None:
        (tmp_path / name).write_bytes(b"no image")
    else:
        Image.new("RGB", size).save(tmp_path / name)
    with pytest.raises(InputError, match=rf"The image can't be read\.\s+got: +Image '1\.png'.*({reason})"):
        evaluate(Rec(), expressions(3), describer=DescriberConfig(model="m", temperature=0), images=tmp_path)


@pytest.mark.usefixtures("no_model")
def test_every_task_finds_missing_images_before_the_model_is_loaded(tmp_path):
    query = RegionQuery(
        "q", "i", "1.png", 640, 480, (0, 0, 640, 480), "o", (RegionObject("o", "dog", (1, 2, 3, 4), inside=True),)
    )
    sentence = Sentence("1_0", "1.png", (640, 480), ())
    item = ReferringItem("r", "1.png", (640, 480), (1, 2, 3, 4), None, "dog", (), "cat")
    (tmp_path / "Annotations").mkdir()
    for task, items in (
        (Rec(), ITEMS),
        (Pope(), PopeItems(("a",), ("1.png",), ("Is there a dog?",), (True,))),
        (Referring(), [item]),
        (PhraseGrounding(entities=tmp_path), [sentence]),
        (Description(), Regions([query])),
    ):
        assert [about.id for about in task.about(items)] == list(task.ids(items))
        with pytest.raises(InputError, match="The image can't be read"):
            evaluate(task, items, describer=DescriberConfig(model="m", temperature=0), images=tmp_path)


@pytest.mark.usefixtures("no_model")
def test_what_needs_no_weights_is_refused_before_the_model_is_loaded(images, tmp_path):
    def refused(task, items, error, message, **fields):
        settings = DescriberConfig(**{"model": "embedded/describer", "temperature": 0, **fields})
        with pytest.raises(error, match=message):
            evaluate(task, items, describer=settings, images=images)

    refused(Rec(prompt="Where?"), expressions(1), ConfigError, "--prompt lacks {expression}")
    refused(Rec(protocol="ferret"), expressions(1), ConfigError, "dialect")
    refused(Rec(), expressions(1), GroundingError, "Unknown dialect", dialect="nonsense")
    refused(Rec(), expressions(1), SprError, "has no PEFT adapter", peft_adapter=str(tmp_path))
    refused(Rec(), expressions(1), SprError, "no such model folder", model=str(tmp_path / "gone"))
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text('{"auto_mapping": {"base_model_class": "OtherModel"}}')
    refused(Rec(), expressions(1), SprError, "was not trained on this model", peft_adapter=str(tmp_path))


def test_one_usable_image_is_enough_to_load_the_model(images, monkeypatch):
    monkeypatch.setattr("spr.models.registry.load_describer", lambda _: Fixed(BOX))
    items = replace(expressions(4), file_names=("gone.png", "a/" + "9" * 5000, "2.png", "1.png"))
    settings = DescriberConfig(model="embedded/describer", temperature=0)
    result = evaluate(Rec(), items, describer=settings, images=images)
    assert result.value("acc@0.9") == 0.25
    assert result.notes == ("3 of 4 items (75.0 %) have no usable answer (3 image)",)
    assert result.to_json()["notes"] == list(result.notes)


def test_images_that_a_function_can_not_load_are_an_error_as_well():
    def load(question):
        raise ImageProblem("image_missing", question.file_name, expected="the file /x/1.png")

    with pytest.raises(InputError, match=r"The image can't be read[\s\S]*/x/1\.png"):
        evaluate(Rec(), expressions(2), describer=Fixed(BOX), images=load)


@pytest.mark.parametrize(
    ("failing", "notes"), [(0, ()), (2, ()), (3, ("3 of 20 items (15.0 %) have no usable answer",))]
)
@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (None, "missing"),
        ({"answer": None}, "not_text"),
        ({"answer": [1, 2, 3, 4]}, "not_text"),
        ({"answer": " \n"}, "empty"),
        ({"answer": "<think>the dog"}, "reasoning"),
        ({"answer": "the dog"}, "question"),
        ({"answer": BOX, "file_name": "2.png"}, "other_item"),
    ],
)
def test_more_than_a_tenth_without_a_usable_answer_is_noted(failing, notes, line, kind, tmp_path, write_lines):
    rows = [{"id": k, "answer": BOX, "file_name": "1.png"} for k in range(20)]
    rows[:failing] = [rows[k] | line for k in range(failing)] if line is not None else []
    path = write_lines(tmp_path / "a.jsonl", rows)
    result = evaluate(Rec(), expressions(20), predictions=path, dialect="ferret")
    assert result.value("acc@0.9") == (20 - failing) / 20
    assert len(result.problems.get(kind, ())) == failing
    assert result.notes == tuple(f"{note} ({failing} {kind})" for note in notes)


def test_answers_of_which_none_can_be_read_are_noted(images, tmp_path, write_lines):
    rows = [{"id": k, "answer": "the dog is at (10, 20)"} for k in range(3)]
    path = write_lines(tmp_path / "a.jsonl", [*rows[:2], {"id": 2, "answer": None}])
    result = evaluate(Rec(), expressions(3), predictions=path, dialect="ferret")
    assert result.notes[1:] == ("none of the 2 answers has a box that its dialect can read",)
    assert evaluate(Rec(), ITEMS, describer=Fixed("no box"), images=images).notes == (
        "none of the 1 answers has a box that its dialect can read",
    )
    # One box is enough.
    write_lines(path, [*rows[:2], {"id": 2, "answer": BOX}])
    assert evaluate(Rec(), expressions(3), predictions=path, dialect="ferret").notes == ()
    pope = PopeItems(("1", "2"), ("1.png", "2.png"), ("Is there a dog?", "Is there a cat?"), (True, False))
    write_lines(path, [{"id": "1", "answer": "Maybe"}, {"id": "2", "answer": "It is"}])
    assert evaluate(Pope(parser="exact"), pope, predictions=path).notes == ("none of the 2 answers means yes or no",)
    write_lines(path, [{"id": "1", "answer": "Maybe"}, {"id": "2", "answer": "No"}])
    assert evaluate(Pope(parser="exact"), pope, predictions=path).notes == ()
    # Phrase grounding has several items per answer: no phrase of an answer has a box.
    phrases = tuple(Phrase(name, ("people",), ((0.0, 0.0, 64.0, 48.0),)) for name in ("a man", "a dog"))
    sentences = [Sentence("1_0", "1.png", (640, 480), phrases)]
    task = PhraseGrounding(entities=tmp_path)
    for answer, notes in (("a man and a dog", 1), ("a man [0, 0, 100, 100]", 0)):
        write_lines(path, [{"id": "1_0", "answer": answer}])
        assert len(evaluate(task, sentences, predictions=path, dialect="ferret").notes) == notes


def test_different_answers_to_more_than_a_tenth_of_the_items_are_noted(tmp_path, write_lines):
    rows = [{"id": k, "answer": BOX} for k in range(20)]
    for twice, notes in ((2, ()), (3, ("3 of 20 items (15.0 %) have several different answers",))):
        path = write_lines(tmp_path / "a.jsonl", [*rows, *rows, *(row | {"answer": "?"} for row in rows[:twice])])
        result = evaluate(Rec(), expressions(20), predictions=path, dialect="ferret")
        assert result.notes == notes
        assert list(result.problems.get("doubled", ())) == [str(k) for k in range(twice)]
        assert result.value("acc@0.9") == 1


def test_a_result_says_which_file_it_is_about_and_what_of_the_predictions_matched(tmp_path, write_lines):
    rows = [{"id": k, "image": "1.png", "sentence": "the dog", "box": [64, 72, 192, 96]} for k in range(20)]
    annotations = write_lines(tmp_path / "mine.jsonl", [row | {"width": 640, "height": 480} for row in rows])
    path = write_lines(tmp_path / "a.jsonl", [{"id": k, "text": BOX} for k in range(1, 24)])
    result = evaluate("rec", annotations, predictions=path, dialect="ferret")
    assert result.protocol["annotations"] == "mine.jsonl"
    matched = {"items": 19, "of_items": 20, "lines": 19, "of_lines": 23}
    assert result.to_json()["matched"] == {"id_field": "id", "answer_field": "text", **matched}
    assert summary(result)[:2] == [
        "matched by `id`: 19 of 20 items (95.0 %), 19 of 23 lines (82.6 %); answers in `text`",
        "rec: 20 items",
    ]
