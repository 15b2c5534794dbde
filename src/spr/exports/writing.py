"""Writes an export: the pairs of a run, or prompts with what their answers should place, for another trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from spr.config.public import public_name
from spr.core.atomic import atomic_dir
from spr.core.errors import ConfigError, InputError, RunError
from spr.core.paths import as_path
from spr.core.reasons import FIXES, REVIEW_REASONS
from spr.exports.card import write_card
from spr.exports.describer import describer_of, tokenizer_of
from spr.exports.drops import dropped_items
from spr.exports.formats import FORMATS, Format, ImageMode, Labels
from spr.exports.marker import MARKER, ExportPlan, counts_of_finished, write_marker
from spr.exports.pair_card import pair_body
from spr.exports.pair_rows import write_pairs
from spr.exports.prompt_card import prompt_body
from spr.exports.prompt_options import PromptOptions
from spr.exports.prompt_rows import PromptStats, write_prompts
from spr.exports.rows import LEFT_OUT, RowWriter
from spr.grounding import Dialect, get_dialect
from spr.rewards.adapter import needed_tokens
from spr.runs.reader import Run
from spr.runs.reviews import ReviewMode, Reviews

__all__ = ["LEFT_OUT", "ExportSummary", "export"]


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export contains."""

    pairs: int
    held_out: int  # how many of the rows are about held-out images, in files of their own
    left_out: dict[str, int]  # number of pairs or prompts by reason
    images: ImageMode
    dialect: str
    done_before: bool  # whether the folder already held this export
    questions: int = 0  # pairs about one object besides, of the stage `negatives`
    prompts: int = 0  # rows of a format whose rows are prompts; it has no pairs


def export(
    run: Path,
    out: Path,
    format_name: str,
    *,
    images: ImageMode | None = None,
    dialect: str | None = None,
    license_id: str = "other",
    name: str | None = None,
    reviews: ReviewMode | None = None,
    prompts: PromptOptions | None = None,
) -> ExportSummary:
    """Write a run's pairs, or its prompts, in the format of another trainer, with a dataset card.

    A format has rows of one kind (`spr.exports.formats.Format.rows`). Those with prompts need
    a run with finished regions only. Rows about held-out images go into files of their own, the split
    ``test``. The folder appears when it is complete. What can't be used is left out, counted, and listed in
    ``left_out.jsonl``. If the folder already holds this export, nothing is done.

    Args:
        run: A run folder with finished pairs or, for prompts, regions.
        out: The folder to create.
        format_name: A name in `spr.exports.formats.FORMATS`.
        images: Where the images go; None: the format's default.
        dialect: Convert the texts to this dialect (`spr.grounding.get_dialect`); None: that of the describer.
        license_id: License for the card, an identifier of the Hugging Face hub such as ``cc-by-4.0``.
        name: Name of the dataset; None: made from the annotations' file name and the describer.
        reviews: What becomes of pairs that reviewers have decided about; None: ``use``. Not for prompts.
        prompts: What prompts ask for; None: the defaults. Only for formats with prompts.

    Raises:
        ConfigError: for an unknown format, or one that doesn't support ``images`` or another option.
        GroundingError: for an unknown dialect.
        InputError: if nothing can be exported.
        RunError: if ``run`` is not a run or the stage has not finished, or if ``out`` is not empty and not this
            export, or can't be written.
    """
    form = FORMATS.find(format_name, "--format")
    mode = _check_options(form, format_name, images, dialect, reviews, prompts)
    target = None if dialect is None else get_dialect(dialect)
    run, out = as_path(run), as_path(out)
    source = Run(run)
    make = partial(ExportPlan, source, out.resolve(), format_name, form, mode, license_id=license_id)
    if form.rows == "prompts":
        plan = _plan_prompts(make, source, form, target, name, prompts or PromptOptions())
    else:
        plan = _plan_pairs(make, source, target, name, reviews or "use")
    finished = counts_of_finished(plan)
    if finished is not None:
        return _summary(plan, finished, done_before=True)
    with atomic_dir(plan.out, replace=False, sync=False, last=MARKER) as folder:
        counts = _write(plan, folder)
    return _summary(plan, counts, done_before=False)


def _check_options(
    form: Format,
    name: str,
    images: ImageMode | None,
    dialect: str | None,
    reviews: ReviewMode | None,
    prompts: PromptOptions | None,
) -> ImageMode:
    """Where the images go; a ConfigError for an option that the format can't honour."""
    mode = images or form.images[0]
    if mode not in (*form.images, "none"):
        what = f"Format `{name}` doesn't support --images {mode}"
        fix = f"omit --images to use {form.images[0]}"
        raise ConfigError(what, got=mode, expected=" | ".join([*form.images, "none"]), fix=fix)
    if dialect is not None and not form.converts:
        fix = "leave --dialect out; corrections come back to the run's own dialect"
        raise ConfigError(f"Format `{name}` does not convert texts", got=f"--dialect {dialect}", fix=fix)
    if prompts is not None and form.rows != "prompts":
        formats = ", ".join(key for key in FORMATS if FORMATS[key].rows == "prompts")
        what = (
            f"Format `{name}` has pairs, and --tasks, --labels, --synonyms, --tokenizer and --questions are for prompts"
        )
        raise ConfigError(what, got=f"--format {name}", expected=formats, fix="leave these options out")
    if prompts is not None and prompts.tokenizer is not None and not form.decodes:
        formats = ", ".join(key for key in FORMATS if FORMATS[key].decodes)
        what = f"Rewards of format `{name}` get answers as texts, and decode nothing"
        raise ConfigError(what, got=f"--tokenizer {prompts.tokenizer}", expected=formats, fix="leave --tokenizer out")
    if reviews is not None and form.rows == "prompts":
        what = f"Format `{name}` has prompts, and reviewers decide about pairs"
        raise ConfigError(what, got=f"--reviews {reviews}", fix="leave --reviews out")
    return mode


def _plan_pairs(
    make: Callable[..., ExportPlan], run: Run, target: Dialect | None, name: str | None, reviews: ReviewMode
) -> ExportPlan:
    if not run.finished("pairs").rows:
        raise RunError(f"{run.path} has no pairs", fix=f"`spr show {run.path}` lists why they were dropped")
    describer, own = run.describer
    annotations = run.config.annotations.path
    model = describer.partition("@")[0].rstrip("/").rpartition("/")[2]
    title = name or f"SPR pairs of {model} on {annotations.stem}"
    labels = Labels(title, annotations.name, public_name(describer), target or own)
    target = None if target == own else target
    return make(target=target, labels=labels, reviews=Reviews.read(run.path), review_mode=reviews)


def _plan_prompts(
    make: Callable[..., ExportPlan],
    run: Run,
    form: Format,
    target: Dialect | None,
    name: str | None,
    options: PromptOptions,
) -> ExportPlan:
    if not run.finished("regions").rows:
        raise RunError(f"{run.path} has no regions", fix=f"`spr show {run.path}` lists why they were dropped")
    describer, own = describer_of(run)
    dialect = target or own
    if dialect is None:
        what, fix = "It is not known in which dialect answers are written", "give --dialect"
        raise ConfigError(what, got="a run without a describer whose dialect is known", fix=fix)
    if options.tasks != ("describe",) and not dialect.writes_boxes:
        what = f"The dialect `{dialect.key}` has only points, and questions ask for boxes"
        raise ConfigError(what, got=f"--tasks {','.join(options.tasks)}", fix="use --tasks describe")
    if options.tokenizer is not None and needed_tokens(dialect.spec) is None:
        what = f"Boxes of dialect `{dialect.key}` are no special tokens, so that rewards decode nothing"
        raise ConfigError(what, got=f"--tokenizer {options.tokenizer}", fix="leave --tokenizer out")
    if form.decodes and options.tokenizer is None and dialect.special_tokens is not None:
        own_key = None if own is None else own.key
        options = replace(options, tokenizer=tokenizer_of(run) if own_key == dialect.key else None)
    annotations = run.config.annotations.path
    labels = Labels(name or f"SPR prompts on {annotations.stem}", annotations.name, public_name(describer), dialect)
    return make(target=None if target == own else target, labels=labels, prompts=options)


def _write(plan: ExportPlan, folder: Path) -> dict[str, Any]:
    """Write the files of an export; returns its counts."""
    with RowWriter(plan, folder) as writer:
        written = write_pairs(plan, writer) if plan.prompts is None else write_prompts(plan, writer)
    left_out = dict(writer.left_out.most_common())
    if not any(written.counts.values()):
        raise _nothing(plan, left_out)
    if plan.format.write_drops is not None:
        source = plan.run.config.annotations.image_source
        plan.format.write_drops(folder, dropped_items(plan.run, source, plan.images, folder))
    body = prompt_body(plan, written) if isinstance(written, PromptStats) else pair_body(folder, plan, written)
    write_card(folder, plan, body, left_out, writer.licenses)
    counts = {**written.counts, "held_out": body.held_out, "left_out": left_out}
    write_marker(folder, plan, counts)
    return counts


def _summary(plan: ExportPlan, counts: Mapping[str, Any], *, done_before: bool) -> ExportSummary:
    numbers = {name: counts.get(name, 0) for name in ("questions", "prompts")}
    known = counts["pairs"], counts["held_out"], counts["left_out"]
    return ExportSummary(*known, plan.images, plan.dialect, done_before, **numbers)


def _nothing(plan: ExportPlan, left_out: Mapping[str, int]) -> InputError:
    got = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items())
    if set(left_out) == {"truncated_answer"}:
        expected, fix = "answers that end by themselves", FIXES["truncated_answer"]
    elif left_out.keys() <= REVIEW_REASONS.keys():
        expected, fix = "accepted pairs", "review them with `spr review`, or give another --reviews"
    elif set(left_out) == {"no_category_to_ask"}:
        expected, fix = "images with such categories", "add describe to --tasks"
    elif set(left_out) == {"label_not_nameable"}:
        expected, fix = "labels that an answer can name", "rename the categories, or give --labels ignore"
    else:
        expected = f"images in {plan.run.config.annotations.images}"
        fix = f"set annotations.images in {plan.run.path / 'config.yaml'}, or restore the images"
    return InputError(
        f"No {'pair' if plan.prompts is None else 'prompt'} can be exported", got=got, expected=expected, fix=fix
    )
