"""AMBER's two tasks on rows in its layout, with values worked out by hand."""

import json

import pytest

from spr.core.errors import InputError
from spr.evaluation.task import TASKS, evaluate
from spr.evaluation.tasks.amber import Amber, describe

ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["sky", "person", "lake"], "hallu": ["dog", "car"]},
    {"id": 2, "type": "generative", "truth": ["dog"], "hallu": ["person"]},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 4, "type": "discriminative-hallucination", "truth": "yes"},
    {"id": 5, "type": "discriminative-attribute-state", "truth": "no"},
    {"id": 6, "type": "discriminative-attribute-number", "truth": "yes"},
    {"id": 7, "type": "discriminative-attribute-action", "truth": "no"},
    {"id": 8, "type": "relation", "truth": "no"},
]
RELATIONS = {
    "sky": [],
    "person": ["people", "man"],
    "lake": ["water", "river"],
    "dog": [],
    "car": ["vehicle", "tire"],
    "light": [],
    "bench": ["chair"],
}


@pytest.fixture
def amber(tmp_path):
    """Writes AMBER's folder, with a file of queries about the ids given, and answers; returns their paths."""
    (tmp_path / "query").mkdir()
    (tmp_path / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    (tmp_path / "relation.json").write_text(json.dumps(RELATIONS))
    (tmp_path / "safe_words.txt").write_text("light\norange")

    def make(answers):
        queries = [{"id": key, "image": f"AMBER_{key}.jpg", "query": f"Question {key}?"} for key in answers]
        (tmp_path / "query" / "queries.json").write_text(json.dumps(queries))
        rows = [{"id": key, "answer": text} for key, text in answers.items() if text is not None]
        (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "query" / "queries.json", tmp_path / "answers.jsonl"

    return make


def scored(paths, **options):
    return evaluate(Amber(**options), paths[0], predictions=paths[1])


def test_descriptions_are_scored_by_the_objects_that_they_name(amber):
    result = scored(
        amber(
            {
                # Named: man (person), water (lake), cars (not there), a bench (not there), light (safe).
                1: "Two men swim in the water. Some cars are behind a bench under a light.",
                # Named: a dog (there), twice.
                2: "A dog with another dog.",
            }
        )
    )
    assert result.value("chair") == pytest.approx(2 / 7)  # 5 nouns and 2 nouns; cars and bench
    assert result.value("cover") == pytest.approx(3 / 4)  # person and lake of three, and the dog
    assert result.value("hal") == pytest.approx(1 / 2)
    assert result.value("cog") == pytest.approx(1 / 3)  # the car, of dog, car and person
    assert set(result.shares) == {"chair", "cover", "hal", "cog"}


def test_questions_have_no_as_their_positive_answer(amber):
    answers = {3: "No, there is not.", 4: "Yes.", 5: "Yes", 6: "no", 7: "No", 8: None}
    result = scored(amber(answers))
    # No is right for 3, 5, 7 and 8, and is said about 3, 6 and 7.
    assert result.value("accuracy") == pytest.approx(3 / 6)
    assert result.value("precision") == pytest.approx(2 / 3)
    assert result.value("recall") == pytest.approx(2 / 4)
    assert result.value("f1") == pytest.approx(4 / 7)  # 2 · 2 / (3 + 4)
    assert {name: int(mask.sum()) for name, mask in result.groups.items()} == {
        "existence": 2,
        "attribute": 3,
        "state": 1,
        "number": 1,
        "action": 1,
        "relation": 1,
    }
    assert result.value("accuracy", "existence") == 1.0
    assert result.value("recall", "attribute") == pytest.approx(1 / 2)


def test_the_exact_rule_takes_the_words_that_ambers_evaluation_takes(amber):
    answers = {3: "No", 4: "Yes.", 5: "no", 6: "Yes"}
    assert scored(amber(answers)).value("accuracy") == 1.0
    result = scored(amber(answers), yes_no="exact")
    assert result.value("accuracy") == pytest.approx(2 / 4)
    assert list(result.problems["neither"]) == ["4", "5"]


def test_descriptions_and_questions_can_be_in_one_file(amber):
    result = scored(amber({1: "The sky.", 3: "Yes"}))
    assert result.value("chair") == 0.0
    assert result.value("cover") == pytest.approx(1 / 3)
    assert result.value("accuracy") == 0.0
    assert result.value("precision") is None  # nothing was answered with no


def test_the_field_that_amber_calls_response_is_read(amber, tmp_path):
    queries, _ = amber({1: None, 3: None})
    answers = tmp_path / "response.jsonl"
    rows = {"id": 1, "response": "A dog."}, {"id": 3, "response": "No"}
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = scored((queries, answers))
    assert (result.value("cog"), result.value("accuracy")) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", (0, 0, 0, 0)),
        ("You can see people.", (1, 0, 1, 0)),
        ("The vehicle has tires.", (2, 2, 0, 1)),  # two words for one car
        ("A skyline with carpets.", (0, 0, 0, 0)),  # other words
        ("The Sky and a DOG", (2, 1, 1, 1)),
        ("A bench, benches and chairs", (3, 3, 0, 0)),
    ],
)
def test_words_are_found_in_the_singular_and_as_a_whole(text, found):
    words = {*RELATIONS, *(word for own in RELATIONS.values() for word in own), "can"}
    made = describe(text, ["sky", "person"], ["dog", "car"], RELATIONS, frozenset(), words)
    assert (made.nouns, made.invented, made.covered, made.recognized) == found


def test_the_annotations_are_looked_for_beside_the_queries_or_where_the_option_says(amber, tmp_path):
    queries, answers = amber({3: "No"})
    other = tmp_path / "elsewhere" / "deep"
    other.mkdir(parents=True)
    moved = queries.rename(other / "queries.json")
    with pytest.raises(InputError, match=r"AMBER's annotations are not in") as caught:
        scored((moved, answers))
    assert "--data" in caught.value.fix
    assert scored((moved, answers), data=tmp_path).value("accuracy") == 1.0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("query/queries.json", '{"id": 1}', "in no layout that `amber` reads"),
        ("query/queries.json", "[]", "is empty"),
        ("query/queries.json", '[{"id": 99, "image": "a.jpg", "query": "?"}]', "has no entry for query 99"),
        ("annotations.json", '[{"id": 3, "type": "generative", "truth": "yes"}]', "Entry 3 of .* is not valid"),
        ("annotations.json", '[{"id": 3, "type": "relation", "truth": "maybe"}]', "is not AMBER's annotations"),
        ("annotations.json", '[{"id": 3, "type": "generative", "truth": ["ufo"]}]', "lacks words of the annotations"),
        ("relation.json", "[]", "is not AMBER's relations"),
    ],
)
def test_a_file_of_another_layout_is_named(amber, tmp_path, name, content, message):
    paths = amber({3: "No"})
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        scored(paths)


def test_the_task_is_registered_and_reads_no_boxes():
    assert TASKS["amber"] is Amber
    assert not Amber.reads_boxes
