"""Candidates → scores: what a description means, and how well it places what it names (METHOD §4).

Work is done once: an image is decoded once, a view embedded once for all descriptions of it, a text once, and the
detector asked once about a crop and a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from spr.config import Config
from spr.core import boxes as bx
from spr.core.images import ImageProblem
from spr.core.views import crop_window, cut, pad_to_square, shift, square_window, unshift
from spr.grounding.localization import localization_score
from spr.models.protocols import Detector, DetectRequest, ImageTextScorer, View
from spr.models.registry import load_detector, load_scorer
from spr.pipeline.decoding import decode_ahead, in_groups
from spr.pipeline.stage import Stage
from spr.records import Box, Candidate, Detection, ImageObject, RegionQuery, Scores
from spr.records.schemas import from_table, to_table
from spr.runs.store import StageOutput, dropped_table

NAME = "scores"
QUERIES_AT_ONCE = 32
"""Fewer where their images are large (`spr.pipeline.decoding`)."""
SAME_OBJECT_IOU = 0.5
"""With ground truth `annotations+detections`, a find over this IoU with an object is that object [ours]."""


class Case(NamedTuple):
    """A query with its candidates and what the models see of its image."""

    query: RegionQuery
    candidates: tuple[Candidate, ...]
    window: Box
    crop: Image.Image
    whole: View
    local: View

    @property
    def pixels(self) -> int:
        """How many all that the models see holds."""
        return sum(image.width * image.height for image in (self.crop, self.whole.image, self.local.image))


def views_of(query: RegionQuery, image: Image.Image, crop_factor: float) -> tuple[Box, Image.Image, View, View]:
    """The crop's window and pixels, the view for S_crop and the view for S_local (METHOD §4)."""
    size_wh = query.width, query.height
    window = crop_window(query.region, size_wh, crop_factor)
    crop = cut(image, window)
    square = square_window(query.region, size_wh)
    return window, crop, View(pad_to_square(crop)), View(cut(image, square), shift(query.region, square))


def make_scores(
    tables: Mapping[str, pa.Table], config: Config, scorer: ImageTextScorer, detector: Detector | None
) -> StageOutput:
    """The stage: shards of `spr.records.schemas.REGIONS` and `CANDIDATES` → a shard of `spr.records.schemas.SCORES`.

    S = λ S_sem + (1 − λ) S_loc with S_sem = ½ (S_crop + S_local) [paper]. Drops images that can't be read.
    """
    by_query: dict[str, list[Candidate]] = {}
    for candidate in from_table(tables["candidates"], Candidate):
        by_query.setdefault(candidate.query_id, []).append(candidate)
    images: list[tuple[str, str]] = []
    scores: list[Scores] = []
    for cases in _groups(tables["regions"], by_query, config, images):
        cosines = _cosines(cases, scorer)
        found = _detections(cases, detector)
        for case in cases:
            for candidate in case.candidates:
                s_crop, s_local = cosines[candidate.candidate_id]
                detections = found.get((case.query.query_id, candidate.plain_text), ())
                scores.append(score_candidate(candidate, case.query, s_crop, s_local, detections, config))
    return StageOutput(to_table(scores, Scores), dropped_table(NAME, "image", images))


def score_candidate(
    candidate: Candidate,
    query: RegionQuery,
    s_crop: float,
    s_local: float,
    detections: Sequence[Detection],
    config: Config,
) -> Scores:
    """Join the parts of a candidate's score (METHOD §4); boxes in pixels of the original image."""
    truth: list[ImageObject] = list(query.inside)
    if config.scoring.ground_truth == "annotations+detections":
        truth += _new_objects(detections, query, config.regions.inside_fraction)
    text_boxes = [box for span in candidate.spans for box in span.boxes]
    located = localization_score(truth, text_boxes, [find.box for find in detections])
    weight, semantic = config.scoring.semantic_weight, (s_crop + s_local) / 2
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


def _new_objects(detections: Sequence[Detection], query: RegionQuery, inside_fraction: float) -> list[ImageObject]:
    """Finds inside the region that are no annotated object, as objects of the region."""
    known = bx.as_boxes([item.box for item in query.objects])
    made = []
    for number, find in enumerate(detections, start=1):
        inside = bx.at_least(bx.fraction_inside(find.box, query.region), inside_fraction)
        if inside and not (bx.iou(find.box, known) > SAME_OBJECT_IOU).any():
            made.append(ImageObject(f"detection#{number}", find.phrase or "object", find.box, "detector", find.score))
            known = np.concatenate([known, bx.as_boxes([find.box])])
    return made


def _groups(
    regions: pa.Table, by_query: Mapping[str, list[Candidate]], config: Config, images: list[tuple[str, str]]
) -> Iterator[list[Case]]:
    wanted = [query for query in from_table(regions, RegionQuery) if query.query_id in by_query]
    factor = config.describer.crop_factor if config.describer is not None else 1.5

    def each() -> Iterator[Case]:
        for decoded in decode_ahead(wanted, config.annotations):
            if isinstance(decoded.image, ImageProblem):
                images.append((decoded.queries[0].image_id, decoded.image.reason))
                continue
            for query in decoded.queries:
                yield Case(query, tuple(by_query[query.query_id]), *views_of(query, decoded.image, factor))

    yield from in_groups(each(), QUERIES_AT_ONCE, lambda case: case.pixels)


def _cosines(cases: Sequence[Case], scorer: ImageTextScorer) -> dict[str, tuple[float, float]]:
    """S_crop and S_local by candidate id."""
    texts = list(dict.fromkeys(candidate.plain_text for case in cases for candidate in case.candidates))
    text_vectors = scorer.embed_texts(texts)
    row_of = {text: row for row, text in enumerate(texts)}
    views = scorer.embed_views([view for case in cases for view in (case.whole, case.local)])
    cosines = {}
    for k, case in enumerate(cases):
        for candidate in case.candidates:
            both = views[2 * k : 2 * k + 2] @ text_vectors[row_of[candidate.plain_text]]
            s_crop, s_local = np.clip(both, -1.0, 1.0).tolist()
            cosines[candidate.candidate_id] = (s_crop, s_local)
    return cosines


def _detections(cases: Sequence[Case], detector: Detector | None) -> dict[tuple[str, str], tuple[Detection, ...]]:
    """What the detector finds in the crop, in pixels of the original image, by query and text."""
    if detector is None:
        return {}
    asked = {(case.query.query_id, candidate.plain_text): case for case in cases for candidate in case.candidates}
    answers = detector.detect([DetectRequest(case.crop, text) for (_, text), case in asked.items()])
    return {
        key: tuple(Detection(find.phrase, unshift(find.box, case.window), find.score) for find in finds)
        for (key, case), finds in zip(asked.items(), answers, strict=True)
    }


def process(tables: Mapping[str, pa.Table], config: Config) -> StageOutput:
    """`make_scores` with the config's models."""
    return make_scores(tables, config, load_scorer(config.scorer), load_detector(config.detector))


def _models(_: Config) -> tuple[str, ...]:
    return "scorer", "detector"


STAGE = Stage(
    NAME,
    version=1,
    unit="scored candidates",
    sections=("scoring",),
    process=process,
    inputs=("regions", "candidates"),
    model_sections=_models,
)
