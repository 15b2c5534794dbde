"""Label Studio: a JSON list of tasks, with boxes in percent of the image as the annotator saw it.

Source: https://labelstud.io/guide/export and ``/tags/rectanglelabels``; names of uploaded files:
``label_studio/data_import/models.py`` and Django's ``get_valid_filename``. A rotation is in degrees, clockwise around
the box's first corner ``(x, y)``, and an ellipse's around its center. Browsers show an image as EXIF orients it, so
that is what percentages refer to, whatever the recorded size says.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from spr.annotations.collection import Collection, bounds, rotated_corners
from spr.annotations.sources.cvat import ellipse_box
from spr.annotations.sources.yolo import OUTLINES, ROTATED, SUFFIXES
from spr.core.boxes import Box, Size
from spr.core.documents import parse_json
from spr.core.errors import InputError
from spr.core.images import ImageProblem, ImageSource
from spr.core.terminal import count_text
from spr.core.text_input import read_bytes

_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")
_EXPECTED = "the format JSON or JSON-MIN of Label Studio's export: a list of tasks"
_ANSWERS = ("choices", "textarea", "rating", "taxonomy", "number", "datetime", "relation", "pairwise", "ranker")


def read_label_studio(
    path: Path,
    *,
    images: Path | None = None,
    rotated: Literal["enclose", "drop"] = "enclose",
) -> Collection:
    """Read Label Studio's export in the formats JSON and JSON-MIN.

    Args:
        path: The JSON file.
        images: Folder with the images. An uploaded file is also found under its own name, if no other file gets the
            same name on upload: Label Studio puts a code before it, writes ``_`` for spaces, and omits brackets and
            other characters. With the images, also tasks without a box are read, whose size the JSON does not have.
            None: the folder of the file, and image files are not looked for.
        rotated: Use the box around a rotated box, or drop it.
    """
    try:
        tasks = parse_json(read_bytes(path, "Label Studio file", expected=_EXPECTED))
    except ValueError as error:
        raise InputError(f"{path} is not JSON", got=error, expected=_EXPECTED) from None
    if not isinstance(tasks, list):
        raise InputError(f"{path} is not a Label Studio export", got=type(tasks).__name__, expected=_EXPECTED)
    collection = Collection(ImageSource(images or path.parent, "apply"), look=images is not None)
    uploads = defaultdict[str, list[str]](list)
    for name in sorted(item.name for item in images.iterdir()) if images is not None else ():
        uploads[_uploaded(name)].append(name)
    for number, task in enumerate(tasks, 1):
        if isinstance(task, dict):
            _read_task(collection, f"task {task.get('id', number)}", task, rotated, uploads)
        else:
            collection.leave_out("image", f"task {number}", "entry_not_an_object", task)
    return collection


def _read_task(
    collection: Collection, where: str, task: dict[str, Any], rotated: str, uploads: Mapping[str, list[str]]
) -> None:
    data = task["data"] if isinstance(task.get("data"), dict) else task
    address = _address(data)
    results = _results(collection, where, task)
    shapes, labels = [], dict[str, list[str]]()
    for result in results:
        if not isinstance(result, dict) or not isinstance(value := result.get("value", result), dict):
            collection.leave_out("object", where, "entry_not_an_object", result)
            continue
        names = [
            name for key, names in value.items() if key.endswith("labels") and isinstance(names, list) for name in names
        ]
        if (key := result.get("id")) is not None and names:
            labels[str(key)] = [str(name) for name in names]
        if result.get("type") not in ("labels", *_ANSWERS):
            shapes.append((result, value, [str(name) for name in names]))
    sizes = {size for result, _, _ in shapes if (size := _size_wh(result)) is not None}
    size_wh = next(iter(sizes)) if len(sizes) == 1 else None
    if not collection.look and size_wh is None:
        if not shapes:
            collection.notes["tasks without a box: the size of their image is unknown (--images)"] += 1
            return
        collection.leave_out("image", where, "image_size_invalid", sorted(sizes) or "no original_width")
        return
    number = task.get("id") if isinstance(task.get("id"), int) else None
    url = address if address.startswith(("http://", "https://")) else None
    try:
        name = _file_name(collection, address, uploads)
        image = collection.add_image(where, name, size_wh, id=number, url=url, displayed=True)
    except ImageProblem as problem:
        collection.leave_out("image", where, problem.reason, problem.got)
        image = None
    for count, (result, value, names) in enumerate(shapes, 1):
        at = f"{where}: {result.get('type') or 'box'} {count}"
        if image is None:
            collection.leave_out("object", at, "object_image_dropped")
        else:
            names = names or labels.get(str(result.get("id")), [])
            _read_shape(collection, at, image, result, value, names, rotated)


def _address(data: dict[str, Any]) -> str:
    """The image's address: the value of `image`, or else the first that ends like an image's name."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    like = (text for text in texts.values() if PurePosixPath(urlsplit(text).path).suffix.lower() in SUFFIXES)
    try:
        return texts.get("image") or texts.get("img") or next((text for text in like), "")
    except ValueError:
        return ""


def _results(collection: Collection, where: str, task: dict[str, Any]) -> list[Any]:
    """The results of one annotation: the ground truth, or else the one that was changed last."""
    if not isinstance(task.get("data"), dict):  # JSON-MIN
        return [item for value in task.values() if isinstance(value, list) for item in value if _is_shape(item)]
    if task.get("predictions"):
        collection.notes["tasks with predictions, which are not converted"] += 1
    listed = task.get("annotations", task.get("completions"))
    annotations = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    valid = []
    for item in annotations:
        if item.get("was_cancelled"):
            collection.leave_out("image", f"{where}: annotation {item.get('id')}", "annotation_cancelled")
        else:
            valid.append(item)
    if not valid:
        return []
    best = max(valid, key=lambda item: (bool(item.get("ground_truth")), str(item.get("updated_at") or "")))
    for item in valid:
        if item is not best:
            at, results = f"{where}: annotation {item.get('id')}", item.get("result")
            got = count_text(len(results) if isinstance(results, list) else 0, "results")
            collection.leave_out("object", at, "annotation_superseded", got)
    return best["result"] if isinstance(best.get("result"), list) else []


def _is_shape(item: object) -> bool:
    return isinstance(item, dict) and "original_width" in item


def _size_wh(result: dict[str, Any]) -> Size | None:
    width, height = result.get("original_width"), result.get("original_height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else None


def _uploaded(name: str) -> str:
    """What Label Studio calls a file that is uploaded, after the code that it puts before the name.

    >>> _uploaded("street 1 (copy).jpg")
    'street_1_copy.jpg'
    """
    return re.sub(r"[^-\w.]", "", name.rstrip().replace(" ", "_"))


def _file_name(collection: Collection, address: str, uploads: Mapping[str, list[str]]) -> str:
    """The image's file: one that is named as in the address, or else the one whose upload gets that name."""
    names = _names(address)
    if not names or not collection.look:
        return names[0] if names else ""
    uploaded = _UPLOAD.sub("", names[-1], count=1)
    files = uploads.get(uploaded, []) if uploaded != names[-1] else []
    for name in names if files else [*names, uploaded]:
        found = collection.images.spelled_alike(name)
        if collection.images.has(found):
            return found
    if len(files) > 1:
        got = f"{len(files)} files that Label Studio calls {uploaded}: {', '.join(map(repr, files[:3]))}"
        raise ImageProblem("image_missing", uploaded, got=got)
    return files[0] if files else names[0]


def _names(address: str) -> list[str]:
    """The names that an image's file may have, the most likely first.

    >>> _names("/data/upload/3/0a1b2c3d-street%201.jpg")
    ['0a1b2c3d-street 1.jpg']
    >>> _names("/data/local-files/?d=photos/7.jpg")
    ['photos/7.jpg', '7.jpg']
    """
    try:
        parts = urlsplit("" if address.startswith("data:") else address)
    except ValueError:
        return []
    local = parse_qs(parts.query).get("d", [""])[0].lstrip("/")
    name = PurePosixPath(local or unquote(parts.path)).name
    return [text for text in dict.fromkeys((local, name)) if text]


def _read_shape(
    collection: Collection,
    where: str,
    image: int,
    result: dict[str, Any],
    value: dict[str, Any],
    names: list[str],
    rotated: str,
) -> None:
    if (turned := result.get("image_rotation")) not in (None, 0):
        return collection.leave_out("object", where, "image_turned_in_editor", f"{turned}°")
    try:
        kind, box, degrees = _box(value, collection.size_wh(image))
    except (KeyError, TypeError, ValueError):
        return collection.leave_out("object", where, "row_unreadable", value)
    if box is None:
        return collection.leave_out("object", where, "shape_without_box", result.get("type") or ", ".join(value))
    numbers = [box[0] / collection.size_wh(image)[0], box[1] / collection.size_wh(image)[1]]
    if not degrees and any(number > 1.5 for number in numbers):
        return collection.leave_out("object", where, "numbers_not_normalized", value)
    if kind == "box" and degrees % 180:
        if rotated == "drop":
            return collection.leave_out("object", where, "box_rotated", f"{degrees}°")
        collection.notes[ROTATED] += 1
    elif kind != "box":
        collection.notes[OUTLINES] += 1
    if len(names) > 1:
        collection.notes["boxes with several labels: an object for each"] += 1
    for name in names or [""]:
        collection.add_object(where, image, name, box)
    return None


def _box(value: dict[str, Any], size_wh: Size) -> tuple[str, Box | None, float]:
    """The kind of a shape, the box around it in pixels (None: it has none), and its rotation in degrees."""
    width, height = size_wh[0] / 100, size_wh[1] / 100
    degrees = float(value.get("rotation") or 0)
    if "points" in value:
        return "polygon", bounds([(float(x) * width, float(y) * height) for x, y in value["points"]]), 0.0
    if "radiusX" in value:
        center = float(value["x"]) * width, float(value["y"]) * height
        radii = float(value["radiusX"]) * width, float(value["radiusY"]) * height
        return "ellipse", ellipse_box(center, radii, degrees), degrees
    if "height" not in value or "rle" in value:
        return "other", None, 0.0
    x, y, w, h = (float(value[name]) for name in ("x", "y", "width", "height"))
    box = x * width, y * height, (x + w) * width, (y + h) * height
    return "box", bounds(rotated_corners(box, degrees, box[:2])) if degrees else box, degrees
