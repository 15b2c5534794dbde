"""YOLO: a text file per image, a row per object: class number, then center, width and height as fractions.

Sources: https://docs.ultralytics.com/datasets/detect (``data.yaml``, boxes), ``/segment`` (polygons), ``/obb`` (four
corners), ``/pose`` (keypoints after the box); ``classes.txt`` as LabelImg and Label Studio write it; ``obj.names`` of
Darknet.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from spr.annotations.collection import Collection, are_normalized, bounds, to_xyxy
from spr.core.documents import parse_yaml
from spr.core.errors import InputError
from spr.core.images import ImageSource
from spr.core.paths import is_dir, is_file
from spr.core.progress import Progress
from spr.core.terminal import count_text
from spr.core.text_input import TextInput, read_text, text_lines

LARGEST_LABELS = 2**26
"""Label files of more bytes are not read."""
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"),
    *(".jfif", ".mpo", ".heic", ".heif", ".avif", ".dng", ".pfm"),
)
"""Files with these suffixes are images; those that can't be opened are dropped."""
ROTATED = "rotated boxes: the upright box around each is used"
OUTLINES = "outlines (polygons): the box around each is used"
_NAME_FILES = (
    "classes.txt",
    "obj.names",
    "names.txt",
    "labels/classes.txt",
    "_darknet.labels",
    "train/_darknet.labels",
)
_NOT_LABELS = ("classes.txt", "train.txt", "val.txt", "test.txt", "names.txt", "README.txt")


def read_yolo(
    path: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    classes: Path | None = None,
    rotated: Literal["enclose", "drop"] = "enclose",
    orientation: Literal["apply", "ignore"] = "apply",
) -> Collection:
    """Read a YOLO dataset. Each image's header is read, because the numbers are fractions of its size.

    Args:
        path: ``data.yaml``, or the folder of the dataset.
        images: Folder that all images are below, and that file names are relative to. None: the folder of ``path``.
        split: A split of ``data.yaml``, or of ``images/SPLIT`` or ``SPLIT/images``; several with commas between them.
            None: the only one; ``train`` if there are several.
        classes: File with a category per line. None: ``data.yaml``, or ``classes.txt`` and the like.
        rotated: Use the box around a rotated box, or drop it.
        orientation: Whether the numbers refer to the image as EXIF orients it, or as it is stored.
    """
    root = path if path.is_dir() else path.parent
    config_path = path if path.is_file() else _find_yaml(path)
    config = {} if config_path is None else _read_config(config_path)
    collection = Collection(ImageSource(images or root, orientation))
    names = _names(root, config, config_path, classes)
    collection.categories = list(names.values())
    chosen, others = _splits(root, config, images, split)
    if others:
        collection.notes[f"splits that are not converted (--split): {', '.join(others)}"] = len(others)
    keypoints = _keypoint_numbers(config)
    used: set[Path] = set()
    folders: dict[Path, None] = {}
    with Progress("reading labels", unit="images") as progress:
        for image_path in _images(root, chosen, collection, folders):
            label = _label_of(image_path)
            used.add(label)
            folders[label.parent] = None
            _read_image(collection, root, image_path, label, names, keypoints, rotated)
            progress.advance()
    # A list names some images of its folders, so that other labels may belong to another list.
    for label in _without_image(folders, used) if all(map(is_dir, chosen)) else ():
        collection.leave_out("image", _shown(label, root), "image_missing", "labels without an image")
    return collection


def _find_yaml(folder: Path) -> Path | None:
    for name in ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml"):
        if is_file(folder / name):
            return folder / name
    found = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    return found[0] if len(found) == 1 else None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = parse_yaml(read_text(path, "YOLO config", expected="a data.yaml with `names`"))
    except ValueError as error:
        raise InputError(f"{path} is not YAML", got=error, expected="a data.yaml with `names`") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a YOLO config", got=type(config).__name__, expected="a mapping with `names`")
    return config


def _names(root: Path, config: dict[str, Any], config_path: Path | None, classes: Path | None) -> dict[int, str]:
    """The categories by class number."""
    found = config.get("names") if classes is None else None
    if found is None:
        file = classes or next((root / name for name in _NAME_FILES if is_file(root / name)), None)
        if file is None:
            got = "no `names` in " + config_path.name if config_path else "no data.yaml and no classes.txt"
            raise InputError(f"{root} has no names of categories", got=got, fix="give them with --classes FILE")
        found = [line.strip() for line in read_text(file, "File of categories").splitlines()]
        while found and not found[-1]:
            found.pop()
    pairs = enumerate(found) if isinstance(found, list) else found.items() if isinstance(found, dict) else ()
    names = {int(key): str(name) for key, name in pairs if str(key).isdecimal() and type(name) in (str, int)}
    if not names or len(names) != len(found):
        got = str(found)[:200]
        raise InputError(
            f"`names` of {config_path} is not valid", got=got, expected="a list, or number: name; yes and no in quotes"
        )
    return dict(sorted(names.items()))


def _splits(root: Path, config: dict[str, Any], images: Path | None, split: str | None) -> tuple[list[Path], list[str]]:
    """The folders and lists of images of the chosen splits, and the names of the other splits."""
    known: dict[str, list[Any]] = {}
    for name in ("train", "val", "test", "valid"):
        entries = config.get(name)
        if entries and isinstance(entries, str | list):
            known[name] = [entries] if isinstance(entries, str) else entries
    if not known:
        for name in ("train", "val", "valid", "test"):
            found = [folder for folder in (root / "images" / name, root / name / "images") if is_dir(folder)]
            found = found or [folder for folder in (root / name,) if is_dir(folder)]
            known |= {name: found} if found else {}
    if split is not None:
        wanted = [name.strip() for name in split.split(",")]
        missing = [name for name in wanted if name not in known]
        if missing:
            raise InputError(f"{root} has no split {missing[0]}", got=", ".join(known) or "no splits", fix="--split")
    else:
        wanted = ["train"] if "train" in known else list(known)[:1]
    if not known:
        return [images or (root / "images" if is_dir(root / "images") else root)], []
    # Only the chosen splits must be there: Roboflow writes `test` whether or not there are test images.
    base = config.get("path")
    chosen = [
        e if isinstance(e, Path) else _resolve(root, base, str(e), images) for name in wanted for e in known[name]
    ]
    return chosen, [name for name in known if name not in wanted]


def _resolve(root: Path, base: object, entry: str, images: Path | None) -> Path:
    """The folder or list of images that an entry of ``data.yaml`` names.

    ``path`` often names a folder of the machine where the file was made, and Roboflow writes ``../train/images``.
    """
    bases = [root / base, root] if isinstance(base, str) else [root]
    names = [entry, entry.removeprefix("../")]
    if isinstance(base, str) and Path(entry).is_absolute() and Path(entry).is_relative_to(base):
        names.append(str(Path(entry).relative_to(base)))
    tries = [top / name for top in bases for name in names]
    below = images or root
    for path in tries:
        try:
            if path.exists() and path.resolve().is_relative_to(below.resolve()):
                return _below(path, below)
        except (OSError, ValueError):
            continue
    got = "a folder elsewhere" if any(map(is_dir, tries)) else "no such folder or list"
    fix = "if the images are elsewhere, give the folder that they are below with --images"
    raise InputError(f"`{entry}` is not below {below}", got=got, fix=fix)


def _below(path: Path, folder: Path) -> Path:
    """A path as it is written below a folder, where one of both is absolute or contains links; else the path itself."""
    path, folder = Path(os.path.normpath(path)), Path(os.path.normpath(folder))
    if not path.is_relative_to(folder) and path.resolve().is_relative_to(folder.resolve()):
        return folder / path.resolve().relative_to(folder.resolve())
    return path


def _keypoint_numbers(config: dict[str, Any]) -> int:
    shape = config.get("kpt_shape")
    valid = isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) and 0 < n < 1000 for n in shape)
    return shape[0] * shape[1] if valid and isinstance(shape, list) else 0


def _images(root: Path, sources: Sequence[Path], collection: Collection, folders: dict[Path, None]) -> Iterator[Path]:
    for source in sources:
        if source.is_dir():
            folders[_label_of(source / "x.jpg").parent] = None
            yield from _walk(source, SUFFIXES)
            continue
        with TextInput(source, f"List of images {source}") as file:
            for line in filter(None, map(str.strip, text_lines(file))):
                # Lines are relative to the list (Ultralytics), or to the dataset's folder (Darknet).
                tries = [source.parent / line, root / line, root / line.removeprefix("data/")]
                found = next((path for path in tries if is_file(path)), tries[0])
                path = _below(found, collection.images.folder)
                if path.is_relative_to(Path(os.path.normpath(collection.images.folder))):
                    yield path
                else:
                    collection.leave_out("image", f"{source.name}: {line}", "path_outside_images", str(path))


def _walk(folder: Path, suffixes: Iterable[str]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):  # noqa: PTH122
                yield Path(parent, name)


def _label_of(image: Path) -> Path:
    """The label file of an image: below ``labels/`` in place of the last ``images/``, or else beside the image."""
    parts = list(image.parent.parts)
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        parts[at] = "labels"
        label = Path(*parts, f"{image.stem}.txt")
        if label.exists() or not image.with_suffix(".txt").exists():
            return label
    return image.with_suffix(".txt")


def _read_image(
    collection: Collection,
    root: Path,
    image_path: Path,
    label: Path,
    names: dict[int, str],
    keypoints: int,
    rotated: str,
) -> None:
    name = image_path.relative_to(os.path.normpath(collection.images.folder)).as_posix()
    rows = []
    if label.is_file():
        try:
            if label.stat().st_size > LARGEST_LABELS:
                raise InputError(f"{label.stat().st_size:,} bytes")
            with TextInput(label) as file:
                rows = [(number, line.split()) for number, line in enumerate(text_lines(file), 1) if line.strip()]
        except InputError as error:
            collection.leave_out("image", _shown(label, root), "label_file_unreadable", error.got or error.what)
            return
    image = collection.add_image(name, name)
    if image is None:
        if rows:
            collection.leave_out(
                "object", f"{_shown(label, root)}: {count_text(len(rows), 'rows')}", "object_image_dropped"
            )
        return
    if not label.is_file():
        collection.notes["images without a label file: they have no objects"] += 1
    for number, row in rows:
        _read_row(collection, f"{_shown(label, root)}:{number}", image, row, names, keypoints, rotated)


def _read_row(
    collection: Collection,
    where: str,
    image: int,
    row: Sequence[str],
    names: dict[int, str],
    keypoints: int,
    rotated: str,
) -> None:
    text = " ".join(row)
    try:
        kind, *numbers = map(float, row)
    except ValueError:
        return collection.leave_out("object", where, "row_unreadable", text)
    size_wh = collection.size_wh(image)
    is_box = len(numbers) in (4, 5) or (keypoints and len(numbers) == 4 + keypoints)
    if not is_box and (len(numbers) < 6 or len(numbers) % 2):
        return collection.leave_out("object", where, "row_unreadable", text)
    if not kind.is_integer() or int(kind) not in names:
        return collection.leave_out("object", where, "object_category_unknown", text)
    used = numbers[:4] if is_box else numbers
    if not are_normalized(used):
        return collection.leave_out("object", where, "numbers_not_normalized", text)
    if is_box:
        if len(numbers) == 5:
            collection.notes["rows with a further number (confidence or track), which is not kept"] += 1
        box = to_xyxy(used, "cxcywh-normalized", size_wh)
    else:
        points = [(x * size_wh[0], y * size_wh[1]) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
        box, turned = bounds(points), is_rotated(points)
        if turned and rotated == "drop":
            return collection.leave_out("object", where, "box_rotated", text)
        collection.notes[ROTATED if turned else OUTLINES] += 1
    return collection.add_object(where, image, names[int(kind)], box)


def is_rotated(points: Sequence[tuple[float, float]]) -> bool:
    """Whether four points are a rectangle, within a pixel, whose sides are not horizontal and vertical.

    >>> is_rotated([(5, 0), (10, 5), (5, 10), (0, 5)]), is_rotated([(0, 0), (9, 0), (9, 4), (0, 4)])
    (True, False)
    """
    if len(points) != 4 or not all(map(math.isfinite, sum(points, ()))):
        return False
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = points
    parallelogram = math.dist((ax + cx, ay + cy), (bx + dx, by + dy)) < 2
    right_angled = abs(math.dist(points[0], points[2]) - math.dist(points[1], points[3])) < 2
    upright = min(abs(ax - bx), abs(ay - by)) < 1 and min(abs(bx - cx), abs(by - cy)) < 1
    return parallelogram and right_angled and not upright


def _without_image(folders: Iterable[Path], used: set[Path]) -> Iterator[Path]:
    for folder in sorted({top for top in folders if not any(parent in folders for parent in top.parents)}):
        for label in _walk(folder, (".txt",)):
            if label not in used and label.name not in _NOT_LABELS:
                yield label


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
