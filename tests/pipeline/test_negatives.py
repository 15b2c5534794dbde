"""Questions about absent objects, and about present ones as their counterpart."""

import hashlib
from collections import Counter

import pytest
from pydantic import ValidationError

from run_folders import FAKES, rows
from spr.config import PairingConfig, make_config
from spr.core.errors import ConfigError, RunError
from spr.grounding import DIALECTS, get_dialect, parse
from spr.pipeline.negatives import FIELDS, make_questions
from spr.pipeline.runner import run
from spr.pipeline.stage import STAGES, due_stages
from spr.records import AskableCategories, ImageObject, ImageObjects
from spr.runs.reader import Run
from spr.training.pairs import run_pairs

OBJECTS = (
    ImageObject("1", "dog", (10, 10, 30, 30)),
    ImageObject("2", "wine_glass", (50, 50, 70, 90)),
    ImageObject("3", "cup", (0, 0, 20, 20)),
    ImageObject("4", "cup", (60, 0, 80, 20)),
)
LISTS = AskableCategories(("cat", "kite", "bow_(weapon)"), ("kite",), (), ("dog", "wine_glass"))


def image(askable=LISTS, objects=OBJECTS):
    return ImageObjects("7", "7.jpg", 100, 100, objects, askable=askable)


def questions(*images, dialect="llava_onevision", drops=None, **fields):
    pairing = PairingConfig(**{"negatives": 1, **fields})
    on_drop = (lambda *drop: drops.append(drop)) if drops is not None else lambda *_: None
    return make_questions(images, get_dialect(dialect), pairing, on_drop=on_drop)


@pytest.mark.parametrize(
    "fields",
    [
        {"negatives_from": "popular"},
        {"positives": False},
        {"locate_prompt": "Find {expression}!"},
        {"absent_answer": "No {category}."},
    ],
)
def test_options_of_negatives_without_any_are_refused(fields):
    with pytest.raises(ValidationError, match="there are no negatives: set negatives too"):
        PairingConfig(**fields)
    assert PairingConfig.model_validate(PairingConfig().model_dump()).negatives == 0


def test_chosen_says_that_an_absent_object_is_not_there_and_rejected_boxes_another_object():
    absent, present = questions(image())
    assert (absent.query_id, absent.kind, absent.category) == ("7/absent-0", "absent", "cat")
    assert absent.prompt.endswith("this sentence describes: the cat")
    assert absent.chosen == "There is no cat in the image."
    assert parse(absent.rejected, "llava_onevision", (100, 100)).boxes[0] in {item.box for item in OBJECTS}
    assert [span.boxes for span in absent.rejected_spans] == [parse(absent.rejected, "llava", (100, 100)).boxes]
    there = {"dog": (10, 10, 30, 30), "wine_glass": (50, 50, 70, 90)}
    assert parse(present.chosen, "llava_onevision", (100, 100)).boxes == (there[present.category],)
    assert present.rejected == f"There is no {present.category.replace('_', ' ')} in the image."
    assert (present.query_id, present.kind) == ("7/present-0", "present")


def test_there_are_as_many_present_as_absent_objects_unless_positives_are_off():
    kinds = Counter(pair.kind for pair in questions(image(), negatives=8))
    assert kinds == {"absent": 2, "present": 2}  # two categories have one object, so the third question is left out
    assert {pair.category for pair in questions(image(), negatives=8, positives=False)} == {
        "cat",
        "kite",
        "bow_(weapon)",
    }


def test_the_strategy_chooses_the_list_and_prompt_and_refusal_are_options():
    absent, _ = questions(
        image(), negatives_from="popular", locate_prompt="Find {expression}!", absent_answer="No {category}."
    )
    assert (absent.prompt, absent.chosen) == ("Find the kite!", "No kite.")


@pytest.mark.parametrize(
    ("changed", "fields", "reason"),
    [
        ({"askable": None}, {}, "no_absent_category"),
        ({}, {"negatives_from": "adversarial"}, "no_absent_category"),
        ({"objects": OBJECTS[2:]}, {}, "no_present_category"),
    ],
)
def test_an_image_without_questions_is_dropped_with_a_reason(changed, fields, reason):
    drops = []
    assert questions(image(**changed), drops=drops, **fields) == []
    assert drops == [("image", "7", reason)]


def test_a_second_object_that_the_detector_found_is_not_asked_about():
    twice = (*OBJECTS, ImageObject("2#0", "wine_glass", (5, 5, 15, 15), "detector", 0.9))
    assert {pair.category for pair in questions(image(objects=twice)) if pair.kind == "present"} == {"dog"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_with_boxes_reads_the_box_and_no_box_in_the_refusal(dialect):
    drops = []
    made = questions(image(), dialect=dialect, drops=drops)
    assert len(made) == (2 if DIALECTS[dialect].writes_boxes else 0)
    assert drops == ([] if made else [("image", "7", "not_renderable")])
    for pair in made:
        there, refusal = (pair.rejected, pair.chosen) if pair.kind == "absent" else (pair.chosen, pair.rejected)
        assert len(parse(there, dialect, (100, 100)).boxes) == 1
        assert parse(refusal, dialect, (100, 100)).boxes == ()


def test_every_field_of_the_section_belongs_to_one_of_the_two_stages():
    pairs = {name for name in STAGES["pairs"].sections if name.startswith("pairing.")}
    negatives = {name for name in STAGES["negatives"].sections if name.startswith("pairing.")}
    assert pairs.isdisjoint(negatives)
    assert pairs | negatives == {f"pairing.{name}" for name in PairingConfig.model_fields}
    assert negatives == {f"pairing.{name}" for name in FIELDS}


@pytest.fixture
def config(dataset):
    dataset.coco["categories"] = [{"id": number, "name": f"thing {number}"} for number in range(1, 31)]
    for entry in dataset.coco["annotations"]:
        entry["category_id"] = 1 + (7 * entry["id"] + entry["image_id"]) % 30
    dataset.write()

    def make(**pairing):
        sections = {"path": str(dataset.json), "images": str(dataset.images), "min_objects": 3, "crowds": "drop"}
        return make_config({**FAKES, "annotations": sections, "pairing": pairing, "shard_rows": 7})

    return make


def hashes(out):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*/part-*.parquet"))]


def test_the_stage_runs_only_if_asked_for_and_leaves_the_pairs_as_they_are(config, tmp_path):
    run(config(), tmp_path / "plain")
    assert not (tmp_path / "plain" / "negatives").exists()
    with pytest.raises(ConfigError, match="does not ask for this stage"):
        due_stages(config(), "negatives")
    summaries = run(config(negatives=2), tmp_path / "more", reuse=[tmp_path / "plain"])
    assert [summary.name for summary in summaries if not (summary.reuse or "").startswith("taken over")] == [
        "negatives"
    ]
    assert rows(tmp_path / "more", "pairs") == rows(tmp_path / "plain", "pairs")
    assert Counter(row["kind"] for row in rows(tmp_path / "more", "negatives")).keys() == {"absent", "present"}


@pytest.mark.processes
def test_any_number_of_processes_and_an_interruption_give_the_same_bytes(config, tmp_path):
    run(config(negatives=3), tmp_path / "one")
    run(config(negatives=3), tmp_path / "two", workers=2)
    run(config(negatives=3), tmp_path / "resumed", until="pairs")
    run(config(negatives=3), tmp_path / "resumed")
    first = hashes(tmp_path / "one")
    assert hashes(tmp_path / "two") == hashes(tmp_path / "resumed") == first


def test_changed_questions_are_refused_in_the_same_folder_and_keep_all_other_stages_elsewhere(config, tmp_path):
    run(config(negatives=1), tmp_path / "a")
    with pytest.raises(RunError, match=r"pairing\.negatives: 1 → 2"):
        run(config(negatives=2), tmp_path / "a")
    summaries = run(config(negatives=2), tmp_path / "b", reuse=[tmp_path / "a"])
    assert [summary.name for summary in summaries if "not taken over" in (summary.reuse or "")] == ["negatives"]


def test_training_reads_the_questions_after_the_pairs(config, tmp_path):
    made, out = config(negatives=1), tmp_path / "run"
    run(made, out, until="pairs")
    images = made.annotations.image_source
    with pytest.raises(RunError, match="negatives"):
        run_pairs(out, images, negatives=True)
    run(made, out)
    pairs = list(run_pairs(out, images, negatives=True))
    ids = [row["query_id"] for stage in ("pairs", "negatives") for row in rows(out, stage)]
    assert [pair.pair_id for pair in pairs] == ids
    assert len(set(ids)) == len(ids)
    assert [pair.pair_id for pair in run_pairs(out, images)] == [row["query_id"] for row in rows(out, "pairs")]
    # Reviewers are not shown questions, so none is accepted.
    required = run_pairs(out, images, "require", negatives=True)
    assert {pair.left_out for pair in required} == {"not_accepted_in_review"}


def test_a_reader_has_the_questions_of_each_shard(config, tmp_path):
    out = tmp_path / "run"
    run(config(negatives=1), out)
    source = Run(out)
    found = [pair.to_row() for entry in source.finished("objects").shards for pair in source.questions(entry.index)]
    assert [pair["query_id"] for pair in found] == [row["query_id"] for row in rows(out, "negatives")]
