"""The dataset card: README.md with what the dataset is, how it was created, and what the user must fill in."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from spr import __version__
from spr.config.public import public_config, public_name
from spr.exports.image_limits import geometry_note
from spr.exports.marker import ExportPlan
from spr.runs.store import reasons_sorted

_SIZES = {"n<1K": 1e3, "1K<n<10K": 1e4, "10K<n<100K": 1e5, "100K<n<1M": 1e6, "1M<n<10M": 1e7}
_IMAGES = {
    "embed": "The rows contain the bytes of the images.",
    "copy": "The images are copied into `images/`.",
    "path": "The rows name image files on the machine where this dataset was exported; the files are not part of it.",
    "none": "**The images are not part of it.** The rows name them as the annotations do, relative to an image folder. "
    "Tell the trainer where that is (LLaMA-Factory: `media_dir`; ms-swift: `ROOT_IMAGE_DIR`; LLaVA: `--image_folder`; "
    "VLM-R1: `--image_folders`), or put the images into the rows.",
}


class CardBody(NamedTuple):
    """What a card says about rows of one kind.

    Attributes:
        what: The name of the rows: ``pairs`` or ``prompts``.
        rows: Number of all rows.
        held_out: How many of them are about held-out images.
        counted: Number of rows in the table of counts.
        tags: For the Hub.
        intro: Paragraphs that say what a row is.
        statistics: Lines after the table of counts.
        creation: How the rows were made, in one paragraph.
        models: The models that took part, by their role.
    """

    what: str
    rows: int
    held_out: int
    counted: int
    tags: Sequence[str]
    intro: Sequence[str]
    statistics: Sequence[str]
    creation: str
    models: Mapping[str, str]


def write_card(
    folder: Path,
    plan: ExportPlan,
    body: CardBody,
    left_out: Mapping[str, int],
    licenses: Mapping[str | None, int],
) -> None:
    """Write ``README.md`` into an export's folder.

    ``left_out`` counts what was left out by reason, ``licenses`` the images by the license that the annotations state.
    """
    lines = [
        *_summary(plan, body),
        *_licenses(licenses),
        *_counts(plan, body, left_out),
        *body.statistics,
        *_columns(plan),
        *_creation(plan, body),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _summary(plan: ExportPlan, body: CardBody) -> Iterator[str]:
    head = {
        "license": plan.license_id,
        "pretty_name": plan.labels.name,
        "task_categories": ["image-text-to-text", "object-detection"],
        "tags": list(body.tags),
        "size_categories": [next((name for name, limit in _SIZES.items() if body.rows < limit), "n>1M")],
        "configs": _configs(plan, body),
    }
    yield f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip()}\n---\n"
    yield f"# {plain(plan.labels.name)}\n"
    for paragraph in body.intro:
        yield f"{paragraph}\n"
    yield f"Boxes are written in the dialect `{plan.dialect}`. {geometry_note(plan.labels.dialect)}\n"
    yield f"{_IMAGES[plan.images]}\n"
    if body.held_out:
        yield (
            f"{body.held_out:,} of the {body.what} are of held-out images: the split `test`, in "
            f"`{plan.format.files('test')}`. Don't train on them; they are for evaluation.\n"
        )
    yield plan.format.usage.replace("{out}", plan.out.name) + "\n"
    yield "## License\n"
    author = "the terms of the model that wrote the answers" if body.what == "pairs" else "their terms of use"
    yield (
        f"The front matter says `{plan.license_id}`. **Before you publish this dataset, fill in** the license of the "
        f"images, the license of the annotations, and {author}. SPR can't know "
        "them. The strictest of them applies to the whole dataset.\n"
    )


def _configs(plan: ExportPlan, body: CardBody) -> list[dict[str, Any]]:
    """What `load_dataset` and the hub's viewer read: with copied images, the rows of a split as an image folder.

    🤗 datasets reads all configs of a folder in one way, so the trainer's file can't be a second one. It finds a local
    folder in its cache by the folder's name and the config alone; so ``description`` tells exports apart.
    """
    copied = plan.images == "copy"
    files: dict[str, Any] = {"train": ["metadata.jsonl", "images/**"] if copied else plan.format.files("train")}
    if body.held_out:
        files["test"] = ["test/metadata.jsonl", "test/images/**"] if copied else plan.format.files("test")
    digest = hashlib.sha256(json.dumps(plan.identity).encode()).hexdigest()[:16]
    splits = [{"split": split, "path": paths} for split, paths in files.items()]
    return [{"config_name": "default", "description": f"SPR {body.what} {digest}", "data_files": splits}]


def _licenses(licenses: Mapping[str | None, int]) -> Iterator[str]:
    if set(licenses) <= {None}:
        yield "The annotations do not state under which license each image is.\n"
        return
    yield "What the annotations state about the images; `images.jsonl` has the license and the source of each:\n"
    yield "| license | images |\n|---|---|"
    for text, count in sorted(licenses.items(), key=lambda item: (-item[1], item[0] or "")):
        yield f"| {'none stated' if text is None else plain(text)} | {count:,} |"
    yield ""


def _counts(plan: ExportPlan, body: CardBody, left_out: Mapping[str, int]) -> Iterator[str]:
    yield "## Counts\n\n| stage | kept | dropped |\n|---|---|---|"
    for name in plan.run.stages:
        manifest = plan.run.store(name).manifest()
        if manifest is None or not manifest.complete:  # prompts don't need the later stages
            continue
        dropped = "; ".join(f"{plain(reason)} {count:,}" for reason, count in reasons_sorted(manifest.dropped))
        yield f"| {name} | {manifest.rows:,} | {dropped or '–'} |"
    reasons = "; ".join(f"{reason} {count:,}" for reason, count in left_out.items())
    yield f"| this export | {body.counted:,} | {reasons or '–'} |"
    if left_out:
        yield f"\n`left_out.jsonl` lists the {body.what} that this export left out."


def _columns(plan: ExportPlan) -> Iterator[str]:
    yield "\n## Columns\n\n| column | meaning |\n|---|---|"
    for name, meaning in plan.format.columns.items():
        yield f"| `{name}` | {meaning} |"


def _creation(plan: ExportPlan, body: CardBody) -> Iterator[str]:
    yield "\n## How it was created\n"
    yield f"{body.creation}\n"
    yield "| source | |\n|---|---|"
    yield f"| annotations | `{plan.labels.origin}`, sha256 `{plan.run.inputs.get('sha256', 'unknown')}` |"
    for role, model in body.models.items():
        yield f"| {role} | `{model}` |"
    yield f"| SPR | {__version__} |"
    shown = yaml.safe_dump(public_config(plan.run.config), sort_keys=False, allow_unicode=True).rstrip()
    yield f"\n<details><summary>The whole config</summary>\n\n```yaml\n{shown}\n```\n\n</details>"


def model_of(section: Any) -> str:
    """The model of a config section, as a card names it."""
    if section.backend == "none":
        return "none"
    if section.backend == "fake":
        return "fake (its numbers mean nothing)"
    return public_name(str(section.model)) + (f"@{section.revision}" if section.revision else "")


def plain(text: str) -> str:
    """A text on one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
