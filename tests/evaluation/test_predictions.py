"""Predictions files: answers are matched by id in any order, and every problem is counted and listed."""

import json
import random

import pytest

from spr.core.errors import ConfigError, InputError
from spr.evaluation.answer_fields import ANSWER_FIELDS, Item, same_image
from spr.evaluation.lines import as_id
from spr.evaluation.predictions import Answers, Prediction, read_predictions
from spr.grounding import get_dialect

IDS = [str(k) for k in range(6)]


def of(*ids):
    """Items of which only the ids are known."""
    return [Item(name) for name in ids]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "predictions.jsonl"


def test_answers_are_returned_in_the_order_of_the_items(file, write_lines):
    rows = [{"id": name, "answer": f"answer {name}"} for name in IDS]
    random.Random(1).shuffle(rows)
    assert [row["id"] for row in rows] != IDS
    answers = read_predictions(write_lines(file, rows), of(*IDS))
    assert answers.texts == [f"answer {name}" for name in IDS]
    assert answers.problems == {}


def test_lines_that_need_closer_reading_change_nothing_for_the_others(file, write_lines):
    """A file of plain lines is read in fewer steps than one with finish reasons, questions or strange ids."""
    draw = random.Random(2)
    kinds = [
        "[1, 2, 3, 4]",
        " a dog ",
        "",
        "  ",
        "<think>so</think> a cat",
        "<think>so",
        "where is it?",
        None,
        ["x"],
        7,
    ]
    items = [Item(str(k), "0.jpg", question="where is it?") for k in range(300)]
    plain = [{"id": item.id, "answer": draw.choice(kinds)} for item in items]
    answers = read_predictions(write_lines(file, plain), items)
    closer = [row | {"finish_reason": "stop", "prompt": "where is it?"} for row in plain]
    closer += [{"id": "unknown", "answer": "a dog", "prompt": "and this?"}, closer[0]]
    again = read_predictions(write_lines(file, closer), items)
    assert (answers.texts, answers.raw) == (again.texts, again.raw)
    ids = {kind: [row["id"] for row in plain if test(row["answer"])] for kind, test in PLAIN_PROBLEMS.items()}
    assert answers.problems == ids
    doubled = {} if isinstance(plain[0]["answer"], str) else {"doubled": ["0"]}
    assert again.problems == ids | {"unknown": ["unknown"]} | doubled


PLAIN_PROBLEMS = {
    "not_text": lambda answer: not isinstance(answer, str),
    "empty": lambda answer: isinstance(answer, str) and not answer.strip(),
    "reasoning": lambda answer: answer == "<think>so",
    "question": lambda answer: answer == "where is it?",
}


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
    answers = read_predictions(file, of(*IDS))
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
    answers = read_predictions(write_lines(file, [{"id": k, "answer": v} for k, v in written.items()]), of(*IDS))
    expected = ["a dog [0.3, 0.3, 0.5, 0.5]", "a dog", None, "", "a < b, a <b>dog</b>", None]
    assert answers.texts == expected
    assert answers.raw == [*written.values(), None]
    assert answers.problems == {"reasoning": ["2"], "empty": ["3"], "missing": ["5"]}


def test_invalid_utf_8_affects_only_its_own_line(file):
    file.write_bytes(b'{"id": "0", "answer": "\xff\xfe"}\n{"id": "1", "answer": "fine"}\n')
    answers = read_predictions(file, of(*IDS[:2]))
    assert answers.texts == [None, "fine"]
    assert answers.problems == {"not_json": ["line 1"], "missing": ["0"]}


def test_the_field_names_of_other_programs_are_read(file, write_lines):
    # LLaVA's and Ferret's files.
    answers = read_predictions(write_lines(file, [{"question_id": 0, "text": "a", "prompt": "?"}]), of("0"))
    assert answers.texts == ["a"]
    # Flickr30k Entities has several sentences per image.
    answers = read_predictions(write_lines(file, [{"image_id": 7, "sentence_id": 2, "text": "c"}]), of("7_2"))
    assert answers.texts == ["c"]


def test_a_folder_means_all_json_lines_files_in_it(tmp_path, write_lines):
    write_lines(tmp_path / "0_of_2.jsonl", [{"id": "1", "answer": "b"}])
    write_lines(tmp_path / "1_of_2.jsonl", [{"id": "0", "answer": "a"}])
    (tmp_path / "metric.json").write_text("not ours")
    assert read_predictions(tmp_path, of("0", "1")).texts == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "contains no predictions"),
        ("<html>\n", "1 line without a JSON object"),
        ('{"answer": "[1, 2, 3, 4]"}\n', "have no field for an id"),
        ('{"id": "0", "box": [1, 2, 3, 4]}\n', "have no field for an answer"),
        ('{"id": "a", "answer": ""}\n{"id": "b", "answer": ""}\n', "No answer in"),
    ],
)
def test_files_without_usable_predictions_are_refused(file, content, message):
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_predictions(file, of(*IDS))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_predictions(tmp_path / "gone.jsonl", of(*IDS))


def test_a_written_prediction_can_be_read_back(file):
    box = (1.0, 2.0, 3.00004, 4.0)
    text = 'a "dog" — <b>\u2028[1, 2, 3, 4]\n' + "x" * 100_000
    prediction = Prediction("0", text, "Where?", "1.jpg", (box,), ("a dog",), ("offset 3",), "m@1", "ferret")
    file.write_text(prediction.to_line(), encoding="utf-8")
    answers = read_predictions(file, of("0"))
    assert (answers.texts, answers.dialect, answers.model) == ([text], "ferret", "m@1")
    row = json.loads(file.read_text(encoding="utf-8"))
    assert row["boxes"] == [[1.0, 2.0, 3.0, 4.0]]
    assert row["prompt"] == "Where?"


def test_a_question_that_was_not_asked_is_written_with_a_null_answer(file):
    file.write_text(Prediction("0", None).to_line() + Prediction("1", "a").to_line())
    assert read_predictions(file, of("0", "1")).problems == {"not_text": ["0"]}


def test_the_dialect_of_answers_is_an_object_or_a_name_and_unknown_ones_are_an_error():
    ferret = get_dialect("ferret")
    assert Answers([], dialect=ferret).resolve_dialect() is ferret
    assert Answers([], dialect="llava_onevision:padded=true").resolve_dialect().spec.endswith("padded=true")
    with pytest.raises(ConfigError, match="give --dialect"):
        Answers([]).resolve_dialect()


def test_ids_are_texts_or_whole_numbers():
    assert [as_id(value) for value in ("a", 3, 3.0, 1e30)] == ["a", "3", "3", str(int(1e30))]
    assert [as_id(value) for value in (3.5, float("inf"), True, None, "", [1])] == [None] * 6


CAT = Item("1", "1.jpg", question="Is there a cat?", label="no")
DOG = Item("2", "2.jpg", question="Is there a dog?", label="no")


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        # A question, a label or another answer beside the answer.
        ([{"text": "Is there a cat?", "response": "yes"}, {"text": "Is there a dog?", "response": "no"}], "response"),
        ([{"answer": "no", "response": "yes"}, {"answer": "no", "response": "no"}], "response"),
        ([{"answer": "no", "prediction": "yes"}, {"answer": "yes", "prediction": "no"}], "answer or prediction"),
        ([{"text": "yes", "pred": ["yes"]}, {"text": "yes", "pred": ["yes"]}], "text or pred"),
        # Each line has one, but not the same.
        ([{"answer": "well"}, {"text": "yes"}], "answer or text"),
        ([{"answer": "well", "text": None}, {"answer": None, "text": "yes"}], "answer or text"),
    ],
)
def test_several_known_answer_fields_are_refused_by_name(lines, left, file, write_lines):
    lines = [{"question_id": k, **line} for k, line in enumerate(lines, start=1)]
    with pytest.raises(InputError, match=rf"Several fields[\s\S]*--answer-field {left}$") as caught:
        read_predictions(write_lines(file, lines), [CAT, DOG])
    assert all(f"`{name}`, first in line" in str(caught.value) for name in set(lines[0]) & set(ANSWER_FIELDS))
    name = left.split()[0]
    answers = read_predictions(file, [CAT, DOG], answer_field=name)
    assert answers.texts == [line.get(name) for line in lines]


def test_several_fields_are_refused_however_late_the_second_one_comes(file, write_lines):
    lines = [{"id": k, "answer": "a"} for k in range(200)] + [{"id": 200, "text": "b"}]
    with pytest.raises(InputError, match="`text`, first in line 201"):
        read_predictions(write_lines(file, lines), of(*map(str, range(201))))


def test_the_error_says_which_field_is_the_question_or_the_label(file, write_lines):
    lines = [{"id": 1, "text": "Is there a cat?", "answer": "no", "response": "yes"}]
    with pytest.raises(
        InputError, match=r"`answer`.*, the label in every line; `text`.*, the question in every line; `r"
    ):
        read_predictions(write_lines(file, lines), [CAT])


@pytest.mark.parametrize(
    "line",
    [
        {"text": "{}"},  # the question file itself
        {"question": "{}", "answer": "{}"},
        {"prompt": "USER: {}\nASSISTANT:", "text": "USER: {}\nASSISTANT:"},
        {"answer": " {}\n"},
    ],
)
def test_the_question_is_never_the_answer(line, file, write_lines):
    items = [CAT, DOG]
    lines = [{"id": item.id} | {k: v.format(item.question) for k, v in line.items()} for item in items]
    with pytest.raises(InputError, match=r"No answer in .* can be used\.\s+got: +2 question"):
        read_predictions(write_lines(file, lines), items)
    field = list(line)[-1]
    answers = read_predictions(write_lines(file, [lines[0], lines[1] | {field: "yes"}]), items)
    assert answers.texts == [None, "yes"]
    assert answers.problems == {"question": ["1"]}


def test_a_copy_of_the_label_is_not_taken_for_the_answer_if_another_text_may_be_it(file, write_lines):
    lines = [{"id": item.id, "answer": item.label, "model_says": "yes"} for item in (CAT, DOG)]
    with pytest.raises(InputError, match=r"the label in every line[\s\S]*--answer-field model_says or answer"):
        read_predictions(write_lines(file, lines), [CAT, DOG])
    assert read_predictions(file, [CAT, DOG], answer_field="model_says").texts == ["yes", "yes"]
    assert read_predictions(file, [CAT, DOG], answer_field="answer").texts == ["no", "no"]
    for second, path in (
        ({"model_says": "yes"}, "model_says"),  # in the first line it is the label too
        ({"outputs": ["no", "yes"]}, r"outputs\.1"),
        ({"choices": [{"message": {"content": "yes"}}]}, r"choices\.0\.message\.content"),
        ({"answer": " No. ", "model_says": "yes"}, "model_says"),
        ({"text": DOG.question, "model_says": "yes"}, "model_says"),
    ):
        first = {"id": CAT.id, "answer": CAT.label, "model_says": "no"}
        with pytest.raises(InputError, match=f"the label in every line[\\s\\S]*--answer-field {path}"):
            read_predictions(write_lines(file, [first, {"id": DOG.id, "answer": DOG.label} | second]), [CAT, DOG])
    # One answer that differs from its label, or no other text: a model that is right.
    write_lines(file, [lines[0], lines[1] | {"answer": "Yes."}])
    assert read_predictions(file, [CAT, DOG]).texts == ["no", "Yes."]
    write_lines(file, [{"id": item.id, "prompt": item.question, "answer": "no"} for item in (CAT, DOG)])
    assert read_predictions(file, [CAT, DOG]).texts == ["no", "no"]


BATCH = {"body": {"model": "m", "choices": [{"message": {"role": "assistant", "content": "yes"}}]}, "request_id": "r"}


@pytest.mark.parametrize(
    ("line", "options"),
    [
        # LLaVA, ms-swift, LLaMA-Factory, text-generation-inference
        ({"question_id": 1, "prompt": "Is there a cat?\nAnswer in one word.", "text": "yes", "model_id": "m"}, {}),
        ({"id": "1", "response": "yes", "labels": "no", "logprobs": None, "messages": [{"content": "?"}]}, {}),
        ({"id": 1, "prompt": "Is there a cat?", "predict": "yes", "label": "no"}, {}),
        ({"id": 1, "generated_text": "yes"}, {}),
        # vLLM's and OpenAI's batch files, lmms-eval
        (
            {"id": "r-7", "custom_id": "1", "response": BATCH},
            {"answer_field": "response.body.choices.0.message.content"},
        ),
        ({"doc_id": 1, "target": "no", "resps": [["yes"]]}, {"answer_field": "resps.0.0", "id_field": "doc_id"}),
        ({"doc": {"id": 1}, "model output": "yes"}, {"answer_field": "model output", "id_field": "doc.id"}),
    ],
)
def test_the_files_of_other_programs_are_read(line, options, file, write_lines):
    assert read_predictions(write_lines(file, [line]), [CAT], **options).texts == ["yes"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"custom_id": "1", "response": BATCH}, "--answer-field response.body.choices.0.message.content$"),
        ({"id": "1", "answer": [{"text": "yes"}]}, "--answer-field answer.0.text$"),
        ({"id": "1", "answer": 1}, "is not text[\\s\\S]*got: +int"),
        # Without an id (LLaMA-Factory), or with unknown fields: the error names the fields.
        (
            {"prompt": "Is there a cat?", "predict": "yes", "label": "no"},
            "got: +prompt, predict, label\n[\\s\\S]*--id-field",
        ),
        ({"id": 1, "target": "no", "resps": [["yes"]]}, "got: +id, target, resps\n[\\s\\S]*--answer-field NAME"),
    ],
)
def test_the_error_for_an_unknown_format_says_which_option_reads_it(line, message, file, write_lines):
    with pytest.raises(InputError, match=message):
        read_predictions(write_lines(file, [line]), [CAT])


def test_a_field_that_no_line_has_is_refused(file, write_lines):
    write_lines(file, [{"id": 1, "answer": "yes"}])
    for options in ({"answer_field": "anser"}, {"answer_field": ""}, {"id_field": "idd"}, {"answer_field": "answer.0"}):
        (name,) = options.values()
        with pytest.raises(InputError, match=rf"no field for an[\s\S]*expected: {name}"):
            read_predictions(file, [CAT], **options)


def test_the_id_field_is_the_one_that_fits_and_two_that_fit_are_refused(file, write_lines):
    lines = [{"id": k, "question_id": k + 100, "answer": str(k)} for k in range(3)]
    answers = read_predictions(write_lines(file, lines), of("100", "101", "102"))
    assert answers.texts == ["0", "1", "2"]
    assert answers.matched == {
        "id_field": "question_id", "answer_field": "answer", "items": 3, "of_items": 3, "lines": 3, "of_lines": 3,
    }  # fmt: skip
    # Numbers from 0 beside numbers from 1: each line would get its neighbour's answer.
    write_lines(file, [{"id": k, "question_id": k + 1, "answer": str(k)} for k in range(3)])
    with pytest.raises(InputError, match=r"`id`, `question_id`[\s\S]*--id-field id or question_id"):
        read_predictions(file, of("1", "2", "3"))
    assert read_predictions(file, of("1", "2", "3"), id_field="question_id").texts == ["0", "1", "2"]
    # The same ids twice are no question.
    write_lines(file, [{"id": str(k), "question_id": k, "answer": str(k)} for k in range(3)])
    assert read_predictions(file, of("0", "1", "2")).texts == ["0", "1", "2"]


def test_ids_are_matched_as_text_in_any_order_and_what_matched_is_counted(file):
    file.write_text(
        '{"id": 2.0, "answer": "c"}\n{"id": "1", "answer": "b"}\n{"id": 0, "answer": "a"}\n{"id": 0, "answer": "a"}\n'
        '{"id": 9, "answer": "z"}\n{"answer": "?"}\n'
    )
    answers = read_predictions(file, of(*"0123"))
    assert answers.texts == ["a", "b", "c", None]
    # A repeated line is no problem; of different answers, the first counts.
    assert answers.problems == {"unknown": ["9"], "no_id": ["line 6"], "missing": ["3"]}
    assert {k: answers.matched[k] for k in ("items", "of_items", "lines", "of_lines")} == {
        "items": 3, "of_items": 4, "lines": 4, "of_lines": 6,
    }  # fmt: skip


def test_ids_of_another_file_are_refused_with_examples_of_both(file, write_lines):
    write_lines(file, [{"id": f"val_{k}", "answer": "a"} for k in range(3)])
    with pytest.raises(
        InputError, match=r"belongs to an item[\s\S]*`id`: val_0, val_1, val_2, …\s+expected: 0, 1, 2, …"
    ):
        read_predictions(file, of(*IDS))


@pytest.mark.parametrize("field", ["prompt", "question", "query"])
def test_answers_to_other_questions_with_the_same_ids_are_not_used(field, file, write_lines):
    # POPE's three files have the same ids and images.
    lines = [
        {"id": 1, field: "Is there a CAT ?", "answer": "yes"},
        {"id": 2, field: "Is there a cow?", "answer": "yes"},
    ]
    answers = read_predictions(write_lines(file, lines), [CAT, DOG])
    assert answers.texts == ["yes", None]
    assert answers.problems == {"other_item": ["2 (Is there a cow?)"]}
    lines[0][field] = "Is there a horse?"
    with pytest.raises(InputError, match=r"2 other_item .the line names another image or question"):
        read_predictions(write_lines(file, lines), [CAT, DOG])
    # A text that is the same in all lines is a template.
    write_lines(file, [line | {field: "Answer the question."} for line in lines])
    assert read_predictions(file, [CAT, DOG]).texts == ["yes", "yes"]


@pytest.mark.parametrize(
    ("field", "fits"), [("file_name", True), ("image", True), ("image_path", True), ("size", False)]
)
def test_answers_about_other_images_with_the_same_ids_are_not_used(field, fits, file, write_lines):
    # Ids that are line numbers belong to any file.
    lines = [{"id": 1, field: "a/COCO_1.png", "answer": "yes"}, {"id": 2, field: "12.jpg", "answer": "yes"}]
    assert read_predictions(write_lines(file, lines), [CAT, DOG]).texts == ["yes", None if fits else "yes"]


def test_an_image_is_the_same_in_another_folder_or_format_and_with_a_prefix():
    assert same_image("val2014/COCO_val2014_000000000042.jpg", "000000000042.png")
    assert same_image("a\\b.c.jpg", "b.c.png")
    assert not same_image("1.jpg", "11.jpg")
    assert not same_image("1.jpg", "2.jpg")


def test_answers_in_several_dialects_need_one_to_be_given(file, write_lines):
    lines = [{"id": 1, "answer": "a", "dialect": "ferret", "model": "b"}, {"id": 2, "answer": "c", "model": "a"}]
    answers = read_predictions(write_lines(file, lines), [CAT, DOG])
    assert (answers.dialect, answers.model) == ("ferret", "a, b")
    write_lines(file, [lines[0], lines[1] | {"dialect": "llava"}])
    with pytest.raises(InputError, match=r"several dialects[\s\S]*ferret, llava[\s\S]*--dialect"):
        read_predictions(file, [CAT, DOG])
    assert read_predictions(file, [CAT, DOG], dialect="llava").dialect == "llava"


def test_a_json_list_is_refused_with_the_command_that_converts_it(file):
    file.write_text('[{"id": 1, "answer": "yes"}]')
    with pytest.raises(InputError, match="jq -c"):
        read_predictions(file, [CAT])


def test_a_finish_reason_of_another_type_is_ignored(file, write_lines):
    write_lines(file, [{"id": 1, "answer": "a", "finish_reason": ["length"]}])
    assert read_predictions(file, [CAT]).problems == {}
