"""Decisions about pairs: the file, what they come to together, and how far reviewers agree."""

import dataclasses
import json
import math
import os

import pytest

from spr.commands.review import review
from spr.core.errors import ConfigError, RunError
from spr.records import PreferencePair, Span
from spr.runs.reviews import (
    Decision,
    ReviewFile,
    Reviews,
    agreement,
    check_mode,
    check_reviewer,
    decision,
    pair_sha256,
    resolve,
    summarize,
)

CUP = Span("a cup", 0, 5, ((20.0, 20.0, 40.0, 60.0),))


def pair(name="1/0", **values):
    fields = {
        "query_id": name,
        "image_id": "1",
        "file_name": "1.png",
        "width": 200,
        "height": 100,
        "region": (0, 0, 200, 100),
        "prompt": "Describe it.",
        "chosen": "a cup [1]",
        "rejected": "a dog [2]",
        "chosen_spans": (CUP,),
        "rejected_spans": (),
        "chosen_candidate": "1/0/a",
        "rejected_candidate": "1/0/b",
        "chosen_score": 0.5,
        "rejected_score": 0.3,
        "margin": 0.2,
        "box_edits": (),
    }
    return PreferencePair(**fields | values)


def made(reviewer, action, text="a mug [1]", of=None):
    of = of or pair()
    return decision(reviewer, of, action, dataclasses.replace(of, chosen=text) if action == "edit" else None)


def reviews_of(*actions):
    """Reviews of one pair, by reviewers a, b, c, …"""
    return Reviews([made(name, *action.split(":")) for name, action in zip("abcdef", actions, strict=False)])


def test_decisions_are_read_as_they_were_written(tmp_path):
    with ReviewFile(tmp_path) as file:
        for action in ("accept", "edit", "reject", "edit"):
            file.append(made("ana", action))
    read = Reviews.read(tmp_path)
    assert read.of(pair()) == {"ana": made("ana", "edit")}
    assert read.of(pair())["ana"].chosen_spans == (CUP,)
    assert read.unreadable == 0
    lines = [json.loads(line) for line in (tmp_path / "reviews.jsonl").read_text().splitlines()]
    assert [line["action"] for line in lines] == ["accept", "edit", "reject", "edit"]
    assert {"time", "reviewer", "pair", "pair_sha256", "action"} == set(lines[0])


def test_the_hash_is_that_of_what_a_reviewer_sees():
    moved = dataclasses.replace(CUP, boxes=((20.0, 20.0, 40.0, 61.0),))
    seen = [
        {"chosen": "x"},
        {"rejected": "x"},
        {"prompt": "x"},
        {"file_name": "x"},
        {"chosen_spans": (moved,)},
        {"rejected_spans": (CUP,)},
        {"region": (0, 0, 100, 100)},
        {"kind": "boxes"},
    ]
    hashes = {pair_sha256(pair(**change)) for change in seen}
    assert len(hashes | {pair_sha256(pair())}) == 9
    assert pair_sha256(pair(margin=0.9, box_edits=())) == pair_sha256(pair())


def test_a_decision_about_other_answers_does_not_apply():
    reviews = Reviews([made("ana", "reject")])
    again = pair(chosen="a cup [9]")
    assert reviews.of(again) == {}
    assert reviews.apply(again, "use") is again
    assert summarize([again], reviews).stale == 1
    # The same answers again: the decision applies again.
    assert reviews.apply(pair(), "use") == "rejected_in_review"


def test_the_latest_decision_of_each_reviewer_counts_and_clear_takes_it_back():
    reviews = Reviews([made("ana", "reject"), made("ben", "accept"), made("ana", "accept")])
    assert {name: d.action for name, d in reviews.of(pair()).items()} == {"ben": "accept", "ana": "accept"}
    reviews.add(made("ana", "clear"))
    reviews.add(made("ben", "clear"))
    assert reviews.of(pair()) == {}
    assert not reviews.mentions("1/0")
    assert reviews.identity("use") == Reviews().identity("ignore")


@pytest.mark.parametrize(
    ("actions", "state", "text"),
    [
        ([], "undecided", None),
        (["accept"], "accepted", None),
        (["reject"], "rejected", None),
        (["edit"], "edited", "a mug [1]"),
        (["accept", "reject"], "conflict", None),
        (["accept", "accept", "reject"], "accepted", None),
        (["accept", "reject", "reject"], "rejected", None),
        # Two keep it and two don't, though no two of them want the same.
        (["accept", "edit", "reject", "reject"], "conflict", None),
        # Three keep it, and two of these with the same answer.
        (["accept", "edit", "edit", "reject"], "edited", "a mug [1]"),
        (["accept", "edit"], "conflict", None),
        (["edit:x [1]", "edit:y [1]", "edit:y [1]"], "edited", "y [1]"),
        (["edit:x [1]", "edit:y [1]"], "conflict", None),
    ],
)
def test_reviewers_decide_by_majority(actions, state, text):
    outcome = resolve(reviews_of(*actions).of(pair()).values())
    assert outcome.state == state
    assert (outcome.edit and outcome.edit.chosen) == text


@pytest.mark.parametrize(
    ("actions", "used", "required"),
    [
        ([], "a cup [1]", "not_accepted_in_review"),
        (["accept"], "a cup [1]", "a cup [1]"),
        (["reject"], "rejected_in_review", "rejected_in_review"),
        (["edit"], "a mug [1]", "a mug [1]"),
        (["accept", "reject"], "a cup [1]", "not_accepted_in_review"),
    ],
)
def test_what_becomes_of_a_pair(actions, used, required):
    reviews = reviews_of(*actions)
    for mode, expected in (("use", used), ("require", required), ("ignore", "a cup [1]")):
        result = reviews.apply(pair(), mode)
        assert (result if isinstance(result, str) else result.chosen) == expected


def test_modes_and_decisions_have_identities():
    one, other = reviews_of("accept"), reviews_of("reject")
    identities = [one.identity("use"), one.identity("require"), other.identity("use"), Reviews().identity("require")]
    assert len({*identities, Reviews().identity("use")}) == 5
    # Not of when it was decided.
    assert one.identity("use") == reviews_of("accept").identity("use")
    with pytest.raises(ConfigError, match="did you mean `require`"):
        check_mode("requires")


def test_a_torn_line_and_other_rubbish_lose_nothing_else(tmp_path):
    path = tmp_path / "reviews.jsonl"
    with ReviewFile(tmp_path) as file:
        file.append(made("ana", "accept"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-30])
    with ReviewFile(tmp_path) as file:
        file.append(made("ben", "reject"))
    read = Reviews.read(tmp_path)
    assert read.of(pair()).keys() == {"ana", "ben"}
    assert read.unreadable == 1
    line = json.loads(whole)
    rubbish = [
        {},
        line | {"reviewer": ""},
        line | {"reviewer": 3},
        line | {"reviewer": "x" * 81},
        line | {"action": "burn"},
        line | {"action": "edit"},
        line | {"chosen": "x"},
        line | {"action": "edit", "chosen": "x", "chosen_spans": [{"phrase": "x", "start": 5, "end": 2}]},
        line | {"action": "edit", "chosen": "x", "chosen_spans": 3},
        line | {"action": "edit", "chosen": "\ud800"},
        [],
    ]
    path.write_text("\n".join(map(json.dumps, rubbish)) + "\n")
    read = Reviews.read(tmp_path)
    assert (read.unreadable, dict(read.of(pair()))) == (len(rubbish), {})


def test_two_processes_can_not_write_at_once_nor_into_a_file_that_is_gone(tmp_path):
    with ReviewFile(tmp_path) as file:
        with pytest.raises(RunError, match="in use by another review"):
            ReviewFile(tmp_path)
        (tmp_path / "reviews.jsonl").rename(tmp_path / "moved")
        (tmp_path / "reviews.jsonl").write_text("")
        with pytest.raises(RunError, match="was replaced"):
            file.append(made("ana", "accept"))
        (tmp_path / "reviews.jsonl").unlink()
        with pytest.raises(RunError, match="can't be written"):
            file.append(made("ana", "accept"))
    with pytest.raises(RunError, match="can't be written"):
        ReviewFile(tmp_path / "nowhere")


def test_a_full_disk_is_an_error_and_the_next_decision_has_a_line_of_its_own(tmp_path, monkeypatch):
    with ReviewFile(tmp_path) as file:
        file.append(made("ana", "accept"))
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(RunError, match="No space left"):
            file.append(made("ben", "accept"))
        monkeypatch.setattr(os, "fsync", real)
        file.append(made("cem", "accept"))
    assert [bool(line) for line in (tmp_path / "reviews.jsonl").read_text().split("\n")] == [
        True, True, False, True, False
    ]  # fmt: skip
    assert Reviews.read(tmp_path).of(pair()).keys() == {"ana", "ben", "cem"}


def test_cohens_kappa_of_two_reviewers_by_hand():
    # a: 6 accept, 4 reject; b: 5 accept, 5 reject; equal in 7 of 10. Chance: 0.6 · 0.5 + 0.4 · 0.5 = 0.5.
    first = ["accept"] * 6 + ["reject"] * 4
    second = ["accept"] * 4 + ["reject"] * 2 + ["accept"] + ["reject"] * 3
    (found,) = agreement([{"a": x, "b": y} for x, y in zip(first, second, strict=True)] + [{"a": "accept"}])
    assert (found.reviewers, found.pairs) == (("a", "b"), 10)
    assert (found.percent, found.keep_percent) == (70, 70)
    assert math.isclose(found.kappa, (0.7 - 0.5) / (1 - 0.5))
    assert found.keep_kappa == found.kappa


def test_accepting_and_editing_differ_but_both_keep_the_pair():
    (found,) = agreement([{"a": "accept", "b": "edit"}, {"a": "reject", "b": "reject"}])
    # Accept/edit/reject: equal in 1 of 2; chance (a: ½ accept, ½ reject; b: ½ edit, ½ reject) = ¼; (½ − ¼)/(1 − ¼).
    assert (found.percent, found.kappa) == (50, pytest.approx(1 / 3))
    assert (found.keep_percent, found.keep_kappa) == (100, 1)


def test_kappa_is_not_defined_where_all_decisions_are_the_same():
    (found,) = agreement([{"a": "accept", "b": "accept"}] * 3)
    assert (found.percent, found.kappa) == (100, None)


def test_fleiss_kappa_of_three_reviewers_by_hand():
    ratings = [
        {"a": "accept", "b": "accept", "c": "accept"},
        {"a": "accept", "b": "accept", "c": "reject"},
        {"a": "reject", "b": "reject", "c": "accept"},
        {"a": "reject", "b": "reject", "c": "reject"},
        {"a": "accept", "b": "accept"},
    ]
    found = agreement(ratings)
    assert [one.reviewers for one in found] == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert [one.pairs for one in found] == [5, 4, 4, 4]
    # P_i: 1, 1/3, 1/3, 1; mean 2/3. Both categories have 6 of 12 votes: chance 1/2. (2/3 − 1/2)/(1 − 1/2) = 1/3.
    assert found[3].percent == pytest.approx(200 / 3)
    assert found[3].kappa == pytest.approx(1 / 3)


def test_the_summary_counts_states_reviewers_and_conflicts():
    pairs = [pair(f"{k}/0") for k in range(4)]
    reviews = Reviews(
        [
            made("ana", "accept", of=pairs[0]),
            made("ana", "reject", of=pairs[1]),
            made("ben", "edit", of=pairs[1]),
            made("ben", "edit", of=pairs[2]),
        ]
    )
    summary = summarize(pairs, reviews)
    assert summary.states == {"undecided": 1, "accepted": 1, "edited": 1, "rejected": 0, "conflict": 1}
    assert summary.decided == 2
    assert summary.reviewers == {"ana": {"accept": 1, "reject": 1}, "ben": {"edit": 2}}
    assert summary.conflicts == {"1/0": {"ana": "reject", "ben": "edit"}}
    lines = list(summary.lines())
    assert lines[0] == "reviewed: 2 of 4 pairs"
    assert "  conflict 1/0: ana reject, ben edit" in lines
    # They have one pair in common and disagree: equal 0; chance: a always rejects, b always edits, 0. (0 − 0)/1 = 0.
    assert "  ana and ben on 1 pair: 0 % agree, kappa 0.00; keep or reject: 0 %, 0.00" in lines


def test_decisions_are_valid():
    with pytest.raises(ValueError, match="1 to 80"):
        Decision("  ", "1/0", "ab", "accept")
    with pytest.raises(ValueError, match="not a decision"):
        Decision("ana", "1/0", "ab", "accept", chosen="x")


@pytest.mark.parametrize("name", ["", " ana", "x" * 81, "a\x07na"])
def test_names_are_checked_before_anything_is_opened(name):
    with pytest.raises(ConfigError, match="--reviewer is not a name"):
        check_reviewer(name)


def test_options_that_have_no_effect_are_errors(tmp_path):
    for options in ({"port": 80}, {"no_browser": True}, {"reviewer": "ana"}):
        with pytest.raises(ConfigError, match="--summary opens no page"):
            review(tmp_path, summary=True, **options)
    with pytest.raises(ConfigError, match="--import opens no page"):
        review(tmp_path, corrections=tmp_path, reviewer="ana", port=80)
    with pytest.raises(RunError, match="is not a run folder"):
        review(tmp_path, summary=True)
