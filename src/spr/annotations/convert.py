"""Converting annotations of other formats to COCO JSON.

The readers are small and our own, because the well-known converters stop at, or silently skip, what they can't read,
while a dataset that becomes preference pairs needs every dropped item with its reason.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spr.annotations.collection import EXIF, MARKS, check_coco_output, write_coco
from spr.annotations.datasets import DatasetImages, parse_name
from spr.annotations.sources.csv_table import read_csv
from spr.annotations.sources.cvat import read_cvat
from spr.annotations.sources.hugging_face import read_hugging_face
from spr.annotations.sources.label_studio import read_label_studio
from spr.annotations.sources.voc import read_voc
from spr.annotations.sources.yolo import read_yolo
from spr.config.annotations import AnnotationsConfig
from spr.core.errors import ConfigError, InputError, nearest
from spr.core.paths import exists, is_dir, is_file

SOURCES: dict[str, Callable[..., Any]] = {
    "yolo": read_yolo,
    "voc": read_voc,
    "csv": read_csv,
    "label-studio": read_label_studio,
    "cvat": read_cvat,
    "hf": read_hugging_face,
}
"""The reader of each format. Its keyword arguments are the options that the format has."""
_FOLDERS = ("yolo", "voc", "cvat")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted.

    Attributes:
        images: The image folder that the file names in the JSON are relative to.
        counts: The numbers of images, objects and categories.
        dropped: The number of dropped items by kind and reason, such as ``object: box_size_zero``.
        examples: An example of each.
        notes: What else is worth knowing, with the number of cases.
        written: Whether the file was written; False if it had the same content.
    """

    images: Path
    counts: dict[str, int]
    dropped: dict[str, int]
    examples: dict[str, str]
    notes: dict[str, int]
    written: bool


def convert_annotations(path: str | Path, out: str | Path, *, source: str, **options: Any) -> Conversion:
    """Convert annotations to COCO JSON, which `annotations.path` of a config reads.

    The JSON's ``dropped`` lists everything that was not converted. Ids of images do not depend on other images.

    Args:
        path: The file or folder; for ``hf`` also ``hf:NAME:SPLIT``.
        out: The JSON file. An existing file is never replaced; one that already has this content is left as it is.
        source: The format, a key of `SOURCES`.
        options: Options of the format's reader, such as ``images``; see `spr.annotations.sources`.

    Raises:
        ConfigError: for an unknown format, or an option that the format does not have.
        InputError: if the annotations can't be read, or nothing can be converted.
        RunError: if the output file exists and has another content.
    """
    if source not in SOURCES:
        raise ConfigError("--from is unknown", got=source, expected=" | ".join(SOURCES), fix=nearest(source, SOURCES))
    read = SOURCES[source]
    known = list(inspect.signature(read).parameters)[1:]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in known:
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in known)
            raise ConfigError(f"--{name.replace('_', '-')} does not apply to --from {source}", expected=flags)
    for mark in given.get("drop", ()):
        if mark not in MARKS:
            raise ConfigError("--drop names an unknown mark", got=mark, expected=", ".join(MARKS))
    if "images" in given and source != "hf" and not is_dir(given["images"]):
        raise InputError(f"There is no image folder {given['images']}", fix="check --images")
    if source != "hf":
        if not exists(path) or (is_dir(path) and source not in _FOLDERS):
            got = "a folder" if is_dir(path) else "nothing there"
            raise InputError(f"There is no file {path}", got=got, fix="check the path")
        path = Path(path)
        if source == "voc" and not path.is_dir():
            raise InputError(f"{path} is not a folder", expected="a folder with an XML file per image")
    check_coco_output(Path(out))
    collection = read(path, **given)
    written = write_coco(collection, Path(out), {"source": source})
    examples: dict[str, str] = {}
    for item in collection.dropped:
        examples.setdefault(f"{item.kind}: {item.reason}", f"{item.where}: {item.got}".removesuffix(": "))
    dropped = Counter(f"{item.kind}: {item.reason}" for item in collection.dropped)
    notes = {note: count for note, count in collection.notes.items() if count}
    if EXIF in notes:
        orientation = collection.images.orientation
        notes[f"{EXIF}: use them with annotations.orientation={orientation}"] = notes.pop(EXIF)
    return Conversion(
        collection.images.folder, collection.counts, dict(dropped.most_common()), examples, notes, written
    )


def prepare_annotations(annotations: AnnotationsConfig) -> None:
    """Write the images of a Hugging Face dataset and its annotations as COCO JSON; nothing for an annotation file.

    This is done once: a dataset of the hub is not looked at again afterwards. A folder is, and must not have changed.

    Raises:
        InputError: if the dataset can't be loaded or has no boxes whose meaning is clear.
        RunError: if `annotations.images` holds anything else, or another process writes into it.
    """
    if not annotations.is_dataset:
        return
    name, out = parse_name(str(annotations.path)), annotations.json_path
    images = DatasetImages(annotations.images, name)
    if images.complete and is_file(out):
        return
    public = ":".join(part for part in (name.public_source, name.config, name.split) if part)
    collection = read_hugging_face(annotations.path, images=annotations.images)
    write_coco(collection, out, {"source": "hf", "dataset": public})
    images.mark_complete()
