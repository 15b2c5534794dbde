"""The charts of the report's page: scores, lengths, training curves and results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from spr.core.plots import Chart, Curve, Series, density, histogram, lines
from spr.core.terminal import count_text
from spr.report.results import TaskResult
from spr.report.training import TrainingCurves, thin
from spr.runs.pair_stats import LENGTHS, OWN_LOCALIZATION, PairStats, spread
from spr.runs.reader import SIDES

_POINTS = 50_000
"""Points whose products are in memory at a time."""
SCORE_TITLES = {
    "score": "Score S",
    "semantic": "Semantic score S_sem",
    "localization": "Localization score S_loc",
    "s_crop": "S_crop",
    "s_local": "S_local",
}


def score_charts(stats: PairStats) -> list[Chart]:
    """Scores of all candidates, of chosen and of rejected ones; S_sem against S_loc; margins."""
    columns = stats.candidate_scores()
    charts = []
    for name, title in SCORE_TITLES.items():
        series = [Series("all candidates", "all", columns[name]), *_two_sides(stats, name)]
        charts.append(_distribution(title, f"{title}: candidates, chosen and rejected", series, title, 3))
    marks = []
    for side in SIDES:
        x, y = (float(stats.of(name, side).mean()) for name in ("semantic", "localization"))
        marks.append((f"mean of the {side}", side, x, y))
    title = "Semantic against localization score of all candidates"
    plot = density(title, columns["semantic"], columns["localization"], ("S_sem", "S_loc"), marks)
    correlation = _correlation(columns["semantic"], columns["localization"])
    note = f"{count_text(len(columns['score']), 'candidates')}; correlation {correlation}."
    charts.insert(1, Chart("S_sem against S_loc", plot, [(style, name) for name, style, _, _ in marks], note))
    margins = [Series("pairs", "all", stats.margins)]
    return [*charts, _distribution("Margin", "Margin between the scores of chosen and rejected", margins, "margin", 3)]


def length_charts(stats: PairStats) -> list[Chart]:
    """Lengths of chosen and rejected answers, and S_loc of their own boxes."""
    charts = []
    for name, title in LENGTHS.items():
        heading = title.capitalize()
        label = "words, including coordinates" if name == "words" else title
        about = f"{heading} of chosen and rejected answers"
        charts.append(_distribution(heading, about, _two_sides(stats, name), label, 1, whole=True))
    heading, series = "S_loc of the answers’ own boxes", _two_sides(stats, OWN_LOCALIZATION)
    chart = _distribution(heading, heading, series, "S_loc", 3, bins=25, x_range=(0.0, 1.0))
    note = f"{chart.note} Without the detector’s boxes; the chosen answer after refinement."
    return [*charts, replace(chart, note=note)]


_TRAINING = {
    "Loss": ("loss", {"loss": "loss"}),
    "Loss of the pairs": ("loss", {"pair_loss": "without the rows of training.mix"}),
    "Loss of training.mix": ("loss", {"mix_loss": "rows of training.mix"}),
    "Margin": ("reward", {"margin": "reward of chosen minus rejected, times β"}),
    "Accuracy": ("share", {"accuracy": "pairs whose chosen answer has the higher reward"}),
    "Log-probabilities": ("log-prob", {"chosen_logps": "chosen", "rejected_logps": "rejected"}),
    "Rewards": ("reward", {"chosen_rewards": "chosen", "rejected_rewards": "rejected"}),
    "Gradient norm": ("norm", {"grad_norm": "before clipping"}),
    "Learning rate": ("rate", {"learning_rate": "learning rate"}),
}
"""By heading: the vertical axis, and the names of the curves by field of the log."""


def training_charts(training: TrainingCurves) -> list[Chart]:
    """The curves of a training, as far as its log has them."""
    charts = []
    for heading, (y_label, names) in _TRAINING.items():
        curves, gaps = [], []
        for field, name in names.items():
            if field in training.values:
                style = name if name in SIDES else "all"
                curves.append(Curve(name, style, *thin(training.steps, training.values[field])))
                if missing := training.not_finite(field):
                    none = " or without such rows" if "mix_rows" in training.values else ""
                    gaps.append(f"{count_text(missing, 'steps')} without a finite number{none} ({name}).")
                if field in training.held_out:
                    curves.append(Curve("held out", "after", *thin(*training.held_out[field])))
        if curves:
            y_range = (0.0, 1.0) if heading == "Accuracy" else None
            plot = lines(f"{heading} by step", curves, "step", y_label, y_range=y_range)
            key = [(curve.style, curve.name) for curve in curves if curve.name != heading.lower()]
            charts.append(Chart(heading, plot, key, " ".join(gaps)))
    for metric, (steps, values) in training.held_out.items():
        if metric not in training.values:
            heading = f"Held out: {metric}"
            plot = lines(f"{heading} by step", [Curve(metric, "after", *thin(steps, values))], "step", metric)
            charts.append(Chart(heading, plot, [], "On held-out images, with the adapter as it was."))
    return charts


def result_charts(task: TaskResult) -> list[Chart]:
    """Accuracy or recall by IoU threshold, of each result, with 95 % intervals."""
    names = {"acc": "Accuracy", "recall": "Recall"}
    charts = []
    for kind, sides in task.curves.items():
        curves = [
            Curve(name, _style(task, name), [at for at, _ in own], [v.value for _, v in own], [v.ci95 for _, v in own])
            for name, own in sides.items()
        ]
        heading = f"{names[kind]} by IoU"
        plot = lines(f"{heading}: {task.task}", curves, "IoU threshold", names[kind].lower(), dots=True)
        charts.append(Chart(heading, plot, [(c.style, c.name) for c in curves], "Error bars: 95 % intervals."))
    return charts


def _style(task: TaskResult, name: str) -> str:
    if name in ("before", "after"):
        return name
    styles = ("before", "after", "rejected", "all")
    return styles[min(task.columns.index(name), len(styles) - 1)]


def _distribution(heading: str, about: str, series: Sequence[Series], label: str, digits: int, **options: Any) -> Chart:
    """A histogram with the means of its series below."""
    key = [(one.style, one.name) for one in series] if len(series) > 1 else []
    means = ", ".join(f"{one.name} {spread(one.values, digits)}" for one in series)
    note = f"Mean (5–95 %): {means}.".replace("-", "−")
    return Chart(heading, histogram(about, series, label, **options), key, note)


def _two_sides(stats: PairStats, name: str) -> list[Series]:
    return [Series(side, side, stats.of(name, side)) for side in SIDES]


def _correlation(x: np.ndarray, y: np.ndarray) -> str:
    # The range instead of the standard deviation, which is not exactly 0 for equal numbers.
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return "not defined"
    means = x.mean(dtype=np.float64), y.mean(dtype=np.float64)
    products = np.zeros((2, 2))
    for start in range(0, len(x), _POINTS):
        part = np.stack([x[start : start + _POINTS] - means[0], y[start : start + _POINTS] - means[1]])
        products += part @ part.T
    return f"{products[0, 1] / math.sqrt(products[0, 0] * products[1, 1]):.2f}".replace("-", "−")
