"""Writes the pairs of a run into an export's folder, batch by batch, so that memory doesn't grow with their number."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from spr.config.public import public_name
from spr.core.atomic import atomic_dir
from spr.core.errors import ConfigError, InputError, RunError
from spr.core.paths import as_path
from spr.core.progress import Progress
from spr.core.reasons import FIXES, REVIEW_REASONS
from spr.exports.card import write_card
from spr.exports.drops import dropped_items
from spr.exports.formats import FORMATS, ExportRow, ImageMode, Labels
from spr.exports.images import export_images, split_folder
from spr.exports.marker import MARKER, ExportPlan, counts_of_finished, write_marker
from spr.exports.texts import question_texts, texts_of
from spr.grounding import get_dialect
from spr.records import PreferencePair, QuestionPair
from spr.runs.pair_stats import PairStats
from spr.runs.reader import Run
from spr.runs.reviews import ReviewMode, Reviews

BATCH = 64  # pairs whose images are read and written together
LEFT_OUT = "left_out.jsonl"
IMAGES = "images.jsonl"  # license and source of each image
PREVIEW = "metadata.jsonl"  # the pairs in the form in which the hub's dataset viewer shows copied images


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export contains."""

    pairs: int
    held_out: int  # how many of the pairs are of held-out images, in files of their own
    left_out: dict[str, int]  # number of pairs by reason
    images: ImageMode
    dialect: str
    done_before: bool  # whether the folder already held this export
    questions: int = 0  # pairs about one object besides, of the stage `negatives`


def export(
    run: Path,
    out: Path,
    format_name: str,
    *,
    images: ImageMode | None = None,
    dialect: str | None = None,
    license_id: str = "other",
    name: str | None = None,
    reviews: ReviewMode = "use",
) -> ExportSummary:
    """Write a run's pairs in the format of another trainer, with a dataset card.

    Pairs of held-out images go into files of their own, the split ``test``. The folder appears when it is complete. A
    pair whose image or texts can't be used is left out, counted, and listed in ``left_out.jsonl``. If the folder
    already holds this export, nothing is done.

    Args:
        run: A run folder with finished pairs.
        out: The folder to create.
        format_name: A name in `spr.exports.formats.FORMATS`.
        images: Where the images go; None: the format's default.
        dialect: Convert prompt and answers to this dialect (`spr.grounding.get_dialect`); None: leave them unchanged.
        license_id: License for the card, an identifier of the Hugging Face hub such as ``cc-by-4.0``.
        name: Name of the dataset; None: made from the annotations' file name and the describer.
        reviews: What becomes of pairs that reviewers have decided about.

    Raises:
        ConfigError: for an unknown format, or one that doesn't support ``images``.
        GroundingError: for an unknown dialect.
        InputError: if no pair can be exported.
        RunError: if ``run`` is not a run or its pairs have not finished, or if ``out`` is not empty and not this
            export, or can't be written.
    """
    form = FORMATS.find(format_name, "--format")
    mode = images or form.images[0]
    if mode not in (*form.images, "none"):
        what = f"Format `{format_name}` doesn't support --images {mode}"
        fix = f"omit --images to use {form.images[0]}"
        raise ConfigError(what, got=mode, expected=" | ".join([*form.images, "none"]), fix=fix)
    if dialect is not None and not form.converts:
        fix = "leave --dialect out; corrections come back to the run's own dialect"
        raise ConfigError(f"Format `{format_name}` does not convert texts", got=f"--dialect {dialect}", fix=fix)
    target = None if dialect is None else get_dialect(dialect)
    run, out = as_path(run), as_path(out)
    source = Run(run)
    if not source.finished("pairs").rows:
        raise RunError(f"{run} has no pairs", fix=f"`spr show {run}` lists why they were dropped")
    describer, own = source.describer
    annotations = source.config.annotations.path
    model = describer.partition("@")[0].rstrip("/").rpartition("/")[2]
    title = name or f"SPR pairs of {model} on {annotations.stem}"
    target = None if target == own else target
    labels = Labels(title, annotations.name, public_name(describer), target or own)
    made = Reviews.read(run)
    plan = ExportPlan(source, out.resolve(), format_name, form, mode, target, labels, license_id, made, reviews)
    finished = counts_of_finished(plan)
    if finished is not None:
        known = finished["pairs"], finished["held_out"], finished["left_out"]
        return ExportSummary(*known, mode, plan.dialect, done_before=True, questions=finished["questions"])
    with atomic_dir(plan.out, replace=False, sync=False, last=MARKER) as folder:
        stats, questions, left_out, licenses = _write_pairs(plan, folder)
        if form.write_drops is not None:
            form.write_drops(folder, dropped_items(source, source.config.annotations.image_source, mode, folder))
        write_card(folder, plan, stats, left_out, licenses, questions=questions)
        held_out = stats.held_out + questions["holdout"]
        counts = {"pairs": stats.pairs, "questions": questions.total(), "held_out": held_out, "left_out": left_out}
        write_marker(folder, plan, counts)
    return ExportSummary(
        stats.pairs, held_out, left_out, mode, plan.dialect, done_before=False, questions=questions.total()
    )


def _write_pairs(plan: ExportPlan, folder: Path) -> tuple[PairStats, Counter[str], dict[str, int], Counter[str | None]]:
    """Write all rows.

    Returns the statistics of the descriptions, the questions by split, the pairs left out by reason, and the images by
    their license.
    """
    run, annotations = plan.run, plan.run.config.annotations
    _, dialect = run.describer
    stats, left_out, licenses, questions = PairStats(), Counter[str](), Counter[str | None](), Counter[str]()

    def leave_out(pair: PreferencePair | QuestionPair, reason: str) -> None:
        left_out[reason] += 1
        _append(folder / LEFT_OUT, {"query_id": pair.query_id, "file_name": pair.file_name, "reason": reason})

    listed: set[str] = set()  # of a shard, which has all pairs of its images

    def credit(row: ExportRow) -> None:
        if row.pair.image_id not in listed:
            listed.add(row.pair.image_id)
            licenses[row.license] += 1
            names = {"image_id": row.pair.image_id, "file_name": row.pair.file_name, "path": row.image.path}
            _append(folder / IMAGES, {**names, "license": row.license, "source_url": row.source_url})
        if plan.images == "copy":
            known = {
                "license": row.license or "",
                "source_url": row.source_url or "",
            }  # readers guess no type from null
            prefix = split_folder(row.pair)
            pair = {"file_name": row.image.path.removeprefix(prefix), "query_id": row.pair.query_id}
            _append(folder / prefix / PREVIEW, {**pair, **row.texts._asdict(), **known})

    writers = {"train": plan.format.open(folder, plan.labels, "train")}

    def write(rows: list[ExportRow]) -> None:
        for row in rows:
            credit(row)
        for split, name in (("train", "train"), ("holdout", "test")):
            if own := [row for row in rows if row.pair.split == split]:
                if name not in writers:
                    writers[name] = plan.format.open(folder, plan.labels, "test")
                writers[name].write(own)

    def write_questions(pairs: list[QuestionPair], origins: dict[str, tuple[str | None, str | None]]) -> None:
        refused = None if plan.format.questions else "question_not_shown"
        refused = "not_accepted_in_review" if plan.review_mode == "require" else refused
        locate = run.config.pairing.locate_prompt
        for start in range(0, len(pairs), BATCH):
            usable, rows = [], []
            for pair in pairs[start : start + BATCH]:
                texts = refused or question_texts(pair, plan.target, locate, plan.format.placeholders)
                if isinstance(texts, str):
                    leave_out(pair, texts)
                else:
                    usable.append((pair, texts))
            images = export_images([pair for pair, _ in usable], annotations.image_source, plan.images, folder)
            for (pair, texts), image in zip(usable, images, strict=True):
                if isinstance(image, str):
                    leave_out(pair, image)
                else:
                    questions[pair.split] += 1
                    rows.append(ExportRow(pair, texts, image, *origins.get(pair.image_id, (None, None))))
            write(rows)

    with Progress(f"export {plan.format_name}", run.finished("pairs").rows, "pairs") as progress:
        try:
            for entry, shard in zip(run.finished("objects").shards, run.shards(), strict=False):
                origins = run.origins(entry.index)
                listed.clear()
                stats.add_candidates(shard)
                for start in range(0, len(shard.pairs), BATCH):
                    batch, usable, rows = shard.pairs[start : start + BATCH], [], []
                    for joined in batch:
                        reviewed = plan.reviews.apply(joined.pair, plan.review_mode)
                        if isinstance(reviewed, str):
                            leave_out(joined.pair, reviewed)
                            continue
                        item = joined if reviewed is joined.pair else joined.with_chosen(reviewed)
                        texts = texts_of(item.pair, dialect, plan.target, run.config.prompts, plan.format.placeholders)
                        if isinstance(texts, str):
                            leave_out(item.pair, texts)
                        else:
                            usable.append((item, texts, joined.pair))
                    pairs = [item.pair for item, *_ in usable]
                    images = export_images(pairs, annotations.image_source, plan.images, folder)
                    for (item, texts, original), image in zip(usable, images, strict=True):
                        if isinstance(image, str):
                            leave_out(item.pair, image)
                        else:
                            stats.add(item, (texts.chosen, texts.rejected))
                            origin = origins.get(item.pair.image_id, (None, None))
                            rows.append(ExportRow(item.pair, texts, image, *origin, original))
                    write(rows)
                    progress.advance(len(batch))
                write_questions(run.questions(entry.index), origins)
            for writer in writers.values():
                writer.close()
        finally:
            for writer in writers.values():
                writer.abandon()
    if not stats.pairs and not questions:
        got = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items())
        if set(left_out) == {"truncated_answer"}:
            expected, fix = "answers that end by themselves", FIXES["truncated_answer"]
        elif left_out.keys() <= REVIEW_REASONS.keys():
            expected, fix = "accepted pairs", "review them with `spr review`, or give another --reviews"
        else:
            expected = f"images in {annotations.images}"
            fix = f"set annotations.images in {run.path / 'config.yaml'}, or restore the images"
        raise InputError("No pair can be exported", got=got, expected=expected, fix=fix)
    return stats, questions, dict(left_out.most_common()), licenses


def _append(path: Path, row: dict[str, str | None]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
