"""Reads a data file of any layout as batches of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from spr.core.terminal import one_line
from spr.workflows.checking.layouts import Layout, ObjectLayout, RowLayout, choose_layout, row_layouts
from spr.workflows.checking.layouts.coco import Objects
from spr.workflows.checking.layouts.layout import ImageName, WrongRow, stated_size
from spr.workflows.checking.rows import BATCH_ROWS, Batch, DataRow, RowProblem
from spr.workflows.checking.size_lookup import SizeLookup
from spr.workflows.checking.source import WORDS, Kind, RawRow, kind_of, raw_rows
from spr.workflows.checking.text_boxes import find_boxes

_SHOWN = 60
_KEY = 'box_2d"'


class DataFile:
    """A file of grounding data whose layout is known; it can be read several times.

    Attributes:
        path: The file.
        kind: How it holds its rows.
        layout: Its layout.
        sizes: Sizes of images by their headers.

    Raises:
        ConfigError: for an unknown name of a layout.
        InputError: if the file can't be read, or its layout is not known.
    """

    def __init__(self, path: Path, layout: str | None = None, images: Path | None = None) -> None:
        self.path = path
        self.kind: Kind = kind_of(path)
        self.layout: Layout = choose_layout(path, self.kind, layout)
        self.sizes = SizeLookup(images, path.parent)

    def batches(self) -> Iterator[Batch]:
        """All rows, in the order of the file.

        Raises:
            InputError: if the file is truncated or damaged.
        """
        if isinstance(self.layout, ObjectLayout):
            for batch in Objects(self.path).batches(captions=self.layout.has_captions):
                yield self._with_sizes(batch)
            return
        for block in batched(raw_rows(self.path, self.kind)):
            yield self._batch(self.layout, block)

    def place(self, number: int) -> str:
        """A row for people."""
        return f"{self.path.name}, {WORDS[self.kind]} {number}"

    def _with_sizes(self, batch: Batch) -> Batch:
        if all(row.size_wh is not None or row.image is None for row in batch.rows):
            return batch
        for row in batch.rows:
            if row.size_wh is None and row.image is not None:
                row.size_wh = self.sizes.find(ImageName(row.image))
        return Batch(batch.rows, batch.problems)

    def _batch(self, layout: RowLayout, block: list[RawRow]) -> Batch:
        rows: list[DataRow] = []
        problems: list[RowProblem] = []
        for raw in block:
            try:
                rows.append(self._row(layout, raw, problems))
            except WrongRow as error:
                kind = "other_layout" if isinstance(raw.value, dict) else "not_object"
                kind = "not_json" if raw.problem else kind
                problems.append(RowProblem(kind, raw.number, self.place(raw.number), one_line(str(error))))
        _add_text_boxes(rows, problems)
        return Batch(rows, problems)

    def _row(self, layout: RowLayout, raw: RawRow, problems: list[RowProblem]) -> DataRow:
        value = raw.value
        if raw.problem:
            raise WrongRow(raw.problem)
        if not isinstance(value, dict):
            raise WrongRow(str(value)[:_SHOWN])
        try:
            slots = layout.slots(value)
        except WrongRow as error:
            raise WrongRow(f"{error}{self._looks_like(layout, value)}") from None
        prompt = "\n".join([slot.text for slot in slots if slot.kind == "prompt"])
        answer = "\n".join([slot.text for slot in slots if slot.kind == "answer"])
        place = self.place(raw.number)
        fields = layout.boxes(value)
        image = layout.image(value)
        size = stated_size(value) or self.sizes.find(image)
        row = DataRow(raw.number, place, image.name, size, prompt, answer, (), ())
        if fields is not None:
            row.numbers, row.labels, row.stated = tuple(fields.numbers), tuple(fields.labels), fields.stated
            row.forms = ("field",) * len(fields.numbers)
            problems += [RowProblem(kind, raw.number, place, one_line(detail)) for kind, detail in fields.problems]
        return row

    @cached_property
    def _row_layouts(self) -> list[RowLayout]:
        return row_layouts(self.path, self.kind)

    def _looks_like(self, own: RowLayout, value: Mapping[str, Any]) -> str:
        others = (layout for layout in self._row_layouts if layout.name != own.name)
        other = next((layout.name for layout in others if layout.fits(value)), None)
        return f"; it looks like {other}" if other else ""


def _add_text_boxes(rows: list[DataRow], problems: list[RowProblem]) -> None:
    """Fill in the boxes that are written in the texts, those of the prompt first."""
    texts = [row for row in rows if row.stated is None]
    found = [find_boxes([row.prompt for row in texts]), find_boxes([row.answer for row in texts])]
    for boxes in found:
        odd = (texts[place] for place in boxes.not_finite)
        problems += [RowProblem("not_finite", row.number, row.place) for row in odd]
    (prompts, answers), position = found, [0, 0]
    odd_answers = {texts[place].number for place in answers.not_finite}
    for row, asked, answered in zip(texts, prompts.counts, answers.counts, strict=True):
        if asked or answered:
            a, b = position
            row.numbers = (*prompts.numbers[a : a + asked], *answers.numbers[b : b + answered])
            row.forms = (*prompts.forms[a : a + asked], *answers.forms[b : b + answered])
            row.labels = (*prompts.labels[a : a + asked], *answers.labels[b : b + answered])
            row.prompt_boxes = asked
            position = [a + asked, b + answered]
        if (keys := row.answer.count(_KEY)) > answered and row.number not in odd_answers:
            detail = f"{keys} × bbox_2d or box_2d for {answered} in the answer"
            problems.append(RowProblem("wrong_box", row.number, row.place, detail))


def batched(blocks: Iterator[list[RawRow]], size: int = BATCH_ROWS) -> Iterator[list[RawRow]]:
    """Blocks of rows joined to at least ``size`` rows, but for the last one."""
    held: list[RawRow] = []
    for block in blocks:
        held += block
        if len(held) >= size:
            yield held
            held = []
    if held:
        yield held


def read_rows(path: Path, layout: str | None = None, images: Path | None = None) -> Iterator[Batch]:
    """The rows of a data file in batches; the layout is recognised by the content, or named.

    ``images`` is a folder, or a tar file, with the images: it gives the sizes that rows don't state.

    Raises:
        ConfigError: for an unknown layout.
        InputError: if the file can't be read, or its layout is not known.
    """
    return DataFile(path, layout, images).batches()
