"""Files of questions that are answered with points: SPR's own, Where2Place, Point-Bench and PixMo-Points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from urllib.parse import urlsplit

import msgspec
import numpy as np

from spr.core.boxes import first_without_area
from spr.core.errors import InputError
from spr.core.image_files import ImageProblem
from spr.core.images import ImageSource
from spr.core.paths import is_dir
from spr.evaluation.layouts.content import Content
from spr.evaluation.layouts.layout import Layout
from spr.evaluation.layouts.mdetr import Id, Side
from spr.evaluation.layouts.parquet import ParquetContent
from spr.evaluation.lines import unique_ids
from spr.evaluation.points import BoxTarget, Mask, MaskTarget, PointItem, PointItems, mask_of
from spr.records import Size

if TYPE_CHECKING:
    from spr.evaluation.tasks.pointing import Pointing

_FORMAT = " Your answer should be formatted as"
"""Where2Place's questions end with how RoboPoint writes points; another model has its own way."""
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_FOLDERS = ("masks", "selected_masks")


class _Line(msgspec.Struct, gc=False):
    image: str
    question: str
    boxes: tuple[tuple[float, float, float, float], ...]
    width: Side
    height: Side
    id: Any = None
    group: str = ""
    count: _Count | None = None


def _read_lines(content: Content, _: Any) -> PointItems:
    """A missing ``id`` is the row's number, from 0."""
    rows = content.rows(_Line, '{"image": …, "question": …, "boxes": [[x1, y1, x2, y2]], "width": …, "height": …}')
    ids = unique_ids(content.path, "id", [row.id for row in rows])
    for name, row in zip(ids, rows, strict=True):
        wrong = first_without_area(row.boxes)
        if wrong is not None:
            what, got = f"A box of question {name} has no area", list(row.boxes[wrong])
            raise InputError(
                what, got=got, expected="x1 < x2, y1 < y2, in pixels; no box at all if there is nothing to point at"
            )
    return PointItems(
        [
            PointItem(
                name, row.image, (row.width, row.height), row.question, BoxTarget(row.boxes), row.group, row.count
            )
            for name, row in zip(ids, rows, strict=True)
        ]
    )


class _Where2Place(msgspec.Struct, gc=False):
    question_id: Id
    image: str
    text: str
    category: str = ""


def _read_where2place(content: Content, task: Pointing) -> PointItems:
    """``point_questions.jsonl`` of wentao-yuan/where2place; the mask of row N is ``masks/NN.jpg``.

    As in robopoint/eval/summarize_vqa.py of wentaoyuan/RoboPoint, except that its masks are not rounded: there, a point
    counts as much as the pixel is bright. lmms-eval rounds, as here.
    """
    rows = content.rows(_Where2Place, "question_id, image, text, category")
    masks = _Masks.of(task, content.path)
    items = []
    for number, row in enumerate(rows):
        size_wh, target = masks.target([f"{number:02d}.jpg", f"{number:02d}.png"])
        question = row.text.split(_FORMAT)[0]
        items.append(PointItem(str(row.question_id), row.image, size_wh, question, target, row.category))
    return PointItems(items)


class _Where2PlaceRow(msgspec.Struct, gc=False):
    question_id: Id
    question: str


def _read_where2place_parquet(content: ParquetContent, _: Any) -> PointItems:
    """FlagEval/Where2Place: ``question_id``, ``question``, ``image`` and ``mask`` (lmms_eval/tasks/where2place)."""
    rows = content.rows(_Where2PlaceRow, "question_id, question, image, mask")
    pictures = content.embedded("image")
    source, items = ImageSource(content.path.parent), []
    for row, name, size_wh, (place, _data) in zip(
        rows, pictures.names, pictures.sizes_wh, content.pictures("mask"), strict=True
    ):
        target = MaskTarget(partial(_embedded_mask, content, source, place, name, size_wh))
        question = row.question.split(_FORMAT)[0]
        items.append(PointItem(str(row.question_id), name, size_wh, question, target))
    return PointItems(items, pictures.images)


def _embedded_mask(content: Content, source: ImageSource, place: Any, name: str, size_wh: Size) -> list[Mask]:
    try:
        mask = mask_of(source.load(f"mask of {name}", data=content.read_picture(place)))
    except ImageProblem as problem:
        what = f"A `mask` of {content.path} can't be read"
        raise InputError(what, got=problem.got or problem.what, expected="an encoded image") from None
    height, width = mask.shape
    if (width, height) != size_wh:
        what, expected = f"A `mask` of {content.path} has another size than its image", "x".join(map(str, size_wh))
        raise InputError(what, got=f"{width}x{height}", expected=expected)
    return [mask]


class _PointBench(msgspec.Struct, gc=False):
    image_filename: str
    user_input: str
    mask_filename: str | None = None
    category: str = ""
    count: _Count | None = None


def _read_point_bench(content: Content, task: Pointing) -> PointItems:
    """``data.json`` of PointArena/pointarena-data, with ``selected_images.zip`` and ``selected_masks.zip`` unpacked.

    As in model_evaluator.py of pointarena/pointarena: rows without a mask are left out; in the category ``counting``,
    all points must lie in the mask, and there must be ``count`` of them. Ids are the rows' numbers, from 0.
    """
    rows = content.rows(_PointBench, "image_filename, mask_filename, user_input, category, count")
    masks = _Masks.of(task, content.path)
    items = []
    for number, row in enumerate(rows):
        if row.mask_filename:
            folder = f"{row.category}/" if row.category else ""
            size_wh, target = masks.target([folder + row.mask_filename, row.mask_filename])
            count = (1 if row.count is None else row.count) if row.category == "counting" else None
            image = folder + row.image_filename
            items.append(PointItem(str(number), image, size_wh, row.user_input, target, row.category, count))
    if not items:
        raise InputError(f"{content.path} has no masks", got="no row with `mask_filename`", expected="at least one")
    return PointItems(items)


class _Place(msgspec.Struct, gc=False):
    x: float
    y: float


class _PixMo(msgspec.Struct, gc=False):
    image_url: str
    image_sha256: str
    label: str
    points: list[_Place]


def _read_pixmo(content: ParquetContent, _: Any) -> PointItems:
    """allenai/pixmo-points-eval: ``points`` in percent of the image's sides, and a mask of each.

    The file has URLs of the images. An image is looked up under its ``image_sha256`` with the suffix of its URL. Its
    size is that of the masks; the rows of which there are none are left out, because nothing says the image's size.
    """
    rows = content.rows(_PixMo, "image_url, image_sha256, label, points, masks")
    items = []
    for number, (row, (place, shape)) in enumerate(zip(rows, content.shapes("masks"), strict=True)):
        if shape is None:
            continue
        count, height, width = shape
        if count != len(row.points):
            what = f"Row {number:,} of {content.path} is not valid"
            raise InputError(what, got=f"{count} masks", expected=f"{len(row.points)}, one per point")
        suffix = PurePosixPath(urlsplit(row.image_url).path).suffix
        if not all(math.isfinite(point.x) and math.isfinite(point.y) for point in row.points):
            what = f"Row {number:,} of {content.path} is not valid"
            raise InputError(what, got="a coordinate that is not finite", expected="points in percent")
        places = tuple((point.x * width / 100, point.y * height / 100) for point in row.points)
        target = MaskTarget(partial(_masks_of, content, place))
        name, question = row.image_sha256 + suffix, f"Point to {row.label}."
        items.append(PointItem(str(number), name, (width, height), question, target, places=places, label=row.label))
    if not items:
        raise InputError(f"{content.path} has no masks", got="no row with `masks`", expected="at least one")
    return PointItems(items)


def _masks_of(content: ParquetContent, place: Any) -> list[Mask]:
    try:
        return [np.asarray(mask, dtype=bool) for mask in content.read_value(place)]
    except ValueError:
        what = f"The masks of a row of {content.path} are not valid"
        raise InputError(what, got="rows of different lengths", expected="one number per pixel") from None


@dataclass(frozen=True)
class _Masks:
    """A folder of mask images."""

    source: ImageSource

    @classmethod
    def of(cls, task: Pointing, path: Path) -> _Masks:
        """The folder of ``--masks``, or the one beside the annotations."""
        folders = [task.masks] if task.masks is not None else [path.parent / name for name in _FOLDERS]
        folder = next((folder for folder in folders if is_dir(folder)), None)
        if folder is None:
            fix = "unpack the masks of the benchmark, and give their folder as --masks"
            raise InputError("There is no folder of masks", got=f"no {folders[0]}", fix=fix)
        return cls(ImageSource(folder))

    def target(self, names: Sequence[str]) -> tuple[Size, MaskTarget]:
        """The size of the first mask that is there, and the mask."""
        name = next(filter(self.source.has, names), names[0])
        try:
            size_wh = self.source.header(name)[0]
        except ImageProblem as problem:
            fix = "give the folder of the benchmark's masks as --masks"
            raise InputError(f"The mask {name} can't be read", got=problem.what, fix=fix) from None
        return size_wh, MaskTarget(partial(self._read, name))

    def _read(self, name: str) -> list[Mask]:
        return [mask_of(self.source.load(name))]


LINES = Layout(
    "SPR's rows of questions about points",
    "pointing",
    ("JSON lines", "a JSON list"),
    ("image", "question", "boxes", "width", "height"),
    _read_lines,
)
WHERE2PLACE = Layout(
    "Where2Place's JSON lines",
    "pointing",
    ("JSON lines",),
    ("question_id", "image", "text", "category"),
    _read_where2place,
)
WHERE2PLACE_PARQUET = Layout(
    "Where2Place's Parquet",
    "pointing",
    ("Parquet",),
    ("question_id", "question", "image", "mask"),
    _read_where2place_parquet,
)
POINT_BENCH = Layout(
    "Point-Bench's JSON",
    "pointing",
    ("a JSON list",),
    ("image_filename", "mask_filename", "user_input", "category"),
    _read_point_bench,
)
PIXMO = Layout(
    "PixMo-Points' Parquet",
    "pointing",
    ("Parquet",),
    ("image_url", "image_sha256", "label", "points", "masks"),
    _read_pixmo,
)
