"""The dataset card: README.md with what the dataset is, how it was created, and what the user must fill in."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from spr import __version__
from spr.config.public import public_config, public_name
from spr.core.plots import Chart, Series, density, figure, histogram
from spr.core.terminal import count_text
from spr.exports.image_limits import geometry_note
from spr.exports.marker import ExportPlan
from spr.runs.pair_stats import LENGTHS, OWN_LOCALIZATION, PairStats, spread
from spr.runs.reader import SIDES, Run
from spr.runs.store import reasons_sorted

_SIZES = {"n<1K": 1e3, "1K<n<10K": 1e4, "10K<n<100K": 1e5, "100K<n<1M": 1e6, "1M<n<10M": 1e7}
_IMAGES = {
    "embed": "The rows contain the bytes of the images.",
    "copy": "The images are copied into `images/`.",
    "path": "The rows name image files on the machine where this dataset was exported; the files are not part of it.",
    "none": "**The images are not part of it.** The rows name them as the annotations do, relative to an image folder. "
    "Tell the trainer where that is (LLaMA-Factory: `media_dir`; ms-swift: `ROOT_IMAGE_DIR`; LLaVA: `--image_folder`), "
    "or put the images into the rows.",
}
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


def write_card(
    folder: Path,
    plan: ExportPlan,
    stats: PairStats,
    left_out: Mapping[str, int],
    licenses: Mapping[str | None, int],
    *,
    questions: Mapping[str, int],
) -> None:
    """Write ``README.md`` and ``plots/`` into an export's folder.

    ``left_out`` counts the pairs left out by reason, ``licenses`` the images by the license that the annotations state.
    ``questions`` counts the pairs of the stage `negatives` by split; the statistics don't contain them.
    """
    _write_plots(folder / "plots", stats)
    lines = [
        *_summary(plan, stats, questions),
        *_licenses(licenses),
        *_statistics(plan.run, stats, left_out),
        *_columns(plan),
        *_creation(plan),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _summary(plan: ExportPlan, stats: PairStats, by_split: Mapping[str, int]) -> Iterator[str]:
    pairs, questions = stats.pairs, sum(by_split.values())
    held_out = stats.held_out + by_split.get("holdout", 0)
    head = {
        "license": plan.license_id,
        "pretty_name": plan.labels.name,
        "task_categories": ["image-text-to-text", "object-detection"],
        "tags": ["preference", "dpo", "visual-grounding", "region-description", "spr"],
        "size_categories": [next((name for name, limit in _SIZES.items() if pairs + questions < limit), "n>1M")],
        "configs": _configs(plan, held_out=held_out > 0),
    }
    yield f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip()}\n---\n"
    yield f"# {_plain(plan.labels.name)}\n"
    yield (
        f"{count_text(pairs, 'preference pairs')} for teaching a multimodal LLM to localize what it describes, in the "
        f"format of {plan.format.reader}. Each pair has an image, a prompt about a region, the best of several "
        "descriptions with corrected boxes (*chosen*), and the worst one as generated (*rejected*). Created with "
        "Spatial Preference Rewarding ([arXiv 2510.14374](https://arxiv.org/abs/2510.14374)).\n"
    )
    if questions:
        yield (
            f"{count_text(questions, 'more pairs')} ask where one object is. If it is not annotated in the image, the "
            "chosen answer says that it is not there, and the rejected one gives the box of another object; if it is, "
            "chosen gives its box, and rejected says that it is not there. They have no scores, and the statistics "
            "below don't contain them.\n"
        )
    yield f"Boxes are written in the dialect `{plan.dialect}`. {geometry_note(plan.labels.dialect)}\n"
    yield f"{_IMAGES[plan.images]}\n"
    if held_out:
        yield (
            f"{held_out:,} of the pairs are of held-out images: the split `test`, in "
            f"`{plan.format.files('test')}`. Don't train on them; they are for evaluation.\n"
        )
    yield plan.format.usage.replace("{out}", plan.out.name) + "\n"
    yield "## License\n"
    yield (
        f"The front matter says `{plan.license_id}`. **Before you publish this dataset, fill in** the license of the "
        "images, the license of the annotations, and the terms of the model that wrote the answers. SPR can't know "
        "them. The strictest of them applies to the whole dataset.\n"
    )


def _configs(plan: ExportPlan, *, held_out: bool) -> list[dict[str, Any]]:
    """What `load_dataset` and the hub's viewer read: with copied images, the pairs of a split as an image folder.

    🤗 datasets reads all configs of a folder in one way, so the trainer's file can't be a second one. It finds a local
    folder in its cache by the folder's name and the config alone; so ``description`` tells exports apart.
    """
    copied = plan.images == "copy"
    files: dict[str, Any] = {"train": ["metadata.jsonl", "images/**"] if copied else plan.format.files("train")}
    if held_out:
        files["test"] = ["test/metadata.jsonl", "test/images/**"] if copied else plan.format.files("test")
    digest = hashlib.sha256(json.dumps(plan.identity).encode()).hexdigest()[:16]
    splits = [{"split": split, "path": paths} for split, paths in files.items()]
    return [{"config_name": "default", "description": f"SPR pairs {digest}", "data_files": splits}]


def _licenses(licenses: Mapping[str | None, int]) -> Iterator[str]:
    if set(licenses) <= {None}:
        yield "The annotations do not state under which license each image is.\n"
        return
    yield "What the annotations state about the images; `images.jsonl` has the license and the source of each:\n"
    yield "| license | images |\n|---|---|"
    for text, count in sorted(licenses.items(), key=lambda item: (-item[1], item[0] or "")):
        yield f"| {'none stated' if text is None else _plain(text)} | {count:,} |"
    yield ""


def _statistics(run: Run, stats: PairStats, left_out: Mapping[str, int]) -> Iterator[str]:
    yield "## Counts\n\n| stage | kept | dropped |\n|---|---|---|"
    for name in run.stages:
        manifest = run.finished(name)
        dropped = "; ".join(f"{_plain(reason)} {count:,}" for reason, count in reasons_sorted(manifest.dropped))
        yield f"| {name} | {manifest.rows:,} | {dropped or '–'} |"
    reasons = "; ".join(f"{reason} {count:,}" for reason, count in left_out.items())
    yield f"| this export | {stats.pairs:,} | {reasons or '–'} |"
    if left_out:
        yield "\n`left_out.jsonl` lists the pairs that this export left out."
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


def _columns(plan: ExportPlan) -> Iterator[str]:
    yield "\n## Columns\n\n| column | meaning |\n|---|---|"
    for name, meaning in plan.format.columns.items():
        yield f"| `{name}` | {meaning} |"


def _creation(plan: ExportPlan) -> Iterator[str]:
    config = plan.run.config
    weight = config.scoring.semantic_weight
    yield "\n## How it was created\n"
    yield (
        "The model described regions of images with many objects several times. Each description was scored, "
        f"S = {weight:g} S_sem + {1 - weight:g} S_loc, by an image-text model (S_sem: does it describe the region?) "
        "and against the annotations (S_loc: does it localize the objects?). In the best description, each box that "
        "matches an annotated object was replaced by the box of that object, and the other boxes were treated as "
        f"`pairing.unmatched: {config.pairing.unmatched}` says. The worst description is the rejected answer.\n"
    )
    yield "| source | |\n|---|---|"
    yield f"| annotations | `{plan.labels.origin}`, sha256 `{plan.run.inputs.get('sha256', 'unknown')}` |"
    yield f"| describer | `{plan.labels.describer}` |"
    yield f"| scorer | `{_model(config.scorer)}` |"
    yield f"| detector | `{_model(config.detector)}` |"
    yield f"| SPR | {__version__} |"
    shown = yaml.safe_dump(public_config(config), sort_keys=False, allow_unicode=True).rstrip()
    yield f"\n<details><summary>The whole config</summary>\n\n```yaml\n{shown}\n```\n\n</details>"


def _model(section: Any) -> str:
    if section.backend == "none":
        return "none"
    if section.backend == "fake":
        return "fake (its numbers mean nothing)"
    return public_name(str(section.model)) + (f"@{section.revision}" if section.revision else "")


def _plain(text: str) -> str:
    """A text on one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


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
