"""CVAT XML: one file for all images, for images 1.1 and for video 1.1.

Source: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat. Rotations are in degrees, clockwise around the
center of the shape.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from spr.annotations.collection import Collection, Mark, bounds, rotated_corners
from spr.annotations.sources.yolo import OUTLINES, ROTATED
from spr.core.boxes import Box, Size
from spr.core.errors import InputError
from spr.core.images import ImageSource
from spr.core.paths import is_dir
from spr.core.progress import Progress
from spr.core.xml_input import read_elements

FRAMES = "frame_{:06d}.PNG"
"""How CVAT names the images of a video's frames."""
_SHAPES = ("box", "polygon", "ellipse", "mask", "polyline", "points", "cuboid", "skeleton", "tag")


def read_cvat(
    path: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    rotated: Literal["enclose", "drop"] = "enclose",
    frames: str = FRAMES,
    drop: Sequence[str] = (),
) -> Collection:
    """Read the XML of CVAT.

    Args:
        path: The XML file, or a folder with ``annotations.xml``.
        images: Image folder. None: ``images`` beside the file. Without one, image files are not looked for.
        split: Only images of this subset (CVAT's "subset"). None: all.
        rotated: Use the box around a rotated box, or drop it.
        frames: How the images of a video's frames are named, as a format of Python for the frame's number.
        drop: Drop objects with these marks: ``occluded``.
    """
    file = path / "annotations.xml" if is_dir(path) else path
    try:
        frames.format(0)
    except (ValueError, LookupError) as error:
        raise InputError("--frames is not a format", got=f"{frames}: {error}", expected=FRAMES) from None
    look = images is not None or is_dir(file.parent / "images")
    folder = images or (file.parent / "images" if look else file.parent)
    collection = Collection(ImageSource(folder, "apply"), look=look, drop=drop)
    size_wh: Size | None = None
    with Progress(f"reading {file.name}", unit="images and tracks") as progress:
        for element in read_elements(file, "CVAT file", "annotations"):
            if element.tag == "meta":
                collection.categories += [name.text or "" for name in element.iterfind(".//label/name")]
                size_wh = _size_wh(element.find(".//original_size"))
            elif element.tag in ("image", "track") and split not in (None, element.get("subset")):
                collection.notes[f"images and tracks of other subsets than {split}"] += 1
            elif element.tag == "image":
                _read_image(collection, element, rotated)
            elif element.tag == "track":
                _read_track(collection, element, rotated, size_wh, frames)
            progress.advance()
    return collection


def _size_wh(element: ET.Element | None) -> Size | None:
    try:
        return None if element is None else (_whole(element.findtext("width")), _whole(element.findtext("height")))
    except ValueError:
        return None


def _whole(text: str | None) -> int:
    return int((text or "").strip())


def _read_image(collection: Collection, element: ET.Element, rotated: str) -> None:
    name = element.get("name") or ""
    where = f"image {element.get('id')} {name}"
    try:
        number, size_wh = _whole(element.get("id")), (_whole(element.get("width")), _whole(element.get("height")))
    except ValueError:
        return collection.leave_out("image", where, "image_size_invalid", element.attrib)
    image = collection.add_image(where, name, size_wh, id=number if 0 <= number < 2**53 else None)
    for count, shape in enumerate(element, 1):
        at = f"{where}: {shape.tag} {count}"
        if image is None:
            collection.leave_out("object", at, "object_image_dropped")
        else:
            _read_shape(collection, at, image, shape, shape.get("label"), rotated)
    return None


def _read_track(collection: Collection, element: ET.Element, rotated: str, size_wh: Size | None, frames: str) -> None:
    for shape in element:
        where = f"track {element.get('id')}, frame {shape.get('frame')}"
        if shape.get("outside") == "1":
            collection.leave_out("object", where, "box_not_visible")
            continue
        try:
            frame = _whole(shape.get("frame"))
        except ValueError:
            collection.leave_out("object", where, "row_unreadable", "no number of a frame")
            continue
        name = frames.format(frame)
        if collection.look and not collection.images.has(name):
            stem = name.rpartition(".")[0]
            others = (f"{stem}{suffix}" for suffix in (".png", ".jpg", ".jpeg", ".JPG"))
            name = next((other for other in others if collection.images.has(other)), name)
        image = collection.find(name)
        if image is None:
            image = collection.add_image(where, name, size_wh, id=frame if 0 <= frame < 2**53 else None)
        if image is None:
            collection.leave_out("object", where, "object_image_dropped")
        else:
            _read_shape(collection, where, image, shape, element.get("label"), rotated)


def _read_shape(
    collection: Collection, where: str, image: int, shape: ET.Element, label: str | None, rotated: str
) -> None:
    if shape.tag not in _SHAPES[:4]:
        return collection.leave_out("object", where, "shape_without_box", shape.tag)
    try:
        degrees = float(shape.get("rotation") or 0)
        box = _box(shape, degrees)
    except ValueError:
        return collection.leave_out("object", where, "row_unreadable", shape.attrib)
    if shape.tag == "box" and degrees % 180:
        if rotated == "drop":
            return collection.leave_out("object", where, "box_rotated", f"{degrees}°")
        collection.notes[ROTATED] += 1
    elif shape.tag != "box":
        collection.notes[OUTLINES] += 1
    if shape.find("attribute") is not None:
        collection.notes["objects with attributes, which are not kept"] += 1
    marks: list[Mark] = ["occluded"] if shape.get("occluded") == "1" else []
    return collection.add_object(where, image, label or "", box, marks)


def _box(shape: ET.Element, degrees: float) -> Box:
    def number(name: str) -> float:
        return float(shape.get(name) or "none")

    if shape.tag == "box":
        x1, y1, x2, y2 = map(number, ("xtl", "ytl", "xbr", "ybr"))
        return (
            bounds(rotated_corners((x1, y1, x2, y2), degrees, ((x1 + x2) / 2, (y1 + y2) / 2)))
            if degrees
            else (x1, y1, x2, y2)
        )
    if shape.tag == "mask":
        left, top = number("left"), number("top")
        return left, top, left + number("width"), top + number("height")
    if shape.tag == "ellipse":
        x, y, rx, ry = map(number, ("cx", "cy", "rx", "ry"))
        return ellipse_box((x, y), (rx, ry), degrees)
    pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
    return bounds([(float(x), float(y)) for x, y in pairs])


def ellipse_box(center: tuple[float, float], radii: tuple[float, float], degrees: float) -> Box:
    """The smallest upright box around an ellipse whose first radius is rotated clockwise from the x axis.

    >>> tuple(map(round, ellipse_box((10, 10), (4, 2), 90)))
    (8, 6, 12, 14)
    """
    (x, y), (rx, ry) = center, radii
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    dx, dy = math.hypot(rx * cosine, ry * sine), math.hypot(rx * sine, ry * cosine)
    return x - dx, y - dy, x + dx, y + dy
