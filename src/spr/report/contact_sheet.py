"""Contact sheets: rows of a stage, drawn over their images."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from spr.core.errors import InputError
from spr.core.images import ImageProblem, ImageSource
from spr.records import PreferencePair
from spr.report.show import read_rows
from spr.runs.reader import Run

CELL = 420
"""Length of the longer side of an image on the sheet, in pixels."""
REGION_COLOUR = (255, 255, 255)
CAPTION, LABEL = 18, 15
CHOSEN, REJECTED = (80, 230, 120), (255, 90, 90)
DRAWABLE = "RUN/objects, RUN/regions or RUN/pairs"


def draw_sheet(stage: Path, out: Path, *, n: int = 12, skip: int = 0, columns: int = 4) -> int:
    """Draw rows ``skip`` to ``skip + n`` of a run's objects, regions or pairs into a PNG.

    Each category has its own colour. Objects inside the region have a thick outline, others a thin one. The region is
    white. For pairs, the boxes of the chosen answer are green and those of the rejected answer red. An image that can't
    be opened leaves its cell grey, with the reason.

    Args:
        stage: ``RUN/objects``, ``RUN/regions`` or ``RUN/pairs``.
        out: The PNG to write.
        n: Number of rows.
        skip: Number of rows to skip first.
        columns: Number of images per line.

    Returns:
        The number of rows drawn.

    Raises:
        InputError: if the rows have nothing to draw, or the PNG can't be written.
    """
    images = _images_of(stage)
    rows = list(read_rows(stage, n=n, skip=skip))
    if not rows or not {"objects", "chosen_spans"} & set(rows[0]):
        got = "no rows" if not rows else f"columns {', '.join(rows[0])}"
        raise InputError(f"{stage} can't be drawn", got=got, expected=DRAWABLE)
    cells = [_draw_row(row, images) for row in rows]
    sheet = _arrange(cells, min(columns, len(cells)))
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise InputError(f"{out} can't be written", got=error, expected="a file name such as sheet.png") from None
    return len(cells)


def draw_pair(pair: PreferencePair, images: ImageSource, *, side: int = 840) -> Image.Image:
    """Draw a pair over its image: the boxes of the chosen answer in green, those of the rejected answer in red.

    Args:
        pair: The pair.
        images: The source of its image. If the image can't be opened, the picture is grey, with the reason.
        side: Length of the longer side of the image, in pixels.

    Returns:
        An RGB picture of ``side`` × ``side`` pixels, with a line of text above.
    """
    return _draw_row(pair.to_row(), images, side)


def _images_of(stage: Path) -> ImageSource:
    path = stage.parent / "config.yaml"
    if not path.is_file():
        raise InputError(f"{stage} is not a stage of a run", got=f"no {path}", expected=DRAWABLE)
    return Run(stage.parent).config.annotations.image_source


def _draw_row(row: dict[str, Any], images: ImageSource, side: int = CELL) -> Image.Image:
    size_wh = row["width"], row["height"]
    try:
        picture = images.load(row["file_name"], size_wh)
    except ImageProblem as problem:
        picture = Image.new("RGB", size_wh, (60, 60, 60))
        ImageDraw.Draw(picture).text((4, 4), problem.reason, font=ImageFont.load_default(size=max(size_wh) / 20))
    scale = side / max(size_wh)
    picture = picture.resize((max(1, round(size_wh[0] * scale)), max(1, round(size_wh[1] * scale))))
    cell = Image.new("RGB", (side, side + CAPTION), (30, 30, 30))
    cell.paste(picture, (0, CAPTION))
    draw = ImageDraw.Draw(cell)
    font = ImageFont.load_default(size=12)
    for mark in _marks_of_pair(row) if "chosen_spans" in row else _marks_of_objects(row):
        box = [v * scale for v in mark.box]
        _outline(draw, box, mark.colour, mark.width)
        if mark.label:
            _label(draw, (box[0], max(box[1] + CAPTION - LABEL, CAPTION)), mark.label, mark.colour, font)
    if "region" in row:
        _outline(draw, [v * scale for v in row["region"]], REGION_COLOUR, 2)
    draw.text((3, 1), _caption(row), fill=(230, 230, 230), font=font)
    return cell


class Mark(NamedTuple):
    """A box to draw: xyxy pixels of the original image, RGB colour, line width in pixels of the sheet, and label."""

    box: list[float]
    colour: tuple[int, int, int]
    width: int
    label: str


def _marks_of_objects(row: dict[str, Any]) -> Iterator[Mark]:
    for item in row["objects"]:
        inside = item.get("inside", True)
        label = item["category"] + (f" {item['score']:.2f}" if item["score"] is not None else "")
        yield Mark(item["box"], _colour(item["category"]), 2 if inside else 1, label if inside else "")


def _marks_of_pair(row: dict[str, Any]) -> Iterator[Mark]:
    for name, colour, width in (("rejected_spans", REJECTED, 1), ("chosen_spans", CHOSEN, 2)):
        for span in row[name]:
            for box in span["boxes"]:
                yield Mark(box, colour, width, span["phrase"])


def _caption(row: dict[str, Any]) -> str:
    name = row.get("query_id") or row["image_id"]
    if "chosen_spans" in row:
        boxes = f"chosen {_boxes(row, 'chosen')}, rejected {_boxes(row, 'rejected')} boxes"
        return f"{name}  margin {row['margin']:.3f}  {boxes}"
    inside = sum(item.get("inside", True) for item in row["objects"])
    return f"{name}  {row['width']}x{row['height']}  {inside} of {len(row['objects'])} objects"


def _boxes(row: dict[str, Any], which: str) -> int:
    return sum(len(span["boxes"]) for span in row[f"{which}_spans"])


def _outline(draw: ImageDraw.ImageDraw, box: Iterable[float], colour: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = box
    # Boxes that are thinner than their outline are widened.
    corners = (x1, y1 + CAPTION, max(x2, x1 + 1), max(y2, y1 + 1) + CAPTION)
    draw.rectangle(corners, outline=(0, 0, 0), width=width + 1)
    draw.rectangle(corners, outline=colour, width=width)


def _label(
    draw: ImageDraw.ImageDraw,
    at_xy: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    draw.rectangle(draw.textbbox(at_xy, text, font=font), fill=(0, 0, 0))
    draw.text(at_xy, text, fill=colour, font=font)


def _colour(category: str) -> tuple[int, int, int]:
    hue = zlib.crc32(category.encode()) % 360 / 360
    red, green, blue = colorsys.hls_to_rgb(hue, 0.62, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _arrange(cells: list[Image.Image], columns: int) -> Image.Image:
    lines = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * CELL, lines * (CELL + CAPTION)))
    for k, cell in enumerate(cells):
        sheet.paste(cell, (k % columns * CELL, k // columns * (CELL + CAPTION)))
    return sheet
