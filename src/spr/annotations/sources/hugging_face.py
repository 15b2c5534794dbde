"""Hugging Face detection datasets: a row per image, which is stored in the dataset, with lists of boxes and categories.

Source: https://huggingface.co/docs/datasets/object_detection. The features say which column is an image and how
categories are called, but not what a box's four numbers mean: that is found out from all boxes, see `possible_formats`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from spr.annotations.collection import BOX_FORMATS, BoxFormat, Collection, to_xyxy
from spr.annotations.datasets import DatasetImages, DatasetName, data_files, parse_name
from spr.config.annotations import HF_PREFIX
from spr.core.atomic import write_atomically
from spr.core.documents import parse_json
from spr.core.errors import ConfigError, InputError
from spr.core.images import ImageProblem, ImageSource
from spr.core.paths import is_dir, is_file
from spr.core.progress import Progress
from spr.core.terminal import count_text
from spr.core.text_input import TextInput, read_text, text_lines

_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "img", "picture"),
    "objects": ("objects", "object", "annotations", "instances", "detections"),
    "box": ("bbox", "bboxes", "box", "boxes"),
    "label": ("category", "categories", "label", "labels", "category_id", "class", "classes", "name", "names"),
    "crowd": ("iscrowd", "is_crowd"),
    "id": ("image_id", "id"),
    "width": ("width", "image_width"),
    "height": ("height", "image_height"),
    "license": ("license",),
    "url": ("flickr_url", "coco_url", "image_url", "url"),
}
FIELDS = ("image", "objects", "box", "label")
_MAGIC = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif"}
_BATCH = 64
_ROWS = "metadata.jsonl"
_SPLITS = {"training": "train", "val": "validation", "valid": "validation"}
_SPLITS |= {name: name for name in ("train", "validation", "test")}
_MOST_MISFITS = 0.01


def read_hugging_face(
    path: str | Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    box_format: BoxFormat | None = None,
    classes: Path | None = None,
    category: str | None = None,
    orientation: Literal["apply", "ignore"] = "apply",
) -> Collection:
    """Read a detection dataset, and write its images into a folder.

    Args:
        path: ``hf:NAME…``, see `parse_name`; or a folder that `save_to_disk` wrote, with Parquet files, or with images
            and ``metadata.jsonl``.
        images: Folder for the images: new, empty, or of the same dataset. Images that it already has are kept.
        split: The split. None: that of ``path``, or else the only one, or ``train``.
        columns: Names of the columns ``image``, ``objects``, ``box`` and ``label``. For others, usual names are tried.
        box_format: What the four numbers of a box mean. None: what all boxes fit; if that is not one format, an error.
        classes: File with a name per line, for categories that are numbers without names.
        category: The category of all objects, for datasets without categories.
        orientation: Whether boxes refer to images as EXIF orients them, or as they are stored, where the dataset does
            not give the images' sizes.
    """
    if images is None:
        raise ConfigError(
            "The images of the dataset need a folder", fix="give the folder to write them to: --images DIR"
        )
    for field in columns or {}:
        if field not in FIELDS:
            raise ConfigError("--columns names an unknown field", got=field, expected=", ".join(FIELDS))
    if box_format is not None and box_format not in BOX_FORMATS:
        raise ConfigError("--box-format is unknown", got=box_format, expected=" | ".join(BOX_FORMATS))
    text = str(path)
    name = parse_name(text if text.startswith(HF_PREFIX) else f"{HF_PREFIX}{_as_source(text)}")
    if split is not None:
        name = replace(name, split=split)
    folder = DatasetImages(images, name)
    folder.check()
    batches, features, total, roots = _load(name)
    with folder.locked():
        reader = _Reader(Collection(ImageSource(images, orientation)), features, dict(columns or {}), category, roots)
        reader.names = reader.names or ([] if classes is None else read_text(classes).splitlines())
        with Progress(f"reading {name.public_source}", total, "images") as progress:
            for batch in batches:
                reader.read(batch)
                progress.advance(len(batch))
        reader.finish(box_format)
    return reader.collection


def _as_source(text: str) -> str:
    return str(Path(text).absolute()) if is_dir(text) else text


_Loaded = tuple[Iterator[pa.Table | list[dict[str, Any]]], dict[str, Any], int, list[Path]]


def _load(name: DatasetName) -> _Loaded:
    """The rows as batches, the features as a plain mapping, the number of rows, and where image files may be."""
    folder = name.folder
    if folder is not None and not is_file(folder / "state.json") and not is_file(folder / "dataset_dict.json"):
        tables = [file for file in data_files(folder) if file.name == _ROWS]
        return _load_image_folder(folder, tables, name) if tables else _load_parquet(folder, name)
    import datasets

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if folder is None:
            data = datasets.load_dataset(name.source, name.config, split=name.split or "train", revision=name.revision)
            roots = [Path(datasets.config.HF_DATASETS_CACHE), Path(datasets.config.HF_HUB_CACHE)]
        elif is_file(folder / "state.json"):
            data, roots = datasets.load_from_disk(str(folder)), [folder]
        else:
            splits = [part for part in folder.iterdir() if is_file(part / "state.json")]
            data = datasets.load_from_disk(str(_chosen({part.name: part for part in splits}, name)))
            roots = [folder]
    except InputError:
        raise
    except Exception as error:
        # `datasets` raises errors of many libraries: of the network, of file systems, of Arrow, and its own.
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        fix = "check name and split (hf:NAME:SPLIT); without a network, give a folder: hf:/FOLDER"
        raise InputError(f"The dataset {name.public_source} can't be loaded", got=got, fix=fix) from None
    finally:
        if not bars:
            datasets.enable_progress_bars()
    batches = data.with_format("arrow").iter(batch_size=_BATCH)
    return batches, data.features.to_dict(), data.num_rows, roots


def _chosen(splits: Mapping[str, Any], name: DatasetName) -> Any:
    wanted = name.split or (next(iter(splits)) if len(splits) == 1 else "train")
    if wanted not in splits:
        fix = "name one: hf:FOLDER:SPLIT or --split"
        raise InputError(f"{name.source} has no split {wanted}", got=", ".join(sorted(splits)) or "no splits", fix=fix)
    return splits[wanted]


def _load_image_folder(folder: Path, tables: list[Path], name: DatasetName) -> _Loaded:
    """Image files with a JSON line each, as the builder ``imagefolder`` of `datasets` reads them.

    The split of a table is a folder's name, such as ``train``, or else ``train``.
    """
    by_split: dict[str, list[Path]] = {}
    for table in tables:
        parts = table.relative_to(folder).parts[:-1]
        by_split.setdefault(next((_SPLITS[part] for part in parts if part in _SPLITS), "train"), []).append(table)
    split = name.split and _SPLITS.get(name.split, name.split)
    rows: list[dict[str, Any]] = []
    for table in _chosen(by_split, replace(name, split=split)):
        with TextInput(table) as file:
            for number, line in enumerate(text_lines(file), 1):
                try:
                    row = parse_json(line) if line.strip() else None
                    if row is not None:
                        path = table.parent.relative_to(folder) / row.pop("file_name")
                        rows.append({**row, "image": {"path": path.as_posix()}})
                except (ValueError, LookupError, TypeError, AttributeError) as error:
                    expected = 'an object such as {"file_name": "1.jpg", "objects": {"bbox": …, "categories": …}}'
                    raise InputError(f"{table}, line {number} can't be read", got=error, expected=expected) from None
    keys = dict.fromkeys(key for row in rows for key in row)
    batches = (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH))
    features = {key: {"_type": "Image"} if key == "image" else {} for key in keys}
    return ([{key: row.get(key) for key in keys} for row in batch] for batch in batches), features, len(rows), [folder]


def _load_parquet(folder: Path, name: DatasetName) -> _Loaded:
    """The Parquet files of a folder; the split of a file is its name up to ``-00000-of-00001``."""
    by_split: dict[str, list[Path]] = {}
    for file in data_files(folder):
        if file.suffix == ".parquet":
            by_split.setdefault(re.split(r"-\d{5}", file.stem)[0], []).append(file)
    if not by_split:
        expected = (
            "a folder that `save_to_disk` wrote, with Parquet files such as train-00000-of-00001.parquet, or with "
            f"images and {_ROWS}"
        )
        got = f"no Parquet file, no {_ROWS} and no state.json"
        raise InputError(f"{folder} has no dataset", got=got, expected=expected)
    files = _chosen(by_split, name)
    try:
        readers = [pq.ParquetFile(file) for file in files]
        metadata = (readers[0].schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        features = parse_json(metadata).get("info", {}).get("features", {})
    except (OSError, ValueError, AttributeError, pa.ArrowException) as error:
        raise InputError(f"{folder} can't be read", got=error, expected="Parquet files") from None
    features = features or {key: {} for key in readers[0].schema_arrow.names}

    def batches() -> Iterator[pa.Table]:
        for file, reader in zip(files, readers, strict=True):
            try:
                yield from (pa.Table.from_batches([batch]) for batch in reader.iter_batches(batch_size=_BATCH))
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{file} can't be read", got=error, expected="a complete Parquet file") from None

    return batches(), features, sum(reader.metadata.num_rows for reader in readers), [folder]


class _Reader:
    """Writes the images of a dataset, and collects its boxes until all have been seen."""

    def __init__(
        self,
        collection: Collection,
        features: Mapping[str, Any],
        columns: Mapping[str, str],
        category: str | None,
        roots: list[Path],
    ) -> None:
        self.collection, self._category, self._roots, self._given = collection, category, roots, columns
        images = [
            name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "Image"
        ]
        self._columns = {
            field: columns.get(field) or next((name for name in _NAMES[field] if name in features), None)
            for field in ("image", "objects", "id", "width", "height", "license", "url")
        }
        if "image" not in columns and len(images) == 1:
            self._columns["image"] = images[0]
        if self._columns["image"] not in features:
            got = ", ".join(features)
            raise InputError("The dataset has no column of images", got=got, fix="--columns image=NAME")
        if (column := columns.get("objects")) is not None and column not in features:
            raise InputError(
                f"The dataset has no column {column}", got=", ".join(features), fix="--columns objects=NAME"
            )
        self._features = features
        self.names = self._label_names(features[self._columns["objects"]] if self._columns["objects"] else features)
        self._next = 0
        self._objects: list[tuple[str, int, object, list[float], bool]] = []
        self._found_box = False

    def _label_names(self, feature: Any) -> list[str]:
        """The names of a `ClassLabel` below the column of categories, whatever lists are around it."""
        while isinstance(feature, dict) and "_type" in feature and isinstance(feature.get("feature"), dict):
            feature = feature["feature"]
        feature = feature[0] if isinstance(feature, list) and feature else feature
        label = self._get(feature, "label") if isinstance(feature, dict) else None
        while isinstance(label, dict | list):
            if isinstance(label, dict) and isinstance(label.get("names"), list):
                self.collection.categories = [str(name) for name in label["names"]]
                return self.collection.categories
            label = label.get("feature") if isinstance(label, dict) else label[0] if label else None
        return []

    def _get(self, row: Mapping[str, Any], field: str) -> Any:
        if field in self._given:
            return row.get(self._given[field])
        return next((row[name] for name in _NAMES[field] if row.get(name) is not None), None)

    def read(self, batch: pa.Table | list[dict[str, Any]]) -> None:
        """Write the images of a batch and collect their boxes."""
        wanted = {column for column in self._columns.values() if column}
        wanted |= {
            name for field in ("box", "label", "crowd") for name in (self._given.get(field), *_NAMES[field]) if name
        }
        if not isinstance(batch, list):
            batch = batch.select([name for name in batch.column_names if name in wanted]).to_pylist()
        for row in batch:
            self._read_row(self._next, row)
            self._next += 1

    def _read_row(self, number: int, row: dict[str, Any]) -> None:
        where = f"row {number}"
        entries = self._entries(where, row)
        image = self._add_image(number, where, row)
        for count, (box, label, crowd) in enumerate(entries, 1):
            at = f"{where}: object {count}"
            if image is None:
                self.collection.leave_out("object", at, "object_image_dropped")
                continue
            try:
                numbers = [float(value) for value in box]
                if len(numbers) != 4:
                    raise ValueError
            except (TypeError, ValueError):
                self.collection.leave_out("object", at, "row_unreadable", box)
                continue
            self._objects.append((at, image, label, numbers, bool(crowd)))

    def _entries(self, where: str, row: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
        """Box, category and crowd of each object of a row: from a list of objects, or from lists side by side."""
        objects = row[self._columns["objects"]] if self._columns["objects"] else row
        if isinstance(objects, list):
            entries = [item for item in objects if isinstance(item, dict)]
            self._found_box |= any(self._get(item, "box") is not None for item in entries)
            return [(self._get(item, "box"), self._get(item, "label"), self._get(item, "crowd")) for item in entries]
        if not isinstance(objects, dict):
            return []
        boxes, labels, crowds = (self._get(objects, field) for field in ("box", "label", "crowd"))
        if not isinstance(boxes, list):
            return []
        self._found_box = True
        if boxes and not isinstance(boxes[0], list):  # one object per row
            boxes, labels, crowds = [boxes], [labels], [crowds]
        labels = [None] * len(boxes) if self._category is not None else labels
        if not isinstance(labels, list) or len(labels) != len(boxes):
            given = count_text(len(labels), "categories") if isinstance(labels, list) else "no categories"
            got = f"{count_text(len(boxes), 'boxes')}, {given}"
            self.collection.leave_out("object", where, "objects_not_aligned", got)
            return []
        crowds = crowds if isinstance(crowds, list) and len(crowds) == len(boxes) else [None] * len(boxes)
        return list(zip(boxes, labels, crowds, strict=True))

    def _add_image(self, number: int, where: str, row: dict[str, Any]) -> int | None:
        stored = row[self._columns["image"] or ""]
        try:
            data = self._bytes(stored)
        except ImageProblem as problem:
            self.collection.leave_out("image", where, problem.reason, problem.got or problem.file_name)
            return None
        if data is None:
            self.collection.leave_out("image", where, "image_not_embedded")
            return None
        suffix = next((suffix for magic, suffix in _MAGIC.items() if data.startswith(magic)), ".webp")
        name = f"{number:08d}{suffix}"
        file = self.collection.images.folder / name
        if not (is_file(file) and file.stat().st_size == len(data)):
            write_atomically(file, data)
        width, height, own = (row.get(self._columns[field] or "") for field in ("width", "height", "id"))
        size_wh = (width, height) if isinstance(width, int) and isinstance(height, int) else None
        license_text, url = (row.get(self._columns[field] or "") for field in ("license", "url"))
        return self.collection.add_image(
            where,
            name,
            size_wh,
            id=own if isinstance(own, int) and 0 <= own < 2**53 else None,
            license=None if license_text is None else str(license_text),
            url=url if isinstance(url, str) else None,
        )

    def _bytes(self, stored: Any) -> bytes | None:
        """The content of an image file: embedded, or of a file below the dataset's folder or the cache."""
        if isinstance(stored, bytes):
            return stored
        if not isinstance(stored, dict):
            return None
        if isinstance(stored.get("bytes"), bytes):
            return bytes(stored["bytes"])
        path = stored.get("path")
        if not isinstance(path, str):
            return None
        for root in self._roots:
            if Path(path).is_relative_to(root) or not path.startswith("/"):
                name = Path(path).relative_to(root).as_posix() if path.startswith("/") else path
                return ImageSource(root).read_bytes(name)
        raise ImageProblem("path_outside_images", path)

    def finish(self, box_format: BoxFormat | None) -> None:
        """Find out what the boxes' numbers mean, and add the objects."""
        if not self._found_box:
            got = ", ".join(self._features)
            fix = "give a detection dataset; name the columns with --columns objects=NAME,box=NAME,label=NAME"
            raise InputError("The dataset has no boxes", got=got, fix=fix)
        boxes = np.array([box for *_, box, _ in self._objects], np.float64).reshape(-1, 4)
        sizes = np.array([self.collection.size_wh(image) for _, image, *_ in self._objects], np.float64).reshape(-1, 2)
        if box_format is None:
            possible = possible_formats(boxes, sizes)
            if len(possible) != 1 and len(boxes):
                got = f"boxes that fit {' and '.join(possible)}" if possible else "boxes that fit no known format"
                fix = "say it with --box-format of `spr convert annotations --from hf`"
                raise InputError("It is not clear what the four numbers of a box mean", got=got, fix=fix)
            box_format = possible[0] if possible else "xywh"
            self.collection.notes[f"boxes read as {box_format}, the only format that they fit"] = len(boxes)
        for where, image, label, numbers, crowd in self._objects:
            name: object = self._category if self._category is not None else label
            if isinstance(name, int | float) and self.names:
                place = int(name)
                name = self.names[place] if 0 <= place < len(self.names) else None
                if name is None:
                    self.collection.leave_out("object", where, "object_category_unknown", label)
                    continue
            elif isinstance(name, int | float):
                expected = "names, as `ClassLabel` gives them"
                raise InputError(
                    "The categories are numbers without names", got=name, expected=expected, fix="--classes FILE"
                )
            box = to_xyxy(numbers, box_format, self.collection.size_wh(image))
            self.collection.add_object(where, image, name, box, ("crowd",) if crowd else ())


def possible_formats(boxes: npt.NDArray[np.float64], sizes_wh: npt.NDArray[np.float64]) -> list[BoxFormat]:
    """The formats in which at most 1% of the boxes are no box inside their image, within a pixel.

    Args:
        boxes: (N, 4), the numbers as they are.
        sizes_wh: (N, 2), the size in pixels of each box's image.
    """
    boxes = boxes.reshape(-1, 4)
    finite = np.isfinite(boxes).all(axis=1)
    boxes, sizes = boxes[finite], sizes_wh[finite]
    if not len(boxes):
        return []
    fractions = boxes.max() <= 1 + 1e-6
    limits = np.ones_like(sizes) if fractions else sizes
    slack = 0.01 if fractions else 1.0
    start, other = boxes[:, :2], boxes[:, 2:]
    edges = {"xyxy": (start, other), "xywh": (start, start + other), "cxcywh": (start - other / 2, start + other / 2)}
    misfits = Counter(
        {
            name: float(((low < -slack) | (high > limits + slack) | (high <= low)).any(axis=1).mean())
            for name, (low, high) in edges.items()
        }
    )
    suffix = "-normalized" if fractions else ""
    found = {f"{name}{suffix}" for name, share in misfits.items() if share <= _MOST_MISFITS}
    return [form for form in BOX_FORMATS if form in found]
