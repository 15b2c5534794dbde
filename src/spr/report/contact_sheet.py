"""Contact sheets: rows of a stage, drawn over their images."""

from __future__ import annotations

import colorsys
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from spr.core.errors import InputError
from spr.core.images import ImageProblem, ImageSource
from spr.core.outputs import check_output, write_output
from spr.core.paths import is_file
from spr.records import PreferencePair
from spr.report.show import read_rows
from spr.runs.reader import SIDES, Run

CELL = 420
"""Length of the longer side of an image on the sheet, in pixels."""
_SOFTWARE, _WHAT = "spr show --draw", "a drawing of `spr show --draw`"
CAPTION, LABEL = 18, 15
CHOSEN, REJECTED = (80, 230, 120), (255, 90, 90)
_Colour: TypeAlias = tuple[int, int, int]


def draw_sheet(stage: Path, out: Path, *, n: int = 12, skip: int = 0, columns: int = 4) -> int:
    """Draw rows ``skip`` to ``skip + n`` of a run's objects, regions or pairs into the PNG ``out``; returns how many.

    Each category has its own colour. Objects inside the region have a thick outline, others a thin one. The region is
    white. For pairs, the boxes of the chosen answer are green and those of the rejected answer red. An image that can't
    be opened leaves its cell grey, with the reason. ``columns`` is the number of images per line.

    Raises:
        InputError: if ``stage`` is not ``RUN/objects``, ``RUN/regions`` or ``RUN/pairs``, or has no rows.
        RunError: if ``out`` can't be written, or is a file that is not such a drawing.
    """
    check_output(out, _WHAT, _is_ours, folder=False)
    drawable = "RUN/objects, RUN/regions or RUN/pairs"
    config = stage.parent / "config.yaml"
    if not is_file(config):
        raise InputError(f"{stage} is not a stage of a run", got=f"no {config}", expected=drawable)
    images = Run(stage.parent).config.annotations.image_source
    rows = list(read_rows(stage, n=n, skip=skip))
    if not rows or not {"objects", "chosen_spans"} & set(rows[0]):
        got = f"columns {', '.join(rows[0])}" if rows else "no rows"
        raise InputError(f"{stage} can't be drawn", got=got, expected=drawable)
    columns = min(columns, len(rows))
    sheet = Image.new("RGB", (columns * CELL, -(-len(rows) // columns) * (CELL + CAPTION)))
    for k, row in enumerate(rows):
        sheet.paste(_draw_row(row, images, CELL), (k % columns * CELL, k // columns * (CELL + CAPTION)))
    sink, info = io.BytesIO(), PngInfo()
    info.add_text("Software", _SOFTWARE)
    sheet.save(sink, "PNG", pnginfo=info)
    write_output(out, sink.getvalue(), _WHAT, _is_ours)
    return len(rows)


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(256)  # Pillow writes texts before the pixels
    return start.startswith(b"\x89PNG") and b"Software\0" + _SOFTWARE.encode() in start


def draw_pair(pair: PreferencePair, images: ImageSource, *, side: int = 840) -> Image.Image:
    """Draw a pair over its image: the boxes of the chosen answer in green, those of the rejected answer in red.

    Returns an RGB picture of ``side`` × ``side`` pixels, with a line of text above. If the image can't be opened, the
    picture is grey, with the reason.
    """
    return _draw_row(pair.to_row(), images, side)


def _draw_row(row: dict[str, Any], images: ImageSource, side: int) -> Image.Image:
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
    for box, colour, width, label in _marks(row):
        x1, y1, x2, y2 = (v * scale for v in box)
        # Boxes that are thinner than their outline are widened.
        corners = (x1, y1 + CAPTION, max(x2, x1 + 1), max(y2, y1 + 1) + CAPTION)
        draw.rectangle(corners, outline=(0, 0, 0), width=width + 1)
        draw.rectangle(corners, outline=colour, width=width)
        if label:
            at_xy = (x1, max(y1 + CAPTION - LABEL, CAPTION))
            draw.rectangle(draw.textbbox(at_xy, label, font=font), fill=(0, 0, 0))
            draw.text(at_xy, label, fill=colour, font=font)
    draw.text((3, 1), _caption(row), fill=(230, 230, 230), font=font)
    return cell


def _marks(row: dict[str, Any]) -> Iterator[tuple[Sequence[float], _Colour, int, str]]:
    """The boxes to draw, in order: xyxy pixels of the original image, colour, line width and label."""
    if "chosen_spans" in row:
        for name, colour, width in (("rejected_spans", REJECTED, 1), ("chosen_spans", CHOSEN, 2)):
            for span in row[name]:
                yield from ((box, colour, width, span["phrase"]) for box in span["boxes"])
    else:
        for item in row["objects"]:
            inside, category = item.get("inside", True), item["category"]
            label = category if item["score"] is None else f"{category} {item['score']:.2f}"
            yield item["box"], _colour(category), 2 if inside else 1, label if inside else ""
    if "region" in row:
        yield row["region"], (255, 255, 255), 2, ""


def _caption(row: dict[str, Any]) -> str:
    name = row.get("query_id") or row["image_id"]
    if "chosen_spans" in row:
        boxes = (f"{side} {sum(len(span['boxes']) for span in row[f'{side}_spans'])}" for side in SIDES)
        return f"{name}  margin {row['margin']:.3f}  {', '.join(boxes)} boxes"
    inside = sum(item.get("inside", True) for item in row["objects"])
    return f"{name}  {row['width']}x{row['height']}  {inside} of {len(row['objects'])} objects"


def _colour(category: str) -> _Colour:
    hue = zlib.crc32(category.encode()) % 360 / 360
    red, green, blue = colorsys.hls_to_rgb(hue, 0.62, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
