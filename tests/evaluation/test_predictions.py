"""Predictions files: answers are matched by id in any order, and every problem is counted and listed."""

import json
import random

import pytest

from spr.core.errors import ConfigError, InputError
from spr.evaluation.lines import as_id
from spr.evaluation.predictions import Answers, Prediction, read_predictions
from spr.grounding import get_dialect

IDS = [str(k) for k in range(6)]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "predictions.jsonl"


def test_answers_are_returned_in_the_order_of_the_items(file, write_lines):
    rows = [{"id": name, "answer": f"answer {name}"} for name in IDS]
    random.Random(1).shuffle(rows)
    assert [row["id"] for row in rows] != IDS
    answers = read_predictions(write_lines(file, rows), IDS)
    assert answers.texts == [f"answer {name}" for name in IDS]
    assert answers.problems == {}


def test_missing_repeated_unknown_and_other_problematic_answers_are_listed(file):
    lines = [
        '{"id": "0", "answer": "first"}',
        "",
        '{"id": "0", "answer": "second"}',
        '{"id": "1", "answer": ["not", "text"]}',
        '{"id": "2", "answer": null}',
        '{"id": "2", "answer": "later"}',
        '{"id": "99", "answer": "of another file"}',
        '{"answer": "whose?"}',
        '{"id": 1.5, "answer": "no id"}',
        '{"id": "3", "answer": "cut',
        "[1, 2]",
        '{"id": 4, "answer": "a number as id is read as text"}',
    ]
    file.write_text("\n".join(lines))
    answers = read_predictions(file, IDS)
    assert answers.texts == ["first", None, None, None, "a number as id is read as text", None]
    assert answers.problems == {
        "not_json": ["line 10", "line 11"],
        "doubled": ["0", "2"],
        "unknown": ["99"],
        "no_id": ["line 8", "line 9"],
        "not_text": ["1", "2"],
        "missing": ["3", "5"],
    }


def test_the_reasoning_before_an_answer_is_removed_and_kept_in_the_raw_answer(file, write_lines):
    written = {
        "0": "<think>a cat? [0.1, 0.1, 0.2, 0.2]</think>\na dog [0.3, 0.3, 0.5, 0.5]",
        "1": "<think>hm</think><answer>a dog</answer> Done.",
        "2": "<think>a dog [0.3, 0.3, 0.5, 0.5] or",
        "3": "<think></think>",
        "4": "a < b, a <b>dog</b>",
    }
    answers = read_predictions(write_lines(file, [{"id": k, "answer": v} for k, v in written.items()]), IDS)
    expected = ["a dog [0.3, 0.3, 0.5, 0.5]", "a dog", None, "", "a < b, a <b>dog</b>", None]
    assert answers.texts == expected
    assert answers.raw == [*written.values(), None]
    assert answers.problems == {"reasoning": ["2"], "missing": ["5"]}


def test_invalid_utf_8_affects_only_its_own_line(file):
    file.write_bytes(b'{"id": "0", "answer": "\xff\xfe"}\n{"id": "1", "answer": "fine"}\n')
    answers = read_predictions(file, IDS[:2])
    assert answers.texts == [None, "fine"]
    assert answers.problems == {"not_json": ["line 1"], "missing": ["0"]}


def test_the_field_names_of_other_programs_are_read(file, write_lines):
    # LLaVA's and Ferret's files.
    answers = read_predictions(write_lines(file, [{"question_id": 0, "text": "a", "prompt": "?"}]), ["0"])
    assert answers.texts == ["a"]
    # Our own names take precedence where a file has both.
    answers = read_predictions(write_lines(file, [{"id": "0", "question_id": 1, "answer": "b", "text": "?"}]), ["0"])
    assert answers.texts == ["b"]
    # Flickr30k Entities has several sentences per image.
    answers = read_predictions(write_lines(file, [{"image_id": 7, "sentence_id": 2, "text": "c"}]), ["7_2"])
    assert answers.texts == ["c"]


def test_a_folder_means_all_json_lines_files_in_it(tmp_path, write_lines):
    write_lines(tmp_path / "0_of_2.jsonl", [{"id": "1", "answer": "b"}])
    write_lines(tmp_path / "1_of_2.jsonl", [{"id": "0", "answer": "a"}])
    (tmp_path / "metric.json").write_text("not ours")
    assert read_predictions(tmp_path, ["0", "1"]).texts == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "contains no predictions"),
        ("<html>\n", "1 lines that are not JSON objects"),
        ('{"answer": "[1, 2, 3, 4]"}\n', "have no field for an id"),
        ('{"id": "0", "box": [1, 2, 3, 4]}\n', "have no field for an answer"),
        ('{"id": "a", "answer": ""}\n{"id": "b", "answer": ""}\n', "No answer in"),
    ],
)
def test_files_without_usable_predictions_are_refused(file, content, message):
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_predictions(file, IDS)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_predictions(tmp_path / "gone.jsonl", IDS)


def test_a_written_prediction_can_be_read_back(file):
    box = (1.0, 2.0, 3.00004, 4.0)
    text = 'a "dog" — <b>\u2028[1, 2, 3, 4]\n' + "x" * 100_000
    prediction = Prediction("0", text, "Where?", "1.jpg", (box,), ("a dog",), ("offset 3",), "m@1", "ferret")
    file.write_text(prediction.to_line(), encoding="utf-8")
    answers = read_predictions(file, ["0"])
    assert (answers.texts, answers.dialect, answers.model) == ([text], "ferret", "m@1")
    row = json.loads(file.read_text(encoding="utf-8"))
    assert row["boxes"] == [[1.0, 2.0, 3.0, 4.0]]
    assert row["prompt"] == "Where?"


def test_a_question_that_was_not_asked_is_written_with_a_null_answer(file):
    file.write_text(Prediction("0", None).to_line() + Prediction("1", "a").to_line())
    assert read_predictions(file, ["0", "1"]).problems == {"not_text": ["0"]}


def test_the_dialect_of_answers_is_an_object_or_a_name_and_unknown_ones_are_an_error():
    ferret = get_dialect("ferret")
    assert Answers([], dialect=ferret).resolve_dialect() is ferret
    assert Answers([], dialect="llava_onevision:padded=true").resolve_dialect().spec.endswith("padded=true")
    with pytest.raises(ConfigError, match="give --dialect"):
        Answers([]).resolve_dialect()


def test_ids_are_texts_or_whole_numbers():
    assert [as_id(value) for value in ("a", 3, 3.0, True, None, "", [1])] == ["a", "3", None, None, None, None, None]
