"""Cues: what separates chosen from rejected answers besides the accuracy of their boxes."""

import json
import random

import pytest

from spr.config import make_config
from spr.core.errors import RunError
from spr.records import BoxEdit, Candidate, PreferencePair, Span
from spr.records.schemas import to_table
from spr.runs.cues import PairCues, measure_cue, pair_cues
from spr.runs.store import Manifest, StageOutput, StageStore, dropped_table

SIZE = 1000
# Each box is 10 px wide and high; its upper left corner is what counts.
A, B, C, D = (10, 50), (20, 40), (30, 30), (40, 20)


def spans_of(corners):
    """One phrase per corner, ``a thing``, with a box there."""
    return tuple(
        Span("a thing", 8 * k, 8 * k + 7, ((float(x), float(y), x + 10.0, y + 10.0),))
        for k, (x, y) in enumerate(corners)
    )


class Pairs:
    """A run folder with pairs and candidates written by hand: `add` pairs, then `write`."""

    def __init__(self, folder):
        self.folder, self.pairs, self.candidates = folder, [], []

    def add(self, chosen, rejected, /, *, kinds=("full", "full"), edits=("replaced",), dialect="ferret", **reasons):
        """Each side is a text, a list of corners, or both and its problems; ``reasons`` by side say why it ended."""
        k, sides = len(self.pairs), {}
        for side, value, kind in zip(("chosen", "rejected"), (chosen, rejected), kinds, strict=True):
            text, corners, problems = value if isinstance(value, tuple) else ("some words", value, ())
            if isinstance(corners, str):
                text, corners = corners, ()
            spans, candidate = spans_of(corners), f"{k}/{side}"
            plain = " ".join(span.phrase for span in spans)
            told = {"raw_text": text, "text": text, "plain_text": plain, "spans": spans, "problems": problems}
            made = {"finish_reason": reasons.get(side), "seed": k, "model": "m", "dialect": dialect}
            self.candidates.append(Candidate(candidate_id=candidate, query_id=str(k), prompt_kind=kind, **told, **made))
            sides |= {side: f"{text} {side[0]}", f"{side}_spans": spans, f"{side}_candidate": candidate}
        box = (0.0, 0.0, 1.0, 1.0)
        done = tuple(BoxEdit("x", box, None if "removed" in edit else box, edit) for edit in edits)
        scores = {"chosen_score": 0.6, "rejected_score": 0.5, "margin": 0.1}
        image = {"image_id": str(k), "file_name": "x.png", "width": SIZE, "height": SIZE}
        self.pairs.append(
            PreferencePair(query_id=str(k), **image, region=box, prompt="?", **sides, **scores, box_edits=done)
        )

    def write(self, shards=1):
        config = make_config({"annotations": {"path": "a.json", "images": "i"}, "describer": {"backend": "fake"}})
        (self.folder / "config.yaml").write_text(config.to_yaml())
        size = -(-len(self.pairs) // shards)
        for name, rows, kind, per_pair in (
            ("candidates", self.candidates, Candidate, 2),
            ("pairs", self.pairs, PreferencePair, 1),
        ):
            store, manifest = StageStore(self.folder / name), Manifest(name, "by hand", complete=True)
            for shard in range(shards):
                part = slice(shard * size * per_pair, (shard + 1) * size * per_pair)
                table = to_table(rows[part], kind)
                dropped = dropped_table(name, "query", [])
                manifest.shards.append(store.write_shard(shard, StageOutput(table, dropped), inputs=len(table)))
            store.save(manifest)
        return self.folder


@pytest.fixture
def made(tmp_path):
    return Pairs(tmp_path)


def cues_of(run, **options):
    return {cue.name: cue for cue in pair_cues(run, **options).cues}


def test_order_that_reveals_the_chosen_answer_is_measured_and_named(made):
    # 21 of 100 chosen and 83 rejected answers in reading order: 62 pairs are told apart, 38 are not: 62 + 19 = 81.
    for k in range(100):
        made.add([A, B] if k < 21 else [B, A], [A, B] if k < 83 else [B, A])
    found = pair_cues(made.write())
    order = next(cue for cue in found.cues if cue.name == "reading_order")
    assert (order.chosen, order.rejected, order.accuracy, order.pairs) == (0.21, 0.83, 0.81, 100)
    (warning,) = found.warnings
    assert warning.startswith("21 % of chosen and 83 % of rejected answers list their boxes in reading order.")
    assert "identifies the chosen answer in 81 % of pairs" in warning
    assert "`describer.object_order: reading`" in warning


def test_keeping_boxes_is_advised_only_if_chosen_answers_are_the_shorter_ones():
    shorter, longer = measure_cue("words", [2] * 20, [9] * 20), measure_cue("words", [9] * 20, [2] * 20)
    assert "`keep_box` keeps them" in shorter.warning
    assert "keep_box" not in longer.warning
    assert "`pairing.max_length_ratio`" in longer.warning


def test_reading_order_is_by_left_edge_then_by_top_edge_and_needs_two_boxes(made):
    made.add([A, C, B, D], [A])  # one box has no order
    made.add([], [A, B])
    made.add([A, (10, 60), B], [(10, 60), A, B])  # equal left edges
    made.add([A, A], [A, C, B, D])
    cues = cues_of(made.write())
    whole, neighbours = cues["reading_order"], cues["neighbours_in_order"]
    assert (whole.chosen, whole.rejected, whole.accuracy, whole.pairs) == (1, 0, 1, 2)
    # The rejected ones: one of two neighbours in order, and two of three.
    assert (neighbours.chosen, neighbours.rejected) == (1, pytest.approx((1 / 2 + 2 / 3) / 2))
    boxes = cues["boxes"]
    assert (boxes.chosen, boxes.rejected, boxes.pairs) == ((4 + 0 + 3 + 2) / 4, (1 + 2 + 3 + 4) / 4, 4)
    assert boxes.accuracy == (2 + 0.5) / 4  # fewer in two pairs, as many in one


def test_answers_without_order_have_no_such_cue(made):
    made.add([A], [B])
    made.add([], [A])
    assert {"reading_order", "neighbours_in_order"}.isdisjoint(cues_of(made.write()))


def test_pairs_that_differ_in_their_boxes_only_have_no_cue(made):
    for k in range(50):
        made.add([A, B], [A, (20 + k, 41)])
    found = pair_cues(made.write())
    assert [(cue.name, cue.accuracy) for cue in found.cues] == [
        (name, 0.5)
        for name in ("kind_full", "reading_order", "neighbours_in_order", "words", "characters", "boxes", "problems")
    ]
    assert found.warnings == []
    assert "Warning" not in "\n".join(found.table())


def test_pairs_whose_candidates_are_not_there_are_an_error(made):
    for k in range(4):
        made.add([A, B], [A, (20 + k, 41)])
    run = made.write(shards=2)
    path = run / "candidates" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["shards"][1]
    path.write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="has pairs of shard 1, but no candidates of it"):
        pair_cues(run)


def test_lengths_are_those_of_the_rendered_text_in_list_dialects(made):
    one = '{"bbox_2d": [10, 50, 20, 60], "label": "a thing"}'
    two = f'[{one}, {{"bbox_2d": [20, 40, 30, 50], "label": "a thing"}}]'
    for _ in range(10):
        made.add((f"[{one}]", [A], ()), (two, [A, B], ()), edits=("kept", "box_removed"), dialect="qwen2_5_vl")
    # The words without coordinates are "a thing" and "a thing a thing". As written, an entry has 8 words:
    # {"bbox_2d": | [10, | 50, | 20, | 60], | "label": | "a | thing"}; and each text ends with the letter of its side.
    found = pair_cues(made.write(), lambda texts: [text.count("2") for text in texts])
    words, tokens = (next(cue for cue in found.cues if cue.name == name) for name in ("words", "tokens"))
    assert (words.chosen, words.rejected, words.accuracy) == (9, 17, 1)
    assert (tokens.chosen, tokens.rejected) == (2, 4)  # bbox_2d and 20; and again
    assert found.removed_entries == 10
    assert found.warnings[-1].startswith(
        "Refinement removed 10 boxes from chosen answers. The dialect `qwen2_5_vl` lists objects, so their words are"
    )
    assert "`pairing.unmatched: keep_box`" in found.warnings[-1]


def test_dialects_with_prose_keep_the_words_of_removed_boxes(made):
    made.add([A], [A, B], edits=("box_removed", "kept"))
    assert pair_cues(made.write()).removed_entries == 0


def test_a_group_of_cues_gives_one_warning_about_the_strongest():
    strong, stronger = measure_cue("words", [1] * 7 + [3] * 3, [2] * 10), measure_cue("tokens", [1] * 10, [2] * 10)
    assert strong.accuracy == 0.7
    cues = PairCues(10, (strong, stronger, measure_cue("boxes", [3] * 10, [2] * 10)))
    tokens, boxes = cues.warnings
    assert tokens.startswith("On average 1.0 tokens per chosen and 2.0 per rejected answer. This alone identifies")
    assert boxes.startswith("On average 3.0 boxes per chosen and 2.0 per rejected answer.")
    assert "Partly intended, because S_loc rewards naming more objects" in boxes


@pytest.mark.parametrize(
    ("more", "pairs", "warns"),
    [
        (65, 100, True),
        (64, 100, False),
        (35, 100, True),
        (36, 100, False),
        # Two standard errors over chance: 0.5 + 1 / sqrt(16) = 0.75.
        (12, 16, True),
        (11, 16, False),
        (4, 4, True),
        (3, 3, False),
    ],
)
def test_a_cue_warns_from_its_threshold_on(more, pairs, warns):
    cue = measure_cue("boxes", [3] * more + [1] * (pairs - more), [2] * pairs)
    assert cue.accuracy == pytest.approx(max(more, pairs - more) / pairs)
    assert (cue.warning is not None) == warns


def test_lengths_also_warn_if_the_means_differ_by_more_than_a_quarter():
    # Longer in one of two pairs: no better than chance.
    assert measure_cue("words", [10, 15], [11, 9]).warning is None  # 12.5 to 10
    cue = measure_cue("words", [10, 16], [11, 9])
    assert cue.accuracy == 0.5
    assert "On average 13.0 words per chosen and 10.0 per rejected answer." in cue.warning
    assert measure_cue("words", [11, 9], [10, 16]).warning is not None
    assert measure_cue("boxes", [10, 16], [11, 9]).warning is None


def test_prompt_kinds_are_shares_of_both_sides(made):
    for k in range(8):
        made.add([A], [B], kinds=("crop_objects", "crop_objects" if k < 2 else "full"))
    found = pair_cues(made.write())
    kinds = {cue.name: (cue.chosen, cue.rejected, cue.accuracy) for cue in found.cues if cue.group == "kind"}
    # Six pairs are told apart, two are not: (6 + 1) / 8. Nothing comes from `crop` prompts.
    assert kinds == {"kind_full": (0, 0.75, 0.875), "kind_crop_objects": (1, 0.25, 0.875)}
    (warning,) = found.warnings
    assert warning.startswith("0 % of chosen and 75 % of rejected answers come from `full` prompts.")


def test_format_problems_are_those_of_the_text_that_is_trained_on(made):
    bad = "a thing [10, 50, 20, 60] and [1, 2, 3]"
    # Refinement removed what was malformed in the first chosen answer, but not in the second.
    made.add(("a thing [10, 50, 20, 60]", [A], ("3 numbers",)), (bad, [A], ("3 numbers",)))
    made.add((bad, [A], ("3 numbers",)), (f"{bad} [4, 5]", [A], ("3 numbers", "2 numbers")))
    made.add(("a thing", [], ()), ("a thing", [], ()))
    problems = cues_of(made.write())["problems"]
    assert (problems.chosen, problems.rejected, problems.accuracy) == (1 / 3, pytest.approx(1), pytest.approx(2.5 / 3))


def test_cut_answers_are_counted_where_the_reason_is_known(made):
    made.add([A], [B], chosen="stop", rejected="length")
    made.add([A], [B], chosen="stop", rejected="length")
    made.add([A], [B], rejected="length")
    # The last shard is empty.
    cut = cues_of(made.write(shards=4))["cut"]
    assert (cut.chosen, cut.rejected, cut.pairs) == (0, 1, 2)


def test_cut_answers_are_left_out_where_no_reason_is_known(made):
    made.add([A], [B])
    assert "cut" not in cues_of(made.write())


def test_a_run_without_candidates_shows_what_its_pairs_say(made):
    made.add([A, B], [B, A])
    run = made.write()
    (run / "candidates" / "manifest.json").unlink()
    found = pair_cues(run)
    assert {cue.name for cue in found.cues} == {"reading_order", "neighbours_in_order", "words", "characters", "boxes"}
    assert found.dialect is None


def test_a_run_without_pairs(made):
    run = made.write()
    assert pair_cues(run) == PairCues(0, ())
    assert list(pair_cues(run).table())[1:] == []
    (run / "pairs" / "manifest.json").unlink()
    with pytest.raises(RunError, match="finished"):
        pair_cues(run)


def test_the_values_of_many_pairs_in_several_shards_equal_a_plain_computation(made):
    draw = random.Random(0)
    for _ in range(101):
        sides = [
            ("w " * draw.randrange(5), [(draw.randrange(3), draw.randrange(3)) for _ in range(draw.randrange(6))], ())
            for _ in range(2)
        ]
        made.add(*sides)
    cues = cues_of(made.write(shards=3), count_tokens=lambda texts: [len(text) // 2 for text in texts])

    def in_order(spans):
        corners = [box[:2] for span in spans for box in span.boxes]
        return None if len(corners) < 2 else corners == sorted(corners)

    plain = {
        "words": lambda pair, side: len(getattr(pair, side).split()),
        "characters": lambda pair, side: len(getattr(pair, side)),
        "tokens": lambda pair, side: len(getattr(pair, side)) // 2,
        "boxes": lambda pair, side: len(getattr(pair, f"{side}_spans")),
        "reading_order": lambda pair, side: in_order(getattr(pair, f"{side}_spans")),
    }
    for name, value in plain.items():
        both = [(value(pair, "chosen"), value(pair, "rejected")) for pair in made.pairs]
        both = [values for values in both if None not in values]
        more = sum(first > second for first, second in both)
        equal = sum(first == second for first, second in both)
        right = max(more, len(both) - more - equal) + equal / 2
        cue = cues[name]
        assert cue.pairs == len(both)
        assert cue.chosen == pytest.approx(sum(first for first, _ in both) / len(both))
        assert cue.rejected == pytest.approx(sum(second for _, second in both) / len(both))
        assert cue.accuracy == pytest.approx(right / len(both))


def test_the_table_marks_the_cues_with_a_warning_and_the_json_has_the_same_values(made):
    for _ in range(10):
        made.add([A, B], [B, A])
    found = pair_cues(made.write())
    lines = list(found.table())
    assert any(line.split() == ["in", "reading", "order", "100", "%", "0", "%", "1.00", "!"] for line in lines)
    assert any(line.split() == ["boxes", "2.0", "2.0", "0.50"] for line in lines)
    assert lines[-1] == f"  Warning: {found.warnings[0]}"
    values = json.loads(json.dumps(found.to_json()))
    assert values["pairs"] == 10
    assert values["dialect"] == "ferret"
    assert values["cues"]["reading_order"] == {
        "name": "reading_order",
        "chosen": 1.0,
        "rejected": 0.0,
        "accuracy": 1.0,
        "pairs": 10,
    }
    assert values["warnings"] == found.warnings
