"""Scores → preference pairs: the best description, refined, against the worst as generated (paper, Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from spr.config import Config, PairingConfig, PromptsConfig
from spr.core import boxes as bx
from spr.core.errors import GroundingError
from spr.core.progress import advance
from spr.core.randomness import stable_hash
from spr.core.reasons import DROP_REASONS
from spr.grounding import Dialect, GroundedText, get_dialect, parse, render, replace_boxes
from spr.pipeline.describe import training_prompt
from spr.pipeline.negatives import FIELDS as QUESTIONS
from spr.pipeline.refine import Refined, refine
from spr.pipeline.stage import Drops, OnDrop, Stage
from spr.records import Box, BoxEdit, Candidate, PairKind, PreferencePair, RegionQuery, Scores, Size
from spr.records.schemas import PAIRS, from_table, to_table
from spr.runs.store import StageOutput

NAME = "pairs"
HELD_OUT = "of held-out images: for evaluation, not trained on"
"""A note: the pairs of split ``holdout``."""
_TRIES = 50


def make_pairs(
    queries: Iterable[RegionQuery],
    candidates: Iterable[Candidate],
    scores: Iterable[Scores],
    pairing: PairingConfig | None = None,
    prompts: PromptsConfig | None = None,
    *,
    inside_fraction: float = 0.5,
    seed: int = 0,
    on_drop: OnDrop = lambda *_: None,
) -> list[PreferencePair]:
    """Make the preference pairs of each query, see `make_pair` and `make_box_pair`.

    Args:
        queries: The region queries, which determine the order of the pairs.
        candidates: Their candidates; those without scores are not used.
        scores: Scores of the candidates.
        pairing: Kinds of pairs, refinement and filters; None uses the defaults.
        prompts: ``prompts.full`` is the training prompt; None uses the default.
        inside_fraction: See `spr.pipeline.refine.refine`.
        seed: Seed of the displaced boxes.
        on_drop: Called for each query and kind without a pair.
    """
    by_id = {candidate.candidate_id: candidate for candidate in candidates}
    by_query: dict[str, list[tuple[Candidate, Scores]]] = {}
    for row in scores:
        by_query.setdefault(row.query_id, []).append((by_id[row.candidate_id], row))
    pairing, prompts = pairing or PairingConfig(), prompts or PromptsConfig()
    pairs = []
    for query in queries:
        scored = by_query.get(query.query_id, ())
        found: list[PreferencePair | str] = []
        if pairing.kind in ("answers", "both"):
            found.append(make_pair(query, scored, pairing, prompts, inside_fraction=inside_fraction))
        if pairing.kind in ("boxes", "both"):
            found.append(make_box_pair(query, scored, pairing, prompts, inside_fraction=inside_fraction, seed=seed))
        for pair in found:
            if isinstance(pair, str):
                on_drop("query", query.query_id, pair)
            else:
                pairs.append(pair)
        advance(len(scored))
    return pairs


def make_pair(
    query: RegionQuery,
    scored: Sequence[tuple[Candidate, Scores]],
    pairing: PairingConfig,
    prompts: PromptsConfig,
    *,
    inside_fraction: float = 0.5,
) -> PreferencePair | str:
    """Make the preference pair of a query, or return the reason why it has none (paper, Sec. 3.3).

    The candidate with the highest score is refined and becomes the chosen answer, in which only the changed boxes are
    written anew; the one with the lowest score is rejected as it is. Equal scores are ordered by candidate id, so that
    the order of the input changes nothing.

    Returns:
        The pair, or a key of `spr.core.reasons.PAIR_REASONS`.
    """
    if len(scored) < 2:
        return "fewer_than_two_candidates"
    ranked = _ranked(scored)
    (best, best_scores), (worst, worst_scores) = ranked[0], ranked[-1]
    refined = _refined(query, best, pairing, inside_fraction)
    if isinstance(refined, str):
        return refined
    dialect, size_wh = get_dialect(best.dialect), (query.width, query.height)
    chosen = render(refined.text, dialect, size_wh)
    if chosen == worst.text:
        return "chosen_equals_rejected"
    margin = best_scores.score - worst_scores.score
    if margin < pairing.min_margin:
        return "margin_under_minimum"
    texts = (refined.text.plain_text, worst.plain_text) if dialect.keeps_prose else (chosen, worst.text)
    shorter, longer = sorted(len(text.split()) if dialect.keeps_prose else len(text) for text in texts)
    if pairing.max_length_ratio is not None and longer > pairing.max_length_ratio * shorter:
        return "length_ratio_over_maximum"
    return _pair(
        query,
        prompts,
        (best, refined.text, best_scores.score),
        (worst, GroundedText(worst.plain_text, worst.spans), worst_scores.score),
        texts=(chosen, worst.text),
        box_edits=refined.box_edits,
    )


def make_box_pair(
    query: RegionQuery,
    scored: Sequence[tuple[Candidate, Scores]],
    pairing: PairingConfig,
    prompts: PromptsConfig,
    *,
    inside_fraction: float = 0.5,
    seed: int = 0,
) -> PreferencePair | str:
    """Make a pair whose answers differ in boxes only, or return the reason why there is none (our choice).

    The candidate with the highest score is refined and becomes the chosen answer. In the rejected answer, each box that
    refinement replaced is displaced: as far as an IoU with the object's box that is drawn from ``pairing.box_iou``.

    Returns:
        The pair, or a key of `spr.core.reasons.PAIR_REASONS`.
    """
    if not scored:
        return "fewer_than_two_candidates"
    best, _ = _ranked(scored)[0]
    refined = _refined(query, best, pairing, inside_fraction)
    if isinstance(refined, str):
        return refined
    dialect, size_wh = get_dialect(best.dialect), (query.width, query.height)
    boxes: list[Box | None] = []
    overlaps = []
    for number, edit in enumerate(refined.box_edits):
        box = edit.box_after
        if box is not None and edit.edit == "replaced":
            rng = np.random.default_rng(stable_hash(seed, "displaced box", query.query_id, str(number)))
            moved = displaced(box, pairing.box_iou, dialect, size_wh, rng)
            if moved is None:
                return "no_box_in_range"
            overlaps.append(float(bx.iou(moved, box)))
            box = moved
        boxes += [box] if edit.box_after is not None else []
    if not overlaps:
        return "no_box_to_move"
    rejected = replace_boxes(refined.text, boxes)
    texts = render(refined.text, dialect, size_wh), render(rejected, dialect, size_wh)
    sides = (best, refined.text, 1.0), (best, rejected, float(np.mean(overlaps)))
    return _pair(query, prompts, *sides, texts=texts, box_edits=refined.box_edits, kind="boxes")


def displaced(
    box: Box, iou_range: tuple[float, float], dialect: Dialect, size_wh: Size, rng: np.random.Generator
) -> Box | None:
    """A random box whose IoU with ``box`` is in a range, as the dialect's numbers can write it; None if none is found.

    Edges move in random directions and proportions, as far as the IoU drawn from the range; boxes stay in the image.
    Both boxes are in pixels; the IoU is that of the written numbers.
    """
    frame = dialect.frame(size_wh)
    original, _ = frame.decode(frame.encode(box))
    if original is None:
        return None
    x1, y1, x2, y2 = original
    scale = np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
    limit = np.array([size_wh[0], size_wh[1], size_wh[0], size_wh[1]], dtype=float)
    for _ in range(_TRIES):
        direction, wanted = rng.uniform(-1, 1, 4) * scale, rng.uniform(*iou_range)
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            moved = np.clip(np.array(original) + middle * direction, 0, limit)
            low, high = (middle, high) if bx.iou(moved, original) > wanted else (low, middle)
        if not (moved[0] < moved[2] and moved[1] < moved[3]):
            continue
        written, _ = frame.decode(frame.encode(tuple(moved.tolist())))
        if written is not None and iou_range[0] <= bx.iou(written, original) <= iou_range[1]:
            return written
    return None


def _ranked(scored: Sequence[tuple[Candidate, Scores]]) -> list[tuple[Candidate, Scores]]:
    return sorted(scored, key=lambda row: (-row[1].score, row[0].candidate_id))


def _refined(query: RegionQuery, best: Candidate, pairing: PairingConfig, inside_fraction: float) -> Refined | str:
    """The refined candidate, or the reason why it can't be chosen."""
    dialect, unmatched = get_dialect(best.dialect), pairing.unmatched
    if unmatched == "auto":
        unmatched = "remove_box" if dialect.keeps_prose else "keep_box"
    text = parse(best.text, dialect, (query.width, query.height))
    try:
        refined = refine(text, query.region, query.objects, unmatched=unmatched, inside_fraction=inside_fraction)
    except GroundingError:
        return "not_renderable"
    return refined if refined.text.boxes or refined.text.points else "chosen_without_box"


def _pair(
    query: RegionQuery,
    prompts: PromptsConfig,
    chosen: tuple[Candidate, GroundedText, float],
    rejected: tuple[Candidate, GroundedText, float],
    *,
    texts: tuple[str, str],
    box_edits: tuple[BoxEdit, ...],
    kind: PairKind = "answers",
) -> PreferencePair:
    return PreferencePair(
        query_id=query.query_id,
        image_id=query.image_id,
        file_name=query.file_name,
        width=query.width,
        height=query.height,
        region=query.region,
        prompt=training_prompt(query, get_dialect(chosen[0].dialect), prompts),
        chosen=texts[0],
        rejected=texts[1],
        chosen_spans=chosen[1].spans,
        rejected_spans=rejected[1].spans,
        chosen_candidate=chosen[0].candidate_id,
        rejected_candidate=rejected[0].candidate_id,
        chosen_score=chosen[2],
        rejected_score=rejected[2],
        margin=chosen[2] - rejected[2],
        box_edits=box_edits,
        chosen_finish_reason=chosen[0].finish_reason,
        rejected_finish_reason=rejected[0].finish_reason,
        kind=kind,
        split=query.split,
    )


def process(tables: Mapping[str, pa.Table], config: Config) -> StageOutput:
    """`make_pairs` on a shard of the tables `regions`, `candidates` and `scores`."""
    drops = Drops()
    pairs = make_pairs(
        from_table(tables["regions"], RegionQuery),
        from_table(tables["candidates"], Candidate),
        from_table(tables["scores"], Scores),
        config.pairing,
        config.prompts,
        inside_fraction=config.regions.inside_fraction,
        seed=config.seed,
        on_drop=drops.add,
    )
    held_out = sum(pair.split == "holdout" for pair in pairs)
    notes = {HELD_OUT: held_out} if held_out else {}
    return StageOutput(to_table(pairs, PreferencePair), drops.table(NAME, "query"), notes)


STAGE = Stage(
    NAME,
    version=3,
    unit="pairs",
    kind="query",
    schema=PAIRS,
    process=process,
    reasons=DROP_REASONS[NAME],
    inputs=("regions", "candidates", "scores"),
    sections=("seed", *(f"pairing.{name}" for name in PairingConfig.model_fields if name not in QUESTIONS)),
)
