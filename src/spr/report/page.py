"""The report of a run: a page that opens from disk, with the gallery's data and thumbnails beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml

from spr.config.public import public_config, public_name
from spr.core.paths import as_path
from spr.core.plots import CSS
from spr.core.progress import Progress
from spr.core.terminal import count_text
from spr.models.token_counts import token_counter
from spr.records import Size
from spr.report import charts, environment
from spr.report.funnel import count_stages, training_drops
from spr.report.payload import GalleryIndex, call_script, is_long, pair_payload, shorten
from spr.report.results import TaskResult, read_results
from spr.report.target import PAGE, check_target, report_folder
from spr.report.thumbnails import LEFT_OUT, with_thumbnails
from spr.report.training import TrainingCurves, read_trainings
from spr.runs.cues import pair_cues
from spr.runs.pair_stats import OWN_LOCALIZATION, PairStats
from spr.runs.reader import SCORE_NAMES, SIDES, Run
from spr.runs.reviews import Reviews, number, read_summary
from spr.runs.trainings import training_names

TEMPLATES = Path(__file__).parent / "templates"
PAGE_ROWS = 20
"""Pairs per data file of the gallery."""
MAX_PAIRS = 10_000
"""Default number of pairs in the gallery: as many as the paper's training set has."""
CATEGORIES = 25
"""Number of categories listed, the most frequent ones."""
_BOX_EDITS = ("replaced", "kept", "box_removed", "phrase_removed")
_HEADLINE_METRICS = ("acc@0.5", "acc@0.9", "s_loc")


def write_report(
    run: Path,
    out: Path | None = None,
    *,
    max_pairs: int = MAX_PAIRS,
    images: bool = True,
    compare: Sequence[Path] = (),
    workers: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the report of a run, replacing an earlier one.

    Args:
        run: A run folder with finished pairs. Training and results are included if the run has them.
        out: The report's folder; None: ``RUN/report``.
        max_pairs: Number of pairs in the gallery, the first ones of the run. The statistics include all pairs.
        images: False leaves thumbnails out of the gallery.
        compare: Files of `spr evaluate` whose results are shown instead of those in the run; the first of a task is the
            baseline. The run is not changed.
        workers: Processes that write thumbnails if there are many; None: one per core, at most 8. The report is the
            same for any number.
        say: Called with lines of text for the user.

    Returns:
        The path of ``index.html``.

    Raises:
        RunError: if ``run`` is not a run folder, has no finished pairs or is damaged, or if ``out`` is neither a report
            nor empty, or can't be written.
        InputError: if one of ``compare`` is not a result.
    """
    run = as_path(run)
    source = Run(run)
    out = run / "report" if out is None else as_path(out)
    check_target(out)
    total = source.finished("pairs").rows
    # Everything that is quick to read comes first, so that errors in it show early.
    results, trainings, stages = read_results(source, compare), read_trainings(source), count_stages(source)
    not_trained_on = {name: training_drops(source, name) for name in training_names(source.path)}
    stats = PairStats()
    with report_folder(out) as folder:
        missing = _write_gallery(
            source, folder, stats, total=total, max_pairs=max_pairs, images=images, workers=workers
        )
        drops = [drop for found in (*(stage.drops for stage in stages), *not_trained_on.values()) for drop in found]
        _write_call(folder / "gallery" / "dropped.js", "SPR.dropped", list(map(dataclasses.asdict, drops)))
        for name in ("pair.js", "gallery.js"):
            shutil.copyfile(TEMPLATES / name, folder / name)
        cues = pair_cues(run, token_counter(source.config.describer))
        (folder / "cues.json").write_text(json.dumps(cues.to_json(), indent=1) + "\n", encoding="utf-8")
        context = {
            **_about_run(source),
            **_about_pairs(stats),
            "cues": cues,
            "review": read_summary(run) if Reviews.read(run).identity("use") != "use" else None,
            "tiles": _tiles(stats, trainings.get(None), results, _questions(source)),
            "stages": stages,
            "trainings": [
                (name, curves, charts.training_charts(curves), not_trained_on[name])
                for name, curves in trainings.items()
            ],
            "results": [(task, charts.result_charts(task)) for task in results],
            "shown": min(total, max_pairs),
            "missing": missing,
        }
        # A name may contain lone surrogates, which UTF-8 can't encode.
        (folder / PAGE).write_bytes(_render(context).encode("utf-8", errors="replace"))
    if missing:
        say(f"{count_text(missing, 'images')} can't be shown; the gallery says why.")
    return out / PAGE


def _write_gallery(
    run: Run, folder: Path, stats: PairStats, *, total: int, max_pairs: int, images: bool, workers: int | None
) -> int:
    """Write the gallery's data and thumbnails, and add all pairs to ``stats``; returns how many pairs have no image."""
    index, missing = GalleryIndex(), 0
    gallery = folder / "gallery"
    gallery.mkdir()
    everything = stats.watch(run.shards())
    first = itertools.islice(everything, max_pairs)
    if images:
        names = itertools.islice(_image_names(run), max_pairs)
        shown = with_thumbnails(first, names, run.config.annotations.image_source, folder, workers=workers)
    else:
        shown = ((item, LEFT_OUT) for item in first)
    # Workers end before an error removes the folder that they write to.
    with contextlib.closing(shown), Progress("report", total, "pairs") as progress:

        def payloads() -> Iterator[dict[str, Any]]:
            for number, (item, image) in enumerate(shown):
                payload = pair_payload(item, image, unmatched=run.config.pairing.unmatched)
                index.add(payload)
                if is_long(payload):
                    _write_call(gallery / f"full-{number:06d}.js", "SPR.full", number, payload)
                    shorten(payload)
                    payload["number"] = number
                yield payload
                progress.advance()

        remaining = payloads()
        for number, page in enumerate(iter(lambda: list(itertools.islice(remaining, PAGE_ROWS)), [])):
            _write_call(gallery / f"page-{number:05d}.js", "SPR.page", number, page)
            missing += sum("problem" in payload["image"] for payload in page) if images else 0
        for _ in everything:
            progress.advance()
    _write_call(gallery / "index.js", "SPR.index", index.to_json(page_size=PAGE_ROWS, total=total))
    return missing


def _image_names(run: Run) -> Iterator[tuple[str, Size]]:
    """The file name and the size of each pair's image, in the order of the pairs."""
    store = run.store("pairs")
    for shard in store.finished().shards:
        table = store.read(shard, ["file_name", "width", "height"])
        names, *sides = (table[name].to_pylist() for name in table.column_names)
        yield from zip(names, zip(*sides, strict=True), strict=True)


def _write_call(path: Path, function: str, *arguments: Any) -> None:
    path.write_text(call_script(function, *arguments), encoding="ascii")


def _about_run(run: Run) -> dict[str, Any]:
    config = run.config
    return {
        "name": _name(run.path),
        "run": public_name(str(run.path)),
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "span": environment.time_span(run.events),
        "models": environment.models_of(config),
        "dialect": config.describer.dialect if config.describer else None,
        "versions": environment.versions(),
        "annotations_sha256": run.inputs.get("sha256"),
        "config": yaml.safe_dump(public_config(config), sort_keys=False, allow_unicode=True),
        "weight": config.scoring.semantic_weight,
    }


def _about_pairs(stats: PairStats) -> dict[str, Any]:
    categories = sorted(stats.categories.items(), key=lambda item: (-item[1].inside, item[0]))
    return {
        "sides": SIDES,
        "pairs": stats.pairs,
        "score_charts": charts.score_charts(stats) if stats.pairs else [],
        "kinds": stats.candidate_means(),
        "score_names": [(name, charts.SCORE_TITLES[name]) for name in SCORE_NAMES],
        "prompt_kinds": stats.prompt_kinds,
        "length_charts": charts.length_charts(stats) if stats.pairs else [],
        "box_edits": [(edit, stats.box_edits[edit]) for edit in dict.fromkeys([*_BOX_EDITS, *stats.box_edits])],
        "categories": categories[:CATEGORIES],
        "category_count": len(categories),
    }


def _name(run: Path) -> str:
    """The name of the run's folder, with its parent's name if it is just ``run``."""
    folder = run.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name == "run" else folder.name


def _questions(run: Run) -> Counter[str]:
    """The number of pairs of the stage `negatives` by kind."""
    if not run.config.pairing.negatives:
        return Counter()
    return Counter(run.table("negatives", ["kind"])["kind"].to_pylist())


def _tiles(
    stats: PairStats, training: TrainingCurves | None, results: list[TaskResult], questions: Counter[str]
) -> list[tuple[str, str, str, str]]:
    """The numbers at the top of the page: label, value, note and, if it is better or worse for sure, the CSS class."""
    note = f"from {count_text(stats.candidates, 'scored descriptions')}"
    if stats.held_out:
        note += f"; {stats.held_out:,} of them of held-out images, not trained on"
    tiles = [("preference pairs", f"{stats.pairs:,}", note, "")]
    if questions:
        note = f"where {questions['absent']:,} absent and {questions['present']:,} present objects are"
        tiles.append(("questions", f"{questions.total():,}", note, ""))
    if stats.pairs:
        chosen, rejected = (float(stats.of(OWN_LOCALIZATION, side).mean()) for side in SIDES)
        tiles.append(("S_loc, chosen", f"{chosen:.3f}", f"rejected {rejected:.3f}, own boxes", ""))
        margin = sum(stats.margins) / stats.pairs
        tiles.append(("mean margin", f"{margin:.3f}", "score of chosen minus rejected", ""))
    accuracy = training.last("accuracy") if training else None
    if training is not None and accuracy is not None:
        note = f"mean of the last tenth of {count_text(len(training.steps), 'logged steps')}"
        tiles.append(("training accuracy", f"{accuracy:.2f}", note, ""))
    for task in results:
        for line in (line for line in task.lines if line.name in _HEADLINE_METRICS):
            base = line.values[0]
            for name, value, change in zip(task.columns[1:2], line.values[1:2], line.changes[:1], strict=True):
                if base is not None and value is not None and change is not None:
                    note = f"{task.columns[0]} {base.value:.3f}, difference {change.text}"
                    note += f": {change.label}" if change.label else ""
                    label = f"{task.task} {line.name}" + (f", {name}" if name != "after" else "")
                    tiles.append((label, f"{value.value:.3f}", note, change.style))
    return tiles


def _render(context: dict[str, Any]) -> str:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["duration"] = environment.duration
    templates.filters["kappa"] = number
    templates.filters["thousands"] = "{:,}".format
    templates.filters["count_text"] = count_text
    templates.globals["css"] = (TEMPLATES / "report.css").read_text(encoding="utf-8") + CSS
    return templates.get_template("index.html").render(context)
