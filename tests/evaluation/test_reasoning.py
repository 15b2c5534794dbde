"""Every task scores the answer of a model that reasons before it, and not its reasoning."""

import json

import numpy as np
import pytest
from PIL import Image

from spr.config import DescriberConfig
from spr.evaluation.expressions import Expressions
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.description import Description, Regions
from spr.evaluation.tasks.phrase_grounding import Phrase, PhraseGrounding, Sentence
from spr.evaluation.tasks.pope import Pope, PopeItems
from spr.evaluation.tasks.rec import Rec
from spr.evaluation.tasks.referring import Referring, ReferringItem
from spr.models.fakes import FakeDescriber
from spr.models.protocols import Answer
from spr.records import RegionObject, RegionQuery

SIZE, BOX = (200, 100), (20.0, 10.0, 100.0, 50.0)  # as [100, 100, 500, 500] in thousandths
DOG, ELSEWHERE = "a dog [100, 100, 500, 500]", "a dog [600, 600, 900, 900]"
EXPRESSIONS = Expressions(("a",), ("1.png",), ("the dog",), np.array([BOX]), (SIZE,), ("",))
SENTENCES = [Sentence("a", "1.png", SIZE, (Phrase("a dog", ("animals",), (BOX,)),))]
REGION = RegionQuery("a", "1", "1.png", *SIZE, (0, 0, 200, 100), "1", (RegionObject("1", "dog", BOX, inside=True),))
QUESTIONS = {answer: PopeItems(("a",), ("1.png",), ("Is there a dog?",), (answer,)) for answer in (True, False)}
TASKS = {
    "rec": (Rec(), EXPRESSIONS, "acc@0.9", DOG, ELSEWHERE),
    "rec as Ferret reads it": (Rec(protocol="ferret"), EXPRESSIONS, "acc@0.9", DOG, ELSEWHERE),
    "phrases": (PhraseGrounding(entities="."), SENTENCES, "recall@1", DOG, ELSEWHERE),
    "referring": (
        Referring(),
        [ReferringItem("a", "1.png", SIZE, BOX, None, "dog", (), "cat")],
        "accuracy",
        "dog",
        "cat",
    ),
    "yes": (Pope(), QUESTIONS[True], "accuracy", "Yes", "No"),
    "no": (Pope(), QUESTIONS[False], "accuracy", "No", "Yes"),
    "the exact word": (Pope(parser="exact"), QUESTIONS[True], "accuracy", "Yes", "No"),
    "description": (Description(), Regions([REGION]), "s_loc", DOG, ELSEWHERE),
}
FORMS = {
    "reasoning": ("<think>{wrong}, or\n{right}? {wrong}.</think>\n\n{right}", 1),
    "opened by the template": ("{wrong}.</think>{right}", 1),
    "answer": ("<think>{wrong}</think>I say {wrong}: <answer>{right}</answer> {wrong}", 1),
    "answer alone": ("{wrong} <answer> {right} </answer>", 1),
    "answer not closed": ("<think>{wrong}</think><answer>{right}", 1),
    "right only in the reasoning": ("<think>{right}</think>{wrong}", 0),
    "not closed": ("<think>{right}", 0),
    "not closed again": ("<think>{right}</think>{right}<think>{right}", 0),
}


class Reasons(FakeDescriber):
    """Generates the same text for every question."""

    def __init__(self, text):
        super().__init__(DescriberConfig(backend="fake", dialect="ferret"))
        self.text = text

    def describe(self, requests):
        return [Answer(self.text)] * len(requests)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TASKS)
def test_every_task_scores_only_what_follows_the_reasoning(name, form, tmp_path):
    task, items, metric, right, wrong = TASKS[name]
    template, value = FORMS[form]
    text = template.format(right=right, wrong=wrong)
    Image.new("RGB", SIZE).save(tmp_path / "1.png")
    result = evaluate(task, items, describer=Reasons(text), images=tmp_path)
    assert result.value(metric) == pytest.approx(value)
    assert result.problems.get("reasoning", []) == (["a"] if form.startswith("not closed") else [])
    # The file of answers has the text as it was generated, and gives the same metrics and problems.
    written = result.write(tmp_path / "out.json")
    (line,) = (tmp_path / written["answers"]).read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["answer"] == text
    again = evaluate(task, items, predictions=tmp_path / written["answers"])
    assert again.value(metric) == pytest.approx(value)
    assert again.problems == result.problems


def test_the_boxes_beside_an_answer_are_those_that_are_scored(tmp_path):
    Image.new("RGB", SIZE).save(tmp_path / "1.png")

    def record(text):
        (prediction,) = evaluate(Rec(), EXPRESSIONS, describer=Reasons(text), images=tmp_path).predictions
        return prediction.boxes, prediction.phrases, prediction.problems

    assert record(f"<think>{ELSEWHERE} [x]</think>{DOG}") == ((BOX,), ("a dog",), ())
    assert record(f"<think>{ELSEWHERE}") == ((), (), ("reasoning is not closed: no answer",))


def test_the_result_file_counts_reasoning_that_is_not_closed(tmp_path):
    Image.new("RGB", SIZE).save(tmp_path / "1.png")
    result = evaluate(Rec(), EXPRESSIONS, describer=Reasons("<think>hm"), images=tmp_path)
    assert result.write(tmp_path / "out.json")["problems"] == {"reasoning": {"count": 1, "ids": ["a"]}}
