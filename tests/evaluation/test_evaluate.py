"""`evaluate` with a model and with predictions, and its errors for options that have no effect."""

import json

import numpy as np
import pytest
from PIL import Image

from spr.config import DescriberConfig
from spr.core.errors import ConfigError, GroundingError, SprError
from spr.core.images import ImageSource
from spr.evaluation.task import TASKS, evaluate
from spr.evaluation.tasks.description import Description
from spr.evaluation.tasks.pope import Pope
from spr.evaluation.tasks.rec import Expressions, Rec
from spr.evaluation.tasks.referring import Referring
from spr.models.fakes import FakeDescriber
from spr.models.protocols import Answer


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

    with pytest.raises(ConfigError, match="Ferret's dialect only"):
        evaluate(Rec(protocol="ferret"), ITEMS, describer=Silent("", "llava"), images=images)


def test_images_are_a_folder_a_source_or_a_function(images):
    def load(question):
        return Image.new("RGB", question.size_wh)

    for given in (images, str(images), ImageSource(images), load):
        assert evaluate("rec", ITEMS, describer=Fixed(BOX), images=given).value("acc@0.9") == 1


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
        (Rec(), {"describer": Fixed(BOX), "images": "gone"}, "--images is not a folder"),
        (Rec(), {"predictions": "a", "images": "b", "seed": 1}, "--images, --seed"),
        (Rec(prompt="Where is {expression}?"), {"predictions": "a"}, "--prompt"),
        (Referring(region="point"), {"predictions": "a"}, "--region"),
        (Pope(), {"predictions": "a", "dialect": "ferret"}, "--dialect has no effect"),
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
