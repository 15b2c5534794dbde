"""Plots as SVG texts: of one size, so that their letters stay readable on a phone; colours come from the page's CSS.

Each has a text for those who can't see it, and each series differs by more than its colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 224
LEFT, RIGHT, TOP, BOTTOM = 62, 8, 12, 38


@dataclass(frozen=True, slots=True)
class Series:
    """A named row of numbers; ``style`` is the CSS class that colours it (``chosen``, ``rejected``, ``all``, …)."""

    name: str
    style: str
    values: Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line: ``(n,)`` positions and heights, and for each point its interval or None."""

    name: str
    style: str
    xs: Sequence[float] | np.ndarray
    ys: Sequence[float] | np.ndarray
    intervals: Sequence[tuple[float, float] | None] = ()


class Frame:
    """Axes from ``x_range`` and ``y_range`` to the plot's pixels, with their ticks."""

    def __init__(
        self,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        x_label: str,
        y_label: str,
        *,
        whole: bool = False,
    ) -> None:
        self.x_range, self.y_range = _spread(*x_range), _spread(*y_range)
        self.labels, self._whole = (x_label, y_label), whole

    def x(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self) -> str:
        """Grid, ticks and labels."""
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        middle, height = LEFT + (right - LEFT) / 2, TOP + (bottom - TOP) / 2
        parts = []
        for tick in ticks(*self.y_range):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text("", LEFT - 6, y + 3.5, _tick(tick), anchor="end"))
        parts += [_text("", self.x(tick), bottom + 15, _tick(tick)) for tick in ticks(*self.x_range, whole=self._whole)]
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        parts.append(_text("label", middle, HEIGHT - 5, self.labels[0]))
        parts.append(_text("label", 11, height, self.labels[1], turned=True))
        return "".join(parts)


def _text(style: str, x: float, y: float, text: str, *, anchor: str = "middle", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(text)}</text>'


def ticks(low: float, high: float, *, whole: bool = False, most: int = 5) -> list[float]:
    """Round numbers within a range.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(3, 8, whole=True)
    [3, 4, 5, 6, 7, 8]
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    if whole:
        step = max(round(step), 1)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def histogram(
    title: str,
    series: Sequence[Series],
    x_label: str,
    *,
    bins: int = 30,
    whole: bool = False,
    x_range: tuple[float, float] | None = None,
) -> Markup:
    """Shares of each series' values by bin; what is not finite is left out.

    Args:
        title: What is shown, for those who can't see it.
        series: One or more; each adds up to 1.
        x_label: What the values are.
        bins: How many.
        whole: The values are whole numbers: a bin each, or several where there are too many.
        x_range: From where to where; by default that of the values, without the outermost half per cent.
    """
    values = [np.asarray(one.values, dtype=np.float64) for one in series]
    values = [column[np.isfinite(column)] for column in values]
    everything = np.concatenate(values) if values else np.empty(0)
    if not len(everything):
        return Markup("")
    edges = _edges(everything, bins, whole, x_range)
    shares = [np.histogram(np.clip(column, edges[0], edges[-1]), edges)[0] / max(len(column), 1) for column in values]
    frame = Frame(
        (edges[0], edges[-1]), (0, max(float(share.max()) for share in shares) or 1), x_label, "share", whole=whole
    )
    parts = [frame.axes()]
    for one, share in zip(series, shares, strict=True):
        corners = [(frame.x(edges[0]), frame.y(0))]
        for k, height in enumerate(share):
            corners += [(frame.x(edges[k]), frame.y(height)), (frame.x(edges[k + 1]), frame.y(height))]
        corners.append((frame.x(edges[-1]), frame.y(0)))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        parts.append(f'<polygon class="area {one.style}" points="{points}"/>')
        parts.append(f'<polyline class="line {one.style}" points="{points}"/>')
    about = "; ".join(_summary(one.name, column) for one, column in zip(series, values, strict=True) if len(column))
    return svg(title, about, "".join(parts))


def _summary(name: str, values: np.ndarray) -> str:
    low, high = np.percentile(values, [25, 75])
    return f"{name}: mean {_tick(float(values.mean()))}, middle half {_tick(float(low))} to {_tick(float(high))}"


def _edges(values: np.ndarray, bins: int, whole: bool, x_range: tuple[float, float] | None) -> np.ndarray:
    low, high = x_range or (float(np.percentile(values, 0.5)), float(np.percentile(values, 99.5)))
    if whole:
        low, high = math.floor(low), math.ceil(high)
        step = max(1, math.ceil((high - low + 1) / 40))
        return np.arange(low - 0.5, high + step, step)
    low, high = _spread(low, high)
    return np.linspace(low, high, bins + 1)


def lines(
    title: str,
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    *,
    y_range: tuple[float, float] | None = None,
    dots: bool = False,
) -> Markup:
    """Lines, with their intervals as bars where they have them."""
    xs = np.concatenate([np.asarray(curve.xs, dtype=np.float64) for curve in curves])
    ys = np.concatenate([np.asarray(curve.ys, dtype=np.float64) for curve in curves])
    bounds = [bound for curve in curves for interval in curve.intervals if interval for bound in interval]
    if not len(xs):
        return Markup("")
    reach = np.concatenate([ys, bounds])
    frame = Frame(
        (float(xs.min()), float(xs.max())), y_range or _padded(float(reach.min()), float(reach.max())), x_label, y_label
    )
    parts = [frame.axes()]
    for number, curve in enumerate(curves):
        # Intervals of two curves at one place would hide each other.
        shift = (number - (len(curves) - 1) / 2) * 5 if curve.intervals else 0.0
        spots = [(frame.x(float(x)) + shift, frame.y(float(y))) for x, y in zip(curve.xs, curve.ys, strict=True)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline class="line {curve.style}" points="{points}"/>')
        for (x, _), interval in zip(spots, curve.intervals, strict=False):
            if interval:
                low, high = frame.y(interval[0]), frame.y(interval[1])
                path = f"M{x - 5:.1f} {low:.1f}h10M{x - 5:.1f} {high:.1f}h10M{x:.1f} {low:.1f}V{high:.1f}"
                parts.append(f'<path class="interval {curve.style}" d="{path}"/>')
        if dots or len(spots) == 1:
            parts += [_mark(number, x, y, curve.style) for x, y in spots]
    about = "; ".join(
        f"{curve.name}: from {_tick(float(curve.ys[0]))} to {_tick(float(curve.ys[-1]))}"
        for curve in curves
        if len(curve.ys)
    )
    return svg(title, about, "".join(parts))


def density(
    title: str, x: np.ndarray, y: np.ndarray, labels: tuple[str, str], marks: Sequence[tuple[str, str, float, float]]
) -> Markup:
    """Where points lie, as a grid of cells: the darker, the more (by the logarithm of their number).

    Args:
        title: What is shown.
        x: ``(n,)`` positions from the left.
        y: ``(n,)`` positions from below, 0 to 1.
        labels: Of both axes.
        marks: Name, style, x and y of points to be marked, such as means.
    """
    good = np.isfinite(x) & np.isfinite(y)
    if not good.any():
        return Markup("")
    x, y = x[good].astype(np.float64), y[good].astype(np.float64)
    frame = Frame(_padded(float(x.min()), float(x.max())), (0.0, 1.0), *labels)
    counts, columns, rows = np.histogram2d(x, y, bins=(40, 25), range=(frame.x_range, frame.y_range))
    top = math.log1p(float(counts.max()))
    parts = [frame.axes()]
    for i, j in zip(*np.nonzero(counts), strict=True):
        left, upper = frame.x(columns[i]), frame.y(rows[j + 1])
        width, height = frame.x(columns[i + 1]) - left, frame.y(rows[j]) - upper
        place = f'x="{left:.1f}" y="{upper:.1f}" width="{width:.1f}" height="{height:.1f}"'
        opacity = 0.15 + 0.85 * math.log1p(counts[i, j]) / top
        parts.append(f'<rect class="cell" {place} opacity="{opacity:.2f}"/>')
    parts += [
        _mark(number, frame.x(px), frame.y(py), f"ringed {style}") for number, (_, style, px, py) in enumerate(marks)
    ]
    about = "; ".join(f"{name}: {_tick(px)}, {_tick(py)}" for name, _, px, py in marks)
    return svg(title, about, "".join(parts))


def _mark(number: int, x: float, y: float, style: str) -> str:
    """A dot for the first series, a square for the second, so that colour is not all that tells them apart."""
    if number % 2 == 0:
        return f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    return f'<rect class="dot {style}" x="{x - 2.8:.1f}" y="{y - 2.8:.1f}" width="5.6" height="5.6"/>'


def svg(title: str, about: str, body: str) -> Markup:
    """The picture around a plot's parts, with its title and description."""
    label = escape(f"{title}. {about}." if about else f"{title}.")
    head = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return Markup(f"{head}{body}</svg>")  # noqa: S704 (numbers of our own, and texts that were escaped)


def _spread(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    if high > low:
        return low, high
    half = abs(low) * 0.1 or 0.5
    return low - half, high + half


def _padded(low: float, high: float) -> tuple[float, float]:
    low, high = _spread(low, high)
    room = (high - low) * 0.06
    return low - room, high + room


def _tick(value: float) -> str:
    """A number as short as it can be said."""
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e6):
        text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    elif size >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")
