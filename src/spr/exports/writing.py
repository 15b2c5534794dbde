"""Writes the pairs of a run into an export's folder, batch by batch, so that memory doesn't grow with their number."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spr.core.atomic import atomic_dir
from spr.core.errors import ConfigError, InputError, RunError
from spr.core.progress import Progress
from spr.exports.card import Card, public_name, write_card
from spr.exports.formats import FORMATS, ExportRow, Format, ImageMode, Labels, Texts
from spr.exports.images import ExportImages
from spr.exports.marker import check_same, read_marker, write_marker
from spr.exports.texts import texts_of
from spr.grounding import Dialect, get_dialect
from spr.records import PreferencePair
from spr.runs.pair_stats import PairStats
from spr.runs.reader import JoinedPair, Run

BATCH = 64
"""Pairs whose images are read and written together."""
LEFT_OUT = "left_out.jsonl"


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export contains.

    Attributes:
        pairs: Number of pairs written.
        left_out: Number of pairs left out, by reason.
        images: Where the images are.
        dialect: Dialect of the texts.
        done_before: Whether the folder already held this export.
    """

    pairs: int
    left_out: dict[str, int]
    images: ImageMode
    dialect: str
    done_before: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """The settings of an export; ``target`` is the dialect to convert to, or None."""

    run: Run
    format_name: str
    format: Format
    images: ImageMode
    target: Dialect | None
    dialect: str
    labels: Labels
    license_id: str

    def identity(self) -> dict[str, Any]:
        """What decides the contents of the export."""
        return {
            "format": self.format_name,
            "images": self.images,
            "dialect": self.dialect,
            "name": self.labels.name,
            "license": self.license_id,
            "pairs": self.run.pairs_sha256,
        }


def export(
    run: Path,
    out: Path,
    format_name: str,
    *,
    images: ImageMode | None = None,
    dialect: str | None = None,
    license_id: str = "other",
    name: str | None = None,
) -> ExportSummary:
    """Write a run's pairs in the format of another trainer, with a dataset card.

    The folder appears when it is complete. A pair whose image or texts can't be used is left out, counted, and listed
    in ``left_out.jsonl``. If the folder already holds this export, nothing is done.

    Args:
        run: A run folder with finished pairs.
        out: The folder to create.
        format_name: A name in `spr.exports.formats.FORMATS`.
        images: Where the images go; None: the format's default.
        dialect: Convert prompt and answers to this dialect (`spr.grounding.get_dialect`); None: leave them unchanged.
        license_id: License for the card, an identifier of the Hugging Face hub such as ``cc-by-4.0``.
        name: Name of the dataset; None: made from the annotations' file name and the describer.

    Raises:
        ConfigError: for an unknown format, or one that doesn't support ``images``.
        GroundingError: for an unknown dialect.
        InputError: if no pair can be exported.
        RunError: if ``run`` is not a run or its pairs have not finished, or if ``out`` is not empty and not this
            export, or can't be written.
    """
    plan = _plan(run, format_name, images, dialect, license_id, name)
    out = out.resolve()
    marker = read_marker(out)
    if marker is not None:
        check_same(out, marker, plan.identity())
        counts = marker["counts"]
        return ExportSummary(counts["pairs"], counts["left_out"], plan.images, plan.dialect, done_before=True)
    with atomic_dir(out, replace=False, sync=False) as folder:
        stats, left_out = _write_pairs(plan, folder)
        counts = {"pairs": stats.pairs, "left_out": left_out}
        described = (plan.format, plan.labels, plan.license_id, plan.images, plan.dialect, out.name)
        write_card(folder, Card(*described, plan.run, counts, stats))
        write_marker(folder, plan.identity(), counts)
    return ExportSummary(stats.pairs, left_out, plan.images, plan.dialect, done_before=False)


def _plan(
    run_path: Path,
    format_name: str,
    images: ImageMode | None,
    dialect: str | None,
    license_id: str,
    name: str | None,
) -> _Plan:
    form = FORMATS.find(format_name, "--format")
    mode = images or form.images[0]
    if mode not in form.images:
        what = f"Format `{format_name}` doesn't support --images {mode}"
        fix = f"omit --images to use {form.images[0]}"
        raise ConfigError(what, got=mode, expected=" | ".join(form.images), fix=fix)
    target = None if dialect is None else get_dialect(dialect)
    run = Run(run_path)
    if not run.finished("pairs").rows:
        raise RunError(f"{run_path} has no pairs", fix=f"`spr show {run_path}` lists why they were dropped")
    describer, own = run.describer
    target = None if target == own else target
    annotations = run.config.annotations.path
    model = describer.partition("@")[0].rstrip("/").rpartition("/")[2]
    labels = Labels(name or f"SPR pairs of {model} on {annotations.stem}", annotations.name, public_name(describer))
    return _Plan(run, format_name, form, mode, target, (target or own).spec, labels, license_id)


def _write_pairs(plan: _Plan, folder: Path) -> tuple[PairStats, dict[str, int]]:
    """Write all rows; returns their statistics, and the number of pairs that were left out by reason.

    Raises:
        InputError: if no pair can be exported.
    """
    stats, left_out = PairStats(), _LeftOut(folder / LEFT_OUT)
    annotations = plan.run.config.annotations
    images = ExportImages(annotations.image_source, plan.images, folder)
    writer = plan.format.open(folder, plan.labels)
    total = plan.run.finished("pairs").rows
    with Progress(f"export {plan.format_name}", total, "pairs") as progress:
        try:
            for shard in plan.run.shards():
                stats.add_candidates(shard)
                for start in range(0, len(shard.pairs), BATCH):
                    batch = shard.pairs[start : start + BATCH]
                    rows = []
                    for item, row in _rows(batch, plan, images, left_out):
                        stats.add(item, (row.texts.chosen, row.texts.rejected))
                        rows.append(row)
                    if rows:
                        writer.write(rows)
                    progress.advance(len(batch))
            writer.close()
        finally:
            writer.abandon()
    left_out.close()
    if not stats.pairs:
        raise InputError(
            "No pair can be exported",
            got=", ".join(f"{reason} {count:,}" for reason, count in left_out.counts.items()),
            expected=f"images in {annotations.images}",
            fix=f"set annotations.images in {plan.run.path / 'config.yaml'}, or restore the images",
        )
    return stats, dict(left_out.counts.most_common())


class _LeftOut:
    """Lists the pairs that are left out; the file is created only if there are any."""

    def __init__(self, path: Path) -> None:
        self.path, self.counts = path, Counter[str]()
        self._lines: list[str] = []

    def add(self, pair: PreferencePair, reason: str) -> None:
        self.counts[reason] += 1
        row = {"query_id": pair.query_id, "file_name": pair.file_name, "reason": reason}
        self._lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        if len(self._lines) >= 1000:
            self.close()

    def close(self) -> None:
        if self._lines:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.writelines(self._lines)
            except OSError as error:
                raise RunError(f"{self.path} can't be written", got=error, fix="free some disk space") from None
            self._lines.clear()


def _rows(
    batch: Sequence[JoinedPair], plan: _Plan, images: ExportImages, left_out: _LeftOut
) -> Iterator[tuple[JoinedPair, ExportRow]]:
    """The rows of the pairs that can be exported."""
    _, dialect = plan.run.describer
    usable: list[tuple[JoinedPair, Texts]] = []
    for item in batch:
        texts = texts_of(item.pair, dialect, plan.target, plan.run.config.prompts)
        if isinstance(texts, Texts) and any(mark in text for text in texts for mark in plan.format.placeholders):
            texts = "placeholder_in_text"
        if isinstance(texts, str):
            left_out.add(item.pair, texts)
        else:
            usable.append((item, texts))
    for (item, texts), image in zip(usable, images.of_pairs([item.pair for item, _ in usable]), strict=True):
        if isinstance(image, str):
            left_out.add(item.pair, image)
        else:
            yield item, ExportRow(item.pair, texts, image)
