"""The report of a run: a page that opens from disk, with its gallery's data and pictures beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from spr.config import Config, load_config
from spr.core.errors import RunError
from spr.core.progress import Progress
from spr.report import charts
from spr.report import environment as facts
from spr.report.folder import check_target, replaced_folder
from spr.report.funnel import Drop, StageCount, count_stages, read_log, training_drops
from spr.report.payload import GalleryIndex, is_long, pair_payload, shorten
from spr.report.results import TaskResult, read_results
from spr.report.scripts import call_script
from spr.report.thumbnails import Thumbnails
from spr.report.training import TrainingLog, read_training
from spr.runs.folder import check_run_version
from spr.runs.joined import SCORE_NAMES, SIDES, JoinedPair, joined_shards
from spr.runs.store import StageStore
from spr.runs.tally import Tally

TEMPLATES = Path(__file__).parent / "templates"
PAGE_ROWS = 20
"""Pairs in one of the gallery's data files."""
MAX_PAIRS = 10_000
"""Pairs in the gallery by default: as many as the paper has."""
CATEGORIES = 25
"""Categories listed; the most frequent."""


def write_report(
    run: Path,
    out: Path | None = None,
    *,
    max_pairs: int = MAX_PAIRS,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the report of a run, replacing an earlier one.

    Args:
        run: A run folder with finished pairs; training and results are shown where they are there.
        out: The report's folder; None: ``RUN/report``.
        max_pairs: How many pairs the gallery shows, the first of the run; the numbers are of all.
        say: Called with lines for people to read.

    Returns:
        The path of ``index.html``.

    Raises:
        RunError: if ``run`` is no run folder, has no finished pairs or is damaged; if ``out`` holds something else
            than a report, or can't be written.
    """
    if not (run / "config.yaml").is_file():
        got = "no config.yaml in it" if run.is_dir() else "no such folder"
        raise RunError(f"{run} is not a run folder", got=got, fix=f"make one with `spr run CONFIG --out {run}`")
    check_run_version(run)
    out = run / "report" if out is None else out
    check_target(out)
    total = StageStore(run / "pairs").finished().rows
    config = load_config(run / "config.yaml")
    # What is quick to find broken is looked at before the slow part.
    results, training = read_results(run), read_training(run)
    events, _ = read_log(run / "log.jsonl")
    stages = count_stages(run, events)
    left_out, all_drops = training_drops(run), [drop for stage in stages for drop in stage.drops]
    tally, missing = Tally(), 0
    with replaced_folder(out) as folder:
        missing = _write_gallery(run, folder, config, tally, total=total, max_pairs=max_pairs)
        _write_text(folder / "gallery" / "dropped.js", call_script("SPR.dropped", _drop_rows([*all_drops, *left_out])))
        for name in ("pair.js", "gallery.js"):
            _write_text(folder / name, (TEMPLATES / name).read_text(encoding="utf-8"))
        context = _context(run, config, tally, stages, events, training, results)
        context |= {"shown": min(total, max_pairs), "missing": missing, "left_out": left_out}
        _write_text(folder / "index.html", _render(context))
    if missing:
        say(f"{missing:,} images could not be shown; their places say why")
    return out / "index.html"


def _write_gallery(run: Path, folder: Path, config: Config, tally: Tally, *, total: int, max_pairs: int) -> int:
    """Write the gallery's data and pictures, and count all pairs; returns how many pairs have no picture."""
    index, missing, page = GalleryIndex(), 0, []
    (folder / "gallery").mkdir()
    everything = tally.watch(joined_shards(run))
    shown = itertools.islice(everything, max_pairs)
    thumbnails = Thumbnails(folder, config.annotations)
    with Progress("report", total, "pairs") as progress:
        for number, (pair, image) in enumerate(thumbnails.attach(shown, _image_of)):
            payload = pair_payload(pair, image, unmatched=config.pairing.unmatched)
            index.add(payload)
            if is_long(payload):
                whole = call_script("SPR.full", number, payload)
                _write_text(folder / "gallery" / f"full-{number:06d}.js", whole)
                shorten(payload)
                payload["number"] = number
            page.append(payload)
            if len(page) == PAGE_ROWS:
                _write_page(folder, number // PAGE_ROWS, page)
                page = []
            missing += "problem" in image
            progress.advance()
        if page:
            _write_page(folder, number // PAGE_ROWS, page)
        for _ in everything:
            progress.advance()
    _write_text(
        folder / "gallery" / "index.js", call_script("SPR.index", index.to_json(page_size=PAGE_ROWS, total=total))
    )
    return missing


def _image_of(pair: JoinedPair) -> tuple[str, int, int]:
    return pair.row["file_name"], pair.row["width"], pair.row["height"]


def _write_page(folder: Path, number: int, payloads: list[dict[str, Any]]) -> None:
    _write_text(folder / "gallery" / f"page-{number:05d}.js", call_script("SPR.page", number, payloads))


def _write_text(path: Path, text: str) -> None:
    # Lone surrogates, which JSON may hold, are in no encoding.
    path.write_bytes(text.encode("utf-8", errors="replace"))


def _drop_rows(drops: list[Drop]) -> list[dict[str, Any]]:
    return [
        {
            "stage": drop.stage,
            "kind": drop.kind,
            "reason": drop.reason,
            "explained": drop.explained,
            "count": drop.count,
            "ids": drop.ids,
        }
        for drop in drops
    ]


def _context(
    run: Path,
    config: Config,
    tally: Tally,
    stages: list[StageCount],
    events: list[dict[str, Any]],
    training: TrainingLog | None,
    results: list[TaskResult],
) -> dict[str, Any]:
    categories = sorted(tally.categories.items(), key=lambda item: (-item[1].inside, item[0]))
    return {
        "name": _name(run),
        "run": str(run),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "span": facts.span_of(events),
        "tiles": _tiles(tally, training, results),
        "stages": stages,
        "score_charts": charts.score_charts(tally) if tally.pairs else [],
        "kinds": tally.kind_means(),
        "score_names": [(name, charts.SCORE_TITLES[name]) for name in SCORE_NAMES],
        "picked_kinds": tally.picked_kinds,
        "length_charts": charts.length_charts(tally) if tally.pairs else [],
        "length_warning": charts.length_warning(tally),
        "box_edits": [(edit, tally.box_edits[edit]) for edit in ("replaced", "kept", "box_removed", "phrase_removed")],
        "pairs": tally.pairs,
        "categories": categories[:CATEGORIES],
        "category_count": len(categories),
        "training": training,
        "training_charts": charts.training_charts(training) if training else [],
        "results": [(task, charts.result_charts(task)) for task in results],
        "models": facts.models_of(config),
        "dialect": config.describer.dialect if config.describer else None,
        "versions": facts.versions(),
        "input": facts.input_of(run),
        "config": config.to_yaml(),
        "sides": SIDES,
        "weight": config.scoring.semantic_weight,
    }


def _name(run: Path) -> str:
    """What the report calls the run: its folder, with the one above where it is just called `run`."""
    folder = run.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name == "run" else folder.name


def _tiles(tally: Tally, training: TrainingLog | None, results: list[TaskResult]) -> list[tuple[str, str, str]]:
    """The numbers at the top: value, what it is, and what to know of it."""
    candidates = sum(len(chunk) for chunk in tally.scores)
    tiles = [("preference pairs", f"{tally.pairs:,}", f"from {candidates:,} scored descriptions")]
    if tally.pairs:
        located = {side: sum(tally.located[side]) / tally.pairs for side in SIDES}
        margin = sum(tally.margins) / tally.pairs
        tiles.append(("S_loc, chosen", f"{located['chosen']:.3f}", f"rejected {located['rejected']:.3f}, own boxes"))
        tiles.append(("mean margin", f"{margin:.3f}", "score of chosen minus rejected"))
    accuracy = training.last("accuracy") if training else None
    if training is not None and accuracy is not None:
        tiles.append(
            ("training accuracy", f"{accuracy:.2f}", f"mean of the last tenth of {len(training.steps):,} logged steps")
        )
    for task in results:
        for line in task.lines:
            if line.name in ("acc@0.5", "acc@0.9", "s_loc") and line.before and line.after:
                note = f"before {line.before.value:.3f}, difference {line.difference}"
                tiles.append((f"{task.task} {line.name}", f"{line.after.value:.3f}", note))
    return tiles


def _render(context: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = facts.duration
    environment.filters["thousands"] = "{:,}".format
    environment.globals["css"] = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return environment.get_template("index.html").render(context)
