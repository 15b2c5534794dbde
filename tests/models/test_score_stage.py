"""The stage `scores` with real classes: batching does not change the scores."""

import numpy as np
import pytest
from PIL import Image

from spr.config import make_config
from spr.models.detectors.grounding_dino import GroundingDinoDetector
from spr.models.scorers.clip import ClipScorer
from spr.pipeline.score import process
from spr.records import Candidate, RegionObject, RegionQuery, Scores
from spr.records.schemas import from_table, to_table

TEXTS = (
    "a cat",
    "the man on the left, a red umbrella. a bird with the blue chair, a dog. the tree",
    "a cat. " * 30,
    "",
    "a dog on the chair",
)


@pytest.fixture
def tables(tmp_path):
    queries, candidates = [], []
    for k, (width, height) in enumerate([(120, 80), (60, 90), (120, 80)]):
        noise = np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{k}.png")
        things = (RegionObject("1", "cat", (10, 10, 50, 60), inside=True),)
        for n, region in enumerate([(10.0, 10.0, 50.0, 60.0), (0.0, 5.5, 60.0, 80.0)]):
            queries.append(RegionQuery(f"{k}/{n}", str(k), f"{k}.png", width, height, region, "1", things))
            for number, text in enumerate(TEXTS[: 3 + n + k % 2]):
                candidate_id = f"{k}/{n}/full{number}"
                candidates.append(
                    Candidate(candidate_id, f"{k}/{n}", "full", text, text, text, (), (), "stop", 1, "m", "llava")
                )
    return {"regions": to_table(queries, RegionQuery), "candidates": to_table(candidates, Candidate)}


def scores(tables, folder, clip_folder, dino_folder, batch_size):
    paths = {"path": str(folder / "none.json"), "images": str(folder)}
    config = make_config({"annotations": paths, "describer": {"backend": "fake"}})
    scorer = ClipScorer(clip_folder, device="cpu", batch_size=batch_size)
    detector = GroundingDinoDetector(dino_folder, device="cpu", batch_size=batch_size, box_threshold=0.3)
    return from_table(process(tables, config, scorer=scorer, detector=detector).table, Scores)


def test_batches_padding_and_groups_change_no_score(tables, tmp_path, clip_folder, grounding_dino_folder):
    folders = tmp_path, clip_folder, grounding_dino_folder
    batched = scores(tables, *folders, batch_size=16)
    # One view, one text piece, one pair of crop and text, and one query at a time.
    regions = tables["regions"]
    one_query = [{**tables, "regions": regions.slice(k, 1)} for k in range(len(regions))]
    alone = [score for part in one_query for score in scores(part, *folders, batch_size=1)]
    assert [s.candidate_id for s in batched] == [s.candidate_id for s in alone]
    assert len(batched) == 7 + 9 + 7
    assert sum(len(s.detections) for s in batched) > 20
    for one, other in zip(batched, alone, strict=True):
        for name in ("s_crop", "s_local", "semantic", "localization", "score"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4), (one.candidate_id, name)
        assert [d.phrase for d in one.detections] == [d.phrase for d in other.detections]
        pairs = zip(one.detections, other.detections, strict=True)
        assert all(a.score == pytest.approx(b.score, abs=1e-4) for a, b in pairs)
