"""The stages from region queries to pairs, with models that give prepared answers."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from run_folders import FAKES, rows
from spr.config import ScoringConfig, make_config
from spr.core.views import CLIP_MEAN
from spr.grounding import get_dialect
from spr.models.fakes import FakeDescriber, FakeDetector, FakeScorer
from spr.pipeline import describe, pair, score
from spr.pipeline.describe import training_prompt
from spr.pipeline.pair import make_pair
from spr.pipeline.runner import run
from spr.records import Candidate, Detection, PreferencePair, RegionObject, RegionQuery, Scores, Span
from spr.records.schemas import from_table, to_table

# An image of 100×100 px; the region 20–60, its crop 10–70 (60×60), two cups of 20×20 inside and one far away.
OBJECTS = (
    RegionObject("1", "cup", (20.0, 20.0, 40.0, 40.0), inside=True),
    RegionObject("2", "cup", (40.0, 40.0, 60.0, 60.0), inside=True),
    RegionObject("3", "plate", (80.0, 80.0, 100.0, 100.0)),
)
TALL = RegionObject("1", "pole", (0.0, 0.0, 10.0, 90.0), inside=True)
QUERY = RegionQuery("7/0", "7", "7.png", 100, 100, (20.0, 20.0, 60.0, 60.0), "1", OBJECTS)


@pytest.fixture
def config(tmp_path):
    Image.new("RGB", (100, 100), (200, 30, 30)).save(tmp_path / "7.png")
    return make_config(
        {
            "annotations": {"path": str(tmp_path / "a.json"), "images": str(tmp_path)},
            "detector": {"backend": "none"},
            "describer": {"backend": "fake", "samples": {"full": 1, "crop": 1, "crop_objects": 1}},
            "prompts": {"full": "Where? {region}", "crop": "What?", "crop_objects": "These:\n{objects}"},
        }
    )


class Says:
    """A describer that gives prepared answers, by kind of prompt, and keeps what it was asked."""

    name = "says@1"

    def __init__(self, dialect, **answers):
        self.dialect, self.answers, self.requests = get_dialect(dialect), answers, []

    def describe(self, requests):
        self.requests += requests
        kinds = {"Where": "full", "What": "crop", "These": "crop_objects"}
        return [self.answers[next(kinds[k] for k in kinds if r.prompt.startswith(k))] for r in requests]


def candidates_of(describer, config):
    output = describe.process({"regions": to_table([QUERY], RegionQuery)}, config, describer=describer)
    return from_table(output.table, Candidate), [(d["id"], d["reason"]) for d in output.dropped.to_pylist()]


def test_the_model_is_asked_about_the_image_and_about_the_crop_with_its_objects(config):
    describer = Says("ferret", full="x", crop="y", crop_objects="z")
    candidates_of(describer, config)
    full, crop, listed = describer.requests
    assert full.prompt == "Where? [200, 200, 600, 600] <region_fea>"
    assert full.image.size == (100, 100)
    assert crop.prompt == "What?"
    assert crop.image.size == listed.image.size == (60, 60)
    assert crop.window == (10, 10, 70, 70)
    # In the crop the cups lie at 10–30 and 30–50 of 60 px: 166.7, 500 and 833.3 thousandths, rounded down.
    assert listed.prompt == "These:\n1. cup [166, 166, 500, 500]\n2. cup [500, 500, 833, 833]"
    assert len({r.seed for r in describer.requests}) == 3


@pytest.mark.parametrize(
    ("order", "listed"),
    [
        ("reading", "cup 10 50, fork 30 10, plate 30 30"),
        ("id", "plate 30 30, cup 10 50, fork 30 10"),
        ("shuffled", "fork 30 10, plate 30 30, cup 10 50"),
    ],
)
def test_the_order_of_the_listed_objects(config, order, listed):
    places = {"plate": (30.0, 30.0), "cup": (10.0, 50.0), "fork": (30.0, 10.0)}
    objects = tuple(
        RegionObject(str(number), name, (x, y, x + 10, y + 10), inside=True)
        for number, (name, (x, y)) in enumerate(places.items(), start=3)
    )
    query = dataclasses.replace(QUERY, region=(10.0, 10.0, 60.0, 60.0), start_object="3", objects=objects)
    shown = describe.listed_objects(query, order, seed=0)
    assert ", ".join(f"{item.category} {item.box[0]:g} {item.box[1]:g}" for item in shown) == listed
    describer = Says("ferret", full="x", crop="y", crop_objects="z")
    config = make_config({**config.model_dump(), "describer": {**config.describer.model_dump(), "object_order": order}})
    describe.process({"regions": to_table([query], RegionQuery)}, config, describer=describer)
    lines = describer.requests[2].prompt.splitlines()[1:]
    assert [line.split()[1] for line in lines] == [item.category for item in shown]


def test_an_answer_about_the_crop_becomes_one_about_the_image(config):
    describer = Says(
        "llava", full="a cup [0.20, 0.20, 0.40, 0.40]", crop="a cup [0.50, 0.50, 0.83, 0.83]", crop_objects=""
    )
    (full, crop), dropped = candidates_of(describer, config)
    assert full.text == full.raw_text
    assert crop.raw_text == "a cup [0.50, 0.50, 0.83, 0.83]"
    # 0.5 and 0.83 of 60 px from 10: 40 and 59.8.
    assert [span.phrase for span in crop.spans] == ["a cup"]
    assert crop.spans[0].boxes[0] == pytest.approx((40.0, 40.0, 59.8, 59.8))
    assert crop.text == "a cup [0.40, 0.40, 0.60, 0.60]"
    assert (crop.plain_text, crop.model, crop.dialect, crop.prompt_kind) == ("a cup", "says@1", "llava", "crop")
    assert dropped == [("7/0/crop_objects0", "empty_answer")]


def test_unusable_answers_are_dropped_with_their_reason(config):
    same = "a cup [0.20, 0.20, 0.40, 0.40]"
    describer = Says("llava", full=same, crop="What?", crop_objects="  \n")
    _, dropped = candidates_of(describer, config)
    assert dropped == [("7/0/crop0", "repeats_prompt"), ("7/0/crop_objects0", "empty_answer")]


def test_a_repeat_after_mapping_back_is_dropped(config):
    # 0.50–0.83 of the crop is 0.40–0.60 of the image.
    describer = Says(
        "llava", full="a cup [0.40, 0.40, 0.60, 0.60]", crop="a cup [0.50, 0.50, 0.83, 0.83]", crop_objects=" "
    )
    _, dropped = candidates_of(describer, config)
    assert ("7/0/crop0", "repeats_candidate") in dropped


@pytest.mark.parametrize(
    "answer",
    [
        "no box",
        "a cup [1, 2]",
        "a cup [0.9, 0.9, 7, 8]",
        "чашка [0.1, 0.1, 0.2, 0.2]",
        "\x00\x1b[31m",
        "a [0.1, 0.1, 0.2, 0.2] " * 10_000,
    ],
)
def test_any_answer_becomes_a_candidate(config, answer):
    candidates, _ = candidates_of(Says("llava", full=answer, crop=" ", crop_objects=" "), config)
    assert [c.raw_text for c in candidates] == [answer]


def test_a_missing_image_is_dropped_with_its_reason(config):
    (config.annotations.images / "7.png").unlink()
    assert candidates_of(FakeDescriber(), config) == ([], [("7", "image_missing")])


class Counts:
    """Wraps a fake model and counts what it is asked."""

    def __init__(self, model):
        self.model, self.name = model, model.name
        self.asked = {"embed_views": [], "embed_texts": [], "detect": []}

    def __getattr__(self, method):
        def call(items):
            self.asked[method] += items
            return getattr(self.model, method)(items)

        return call


def candidate(number, *spans, text=None, plain=None):
    words = plain if plain is not None else ", ".join(s[0] for s in spans)
    parts, at = [], 0
    for phrase, *boxes in spans:
        at = words.index(phrase, at)
        parts.append(Span(phrase, at, at + len(phrase), tuple(boxes)))
        at += len(phrase)
    return Candidate(
        f"7/0/full{number}", "7/0", "full", "raw", text or f"text {number}", words, tuple(parts), (), 1, "m", "llava"
    )


def scores_of(candidates, config, scorer=None, detector=None):
    tables = {"regions": to_table([QUERY], RegionQuery), "candidates": to_table(candidates, Candidate)}
    return from_table(score.process(tables, config, scorer=scorer or FakeScorer(), detector=detector).table, Scores)


def test_views_and_equal_texts_are_embedded_once_and_the_detector_is_asked_once_per_text(config):
    candidates = [candidate(k, ("a cup", (20, 20, 40, 40)), text=f"a cup {k}") for k in range(4)]
    candidates.append(candidate(4, ("a plate", (20, 20, 40, 40))))
    scorer, detector = Counts(FakeScorer()), Counts(FakeDetector())
    assert len(scores_of(candidates, config, scorer, detector)) == 5
    assert len(scorer.asked["embed_views"]) == 2
    assert scorer.asked["embed_texts"] == ["a cup", "a plate"]
    assert [r.text for r in detector.asked["detect"]] == ["a cup", "a plate"]
    assert [v.region for v in scorer.asked["embed_views"]] == [None, (20.0, 20.0, 60.0, 60.0)]


class Fixed:
    """Cosines of 0.6 (crop) and 0.2 (local) with every text; one detection at 10–30 of the crop: 20–40 of the image."""

    name = "fixed"

    def embed_views(self, views):
        return np.array([[0.6, 0.8] if v.region is None else [0.2, np.sqrt(0.96)] for v in views], dtype=np.float32)

    def embed_texts(self, texts):
        return np.array([[1.0, 0.0] for _ in texts], dtype=np.float32)

    def detect(self, requests):
        return [[Detection("cup", (10.0, 10.0, 30.0, 30.0), 0.875)] for _ in requests]


def test_the_score_combines_its_parts_as_in_the_paper(config):
    # S_sem = (0.6 + 0.2)/2 = 0.4. One of two cups is placed exactly: S_loc = 0.5. S = 0.8 · 0.4 + 0.2 · 0.5 = 0.42.
    (scores,) = scores_of([candidate(0, ("a cup", (40, 40, 60, 60)))], config, Fixed())
    assert (scores.s_crop, scores.s_local) == (pytest.approx(0.6), pytest.approx(0.2))
    assert scores.semantic == pytest.approx(0.4)
    assert scores.localization == 0.5
    assert scores.score == pytest.approx(0.42)
    # The detection, mapped back, is the other cup: S_loc = 1.
    (scores,) = scores_of([candidate(0, ("a cup", (40, 40, 60, 60)))], config, Fixed(), Fixed())
    assert scores.localization == 1.0
    assert [(m.object_id, m.source) for m in scores.matches] == [("1", "detector"), ("2", "text")]
    assert scores.detections == (Detection("cup", (20.0, 20.0, 40.0, 40.0), 0.875),)


class FindsCupAndFly(Fixed):
    """One detection is 20–38 × 20–40 of the image, on the first cup (IoU 0.9); the other is new, inside the region."""

    def detect(self, requests):
        return [[Detection("cup", (10, 10, 28, 30), 0.9), Detection("fly", (30, 10, 50, 30), 0.5)] for _ in requests]


def with_scoring(config, **fields):
    return config.model_copy(update={"scoring": config.scoring.model_copy(update=fields)})


@pytest.mark.parametrize(
    ("boxes", "annotated", "with_detections"),
    [
        # No box: the detection gives the first cup an IoU of 0.9; as ground truth, detections match nothing.
        ([], 0.9 / 2, 0),
        # The fly is at 40–60 × 20–40 of the image: a box of 40–56 has an IoU of 16/20 with it, and none with the cups.
        ([(40, 20, 56, 40)], 0.9 / 2, 0.8 / 3),
        # The first cup exactly, and the second with an IoU of 18/20.
        ([(20, 20, 40, 40), (40, 40, 58, 60)], 1.9 / 2, 1.9 / 3),
    ],
)
def test_detections_are_predictions_or_ground_truth_but_not_both(config, boxes, annotated, with_detections):
    described = candidate(0, ("things", *boxes))
    (scores,) = scores_of([described], config, Fixed(), FindsCupAndFly())
    assert scores.localization == pytest.approx(annotated)
    settings = with_scoring(config, ground_truth="annotations+detections")
    (scores,) = scores_of([described], settings, Fixed(), FindsCupAndFly())
    # G: two cups and the fly. The detected cup is the first one.
    assert scores.localization == pytest.approx(with_detections)
    assert [m.object_id for m in scores.matches] == ["1", "2", "detection#2"]
    assert "detector" not in {m.source for m in scores.matches}
    assert len(scores.detections) == 2


def test_a_detection_is_a_new_object_up_to_the_given_iou(config):
    settings = with_scoring(config, ground_truth="annotations+detections", same_object_iou=0.9)
    (scores,) = scores_of([candidate(0, plain="nothing")], settings, Fixed(), FindsCupAndFly())
    # An IoU of 0.9 is not over 0.9.
    assert [m.object_id for m in scores.matches] == ["1", "2", "detection#1", "detection#2"]


def test_an_iou_counts_over_the_given_value(config):
    described = candidate(0, ("a cup", (20, 20, 38, 40)))
    for match_iou, localization in ((0.85, 0.45), (0.9, 0.0)):
        (scores,) = scores_of([described], with_scoring(config, match_iou=match_iou), Fixed())
        assert scores.localization == pytest.approx(localization)


def test_the_detector_is_asked_for_each_phrase_once(config):
    class Asked(Fixed):
        def detect(self, requests):
            self.requests = requests
            return super().detect(requests)

    detector = Asked()
    text = "A man riding a horse, a dog and a Dog near the table"
    scores_of([candidate(0, ("A man riding a horse", (20, 20, 40, 40)), plain=text)], config, Fixed(), detector)
    (request,) = detector.requests
    assert request.text == text
    assert request.phrases == ("A man riding a horse", "a dog", "the table")


def test_the_square_for_s_local_is_a_window_or_the_padded_image():
    image = Image.new("RGB", (200, 100), (200, 30, 30))
    image.putpixel((0, 0), (1, 2, 3))
    query = dataclasses.replace(
        QUERY, width=200, region=(10.0, 20.0, 60.0, 60.0), objects=(dataclasses.replace(OBJECTS[0], inside=True),)
    )
    # The window has the image's short side, and begins at the region's left edge.
    local = score.views_of(query, image, 1.5, ScoringConfig()).local
    assert (local.image.size, local.region) == ((100, 100), (0, 20, 50, 60))
    # The image is padded above and below by 50 px.
    padded = score.views_of(query, image, 1.5, ScoringConfig(local_view="padded")).local
    assert (padded.image.size, padded.region) == ((200, 200), (10, 70, 60, 110))
    assert padded.image.getpixel((0, 50)) == (1, 2, 3)
    assert padded.image.getpixel((0, 49)) == padded.image.getpixel((199, 150)) == CLIP_MEAN


def test_squares_are_padded_with_the_given_colour():
    image = Image.new("RGB", (100, 100), (200, 30, 30))
    query = dataclasses.replace(QUERY, region=(20.0, 20.0, 40.0, 30.0))
    views = score.views_of(query, image, 1.0, ScoringConfig(padding_colour=(1, 2, 3)))
    # The crop of 20 × 10 px has 5 rows above and below.
    assert views.whole.image.size == (20, 20)
    rows = [views.whole.image.getpixel((10, y)) for y in (4, 5, 14, 15)]
    assert rows == [(1, 2, 3), (200, 30, 30), (200, 30, 30), (1, 2, 3)]
    tall = dataclasses.replace(QUERY, width=10, region=(0.0, 0.0, 10.0, 90.0), objects=(TALL,))
    local = score.views_of(tall, Image.new("RGB", (10, 100)), 1.0, ScoringConfig(padding_colour=(1, 2, 3))).local
    assert local.image.size == (90, 90)
    assert local.image.getpixel((0, 50)) == (1, 2, 3)


def scored(number, score, *spans, **more):
    described = candidate(number, *spans, **more)
    return described, Scores(described.candidate_id, "7/0", 0, 0, 0, 0, score, (), ())


BEST = ("a cup", (21, 20, 40, 40))


def test_the_best_refined_is_chosen_and_the_worst_as_it_is_rejected(config):
    middle = scored(1, 0.5, ("a cup", (1, 1, 2, 2)))
    rows = [scored(0, 0.1, ("a pot", (0, 0, 9, 9))), middle, scored(2, 0.75, BEST)]
    pair = make_pair(QUERY, rows, config.pairing, config.prompts)
    assert pair.chosen == "a cup [0.20, 0.20, 0.40, 0.40]"
    assert pair.rejected == "text 0"
    assert (pair.chosen_candidate, pair.rejected_candidate) == ("7/0/full2", "7/0/full0")
    assert pair.margin == pytest.approx(0.65)
    assert [(f.box_before, f.box_after) for f in pair.box_edits] == [((21, 20, 40, 40), (20, 20, 40, 40))]
    assert (
        pair.prompt == training_prompt(QUERY, get_dialect("llava"), config.prompts) == "Where? [0.20, 0.20, 0.60, 0.60]"
    )


@pytest.mark.parametrize(
    ("rows", "settings", "reason"),
    [
        ([], {}, "fewer_than_two_candidates"),
        ([scored(0, 0.5, BEST)], {}, "fewer_than_two_candidates"),
        ([scored(0, 0.5, ("a cup", (70, 0, 80, 9))), scored(1, 0.1, BEST)], {}, "chosen_without_box"),
        (
            [scored(0, 0.5, BEST), scored(1, 0.1, BEST, text="a cup [0.20, 0.20, 0.40, 0.40]")],
            {},
            "chosen_equals_rejected",
        ),
        ([scored(0, 0.5, BEST), scored(1, 0.25, BEST)], {"min_margin": 0.26}, "margin_under_minimum"),
        (
            [scored(0, 0.5, BEST), scored(1, 0.1, plain="a b c d e")],
            {"max_length_ratio": 2.4},
            "length_ratio_over_maximum",
        ),
    ],
)
def test_queries_without_a_pair_have_a_reason(config, rows, settings, reason):
    config = config.model_copy(update={"pairing": config.pairing.model_copy(update=settings)})
    assert make_pair(QUERY, rows, config.pairing, config.prompts) == reason


def test_thresholds_are_met_at_equality(config):
    config = config.model_copy(
        update={"pairing": config.pairing.model_copy(update={"min_margin": 0.25, "max_length_ratio": 2.5})}
    )
    rows = [scored(0, 0.5, BEST), scored(1, 0.25, plain="a b c d e")]
    assert isinstance(make_pair(QUERY, rows, config.pairing, config.prompts), PreferencePair)


def test_equal_scores_are_ordered_by_id_for_any_order_of_the_input(config):
    rows = [scored(k, 0.5, ("a cup", (21 + k / 8, 20, 40, 40))) for k in range(3)]
    pairs = [make_pair(QUERY, order, config.pairing, config.prompts) for order in (rows, rows[::-1])]
    assert pairs[0] == pairs[1]
    assert (pairs[0].chosen_candidate, pairs[0].rejected_candidate) == ("7/0/full0", "7/0/full2")


def test_the_pair_stage_names_each_query_without_a_pair(config):
    other = dataclasses.replace(QUERY, query_id="7/1")
    rows = [scored(0, 0.5, BEST), scored(1, 0.1, ("a pot", (0, 0, 9, 9)))]
    tables = {
        "regions": to_table([QUERY, other], RegionQuery),
        "candidates": to_table([c for c, _ in rows], Candidate),
        "scores": to_table([s for _, s in rows], Scores),
    }
    output = pair.process(tables, config)
    assert len(output.table) == 1
    assert [(d["id"], d["kind"], d["reason"]) for d in output.dropped.to_pylist()] == [
        ("7/1", "query", "fewer_than_two_candidates")
    ]


def test_shards_workers_and_a_second_run_change_no_pair(dataset, tmp_path):
    run(make_config(dataset.config(**FAKES, shard_rows=512)), tmp_path / "a")
    run(make_config(dataset.config(**FAKES, shard_rows=7)), tmp_path / "b", workers=2)
    for stage in ("candidates", "scores", "pairs"):
        assert rows(tmp_path / "a", stage) == rows(tmp_path / "b", stage)
    assert len(rows(tmp_path / "a", "pairs")) > 20
    assert all(s.done_before for s in run(make_config(dataset.config(**FAKES, shard_rows=7)), tmp_path / "b"))


def check_that_chosen_beats_rejected(annotations, out):
    run(make_config({"annotations": annotations, **FAKES, "detector": {"backend": "none"}}), out)
    located = {row["candidate_id"]: row["localization"] for row in rows(out, "scores")}
    pairs = rows(out, "pairs")
    margins = [located[p["chosen_candidate"]] - located[p["rejected_candidate"]] for p in pairs]
    assert len(pairs) >= 20
    assert np.mean(margins) > 0.05


def test_on_generated_images_chosen_beats_rejected_in_localization(dataset, tmp_path):
    check_that_chosen_beats_rejected(dataset.config()["annotations"], tmp_path / "run")


def test_on_photographs_chosen_beats_rejected_in_localization(photos, tmp_path):
    paths = {"path": str(photos / "instances.json"), "images": str(photos / "images")}
    check_that_chosen_beats_rejected(paths, tmp_path / "run")
