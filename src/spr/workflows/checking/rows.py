"""Rows of grounding data, whatever file they come from, and batches of them with their boxes as arrays."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from spr.core.boxes import Size

Floats: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = tuple[float, float, float, float]

BATCH_ROWS = 4096
"""Rows per batch."""

Stated: TypeAlias = Literal["xywh_pixels", "xyxy_pixels", "xyxy_norm1", "xyxy_norm1000"]
"""The scale and the order of numbers that a format states itself, whatever the model's dialect is."""

FORMS = (*("field", "brackets", "bbox_2d", "box_2d", "pairs", "parentheses", "spaces", "loc", "loc_", "bins", "patch"),)
"""How a box is written: in a field of the row (``field``), or in text as

- ``[a, b, c, d]`` (``brackets``, also doubled), and in JSON after the key ``bbox_2d`` or ``box_2d``;
- ``(a,b),(c,d)`` (``pairs``), ``(a, b, c, d)`` (``parentheses``), ``<box>a b c d</box>`` (``spaces``);
- ``<loc0001>…`` (``loc``), ``<loc_1>…`` (``loc_``), ``<1><2><3><4>`` (``bins``), two ``<patch_index_0001>`` (``patch``;
  its numbers are the column and row of either cell).
"""


@dataclass(slots=True)
class DataRow:
    """One row of grounding data: an image with a question and an answer, or with boxes in fields.

    Attributes:
        number: The row in the file, from 1: a line, or an element of its list.
        place: The row for people: ``train.jsonl, line 17``.
        image: The image as the data name it; None if they name none.
        size_wh: Width and height in pixels of the original image: stated by the row, else read from the file's header,
            else None.
        prompt: What the user says, turn by turn, joined by line ends; empty for data without text.
        answer: What the model says, likewise.
        numbers: Every box as written, before any reading: four numbers in the order of the data.
        labels: One per box; empty if there is none.
        forms: How each box is written: one of `FORMS` per box.
        stated: The scale and order that the format states; None if the dialect decides.
        prompt_boxes: How many of the boxes, the first ones, are in the prompt.
    """

    number: int
    place: str
    image: str | None
    size_wh: Size | None
    prompt: str
    answer: str
    numbers: tuple[Numbers, ...]
    labels: tuple[str, ...]
    forms: tuple[str, ...] = ()
    stated: Stated | None = None
    prompt_boxes: int = 0


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row, or a part of one, that can't be used.

    Attributes:
        kind: A key of `spr.workflows.checking.findings.MESSAGES`.
        number: The row in the file, from 1.
        place: The row for people.
        detail: What was found there; may be empty.
    """

    kind: str
    number: int
    place: str
    detail: str = ""


@dataclass(slots=True)
class Batch:
    """Some rows, with their ``N`` boxes as arrays, in the order of the rows.

    Attributes:
        rows: The rows.
        problems: The rows of the file between them that can't be used, and parts of rows.
        boxes: (N, 4) float64, the numbers of the boxes as written; non-finite ones are not among them.
        box_rows: (N,) int64, the index in ``rows`` of each box's row.
        sizes: (N, 2) float64, width and height in pixels of each box's image; NaN if unknown.
    """

    rows: list[DataRow]
    problems: list[RowProblem] = field(default_factory=list)
    boxes: Floats = field(init=False)
    box_rows: npt.NDArray[np.int64] = field(init=False)
    sizes: Floats = field(init=False)

    def __post_init__(self) -> None:
        counts = np.array([len(row.numbers) for row in self.rows], dtype=np.int64)
        boxes = itertools.chain.from_iterable(row.numbers for row in self.rows)
        numbers = np.fromiter(itertools.chain.from_iterable(boxes), np.float64, 4 * int(counts.sum()))
        self.boxes = numbers.reshape(-1, 4)
        self.box_rows = np.repeat(np.arange(len(self.rows)), counts)
        unknown = (np.nan, np.nan)
        flat = itertools.chain.from_iterable(row.size_wh or unknown for row in self.rows)
        self.sizes = np.fromiter(flat, np.float64, 2 * len(self.rows)).reshape(-1, 2)[self.box_rows]
