"""Compares readings by their counts: refuted, less likely than others, or fitting; with the reason for each.

The thresholds are our choice. A reading is refuted by what no data in it can show. It is less likely if another one,
which is not refuted, explains the same numbers better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from spr.core.terminal import count_text
from spr.workflows.checking.counts import BEYOND, ReadingCounts
from spr.workflows.checking.readings import Reading

TOLERATED = 0.02
"""Share of boxes that may be wrong under a reading that is not refuted; of ten boxes and more, one may be."""
MORE = 0.01
"""Share of boxes that may be wrong beyond those under another reading before a reading is less likely."""
NEAR, FAR = 0.7, 0.3
"""Mean IoU with the reference that another reading must reach, and below which a reading is then refuted."""
STRONG = ("outside", "border", "reach", "aspect")
"""Kinds of doubts two of which together refute a reading of at least `MANY` boxes."""
MANY = 100
SAME = 0.002
"""Two readings are the same for the data if all boxes differ by at most this share of the side."""
_REACH = 0.2
_FEW = 20
_PILE = 8
_IOU = 0.05
_SLOPE = 0.5
_DECIMALS = 0.2

Verdict: TypeAlias = Literal["fits", "less likely", "refuted", "no sizes"]
_RANK: dict[Verdict, int] = {"fits": 0, "less likely": 1, "refuted": 2, "no sizes": 3}


class Totals(NamedTuple):
    """The same for all readings: boxes, those with only numbers in 0..1 (in images of 10 px and more), decimals."""

    boxes: int
    within_one: int
    decimals: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A reading with what the data show about it.

    Attributes:
        reading: The reading.
        verdict: ``refuted``: definite evidence against it. ``less likely``: another reading explains the numbers
            better; if it does so in two ways (`STRONG`) in `MANY` boxes or more, the reading is refuted, too.
            ``fits``: neither. ``no sizes``: no image has a known size, which this scale needs.
        reasons: Why it does not fit, or is less likely; sentences without a full stop.
        first: The first box that refutes it, or would if there were more of them; None if there is none.
        boxes: Boxes that could be placed under it.
        in_range: Share of their numbers within the scale.
        beyond, inverted: Share of the boxes beyond their image, and with x2 < x1 or y2 < y1.
        wrong: Share of the boxes that are either.
        reach: The places on the longer and the shorter side, 0..1, up to which 99 % of the boxes end.
        at_border: Share of the boxes that end at the right or at the lower border, beyond those that would by chance.
        aspect: Slope of the logarithm of the boxes' width / height in pixels on that of their images, with its standard
            error: near 0 under the right reading, as objects don't become wider with the image; near 1 if pixels are
            read as relative numbers, -1 if the reverse, 2 if x and y are exchanged. None if images are too much alike.
        iou: Mean IoU with the reference; None without one.
        same_as: Names of other readings that place all boxes alike.
    """

    reading: Reading
    verdict: Verdict
    reasons: tuple[str, ...]
    first: str | None
    boxes: int
    in_range: float
    beyond: float
    inverted: float
    wrong: float
    reach: tuple[float, float]
    at_border: float
    aspect: tuple[float, float] | None
    iou: float | None
    same_as: tuple[str, ...] = ()

    @property
    def refuted(self) -> bool:
        """Whether there is definite evidence against the reading."""
        return self.verdict == "refuted"

    def to_json(self) -> dict[str, Any]:
        """The candidate as values of JSON."""
        return {
            "reading": self.reading.name,
            "scale": self.reading.scale.name,
            "order": self.reading.order,
            "dialects": list(self.reading.scale.dialects),
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "first": self.first,
            "boxes": self.boxes,
            "in_range": round(self.in_range, 6),
            "beyond": round(self.beyond, 6),
            "inverted": round(self.inverted, 6),
            "reach": list(self.reach),
            "at_border": round(self.at_border, 6),
            "aspect_slope": None if self.aspect is None else [round(value, 4) for value in self.aspect],
            "iou": None if self.iou is None else round(self.iou, 4),
            "same_as": list(self.same_as),
        }


def judge(
    totals: Totals,
    readings: Sequence[Reading],
    counts: Sequence[ReadingCounts],
    is_same: Callable[[Reading, Reading], bool],
    is_usual: Callable[[Reading], bool] = lambda _: True,
) -> list[Candidate]:
    """The candidates, the most plausible first. ``is_same``: whether two readings place all boxes alike.

    ``is_usual``: whether a reading is one that others are compared with, if not all of these are refuted.
    """
    pairs = list(zip(readings, counts, strict=True))
    best_iou = max((its.iou / its.compared for _, its in pairs if its.compared), default=0.0)
    against = [_refutations(totals, reading, its, best_iou) for reading, its in pairs]
    left = [_Rival.of(*pair) for pair, found in zip(pairs, against, strict=True) if not found and pair[1].boxes]
    usual = [one for one in left if is_usual(one.reading)] or left
    candidates = []
    for (reading, its), found in zip(pairs, against, strict=True):
        verdict: Verdict = "no sizes" if not its.boxes else "refuted" if found else "fits"
        if verdict == "fits" and (doubts := _doubts(totals, own := _Rival.of(reading, its), [own, *usual])):
            strong = its.boxes >= MANY and sum(doubt.kind in STRONG for doubt in doubts) > 1
            verdict = "refuted" if strong else "less likely"
            found = [(doubt.reason, doubt.first if strong else None) for doubt in doubts]
        reasons = [reason for reason, _ in found]
        wrong = (its.first[kind] for kind in ("beyond", "inverted", "outside") if kind in its.first)
        first = next((place for _, place in found if place is not None), None) or next(wrong, None)
        same = tuple(one.reading.name for one in left if one.reading != reading and is_same(reading, one.reading))
        candidates.append(
            _candidate(reading, its, verdict, tuple(reasons), first, () if verdict == "refuted" else same)
        )
    places = {candidate.reading: k for k, candidate in enumerate(candidates)}
    return sorted(candidates, key=lambda one: _order(one, places[one.reading]))


def tolerated(boxes: int) -> float:
    """How many of so many boxes may be wrong under a reading that is not refuted.

    >>> tolerated(9), tolerated(10), tolerated(1000)
    (0.0, 1.0, 20.0)
    """
    return max(TOLERATED * boxes, 1.0) if boxes >= 10 else 0.0


def _refutations(totals: Totals, reading: Reading, its: ReadingCounts, best_iou: float) -> list[tuple[str, str | None]]:
    """Definite evidence against a reading, each with the first place that shows it."""
    found: list[tuple[str, str | None]] = []
    allowed, n = tolerated(its.boxes), its.boxes
    if its.beyond > allowed:
        reason = (
            f"{_part(its.beyond, n)} reach beyond their image by more than {percent(BEYOND)} of the side and 1 pixel"
        )
        found.append((reason, its.first.get("beyond")))
    if its.inverted > allowed:
        corners = "x2 < x1 or y2 < y1" if reading.order in ("xyxy", "yxyx") else "a negative width or height"
        found.append((f"{_part(its.inverted, n)} have {corners}", its.first.get("inverted")))
    if not found and its.wrong > allowed:
        reason = f"{_part(its.wrong, n)} reach beyond their image or have a negative side"
        found.append((reason, its.first.get("beyond") or its.first.get("inverted")))
    if n and totals.boxes - totals.within_one <= tolerated(totals.boxes) and not reading.scale.is_fine:
        reason = f"{_part(totals.within_one, totals.boxes)} have only numbers from 0 to 1: the first step of the scale"
        found.append((reason, None))
    if its.compared and best_iou >= NEAR and its.iou / its.compared < FAR:
        reason = f"Mean IoU with the reference {its.iou / its.compared:.2f}, under another reading {best_iou:.2f}"
        found.append((reason, None))
    return found


class _Doubt(NamedTuple):
    """Why another reading explains the numbers better, with a place that shows it."""

    kind: str
    reason: str
    first: str | None = None


class _Rival(NamedTuple):
    """A reading with what it is compared by."""

    reading: Reading
    counts: ReadingCounts
    reach: tuple[float, float]
    fit: tuple[float, float] | None
    piles: dict[tuple[str, int], float]
    """Shares of the boxes that end exactly at the border, by side and end: 0 for the far one, 1 for the near one."""

    @classmethod
    def of(cls, reading: Reading, counts: ReadingCounts) -> _Rival:
        sides = {"longer": counts.long, "shorter": counts.short}
        piles = {(name, k): pile / counts.boxes for name, side in sides.items() for k, pile in enumerate(side.piled())}
        return cls(reading, counts, (counts.long.reach(), counts.short.reach()), counts.aspect.fit(), piles)


def _doubts(totals: Totals, one: _Rival, left: Sequence[_Rival]) -> list[_Doubt]:
    """Why other readings that are not refuted explain the numbers better."""
    found: list[_Doubt] = []
    its, grid = one.counts, one.reading.scale.is_grid
    n = its.boxes
    # In a larger scale there is always less outside: only readings that use the sides as much are compared.
    alike = [other.counts for other in left if min(np.subtract(other.reach, one.reach)) >= -_REACH / 2]
    for count, name in (
        ("wrong", "are beyond their image or inverted"),
        ("outside", "have a number outside the scale"),
    ):
        own, fewest = getattr(its, count), min(getattr(other, count) / other.boxes for other in alike) * n
        if own - fewest > max(MORE * n, 3 * math.sqrt(own + fewest + 1)):
            found.append(_Doubt(count, f"{_part(own, n)} {name}, under another reading {fewest:,.0f}"))
    found += [] if grid else _border(one, left)
    if n >= _FEW:
        long, short = one.reach
        most = max(other.reach[0] for other in left), max(other.reach[1] for other in left)
        if long < most[0] - _REACH or short < most[1] - _REACH:
            used = (
                f"99 % of the boxes end within {percent(long)} of the longer and {percent(short)} of the shorter side"
            )
            more = f"under another reading {percent(most[0])} and {percent(most[1])}"
            found.append(_Doubt("reach", f"{used}, {more}"))
    if one.fit is not None:
        slope, error = one.fit
        flattest = min((other.fit for other in left if other.fit is not None), key=lambda fit: abs(fit[0]))
        gap = abs(slope) - abs(flattest[0])
        if gap > _SLOPE * (1 + grid) and gap > 3 * (error + flattest[1]):
            what = f"Boxes would change their shape with that of the image (slope {slope:.2f} ± {error:.2f}"
            found.append(_Doubt("aspect", f"{what}; under another reading {flattest[0]:.2f} ± {flattest[1]:.2f})"))
    if totals.decimals > _DECIMALS and one.reading.scale.whole and any(not other.reading.scale.whole for other in left):
        what = f"{percent(totals.decimals)} of the numbers have decimals"
        found.append(_Doubt("decimals", f"{what}; dialects write this scale in whole numbers"))
    if its.compared:
        mean = its.iou / its.compared
        best = max(other.counts.iou / other.counts.compared for other in left if other.counts.compared)
        if mean < best - _IOU:
            what = f"Mean IoU with the reference {mean:.2f}, under another reading {best:.2f}"
            found.append(_Doubt("iou", what))
    return found


def _border(one: _Rival, left: Sequence[_Rival]) -> list[_Doubt]:
    """Boxes that are cut off by the image end exactly at its border; a wrong scale moves these edges off it.

    The other reading must show this at both ends of a side: edges pile up at one place by chance, or at a margin. It
    must show it at no end less. The middles of a grid's cells are never at the border.
    """
    own, n = one.piles, one.counts.boxes
    for other in left:
        most, m = other.piles, other.counts.boxes
        if any(share * n >= _PILE and most[end] * 4 <= share for end, share in own.items()):
            continue
        for (side, k), share in own.items():
            both = min(most[side, 0], most[side, 1]) * m >= _PILE
            if both and share * 4 <= most[side, k]:
                where = f"the {('right or lower', 'left or upper')[k]} border of the {side} side"
                what = f"{percent(share, 1)} of the boxes end exactly at {where}"
                more = f"under {other.reading.name} {percent(most[side, k], 1)}"
                return [_Doubt("border", f"{what}, {more}", other.counts.first.get("border"))]
    return []


def _candidate(
    reading: Reading,
    its: ReadingCounts,
    verdict: Verdict,
    reasons: tuple[str, ...],
    first: str | None,
    same: tuple[str, ...],
) -> Candidate:
    n = max(its.boxes, 1)
    border = (its.long.piled()[0] + its.short.piled()[0]) / n
    return Candidate(
        reading,
        verdict,
        reasons,
        first,
        its.boxes,
        1 - its.outside_numbers / (4 * n) if its.boxes else 0.0,
        its.beyond / n,
        its.inverted / n,
        its.wrong / n,
        (its.long.reach(), its.short.reach()),
        border,
        its.aspect.fit(),
        its.iou / its.compared if its.compared else None,
        same,
    )


def _order(one: Candidate, place: int) -> tuple[float, ...]:
    if one.verdict == "refuted":
        return _RANK[one.verdict], round(one.wrong, 3), -round(one.iou or 0.0, 2), place
    return _RANK[one.verdict], len(one.reasons), -round(one.iou or 0.0, 2), place


def percent(share: float, digits: int = 0) -> str:
    """A share in percent, with a space: 7.7 %."""
    return f"{100 * share:.{digits}f} %"


def _part(count: int, of: int) -> str:
    return f"{count:,} of {count_text(of, 'boxes')} ({percent(count / of, 1)})"
