"""A run's pairs, each with its region's objects and with what is known of its two candidates, shard by shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spr.core.errors import RunError
from spr.records import PROMPT_KINDS, ImageObject
from spr.runs import pair_report as measures
from spr.runs.store import StageStore

Side: TypeAlias = Literal["chosen", "rejected"]
SIDES: tuple[Side, ...] = ("chosen", "rejected")
SCORE_NAMES = ("s_crop", "s_local", "semantic", "localization", "score")
_CANDIDATE = ["candidate_id", "prompt_kind", "plain_text", "dialect"]


@dataclass(frozen=True, slots=True)
class JoinedPair:
    """A pair with all that its picture and its statistics need.

    Attributes:
        row: Its row of `spr.records.schemas.PAIRS`.
        objects: All objects of the image, as rows; ``inside`` marks those of the region.
        candidates: By side: the candidate's ``prompt_kind``, ``plain_text``, ``dialect`` and its five scores.
        located: By side: S_loc of the answer's own boxes, and the best IoU of each object inside, in their order.
    """

    row: dict[str, Any]
    objects: list[dict[str, Any]]
    candidates: dict[Side, dict[str, Any]]
    located: dict[Side, tuple[float, list[float]]]


@dataclass(frozen=True, slots=True)
class JoinedShard:
    """A shard's pairs, and the scores of all its candidates, paired or not.

    Attributes:
        pairs: In the order of the run.
        scores: ``(candidates, 5)`` float32, columns as in `SCORE_NAMES`.
        kinds: ``(candidates,)`` indices into `spr.records.PROMPT_KINDS`.
    """

    pairs: list[JoinedPair]
    scores: np.ndarray
    kinds: np.ndarray


def joined_shards(run: Path) -> Iterator[JoinedShard]:
    """The run's pairs, one shard in memory at a time.

    Raises:
        RunError: if a stage up to the pairs has not finished, a file is damaged, or they don't fit one another.
    """
    tables = (StageStore(run / name).tables() for name in ("regions", "candidates", "scores", "pairs"))
    try:
        for regions, candidates, scores, pairs in zip(*tables, strict=True):
            yield _join(regions, candidates, scores, pairs)
    except (KeyError, ValueError) as error:
        fix = "delete the stages from candidates/ on, and run `spr run` again"
        raise RunError(f"{run}: the stages don't fit one another", got=f"no row for {error}", fix=fix) from None


def _join(regions: pa.Table, candidates: pa.Table, scores: pa.Table, pairs: pa.Table) -> JoinedShard:
    kind_of = {kind: index for index, kind in enumerate(PROMPT_KINDS)}
    ids, kinds = candidates["candidate_id"].to_pylist(), candidates["prompt_kind"].to_pylist()
    codes = {name: kind_of[kind] for name, kind in zip(ids, kinds, strict=True)}
    values = np.column_stack([scores[name].to_numpy() for name in SCORE_NAMES]).astype(np.float32)
    scored_ids = scores["candidate_id"].to_pylist()
    number_of = {name: number for number, name in enumerate(scored_ids)}
    rows = pairs.to_pylist()
    wanted = {row[f"{side}_candidate"] for row in rows for side in SIDES}
    taken = candidates.select(_CANDIDATE).filter(pc.is_in(candidates["candidate_id"], pa.array(wanted, pa.string())))
    known = {row["candidate_id"]: row for row in taken.to_pylist()}
    objects = dict(zip(regions["query_id"].to_pylist(), regions["objects"].to_pylist(), strict=True))
    joined = []
    for row in rows:
        about: dict[Side, dict[str, Any]] = {}
        for side in SIDES:
            name = row[f"{side}_candidate"]
            about[side] = {**known[name], "scores": [float(v) for v in values[number_of[name]]]}
        of_image = objects[row["query_id"]]
        joined.append(JoinedPair(row, of_image, about, _locate(row, of_image)))
    return JoinedShard(joined, values, np.array([codes[name] for name in scored_ids], dtype=np.int64))


def _locate(row: dict[str, Any], objects: Iterable[dict[str, Any]]) -> dict[Side, tuple[float, list[float]]]:
    inside = [ImageObject(o["id"], o["category"], tuple(o["box"])) for o in objects if o["inside"]]
    found: dict[Side, tuple[float, list[float]]] = {}
    for side in SIDES:
        score, matches = measures.locate(row, side, inside)
        found[side] = score, [match.iou for match in matches]
    return found
