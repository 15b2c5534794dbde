"""Contact sheets: rows of a stage, drawn over their images."""

from __future__ import annotations

import colorsys
import io
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeAlias

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from spr.core.errors import InputError
from spr.core.images import ImageProblem, ImageSource
from spr.core.outputs import check_output, write_output
from spr.core.paths import is_file
from spr.core.terminal import one_line
from spr.core.views import crop_window
from spr.records import PreferencePair, Size
from spr.report.show import read_rows
from spr.runs.reader import SIDES, Run

CELL = 420
"""Length of the longer side of an image on the sheet, in pixels."""
_COMMAND = "spr show --draw"
CAPTION, LABEL, GAP = 18, 15, 6
LEGEND_LINES = 8
"""Lines below an image that say what its numbers stand for; one more says how many are left out."""
CHOSEN, REJECTED = (80, 230, 120), (255, 90, 90)
_GREY = (30, 30, 30)
_VIEW = 1.3
"""Width and height of the shown part of an image, relative to the region."""
Colour: TypeAlias = tuple[int, int, int]
_Rectangle: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Mark:
    """A box, xyxy pixels of the original image, with its label, or "" without one; the corners of a point are equal."""

    box: Sequence[float]
    colour: Colour
    width: int
    label: str = ""
    lettered: bool = False
    is_point: bool = False

    @property
    def key(self) -> tuple[str, bool]:
        """What shares a number or letter."""
        return self.label, self.lettered


def draw_sheet(stage: Path, out: Path, *, n: int = 12, skip: int = 0, columns: int = 4) -> int:
    """Draw rows ``skip`` to ``skip + n`` of a run's objects, regions, pairs or negatives into the PNG ``out``.

    Returns how many rows were drawn.

    Regions and pairs show their region, which is white, some of its surroundings and all labelled boxes. The text below
    an image says what the numbers and letters of its boxes stand for. Each category has its own colour; objects inside
    the region have a thick outline and a number, others a thin one. For pairs, the boxes of the chosen answer are
    green, with numbers, and those of the rejected answer red, with letters. An image that can't be opened leaves its
    cell grey, with the reason. ``columns`` is the number of images per line.

    Raises:
        InputError: if ``stage`` is not the folder of one of these tables, or has no rows.
        RunError: if ``out`` can't be written, or is a file that is not such a drawing.
    """
    check_drawing(out, _COMMAND)
    drawable = "RUN/objects, RUN/regions, RUN/pairs or RUN/negatives"
    config = stage.parent / "config.yaml"
    if not is_file(config):
        raise InputError(f"{stage} is not a stage of a run", got=f"no {config}", expected=drawable)
    images = Run(stage.parent).config.annotations.image_source
    rows = list(read_rows(stage, n=n, skip=skip))
    if not rows or not {"objects", "chosen_spans"} & set(rows[0]):
        got = f"columns {', '.join(rows[0])}" if rows else "no rows"
        raise InputError(f"{stage} can't be drawn", got=got, expected=drawable)
    cells = [_draw_row(row, images, CELL) for row in rows]
    lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in line) + GAP for line in lines]
    sheet = Image.new("RGB", (len(lines[0]) * (CELL + GAP), sum(heights)))
    for line, top in zip(lines, accumulate(heights, initial=0), strict=False):
        for column, cell in enumerate(line):
            sheet.paste(cell, (column * (CELL + GAP), top))
    write_drawing(sheet, out, _COMMAND)
    return len(rows)


def check_drawing(out: Path, command: str) -> None:
    """Raise `RunError` unless a command may write a drawing to ``out`` (`spr.core.outputs`)."""
    check_output(out, f"a drawing of `{command}`", partial(_is_drawing, command), folder=False)


def write_drawing(picture: Image.Image, out: Path, command: str) -> None:
    """Write a picture as PNG, after `check_drawing`."""
    sink, info = io.BytesIO(), PngInfo()
    info.add_text("Software", command)
    picture.save(sink, "PNG", pnginfo=info)
    write_output(out, sink.getvalue(), f"a drawing of `{command}`", partial(_is_drawing, command))


def _is_drawing(command: str, path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(256)  # Pillow writes texts before the pixels
    return start.startswith(b"\x89PNG") and b"Software\0" + command.encode() in start


def draw_pair(pair: PreferencePair, images: ImageSource, *, side: int = 840) -> Image.Image:
    """Draw a pair over its image: the boxes of the chosen answer in green, those of the rejected answer in red.

    Returns an RGB picture, ``side`` pixels wide: a line of text, the part of the image with the region and all boxes,
    whose longer side is ``side`` pixels, and what the numbers and letters of the boxes stand for. If the image can't be
    opened, the picture is grey, with the reason.
    """
    return _draw_row(pair.to_row(), images, side)


def _draw_row(row: dict[str, Any], images: ImageSource, side: int) -> Image.Image:
    size_wh = row["width"], row["height"]
    try:
        picture = images.load(row["file_name"], size_wh)
    except ImageProblem as problem:
        picture = Image.new("RGB", size_wh, (60, 60, 60))
        ImageDraw.Draw(picture).text((4, 4), problem.reason, font=ImageFont.load_default(size=max(size_wh) / 20))
    marks = list(_marks(row))
    return draw_marks(picture, marks, _caption(row), side, view=_view(row, marks, size_wh))


def draw_marks(
    picture: Image.Image, marks: Sequence[Mark], caption: str, side: int, *, view: _Rectangle | None = None
) -> Image.Image:
    """Draw boxes over an RGB image, or over the part ``view`` of it, whose longer side becomes ``side`` pixels.

    Returns an RGB picture, ``side`` pixels wide: the caption, the image, and what the numbers of the boxes stand for.
    """
    view = view or (0, 0, *picture.size)
    scale = side / max(view[2] - view[0], view[3] - view[1])
    picture = picture.crop(view)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    font = ImageFont.load_default(size=12)
    draw = ImageDraw.Draw(picture)
    signs = _signs(marks)
    tags: list[tuple[tuple[float, float], Mark]] = []
    for mark in marks:
        x1, y1, x2, y2 = ((v - view[k % 2]) * scale for k, v in enumerate(mark.box))
        # Boxes that are thinner than their outline are widened.
        corners = (x1, y1, max(x2, x1 + 1), max(y2, y1 + 1))
        if mark.is_point:
            radius = 2 + mark.width
            draw.ellipse((x1 - radius, y1 - radius, x1 + radius, y1 + radius), fill=mark.colour, outline=(0, 0, 0))
            x1, y1 = x1 + radius + 1, y1 + radius + 1  # the label does not hide the point
        else:
            draw.rectangle(corners, outline=(0, 0, 0), width=mark.width + 1)
            draw.rectangle(corners, outline=mark.colour, width=mark.width)
        if mark.label:
            tags.append(((x1, y1), mark))
    taken: list[_Rectangle] = []
    for wanted, mark in tags:
        sign = signs[mark.key]
        size = round(draw.textlength(sign, font=font)) + 4, LABEL
        x, y = _free_place(wanted, size, picture.size, taken)
        taken.append((x, y, x + size[0], y + size[1]))
        draw.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), fill=(0, 0, 0))
        draw.text((x + 2, y), sign, fill=mark.colour, font=font)
    legend = _legend(marks, signs, side, font)
    lines = 1 + max((line for line, *_ in legend), default=-1)
    cell = Image.new("RGB", (side, CAPTION + picture.height + lines * LABEL), _GREY)
    cell.paste(picture, (0, CAPTION))
    draw = ImageDraw.Draw(cell)
    draw.text((3, 1), caption, fill=(230, 230, 230), font=font)
    for line, x, text, colour in legend:
        draw.text((x, CAPTION + picture.height + line * LABEL), text, fill=colour, font=font)
    return cell


def _view(row: dict[str, Any], marks: Sequence[Mark], size_wh: Size) -> _Rectangle:
    """The part of the image that is drawn: the enlarged region and all labelled boxes, or the whole image."""
    if "region" not in row:
        return 0, 0, *size_wh
    boxes = [crop_window(row["region"], size_wh, _VIEW), *(mark.box for mark in marks if mark.label)]
    left, top = (max(0, math.floor(min(box[k] for box in boxes))) for k in (0, 1))
    right, bottom = (min(size_wh[k - 2], math.ceil(max(box[k] for box in boxes))) for k in (2, 3))
    return left, top, right, bottom


def _free_place(
    wanted: tuple[float, float], size: tuple[int, int], picture: tuple[int, int], taken: Sequence[_Rectangle]
) -> tuple[int, int]:
    """The place for a tag of ``size`` that is nearest to the wanted one and covers no other tag, if there is one."""
    last = max(picture[0] - size[0], 0), max(picture[1] - size[1], 0)
    x, y = (min(max(round(value), 0), most) for value, most in zip(wanted, last, strict=True))

    def free(place: tuple[int, int]) -> bool:
        left, top = place
        right, bottom = left + size[0], top + size[1]
        return all(right <= x1 or x2 <= left or bottom <= y1 or y2 <= top for x1, y1, x2, y2 in taken)

    if free((x, y)):
        return x, y
    # The nearest free place touches the picture's border, another tag, or keeps one coordinate.
    xs = {x, 0, last[0], *(x2 for _, _, x2, _ in taken), *(x1 - size[0] for x1, *_ in taken)}
    ys = {y, 0, last[1], *(y2 for *_, y2 in taken), *(y1 - size[1] for _, y1, *_ in taken)}
    places = [(a, b) for a in xs for b in ys if 0 <= a <= last[0] and 0 <= b <= last[1] and free((a, b))]
    return min(places, key=lambda place: (abs(place[0] - x) + abs(place[1] - y), place), default=(x, y))


def _signs(marks: Sequence[Mark]) -> dict[tuple[str, bool], str]:
    """The number or, for rejected answers, the letter of each label."""
    signs: dict[tuple[str, bool], str] = {}
    for mark in sorted((mark for mark in marks if mark.label), key=lambda mark: mark.lettered):
        number = sum(lettered == mark.lettered for _, lettered in signs)
        signs.setdefault(mark.key, _letters(number) if mark.lettered else str(number + 1))
    return signs


def _letters(number: int) -> str:
    """a, b, …, z, aa, ab, …"""
    return (_letters(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def _legend(
    marks: Sequence[Mark], signs: Mapping[tuple[str, bool], str], width: int, font: Any
) -> list[tuple[int, int, str, Colour]]:
    """What the signs stand for, as (line, x, text, colour), in lines of ``width`` pixels."""
    counts = Counter(mark.key for mark in marks if mark.label)
    colours = {mark.key: mark.colour for mark in marks}
    entries: list[tuple[int, int, str, Colour]] = []
    line, x = 0, 3
    for key, sign in signs.items():
        number = f" ({counts[key]})" if counts[key] > 1 else ""
        text = f"{sign}: {shorten(one_line(key[0]), 60, placeholder='…')}{number}"
        length = round(font.getlength(text))
        if x > 3 and x + length > width:
            line, x = line + 1, 3
        if line == LEGEND_LINES:
            entries.append((line, x, f"… and {len(signs) - len(entries)} more", (230, 230, 230)))
            break
        entries.append((line, x, text, colours[key]))
        x += length + 12
    return entries


def _marks(row: dict[str, Any]) -> Iterator[Mark]:
    """The boxes to draw, in order."""
    if "region" in row:
        yield Mark(row["region"], (255, 255, 255), 2)
    if "chosen_spans" in row:
        for name, colour, width in (("rejected_spans", REJECTED, 1), ("chosen_spans", CHOSEN, 2)):
            for span in row[name]:
                about = colour, width, span["phrase"] or row.get("category") or "(no phrase)", name == "rejected_spans"
                for box in span["boxes"]:
                    yield Mark(box, *about)
                for x, y in span.get("points") or ():
                    yield Mark((x, y, x, y), *about, is_point=True)
    else:
        for item in row["objects"]:
            inside, category = item.get("inside", True), item["category"]
            label = category if item["score"] is None else f"{category} {item['score']:.2f}"
            yield Mark(item["box"], colour_of(category), 2 if inside else 1, label if inside else "")


def _caption(row: dict[str, Any]) -> str:
    name = row.get("query_id") or row["image_id"]
    if "expression" in row:
        return f"{name}  {row['expression']}"
    if "chosen_spans" in row:
        boxes = (f"{side} {sum(len(span['boxes']) for span in row[f'{side}_spans'])}" for side in SIDES)
        return f"{name}  margin {row['margin']:.3f}  {', '.join(boxes)} boxes"
    inside = sum(item.get("inside", True) for item in row["objects"])
    return f"{name}  {row['width']}x{row['height']}  {inside} of {len(row['objects'])} objects"


def colour_of(category: str) -> Colour:
    """The colour of a category or phrase: always the same, and light enough for a dark ground."""
    hue = zlib.crc32(category.encode()) % 360 / 360
    red, green, blue = colorsys.hls_to_rgb(hue, 0.62, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
