"""The cards of what `spr push` uploads: of an adapter, with its results, and of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from spr import __version__
from spr.config.public import public_values
from spr.core.documents import read_json
from spr.core.terminal import count_text
from spr.report.results import Change, Value, read_results
from spr.runs.adapters import raw_config
from spr.runs.reader import Run
from spr.runs.store import STAGE_ORDER, StageStore, reasons_sorted, stage_folders

_PAPER = "Spatial Preference Rewarding ([arXiv 2510.14374](https://arxiv.org/abs/2510.14374))"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TERMS = (
    "The front matter says `{license}`. **Before you make this public, fill in** {what}. SPR can't know them. The "
    "strictest of them applies."
)


def with_license(card: str, license_id: str) -> str:
    r"""The card with another license in its front matter, which is added if there is none.

    >>> with_license("---\nlicense: other\ntags: [a]\n---\n# T\n", "mit")
    '---\nlicense: mit\ntags: [a]\n---\n# T\n'
    """
    line = f"license: {license_id}"
    head, sign, rest = card.removeprefix("---\n").partition("---\n")
    if not card.startswith("---\n") or not sign:
        return f"---\n{line}\n---\n{card}"
    changed, count = re.subn(r"^license:.*$", lambda _: line, head, count=1, flags=re.MULTILINE)
    return f"---\n{changed if count else head + line + chr(10)}---\n{rest}"


def adapter_card(name: str, base: str, run: tuple[Path, str | None] | None, license_id: str) -> str:
    """The card of an adapter of the model ``base``, with what is known from its run and the name of its training.

    ``name`` is the repository, ``OWNER/NAME``.
    """
    on_hub = _HUB_ID.fullmatch(base) is not None and not base.startswith("embedded/")
    head: dict[str, Any] = {"base_model": base} if on_hub else {}
    tags = ["peft", "lora", "visual-grounding", "spr"]
    head |= {"library_name": "peft", "license": license_id, "pipeline_tag": "image-text-to-text", "tags": tags}
    lines = [_front_matter(head), f"# {name.rpartition('/')[2]}\n"]
    lines.append(
        f"A LoRA adapter for `{base}`, trained on preference pairs with {_PAPER}, so that the model places what it "
        "describes.\n"
    )
    lines += _results(*run) if run is not None else ()
    lines.append("## Use\n")
    lines.append(
        "```sh\npip install 'spatial-preference-rewarding[models]'\nspr pull {name} --out adapter\n"
        f"spr predict photo.jpg --model {base} --adapter adapter --find 'the red cup' --draw answer.png\n```\n"
    )
    lines.append("The adapter is in PEFT's format; `spr merge adapter --out merged` makes a whole model of it.\n")
    lines += _training(*run) if run is not None else ()
    what = "the license of the base model, and those of the images and annotations of the pairs"
    lines.append(f"## License\n\n{_TERMS.format(license=license_id, what=what)}")
    return "\n".join(lines) + "\n"


def run_card(name: str, run: Path, license_id: str) -> str:
    """The card of a whole run; ``name`` is the repository, ``OWNER/NAME``."""
    head = {"license": license_id, "tags": ["preference", "dpo", "visual-grounding", "spr"], "viewer": False}
    lines = [
        _front_matter(head),
        f"# {name.rpartition('/')[2]}\n",
        f"A run of {_PAPER}: every table, without the images.\n",
    ]
    lines.append(
        f"```sh\npip install 'spatial-preference-rewarding[models]'\nspr pull {name} --out run\nspr show run\n```\n"
    )
    lines.append(
        "To look at pairs with their images, to train or to export, set `annotations.images` in `run/config.yaml` to "
        "the folder of the images.\n"
    )
    lines.append("## Counts\n\n| stage | kept | dropped |\n|---|---|---|")
    order = STAGE_ORDER
    for folder in sorted(stage_folders(run), key=lambda it: order.index(it.name) if it.name in order else len(order)):
        manifest = StageStore(folder).manifest()
        if manifest is not None:
            dropped = "; ".join(f"{reason} {count:,}" for reason, count in reasons_sorted(manifest.dropped))
            state = "" if manifest.complete else " (not finished)"
            lines.append(f"| {folder.name}{state} | {manifest.rows:,} | {dropped or '–'} |")
    lines += ["", *_results(run, None), *_config(run)]
    what = "the licenses of images and annotations, and the terms of the model that wrote the answers"
    lines.append(f"## License\n\n{_TERMS.format(license=license_id, what=what)}")
    return "\n".join(lines) + "\n"


def _front_matter(head: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"


def _results(run: Path, training: str | None) -> Iterator[str]:
    """The run's results before, and after or of the training of this name, with the differences on the same items."""
    shown = "before", training or "after"
    rows = []
    for result in read_results(Run(run)):
        if shown[1] not in result.columns:
            continue
        places = [result.columns.index(name) if name in result.columns else None for name in shown]
        for line in result.lines:
            values = [None if place is None else line.values[place] for place in places]
            change = line.changes[places[1] - 1] if places[0] == 0 and places[1] else None
            cells = [result.task, line.name, *map(_measured, values), _changed(change)]
            rows.append(f"| {' | '.join(cells)} |")
    if rows:
        yield "## Results\n\nBefore and after training, and the difference on the same items, with 95 % intervals:\n"
        yield "| task | metric | before | after | difference |\n|---|---|---|---|---|"
        yield from rows
        yield ""


def _measured(value: Value | None) -> str:
    if value is None:
        return "–"
    return value.text + (f" [{value.interval}]" if value.ci95 else "")


def _changed(change: Change | None) -> str:
    if change is None:
        return "–"
    interval = f" [{change.interval}]" if change.verdict else ""
    return f"{change.text}{interval}{change.label and f': {change.label}'}"


def _training(run: Path, training: str | None) -> Iterator[str]:
    place = run if training is None else run / "trainings" / training
    try:
        finished = read_json(place / "training" / "finished.json")
        values = finished["last"]  # of a step that may have had rows of `training.mix` only
        last = ", ".join(f"{key} {values[key]:.4g}" for key in ("loss", "margin", "accuracy") if key in values)
        done = f"{count_text(finished['steps'], 'steps')}; last step: {last}.\n"
    except (OSError, ValueError, TypeError, LookupError):
        done = ""
    yield f"## Training\n\nWith SPR {__version__}. {done}"
    yield from _config(run)


def _config(run: Path) -> Iterator[str]:
    raw = public_values(raw_config(run))
    if isinstance(raw.get("describer"), dict) and raw["describer"].get("base_url"):
        raw["describer"]["base_url"] = "not published"
    shown = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True).rstrip()
    yield f"<details><summary>The whole config</summary>\n\n```yaml\n{shown}\n```\n\n</details>\n"
