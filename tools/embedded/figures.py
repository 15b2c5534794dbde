"""Measured figures with 95 % intervals from resampled scenes, and the tables that show them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spr.evaluation.metrics import Share, intervals


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value, its 95 % interval, and the bounds that it should satisfy (None for no interval or bound)."""

    value: float
    ci95: tuple[float, float] | None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the value itself is within the bounds."""
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    def to_json(self) -> dict[str, object]:
        """The figure in the form of a benchmark's result file."""
        bounds = {"at_least": self.at_least, "at_most": self.at_most, "reached": self.reached}
        known = {key: value for key, value in bounds.items() if value is not None}
        bare = self.at_least is None and self.at_most is None
        return {
            "value": round(self.value, 4),
            "ci95": None if self.ci95 is None else [round(bound, 4) for bound in self.ci95],
            **({} if bare else known),
        }


def ratio(
    hits: npt.ArrayLike, counts: npt.ArrayLike, at_least: float | None = None, at_most: float | None = None
) -> Figure:
    """The share of hits, Σ hits / Σ counts, both given per scene ``(N,)``.

    >>> figure = ratio([1, 0, 1, 1] * 5, [1] * 20)
    >>> low, high = figure.ci95
    >>> figure.value, 0.4 < low < 0.75 < high < 1.0
    (0.75, True)
    """
    share = Share.ratio(hits, counts)
    (interval,) = intervals([share], np.arange(len(share.parts)))
    return Figure(share.value() or 0.0, interval.ci95, at_least, at_most)


def difference(
    hits: npt.ArrayLike, others: npt.ArrayLike, counts: npt.ArrayLike, at_least: float | None = None
) -> Figure:
    """The difference of two shares of the same scenes: (Σ hits − Σ others) / Σ counts."""
    return ratio(np.asarray(hits, np.float64) - np.asarray(others, np.float64), counts, at_least)


_OPEN, _CLOSE = "<!-- figures -->\n", "<!-- end of figures -->"


def fill_card(card: str, figures: dict[str, Figure], setting: str) -> str:
    """The model card with a new table of figures between its two marks."""
    before, _, rest = card.partition(_OPEN)
    _, _, after = rest.partition(_CLOSE)
    rows = [f"{setting}", "", "| figure | value | 95 % interval | required |", "| --- | --- | --- | --- |"]
    for name, figure in figures.items():
        asked = [f"≥ {figure.at_least:g}"] if figure.at_least is not None else []
        asked += [f"≤ {figure.at_most:g}"] if figure.at_most is not None else []
        verdict = f"{', '.join(asked)}: {'reached' if figure.reached else '**missed**'}" if asked else ""
        interval = "–" if figure.ci95 is None else f"{figure.ci95[0]:.3f}–{figure.ci95[1]:.3f}"
        rows.append(f"| {name} | {figure.value:.3f} | {interval} | {verdict} |")
    return before + _OPEN + "\n".join(rows) + "\n" + _CLOSE + after


def table(name: str, figures: dict[str, Figure], setting: str) -> str:
    """The figures as lines of text."""
    lines = [f"{name}: {setting}"]
    for key, figure in figures.items():
        asked = [f"at least {figure.at_least:g}"] if figure.at_least is not None else []
        asked += [f"at most {figure.at_most:g}"] if figure.at_most is not None else []
        verdict = f"   {' and '.join(asked)}: {'reached' if figure.reached else 'MISSED'}" if asked else ""
        interval = "–" if figure.ci95 is None else f"[{figure.ci95[0]:.3f}, {figure.ci95[1]:.3f}]"
        lines.append(f"  {key:<44} {figure.value:8.3f}  {interval}{verdict}")
    return "\n".join(lines)
