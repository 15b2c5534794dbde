"""The charts of the report's page: scores, lengths, training curves and results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spr.core.plots import Chart, Curve, Series, density, histogram, lines
from spr.report.results import WHEN, TaskResult
from spr.report.training import TrainingCurves, thin
from spr.runs.pair_stats import LENGTHS, OWN_LOCALIZATION, PairStats, spread
from spr.runs.reader import SIDES

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
        plot = histogram(f"{title}: candidates, chosen and rejected", series, title)
        charts.append(Chart(title, plot, _key(series), _means(series, 3)))
    marks = []
    for side in SIDES:
        x, y = (float(stats.of(name, side).mean()) for name in ("semantic", "localization"))
        marks.append((f"mean of the {side}", side, x, y))
    title = "Semantic against localization score of all candidates"
    plot = density(title, columns["semantic"], columns["localization"], ("S_sem", "S_loc"), marks)
    correlation = _correlation(columns["semantic"], columns["localization"])
    note = f"{len(columns['score']):,} candidates; correlation {correlation}."
    charts.insert(1, Chart("S_sem against S_loc", plot, [(style, name) for name, style, _, _ in marks], note))
    margins = Series("pairs", "all", stats.margins)
    plot = histogram("Margin between the scores of chosen and rejected", [margins], "margin")
    return [*charts, Chart("Margin", plot, (), _means([margins], 3))]


def length_charts(stats: PairStats) -> list[Chart]:
    """Lengths of chosen and rejected answers, and S_loc of their own boxes."""
    charts = []
    for name, title in LENGTHS.items():
        series = _two_sides(stats, name)
        label = "words, including coordinates" if name == "words" else title
        plot = histogram(f"{title} of chosen and rejected answers".capitalize(), series, label, whole=True)
        charts.append(Chart(title.capitalize(), plot, _key(series), _means(series, 1)))
    series = _two_sides(stats, OWN_LOCALIZATION)
    plot = histogram("S_loc of the answers’ own boxes", series, "S_loc", bins=25, x_range=(0.0, 1.0))
    note = _means(series, 3) + " Without the detector’s boxes; the chosen answer after refinement."
    return [*charts, Chart("S_loc of the answers’ own boxes", plot, _key(series), note)]


_TRAINING = (
    ("Loss", "loss", "loss", (("loss", "all", "loss"),)),
    ("Margin", "margin", "reward", (("margin", "all", "reward of chosen minus rejected, times β"),)),
    ("Accuracy", "accuracy", "share", (("accuracy", "all", "pairs whose chosen answer has the higher reward"),)),
    (
        "Log-probabilities",
        "log-probabilities",
        "log-prob",
        (("chosen_logps", "chosen", "chosen"), ("rejected_logps", "rejected", "rejected")),
    ),
    (
        "Rewards",
        "rewards",
        "reward",
        (("chosen_rewards", "chosen", "chosen"), ("rejected_rewards", "rejected", "rejected")),
    ),
    ("Gradient norm", "gradient norm", "norm", (("grad_norm", "all", "before clipping"),)),
    ("Learning rate", "learning rate", "rate", (("learning_rate", "all", "learning rate"),)),
)


def training_charts(training: TrainingCurves) -> list[Chart]:
    """The curves of a training, as far as its log has them."""
    charts = []
    for heading, what, unit, wanted in _TRAINING:
        present = [(field, style, name) for field, style, name in wanted if field in training.values]
        if not present:
            continue
        curves = [Curve(name, style, *thin(training.steps, training.values[field])) for field, style, name in present]
        y_range = (0.0, 1.0) if heading == "Accuracy" else None
        plot = lines(f"{what} by step".capitalize(), curves, "step", unit, y_range=y_range)
        gaps = {name: training.not_finite(field) for field, _, name in present}
        note = " ".join(f"{count:,} steps without a finite number ({name})." for name, count in gaps.items() if count)
        key = [(style, name) for _, style, name in present if name != heading.lower()]
        charts.append(Chart(heading, plot, key, note))
    return charts


def result_charts(task: TaskResult) -> list[Chart]:
    """Accuracy or recall by IoU threshold, before and after training, with 95 % intervals."""
    names = {"acc": "Accuracy by IoU", "recall": "Recall by IoU"}
    charts = []
    for kind, sides in task.curves.items():
        curves = []
        for when in (when for when in WHEN if when in sides):
            points = sides[when]
            intervals = [None if v.low is None or v.high is None else (v.low, v.high) for _, v in points]
            curves.append(Curve(when, when, [at for at, _ in points], [v.value for _, v in points], intervals))
        label = names[kind].split()[0].lower()
        plot = lines(f"{names[kind]}: {task.task}", curves, "IoU threshold", label, dots=True)
        charts.append(Chart(names[kind], plot, [(c.style, c.name) for c in curves], "Error bars: 95 % intervals."))
    return charts


def _two_sides(stats: PairStats, name: str) -> list[Series]:
    return [Series(side, side, stats.of(name, side)) for side in SIDES]


def _key(series: Sequence[Series]) -> list[tuple[str, str]]:
    return [(one.style, one.name) for one in series]


def _means(series: Sequence[Series], digits: int) -> str:
    texts = [f"{one.name} {spread(one.values, digits)}" for one in series]
    return f"Mean (5–95 %): {', '.join(texts)}.".replace("-", "−")


def _correlation(x: np.ndarray, y: np.ndarray) -> str:
    # The range instead of the standard deviation, which is not exactly 0 for equal numbers.
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return "not defined"
    return f"{float(np.corrcoef(x, y)[0, 1]):.2f}".replace("-", "−")
