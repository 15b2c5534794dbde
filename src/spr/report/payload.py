"""The gallery's data: pairs as JSON, with texts split into phrases and boxes matched to objects, in script files."""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from spr.config.public import public_name
from spr.core import boxes as bx
from spr.core.errors import SprError
from spr.grounding import parse
from spr.grounding.matching import THRESHOLD
from spr.records import Span
from spr.runs.reader import SCORE_NAMES, SIDES, JoinedPair, Side

SHOWN = 2000
"""Characters of a text that are shown at first. A longer text is in a file of its own, which is loaded on request."""


def pair_payload(item: JoinedPair, image: dict[str, Any], *, unmatched: str = "remove_box") -> dict[str, Any]:
    """Everything that the gallery shows of a pair, with whole texts; see `shorten`.

    ``image`` comes from `spr.report.thumbnails`; ``unmatched``, from the config, says if refinement removed phrases.

    Returns:
        JSON values. Boxes are xyxy in pixels of the original image, rounded to 0.1. ``objects``: category, box, and
        whether the object is inside the region. Each side has ``text`` and ``loose`` from `split_into_phrases`, and
        ``spans`` from `match_boxes`; if it has points, ``points`` are the number of the span, x and y of each.
    """
    pair, objects = item.pair, item.query.objects
    truth = bx.as_boxes([found.box for found in objects])
    return {
        "id": pair.query_id,
        "imageId": pair.image_id,
        "file": public_name(pair.file_name),
        "size": [pair.width, pair.height],
        "image": image,
        "region": _round(pair.region),
        "objects": [[found.category, _round(found.box), found.inside] for found in objects],
        "margin": pair.margin,
        "split": pair.split,
        "prompt": pair.prompt,
        "box_edits": [
            [e.phrase, _round(e.box_before), e.box_after and _round(e.box_after), e.edit] for e in pair.box_edits
        ],
        "sides": {side: _side_payload(item, side, truth, unmatched) for side in SIDES},
    }


def _side_payload(item: JoinedPair, side: Side, truth: np.ndarray, unmatched: str) -> dict[str, Any]:
    answer, spans, raw = item.answers[side], item.spans(side), item.text(side)
    # The offsets of the spans refer to the candidate's words, or to the refined answer's if phrases were removed.
    plain = answer.plain_text
    if side == "chosen" and unmatched == "remove_phrase":
        try:
            plain = parse(raw, answer.dialect, (item.pair.width, item.pair.height)).plain_text
        except SprError:
            plain = raw
    text, loose = split_into_phrases(plain, spans)
    points = [[number, *_round(point)] for number, span in enumerate(spans) for point in span.points]
    return {
        **({"points": points} if points else {}),
        "candidate": getattr(item.pair, f"{side}_candidate"),
        "kind": answer.prompt_kind,
        "scores": [answer.scores[name] for name in SCORE_NAMES],
        "localization": answer.localization.score,
        "words": len(raw.split()),
        "plainWords": len(plain.split()),
        "raw": raw,
        "text": text,
        "loose": loose,
        "phrases": [span.phrase for span in spans],
        "spans": match_boxes([span.boxes for span in spans], truth),
    }


def split_into_phrases(plain: str, spans: Sequence[Span]) -> tuple[list[list[Any]], list[int]]:
    """Split a text into ``[words, span]`` pieces (span -1 outside phrases); also returns the spans that don't fit.

    Pieces instead of offsets, because JavaScript counts UTF-16 units where Python counts characters.

    >>> split_into_phrases("a dog 🐕 and a cat", [Span("a cat", 12, 17)])
    ([['a dog 🐕 and ', -1], ['a cat', 0]], [])
    >>> split_into_phrases("a dog", [Span("a cat", 0, 5)])
    ([['a dog', -1]], [0])
    """
    pieces: list[list[Any]] = []
    loose: list[int] = []
    position = 0
    for number in sorted(range(len(spans)), key=lambda k: (spans[k].start, spans[k].end)):
        span = spans[number]
        if span.start < position or plain[span.start : span.end] != span.phrase:
            loose.append(number)
            continue
        if span.start > position:
            pieces.append([plain[position : span.start], -1])
        pieces.append([plain[span.start : span.end], number])
        position = span.end
    if position < len(plain):
        pieces.append([plain[position:], -1])
    return pieces, loose


def match_boxes(spans: Sequence[Sequence[Sequence[float]]], truth: np.ndarray) -> list[list[list[Any]]]:
    """For each span its boxes, with the object that each overlaps most (-1 if the IoU is not over 0.5) and the IoU.

    >>> match_boxes([[[0, 0, 10, 8]], [], [[50, 50, 60, 60]]], np.array([[0.0, 0, 10, 10]]))
    [[[[0.0, 0.0, 10.0, 8.0], 0, 0.8]], [], [[[50.0, 50.0, 60.0, 60.0], -1, 0.0]]]
    """
    boxes = [box for span in spans for box in span]
    overlaps = bx.iou_matrix(boxes, truth) if boxes and len(truth) else np.zeros((len(boxes), 1))
    best = overlaps.max(axis=1)
    indices = np.where(bx.over(best, THRESHOLD), overlaps.argmax(axis=1), -1).tolist()
    matched = zip(boxes, indices, best.tolist(), strict=True)
    rows = iter([[_round(box), index, round(overlap, 3)] for box, index, overlap in matched])
    return [[next(rows) for _ in span] for span in spans]


def is_long(payload: dict[str, Any], limit: int = SHOWN) -> bool:
    """Whether any text or list of a payload is too long to show at once."""
    sides = payload["sides"].values()
    long_text = any(len(text) > limit for text in (payload["prompt"], *(side["raw"] for side in sides)))
    return long_text or len(payload["box_edits"]) > limit // 10 or any(_has_long_text(side, limit) for side in sides)


def _has_long_text(side: dict[str, Any], limit: int) -> bool:
    many = len(side["loose"]) > limit // 20 or len(side["spans"]) > limit // 10
    return many or sum(len(text) for text, _ in side["text"]) > limit


def shorten(payload: dict[str, Any], limit: int = SHOWN) -> None:
    """Shorten the texts of a payload to about ``limit`` characters each, in place.

    ``cut`` marks what was shortened; for a side it is the length of the whole text. ``boxesCut`` counts the boxes of
    phrases that are not shown.
    """
    payload["cut"] = True
    payload["prompt"] = payload["prompt"][:limit]
    payload["box_edits"] = [[phrase[:200], *edit] for phrase, *edit in payload["box_edits"][: limit // 10]]
    for side in payload["sides"].values():
        side["raw"] = side["raw"][:limit]
        if _has_long_text(side, limit):
            _shorten_side(side, limit)


def _shorten_side(side: dict[str, Any], limit: int) -> None:
    shown: list[list[Any]] = []
    left = limit
    for text, number in side["text"][: limit // 5]:
        if left <= 0:
            break
        shown.append([text[:left], number])
        left -= len(text)
    loose = side["loose"][: limit // 20]
    numbers = {number for _, number in shown} | set(loose)
    end = max(numbers, default=-1) + 1
    spans = [boxes if number in numbers else [] for number, boxes in enumerate(side["spans"][:end])]
    side |= {
        "boxesCut": sum(map(len, side["spans"])) - sum(map(len, spans)),
        "cut": sum(len(text) for text, _ in side["text"]),
        "spans": spans,
        "phrases": [phrase[:limit] for phrase in side["phrases"][:end]],
        "text": shown,
        "loose": loose,
    }
    if "points" in side:
        side["points"] = [point for point in side["points"] if point[0] in numbers]


class GalleryIndex:
    """The columns that the gallery filters and sorts by."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._columns: dict[str, list[Any] | array[float]] = {
            name: array("d") if name in _NUMBERS else [] for name in _COLUMNS
        }

    def add(self, payload: dict[str, Any]) -> None:
        """Add a pair, in the order of the pages."""
        categories = sorted({category for category, _, inside in payload["objects"] if inside})
        self._counts.update(categories)
        chosen, rejected = payload["sides"]["chosen"], payload["sides"]["rejected"]
        values = (
            payload["id"],
            payload["file"],
            round(payload["margin"], 5),
            round(chosen["scores"][-1], 5),
            round(rejected["scores"][-1], 5),
            round(chosen["localization"] - rejected["localization"], 5),
            round(chosen["words"] / max(rejected["words"], 1), 4),
            sys.intern(payload["split"]),
            sys.intern(chosen["kind"]),
            sys.intern(rejected["kind"]),
            [self._numbers.setdefault(category, len(self._numbers)) for category in categories],
        )
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def to_json(self, *, page_size: int, total: int) -> dict[str, Any]:
        """The index as JSON values; ``total`` is the number of pairs of the run, shown or not."""
        categories = [[name, self._counts[name]] for name in self._numbers]
        columns = {name: list(column) for name, column in self._columns.items()}
        return {"pageSize": page_size, "total": total, "categories": categories, **columns}


_COLUMNS = (
    "id",
    "file",
    "margin",
    "chosen",
    "rejected",
    "gain",
    "ratio",
    "split",
    "chosenKind",
    "rejectedKind",
    "categoriesOf",
)
_NUMBERS = ("margin", "chosen", "rejected", "gain", "ratio")


def call_script(function: str, *arguments: Any) -> str:
    r"""A script that calls a function of the page with JSON values; a page opened from disk can't fetch JSON files.

    Text of a model or a dataset can't end the script: ``<``, ``>``, ``&`` and everything that is not ASCII are escaped.
    Non-finite numbers become null.

    >>> call_script("SPR.page", 3, {"text": "</script>\u2028é", "margin": float("nan")})
    'SPR.page(3,{"text":"\\u003c/script\\u003e\\u2028\\u00e9","margin":null});\n'
    """
    text = ",".join(map(_to_json, arguments))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f"{function}({text});\n"


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:  # a number that is not finite
        return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def _round(box: Sequence[float]) -> list[float]:
    return [round(float(v), 1) for v in box]
