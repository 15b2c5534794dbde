"""COCO JSON: ``images``, ``annotations`` with ``bbox`` as x, y, width, height in pixels, and ``categories``.

The format is documented at cocodataset.org, "Data format", and is that of LVIS and Objects365, too. Boxes are kept as
they are written, unlike in `spr.annotations.load_annotations`, which cleans them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from spr.annotations.json_stream import JsonStream
from spr.core.errors import InputError
from spr.core.terminal import count_text, one_line
from spr.workflows.checking.layouts.layout import ObjectLayout, stated_size
from spr.workflows.checking.layouts.ms_swift import numbers_of
from spr.workflows.checking.rows import BATCH_ROWS, Batch, DataRow, Floats, RowProblem
from spr.workflows.checking.source import EXPECTED, FIX, decode_list

Id: TypeAlias = int | str
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Image(msgspec.Struct, gc=False):
    id: Id
    file_name: str = ""
    width: int | None = None
    height: int | None = None
    caption: str = ""


class _Annotation(msgspec.Struct, gc=False):
    image_id: Id
    bbox: tuple[float, float, float, float]
    category_id: Id | None = None


class _Category(msgspec.Struct, gc=False):
    id: Id
    name: str = ""


LAYOUT = ObjectLayout(
    "coco",
    "COCO JSON",
    "an object with `images` (id, file_name, width, height), `annotations` (image_id, bbox) and `categories`",
)


class Objects:
    """The content of a file with ``images`` and ``annotations``, as columns; reads the whole file when it is made.

    Raises:
        InputError: if it is truncated, is not JSON, or has no list ``images`` or ``annotations``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[RowProblem] = []
        self._images: list[str] = []
        self._captions: dict[int, str] = {}
        self._sizes: list[npt.NDArray[np.int32]] = [np.zeros((0, 2), np.int32)]
        self._wrong: set[int] = set()
        self._places: dict[Id, int] = {}
        self._categories: dict[Id | None, int] = {None: 0}
        self._names: dict[Id, str] = {}
        self._boxes: list[Floats] = [np.zeros((0, 4))]
        self._ids: list[list[Id]] = []
        self._of_image: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
        self._labels: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
        self._number = 0
        found = self._read()
        for member in ("images", "annotations"):
            if member not in found:
                raise InputError(f"{path} has no `{member}`", got=", ".join(found) or "no keys", expected=LAYOUT.needs)
        self._of_image += [self._look_up(ids) for ids in self._ids]
        self._places, self._ids = {}, []
        self.boxes, self._boxes = np.concatenate(self._boxes), []
        self.of_image, self._of_image = np.concatenate(self._of_image), []
        self.labels, self._labels = np.concatenate(self._labels), []
        self.sizes, self._sizes = np.concatenate(self._sizes), []
        self.names = ["", *(self._names.get(key, str(key)) for key in self._categories if key is not None)]
        if lost := int(np.count_nonzero(self.of_image < 0)):
            first = int(np.flatnonzero(self.of_image < 0)[0]) + 1
            detail = f"the first is box {first}"
            problem = RowProblem("no_such_image", first, f"{path.name}, {count_text(lost, 'annotations')}", detail)
            self.problems.append(problem)

    def __len__(self) -> int:
        return len(self._images)

    def _read(self) -> list[str]:
        found: list[str] = []
        with JsonStream(self.path, what="Data file", expected=EXPECTED, fix=FIX) as stream:
            for member in stream.members():
                found.append(member)
                if not stream.at_list():
                    continue
                if member == "images":
                    self._each(stream, _Image, self._add_images, self._odd_image)
                elif member == "annotations":
                    self._each(stream, _Annotation, self._add_annotations, self._odd_annotation)
                elif member == "categories":
                    self._each(stream, _Category, self._add_categories, lambda _: None)
        return found

    def _each(
        self, stream: JsonStream, kind: type, add: Callable[[list[Any]], None], odd: Callable[[Any], None]
    ) -> None:
        """Pass on the elements of a list, decoded; those that are not of the kind go to ``odd``, one by one."""
        decode = msgspec.json.Decoder(list[kind]).decode  # type: ignore[valid-type]

        def fast(block: memoryview) -> list[Any] | None:
            try:
                entries: list[Any] = decode(block)
            except _DECODE_ERRORS:
                return None
            return entries

        def lenient(elements: list[Any]) -> list[Any]:
            return [msgspec.Raw(), *elements]

        self._number = 0
        for entries in stream.blocks(fast, lenient):
            if entries and isinstance(entries[0], msgspec.Raw):
                for element in entries[1:]:
                    try:
                        entry: Any = msgspec.convert(element, kind)
                    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
                        odd(element)
                    else:
                        add([entry])
                    self._number += 1
            else:
                add(entries)
                self._number += len(entries)

    def _add_images(self, entries: list[_Image]) -> None:
        start = len(self._images)
        for place, entry in enumerate(entries, start=start):
            self._places.setdefault(entry.id, place)
            if entry.caption:
                self._captions[place] = entry.caption
        self._images += [entry.file_name for entry in entries]
        sizes = [stated_size({"width": entry.width, "height": entry.height}) or (0, 0) for entry in entries]
        self._sizes.append(np.array(sizes, dtype=np.int32).reshape(-1, 2))

    def _odd_image(self, entry: Any) -> None:
        self._wrong.add(len(self._images))
        self._images.append("")
        self._sizes.append(np.zeros((1, 2), np.int32))
        self._problem("not_object" if not isinstance(entry, dict) else "wrong_image", "image", entry)

    def _add_annotations(self, entries: list[_Annotation]) -> None:
        boxes = np.array([entry.bbox for entry in entries], dtype=np.float64).reshape(-1, 4)
        finite = np.isfinite(boxes).all(1)
        if not finite.all():
            for place in np.flatnonzero(~finite).tolist():
                self._problem("not_finite", "annotation", entries[place].bbox, place)
            boxes, entries = boxes[finite], [entries[place] for place in np.flatnonzero(finite).tolist()]
        number = self._categories
        keys = [number.setdefault(entry.category_id, len(number)) for entry in entries]
        self._boxes.append(boxes)
        self._ids.append([entry.image_id for entry in entries])
        self._labels.append(np.array(keys, dtype=np.int32))
        if self._images:
            self._of_image.append(self._look_up(self._ids.pop()))

    def _odd_annotation(self, entry: Any) -> None:
        if not isinstance(entry, dict):
            self._problem("not_object", "annotation", entry)
            return
        four = numbers_of(entry.get("bbox"))
        if four is None or not isinstance(entry.get("image_id"), int | str):
            self._problem("wrong_box", "annotation", entry.get("bbox", "no `bbox`"))
        elif not all(map(math.isfinite, four)):
            self._problem("not_finite", "annotation", entry["bbox"])
        else:
            category = entry.get("category_id")
            self._add_annotations(
                [_Annotation(entry["image_id"], four, category if isinstance(category, int | str) else None)]
            )

    def _add_categories(self, entries: list[_Category]) -> None:
        self._names |= {entry.id: entry.name for entry in entries}

    def _problem(self, kind: str, what: str, got: Any, offset: int = 0) -> None:
        number = self._number + offset + 1
        detail = one_line(str(got)[:60])
        self.problems.append(RowProblem(kind, number, f"{self.path.name}, {what} {number}", detail))

    def _look_up(self, ids: list[Id]) -> npt.NDArray[np.int32]:
        places = self._places
        return np.array([places.get(key, -1) for key in ids], dtype=np.int32)

    def batches(self, *, captions: bool = False) -> Iterator[Batch]:
        """One row per image; with ``captions``, the image's caption is the row's prompt."""
        order = np.argsort(self.of_image, kind="stable")
        edges = np.searchsorted(self.of_image[order], np.arange(len(self) + 1))
        for first in range(0, max(len(self), 1), BATCH_ROWS):
            rows = []
            for place in range(first, min(first + BATCH_ROWS, len(self))):
                if place in self._wrong:
                    continue
                own = order[edges[place] : edges[place + 1]]
                numbers = tuple(map(tuple, self.boxes[own].tolist()))
                labels = tuple(self.names[key] for key in self.labels[own].tolist())
                name = self._images[place] or None
                shown = f"{self.path.name}, image {place + 1}" + (f" ({one_line(name)})" if name else "")
                prompt = self._captions.get(place, "") if captions else ""
                forms = ("field",) * len(labels)
                width, height = self.sizes[place].tolist()
                size = (width, height) if width else None
                rows.append(DataRow(place + 1, shown, name, size, prompt, "", numbers, labels, forms, "xywh_pixels"))
            yield Batch(rows, self.problems if first == 0 else [])


def first_images(path: Path) -> list[Any]:
    """The first entries of ``images``, decoded, to see which layout a file has."""
    with JsonStream(path, what="Data file", expected=EXPECTED, fix=FIX) as stream:
        for member in stream.members():
            if member == "images" and stream.at_list():
                blocks = stream.blocks(decode_list, list)
                return list(itertools.islice(itertools.chain.from_iterable(blocks), 20))
    return []
