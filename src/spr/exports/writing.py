"""Pairs into an export's folder: shard by shard, batch by batch, so that memory does not grow with their number."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from spr.core.errors import ConfigError, InputError, RunError
from spr.core.progress import Progress
from spr.exports.card import Card, write_card
from spr.exports.folder import check_same, new_folder, read_marker, write_marker
from spr.exports.formats import FORMATS
from spr.exports.images import ExportImages
from spr.exports.rows import ExportRow, Format, ImageMode, Labels, Texts
from spr.exports.texts import texts_of
from spr.grounding import Dialect, get_dialect
from spr.records import PreferencePair
from spr.runs.reader import RunSource, public_name
from spr.runs.statistics import Statistics

BATCH = 64
"""Pairs whose images are read and written together."""
LEFT_OUT = "left_out.jsonl"


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export holds, for people to read.

    Attributes:
        pairs: Pairs written.
        left_out: Pairs left out, by reason.
        images: Where the images are.
        dialect: The dialect of the texts.
        done_before: The folder held this very export.
    """

    pairs: int
    left_out: dict[str, int]
    images: ImageMode
    dialect: str
    done_before: bool


def export(
    run: Path,
    out: Path,
    format_key: str,
    *,
    images: ImageMode | None = None,
    dialect: str | None = None,
    license_id: str = "other",
    name: str | None = None,
) -> ExportSummary:
    """Write a run's pairs as another trainer reads them, with a data set card.

    The folder appears whole at the end. A pair whose image or texts can't be used is left out, counted, and named in
    ``left_out.jsonl``. The same call on a folder that holds its result does nothing.

    Args:
        run: A run folder with finished pairs.
        out: The folder to make.
        format_key: A key of `spr.exports.formats.FORMATS`.
        images: Where the images go; None: the format's usual way.
        dialect: Write prompt and answers in this dialect (`spr.grounding.get_dialect`); None: as they are.
        license_id: For the card, an identifier of the hub such as ``cc-by-4.0``.
        name: For the card; None: made from the annotations' file name and the describer.

    Raises:
        ConfigError: if the format has no such way with images.
        GroundingError: for an unknown dialect.
        InputError: if ``run`` is no run, or no pair can be written.
        RunError: if the pairs have not finished, or ``out`` holds something else or can't be written.
    """
    chosen = FORMATS[format_key]
    mode = images or chosen.images[0]
    if mode not in chosen.images:
        raise ConfigError(
            f"Format `{format_key}` can't be written with --images {mode}",
            got=mode,
            expected=" | ".join(chosen.images),
            fix=f"leave --images out for {chosen.images[0]}",
        )
    target = None if dialect is None else get_dialect(dialect)
    source = RunSource(run)
    target = None if target is None or target == source.dialect else target
    written = source.dialect.spec if target is None else target.spec
    labels = Labels(name or _name(source), source.config.annotations.path.name, public_name(source.describer))
    identity = {
        "format": format_key,
        "images": mode,
        "dialect": written,
        "name": labels.name,
        "license": license_id,
        "pairs": source.pairs_hash,
    }
    out = out.resolve()
    marker = read_marker(out)
    if marker is not None:
        check_same(out, marker, identity)
        counts = marker["counts"]
        return ExportSummary(counts["pairs"], counts["left_out"], mode, written, done_before=True)
    with new_folder(out) as folder:
        statistics, left_out = Statistics(), _LeftOut(folder / LEFT_OUT)
        writer = chosen.open(folder, labels)
        pictures = ExportImages(source.config.annotations, mode, folder)
        with ExitStack() as stack:
            stack.callback(writer.abandon)
            progress = stack.enter_context(Progress(f"export {format_key}", source.total, "pairs"))
            for shard in source.shards():
                statistics.add_candidates(shard)
                for batch in _batches(shard.pairs):
                    rows = _rows(batch, source, target, chosen, pictures, left_out)
                    for row in rows:
                        statistics.add_pair(row.pair, row.texts, shard)
                    if rows:
                        writer.write(rows)
                    progress.advance(len(batch))
            writer.close()
        left_out.close()
        pairs = len(statistics.margins)
        if not pairs:
            raise InputError(
                "No pair could be exported",
                got=", ".join(f"{reason} {count:,}" for reason, count in left_out.counts.items()),
                expected=f"images in {source.config.annotations.images}",
                fix=f"set annotations.images in {run / 'config.yaml'}, or put the images back",
            )
        counts = {"pairs": pairs, "left_out": dict(left_out.counts.most_common())}
        write_card(folder, Card(chosen, labels, license_id, mode, written, out.name, source, counts, statistics))
        write_marker(folder, identity, counts)
    return ExportSummary(pairs, counts["left_out"], mode, written, done_before=False)


class _LeftOut:
    """Names each pair that is left out; the file is only made when there is one."""

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
                raise RunError(f"{self.path} can't be written", got=error, fix="make room") from None
            self._lines.clear()


def _rows(
    pairs: Sequence[PreferencePair],
    source: RunSource,
    target: Dialect | None,
    chosen: Format,
    pictures: ExportImages,
    left_out: _LeftOut,
) -> list[ExportRow]:
    written: list[tuple[PreferencePair, Texts]] = []
    for pair in pairs:
        texts = texts_of(pair, source.dialect, target, source.config.prompts)
        if isinstance(texts, Texts) and any(mark in text for text in texts for mark in chosen.placeholders):
            texts = "placeholder_in_text"
        if isinstance(texts, str):
            left_out.add(pair, texts)
        else:
            written.append((pair, texts))
    rows = []
    for (pair, texts), image in zip(written, pictures.of_pairs([pair for pair, _ in written]), strict=True):
        if isinstance(image, str):
            left_out.add(pair, image)
        else:
            rows.append(ExportRow(pair, texts, image))
    return rows


def _batches(pairs: Sequence[PreferencePair]) -> Iterator[list[PreferencePair]]:
    rest = iter(pairs)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _name(source: RunSource) -> str:
    model = source.describer.partition("@")[0].rstrip("/").rpartition("/")[2]
    return f"SPR pairs of {model} on {source.config.annotations.path.stem}"
