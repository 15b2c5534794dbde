"""Answers of an unfinished shard are kept, and requested only once."""

import json

import pytest
from PIL import Image

from spr.config import DescriberConfig
from spr.core.errors import RunError, SprError
from spr.grounding import get_dialect
from spr.models.protocols import Answer, DescribeRequest
from spr.pipeline.answers import AnswerJournal
from spr.records import RegionObject, RegionQuery

SETTINGS = DescriberConfig(backend="fake")


class Asked:
    """Answers with the seed, and records the requests of each call."""

    name, dialect = "asked@1", get_dialect("llava")

    def __init__(self):
        self.calls = []

    def describe(self, requests):
        self.calls.append([request.seed for request in requests])
        return said(*[request.seed for request in requests])


class OneByOne(Asked):
    """Fails at seed 3, after it has delivered the answers before."""

    def describe_each(self, requests, answered):
        for number, request in enumerate(requests):
            if request.seed == 3:
                raise ConnectionError
            answered(number, self.describe([request])[0])


def request(seed, tint=0, prompt="?", query="1/0"):
    box = (0.0, 0.0, 4.0, 4.0)
    about = RegionQuery(query, "1", "1.png", 4, 4, box, "a", (RegionObject("a", "cup", box, inside=True),))
    return DescribeRequest(Image.new("RGB", (4, 4), (tint, 0, 0)), prompt, seed, about, box)


def said(*seeds):
    reasons = ("stop", "length", "stop_string", None)
    return [Answer(f"answer {seed}\n\x00\ud800", reasons[seed % 4]) for seed in seeds]


def test_known_answers_are_not_requested_again(tmp_path):
    file, model = tmp_path / "deep" / "u.jsonl", Asked()
    assert AnswerJournal(model, file, SETTINGS).describe([request(k) for k in (1, 2)]) == said(1, 2)
    again = AnswerJournal(model, file, SETTINGS)
    assert again.describe([request(k) for k in (3, 2, 1, 4)]) == said(3, 2, 1, 4)
    assert again.describe([request(4)]) == said(4)
    assert model.calls == [[1, 2], [3, 4]]
    assert (again.name, again.dialect) == (model.name, model.dialect)


def test_answers_that_arrive_one_by_one_are_saved_one_by_one(tmp_path):
    model = OneByOne()
    with pytest.raises(ConnectionError):
        AnswerJournal(model, tmp_path / "u", SETTINGS).describe([request(k) for k in (1, 2, 3, 4)])
    whole = Asked()
    assert AnswerJournal(whole, tmp_path / "u", SETTINGS).describe([request(k) for k in (1, 2, 3, 4)]) == said(
        1, 2, 3, 4
    )
    assert (model.calls, whole.calls) == ([[1], [2]], [[3, 4]])


@pytest.mark.parametrize(
    "other",
    [request(2), request(1, tint=9), request(1, prompt="!"), request(1, query="2/0")],
    ids=["seed", "pixels", "prompt", "query"],
)
def test_a_change_of_any_part_of_a_request_asks_again(other, tmp_path):
    model = Asked()
    AnswerJournal(model, tmp_path / "u", SETTINGS).describe([request(1)])
    AnswerJournal(model, tmp_path / "u", SETTINGS).describe([other])
    assert len(model.calls) == 2


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.5}, {"top_p": 0.5}, {"max_new_tokens": 5}, {"request_fields": {"top_k": 4}}, {"batch_size": 2}],
)
def test_a_change_of_the_sampling_asks_again_and_of_the_batch_size_does_not(change, tmp_path):
    model = Asked()
    AnswerJournal(model, tmp_path / "u", SETTINGS).describe([request(1)])
    AnswerJournal(model, tmp_path / "u", SETTINGS.model_copy(update=change)).describe([request(1)])
    assert len(model.calls) == (1 if "batch_size" in change else 2)


def test_another_model_is_asked_again(tmp_path):
    model = Asked()
    AnswerJournal(model, tmp_path / "u", SETTINGS).describe([request(1)])
    model.name = "asked@2"
    AnswerJournal(model, tmp_path / "u", SETTINGS).describe([request(1)])
    assert len(model.calls) == 2


@pytest.mark.parametrize("cut", [1, 2, 30, 60])
def test_only_the_answer_of_a_line_cut_off_by_a_crash_is_requested_again(cut, tmp_path):
    file, model = tmp_path / "u", Asked()
    AnswerJournal(model, file, SETTINGS).describe([request(k) for k in (1, 2, 3)])
    file.write_bytes(file.read_bytes()[:-cut])
    for _ in range(2):  # what is written after the incomplete line is complete
        assert AnswerJournal(model, file, SETTINGS).describe([request(k) for k in (1, 2, 3)]) == said(1, 2, 3)
    # A line that lacks only its newline is complete.
    assert model.calls == ([[1, 2, 3]] if cut == 1 else [[1, 2, 3], [3]])


def test_lines_of_another_kind_are_ignored(tmp_path):
    file, model = tmp_path / "u", Asked()
    odd = b'{"key": 1, "answer": "x", "finish_reason": null}\n{"key": "x", "answer": "x", "finish_reason": 1}\n'
    file.write_bytes(b"\xff\xfe\n[]\n" + odd + b"\n" + json.dumps({"key": "x"}).encode())
    assert AnswerJournal(model, file, SETTINGS).describe([request(1)]) == said(1)
    assert AnswerJournal(model, file, SETTINGS).describe([request(1)]) == said(1)
    assert model.calls == [[1]]


def test_answers_of_a_journal_without_finish_reasons_are_requested_again(tmp_path):
    file, model = tmp_path / "u", Asked()
    AnswerJournal(model, file, SETTINGS).describe([request(1)])
    entry = json.loads(file.read_text())
    assert entry.pop("finish_reason") == "length"
    file.write_text(json.dumps(entry) + "\n")
    for _ in range(2):
        assert AnswerJournal(model, file, SETTINGS).describe([request(1)]) == said(1)
    assert model.calls == [[1], [1]]


def test_a_plain_text_as_an_answer_is_an_error(tmp_path):
    class Plain(Asked):
        def describe(self, requests):
            return ["a cup"] * len(requests)

    with pytest.raises(SprError, match=r"Describer asked@1[\s\S]*str 'a cup'[\s\S]*Answer\(text\)"):
        AnswerJournal(Plain(), tmp_path / "u", SETTINGS).describe([request(1)])
    assert not (tmp_path / "u").exists()


def test_an_unusable_file_is_an_error(tmp_path):
    (tmp_path / "u").mkdir()
    with pytest.raises(RunError, match="can't be read"):
        AnswerJournal(Asked(), tmp_path / "u", SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"can't be (read|written)"):
        AnswerJournal(Asked(), tmp_path / "file" / "u", SETTINGS).describe([request(1)])
