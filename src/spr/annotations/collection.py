"""What is read from another annotation format, and how it is written as COCO JSON.

The readers of `spr.annotations.sources` fill a `Collection`: images, objects, and everything that was dropped with its
reason. Objects are kept as columns of about 50 bytes each, so that the millions of Open Images fit into memory.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias, get_args

import numpy as np

from spr.annotations.ids import is_unicode
from spr.core import FORMAT_VERSION
from spr.core.atomic import atomic_file
from spr.core.boxes import Box, Size
from spr.core.errors import InputError, RunError
from spr.core.image_names import unsafe_path
from spr.core.images import ImageProblem, ImageSource
from spr.core.outputs import check_output
from spr.core.randomness import stable_hash
from spr.core.terminal import one_line

BoxFormat: TypeAlias = Literal["xyxy", "xywh", "cxcywh", "xyxy-normalized", "xywh-normalized", "cxcywh-normalized"]
"""The meaning of a box's four numbers: two corners, a corner with width and height, or the center with width and
height; in pixels, or as fractions of the image's width and height."""
BOX_FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)
Mark: TypeAlias = Literal["difficult", "truncated", "occluded", "crowd", "depiction", "inside"]
"""What a format says about an object besides its box. ``crowd`` becomes ``iscrowd``; others stay keys."""
MARKS: tuple[Mark, ...] = get_args(Mark)
Kind: TypeAlias = Literal["image", "object"]

_FORMAT = "spr convert annotations"
_BEGINNING = f'{{"info": {{"format": "{_FORMAT}"'
_MAX_SIDE = 2**31 - 1
_MOST_FAR = 0.01  # normalized numbers further outside than this share of the image are taken for something else
_DIGITS = re.compile(r"[0-9]{1,15}", re.ASCII)
EXIF = "images with an EXIF orientation"


@dataclass(frozen=True, slots=True)
class DroppedItem:
    """Something that is not converted: what it is, where it stands in the source, why, and what was found there."""

    kind: Kind
    where: str
    reason: str
    got: str


@dataclass(slots=True)
class _Image:
    file_name: str
    size_wh: Size
    id: int | None
    license: str | None
    url: str | None


@dataclass(slots=True)
class Collection:
    """Images and their objects, as a reader adds them.

    Attributes:
        images: The image folder with the options for reading it.
        look: Whether image files are looked for, and those that are missing dropped.
        categories: Names in the order of the source. Names that come only from objects follow, sorted.
        drop: Marks whose objects are dropped as ``mark_dropped``.
    """

    images: ImageSource
    look: bool = True
    categories: list[str] = field(default_factory=list)
    drop: Sequence[str] = ()
    dropped: list[DroppedItem] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    _images: list[_Image] = field(default_factory=list)
    _by_name: dict[str, int] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)
    _image: array[int] = field(default_factory=lambda: array("i"))
    _category: array[int] = field(default_factory=lambda: array("i"))
    _marks: array[int] = field(default_factory=lambda: array("b"))
    _boxes: array[float] = field(default_factory=lambda: array("d"))
    _rows: list[int] | None = None

    def leave_out(self, kind: Kind, where: object, reason: str, got: object = "") -> None:
        """Record something that is not converted."""
        self.dropped.append(DroppedItem(kind, one_line(where)[:500], reason, one_line(got)[:200]))

    def find(self, name: str) -> int | None:
        """The index of an image by its file name; None if there is none yet."""
        return self._by_name.get(name)

    def size_wh(self, image: int) -> Size:
        """The size of an image by its index."""
        return self._images[image].size_wh

    def add_image(
        self,
        where: object,
        name: str,
        size_wh: Size | None = None,
        *,
        id: int | None = None,  # noqa: A002
        license: str | None = None,  # noqa: A002
        url: str | None = None,
        displayed: bool = False,
    ) -> int | None:
        """Add an image and return its index, or record why it is dropped and return None.

        Args:
            where: Where the image stands in the source.
            name: File name relative to the image folder.
            size_wh: Width and height in pixels. None: they are read from the file.
            id: The image's number in the source, kept if no other image has the same.
            license: The image's license as text.
            url: The web address of the image.
            displayed: Whether the boxes were drawn on the image as viewers show it, whatever ``size_wh`` says.
        """
        name = name.replace("\\", "/")
        name = str(PurePosixPath(name)) if name else name
        if not name or name == ".":
            self.leave_out("image", where, "image_without_file_name")
        elif unsafe_path(name) or not is_unicode(name):
            self.leave_out("image", where, "image_file_name_unsafe", name)
        elif name in self._by_name:
            self.leave_out("image", where, "image_repeated", name)
        elif size_wh is not None and not all(1 <= side <= _MAX_SIDE for side in size_wh):
            self.leave_out("image", where, "image_size_invalid", size_wh)
        else:
            try:
                if self.look:
                    size_wh = self._checked(name, size_wh, displayed)
                elif size_wh is None:
                    size_wh = self._read_size(name)
            except ImageProblem as problem:
                self.leave_out("image", where, problem.reason, problem.got or name)
                return None
            self._by_name[name] = len(self._images)
            self._images.append(_Image(name, size_wh, id, license or None, url or None))
            return len(self._images) - 1
        return None

    def _read_size(self, name: str) -> Size:
        size_wh, oriented = self.images.header(name)
        self.notes[EXIF] += oriented
        return size_wh

    def _checked(self, name: str, annotated_wh: Size | None, displayed: bool) -> Size:
        """The size of an image: as annotated, which for an image that EXIF turns may also be the stored size."""
        size_wh = self._read_size(name)
        if annotated_wh is None or size_wh == annotated_wh:
            return size_wh
        if ImageSource(self.images.folder, "ignore").header(name)[0] == annotated_wh:
            return size_wh if displayed else annotated_wh
        raise ImageProblem("image_size_differs", name, got=f"{size_wh}, not {annotated_wh}")

    def add_object(
        self, where: object, image: int, category: object, box: Sequence[float], marks: Iterable[Mark] = ()
    ) -> None:
        """Add an object with its box, xyxy in pixels of the image, or record why it is dropped."""
        name = " ".join(str(category).split()) if isinstance(category, str | int) else ""
        width, height = self._images[image].size_wh
        marks = tuple(marks)
        x1, y1, x2, y2 = box
        if not name or not is_unicode(name):
            reason = "category_without_name"
        elif not all(map(math.isfinite, box)):
            reason = "box_not_finite"
        elif x2 < x1 or y2 < y1:
            reason = "box_size_negative"
        elif x1 == x2 or y1 == y2:
            reason = "box_size_zero"
        elif x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            reason = "box_outside_image"
        elif wanted := [mark for mark in marks if mark in self.drop]:
            self.leave_out("object", where, "mark_dropped", ", ".join(wanted))
            return
        else:
            self._image.append(image)
            self._category.append(self._names.setdefault(name, len(self._names)))
            self._marks.append(sum(1 << MARKS.index(mark) for mark in marks))
            self._boxes.extend(box)
            return
        self.leave_out("object", where, reason, f"{name} {[round(number, 3) for number in box]}")

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of images, objects and categories that are written."""
        return {"images": len(self._images), "objects": len(self._kept()), "categories": len(self._all_categories())}

    def _all_categories(self) -> list[str]:
        own = list(dict.fromkeys(" ".join(str(name).split()) for name in self.categories))
        return [name for name in own if name] + sorted(set(self._names).difference(own))

    def _kept(self) -> list[int]:
        """The objects, sorted by file name; of equal ones (image, category, box, marks), the first. Computed once."""
        if self._rows is not None:
            return self._rows
        ranks = np.empty(len(self._images), np.int64)
        ranks[sorted(range(len(ranks)), key=lambda index: self._images[index].file_name)] = np.arange(len(ranks))
        image = ranks[np.array(self._image, np.int64)]
        boxes = np.array(self._boxes, np.float64).reshape(-1, 4)
        keys = (*boxes.T, np.array(self._category), np.array(self._marks), image)
        order = np.lexsort(keys)
        again = np.ones(max(len(order) - 1, 0), bool)
        for key in keys:
            again &= key[order[1:]] == key[order[:-1]]
        repeated = order[1:][again]
        names = list(self._names)
        for row in np.sort(repeated).tolist():
            got = f"{names[self._category[row]]} {boxes[row].tolist()}"
            self.leave_out("object", self._images[self._image[row]].file_name, "object_repeated", got)
        rows = np.setdiff1d(np.arange(len(order)), repeated)
        self._rows = rows[np.argsort(image[rows], kind="stable")].tolist()
        return self._rows

    def _image_ids(self) -> list[int]:
        """An id for each image that depends on no other image, as far as possible.

        It is the source's own number, or else that in the file name (``000000391895.jpg``), or, where two images have
        the same, a hash of the file name.
        """
        own = [image.id for image in self._images]
        stems = [PurePosixPath(image.file_name).stem for image in self._images]
        numbers = [
            int(stem) if number is None and _DIGITS.fullmatch(stem) else number
            for number, stem in zip(own, stems, strict=True)
        ]
        count = Counter(numbers)
        ids = [
            number
            if number is not None and count[number] == 1
            else 2**52 + stable_hash(0, "image", image.file_name) % 2**52
            for number, image in zip(numbers, self._images, strict=True)
        ]
        if len(set(ids)) != len(ids):
            raise InputError("Two images have the same id", fix="rename one of the images")
        return ids

    def chunks(self, source: dict[str, object]) -> Iterator[str]:
        """The COCO JSON in pieces; ``source`` says what was converted and is written into its ``info``."""
        rows, ids, names, categories = self._kept(), self._image_ids(), list(self._names), self._all_categories()
        info = {"format": _FORMAT, "format_version": FORMAT_VERSION, **source}
        yield f'{{"info": {_json(info)},\n'
        licenses = sorted({image.license for image in self._images if image.license})
        yield from _list("licenses", ({"id": k, "name": name} for k, name in enumerate(licenses, 1)))
        order = sorted(range(len(ids)), key=lambda index: self._images[index].file_name)
        yield from _list("images", (_image_entry(self._images[k], ids[k], licenses) for k in order))
        numbers = {name: k for k, name in enumerate(categories, 1)}
        category_ids = [numbers[name] for name in names]
        yield from _list("annotations", (self._entry(k, row, ids, category_ids) for k, row in enumerate(rows, 1)))
        yield from _list("categories", ({"id": k, "name": name} for name, k in numbers.items()))
        dropped = ({"kind": d.kind, "where": d.where, "reason": d.reason, "got": d.got} for d in self.dropped)
        yield from _list("dropped", dropped, end="\n")
        yield "}\n"

    def _entry(self, number: int, row: int, ids: list[int], category_ids: list[int]) -> dict[str, object]:
        x1, y1, x2, y2 = self._boxes[4 * row : 4 * row + 4]
        bits = self._marks[row]
        box = [round(value, 4) for value in (x1, y1, x2 - x1, y2 - y1)]
        entry = {
            "id": number,
            "image_id": ids[self._image[row]],
            "category_id": category_ids[self._category[row]],
            "bbox": box,
            "area": round((x2 - x1) * (y2 - y1), 4),
            "iscrowd": bits >> MARKS.index("crowd") & 1,
        }
        return entry | {mark: 1 for k, mark in enumerate(MARKS) if bits >> k & 1 and mark != "crowd"}


def _image_entry(image: _Image, image_id: int, licenses: list[str]) -> dict[str, object]:
    width, height = image.size_wh
    entry: dict[str, object] = {"id": image_id, "file_name": image.file_name, "width": width, "height": height}
    if image.license:
        entry["license"] = licenses.index(image.license) + 1
    if image.url:
        entry["coco_url"] = image.url
    return entry


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _list(name: str, items: Iterable[object], end: str = ",\n") -> Iterator[str]:
    yield f'"{name}": ['
    between = "\n"
    for item in items:
        yield between + _json(item)
        between = ",\n"
    yield f"]{end}"


def check_coco_output(out: Path) -> None:
    """Raise `RunError` unless COCO JSON may be written to a path: it is free, or holds what was converted before."""

    def is_ours(path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING.encode()

    if not (out.is_file() and is_ours(out)):
        check_output(out, "converted annotations", folder=False)


def write_coco(collection: Collection, out: Path, source: dict[str, object]) -> bool:
    """Write COCO JSON atomically; returns False if the file already has this content, and then leaves it as it is.

    Raises:
        InputError: if the collection has no image.
        RunError: if the file holds anything else, even if an earlier conversion wrote it: runs may depend on it.
    """
    if not collection.counts["images"]:
        reasons = Counter(item.reason for item in collection.dropped)
        got = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common()) or "no image"
        raise InputError("Nothing can be converted", got=got, fix=_examples(collection.dropped))
    check_coco_output(out)
    if out.is_file() and out.stat().st_size:
        same = True
        with out.open("rb") as file:
            for chunk in collection.chunks(source):
                data = chunk.encode()
                if file.read(len(data)) != data:
                    same = False
                    break
            same = same and not file.read(1)
        if same:
            return False
        fix = "choose another --out, or delete the file to convert again"
        raise RunError(f"{out} holds other converted annotations", expected="the same content, or no file", fix=fix)
    with atomic_file(out) as file:
        for chunk in collection.chunks(source):
            file.write(chunk.encode())
    return True


def _examples(dropped: Sequence[DroppedItem]) -> str | None:
    first = dropped[0] if dropped else None
    return None if first is None else f"look at the first: {first.where}: {first.reason} {first.got}".strip()


def to_xyxy(numbers: Sequence[float], form: BoxFormat, size_wh: Size) -> Box:
    """A box in pixels from its four numbers.

    >>> to_xyxy([0.5, 0.5, 0.2, 0.4], "cxcywh-normalized", (100, 50))
    (40.0, 15.0, 60.0, 35.0)
    """
    a, b, c, d = numbers
    if form.startswith("xywh"):
        a, b, c, d = a, b, a + c, b + d
    elif form.startswith("cxcywh"):
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    width, height = size_wh if form.endswith("-normalized") else (1, 1)
    return a * width, b * height, c * width, d * height


def are_normalized(numbers: Iterable[float]) -> bool:
    """Whether no number is over 1, but for rounding, so that they may be fractions; NaN counts as one."""
    return not any(abs(number) > 1 + _MOST_FAR for number in numbers)


def bounds(points: Sequence[tuple[float, float]]) -> Box:
    """The smallest upright box around points ``(x, y)``."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def rotated_corners(box: Sequence[float], degrees: float, center: tuple[float, float]) -> list[tuple[float, float]]:
    """The corners of a box (xyxy) that is rotated clockwise, in an image with y downwards, around a point.

    >>> tuple((round(x), round(y)) for x, y in rotated_corners((0, 0, 4, 2), 90, (0, 0)))
    ((0, 0), (0, 4), (-2, 4), (-2, 0))
    """
    x1, y1, x2, y2 = box
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    moved = [(x - center[0], y - center[1]) for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
    return [(center[0] + x * cosine - y * sine, center[1] + x * sine + y * cosine) for x, y in moved]
