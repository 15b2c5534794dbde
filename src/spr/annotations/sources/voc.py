"""Pascal VOC: an XML file per image, with boxes in pixels that are counted from 1.

Source: the development kit of http://host.robots.ox.ac.uk/pascal/VOC/voc2012. The pixels ``xmin`` and ``xmax`` are both
part of the object, so a box covers ``xmin - 1`` to ``xmax`` in continuous pixels.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from spr.annotations.collection import Collection, Mark, bounds
from spr.annotations.sources.yolo import LARGEST_LABELS, OUTLINES, SUFFIXES
from spr.core.boxes import Size
from spr.core.errors import InputError
from spr.core.images import ImageSource
from spr.core.paths import is_dir, is_file
from spr.core.progress import Progress
from spr.core.text_input import read_text
from spr.core.xml_input import read_elements

ZERO_BASED = "boxes with xmin or ymin 0, so the pixels may be counted from 0 (--zero-based)"
_MARKS: tuple[Mark, ...] = ("difficult", "truncated", "occluded")


def read_voc(
    path: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    zero_based: bool = False,
    drop: Sequence[str] = (),
) -> Collection:
    """Read Pascal VOC annotations.

    Args:
        path: The dataset's folder with ``Annotations/`` and ``JPEGImages/``, or a folder with XML files.
        images: Image folder. None: ``JPEGImages``, or the folder with the XML files.
        split: A list of ``ImageSets/Main``, such as ``train``. None: all XML files.
        zero_based: Pixels are counted from 0, and ``xmax`` is the right edge of the box, as several tools write it.
        drop: Drop objects with these marks: ``difficult``, ``truncated``, ``occluded``.
    """
    labels = path / "Annotations" if is_dir(path / "Annotations") else path
    if images is None:
        images = path / "JPEGImages" if is_dir(path / "JPEGImages") else labels
    files = [file for file in sorted(labels.rglob("*.xml")) if not file.name.startswith(".")]
    if split is not None:
        listed = path / "ImageSets" / "Main" / f"{split}.txt"
        if not is_file(listed):
            found = ", ".join(sorted(file.stem for file in listed.parent.glob("*.txt"))[:20]) or "none"
            raise InputError(f"There is no split {split}", got=found, expected=f"the file {listed}", fix="--split")
        lines = [line.strip() for line in read_text(listed, "List of images").splitlines()]
        # Lists of one category have a second column, 1, -1 or 0.
        names = {*lines, *(re.sub(r"\s+(-1|0|1)$", "", line) for line in lines)}
        files = [file for file in files if file.stem in names]
    if not files:
        raise InputError(f"{labels} has no XML files", expected="Pascal VOC annotations, one XML file per image")
    # Without a single image, the annotations are converted alone.
    look = any(file.suffix.lower() in SUFFIXES for file in images.rglob("*"))
    collection = Collection(ImageSource(images, "apply"), look=look, drop=drop)
    with Progress("reading labels", len(files), "files") as progress:
        for file in files:
            _read_file(collection, file, labels, images, zero_based)
            progress.advance()
    return collection


def _read_file(collection: Collection, file: Path, labels: Path, images: Path, zero_based: bool) -> None:
    where = file.relative_to(labels).as_posix()
    try:
        if file.stat().st_size > LARGEST_LABELS:
            raise InputError(f"{file.stat().st_size:,} bytes")
        elements = list(read_elements(file, "VOC file", "annotation"))
    except InputError as error:
        return collection.leave_out("image", where, "label_file_unreadable", error.got or error.what)
    fields = {element.tag: element for element in elements}
    image = collection.add_image(where, _file_name(fields, file, labels, images), _size_wh(fields.get("size")))
    for number, item in enumerate((element for element in elements if element.tag == "object"), 1):
        if image is None:
            collection.leave_out("object", f"{where}: object {number}", "object_image_dropped")
        else:
            _read_object(collection, f"{where}: object {number}", image, item, zero_based)
    return None


def _file_name(fields: dict[str, ET.Element], file: Path, labels: Path, images: Path) -> str:
    """The image's name: ``filename``, or that of the XML file; beside the XML file if images are below folders, too."""
    folder = file.parent.relative_to(labels)
    text = (fields["filename"].text or "").strip() if "filename" in fields else ""
    name = PurePosixPath(text.replace("\\", "/")).name
    if not name or not is_file(images / folder / name):
        stems = [file.stem, *([PurePosixPath(name).stem, name] if name else [])]
        for other in (images / folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES):
            if is_file(other):
                name = other.name
    return (folder / name).as_posix() if name else ""


def _size_wh(element: ET.Element | None) -> Size | None:
    try:
        width, height = (int(float(_text(element, name))) for name in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _read_object(collection: Collection, where: str, image: int, item: ET.Element, zero_based: bool) -> None:
    marks: list[Mark] = [mark for mark in _MARKS if _text(item, mark) not in ("", "0", "false", "Unspecified")]
    edges = item.find("bndbox")
    outline = item.find("polygon")
    try:
        if edges is not None:
            x1, y1, x2, y2 = (float(_text(edges, name)) for name in ("xmin", "ymin", "xmax", "ymax"))
            if not zero_based:
                collection.notes[ZERO_BASED] += min(x1, y1) == 0
                x1, y1 = x1 - 1, y1 - 1
        elif outline is not None:  # Roboflow: x1, y1, x2, y2, …
            numbers = [float(child.text or "") for child in outline]
            x1, y1, x2, y2 = bounds(list(zip(numbers[::2], numbers[1::2], strict=True)))
            collection.notes[OUTLINES] += 1
        else:
            return collection.leave_out("object", where, "shape_without_box", ", ".join(child.tag for child in item))
    except ValueError:
        return collection.leave_out("object", where, "row_unreadable", "bndbox without four numbers")
    if (parts := len(item.findall("part"))) > 0:
        collection.notes["boxes of parts (head, hand, foot), which are not converted"] += parts
    return collection.add_object(where, image, _text(item, "name"), (x1, y1, x2, y2), marks)


def _text(element: ET.Element | None, name: str) -> str:
    return "" if element is None else (element.findtext(name) or "").strip()
