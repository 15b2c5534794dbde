"""What is counted over a run's pairs and candidates: the numbers behind the report's plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from spr.core import boxes as bx
from spr.grounding.localization import THRESHOLD
from spr.records import PROMPT_KINDS
from spr.runs.joined import SCORE_NAMES, SIDES, JoinedPair, JoinedShard, Side
from spr.runs.pair_report import MEASURES


@dataclass(slots=True)
class CategoryCount:
    """How many objects of a category lie inside regions, and how many each answer places (IoU over 0.5)."""

    inside: int = 0
    chosen: int = 0
    rejected: int = 0


def _sides() -> dict[Side, list[float]]:
    return {side: [] for side in SIDES}


@dataclass(slots=True)
class Tally:
    """Counts and samples of a whole run.

    Attributes:
        pairs: How many.
        scores, kinds: Of all candidates, a chunk a shard: see `JoinedShard`.
        picked: By side and name of `SCORE_NAMES`, the scores of the candidates that the pairs were made of.
        picked_kinds: By side, how many of these came from each kind of prompt.
        lengths: By name of `spr.runs.pair_report.MEASURES` and side.
        located: By side, S_loc of the answers' own boxes.
        margins: Score of the chosen candidate minus that of the rejected.
        box_edits: What refinement did to the boxes of the best candidates.
        categories: By name.
    """

    pairs: int = 0
    scores: list[np.ndarray] = field(default_factory=list)
    kinds: list[np.ndarray] = field(default_factory=list)
    picked: dict[str, dict[Side, list[float]]] = field(default_factory=lambda: {name: _sides() for name in SCORE_NAMES})
    picked_kinds: dict[Side, Counter[str]] = field(default_factory=lambda: {side: Counter() for side in SIDES})
    lengths: dict[str, dict[Side, list[float]]] = field(default_factory=lambda: {name: _sides() for name in MEASURES})
    located: dict[Side, list[float]] = field(default_factory=_sides)
    margins: list[float] = field(default_factory=list)
    box_edits: Counter[str] = field(default_factory=Counter)
    categories: dict[str, CategoryCount] = field(default_factory=dict)

    def watch(self, shards: Iterable[JoinedShard]) -> Iterator[JoinedPair]:
        """Pass the pairs of these shards on, each counted."""
        for shard in shards:
            self.scores.append(shard.scores)
            self.kinds.append(shard.kinds)
            for pair in shard.pairs:
                self._count(pair)
                yield pair

    def score_columns(self) -> dict[str, np.ndarray]:
        """The scores of all candidates, by name."""
        table = np.concatenate(self.scores) if self.scores else np.empty((0, len(SCORE_NAMES)), np.float32)
        return {name: table[:, k] for k, name in enumerate(SCORE_NAMES)}

    def kind_means(self) -> dict[str, tuple[int, dict[str, float]]]:
        """By kind of prompt: how many candidates were scored, and their mean scores by name."""
        columns = self.score_columns()
        codes = np.concatenate(self.kinds) if self.kinds else np.empty(0, np.int64)
        found: dict[str, tuple[int, dict[str, float]]] = {}
        for code, kind in enumerate(PROMPT_KINDS):
            mask = codes == code
            if mask.any():
                found[kind] = int(mask.sum()), {name: float(values[mask].mean()) for name, values in columns.items()}
        return found

    def _count(self, pair: JoinedPair) -> None:
        self.pairs += 1
        self.margins.append(pair.row["margin"])
        self.box_edits.update(edit["edit"] for edit in pair.row["box_edits"])
        names = [item["category"] for item in pair.objects if item["inside"]]
        counts = [self.categories.setdefault(name, CategoryCount()) for name in names]
        for count in counts:
            count.inside += 1
        for side in SIDES:
            candidate = pair.candidates[side]
            self.picked_kinds[side][candidate["prompt_kind"]] += 1
            for name, value in zip(SCORE_NAMES, candidate["scores"], strict=True):
                self.picked[name][side].append(value)
            for name, measure in MEASURES.items():
                self.lengths[name][side].append(measure(pair.row, side))
            score, overlaps = pair.located[side]
            self.located[side].append(score)
            for count, placed in zip(counts, bx.over(np.array(overlaps), THRESHOLD), strict=True):
                setattr(count, side, getattr(count, side) + int(placed))
