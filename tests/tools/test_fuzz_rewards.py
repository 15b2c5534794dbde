"""Some thousand mutated and hostile answers earn numbers from 0 to 1; see tools/fuzz_rewards.py."""

import pytest

from spr.grounding import DIALECTS
from spr.rewards import REWARDS
from tools import fuzz_rewards
from tools.fuzz_rewards import Findings, answers, check, fuzz, hostile_texts, seeds, truths


def test_every_answer_earns_numbers_from_0_to_1():
    found = fuzz(2000)
    assert found.failures == []
    assert (found.answers, found.errors, found.nan, found.out_of_range) == (2000, 0, 0, 0)
    # Many still place an object, so that not only empty answers are tested.
    assert found.rewarded > 250


@pytest.mark.long
def test_every_one_of_100_000_answers_earns_numbers_from_0_to_1():
    found = fuzz(100_000, seed=1)
    assert found.failures == []
    assert found.answers == 100_000
    assert found.slowest < 10  # seconds, on any machine


def test_every_dialect_and_kind_of_truth_occurs():
    drawn = list(answers(3000, 0))
    assert {truth.dialect for truth, _ in drawn} == set(DIALECTS)
    assert {truth.labels for truth, _ in drawn} == {"ignore", "name", "synonyms", "phrase"}
    assert {len(truth.objects) for truth, _ in drawn} == {0, 1, 3, 12}
    assert max(len(text) for _, text in drawn) > 90_000
    assert drawn == list(answers(3000, 0))


@pytest.mark.parametrize("key", DIALECTS)
def test_seeds_are_answers_that_the_rewards_can_read(key):
    truth = next(truth for truth in truths(key) if len(truth.objects) == 12 and truth.labels == "ignore")
    read = [truth.read(text) for text in seeds(key)]
    assert max(len(answer.boxes) + len(answer.points) for answer in read) == 30
    assert max(REWARDS["recall"](answer, truth) + REWARDS["point_in_box"](answer, truth) for answer in read) > 0


def test_hostile_texts_have_the_size_that_is_asked_for():
    sizes = [len(text) for _, text in hostile_texts(10_000)]
    assert len(sizes) > 30
    assert all(8_000 < size < 21_000 for size in sizes)


@pytest.mark.parametrize(
    ("value", "kind"), [(float("nan"), "nan"), (1.1, "out_of_range"), (-0.1, "out_of_range"), (None, "errors")]
)
def test_errors_and_wrong_numbers_are_found(value, kind, monkeypatch):
    def reward(*_):
        if value is None:
            raise KeyError("x")
        return value

    monkeypatch.setattr(fuzz_rewards, "get_reward", lambda _: reward)
    monkeypatch.setattr(fuzz_rewards, "SPECS", ("mine",))
    truth, text = next(answers(1, 0))
    found = Findings()
    check(truth, text, found)
    assert {name: getattr(found, name) for name in ("nan", "out_of_range", "errors")} == {
        "nan": 0,
        "out_of_range": 0,
        "errors": 0,
        kind: 1,
    }
    ((problem, kept, answer),) = found.failures
    assert problem
    assert (kept, answer) == (truth.to_json(), text)
