"""Figures with their 95 % intervals, found by resampling scenes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value, the bounds of its 95 % interval, and what it should reach (None: nothing is asked)."""

    value: float
    low: float
    high: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the value itself reaches what is asked."""
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    def to_json(self) -> dict[str, object]:
        """As benchmarks write it."""
        asked = {"at_least": self.at_least, "at_most": self.at_most, "reached": self.reached}
        known = {key: value for key, value in asked.items() if value is not None}
        bare = self.at_least is None and self.at_most is None
        return {
            "value": round(self.value, 4),
            "ci95": [round(self.low, 4), round(self.high, 4)],
            **({} if bare else known),
        }


def resampled_weights(scenes: int, resamples: int = RESAMPLES) -> npt.NDArray[np.int64]:
    """How often each scene is drawn in each resample: int64 ``(resamples, scenes)``; always the same."""
    rng = np.random.default_rng(0)
    return rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=resamples)


def ratio(
    hits: npt.ArrayLike, counts: npt.ArrayLike, at_least: float | None = None, at_most: float | None = None
) -> Figure:
    """The share of hits, Σ hits / Σ counts, where both are given by scene ``(N,)``.

    >>> figure = ratio([1, 0, 1, 1], [1, 1, 1, 1])
    >>> figure.value, 0.0 <= figure.low < 0.75 < figure.high <= 1.0
    (0.75, True)
    """
    hits, counts = np.asarray(hits, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    weights = resampled_weights(len(hits))
    drawn = (weights @ hits) / np.maximum(weights @ counts, 1e-9)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Figure(float(hits.sum() / max(counts.sum(), 1e-9)), float(low), float(high), at_least, at_most)


def difference(
    hits: npt.ArrayLike, others: npt.ArrayLike, counts: npt.ArrayLike, at_least: float | None = None
) -> Figure:
    """By how much one share of hits is over another of the same scenes: (Σ hits − Σ others) / Σ counts."""
    hits, others = np.asarray(hits, dtype=np.float64), np.asarray(others, dtype=np.float64)
    return ratio(hits - others, counts, at_least)


_OPEN, _CLOSE = "<!-- figures -->\n", "<!-- end of figures -->"


def fill_card(card: str, figures: dict[str, Figure], setting: str) -> str:
    """A model card with its table of figures, between two marks, made anew."""
    before, _, rest = card.partition(_OPEN)
    _, _, after = rest.partition(_CLOSE)
    rows = [f"{setting}", "", "| figure | value | 95 % interval | asked |", "| --- | --- | --- | --- |"]
    for name, figure in figures.items():
        asked = [f"≥ {figure.at_least:g}"] if figure.at_least is not None else []
        asked += [f"≤ {figure.at_most:g}"] if figure.at_most is not None else []
        verdict = f"{', '.join(asked)}: {'reached' if figure.reached else '**missed**'}" if asked else ""
        rows.append(f"| {name} | {figure.value:.3f} | {figure.low:.3f}–{figure.high:.3f} | {verdict} |")
    return before + _OPEN + "\n".join(rows) + "\n" + _CLOSE + after


def table(name: str, figures: dict[str, Figure], setting: str) -> str:
    """The figures as lines of text."""
    lines = [f"{name}: {setting}"]
    for key, figure in figures.items():
        asked = [f"at least {figure.at_least:g}"] if figure.at_least is not None else []
        asked += [f"at most {figure.at_most:g}"] if figure.at_most is not None else []
        verdict = f"   {' and '.join(asked)}: {'reached' if figure.reached else 'MISSED'}" if asked else ""
        lines.append(f"  {key:<44} {figure.value:8.3f}  [{figure.low:.3f}, {figure.high:.3f}]{verdict}")
    return "\n".join(lines)
