"""Candidates → scores: what a description means, and how well it localizes what it names (paper, Sec. 3.2).

Nothing is computed twice: an image is decoded once, a view is embedded once for all descriptions of it, a text is
embedded once, and the detector is asked once per crop and description.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from spr.config import Config, ScoringConfig
from spr.core import boxes as bx
from spr.core.images import ImageSource
from spr.core.progress import counted
from spr.core.reasons import DROP_REASONS
from spr.core.views import crop_window, cut, pad_to_square, padded_window, shift, square_window, unshift
from spr.grounding.matching import localization_score
from spr.grounding.noun_phrases import phrases_to_detect
from spr.models.protocols import Detector, DetectRequest, ImageTextScorer, View
from spr.models.registry import load_detector, load_scorer
from spr.pipeline.decoding import decode_ahead, in_groups
from spr.pipeline.stage import Drops, OnDrop, Stage
from spr.records import Box, Candidate, Detection, ImageObject, RegionQuery, Scores
from spr.records.schemas import SCORES, from_table, to_table
from spr.runs.store import StageOutput

NAME = "scores"


class Views(NamedTuple):
    """What the models see of a query's image.

    ``window`` (xyxy pixels of the image) and ``crop`` are for the detector, ``whole`` (the crop, padded to a square)
    for S_crop, and ``local`` (a square of the image with the region marked) for S_local.
    """

    window: Box
    crop: Image.Image
    whole: View
    local: View


class _Case(NamedTuple):
    query: RegionQuery
    candidates: list[Candidate]
    views: Views


def score_candidates(
    queries: Iterable[RegionQuery],
    candidates: Iterable[Candidate],
    scorer: ImageTextScorer,
    detector: Detector | None,
    images: ImageSource,
    *,
    scoring: ScoringConfig | None = None,
    crop_factor: float = 1.5,
    inside_fraction: float = 0.5,
    on_drop: OnDrop = lambda *_: None,
) -> list[Scores]:
    """Score the descriptions of each region: S = λ S_sem + (1 − λ) S_loc (paper, Sec. 3.2).

    S_sem = ½ (S_crop + S_local) are cosines between image and text; S_loc is computed by
    `spr.grounding.matching.localization_score`.

    Args:
        queries: The region queries.
        candidates: Their candidates, in any order.
        scorer: The image-text model; `spr.models.fakes.FakeScorer` needs no weights.
        detector: Detects what a description mentions, for S_loc; None uses the description's boxes alone.
        images: Where the images are.
        scoring: λ, the ground truth of S_loc, the views; None uses the defaults.
        crop_factor: The crop is the region enlarged by this factor about its centre.
        inside_fraction: See `score_candidate`.
        on_drop: Called for images that can't be used.

    Returns:
        The scores of each candidate whose image can be used, in the order of the queries' images.
    """
    scoring = scoring or ScoringConfig()
    by_query: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_query.setdefault(candidate.query_id, []).append(candidate)
    described = (query for query in queries if query.query_id in by_query)
    all_cases = (
        _Case(query, by_query[query.query_id], views_of(query, image, crop_factor, scoring))
        for query, image in decode_ahead(described, images, on_drop)
    )
    scores: list[Scores] = []
    for cases in in_groups(all_cases, _pixels):
        count = sum(len(case.candidates) for case in cases)
        with counted(0 if detector else count):
            cosines = _cosines(cases, scorer)
        with counted(count if detector else 0):  # which takes most of the time
            detections = _detections(cases, detector)
        for query, own_candidates, _ in cases:
            for candidate in own_candidates:
                seen = detections.get(candidate.candidate_id, ())
                both = cosines[candidate.candidate_id]
                scores.append(score_candidate(candidate, query, *both, seen, scoring, inside_fraction=inside_fraction))
    return scores


def views_of(query: RegionQuery, image: Image.Image, crop_factor: float, scoring: ScoringConfig) -> Views:
    """What the models see of a query's image, an RGB image of the query's size (paper, Sec. 3.2)."""
    size_wh, fill = (query.width, query.height), scoring.padding_colour
    window = crop_window(query.region, size_wh, crop_factor)
    crop = cut(image, window)
    square = square_window(query.region, size_wh) if scoring.local_view == "window" else padded_window(size_wh)
    local = View(cut(image, square, fill), shift(query.region, square))
    return Views(window, crop, View(pad_to_square(crop, fill)), local)


def score_candidate(
    candidate: Candidate,
    query: RegionQuery,
    s_crop: float,
    s_local: float,
    detections: Sequence[Detection],
    scoring: ScoringConfig,
    *,
    inside_fraction: float = 0.5,
) -> Scores:
    """Combine the parts of a candidate's score (paper, Sec. 3.2).

    ``s_crop`` and ``s_local`` are cosines, -1..1; the boxes of ``detections`` are in pixels of the original image.
    Detections are predictions, as are the boxes and points of the description. With ground truth
    ``annotations+detections``, those with at least ``inside_fraction`` of their area inside the region are objects
    instead: as predictions, they would match themselves.
    """
    truth: list[ImageObject] = list(query.inside)
    detected_boxes = [detection.box for detection in detections]
    if scoring.ground_truth == "annotations+detections":
        truth += _new_objects(detections, query, inside_fraction, scoring.same_object_iou)
        detected_boxes = []
    text_boxes = [box for span in candidate.spans for box in span.boxes]
    points = [point for span in candidate.spans for point in span.points]
    located = localization_score(truth, text_boxes, detected_boxes, points=points, threshold=scoring.match_iou)
    weight, semantic = scoring.semantic_weight, (s_crop + s_local) / 2
    return Scores(
        candidate_id=candidate.candidate_id,
        query_id=candidate.query_id,
        s_crop=s_crop,
        s_local=s_local,
        semantic=semantic,
        localization=located.score,
        score=weight * semantic + (1 - weight) * located.score,
        detections=tuple(detections),
        matches=located.matches,
    )


def _new_objects(
    detections: Sequence[Detection], query: RegionQuery, inside_fraction: float, same_object_iou: float
) -> list[ImageObject]:
    """The detections inside the region that are neither annotated nor detected before, as objects of the region."""
    known = bx.as_boxes([item.box for item in query.objects])
    new = []
    for number, found in enumerate(detections, start=1):
        inside = bx.at_least(bx.fraction_inside(found.box, query.region), inside_fraction)
        if inside and not (bx.iou(found.box, known) > same_object_iou).any():
            new.append(ImageObject(f"detection#{number}", found.phrase or "object", found.box, "detector", found.score))
            known = np.concatenate([known, bx.as_boxes([found.box])])
    return new


def _pixels(case: _Case) -> int:
    crop, whole, local = case.views.crop, case.views.whole.image, case.views.local.image
    return sum(image.width * image.height for image in (crop, whole, local))


def _cosines(cases: Sequence[_Case], scorer: ImageTextScorer) -> dict[str, tuple[float, float]]:
    """S_crop and S_local by candidate id."""
    texts = list(dict.fromkeys(candidate.plain_text for case in cases for candidate in case.candidates))
    vector_of = dict(zip(texts, scorer.embed_texts(texts), strict=True))
    views = scorer.embed_views([view for case in cases for view in (case.views.whole, case.views.local)])
    cosines = {}
    for k, case in enumerate(cases):
        for candidate in case.candidates:
            both = views[2 * k : 2 * k + 2] @ vector_of[candidate.plain_text]
            s_crop, s_local = np.clip(both, -1.0, 1.0).tolist()
            cosines[candidate.candidate_id] = (s_crop, s_local)
    return cosines


def _detections(cases: Sequence[_Case], detector: Detector | None) -> dict[str, tuple[Detection, ...]]:
    """The detections in the crops, by candidate id; boxes in pixels of the original images.

    Candidates of a query with the same text and phrases are asked about once.
    """
    if detector is None:
        return {}
    requests: dict[tuple[str, str, tuple[str, ...]], DetectRequest] = {}
    windows, key_of = [], {}
    for query, candidates, views in cases:
        for candidate in candidates:
            text, phrases = candidate.plain_text, phrases_to_detect(candidate.plain_text, candidate.spans)
            key = key_of[candidate.candidate_id] = query.query_id, text, phrases
            if key not in requests:
                requests[key] = DetectRequest(views.crop, text, phrases)
                windows.append(views.window)
    answers = detector.detect(list(requests.values()))
    placed = {
        key: tuple(Detection(found.phrase, unshift(found.box, window), found.score) for found in detections)
        for key, window, detections in zip(requests, windows, answers, strict=True)
    }
    return {candidate_id: placed[key] for candidate_id, key in key_of.items()}


def process(
    tables: Mapping[str, pa.Table],
    config: Config,
    *,
    scorer: ImageTextScorer | None = None,
    detector: Detector | None = None,
) -> StageOutput:
    """`score_candidates` on a shard of the tables `regions` and `candidates`; None loads the config's models."""
    drops = Drops()
    scores = score_candidates(
        from_table(tables["regions"], RegionQuery),
        from_table(tables["candidates"], Candidate),
        scorer or load_scorer(config.scorer),
        detector or load_detector(config.detector),
        config.annotations.image_source,
        scoring=config.scoring,
        crop_factor=config.describer.crop_factor if config.describer is not None else 1.5,
        inside_fraction=config.regions.inside_fraction,
        on_drop=drops.add,
    )
    return StageOutput(to_table(scores, Scores), drops.table(NAME, "image"))


STAGE = Stage(
    NAME,
    version=2,
    unit="scored candidates",
    kind="candidate",
    schema=SCORES,
    process=process,
    reasons=DROP_REASONS[NAME],
    inputs=("regions", "candidates"),
    sections=("scoring",),
    models=("scorer", "detector"),
)
