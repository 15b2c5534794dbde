"""What exports, training and the report make of reviewers' decisions."""

import json

import pytest

from spr.core.errors import ConfigError, InputError, RunError
from spr.exports.writing import export
from spr.grounding import get_dialect
from spr.report.page import write_report
from spr.runs.edits import edited_pair, numbered_answer, to_numbered
from spr.runs.reader import Run
from spr.runs.reviews import ReviewFile, Reviews, decision, effect, read_summary
from spr.training.pairs import run_pairs
from spr.training.run import run as run_training


@pytest.fixture(scope="module")
def reviewed(make_dataset, make_run, tmp_path_factory):
    """A run of which the first pair is accepted, the second rejected and the third edited; ben agrees on the first."""
    run = make_run(make_dataset(tmp_path_factory.mktemp("data"), images=6))
    pairs = [item.pair for shard in Run(run).shards() for item in shard.pairs]
    assert len(pairs) > 3
    dialect = get_dialect(Run(run).describer[1].key)
    answer = numbered_answer(pairs[2], dialect)
    boxes = [[1, 2, 31, 42], *answer.boxes[1:]]
    edited = edited_pair(pairs[2], to_numbered(answer) + " Truly.", boxes, dialect)
    with ReviewFile(run) as file:
        for made in (
            decision("ana", pairs[0], "accept"),
            decision("ana", pairs[1], "reject"),
            decision("ana", pairs[2], "edit", edited),
            decision("ben", pairs[0], "accept"),
        ):
            file.append(made)
    return run, pairs, edited


def rows(folder):
    return {row["id"]: row for row in json.loads((folder / "train.json").read_text())}


def test_exports_leave_out_rejected_pairs_and_have_edited_answers(reviewed, tmp_path):
    run, pairs, edited = reviewed
    summary = export(run, tmp_path / "use", "llava")
    assert (summary.pairs, summary.left_out) == (len(pairs) - 1, {"rejected_in_review": 1})
    made = rows(tmp_path / "use")
    assert pairs[1].pair_id not in made
    assert made[pairs[0].pair_id]["chosen"] == pairs[0].chosen
    assert made[pairs[2].pair_id]["chosen"] == edited.chosen != pairs[2].chosen
    assert made[pairs[3].pair_id]["chosen"] == pairs[3].chosen
    # The exact box of the edit, in another dialect's numbers.
    export(run, tmp_path / "converted", "llava", dialect="internvl")
    width, height = edited.width, edited.height
    corner = [int(1000 * 1 / width), int(1000 * 2 / height)]
    assert f"[[{corner[0]}, {corner[1]}," in rows(tmp_path / "converted")[pairs[2].pair_id]["chosen"]
    left_out = [json.loads(line) for line in (tmp_path / "use" / "left_out.jsonl").read_text().splitlines()]
    assert [(row["query_id"], row["reason"]) for row in left_out] == [(pairs[1].query_id, "rejected_in_review")]


def test_exports_can_require_or_ignore_reviews_and_tell_them_apart(reviewed, tmp_path):
    run, pairs, _ = reviewed
    summary = export(run, tmp_path / "required", "llava", reviews="require")
    assert rows(tmp_path / "required").keys() == {pairs[0].pair_id, pairs[2].pair_id}
    assert summary.left_out == {"not_accepted_in_review": len(pairs) - 3, "rejected_in_review": 1}
    assert export(run, tmp_path / "ignored", "llava", reviews="ignore").pairs == len(pairs)
    assert export(run, tmp_path / "ignored", "llava", reviews="ignore").done_before
    with pytest.raises(RunError, match=r"holds another export[\s\S]*other decisions of `spr review`"):
        export(run, tmp_path / "ignored", "llava")


def test_training_leaves_out_rejected_pairs_and_has_edited_answers(reviewed):
    run, pairs, edited = reviewed
    source = Run(run).config.annotations.image_source
    used = list(run_pairs(run, source))
    assert [pair.pair_id for pair in used] == [pair.pair_id for pair in pairs]
    assert [pair.left_out for pair in used[:4]] == [None, "rejected_in_review", None, None]
    assert [pair.chosen for pair in used[:4]] == [pairs[0].chosen, pairs[1].chosen, edited.chosen, pairs[3].chosen]
    required = [pair.left_out for pair in run_pairs(run, source, "require")]
    assert required == [None, "rejected_in_review", None] + ["not_accepted_in_review"] * (len(pairs) - 3)
    ignored = list(run_pairs(run, source, "ignore"))
    assert [(pair.chosen, pair.left_out) for pair in ignored] == [(pair.chosen, None) for pair in pairs]
    with pytest.raises(ConfigError, match="--reviews require can't be used with --pairs"):
        run_training(Run(run).config, run, pairs=run, reviews="require")


def test_the_effect_is_said_in_a_line(reviewed):
    run, pairs, _ = reviewed
    others = len(pairs) - 3
    counts = "1 accepted, 1 edited, 1 rejected and left out"
    assert effect(run, "use") == f"Reviews (--reviews use): {counts}, {others} undecided and used as they are"
    assert effect(run, "require") == f"Reviews (--reviews require): {counts}, {others} undecided and left out"
    assert effect(run, "ignore") is None


def test_the_report_shows_the_review(reviewed, tmp_path):
    run, pairs, _ = reviewed
    page = write_report(run, tmp_path / "report", images=False).read_text()
    section = page[page.index('<section id="review">') : page.index('<section id="training">')]
    assert f"3 of {len(pairs)} pairs are decided" in section
    assert '<bdi>ana</bdi></th><td class="n">1</td><td class="n">1</td><td class="n">1</td>' in section
    # They have one pair in common and agree on it, which chance alone explains.
    assert '<bdi>ana, ben</bdi></th><td class="n">1</td><td class="n">100 %</td><td class="n">–</td>' in section


def test_a_run_without_accepted_pairs_exports_nothing_and_says_what_to_do(make_dataset, make_run, tmp_path):
    run = make_run(make_dataset(tmp_path / "data", images=2))
    with pytest.raises(InputError, match="review them with `spr review`"):
        export(run, tmp_path / "out", "llava", reviews="require")
    assert "Not reviewed yet" in write_report(run, tmp_path / "report", images=False).read_text()
    assert read_summary(run).decided == 0
    assert Reviews.read(run).unreadable == 0
    assert effect(run, "use") is None
