"""Hugging Face detection datasets: read from folders, with the meaning of the boxes' numbers found out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spr.annotations import convert_annotations, prepare_annotations
from spr.annotations.datasets import MARKER
from spr.annotations.sources.hugging_face import possible_formats
from spr.config import make_config
from spr.core.errors import InputError, RunError
from spr.pipeline.objects import load_objects

W, H = 200, 100
# x, y, width, height; as corners, the first would have x2 < x1
BOXES = [[[120.0, 60.0, 40.0, 30.0], [10.0, 10.0, 50.0, 20.0]], [[150.0, 5.0, 40.0, 90.0]]]


def png(color: int = 0, size: tuple[int, int] = (W, H)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (color, 0, 0)).save(data, "PNG")
    return data.getvalue()


def features(label: Any = None) -> datasets.Features:
    label = datasets.ClassLabel(names=["cup", "dog"]) if label is None else label
    objects = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(label)}
    return datasets.Features({"image_id": datasets.Value("int64"), "image": datasets.Image(), "objects": objects})


def save(folder: Path, boxes: Any = BOXES, labels: Any = ((1, 0), (1,)), label: Any = None, split: str = "") -> Path:
    rows = {
        "image_id": [70 + k for k in range(len(boxes))],
        "image": [{"bytes": png(k), "path": "/home/me/secret.png"} for k in range(len(boxes))],
        "objects": [{"bbox": b, "category": list(names)} for b, names in zip(boxes, labels, strict=True)],
    }
    data = datasets.Dataset.from_dict(rows, features=features(label))
    (datasets.DatasetDict({split: data}) if split else data).save_to_disk(str(folder))
    return folder


def convert(tmp_path: Path, path: object, name: str = "out", **options: Any) -> dict[str, Any]:
    out = tmp_path / f"{name}.json"
    convert_annotations(str(path), out, source="hf", images=tmp_path / name, **options)
    return json.loads(out.read_text())


def boxes_of(coco: dict[str, Any]) -> list[tuple[int, str, list[float]]]:
    names = {category["id"]: category["name"] for category in coco["categories"]}
    return [(item["image_id"], names[item["category_id"]], item["bbox"]) for item in coco["annotations"]]


EXPECTED = [(70, "dog", BOXES[0][0]), (70, "cup", BOXES[0][1]), (71, "dog", BOXES[1][0])]


def test_a_saved_dataset_becomes_images_and_coco_json(tmp_path: Path) -> None:
    coco = convert(tmp_path, save(tmp_path / "data"))
    assert boxes_of(coco) == EXPECTED
    assert [image["file_name"] for image in coco["images"]] == ["00000000.png", "00000001.png"]
    assert (tmp_path / "out" / "00000001.png").read_bytes() == png(1)
    assert "secret" not in (tmp_path / "out.json").read_text()
    assert [category["name"] for category in coco["categories"]] == ["cup", "dog"]


def test_splits_parquet_lists_of_objects_and_other_names(tmp_path: Path) -> None:
    save(tmp_path / "data", split="val")
    assert boxes_of(convert(tmp_path, f"hf:{tmp_path}/data", "a")) == EXPECTED
    assert boxes_of(convert(tmp_path, tmp_path / "data", "b", split="val")) == EXPECTED
    with pytest.raises(InputError, match=r"no split test[\s\S]*val"):
        convert(tmp_path, f"hf:{tmp_path}/data:test", "c")
    # Parquet as the hub has it: `datasets` writes its features into the file
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    datasets.load_from_disk(str(tmp_path / "data"))["val"].to_parquet(str(folder / "train-00000-of-00001.parquet"))
    assert boxes_of(convert(tmp_path, f"hf:{tmp_path}/hub:train", "d")) == EXPECTED
    # image files with a JSON line each; a name may not lead out of the folder
    folder = tmp_path / "images"
    (folder / "valid" / "a").mkdir(parents=True)
    lines = []
    for k, (name, labels) in enumerate((("a/0.png", ["dog", "cup"]), ("1.png", ["dog"]), ("../../secret.png", []))):
        (folder / "valid" / name).write_bytes(png(k))
        boxes = BOXES[k] if k < 2 else []
        lines.append({"file_name": name, "image_id": 70 + k, "objects": {"bbox": boxes, "categories": labels}})
    (folder / "valid" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    coco = convert(tmp_path, f"hf:{folder}:val", "i")
    assert boxes_of(coco) == EXPECTED
    assert [(item["where"], item["reason"]) for item in coco["dropped"]] == [("row 2", "path_outside_images")]
    with pytest.raises(InputError, match=r"no split test[\s\S]*validation"):
        convert(tmp_path, f"hf:{folder}:test", "j")
    (folder / "valid" / "metadata.jsonl").write_text('{"file": "1.png"}')
    with pytest.raises(InputError, match=r"line 1 can't be read[\s\S]*file_name"):
        convert(tmp_path, folder, "k")
    # plain Parquet: a list of objects, text categories, sizes, a crowd, a row without a usable image
    rows = [
        {
            "picture": png(),
            "annotations": [
                {"box": [0.5, 0.5, 0.5, 0.5], "name": "cat", "iscrowd": 1},
                {"box": [0.1, 0.2, 0.3], "name": "x"},
            ],
            "width": W,
            "height": H,
        },
        {
            "picture": b"no image",
            "annotations": [{"box": [0.6, 0.0, 0.4, 1.0], "name": "cat", "iscrowd": 0}],
            "width": W,
            "height": H,
        },
        {"picture": None, "annotations": [], "width": W, "height": H},
        {"picture": png(1), "annotations": [], "width": H, "height": H},
        {
            "picture": png(2),
            "annotations": [{"box": [0.6, 0.0, 0.4, 1.0], "name": "ox", "iscrowd": 0}],
            "width": W,
            "height": H,
        },
    ]
    (tmp_path / "plain").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "plain" / "x.parquet")
    coco = convert(tmp_path, tmp_path / "plain", "e")
    assert boxes_of(coco) == [(0, "cat", [100, 50, 100, 50]), (4, "ox", [120, 0, 80, 100])]
    assert [item["iscrowd"] for item in coco["annotations"]] == [1, 0]
    assert [(item["where"], item["reason"]) for item in coco["dropped"]] == [
        ("row 0: object 2", "row_unreadable"),
        ("row 1", "image_unreadable"),
        ("row 1: object 1", "object_image_dropped"),
        ("row 2", "image_not_embedded"),
        ("row 3", "image_size_differs"),
    ]
    coco = convert(tmp_path, tmp_path / "plain", "f", columns={"label": "iscrowd"}, category="thing")
    assert {category["name"] for category in coco["categories"]} == {"thing"}


def test_numbers_without_names_need_a_file_and_lists_must_be_aligned(tmp_path: Path) -> None:
    save(tmp_path / "data", labels=((1, 5), (0, 1)), label=datasets.Value("int64"))
    with pytest.raises(InputError, match=r"numbers without names[\s\S]*--classes"):
        convert(tmp_path, tmp_path / "data", "a")
    (tmp_path / "names.txt").write_text("cup\ndog\n")
    coco = convert(tmp_path, tmp_path / "data", "b", classes=tmp_path / "names.txt")
    assert boxes_of(coco) == EXPECTED[:1]
    assert [item["reason"] for item in coco["dropped"]] == ["objects_not_aligned", "object_category_unknown"]


def test_the_only_format_that_all_boxes_fit_is_used(tmp_path: Path) -> None:
    sizes = np.full((2, 2), [W, H], float)

    def possible(*boxes: list[float]) -> list[str]:
        return possible_formats(np.array(boxes, float), sizes[: len(boxes)])

    assert possible([120, 60, 40, 30], [10, 10, 50, 20]) == ["xywh"]  # as a center, the second would begin at −15
    assert possible([120, 60, 190, 95], [10, 10, 50, 20]) == ["xyxy"]  # 120 + 190 > 200
    assert possible([120, 60, 150, 70], [150, 50, 90, 95]) == ["cxcywh"]  # 120 − 75 to 195; as corners, 90 < 150
    assert possible([10, 10, 20, 20]) == ["xyxy", "xywh", "cxcywh"]
    assert possible([0.1, 0.5, 0.4, 0.5], [0.5, 0.5, 0.5, 0.5]) == ["xywh-normalized"]
    assert possible([500, 500, 600, 600]) == []
    assert possible() == []
    # one box in 200 that is no box does not matter; three do
    many = np.array([[120, 60, 40, 30], [10, 10, 50, 20]] * 100, float)
    for bad, expected in ((1, ["xywh"]), (3, [])):
        changed = many.copy()
        changed[:bad] = [10, 10, -5, 5]
        assert possible_formats(changed, np.full((200, 2), [W, H], float)) == expected
    unclear = [[[10.0, 10.0, 20.0, 20.0]], [[30.0, 30.0, 40.0, 40.0]]]
    save(tmp_path / "data", unclear, ((0,), (1,)))
    with pytest.raises(InputError, match=r"not clear[\s\S]*xyxy and xywh[\s\S]*--box-format"):
        convert(tmp_path, tmp_path / "data", "a")
    coco = convert(tmp_path, tmp_path / "data", "a", box_format="xyxy")
    assert [item["bbox"] for item in coco["annotations"]] == [[10, 10, 10, 10], [30, 30, 10, 10]]


def test_image_files_are_only_read_below_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(png())
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "own.png").write_bytes(png())
    objects = {"bbox": [[120.0, 60.0, 40.0, 30.0], [10.0, 10.0, 50.0, 20.0]], "category": ["cup", "cup"]}
    paths = [str(tmp_path / "outside.png"), "../outside.png", "own.png"]
    rows = [{"image": {"bytes": None, "path": path}, "objects": objects} for path in paths]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "plain" / "x.parquet")
    coco = convert(tmp_path, tmp_path / "plain")
    assert [image["id"] for image in coco["images"]] == [2]
    assert [item["reason"] for item in coco["dropped"] if item["kind"] == "image"] == ["path_outside_images"] * 2


def config_of(path: str, images: Path) -> Any:
    settings = {"path": path, "images": str(images), "min_objects": 1, "min_area": 0}
    return make_config({"annotations": settings}).annotations


def test_a_config_reads_a_dataset_and_writes_its_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    annotations = config_of("hf:./data", tmp_path / "images")
    assert str(annotations.path) == f"hf:{tmp_path}/data"
    images = load_objects(annotations)
    found = {(image.image_id, item.category, tuple(item.box)) for image in images for item in image.objects}
    assert found == {(str(k), name, (x, y, x + w, y + h)) for k, name, (x, y, w, h) in EXPECTED}
    # complete: nothing is read again; an image that an interrupted command lacks is written again
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "images").iterdir()}
    load_objects(annotations)
    assert times == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "images").iterdir()}
    marker = tmp_path / "images" / MARKER
    marker.write_text(marker.read_text().replace('"complete": true', '"complete": false'))
    (tmp_path / "images" / "00000001.png").unlink()
    (tmp_path / "images" / ".00000001.png.99999999.spr-tmp").write_text("half")
    prepare_annotations(annotations)
    assert {file.name for file in (tmp_path / "images").iterdir()} == set(times)
    assert '"complete": true' in marker.read_text()
    # another content of the folder, another dataset, and a user's folder are refused
    save(tmp_path / "changed", labels=((0, 0), (1,)))
    for file in (tmp_path / "changed").iterdir():
        (tmp_path / "data" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RunError, match="does not hold the images of this dataset"):
        prepare_annotations(annotations)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "holiday.png").write_bytes(png())
    with pytest.raises(RunError, match="holiday"):
        prepare_annotations(config_of("hf:./data", mine))
    assert [file.name for file in mine.iterdir()] == ["holiday.png"]
    with pytest.raises(InputError, match="has no dataset"):
        convert(tmp_path, mine, "new")
    assert not (tmp_path / "new").exists()  # so that the next try may use it
    with pytest.raises(InputError, match="no folder"):
        prepare_annotations(config_of("hf:./none", tmp_path / "other"))
