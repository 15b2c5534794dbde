"""Scores → preference pairs: the best description, refined, against the worst as generated (METHOD §5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from spr.config import Config
from spr.core.errors import GroundingError
from spr.grounding import GroundedText, get_dialect, render
from spr.pipeline.describe import training_prompt
from spr.pipeline.refine import refine
from spr.pipeline.stage import Stage
from spr.records import Candidate, PreferencePair, RegionQuery, Scores
from spr.records.schemas import from_table, to_table
from spr.runs.store import StageOutput, dropped_table

NAME = "pairs"


def make_pairs(tables: Mapping[str, pa.Table], config: Config) -> StageOutput:
    """The stage: shards of `spr.records.schemas.REGIONS`, `CANDIDATES` and `SCORES` → a shard of `spr.records.schemas.PAIRS`.

    Drops queries for the reasons of `make_pair`.
    """
    candidates = {candidate.candidate_id: candidate for candidate in from_table(tables["candidates"], Candidate)}
    by_query: dict[str, list[tuple[Candidate, Scores]]] = {}
    for scores in from_table(tables["scores"], Scores):
        by_query.setdefault(scores.query_id, []).append((candidates[scores.candidate_id], scores))
    pairs: list[PreferencePair] = []
    dropped: list[tuple[str, str]] = []
    for query in from_table(tables["regions"], RegionQuery):
        made = make_pair(query, by_query.get(query.query_id, ()), config)
        if isinstance(made, str):
            dropped.append((query.query_id, made))
        else:
            pairs.append(made)
    return StageOutput(to_table(pairs, PreferencePair), dropped_table(NAME, "query", dropped))


def make_pair(query: RegionQuery, scored: Sequence[tuple[Candidate, Scores]], config: Config) -> PreferencePair | str:
    """The query's pair, or the reason why it has none (METHOD §5.2–5.4).

    Reasons: ``fewer_than_two_candidates``; ``chosen_without_box`` (none is left after refinement);
    ``chosen_equals_rejected``; ``margin_under_minimum``; ``length_ratio_over_maximum``; ``not_renderable`` (the refined
    words would be read as coordinates). Equal scores are decided by the candidate's id, so that order changes nothing.
    """
    if len(scored) < 2:
        return "fewer_than_two_candidates"
    ranked = sorted(scored, key=lambda row: (-row[1].score, row[0].candidate_id))
    (best, best_scores), (worst, worst_scores) = ranked[0], ranked[-1]
    settings, size_wh = config.pairing, (query.width, query.height)
    refined = refine(
        GroundedText(best.plain_text, best.spans),
        query.region,
        query.objects,
        unmatched=settings.unmatched,
        inside_fraction=config.regions.inside_fraction,
    )
    if not refined.text.boxes:
        return "chosen_without_box"
    try:
        chosen = render(refined.text, best.dialect, size_wh)
    except GroundingError:
        return "not_renderable"
    if chosen == worst.text:
        return "chosen_equals_rejected"
    margin = best_scores.score - worst_scores.score
    if margin < settings.min_margin:
        return "margin_under_minimum"
    lengths = sorted(len(text.split()) for text in (refined.text.plain_text, worst.plain_text))
    if settings.max_length_ratio is not None and lengths[1] > settings.max_length_ratio * lengths[0]:
        return "length_ratio_over_maximum"
    return PreferencePair(
        query_id=query.query_id,
        image_id=query.image_id,
        file_name=query.file_name,
        width=query.width,
        height=query.height,
        region=query.region,
        prompt=training_prompt(query, get_dialect(best.dialect), config.prompts),
        chosen=chosen,
        rejected=worst.text,
        chosen_spans=refined.text.spans,
        rejected_spans=worst.spans,
        chosen_candidate=best.candidate_id,
        rejected_candidate=worst.candidate_id,
        chosen_score=best_scores.score,
        rejected_score=worst_scores.score,
        margin=margin,
        box_edits=refined.box_edits,
    )


STAGE = Stage(
    NAME,
    version=1,
    unit="pairs",
    sections=("pairing",),
    process=make_pairs,
    inputs=("regions", "candidates", "scores"),
)
