"""CSV: a row per object. Known layouts are recognised by their header; other columns are named by options.

Sources: https://storage.googleapis.com/openimages/web/download_v7.html (Open Images), and the readers of
keras-retinanet (rows ``path,x1,y1,x2,y2,class`` without a header, or only the path for an image without objects).
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Literal

from spr.annotations.collection import BOX_FORMATS, BoxFormat, Collection, Mark, are_normalized, to_xyxy
from spr.annotations.sources.yolo import SUFFIXES
from spr.core.boxes import Size
from spr.core.errors import ConfigError, InputError
from spr.core.images import ImageProblem, ImageSource
from spr.core.progress import MEGABYTE, Progress
from spr.core.text_input import TextInput, read_text, text_lines

_EDGES: dict[str, tuple[str, ...]] = {
    "xyxy": ("x1", "y1", "x2", "y2"),
    "xywh": ("x", "y", "w", "h"),
    "cxcywh": ("cx", "cy", "w", "h"),
}
FIELDS = (
    "image",
    "label",
    "width",
    "height",
    "box",
    *dict.fromkeys(name for names in _EDGES.values() for name in names),
)
"""What a column can be: the file name, the category, the image's size, the box as one text, or its numbers."""
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf", re.ASCII | re.IGNORECASE)
_ALIASES = {
    "image": "image|filename|file_name|imageid|image_id|image_path|path|file|img|image_name",
    "label": "label|class|category|labelname|class_name|category_name|name",
    "width": "width|image_width|img_width",
    "height": "height|image_height|img_height",
    "box": "bbox|box|bounding_box",
    "x1": "x1|xmin|x_min|left|xtl",
    "y1": "y1|ymin|y_min|top|ytl",
    "x2": "x2|xmax|x_max|right|xbr",
    "y2": "y2|ymax|y_max|bottom|ybr",
    "x": "x|bbox_x|box_x",
    "y": "y|bbox_y|box_y",
    "cx": "cx|x_center|xcenter|center_x",
    "cy": "cy|y_center|ycenter|center_y",
    "w": "w|bbox_width|bbox_w|box_width|box_w",
    "h": "h|bbox_height|bbox_h|box_height|box_h",
}
_OPEN_IMAGES = {"imageid", "labelname", "xmin", "xmax", "ymin", "ymax"}
_RETINANET = ("image", "x1", "y1", "x2", "y2", "label")
_MARK_COLUMNS: dict[str, Mark] = {
    "isoccluded": "occluded",
    "istruncated": "truncated",
    "isgroupof": "crowd",
    "isdepiction": "depiction",
    "isinside": "inside",
    "difficult": "difficult",
    "iscrowd": "crowd",
}


def read_csv(
    path: Path,
    *,
    images: Path | None = None,
    columns: Mapping[str, str] | None = None,
    box_format: BoxFormat | None = None,
    classes: Path | None = None,
    category: str | None = None,
    image_info: Path | None = None,
    orientation: Literal["apply", "ignore"] = "apply",
    drop: Sequence[str] = (),
) -> Collection:
    """Read a CSV file with a row per object. The order of the rows does not matter.

    Args:
        path: The file; commas, semicolons, tabs or bars (``|``) between the columns.
        images: Image folder. None: the folder of the file. Images are opened, unless there are columns with their size
            and ``images`` is not given.
        columns: Names of columns by `FIELDS`. For other fields, usual names are recognised.
        box_format: What the box's numbers mean. None: what the columns' names say; Open Images is normalized.
        classes: File with the category of each label, ``label,name`` (Open Images' class descriptions), or
            ``name,number`` (keras-retinanet), or with a name per line, for labels that are numbers from 0.
        category: The category of all objects, for files without a column for it.
        image_info: Open Images' file of images with ``OriginalLandingURL`` and ``License``, kept in the JSON.
        orientation: Whether the boxes refer to images as EXIF orients them, or as they are stored.
        drop: Drop objects with these marks: ``occluded``, ``truncated``, ``crowd`` (group of), ``depiction``, ….
    """
    for field in columns or {}:
        if field not in FIELDS:
            raise ConfigError("--columns names an unknown field", got=field, expected=", ".join(FIELDS))
    with TextInput(path, f"CSV file {path}", expected="a CSV file with a row per object") as file:
        size = path.stat().st_size
        with Progress(f"reading {path.name}", size // MEGABYTE, "MB") as progress:
            rows = _rows(file, progress)
            first = next(rows, None)
            if first is None:
                raise InputError(f"{path} is empty", expected="a CSV file with a row per object")
            header, begins_with_data = first[1], _is_retinanet(first[1]) and not columns
            places, form, marks = _layout(path, header, columns or {}, box_format, begins_with_data)
            if "label" not in places and category is None:
                fix = "name it with --columns label=NAME, or give the category of all objects with --category"
                raise InputError(f"{path} has no column with categories", got=", ".join(header), fix=fix)
            look = images is not None or "width" not in places
            collection = Collection(ImageSource(images or path.parent, orientation), look=look, drop=drop)
            names = {} if classes is None else _read_classes(classes)
            reader = _Reader(collection, places, form, marks, names, category, _read_info(image_info))
            if begins_with_data:
                reader.read(*first)
            for number, row in rows:
                reader.read(number, row)
    if reader.numbers and reader.most <= 1 and not form.endswith("-normalized"):
        what = f"No box of {path} has a number over 1, so its numbers may be fractions of the image"
        raise InputError(what, got=form, fix=f"--box-format {form}-normalized")
    return collection


def _rows(file: TextInput, progress: Progress) -> Iterator[tuple[int, list[str]]]:
    lines = text_lines(file)
    first = next(lines, None)
    if first is None:
        return
    delimiter = max(",;\t|", key=first.count)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, skipinitialspace=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{file.what} can't be read", got=f"line {reader.line_num}: {error}") from None
        progress.advance(file.done // MEGABYTE - progress.done)
        if any(cell.strip() for cell in row):
            yield reader.line_num, [cell.strip() for cell in row]


def _is_retinanet(row: Sequence[str]) -> bool:
    numbers = all(_NUMBER.fullmatch(cell) for cell in row[1:5]) or not any(row[1:])
    return len(row) == 6 and numbers and PurePosixPath(row[0]).suffix.lower() in SUFFIXES


def _layout(
    path: Path, header: Sequence[str], columns: Mapping[str, str], box_format: BoxFormat | None, retinanet: bool
) -> tuple[dict[str, int], BoxFormat, dict[int, Mark]]:
    """The columns' numbers by field, the format of the boxes, and the columns with marks."""
    if retinanet:
        places = {field: place for place, field in enumerate(_RETINANET)}
        return places, _checked_format(path, places, box_format, header), {}
    lower = [name.casefold() for name in header]
    places = {}
    for field, aliases in _ALIASES.items():
        wanted = [columns[field].casefold()] if field in columns else aliases.split("|")
        found = next((lower.index(alias) for alias in wanted if alias in lower), None)
        if found is not None:
            places[field] = found
        elif field in columns:
            got = ", ".join(header)
            raise ConfigError(f"{path} has no column {columns[field]}", got=got, fix=f"--columns {field}=NAME")
    if "image" not in places:
        raise InputError(f"{path} has no column with file names", got=", ".join(header), fix="--columns image=NAME")
    marks = {place: _MARK_COLUMNS[name] for place, name in enumerate(lower) if name in _MARK_COLUMNS}
    if set(lower) >= _OPEN_IMAGES and not columns:
        box_format = box_format or "xyxy-normalized"
    return places, _checked_format(path, places, box_format, header), marks


def _checked_format(
    path: Path, places: Mapping[str, int], box_format: BoxFormat | None, header: Sequence[str]
) -> BoxFormat:
    if box_format is not None and box_format not in BOX_FORMATS:
        raise ConfigError("--box-format is unknown", got=box_format, expected=" | ".join(BOX_FORMATS))
    possible = [name for name, edges in _EDGES.items() if all(edge in places for edge in edges)]
    if box_format is None:
        if len(possible) == 1:
            return possible[0]  # type: ignore[return-value]
        what = (
            "has one column for boxes" if "box" in places else f"has columns for {' and '.join(possible) or 'no box'}"
        )
        fix = f"say what its numbers are: --box-format {' | '.join(possible or _EDGES)}; and --columns x=NAME …"
        raise InputError(f"{path} {what}", got=", ".join(header), fix=fix)
    needed = _EDGES[box_format.partition("-")[0]]
    if "box" not in places and not all(edge in places for edge in needed):
        missing = ", ".join(edge for edge in needed if edge not in places)
        fix = " ".join(["--columns", *(f"{edge}=NAME" for edge in needed)])
        raise InputError(f"{path} lacks columns of {box_format}: {missing}", got=", ".join(header), fix=fix)
    return box_format


def _read_classes(path: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    rows = [row for row in csv.reader(io.StringIO(read_text(path, "File of categories"))) if any(row)]
    for number, row in enumerate(rows):
        if len(row) == 1:
            names[str(number)] = row[0].strip()
        elif row[1].strip().isdecimal():  # keras-retinanet: name,number; rows name the category themselves
            names[row[1].strip()] = names[row[0].strip()] = row[0].strip()
        else:
            names[row[0].strip()] = row[1].strip()
    return names


def _read_info(path: Path | None) -> dict[str, tuple[str, str]]:
    """License and address of each image by its id."""
    if path is None:
        return {}
    info: dict[str, tuple[str, str]] = {}
    with TextInput(path, f"File of images {path}") as file:
        reader = csv.DictReader(text_lines(file))
        if not {"ImageID", "License"} <= set(reader.fieldnames or ()):
            got = ", ".join(reader.fieldnames or ())
            raise InputError(f"{path} is not a file of Open Images' images", got=got, expected="ImageID, License, …")
        for row in reader:
            url = row.get("OriginalLandingURL") or row.get("OriginalURL") or ""
            info[row["ImageID"]] = (row["License"] or "", url)
    return info


class _Reader:
    """Reads rows into a collection."""

    def __init__(
        self,
        collection: Collection,
        places: Mapping[str, int],
        form: BoxFormat,
        marks: Mapping[int, Mark],
        names: Mapping[str, str],
        category: str | None,
        info: Mapping[str, tuple[str, str]],
    ) -> None:
        self._collection, self._places, self._form, self._marks = collection, places, form, marks
        self._names, self._category, self._info = names, category, info
        self._images: dict[str, int | None] = {}
        edges = _EDGES[form.partition("-")[0]]
        self._edges = None if not all(edge in places for edge in edges) else [places[edge] for edge in edges]
        self.most, self.numbers = 0.0, 0

    def read(self, number: int, row: Sequence[str]) -> None:
        """Add the object of a row, and its image if it is new."""
        where = f"line {number}"
        cells = [*row, *[""] * (1 + max(self._places.values()) - len(row))]
        image = self._image(where, cells)
        texts = [cells[place] for place in self._edges] if self._edges else _NUMBER.findall(cells[self._places["box"]])
        if not any(texts) and not (cells[self._places["label"]] if "label" in self._places else ""):
            self._collection.notes["rows without an object, only with an image"] += 1
            return None
        if image is None:
            return self._collection.leave_out("object", where, "object_image_dropped", cells[self._places["image"]])
        try:
            a, b, c, d = map(float, texts)
        except ValueError:
            return self._collection.leave_out("object", where, "row_unreadable", ", ".join(texts))
        finite = [abs(value) for value in (a, b, c, d) if math.isfinite(value)]
        self.most, self.numbers = max([self.most, *finite]), self.numbers + 1
        if self._form.endswith("-normalized") and not are_normalized((a, b, c, d)):
            return self._collection.leave_out("object", where, "numbers_not_normalized", ", ".join(texts))
        label = cells[self._places["label"]] if "label" in self._places else self._category or ""
        if self._names and label not in self._names:
            return self._collection.leave_out("object", where, "object_category_unknown", label)
        marks = [
            mark for place, mark in self._marks.items() if place < len(row) and row[place] in ("1", "true", "True")
        ]
        box = to_xyxy((a, b, c, d), self._form, self._collection.size_wh(image))
        return self._collection.add_object(where, image, self._names.get(label, label), box, marks)

    def _image(self, where: str, cells: Sequence[str]) -> int | None:
        name = cells[self._places["image"]]
        if name not in self._images:
            license_text, url = self._info.get(name, (None, None))
            size_wh = self._size_wh(cells)
            self._images[name] = self._collection.add_image(
                where, self._file_name(name), size_wh, license=license_text, url=url
            )
        return self._images[name]

    def _file_name(self, name: str) -> str:
        """The file name: absolute paths below the image folder become relative; Open Images' ids get a suffix."""
        folder = self._collection.images.folder.absolute()
        if name.startswith("/") and Path(name).is_relative_to(folder):
            name = Path(name).relative_to(folder).as_posix()
        if self._collection.look and PurePosixPath(name).suffix.lower() not in SUFFIXES:
            try:
                tries = (f"{name}{suffix}" for suffix in (".jpg", ".png", ".jpeg") if name)
                return next((file for file in tries if self._collection.images.has(file)), name)
            except ImageProblem:
                return name
        return name

    def _size_wh(self, cells: Sequence[str]) -> Size | None:
        if "width" not in self._places or "height" not in self._places:
            return None
        try:
            return int(float(cells[self._places["width"]])), int(float(cells[self._places["height"]]))
        except (ValueError, OverflowError):
            return None
