"""Scores → preference pairs: the best description, refined, against the worst as generated (paper, Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from spr.config import Config, PairingConfig, PromptsConfig
from spr.core.errors import GroundingError
from spr.core.reasons import DROP_REASONS
from spr.grounding import GroundedText, get_dialect, render
from spr.pipeline.describe import training_prompt
from spr.pipeline.refine import refine
from spr.pipeline.stage import Drops, OnDrop, Stage
from spr.records import Candidate, PreferencePair, RegionQuery, Scores
from spr.records.schemas import PAIRS, from_table, to_table
from spr.runs.store import StageOutput

NAME = "pairs"


def make_pairs(
    queries: Iterable[RegionQuery],
    candidates: Iterable[Candidate],
    scores: Iterable[Scores],
    pairing: PairingConfig | None = None,
    prompts: PromptsConfig | None = None,
    *,
    inside_fraction: float = 0.5,
    on_drop: OnDrop = lambda *_: None,
) -> list[PreferencePair]:
    """Make the preference pair of each query, see `make_pair`.

    Args:
        queries: The region queries, which determine the order of the pairs.
        candidates: Their candidates; those without scores are not used.
        scores: Scores of the candidates.
        pairing: Refinement and filters; None uses the defaults.
        prompts: ``prompts.full`` is the training prompt; None uses the default.
        inside_fraction: See `spr.pipeline.refine.refine`.
        on_drop: Called for each query without a pair.
    """
    by_id = {candidate.candidate_id: candidate for candidate in candidates}
    by_query: dict[str, list[tuple[Candidate, Scores]]] = {}
    for row in scores:
        by_query.setdefault(row.query_id, []).append((by_id[row.candidate_id], row))
    pairing, prompts = pairing or PairingConfig(), prompts or PromptsConfig()
    pairs = []
    for query in queries:
        scored = by_query.get(query.query_id, ())
        pair = make_pair(query, scored, pairing, prompts, inside_fraction=inside_fraction)
        if isinstance(pair, str):
            on_drop("query", query.query_id, pair)
        else:
            pairs.append(pair)
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

    The candidate with the highest score is refined and becomes the chosen answer; the one with the lowest score is
    rejected as it is. Equal scores are ordered by candidate id, so that the order of the input changes nothing.

    Returns:
        The pair, or a key of `spr.core.reasons.PAIR_REASONS`, or ``not_renderable`` if the refined text would be read
        as coordinates.
    """
    if len(scored) < 2:
        return "fewer_than_two_candidates"
    ranked = sorted(scored, key=lambda row: (-row[1].score, row[0].candidate_id))
    (best, best_scores), (worst, worst_scores) = ranked[0], ranked[-1]
    best_text = GroundedText(best.plain_text, best.spans)
    refined = refine(
        best_text, query.region, query.objects, unmatched=pairing.unmatched, inside_fraction=inside_fraction
    )
    if not refined.text.boxes:
        return "chosen_without_box"
    try:
        chosen = render(refined.text, best.dialect, (query.width, query.height))
    except GroundingError:
        return "not_renderable"
    if chosen == worst.text:
        return "chosen_equals_rejected"
    margin = best_scores.score - worst_scores.score
    if margin < pairing.min_margin:
        return "margin_under_minimum"
    shorter, longer = sorted(len(text.split()) for text in (refined.text.plain_text, worst.plain_text))
    if pairing.max_length_ratio is not None and longer > pairing.max_length_ratio * shorter:
        return "length_ratio_over_maximum"
    return PreferencePair(
        query_id=query.query_id,
        image_id=query.image_id,
        file_name=query.file_name,
        width=query.width,
        height=query.height,
        region=query.region,
        prompt=training_prompt(query, get_dialect(best.dialect), prompts),
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
        chosen_finish_reason=best.finish_reason,
        rejected_finish_reason=worst.finish_reason,
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
        on_drop=drops.add,
    )
    return StageOutput(to_table(pairs, PreferencePair), drops.table(NAME, "query"))


STAGE = Stage(
    NAME,
    version=2,
    unit="pairs",
    kind="query",
    schema=PAIRS,
    process=process,
    reasons=DROP_REASONS[NAME],
    inputs=("regions", "candidates", "scores"),
    sections=("pairing",),
)
