"""The stages from region queries to pairs, with models that give prepared answers."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from run_folders import FAKES, rows
from spr.commands.run import print_summary
from spr.config import ScoringConfig, make_config
from spr.core.boxes import iou
from spr.core.randomness import stable_hash
from spr.core.views import CLIP_MEAN
from spr.grounding import GroundedText, get_dialect, parse, render
from spr.models.fakes import FakeDescriber, FakeDetector, FakeScorer
from spr.models.protocols import Answer, DescribeRequest
from spr.pipeline import describe, pair, score
from spr.pipeline.describe import training_prompt
from spr.pipeline.pair import displaced, make_pair, make_pairs
from spr.pipeline.runner import StageSummary, run
from spr.records import Candidate, Detection, PreferencePair, RegionObject, RegionQuery, Scores, Span
from spr.records.schemas import from_table, to_table
from spr.runs.store import StageStore

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
    """A describer that gives prepared answers, texts or `Answer`s, by kind of prompt, and keeps what it was asked."""

    name = "says@1"

    def __init__(self, dialect, **answers):
        self.dialect, self.answers, self.requests = get_dialect(dialect), answers, []

    def describe(self, requests):
        self.requests += requests
        kinds = {"Where": "full", "What": "crop", "These": "crop_objects"}
        given = [self.answers[next(kinds[k] for k in kinds if r.prompt.startswith(k))] for r in requests]
        return [answer if isinstance(answer, Answer) else Answer(answer, "stop") for answer in given]


def candidates_of(describer, config):
    output = describe.process({"regions": to_table([QUERY], RegionQuery)}, config, describer=describer)
    return from_table(output.table, Candidate), [(d["id"], d["reason"]) for d in output.dropped.to_pylist()]


def test_points_of_a_crop_are_kept_in_pixels_of_the_image(config):
    point = '[{"point_2d": [500, 500], "label": "cup"}]'
    candidates, _ = candidates_of(Says("qwen3_vl", full=point, crop=point, crop_objects=point), config)
    full, crop = (next(one for one in candidates if one.prompt_kind == kind) for kind in ("full", "crop"))
    (x, y), (cx, cy) = full.spans[0].points[0], crop.spans[0].points[0]
    assert (x, y) == (QUERY.width / 2, QUERY.height / 2)
    x1, y1, x2, y2 = QUERY.region  # the centre of the crop is that of the region unless the image ends
    assert x1 <= cx <= x2
    assert y1 <= cy <= y2
    assert parse(crop.text, "qwen3_vl", (QUERY.width, QUERY.height)).points == ((cx, cy),)


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


def test_a_seed_of_the_describer_replaces_that_of_the_config_for_the_samples(config):
    def seeds(**changes):
        model = Says("llava", full="x", crop="x", crop_objects="x")
        section = config.describer.model_copy(update=changes)
        candidates_of(model, config.model_copy(update={"describer": section}))
        return [request.seed for request in model.requests]

    own = [stable_hash(5, "describe", "7/0", kind, "0") >> 1 for kind in ("full", "crop", "crop_objects")]
    assert seeds(seed=5) == own
    assert seeds() == seeds(seed=config.seed) != own


def test_the_list_of_objects_has_readable_names(config):
    names = ["car_(automobile)", "wine_glass", "{box}", "bow_(weapon)", "bow_(ribbon)", "Cabinet/shelf"]
    objects = tuple(
        RegionObject(str(k), name, (20.0, 20.0, 40.0, 40.0), inside=True) for k, name in enumerate(names, start=1)
    )
    query = dataclasses.replace(QUERY, objects=objects)
    shown = Image.new("RGB", (100, 100))
    prompts = config.prompts.model_copy(update={"object_line": "{index}/{category}/{box}"})
    dialect, samples = get_dialect("ferret"), config.describer.samples
    asked = describe.requests_for(query, shown, dialect, samples, 1.5, prompts, 0)[-1].request.prompt
    box = "[166, 166, 500, 500]"
    listed = ["1/car/", "2/wine glass/", "3/{box}/", "4/bow (weapon)/", "5/bow (ribbon)/", "6/Cabinet/shelf/"]
    assert asked.splitlines()[1:] == [line + box for line in listed]
    texts = FakeDescriber(drop=0, invent=0).describe([DescribeRequest(shown, "", 1, query)])[0].text
    assert "a car [" in texts
    assert "a wine glass [" in texts
    assert "_" not in texts


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
    # 0.5 and 0.83 of 60 px from 10: 40 and 59.8, which the text rounds.
    assert [span.phrase for span in crop.spans] == ["a cup"]
    assert crop.spans[0].boxes[0] == pytest.approx((40.0, 40.0, 60.0, 60.0))
    assert crop.text == "a cup [0.40, 0.40, 0.60, 0.60]"
    assert (crop.plain_text, crop.model, crop.dialect, crop.prompt_kind) == ("a cup", "says@1", "llava", "crop")
    assert dropped == [("7/0/crop_objects0", "empty_answer")]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("The cup is located at [0.5, 0.50, .83, 0.83].", "The cup is located at [0.40, 0.40, 0.60, 0.60]."),
        ("- **Cup**: [0.50, 0.50, 0.83, 0.83]\n", "- **Cup**: [0.40, 0.40, 0.60, 0.60]\n"),
        ("a cup [0.83, 0.83, 0.5, 0.5]", "a cup [0.60, 0.60, 0.40, 0.40]"),
        ("<think>[0, 0, 1, 1]?</think>a cup [0.50, 0.50, 0.83, 0.83]</s>", "a cup [0.40, 0.40, 0.60, 0.60]"),
    ],
)
def test_only_the_numbers_of_an_answer_about_the_crop_change(config, answer, text):
    (full, crop), _ = candidates_of(Says("llava", full=answer, crop=answer, crop_objects=" "), config)
    assert (full.raw_text, crop.raw_text) == (answer, answer)
    assert full.text == answer.removeprefix("<think>[0, 0, 1, 1]?</think>").removesuffix("</s>")
    assert crop.text == text
    again = parse(text, "llava", (100, 100))
    assert (again.plain_text, again.spans) == (crop.plain_text, crop.spans)


def test_an_answer_about_the_crop_with_a_malformed_box_is_dropped_unless_it_is_kept(config):
    answer = "a cup [0.50, 0.50, 0.83, 0.83] and a pot [0.50, 0.50, 0.83]"
    says = Says("llava", full=answer, crop=answer, crop_objects=" ")
    (full,), dropped = candidates_of(says, config)
    assert full.text == answer
    assert ("7/0/crop0", "box_not_mapped") in dropped
    keep = {**config.describer.model_dump(), "malformed_crops": "keep"}
    (_, crop), _ = candidates_of(says, make_config({**config.model_dump(), "describer": keep}))
    assert crop.text == "a cup [0.40, 0.40, 0.60, 0.60] and a pot [0.50, 0.50, 0.83]"


def test_reasoning_that_never_ends_is_no_answer(config):
    _, dropped = candidates_of(Says("llava", full="<think>a cup [0, 0, 1, 1]", crop="x", crop_objects="y"), config)
    assert dropped == [("7/0/full0", "unfinished_reasoning")]


def test_unusable_answers_are_dropped_with_their_reason(config):
    same = "a cup [0.20, 0.20, 0.40, 0.40]"
    describer = Says("llava", full=same, crop="What?", crop_objects="  \n")
    _, dropped = candidates_of(describer, config)
    assert dropped == [("7/0/crop0", "repeats_prompt"), ("7/0/crop_objects0", "empty_answer")]


CUT = Answer("a cup [0.20, 0.20, 0.40, 0.40], a pl", "length")


def test_truncated_answers_are_dropped_and_the_others_have_their_reason(config):
    describer = Says("llava", full=CUT, crop=Answer("a cup", "stop_string"), crop_objects=Answer("a plate"))
    candidates, dropped = candidates_of(describer, config)
    assert [(c.prompt_kind, c.finish_reason) for c in candidates] == [("crop", "stop_string"), ("crop_objects", None)]
    assert dropped == [("7/0/full0", "truncated_answer")]


def test_truncated_answers_can_be_kept(config):
    config = make_config({**config.model_dump(), "describer": {**config.describer.model_dump(), "truncated": "keep"}})
    describer = Says("llava", full=CUT, crop=Answer("", "length"), crop_objects="a plate")
    candidates, dropped = candidates_of(describer, config)
    assert [(c.raw_text, c.finish_reason) for c in candidates] == [(CUT.text, "length"), ("a plate", "stop")]
    assert dropped == [("7/0/crop0", "empty_answer")]


def test_a_truncated_answer_is_one_although_it_repeats_the_prompt_or_is_empty(config):
    # What to change is the token limit.
    describer = Says("llava", full=Answer("", "length"), crop=Answer("What?", "length"), crop_objects="a plate")
    _, dropped = candidates_of(describer, config)
    assert dropped == [("7/0/full0", "truncated_answer"), ("7/0/crop0", "truncated_answer")]


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
        f"7/0/full{number}",
        "7/0",
        "full",
        "raw",
        text or render(GroundedText(words, tuple(parts)), "llava", (100, 100)),
        words,
        tuple(parts),
        (),
        "stop",
        1,
        "m",
        "llava",
    )


@pytest.mark.parametrize(
    ("dialect", "text", "hint"),
    [
        (
            "ferret",
            "a cup [0.10, 0.20, 0.50, 0.60]",
            "1 box in dialect `ferret` with numbers from 0 to 1 (implausible_scale); check describer.dialect: "
            "did the model write `llava` or `llava_onevision` or `shikra`?",
        ),
        (
            "llava",
            "a cup [100, 200, 500, 600]",
            "1 box in dialect `llava` with numbers out of range; check describer.dialect: "
            "did the model write `ferret` or `cogvlm`?",
        ),
        (
            "qwen3_vl",
            '[{"bbox_2d": [0.1, 0.2, 0.5, 0.6], "label": "cup"}]',
            "1 box in dialect `qwen3_vl` with numbers from 0 to 1 (implausible_scale); check describer.dialect: "
            "did the model write `kimi_vl`?",
        ),
        ("ferret", "a cup [1, 2, 3, 4] or [1, 2, 3]", None),
    ],
)
def test_numbers_of_another_scale_give_a_hint_after_the_stage(config, tmp_path, dialect, text, hint):
    describer = Says(dialect, full=text, crop="", crop_objects="")
    output = describe.process({"regions": to_table([QUERY], RegionQuery)}, config, describer=describer)
    store = StageStore(tmp_path / "candidates")
    shard = store.write_shard(0, output, inputs=1)
    assert (shard.rows, describe.scale_hint(store, [shard])) == (1, hint)
    assert describe.scale_hint(store, []) is None


def test_the_hint_of_a_stage_is_printed_with_its_summary(capsys):
    print_summary(StageSummary("candidates", "candidates", 1, {}, {}, {}, 1.0, False, hint="check describer.dialect"))
    assert capsys.readouterr().out.splitlines()[-1] == "  Note: check describer.dialect."


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
    assert pair.rejected == "a pot [0.00, 0.00, 0.09, 0.09]"
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


@pytest.mark.parametrize(
    ("said", "chosen", "rejected"),
    [
        # The second box matches nothing: it goes, and its words stay. The rejected text is as it was said.
        (
            "The cup is at [0.21, 0.20, 0.40, 0.40]. A pot: [0.60, 0.00, 0.70, 0.10]",
            "The cup is at [0.20, 0.20, 0.40, 0.40]. A pot:",
            "cup at [0.3, 0.2, 0.1, 0.4], [9, 9], pot: [1.2, 0.1, 1.3, 0.2]",
        ),
    ],
)
def test_a_pair_is_written_as_the_model_wrote_it(config, said, chosen, rejected):
    rows = [
        (dataclasses.replace(row, text=text), scores)
        for (row, scores), text in zip([scored(0, 0.5, BEST), scored(1, 0.1, BEST)], (said, rejected), strict=True)
    ]
    pair = make_pair(QUERY, rows, config.pairing, config.prompts)
    assert (pair.chosen, pair.rejected) == (chosen, rejected)


LIST = '[{"bbox_2d": [210, 200, 400, 400], "label": "cup"}, {"bbox_2d": [600, 0, 700, 100], "label": "pot"}]'


@pytest.mark.parametrize(
    ("unmatched", "chosen"),
    [
        ("auto", LIST.replace("210", "200")),
        ("keep_box", LIST.replace("210", "200")),
        ("remove_box", '[{"bbox_2d": [200, 200, 400, 400], "label": "cup"}]'),
        ("remove_phrase", '[{"bbox_2d": [200, 200, 400, 400], "label": "cup"}]'),
    ],
)
def test_a_list_keeps_its_entries_unless_their_removal_is_chosen(config, unmatched, chosen):
    pairing = config.pairing.model_copy(update={"unmatched": unmatched})
    rows = [
        (dataclasses.replace(row, text=text, dialect="qwen3_vl"), scores)
        for (row, scores), text in zip([scored(0, 0.5, BEST), scored(1, 0.1, BEST)], (LIST, "[]"), strict=True)
    ]
    assert make_pair(QUERY, rows, pairing, config.prompts).chosen == chosen


def test_lengths_of_lists_are_those_of_their_texts(config):
    rows = [
        (dataclasses.replace(row, text=text, dialect="qwen3_vl"), scores)
        for (row, scores), text in zip([scored(0, 0.5, BEST), scored(1, 0.1, BEST)], (LIST, LIST[:50]), strict=True)
    ]
    ratio = len(LIST) / 50
    for limit, is_pair in ((ratio * 0.99, False), (ratio * 1.01, True)):
        pairing = config.pairing.model_copy(update={"max_length_ratio": limit})
        pair = make_pair(QUERY, rows, pairing, config.prompts)
        assert isinstance(pair, PreferencePair) == is_pair


def test_a_pair_of_boxes_differs_in_displaced_boxes_only(config):
    said = "The cup is at [0.21, 0.20, 0.40, 0.40], a plate at [0.80, 0.80, 1.00, 1.00]."
    row, scores = scored(0, 0.5, BEST)
    rows = [(dataclasses.replace(row, text=said), scores)]
    pairing = config.pairing.model_copy(update={"kind": "boxes", "box_iou": (0.6, 0.7)})
    (pair,) = make_pairs([QUERY], [rows[0][0]], [scores], pairing, config.prompts)
    assert pair.kind == "boxes"
    assert pair.pair_id == "7/0/boxes"
    assert pair.chosen == "The cup is at [0.20, 0.20, 0.40, 0.40], a plate at [0.80, 0.80, 1.00, 1.00]."
    words = re.compile(r"0\.\d\d|1\.00")
    assert words.sub("", pair.rejected) == words.sub("", pair.chosen)
    cup, plate = parse(pair.rejected, "llava", (100, 100)).boxes
    assert 0.6 <= float(iou(cup, (20, 20, 40, 40))) <= 0.7
    assert plate == (80, 80, 100, 100)  # outside the region: as it was
    assert pair.rejected_score == pytest.approx(float(iou(cup, (20, 20, 40, 40))))
    assert (pair.chosen_score, pair.chosen_candidate) == (1.0, pair.rejected_candidate)
    again = make_pairs([QUERY], [rows[0][0]], [scores], pairing, config.prompts)
    other = make_pairs([QUERY], [rows[0][0]], [scores], pairing, config.prompts, seed=1)
    assert again == [pair]
    assert other[0].rejected != pair.rejected


def test_both_kinds_of_pairs_of_a_query(config):
    rows = [scored(0, 0.5, BEST), scored(1, 0.1, ("a pot", (0, 0, 9, 9)))]
    pairing = config.pairing.model_copy(update={"kind": "both"})
    dropped = []
    candidates, scores = zip(*rows, strict=True)
    pairs = make_pairs([QUERY], candidates, scores, pairing, config.prompts)
    assert [pair.kind for pair in pairs] == ["answers", "boxes"]
    assert len({pair.pair_id for pair in pairs}) == 2
    coarse = pairing.model_copy(update={"box_iou": (0.9999, 0.99999)})
    pairs = make_pairs([QUERY], candidates, scores, coarse, config.prompts, on_drop=lambda *drop: dropped.append(drop))
    assert [pair.kind for pair in pairs] == ["answers"]
    assert dropped == [("query", "7/0", "no_box_in_range")]


@pytest.mark.parametrize("key", ["llava", "ferret", "kosmos2", "qwen2_5_vl", "paligemma"])
def test_displaced_boxes_have_an_iou_in_the_range_as_they_are_written(key):
    dialect, rng, size = get_dialect(key), np.random.default_rng(0), (640, 480)
    overlaps = []
    for _ in range(200):
        x, y = rng.uniform(0, 400), rng.uniform(0, 300)
        box = (x, y, x + rng.uniform(60, 240), y + rng.uniform(60, 180))
        moved = displaced(box, (0.5, 0.8), dialect, size, rng)
        frame = dialect.frame(size)
        written, original = (frame.decode(frame.encode(each))[0] for each in (moved, box))
        assert written == pytest.approx(moved)
        overlaps.append(float(iou(written, original)))
    assert min(overlaps) >= 0.5
    assert max(overlaps) <= 0.8
    assert 0.6 < np.mean(overlaps) < 0.7  # spread over the range
    assert np.std(overlaps) > 0.05


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
