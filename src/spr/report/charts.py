"""Which plots the report shows, each with its heading, its key and the sentence beneath it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from spr.report.plots import Curve, Series, density, histogram, lines
from spr.report.results import WHEN, TaskResult
from spr.report.training import TrainingLog, thin
from spr.runs.joined import SIDES
from spr.runs.pair_report import length_note
from spr.runs.tally import Tally

SCORE_TITLES = {
    "score": "Score S",
    "semantic": "Semantic score S_sem",
    "localization": "Localization score S_loc",
    "s_crop": "S_crop",
    "s_local": "S_local",
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot on the page; ``key`` names its series: CSS class and name."""

    heading: str
    svg: Markup
    key: Sequence[tuple[str, str]]
    note: str = ""


def score_charts(tally: Tally) -> list[Chart]:
    """Scores of all candidates, of those chosen and of those rejected; the margins; S_sem against S_loc."""
    columns = tally.score_columns()
    charts = []
    for name, title in SCORE_TITLES.items():
        picked = [Series(side, side, tally.picked[name][side]) for side in SIDES]
        everyone = Series("all candidates", "all", columns[name])
        picture = histogram(f"{title}: candidates, chosen and rejected", [everyone, *picked], title)
        charts.append(Chart(title, picture, _key(everyone, *picked), _means([everyone, *picked], 3)))
    marks: list[tuple[str, str, float, float]] = []
    for side in SIDES if tally.pairs else ():
        x, y = (float(np.mean(tally.picked[name][side])) for name in ("semantic", "localization"))
        marks.append((f"mean of the {side}", side, x, y))
    picture = density(
        "Semantic against localization score of all candidates",
        columns["semantic"],
        columns["localization"],
        ("S_sem", "S_loc"),
        marks,
    )
    correlation = _correlation(columns["semantic"], columns["localization"])
    note = f"{len(columns['score']):,} candidates; correlation {correlation}."
    charts.insert(1, Chart("S_sem against S_loc", picture, [(style, name) for name, style, _, _ in marks], note))
    margins = Series("pairs", "all", tally.margins)
    picture = histogram("Margin between the scores of chosen and rejected", [margins], "margin")
    charts.append(Chart("Margin", picture, (), _means([margins], 3)))
    return charts


def length_charts(tally: Tally) -> list[Chart]:
    """Lengths of chosen against rejected answers, for length is a trap (METHOD §5.4), and S_loc of their own boxes."""
    charts = []
    for name, by_side in tally.lengths.items():
        sides = [Series(side, side, by_side[side]) for side in SIDES]
        label = "words, coordinates included" if name == "words" else name
        picture = histogram(f"{name} of chosen and rejected answers".capitalize(), sides, label, whole=True)
        charts.append(Chart(name.capitalize(), picture, _key(*sides), _means(sides, 1)))
    sides = [Series(side, side, tally.located[side]) for side in SIDES]
    picture = histogram("S_loc of the answers’ own boxes", sides, "S_loc", bins=25, x_range=(0.0, 1.0))
    note = _means(sides, 3) + " The chosen answer’s is that after refinement; no detector’s boxes."
    charts.append(Chart("S_loc of the answers’ own boxes", picture, _key(*sides), note))
    return charts


def length_warning(tally: Tally) -> str | None:
    """A warning where chosen and rejected answers differ much in words, or None."""
    words = tally.lengths["words"]
    if not words["chosen"]:
        return None
    return length_note(float(np.mean(words["chosen"])) / max(float(np.mean(words["rejected"])), 1e-9))


_TRAINING = (
    ("Loss", "loss", "loss", (("loss", "all", "loss"),)),
    ("Margin", "margin", "reward", (("margin", "all", "chosen minus rejected reward, times β"),)),
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


def training_charts(log: TrainingLog) -> list[Chart]:
    """The curves of a training; each of those that its log has."""
    charts = []
    for heading, what, unit, wanted in _TRAINING:
        present = [(field, style, name) for field, style, name in wanted if field in log.values]
        if not present:
            continue
        curves = [Curve(name, style, *thin(log.steps, log.values[field])) for field, style, name in present]
        y_range = (0.0, 1.0) if heading == "Accuracy" else None
        picture = lines(f"{what} by step".capitalize(), curves, "step", unit, y_range=y_range)
        gaps = {name: log.not_finite(field) for field, _, name in present}
        note = " ".join(f"{count:,} steps without a finite number ({name})." for name, count in gaps.items() if count)
        key = [(style, name) for _, style, name in present if name != heading.lower()]
        charts.append(Chart(heading, picture, key, note))
    return charts


def result_charts(task: TaskResult) -> list[Chart]:
    """Accuracy or recall by IoU threshold, before and after, with 95 % intervals."""
    names = {"acc": "Accuracy by IoU", "recall": "Recall by IoU"}
    charts = []
    for kind, found in task.curves.items():
        curves = []
        for when in (when for when in WHEN if when in found):
            points = found[when]
            intervals = [None if v.low is None or v.high is None else (v.low, v.high) for _, v in points]
            curves.append(Curve(when, when, [at for at, _ in points], [v.value for _, v in points], intervals))
        picture = lines(
            f"{names[kind]}: {task.task}", curves, "IoU threshold", names[kind].split()[0].lower(), dots=True
        )
        charts.append(Chart(names[kind], picture, [(c.style, c.name) for c in curves], "Bars: 95 % intervals."))
    return charts


def _key(*series: Series) -> list[tuple[str, str]]:
    return [(one.style, one.name) for one in series]


def _means(series: Sequence[Series], digits: int) -> str:
    texts = []
    for one in series:
        low, high = np.percentile(one.values, [5, 95])
        texts.append(f"{one.name} {np.mean(one.values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})")
    return f"Mean (5–95 %): {', '.join(texts)}.".replace("-", "−")


def _correlation(x: np.ndarray, y: np.ndarray) -> str:
    # Not the deviation: that of equal numbers is not quite 0.
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return "not defined"
    return f"{float(np.corrcoef(x, y)[0, 1]):.2f}".replace("-", "−")
