"""Contact sheets: rows of a stage drawn over their images."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw, ImageFont

from spr.errors import InputError
from spr.images import load_image
from spr.report.rows import read_rows

CELL = 420
"""Longer side of an image on the sheet, in pixels."""
REGION_COLOUR = (255, 255, 255)
CAPTION, LABEL = 18, 15


def draw_sheet(stage: Path, out: Path, *, n: int = 12, skip: int = 0, columns: int = 4) -> int:
    """Draw rows ``skip`` to ``skip + n`` of `RUN/objects` or `RUN/regions` into a PNG; returns how many there were.

    Objects have a colour a category; those inside the region a thick outline, others a thin one. The region is white.

    Raises:
        InputError: if the rows have no objects to draw or an image can't be opened.
    """
    config = _config_of(stage)
    rows = list(read_rows(stage, n=n, skip=skip))
    if not rows or "objects" not in rows[0]:
        got = "no rows" if not rows else f"columns {', '.join(rows[0])}"
        raise InputError(f"{stage} can't be drawn", got=got, expected="RUN/objects or RUN/regions")
    cells = [_draw_row(row, config) for row in rows]
    sheet = _arrange(cells, min(columns, len(cells)))
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise InputError(f"{out} can't be written", got=error, expected="a file name such as sheet.png") from None
    return len(cells)


def _config_of(stage: Path) -> dict[str, Any]:
    path = stage.parent / "config.yaml"
    if not path.is_file():
        raise InputError(f"{stage} is not a stage of a run", got=f"no {path}", expected="RUN/objects or RUN/regions")
    section: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["annotations"]
    return section


def _draw_row(row: dict[str, Any], config: dict[str, Any]) -> Image.Image:
    size_wh = row["width"], row["height"]
    picture = load_image(Path(config["images"]), row["file_name"], size_wh, orientation=config["orientation"])
    scale = CELL / max(size_wh)
    picture = picture.resize((max(1, round(size_wh[0] * scale)), max(1, round(size_wh[1] * scale))))
    cell = Image.new("RGB", (CELL, CELL + CAPTION), (30, 30, 30))
    cell.paste(picture, (0, CAPTION))
    draw = ImageDraw.Draw(cell)
    font = ImageFont.load_default(size=12)
    for item in row["objects"]:
        inside = item.get("inside", True)
        colour = _colour(item["category"])
        box = [v * scale for v in item["box"]]
        _outline(draw, box, colour, 2 if inside else 1)
        label = item["category"] + (f" {item['score']:.2f}" if item["score"] is not None else "")
        if inside:
            _label(draw, (box[0], max(box[1] + CAPTION - LABEL, CAPTION)), label, colour, font)
    if "region" in row:
        _outline(draw, [v * scale for v in row["region"]], REGION_COLOUR, 2)
    name = row.get("query_id") or row["image_id"]
    inside_count = sum(item.get("inside", True) for item in row["objects"])
    caption = f"{name}  {size_wh[0]}x{size_wh[1]}  {inside_count} of {len(row['objects'])} objects"
    draw.text((3, 1), caption, fill=(230, 230, 230), font=font)
    return cell


def _outline(draw: ImageDraw.ImageDraw, box: Iterable[float], colour: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = box
    # A box may be thinner than its outline.
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
