"""The card's plots, as PNG: scores of the candidates, margins, localization and lengths of the pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spr.runs.statistics import Statistics

CHOSEN, REJECTED, NEUTRAL = "#0072B2", "#D55E00", "#4D4D4D"
"""Colours that people with any kind of colour vision tell apart (Okabe and Ito)."""
_DPI = 120


def write_plots(folder: Path, statistics: Statistics) -> dict[str, str]:
    """Write the plots into ``folder/plots``; returns each file's name with what it shows."""
    plots = folder / "plots"
    plots.mkdir()
    made = {
        "scores.png": (_scores(statistics), "S_sem and S_loc of all candidates"),
        "margins.png": (_margins(statistics), "margin of the pairs: S of chosen minus S of rejected"),
        "localization.png": (_localization(statistics), "S_loc of chosen and rejected"),
        "lengths.png": (_lengths(statistics), "words, and phrases with boxes, of chosen and rejected"),
    }
    for name, (figure, _) in made.items():
        figure.savefig(plots / name, dpi=_DPI, metadata={"Software": None})
    return {f"plots/{name}": text for name, (_, text) in made.items()}


def _figure(columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(6.0 * columns if columns == 1 else 4.5 * columns, 4.0), layout="constrained")
    axes = [figure.add_subplot(1, columns, number + 1) for number in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _scores(statistics: Statistics) -> Figure:
    figure, (axis,) = _figure()
    semantic = np.frombuffer(statistics.semantic, dtype=np.float32)
    localization = np.frombuffer(statistics.localization, dtype=np.float32)
    if len(semantic) > 3000:
        drawn = axis.hexbin(semantic, localization, gridsize=50, bins="log", mincnt=1, cmap="viridis")
        figure.colorbar(drawn, ax=axis, label="candidates")
    else:
        axis.scatter(semantic, localization, s=9, alpha=0.5, color=NEUTRAL, linewidths=0)
    axis.set(xlabel="S_sem", ylabel="S_loc", title=f"{len(semantic):,} candidates")
    axis.set_ylim(-0.03, 1.03)
    return figure


def _margins(statistics: Statistics) -> Figure:
    figure, (axis,) = _figure()
    margins = np.frombuffer(statistics.margins, dtype=np.float32)
    axis.hist(margins, bins=_bins(margins), color=NEUTRAL)
    middle = float(np.median(margins))
    axis.axvline(middle, color="black", linestyle="--", linewidth=1, label=f"median {middle:.3g}")
    axis.legend(frameon=False)
    axis.set(xlabel="margin", ylabel="pairs", title=f"{len(margins):,} pairs")
    return figure


def _localization(statistics: Statistics) -> Figure:
    figure, axes = _figure(2)
    titles = {"scored": "as scored, with the detector", "own": "own boxes, as exported"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        _both(axis, statistics, name, np.linspace(0, 1, 26), digits=2)
        axis.set(xlabel="S_loc", ylabel="answers", title=title)
    return figure


def _lengths(statistics: Statistics) -> Figure:
    figure, axes = _figure(2)
    for axis, (name, label) in zip(axes, {"words": "words", "phrases": "phrases with boxes"}.items(), strict=True):
        values = np.concatenate([statistics.of(name, "chosen"), statistics.of(name, "rejected")])
        # The one longest answer must not flatten all others; what is longer counts in the last bin.
        longest = max(float(np.percentile(values, 99.5)), 1.0)
        step = max(1.0, np.ceil(longest / 40))
        _both(axis, statistics, name, np.arange(-0.5, longest + step, step), digits=1)
        axis.set(xlabel=label, ylabel="answers", title=label)
    return figure


def _both(axis: Axes, statistics: Statistics, name: str, bins: npt.NDArray[np.float64], *, digits: int) -> None:
    for side, colour in (("chosen", CHOSEN), ("rejected", REJECTED)):
        values = statistics.of(name, side)
        label = f"{side}, mean {values.mean():.{digits}f}"
        shown = np.clip(values, bins[0], bins[-1])
        axis.hist(shown, bins=bins.tolist(), color=colour, alpha=0.25)
        axis.hist(shown, bins=bins.tolist(), color=colour, histtype="step", linewidth=1.6, label=label)
    # Room for the legend above the highest bar.
    axis.margins(y=0.28)
    axis.legend(frameon=False, loc="upper left")


def _bins(values: npt.NDArray[np.float32]) -> int:
    return int(np.clip(np.sqrt(len(values)), 5, 60))
