"""Malformed input in the stages from candidates to pairs, with the real classes of scorer and detector."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from spr.commands.run import print_summary
from spr.config import make_config
from spr.core.errors import InputError
from spr.models.batching import DeviceMemoryError
from spr.models.errors import ModelError
from spr.models.fakes import FakeDescriber, FakeDetector, FakeScorer
from spr.models.protocols import Answer
from spr.pipeline import describe, score
from spr.pipeline.runner import run
from spr.runs.store import StageStore, read_table

ANSWERS = {
    "no box": "There is a cup, and a box beside it.",
    "only malformed boxes": "a cup [0.1, 0.2] and a box [0.3, 0.4, x, 0.5] and a pot [0.3, 0.4, 0.5",
    "boxes outside of the image": "a cup [7.00, 8.00, 9.00, 9.50] and a box [-5.00, -5.00, -4.00, -4.00]",
    "10,000 boxes": "a pot [0.95, 0.95, 0.99, 0.99] " * 10_000,
    "control characters": "\x00\x1b[31m a cup\x07 [0.95, 0.95, 0.99, 0.99]\x7f\r\n\u202e",
    "another language": "чашка [0.95, 0.95, 0.99, 0.99] и 茶碗 [0.90, 0.95, 0.99, 0.99]، فنجان",
    "half a surrogate pair": "a cup\ud83e [0.95, 0.95, 0.99, 0.99]",
    "longer than any encoder reads": "a red cup on the left, " * 600 + "a cup [0.95, 0.95, 0.99, 0.99].",
    "one word of 20,000 letters": "a" * 20_000 + " [0.95, 0.95, 0.99, 0.99]",
    "digits": "[" * 3000 + "0.5, " * 3000,
}
BOXES = {"no box": 0, "only malformed boxes": 0, "boxes outside of the image": 0, "digits": 0} | {
    "10,000 boxes": 10_000,
    "another language": 2,
}
MALFORMED = ("only malformed boxes", "boxes outside of the image", "digits")
DROPPED = {"nothing at all": "", "white space": " \n\t ", "the prompt": None, "the beginning of the prompt": None}


class Says:
    """The annotations, except to the last request about an image, which gets the answer for its number."""

    name, good = "says@1", FakeDescriber(drop=0, jitter=0.02, invent=0)

    def __init__(self):
        self.dialect = self.good.dialect

    def describe(self, requests):
        answers = self.good.describe(requests)
        last = {request.query.image_id: k for k, request in enumerate(requests)}
        for image_id, k in last.items():
            kind = [*ANSWERS, *DROPPED][(int(image_id) - 1000) // 7]
            prompt = requests[k].prompt
            said = {"the prompt": f" {prompt}\n", "the beginning of the prompt": prompt[:30]}
            answers[k] = Answer(said.get(kind, {**ANSWERS, **DROPPED}[kind]), "stop")
        return answers


@pytest.fixture(scope="module")
def settings(clip_folder, grounding_dino_folder, make_dataset, tmp_path_factory):
    data = make_dataset(tmp_path_factory.mktemp("bad") / "data", images=len(ANSWERS) + len(DROPPED))
    return data.config(
        describer={"backend": "fake", "malformed_crops": "keep"},
        scorer={"model": str(clip_folder), "device": "cpu"},
        # No detection of an untrained model has a score this high, so its boxes don't help the bad answers.
        detector={"model": str(grounding_dino_folder), "box_threshold": 0.99, "device": "cpu"},
        scoring={"semantic_weight": 0.0},
    )


def rows(out, stage):
    return [row for table in StageStore(out / stage).tables() for row in table.to_pylist()]


@pytest.fixture(scope="module")
def bad_answers(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("bad-answers") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(describe, "load_describer", lambda _: Says())
        run(make_config(settings), out)
    return out


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_bad_answer_is_a_candidate_with_a_score_and_is_what_the_pair_rejects(kind, bad_answers):
    image_id = str(1000 + 7 * list(ANSWERS).index(kind))
    (query,) = [row for row in rows(bad_answers, "regions") if row["image_id"] == image_id]
    made = [row for row in rows(bad_answers, "candidates") if row["query_id"] == query["query_id"]]
    (bad,) = [row for row in made if row["candidate_id"].endswith("/crop_objects1")]
    assert bad["raw_text"].replace("\ufffd", "\ud83e") == ANSWERS[kind]
    scores = {row["candidate_id"]: row for row in rows(bad_answers, "scores")}
    assert all(-1 <= scores[row["candidate_id"]][part] <= 1 for row in made for part in ("s_crop", "s_local"))
    # No box of the bad answer covers an object; the slightly shifted annotations cover all of them.
    assert scores[bad["candidate_id"]]["score"] == 0
    (pair,) = [row for row in rows(bad_answers, "pairs") if row["query_id"] == query["query_id"]]
    assert pair["rejected_candidate"] == bad["candidate_id"]
    assert pair["rejected"] == bad["text"]
    assert pair["chosen_score"] > 0.85
    assert sum(len(span["boxes"]) for span in bad["spans"]) == BOXES.get(kind, 1)
    assert bool(bad["problems"]) == (kind in MALFORMED)


@pytest.mark.parametrize("kind", DROPPED)
def test_an_unusable_answer_is_dropped_with_its_reason_and_the_others_form_the_pair(kind, bad_answers):
    image_id = str(1000 + 7 * (len(ANSWERS) + list(DROPPED).index(kind)))
    dropped = [row for row in read_table(bad_answers / "dropped.parquet").to_pylist() if row["id"].startswith(image_id)]
    reason = "repeats_prompt" if "prompt" in kind else "empty_answer"
    assert [(row["kind"], row["stage"], row["reason"]) for row in dropped] == [("candidate", "candidates", reason)]
    assert [row for row in rows(bad_answers, "pairs") if row["image_id"] == image_id]


def picture(width, height):
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    down = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (across, down, Image.new("L", (width, height), 90)))


def sixteen_bits(image):
    return Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16)) * 257)


IMAGES = {
    "rgb.png": lambda image: image,
    "grey.png": lambda image: image.convert("L"),
    "one-bit.png": lambda image: image.convert("1"),
    "palette.gif": lambda image: image.convert("P"),
    "cmyk.jpg": lambda image: image.convert("CMYK"),
    "sixteen-bit.png": sixteen_bits,
    "alpha.png": lambda image: image.convert("RGBA"),
    "grey-alpha.png": lambda image: image.convert("LA"),
    "one-pixel.png": lambda image: image.resize((1, 1)),
    "strip.png": lambda image: image.resize((600, 2)),
}


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory):
    """Images of every kind: objects that fill them, lie in two corners and in the middle; regions reach the borders."""
    folder = tmp_path_factory.mktemp("odd")
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cup"}]}
    for number, (name, change) in enumerate(IMAGES.items()):
        image = change(picture(64, 48))
        image.save(folder / name)
        width, height = image.size
        coco["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        parts = [(0, 0, 1, 1), (0, 0, 0.4, 0.5), (0.6, 0.5, 0.4, 0.5), (0.3, 0.25, 0.4, 0.5)]
        for k, (x, y, w, h) in enumerate(parts):
            box = [x * width, y * height, w * width, h * height]
            coco["annotations"].append(
                {"id": 10 * number + k, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0}
            )
    (folder / "a.json").write_text(json.dumps(coco))
    annotations = {"path": str(folder / "a.json"), "images": str(folder), "min_area": 0, "min_objects": 1}
    return {"annotations": annotations, "regions": {"min_inside": 1, "min_aspect": 0.0, "per_image": 4}}


@pytest.mark.parametrize(
    ("adapter", "folder"), [("grounding_dino", "mm_grounding_dino_folder"), ("owlv2", "owlv2_folder")]
)
def test_images_of_every_kind_and_regions_at_their_borders_become_pairs(
    adapter, folder, request, odd_images, clip_folder, tmp_path
):
    config = make_config(
        {
            **odd_images,
            "describer": {"backend": "fake"},
            "scorer": {"model": str(clip_folder), "device": "cpu"},
            "detector": {
                "backend": adapter,
                "model": str(request.getfixturevalue(folder)),
                "box_threshold": 0.0,
                "device": "cpu",
            },
        }
    )
    run(config, tmp_path / "run")
    regions = rows(tmp_path / "run", "regions")
    assert {row["file_name"] for row in regions} == set(IMAGES)
    assert any(row["region"] == [0, 0, row["width"], row["height"]] for row in regions)
    scores = rows(tmp_path / "run", "scores")
    assert {row["query_id"] for row in scores} == {row["query_id"] for row in regions}
    assert all(np.isfinite([row["s_crop"], row["s_local"], row["localization"], row["score"]]).all() for row in scores)
    sizes = {row["query_id"]: (row["width"], row["height"]) for row in regions}
    for row in scores:
        for find in row["detections"]:
            x1, y1, x2, y2 = find["box"]
            width, height = sizes[row["query_id"]]
            assert -1e-3 <= x1 <= x2 <= width + 1e-3
            assert -1e-3 <= y1 <= y2 <= height + 1e-3
    # Within one pixel, two answers can't differ in two decimals; all other images give pairs.
    assert {row["file_name"] for row in rows(tmp_path / "run", "pairs")} >= set(IMAGES) - {"one-pixel.png"}


FAKES = {"describer": {"backend": "fake"}, "scorer": {"backend": "fake"}, "detector": {"backend": "fake"}}


@pytest.mark.parametrize("section", ["describer", "scorer", "detector"])
def test_a_missing_model_or_other_weights_give_one_error_and_lose_nothing(
    section, make_dataset, clip_folder, owlv2_folder, tmp_path
):
    data = make_dataset(tmp_path / "data", images=4)
    real = {"describer": {}, "scorer": {"backend": "clip"}, "detector": {"backend": "grounding_dino"}}[section]
    other = owlv2_folder if section != "detector" else clip_folder
    # With crowds to detect, a wrong detector fails in the first stage.
    crowds = {"annotations": {"crowds": "drop"}}
    for model, message in ((tmp_path / "nowhere", "no such model folder"), (other, str(other))):
        config = make_config(
            data.config(**{**FAKES, **crowds, section: {**real, "model": str(model), "device": "cpu"}})
        )
        with pytest.raises(ModelError, match=re.escape(message)):
            run(config, tmp_path / "run")
    # A folder that is no multimodal LLM is refused before the first stage; other weights, where they are needed.
    assert (tmp_path / "run" / "regions").exists() == (section != "describer")
    # The error can be fixed: no stage that needs the model has started.
    summaries = run(make_config(data.config(**FAKES, **crowds)), tmp_path / "run")
    assert summaries[0].done_before == (section != "describer")
    assert summaries[-1].rows > 0


def test_running_out_of_memory_loses_no_finished_shard_and_a_smaller_batch_resumes(make_dataset, tmp_path, monkeypatch):
    data, asked = make_dataset(tmp_path / "data", images=9), []

    class Full:
        """A model that runs out of memory after the first shard."""

        def __init__(self, model, fails_at):
            self.model, self.name, self.fails_at = model, model.name, fails_at
            self.dialect = getattr(model, "dialect", None)

        def __getattr__(self, method):
            real = getattr(self.model, method)

            def call(items):
                asked.append(method)
                if asked.count(method) > self.fails_at:
                    raise DeviceMemoryError("A single item does not fit into the device's memory", fix="…")
                return real(items)

            return call

    settings = {**FAKES, "shard_rows": 3}
    run(make_config(data.config(**settings)), tmp_path / "whole")
    for module, loader, model in (
        (describe, "load_describer", FakeDescriber()),
        (score, "load_scorer", FakeScorer()),
        (score, "load_detector", FakeDetector()),
    ):
        stage = module.NAME
        with monkeypatch.context() as patch:
            patch.setattr(module, loader, lambda _, model=model: Full(model, fails_at=1))
            with pytest.raises(DeviceMemoryError):
                run(make_config(data.config(**settings)), tmp_path / "run")
        asked.clear()
        assert [shard.index for shard in StageStore(tmp_path / "run" / stage).manifest().shards] == [0]
        if stage == "scores":
            StageStore(tmp_path / "run" / stage).part(0).unlink()
        settings = {**settings, "describer": {"backend": "fake", "batch_size": 1}}
    run(make_config(data.config(**settings)), tmp_path / "run")
    for stage in ("candidates", "scores", "pairs"):
        assert rows(tmp_path / "run", stage) == rows(tmp_path / "whole", stage)


def test_if_all_answers_are_unusable_the_run_ends_with_the_reasons_and_keeps_its_tables(
    make_dataset, tmp_path, monkeypatch
):
    class Mute(Says):
        def describe(self, requests):
            return [Answer(request.prompt if request.seed % 2 else "", "stop") for request in requests]

    monkeypatch.setattr(describe, "load_describer", lambda _: Mute())
    data = make_dataset(tmp_path / "data", images=3)
    with pytest.raises(InputError, match=r"`candidates` has no candidates[\s\S]*candidate: (empty|repeats)"):
        run(make_config(data.config(**FAKES)), tmp_path / "run")
    assert rows(tmp_path / "run", "regions")


@pytest.mark.parametrize("all_of_them", [True, False])
def test_if_most_answers_are_truncated_the_run_names_the_token_limit(
    all_of_them, make_dataset, tmp_path, monkeypatch, capsys
):
    class Cut(FakeDescriber):
        def describe(self, requests):
            answers = super().describe(requests)
            whole = [not all_of_them and request.seed % 4 == 0 for request in requests]
            return [a if w else Answer(a.text[:-1], "length") for a, w in zip(answers, whole, strict=True)]

    monkeypatch.setattr(describe, "load_describer", lambda _: Cut())
    data, summaries, out = make_dataset(tmp_path / "data", images=6), [], tmp_path / "run"
    config = make_config(data.config(**FAKES))
    if all_of_them:
        with pytest.raises(InputError, match=r"no candidates[\s\S]*truncated_answer[\s\S]*describer\.max_new_tokens"):
            run(config, out)
        assert not (out / "pairs").exists()
    else:
        run(config, out, until="candidates", report=summaries.append)
        cut = summaries[-1].dropped["candidate: truncated_answer"]
        asked = 6 * len(rows(out, "regions"))
        assert 2 * cut > asked
        assert summaries[-1].advice.startswith(f"{cut:,} of {asked:,} candidates were dropped as truncated_answer")
        assert "raise describer.max_new_tokens" in summaries[-1].advice
        assert [summary.advice for summary in summaries[:-1]] == [None, None]
        print_summary(summaries[-1])
        assert f"  Note: {summaries[-1].advice}.\n" in capsys.readouterr().out


def test_kept_truncated_answers_become_pairs_that_say_so(make_dataset, tmp_path, monkeypatch):
    class Cut(FakeDescriber):
        def describe(self, requests):
            return [
                Answer(answer.text, ("length", "stop")[r.seed % 2])
                for r, answer in zip(requests, super().describe(requests), strict=True)
            ]

    monkeypatch.setattr(describe, "load_describer", lambda _: Cut())
    data = make_dataset(tmp_path / "data", images=6)
    settings = {**FAKES, "describer": {"backend": "fake", "truncated": "keep"}}
    summaries = run(make_config(data.config(**settings)), tmp_path / "run")
    assert not any("truncated" in reason for summary in summaries for reason in summary.dropped)
    reason_of = {row["candidate_id"]: row["finish_reason"] for row in rows(tmp_path / "run", "candidates")}
    pairs = rows(tmp_path / "run", "pairs")
    assert set(reason_of.values()) == {"length", "stop"}
    assert len({row["chosen_finish_reason"] for row in pairs}) == 2
    for row in pairs:
        for side in ("chosen", "rejected"):
            assert row[f"{side}_finish_reason"] == reason_of[row[f"{side}_candidate"]]
