"""What the card tells of the pairs: gathered while they are written, some 100 bytes a pair."""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np
import numpy.typing as npt

from spr.exports.rows import Texts
from spr.runs.reader import Shard
from spr.grounding.localization import localization_score
from spr.records import Box, ImageObject, PreferencePair, Span

SIDES = ("chosen", "rejected")


class Statistics:
    """Scores of all candidates, and measures of the exported pairs.

    Attributes:
        semantic, localization: Of every candidate of the run, S_sem and S_loc.
        margins: Of each exported pair.
        measures: By measure and side, a number for each exported pair: ``scored`` is S_loc as the pairs were chosen by
            (with the detector's finds, before boxes were corrected), ``own`` that of the answer's own boxes as
            exported, ``words`` and ``boxes`` and ``phrases`` (with boxes) counts.
        box_edits: What became of the chosen answers' boxes.
    """

    def __init__(self) -> None:
        self.semantic, self.localization, self.margins = array("f"), array("f"), array("f")
        self.measures = {
            (name, side): array("f") for name in ("scored", "own", "words", "boxes", "phrases") for side in SIDES
        }
        self.box_edits: Counter[str] = Counter()

    def add_candidates(self, shard: Shard) -> None:
        """Count a shard's candidates."""
        self.semantic.extend(shard.semantic.tolist())
        self.localization.extend(shard.localization.tolist())

    def add_pair(self, pair: PreferencePair, texts: Texts, shard: Shard) -> None:
        """Count an exported pair of a shard, with its texts as they are exported."""
        self.margins.append(pair.margin)
        self.box_edits.update(edit.edit for edit in pair.box_edits)
        truth = [ImageObject(str(k), "object", box) for k, box in enumerate(shard.inside[pair.query_id])]
        sides: tuple[tuple[str, str, str, tuple[Span, ...]], ...] = (
            ("chosen", pair.chosen_candidate, texts.chosen, pair.chosen_spans),
            ("rejected", pair.rejected_candidate, texts.rejected, pair.rejected_spans),
        )
        for side, candidate, text, spans in sides:
            boxes: list[Box] = [box for span in spans for box in span.boxes]
            values = {
                "scored": shard.located[candidate],
                "own": localization_score(truth, boxes).score,
                "words": len(text.split()),
                "boxes": len(boxes),
                "phrases": sum(bool(span.boxes) for span in spans),
            }
            for name, value in values.items():
                self.measures[name, side].append(value)

    def of(self, name: str, side: str) -> npt.NDArray[np.float32]:
        """A measure of one side, float32 ``(pairs,)``."""
        return np.frombuffer(self.measures[name, side], dtype=np.float32)
