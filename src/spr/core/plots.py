"""Plots as SVG text, for the report's page and for picture files.

A plot in a page takes its colours from the page's CSS variables, so that it follows the light or dark theme. `figure`
makes a file of its own from plots, with title, key and colours. Every plot has a text description, and its series
differ by dash or marker besides colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

import numpy as np

Range: TypeAlias = tuple[float, float]

WIDTH, HEIGHT = 360, 224
LEFT, RIGHT, TOP, BOTTOM = 62, 8, 12, 38
_GAP, _HEADER = 20, 46
_POINTS = 50_000
"""Points that are counted at a time."""

CSS = """\
.all,.before{--c:var(--all)}.chosen,.after{--c:var(--chosen)}.rejected{--c:var(--rejected)}
.plot text{font-size:11px;fill:var(--muted)}.plot .label{fill:var(--ink)}
.grid{stroke:var(--line);stroke-width:1}.axis{stroke:var(--muted);stroke-width:1}
.line{fill:none;stroke:var(--c);stroke-width:1.75;stroke-linejoin:round}
.line.rejected,.line.before{stroke-dasharray:5 3}.line.all{stroke-width:1.5}
.area{fill:var(--c);opacity:.13;stroke:none}
.interval{stroke:var(--c);stroke-width:1.5;fill:none}.dot{fill:var(--c);stroke:var(--surface);stroke-width:1}
.ringed{stroke:var(--surface);stroke-width:2}.cell{fill:var(--all)}
"""
"""Style of the plots, shared by the report's page and by `figure`. The page defines the colour variables."""

LIGHT = {
    "surface": "#ffffff",
    "ink": "#1c2227",
    "muted": "#59636b",
    "line": "#dddfdc",
    "chosen": "#0a62b5",
    "rejected": "#b3470c",
    "all": "#666f76",
}
"""Colours of picture files: those of the report's light theme."""
_FIGURE_CSS = """\
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;font-size:12px;fill:var(--muted)}
.heading{font-size:14px;font-weight:600;fill:var(--ink)}.swatch{fill:var(--c)}.ground{fill:var(--surface)}
"""


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers with a name; ``style`` is the CSS class that colours them (``chosen``, ``rejected``, ``all``, …)."""

    name: str
    style: str
    values: Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line: ``(n,)`` positions and heights, and an interval or None for each point."""

    name: str
    style: str
    xs: Sequence[float] | np.ndarray
    ys: Sequence[float] | np.ndarray
    intervals: Sequence[Range | None] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot with its heading, its key (pairs of CSS class and name) and a note below it."""

    heading: str
    svg: str
    key: Sequence[tuple[str, str]] = ()
    note: str = ""


class _Frame:
    """Axes with ticks; ``x`` and ``y`` map values to pixels from the left and from the top."""

    def __init__(self, x_range: Range, y_range: Range, x_label: str, y_label: str, *, whole: bool = False) -> None:
        self.x_range, self.y_range = _spread(*x_range), _spread(*y_range)
        self.labels, self.whole = (x_label, y_label), whole

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def svg(self, title: str, about: Sequence[str], marks: Sequence[str]) -> str:
        """The axes with marks on them, and a title and a description for screen readers."""
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        label = escape(f"{title}. {'; '.join(about)}." if about else f"{title}.")
        parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
        for tick in ticks(*self.y_range):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text("", LEFT - 6, y + 3.5, _number(tick), anchor="end"))
        x_ticks = ticks(*self.x_range, whole=self.whole)
        parts += [_text("", self.x(tick), bottom + 15, _number(tick)) for tick in x_ticks]
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        parts.append(_text("label", (LEFT + right) / 2, HEIGHT - 5, self.labels[0]))
        parts.append(_text("label", 11, (TOP + bottom) / 2, self.labels[1], turned=True))
        return "".join([*parts, *marks, "</svg>"])


def _text(style: str, x: float, y: float, text: str, *, anchor: str = "middle", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(text)}</text>'


def ticks(low: float, high: float, *, whole: bool = False, most: int = 5) -> list[float]:
    """Round numbers within a range, about ``most`` of them.

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
    x_range: Range | None = None,
) -> str:
    """Histogram with the share of each series' values per bin; the shares of a series add up to 1.

    ``title`` is the description for screen readers. ``whole`` values get one bin per number, or several numbers per bin
    where there are many. ``x_range`` is by default the 0.5th to the 99.5th percentile; values outside count in the end
    bins. Non-finite values are left out; without a finite value, the result is empty instead of an ``<svg>``.
    """
    values = [np.asarray(one.values, dtype=np.float64) for one in series]
    values = [column[np.isfinite(column)] for column in values]
    pooled = np.concatenate(values) if values else np.empty(0)
    if not len(pooled):
        return ""
    edges = _edges(pooled, bins, whole, x_range)
    shares = [np.histogram(np.clip(column, edges[0], edges[-1]), edges)[0] / max(len(column), 1) for column in values]
    top = max(float(share.max()) for share in shares) or 1
    frame = _Frame((edges[0], edges[-1]), (0, top), x_label, "share", whole=whole)
    marks, about = [], []
    for one, column, share in zip(series, values, shares, strict=True):
        steps = zip(np.repeat(edges, 2), [0, *np.repeat(share, 2), 0], strict=True)
        points = _points((frame.x(x), frame.y(y)) for x, y in steps)
        marks.append(f'<polygon class="area {one.style}" points="{points}"/>')
        marks.append(f'<polyline class="line {one.style}" points="{points}"/>')
        if len(column):
            mean, low, high = map(_number, (column.mean(), *np.percentile(column, [25, 75])))
            about.append(f"{one.name}: mean {mean}, middle half {low} to {high}")
    return frame.svg(title, about, marks)


def _edges(values: np.ndarray, bins: int, whole: bool, x_range: Range | None) -> np.ndarray:
    low, high = x_range or np.percentile(values, [0.5, 99.5])
    if whole:
        low, high = math.floor(low), math.ceil(high)
        step = max(1, math.ceil((high - low + 1) / 40))
        return np.arange(low - 0.5, high + step, step)
    return np.linspace(*_spread(low, high), bins + 1)


def lines(
    title: str,
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    *,
    y_range: Range | None = None,
    dots: bool = False,
) -> str:
    """Line plot, with an error bar for each point that has an interval."""
    xs = np.concatenate([np.asarray(curve.xs, dtype=np.float64) for curve in curves])
    ys = np.concatenate([np.asarray(curve.ys, dtype=np.float64) for curve in curves])
    bounds = [bound for curve in curves for interval in curve.intervals if interval for bound in interval]
    if not len(xs):
        return ""
    y_range = y_range or _padded(np.concatenate([ys, bounds]))
    frame = _Frame((xs.min(), xs.max()), y_range, x_label, y_label)
    marks = []
    for number, curve in enumerate(curves):
        # Shift the curves so that their error bars don't hide each other.
        shift = (number - (len(curves) - 1) / 2) * 5 if curve.intervals else 0.0
        spots = [(frame.x(float(x)) + shift, frame.y(float(y))) for x, y in zip(curve.xs, curve.ys, strict=True)]
        marks.append(f'<polyline class="line {curve.style}" points="{_points(spots)}"/>')
        for (x, _), interval in zip(spots, curve.intervals, strict=False):
            if interval:
                low, high = frame.y(interval[0]), frame.y(interval[1])
                path = f"M{x - 5:.1f} {low:.1f}h10M{x - 5:.1f} {high:.1f}h10M{x:.1f} {low:.1f}V{high:.1f}"
                marks.append(f'<path class="interval {curve.style}" d="{path}"/>')
        if dots or len(spots) == 1:
            marks += [_dot(number, x, y, curve.style) for x, y in spots]
    about = [f"{c.name}: from {_number(c.ys[0])} to {_number(c.ys[-1])}" for c in curves if len(c.ys)]
    return frame.svg(title, about, marks)


def density(
    title: str, x: np.ndarray, y: np.ndarray, labels: tuple[str, str], means: Sequence[tuple[str, str, float, float]]
) -> str:
    """Two-dimensional histogram; the opacity of a cell grows with the logarithm of its number of points.

    ``x`` and ``y`` (0 to 1) are ``(n,)``; ``labels`` are those of the two axes; ``means`` are points to mark: name,
    style, x and y.
    """
    good = np.isfinite(x) & np.isfinite(y)
    if not good.any():
        return ""
    x, y = x[good], y[good]
    frame = _Frame(_padded(x), (0.0, 1.0), *labels)
    columns, rows = np.linspace(*frame.x_range, 41), np.linspace(*frame.y_range, 26)
    counts = np.zeros((40, 25))
    for start in range(0, len(x), _POINTS):  # histogram2d takes ten times the memory of its points
        part = slice(start, start + _POINTS)
        counts += np.histogram2d(x[part].astype(np.float64), y[part].astype(np.float64), bins=(columns, rows))[0]
    top = math.log1p(float(counts.max()))
    marks = []
    for i, j in zip(*np.nonzero(counts), strict=True):
        left, upper = frame.x(columns[i]), frame.y(rows[j + 1])
        width, height = frame.x(columns[i + 1]) - left, frame.y(rows[j]) - upper
        place = f'x="{left:.1f}" y="{upper:.1f}" width="{width:.1f}" height="{height:.1f}"'
        opacity = 0.15 + 0.85 * math.log1p(counts[i, j]) / top
        marks.append(f'<rect class="cell" {place} opacity="{opacity:.2f}"/>')
    for number, (_, style, mean_x, mean_y) in enumerate(means):
        marks.append(_dot(number, frame.x(mean_x), frame.y(mean_y), f"ringed {style}"))
    about = [f"{name}: {_number(mean_x)}, {_number(mean_y)}" for name, _, mean_x, mean_y in means]
    return frame.svg(title, about, marks)


def _points(spots: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)


def _dot(number: int, x: float, y: float, style: str) -> str:
    """A dot for the first series and a square for the second, so that they differ by more than colour."""
    if number % 2 == 0:
        return f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    return f'<rect class="dot {style}" x="{x - 2.8:.1f}" y="{y - 2.8:.1f}" width="5.6" height="5.6"/>'


def figure(charts: Sequence[Chart]) -> str:
    """Charts side by side as one SVG file, on a white background so that it is readable on any page."""
    step = WIDTH + _GAP
    width, height = step * len(charts) + _GAP, HEIGHT + _HEADER + _GAP
    parts = [f'<rect class="ground" width="{width}" height="{height}" rx="6"/>']
    for number, chart in enumerate(charts):
        left = _GAP + number * step
        parts.append(_text("heading", left, 24, chart.heading, anchor="start"))
        x = left
        for style, name in chart.key:
            parts.append(f'<rect class="swatch {style}" x="{x}" y="35" width="14" height="8" rx="2"/>')
            parts.append(_text("", x + 19, 43, name, anchor="start"))
            x += 33 + round(6.5 * len(name))
        place = f'x="{left}" y="{_HEADER + 4}" width="{WIDTH}" height="{HEIGHT}" '
        parts.append(chart.svg.replace("<svg ", f"<svg {place}", 1))
    colours = ";".join(f"--{name}:{value}" for name, value in LIGHT.items())
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    style = f"<style>svg{{{colours}}}\n{CSS}{_FIGURE_CSS}</style>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{"".join(parts)}</svg>\n'


def _spread(low: float, high: float) -> Range:
    """The range, widened if it is empty."""
    if high > low:
        return low, high
    half = abs(low) * 0.1 or 0.5
    return low - half, high + half


def _padded(values: np.ndarray) -> Range:
    low, high = _spread(float(values.min()), float(values.max()))
    room = (high - low) * 0.06
    return low - room, high + room


def _number(value: float) -> str:
    """A number with three significant digits."""
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e6):
        text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    elif size >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")
