"""What to know of a set of pairs before training on it: lengths above all, for length is a trap (METHOD §5.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spr.grounding.localization import Localization, localization_score
from spr.records import ImageObject
from spr.runs.store import StageStore


def describe_pairs(run: Path) -> Iterator[str]:
    """Lines on `RUN/pairs`: phrases, boxes, words and S_loc of chosen against rejected, and the boxes' box_edits.

    S_loc here is of the answers' own boxes, without a detector's; the chosen answer's is that after refinement.

    Raises:
        RunError: if the run has no finished pairs.
    """
    pairs = _rows(run / "pairs")
    if not pairs:
        return
    truth = {
        row["query_id"]: [ImageObject(o["id"], o["category"], tuple(o["box"])) for o in row["objects"] if o["inside"]]
        for row in _rows(run / "regions")
    }
    yield f"  {'':<22}{'chosen':>22}{'rejected':>22}   mean (5–95 %)"
    for name, measure in MEASURES.items():
        sides = [[measure(pair, side) for pair in pairs] for side in ("chosen", "rejected")]
        yield f"  {name:<22}" + "".join(f"{_spread(values):>22}" for values in sides)
    located = [[locate(pair, side, truth[pair["query_id"]]).score for pair in pairs] for side in ("chosen", "rejected")]
    yield f"  {'S_loc, own boxes':<22}" + "".join(f"{_spread(values, 3):>22}" for values in located)
    box_edits = Counter(edit["edit"] for pair in pairs for edit in pair["box_edits"])
    yield "  boxes of the chosen: " + ", ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in box_edits.most_common()
    )
    chosen, rejected = (float(np.mean([words(pair, side) for pair in pairs])) for side in ("chosen", "rejected"))
    note = length_note(chosen / max(rejected, 1e-9))
    if note is not None:
        yield f"  Note: {note}"
        yield "  pairing.max_length_ratio drops outliers."


def words(pair: dict[str, Any], side: str) -> float:
    """Words of the chosen or rejected answer, as it is trained on."""
    return len(str(pair[side]).split())


def phrases(pair: dict[str, Any], side: str) -> float:
    """Phrases with at least one box: the objects that an answer names and places."""
    return sum(bool(span["boxes"]) for span in pair[f"{side}_spans"])


def boxes(pair: dict[str, Any], side: str) -> float:
    """Boxes of an answer."""
    return sum(len(span["boxes"]) for span in pair[f"{side}_spans"])


MEASURES: dict[str, Callable[[dict[str, Any], str], float]] = {
    "phrases with boxes": phrases,
    "boxes": boxes,
    "words": words,
}
"""What is counted in an answer, given its pair's row and its side."""


def locate(pair: dict[str, Any], side: str, inside: Sequence[ImageObject]) -> Localization:
    """S_loc of an answer's own boxes, without a detector's, against the objects inside its region."""
    own_boxes = [tuple(box) for span in pair[f"{side}_spans"] for box in span["boxes"]]
    return localization_score(inside, own_boxes)


def length_note(ratio: float) -> str | None:
    """A warning where chosen answers have this many times the rejected ones' words (METHOD §5.4), or None."""
    if 0.8 <= ratio <= 1.25:
        return None
    return f"chosen answers have {ratio:.2f} times the rejected ones' words; training may learn the length."


def _spread(values: Sequence[float], digits: int = 1) -> str:
    low, high = np.percentile(values, [5, 95])
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _rows(stage: Path) -> list[dict[str, Any]]:
    return [row for table in StageStore(stage).tables() for row in table.to_pylist()]
