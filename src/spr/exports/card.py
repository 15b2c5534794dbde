"""The data set card: README.md with what the data are, how they came to be, and what the user must fill in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from spr import __version__
from spr.config import Config
from spr.core.errors import RunError
from spr.exports.plots import write_plots
from spr.exports.rows import Format, ImageMode, Labels
from spr.runs.reader import RunSource, public_name
from spr.runs.statistics import SIDES, Statistics
from spr.runs.store import reasons_sorted

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
_IMAGES = {
    "embed": "The images' bytes are in the rows.",
    "copy": "The images are copied into `images/`.",
    "path": "The rows name image files on the machine that made this; they are not part of it.",
}
_MEASURES = {
    "scored": ("S_loc as scored, with the detector, before boxes were corrected", 3),
    "own": ("S_loc of the answer's own boxes, as exported", 3),
    "phrases": ("phrases with boxes", 1),
    "boxes": ("boxes", 1),
    "words": ("words", 1),
}


@dataclass(frozen=True, slots=True)
class Card:
    """What a card tells of.

    Attributes:
        format: What was written.
        labels: The data set's name and origin.
        license_id: For the front matter.
        images: Where the images are.
        dialect: Of the texts.
        folder_name: The export's folder.
        source: The run.
        counts: ``pairs`` and ``left_out``.
        statistics: Of the pairs.
    """

    format: Format
    labels: Labels
    license_id: str
    images: ImageMode
    dialect: str
    folder_name: str
    source: RunSource
    counts: Mapping[str, Any]
    statistics: Statistics


def write_card(folder: Path, card: Card) -> None:
    """Write ``README.md`` and ``plots/`` into an export's folder.

    Raises:
        RunError: if the folder can't be written to.
    """
    try:
        plots = write_plots(folder, card.statistics)
        lines = [*_front_matter(card), *_head(card), *_numbers(card, plots), *_columns(card), *_making(card)]
        (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{folder} can't be written", got=error, fix="make room, or choose another --out") from None


def _front_matter(card: Card) -> Iterator[str]:
    size = next((name for most, name in _SIZES if card.counts["pairs"] < most), "n>1M")
    head = {
        "license": card.license_id,
        "pretty_name": card.labels.name,
        "task_categories": ["image-text-to-text", "object-detection"],
        "tags": ["preference", "dpo", "visual-grounding", "region-description", "spr"],
        "size_categories": [size],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": card.format.data_files}]},
        ],
    }
    yield "---"
    yield yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip()
    yield "---"


def _head(card: Card) -> Iterator[str]:
    yield ""
    yield f"# {_plain(card.labels.name)}"
    yield ""
    yield (
        f"{card.counts['pairs']:,} preference pairs for teaching a multimodal LLM to place what it describes, in the "
        f"format of {card.format.reader}. Each has an image, a question about a region, the best of several "
        "descriptions with its boxes corrected (*chosen*), and the worst as generated (*rejected*). Made by "
        "Spatial Preference Rewarding ([arXiv 2510.14374](https://arxiv.org/abs/2510.14374))."
    )
    yield ""
    yield f"Boxes are written in the dialect `{card.dialect}`. {_IMAGES[card.images]}"
    yield ""
    yield card.format.usage.replace("{out}", card.folder_name)
    yield ""
    yield "## Licence"
    yield ""
    yield (
        f"The front matter says `{card.license_id}`. **Before you publish this, fill in** the licence of the images, "
        "that of the annotations and the terms of the model that wrote the answers: SPR can't know them, and the "
        "strictest of them holds for the whole."
    )


def _numbers(card: Card, plots: Mapping[str, str]) -> Iterator[str]:
    source, statistics = card.source, card.statistics
    yield ""
    yield "## Counts"
    yield ""
    yield "| stage | kept | dropped |"
    yield "|---|---|---|"
    for name, manifest in source.manifests.items():
        dropped = "; ".join(f"{_plain(reason)} {count:,}" for reason, count in reasons_sorted(manifest.dropped))
        yield f"| {name} | {manifest.rows:,} | {dropped or '–'} |"
    left_out = "; ".join(f"{reason} {count:,}" for reason, count in card.counts["left_out"].items())
    yield f"| this export | {card.counts['pairs']:,} | {left_out or '–'} |"
    if left_out:
        yield ""
        yield "`left_out.jsonl` names what this export left out."
    yield ""
    yield "## Scores and lengths"
    yield ""
    yield "| mean (5–95 %) | chosen | rejected |"
    yield "|---|---|---|"
    for name, (label, digits) in _MEASURES.items():
        cells = [_spread(statistics.of(name, side), digits) for side in SIDES]
        yield f"| {label} | {cells[0]} | {cells[1]} |"
    margins = _spread(np.frombuffer(statistics.margins, dtype=np.float32), 3)
    yield ""
    yield f"Margin of S: {margins}. Boxes of the chosen: " + (
        ", ".join(f"{count:,} {edit.replace('_', ' ')}" for edit, count in statistics.box_edits.most_common()) + "."
    )
    words = [float(statistics.of("words", side).mean()) for side in SIDES]
    ratio = words[0] / max(words[1], 1e-9)
    if not 0.8 <= ratio <= 1.25:
        yield ""
        yield (
            f"**Lengths differ:** chosen answers have {ratio:.2f} times the rejected ones' words, and "
            " preference training may learn that instead of where things are."
        )
    for path, text in plots.items():
        yield ""
        yield f"![{text}]({path})"
        yield f"*{text[0].upper()}{text[1:]}.*"


def _columns(card: Card) -> Iterator[str]:
    yield ""
    yield "## Columns"
    yield ""
    yield "| column | meaning |"
    yield "|---|---|"
    for name, meaning in card.format.columns.items():
        yield f"| `{name}` | {meaning} |"


def _making(card: Card) -> Iterator[str]:
    source = card.source
    config = source.config
    weight = config.scoring.semantic_weight
    detector = "none" if config.detector.backend == "none" else _model(config.detector)
    yield ""
    yield "## How it was made"
    yield ""
    yield (
        "Regions of images with many objects were described several times by the model; each description was scored, "
        f"S = {weight:g} S_sem + {1 - weight:g} S_loc, by an image-text "
        "model (does it say what is there?) and against the annotations (does it place it well?). The best one's boxes "
        "that match an annotated object were replaced by that object's box; boxes that match nothing were treated as "
        f"`pairing.unmatched: {config.pairing.unmatched}` says. The worst one is the rejected answer."
    )
    yield ""
    yield "| source | |"
    yield "|---|---|"
    yield f"| annotations | `{card.labels.origin}`, sha256 `{source.annotations_hash or 'not known'}` |"
    yield f"| describer | `{card.labels.describer}` |"
    yield f"| scorer | `{_model(config.scorer)}` |"
    yield f"| detector | `{detector}` |"
    yield f"| SPR | {__version__} |"
    yield ""
    yield "<details><summary>The whole config</summary>"
    yield ""
    yield "```yaml"
    yield yaml.safe_dump(_public_config(config), sort_keys=False, allow_unicode=True).rstrip()
    yield "```"
    yield ""
    yield "</details>"


def _model(section: Any) -> str:
    if section.backend == "fake":
        return "fake (numbers that mean nothing)"
    return public_name(section.model) + (f"@{section.revision}" if section.revision else "")


def _public_config(config: Config) -> dict[str, Any]:
    """The config without folders, and without the address of the describer's server, which may hold a login."""
    shown: dict[str, Any] = _public_all(config.model_dump(mode="json"))
    if shown["describer"] and shown["describer"]["base_url"]:
        shown["describer"]["base_url"] = "not published"
    return shown


def _public_all(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public_all(item) for key, item in value.items()}
    if isinstance(value, str):
        return public_name(value)
    return value


def _plain(text: str) -> str:
    """A text that Markdown takes for nothing but text, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _spread(values: npt.NDArray[np.float32], digits: int) -> str:
    low, high = np.percentile(values, [5, 95])
    return f"{values.mean():.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
