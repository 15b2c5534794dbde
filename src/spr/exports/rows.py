"""Writes the rows of an export, both splits, and lists what they and the left-out items are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from spr.exports.formats import ExportRow, ExportSplit, ImageFile, Prompt, PromptRow, Writer
from spr.exports.images import export_images, split_folder
from spr.exports.marker import ExportPlan
from spr.records import PreferencePair, QuestionPair, Split

BATCH = 64
"""Items whose images are read and written together."""
LEFT_OUT = "left_out.jsonl"
IMAGES = "images.jsonl"
"""License and source of each image."""
PREVIEW = "metadata.jsonl"
"""The rows in the form in which the hub's dataset viewer shows copied images."""

Item: TypeAlias = PreferencePair | QuestionPair | Prompt
_SPLITS: tuple[tuple[Split, ExportSplit], ...] = (("train", "train"), ("holdout", "test"))
T = TypeVar("T")


class RowWriter:
    """Writes rows into an export's folder, batch by batch, so that memory doesn't grow with their number.

    Used in a ``with`` statement: the files are complete after it, unless there was an error.

    Attributes:
        left_out: Number of items that were left out, by reason.
        licenses: Number of images by the license that the annotations state.
    """

    def __init__(self, plan: ExportPlan, folder: Path) -> None:
        self.left_out, self.licenses = Counter[str](), Counter[str | None]()
        self._plan, self._folder = plan, folder
        self._writers: dict[ExportSplit, Writer[Any]] = {"train": plan.format.open(folder, plan.labels, "train")}
        self._origins: dict[str, tuple[str | None, str | None]] = {}
        self._listed: set[str] = set()  # images of this shard, which has all rows about them

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for writer in self._writers.values():
                    writer.close()
        finally:
            for writer in self._writers.values():
                writer.abandon()

    def begin_shard(self, index: int) -> None:
        """Read what the annotations state about the images of a shard."""
        self._origins = self._plan.run.origins(index)
        self._listed.clear()

    def origin(self, item: Item) -> tuple[str | None, str | None]:
        """License and source of an item's image; None where the annotations state none."""
        return self._origins.get(item.image_id, (None, None))

    def leave_out(self, query_id: str, file_name: str, reason: str) -> None:
        """Count and list an item that is not exported."""
        self.left_out[reason] += 1
        _append(self._folder / LEFT_OUT, {"query_id": query_id, "file_name": file_name, "reason": reason})

    def with_images(self, usable: Sequence[T], item_of: Callable[[T], Item]) -> Iterator[tuple[T, ImageFile]]:
        """What is usable, with its images; what has none that can be used is left out."""
        source, items = self._plan.run.config.annotations.image_source, [item_of(one) for one in usable]
        images = export_images(items, source, self._plan.images, self._folder)
        for one, item, image in zip(usable, items, images, strict=True):
            if isinstance(image, str):
                self.leave_out(item.query_id, item.file_name, image)
            else:
                yield one, image

    def write(self, rows: Sequence[ExportRow | PromptRow]) -> None:
        """Append rows to the files of their splits."""
        for row in rows:
            self._credit(row)
        for split, name in _SPLITS:
            if own := [row for row in rows if row.item.split == split]:
                if name not in self._writers:
                    self._writers[name] = self._plan.format.open(self._folder, self._plan.labels, name)
                self._writers[name].write(own)

    def _credit(self, row: ExportRow | PromptRow) -> None:
        item = row.item
        if item.image_id not in self._listed:
            self._listed.add(item.image_id)
            self.licenses[row.license] += 1
            names = {"image_id": item.image_id, "file_name": item.file_name, "path": row.image.path}
            _append(self._folder / IMAGES, {**names, "license": row.license, "source_url": row.source_url})
        if self._plan.images == "copy":
            prefix = split_folder(item)
            about = {"file_name": row.image.path.removeprefix(prefix), "query_id": item.query_id}
            # Readers guess no type from null.
            known = {"license": row.license or "", "source_url": row.source_url or ""}
            _append(self._folder / prefix / PREVIEW, {**about, **row.preview, **known})


def _append(path: Path, row: dict[str, str | None]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
