"""A pair as the gallery's scripts draw it: texts cut into phrases, boxes matched to the objects that they hit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from spr.core import boxes as bx
from spr.core.errors import SprError
from spr.grounding import parse
from spr.grounding.localization import THRESHOLD
from spr.runs.joined import SIDES, JoinedPair, Side
from spr.runs.pair_report import words

SHOWN = 2000
"""Characters of a text that are shown at first; what is longer lies in a file of its own, loaded when asked for."""


def pair_payload(pair: JoinedPair, image: dict[str, Any], *, unmatched: str = "remove_box") -> dict[str, Any]:
    """All that the gallery shows of a pair, with long texts whole: `shorten` cuts them.

    Args:
        pair: The pair.
        image: What `spr.report.thumbnails` says of its image: ``src``, or ``problem`` where there is none.
        unmatched: The config's `pairing.unmatched`, which says whether refinement took words away.

    Returns:
        JSON values. Boxes are xyxy in pixels of the original image, rounded to 0.1. ``objects``: category, box, whether
        it is inside. Of each side, ``text`` is a list of ``[words, span]``, span -1 for words outside of all; ``spans``
        has for each span its boxes, each with the number of the object that it overlaps most and the IoU, or -1 where
        that is not over 0.5; ``loose`` are the spans that the text does not hold.
    """
    row = pair.row
    truth = bx.as_boxes([item["box"] for item in pair.objects])
    return {
        "id": row["query_id"],
        "imageId": row["image_id"],
        "file": row["file_name"],
        "size": [row["width"], row["height"]],
        "image": image,
        "region": _round(row["region"]),
        "objects": [[item["category"], _round(item["box"]), bool(item["inside"])] for item in pair.objects],
        "margin": row["margin"],
        "prompt": row["prompt"],
        "box_edits": [
            [edit["phrase"], _round(edit["box_before"]), edit["box_after"] and _round(edit["box_after"]), edit["edit"]]
            for edit in row["box_edits"]
        ],
        "sides": {side: _side_payload(pair, side, truth, unmatched) for side in SIDES},
    }


def _side_payload(pair: JoinedPair, side: Side, truth: np.ndarray, unmatched: str) -> dict[str, Any]:
    row, candidate = pair.row, pair.candidates[side]
    spans = row[f"{side}_spans"]
    plain = _plain_text(pair, side, unmatched)
    text, loose = cut_into_phrases(plain, spans)
    return {
        "candidate": row[f"{side}_candidate"],
        "kind": candidate["prompt_kind"],
        "scores": candidate["scores"],
        "located": pair.located[side][0],
        "words": words(row, side),
        "plainWords": len(plain.split()),
        "raw": row[side],
        "text": text,
        "loose": loose,
        "phrases": [span["phrase"] for span in spans],
        "spans": match_boxes([span["boxes"] for span in spans], truth),
    }


def _plain_text(pair: JoinedPair, side: Side, unmatched: str) -> str:
    """The words that the side's spans are offsets in.

    The candidate's own, unless refinement took words away; then those are read out of the answer again.
    """
    row, candidate = pair.row, pair.candidates[side]
    if side == "rejected" or unmatched != "remove_phrase":
        return str(candidate["plain_text"])
    try:
        return parse(row[side], candidate["dialect"], (row["width"], row["height"])).plain_text
    except SprError:
        return str(row[side])


def cut_into_phrases(plain: str, spans: Sequence[dict[str, Any]]) -> tuple[list[list[Any]], list[int]]:
    """A text as ``[words, span]`` pieces that join to the whole, and the spans that don't fit it.

    Pieces, not offsets: JavaScript counts UTF-16 units where Python counts characters.

    >>> cut_into_phrases("a dog 🐕 and a cat", [{"phrase": "a cat", "start": 12, "end": 17}])
    ([['a dog 🐕 and ', -1], ['a cat', 0]], [])
    >>> cut_into_phrases("a dog", [{"phrase": "a cat", "start": 0, "end": 5}])
    ([['a dog', -1]], [0])
    """
    pieces: list[list[Any]] = []
    loose: list[int] = []
    position = 0
    for number in sorted(range(len(spans)), key=lambda k: (spans[k]["start"], spans[k]["end"])):
        span = spans[number]
        start, end = span["start"], span["end"]
        if start < position or plain[start:end] != span["phrase"]:
            loose.append(number)
            continue
        if start > position:
            pieces.append([plain[position:start], -1])
        pieces.append([plain[start:end], number])
        position = end
    if position < len(plain):
        pieces.append([plain[position:], -1])
    return pieces, loose


def match_boxes(spans: Sequence[Sequence[Sequence[float]]], truth: np.ndarray) -> list[list[list[Any]]]:
    """For each span its boxes, each with the object that it overlaps most and the IoU; -1 where that is not over 0.5.

    >>> match_boxes([[[0, 0, 10, 8]], [], [[50, 50, 60, 60]]], np.array([[0.0, 0, 10, 10]]))
    [[[[0.0, 0.0, 10.0, 8.0], 0, 0.8]], [], [[[50.0, 50.0, 60.0, 60.0], -1, 0.0]]]
    """
    boxes = [box for span in spans for box in span]
    if not boxes:
        return [[] for _ in spans]
    overlaps = bx.iou_matrix(boxes, truth) if len(truth) else np.zeros((len(boxes), 1))
    best = overlaps.max(axis=1)
    numbers = np.where(bx.over(best, THRESHOLD), overlaps.argmax(axis=1), -1).tolist()
    found = zip(boxes, numbers, best.tolist(), strict=True)
    rows = iter([[_round(box), number, round(overlap, 3)] for box, number, overlap in found])
    return [[next(rows) for _ in span] for span in spans]


def is_long(payload: dict[str, Any], limit: int = SHOWN) -> bool:
    """Whether any of a payload's texts or lists is too long to be shown at once."""
    long = len(payload["prompt"]) > limit or len(payload["box_edits"]) > limit // 10
    return long or any(len(side["raw"]) > limit or _has_long_text(side, limit) for side in payload["sides"].values())


def _has_long_text(side: dict[str, Any], limit: int) -> bool:
    many = len(side["loose"]) > limit // 20 or len(side["spans"]) > limit // 10
    return many or _length(side) > limit


def _length(side: dict[str, Any]) -> int:
    return sum(len(text) for text, _ in side["text"])


def shorten(payload: dict[str, Any], limit: int = SHOWN) -> None:
    """Cut the texts of a payload to about ``limit`` characters each, in place.

    What is cut says so: ``cut`` is the length of the whole. Boxes of phrases that fell away go with them, and are
    counted in ``boxesCut``; the full payload has them.
    """
    payload["cut"] = True
    payload["prompt"] = payload["prompt"][:limit]
    payload["box_edits"] = [[phrase[:200], *edit] for phrase, *edit in payload["box_edits"][: limit // 10]]
    for side in payload["sides"].values():
        side["raw"] = side["raw"][:limit]
        if _has_long_text(side, limit):
            _shorten_side(side, limit)


def _shorten_side(side: dict[str, Any], limit: int) -> None:
    total, boxes = _length(side), sum(len(found) for found in side["spans"])
    kept: list[list[Any]] = []
    left = limit
    for text, number in side["text"]:
        if left <= 0 or len(kept) >= limit // 5:
            break
        kept.append([text[:left], number])
        left -= len(text)
    loose = side["loose"][: limit // 20]
    shown = {number for _, number in kept} | set(loose)
    last = max(shown, default=-1) + 1
    side["spans"] = [found if number in shown else [] for number, found in enumerate(side["spans"][:last])]
    side["phrases"] = [phrase[:limit] for phrase in side["phrases"][:last]]
    side["boxesCut"] = boxes - sum(len(found) for found in side["spans"])
    side |= {"text": kept, "loose": loose, "cut": total}


class GalleryIndex:
    """What the gallery filters and sorts by: a few values of every pair, by column."""

    def __init__(self) -> None:
        self._categories: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}

    def add(self, payload: dict[str, Any]) -> None:
        """Take a pair up, in the order of the pages."""
        names = sorted({category for category, _, inside in payload["objects"] if inside})
        self.counts.update(names)
        chosen, rejected = payload["sides"]["chosen"], payload["sides"]["rejected"]
        values = {
            "id": payload["id"],
            "file": payload["file"],
            "margin": round(payload["margin"], 5),
            "chosen": round(chosen["scores"][-1], 5),
            "rejected": round(rejected["scores"][-1], 5),
            "gain": round(chosen["located"] - rejected["located"], 5),
            "ratio": round(chosen["words"] / max(rejected["words"], 1), 4),
            "chosenKind": chosen["kind"],
            "rejectedKind": rejected["kind"],
            "categoriesOf": [self._categories.setdefault(name, len(self._categories)) for name in names],
        }
        for name, value in values.items():
            self.columns[name].append(value)

    def to_json(self, *, page_size: int, total: int) -> dict[str, Any]:
        """The index as JSON values; ``total`` counts the run's pairs, shown or not."""
        names = list(self._categories)
        categories = [[name, self.counts[name]] for name in names]
        return {"pageSize": page_size, "total": total, "categories": categories, **self.columns}


_COLUMNS = (
    "id",
    "file",
    "margin",
    "chosen",
    "rejected",
    "gain",
    "ratio",
    "chosenKind",
    "rejectedKind",
    "categoriesOf",
)


def _round(box: Sequence[float]) -> list[float]:
    return [round(float(v), 1) for v in box]
