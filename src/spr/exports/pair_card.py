"""What the dataset card says about pairs: scores, lengths and plots of chosen and rejected answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spr.core.plots import Chart, Series, density, figure, histogram
from spr.core.terminal import count_text
from spr.exports.card import CardBody, model_of
from spr.exports.marker import ExportPlan
from spr.exports.pair_rows import ExportedPairs
from spr.runs.pair_stats import LENGTHS, OWN_LOCALIZATION, PairStats, spread
from spr.runs.reader import SIDES

_LOCALIZATION = {
    "localization": "S_loc as scored, with the detector, before boxes were corrected",
    OWN_LOCALIZATION: "S_loc of the answer's own boxes, as exported",
}
_PLOTS = {
    "scores": "S_sem and S_loc of all candidates",
    "margins": "Margin of the pairs: S of the chosen minus S of the rejected description",
    "localization": "S_loc of chosen and rejected answers",
    "lengths": "Words, and phrases with boxes, of chosen and rejected answers",
}


def pair_body(folder: Path, plan: ExportPlan, exported: ExportedPairs) -> CardBody:
    """What the card says, with ``plots/`` written into the folder; the statistics don't contain the questions."""
    stats, questions = exported
    _write_plots(folder / "plots", stats)
    config = plan.run.config
    weight = config.scoring.semantic_weight
    return CardBody(
        what="pairs",
        rows=stats.pairs + questions.total(),
        held_out=stats.held_out + questions["holdout"],
        counted=stats.pairs,
        tags=["preference", "dpo", "visual-grounding", "region-description", "spr"],
        intro=list(_intro(plan, stats.pairs, questions.total())),
        statistics=list(_statistics(stats)),
        creation="The model described regions of images with many objects several times. Each description was scored, "
        f"S = {weight:g} S_sem + {1 - weight:g} S_loc, by an image-text model (S_sem: does it describe the region?) "
        "and against the annotations (S_loc: does it localize the objects?). In the best description, each box that "
        "matches an annotated object was replaced by the box of that object, and the other boxes were treated as "
        f"`pairing.unmatched: {config.pairing.unmatched}` says. The worst description is the rejected answer.",
        models={
            "describer": plan.labels.describer,
            "scorer": model_of(config.scorer),
            "detector": model_of(config.detector),
        },
    )


def _intro(plan: ExportPlan, pairs: int, questions: int) -> Iterator[str]:
    yield (
        f"{count_text(pairs, 'preference pairs')} for teaching a multimodal LLM to localize what it describes, in the "
        f"format of {plan.format.reader}. Each pair has an image, a prompt about a region, the best of several "
        "descriptions with corrected boxes (*chosen*), and the worst one as generated (*rejected*). Created with "
        "Spatial Preference Rewarding ([arXiv 2510.14374](https://arxiv.org/abs/2510.14374))."
    )
    if questions:
        yield (
            f"{count_text(questions, 'more pairs')} ask where one object is. If it is not annotated in the image, the "
            "chosen answer says that it is not there, and the rejected one gives the box of another object; if it is, "
            "chosen gives its box, and rejected says that it is not there. They have no scores, and the statistics "
            "below don't contain them."
        )


def _statistics(stats: PairStats) -> Iterator[str]:
    yield "\n## Scores and lengths\n\n| mean (5–95 %) | chosen | rejected |\n|---|---|---|"
    rows = {**{name: (label, 3) for name, label in _LOCALIZATION.items()}, **{n: (la, 1) for n, la in LENGTHS.items()}}
    for name, (label, digits) in rows.items():
        yield f"| {label} | " + " | ".join(spread(stats.of(name, side), digits) for side in SIDES) + " |"
    edits = ", ".join(f"{count:,} {edit.replace('_', ' ')}" for edit, count in stats.box_edits.most_common())
    yield f"\nMargin of S: {spread(stats.margins, 3)}. Boxes of the chosen answers: {edits}."
    if warning := stats.length_warning():
        yield f"\n**Lengths differ.** {warning}"
    for name, caption in _PLOTS.items():
        yield f"\n![{caption}](plots/{name}.svg)\n*{caption}.*"


def _write_plots(folder: Path, stats: PairStats) -> None:
    folder.mkdir()
    scores = stats.candidate_scores()
    scatter = density(_PLOTS["scores"], scores["semantic"], scores["localization"], ("S_sem", "S_loc"), ())
    margins = histogram(_PLOTS["margins"], [Series("pairs", "all", stats.margins)], "margin")
    charts = {
        "scores": [Chart(count_text(len(scores["score"]), "candidates"), scatter)],
        "margins": [
            Chart(f"{count_text(stats.pairs, 'pairs')}, median margin {np.median(stats.margins):.3g}", margins)
        ],
        "localization": [
            _two_sides(stats, "localization", "As scored, with the detector", "S_loc", 2),
            _two_sides(stats, OWN_LOCALIZATION, "Own boxes, as exported", "S_loc", 2),
        ],
        "lengths": [_two_sides(stats, name, LENGTHS[name].capitalize(), name, 1) for name in ("words", "phrases")],
    }
    for name, panels in charts.items():
        (folder / f"{name}.svg").write_text(figure(panels), encoding="utf-8")


def _two_sides(stats: PairStats, name: str, heading: str, label: str, digits: int) -> Chart:
    sides = [Series(side, side, stats.of(name, side)) for side in SIDES]
    shares = {"x_range": (0.0, 1.0), "bins": 25} if label == "S_loc" else {"whole": True}
    plot = histogram(f"{heading}: {label} of chosen and rejected answers", sides, label, **shares)
    key = [(side, f"{side}, mean {stats.of(name, side).mean():.{digits}f}") for side in SIDES]
    return Chart(heading, plot, key)
