"""`convert_annotations`: every format gives the objects it states, and every item it leaves out has a reason."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from PIL import Image

from spr.annotations import Conversion, convert_annotations, read_coco
from spr.core.errors import ConfigError, InputError, RunError
from spr.core.reasons import DROP_REASONS

Json = dict[str, Any]
W, H = 200, 100


class Made:
    """A folder of a dataset in some format; `convert` returns the COCO JSON and the summary."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def write(self, name: str, content: str | bytes | list[Any]) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def image(self, name: str, size: tuple[int, int] = (W, H), **options: Any) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path, **options)
        return path

    def convert(self, source: str, path: str = "", **options: Any) -> tuple[Json, Conversion]:
        self.count += 1
        out = self.folder / f"out-{self.count}.json"
        done = convert_annotations(self.folder / path, out, source=source, **options)
        return json.loads(out.read_text()), done


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "data")


def objects(coco: Json) -> list[tuple[str, str, list[float]]]:
    """File name, category and xyxy box of each object, in the order of the JSON."""
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    categories = {category["id"]: category["name"] for category in coco["categories"]}
    assert len(names) == len(coco["images"])
    assert len({entry["id"] for entry in coco["annotations"]}) == len(coco["annotations"])
    rows = []
    for entry in coco["annotations"]:
        x, y, w, h = entry["bbox"]
        assert entry["area"] == pytest.approx(w * h, abs=0.1)
        box = [round(value, 3) for value in (x, y, x + w, y + h)]
        rows.append((names[entry["image_id"]], categories[entry["category_id"]], box))
    return rows


def reasons(coco: Json) -> list[tuple[str, str]]:
    assert all(item["reason"] in DROP_REASONS["convert"] for item in coco["dropped"])
    return [(item["where"], item["reason"]) for item in coco["dropped"]]


# --- YOLO


def test_yolo_rows_are_boxes_outlines_rotated_boxes_or_have_a_reason(made: Made) -> None:
    made.write(
        "data.yaml", "path: /somewhere/else\ntrain: ../train/images\nval: valid/images\nnames: [cup, 'big box']\n"
    )
    made.image("train/images/a.jpg")
    made.image("train/images/empty.jpg")
    made.image("valid/images/b.jpg")
    made.write("train/images/broken.jpg", b"no image")
    made.write("train/labels/broken.txt", "0 0.5 0.5 0.1 0.1\n")
    made.write("train/labels/lost.txt", "0 0.5 0.5 0.1 0.1\n")
    rows = [
        "0 0.5 0.5 0.2 0.4",  # center (100, 50), 40 × 40
        "1.0 0.25 0.5 0.1 0.2 0.93",  # a confidence
        "1 0.1 0.1 0.3 0.2 0.2 0.6",  # an outline: x 20 to 60, y 10 to 60
        "0 0.5 0.2 0.6 0.4 0.5 0.6 0.4 0.4",  # a square of 20√2 px turned by 45°: (100,20) (120,40) (100,60) (80,40)
        "0 0.5 0.5 0.2 0.4",
        "7 0.5 0.5 0.1 0.1",
        "0 0.5 0.5",
        "0 100 50 40 40",
        "0 nan 0.5 0.1 0.1",
        "0 0.5 0.5 0.1 0",
        "0 0.5 0.5 0.1 -0.1",
        "zero 0.5 0.5 0.1 0.1",
        "",
    ]
    made.write("train/labels/a.txt", "\n".join(rows))
    coco, done = made.convert("yolo")
    assert [category["name"] for category in coco["categories"]] == ["cup", "big box"]
    assert objects(coco) == [
        ("train/images/a.jpg", "cup", [80, 30, 120, 70]),
        ("train/images/a.jpg", "big box", [40, 40, 60, 60]),
        ("train/images/a.jpg", "big box", [20, 10, 60, 60]),
        ("train/images/a.jpg", "cup", [80, 20, 120, 60]),
    ]
    assert [(image["file_name"], image["width"], image["height"]) for image in coco["images"]] == [
        ("train/images/a.jpg", W, H),
        ("train/images/empty.jpg", W, H),
    ]
    assert reasons(coco) == [
        ("train/labels/a.txt:6", "object_category_unknown"),
        ("train/labels/a.txt:7", "row_unreadable"),
        ("train/labels/a.txt:8", "numbers_not_normalized"),
        ("train/labels/a.txt:9", "box_not_finite"),
        ("train/labels/a.txt:10", "box_size_zero"),
        ("train/labels/a.txt:11", "box_size_negative"),
        ("train/labels/a.txt:12", "row_unreadable"),
        ("train/images/broken.jpg", "image_unreadable"),
        ("train/labels/broken.txt: 1 row", "object_image_dropped"),
        ("train/labels/lost.txt", "image_missing"),
        ("train/images/a.jpg", "object_repeated"),
    ]
    notes = " ".join(f"{count} {note}" for note, count in done.notes.items())
    for expected in ("1 splits that are not converted (--split): val", "1 rotated", "1 outlines", "1 images without"):
        assert expected in notes
    assert done.dropped["object: row_unreadable"] == 2
    assert done.images == made.folder
    coco, _ = made.convert("yolo", "data.yaml", rotated="drop", split="val, train")
    assert ("train/labels/a.txt:4", "box_rotated") in reasons(coco)
    assert len(objects(coco)) == 3
    assert coco["images"][-1]["file_name"] == "valid/images/b.jpg"


def test_yolo_other_layouts_lists_and_keypoints(made: Made) -> None:
    # Darknet: labels beside the images, names and a list in files; a line may not lead out of the folder
    made.image("obj/7.png")
    made.write("obj/7.txt", "1 0.5 0.5 1 1\r\n")
    made.write("obj.names", "dog\ncat\n\n")
    made.write("train.txt", "data/obj/7.png\n/etc/passwd\nobj/8.png\n")
    made.write("d.yaml", "train: train.txt\nkpt_shape: [2, 3]\n")
    coco, _ = made.convert("yolo")
    assert objects(coco) == [("obj/7.png", "cat", [0, 0, W, H])]
    assert coco["images"][0]["id"] == 7  # the number in its name
    assert reasons(coco) == [("train.txt: /etc/passwd", "path_outside_images"), ("obj/8.png", "image_missing")]
    # keypoints: the first four of 4 + 2 · 3 numbers are the box
    made.write("obj/7.txt", "0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.9 0.9 2\n")
    coco, _ = made.convert("yolo")
    assert objects(coco) == [("obj/7.png", "dog", [50, 25, 150, 75])]
    # names by number, and images in another folder
    made.write("d.yaml", "names: {3: dog, 5: cat}\n")
    made.image("photos/images/x.png")
    made.write("photos/labels/x.txt", "5 0.5 0.5 0.5 0.5\n")
    coco, done = made.convert("yolo", images=made.folder / "photos" / "images")
    assert objects(coco) == [("x.png", "cat", [50, 25, 150, 75])]
    assert done.images == made.folder / "photos" / "images"
    # a list names some images of a folder; the labels of the others are not without an image
    made.image("obj/9.png")
    made.write("obj/9.txt", "0 0.5 0.5 1 1\n")
    made.write("train.txt", f"{made.folder}/obj/7.png\n")
    made.write("d.yaml", "train: train.txt\nkpt_shape: [2, 3]\n")
    coco, _ = made.convert("yolo")
    assert (objects(coco), reasons(coco)) == ([("obj/7.png", "dog", [50, 25, 150, 75])], [])
    made.write("d.yaml", "names: {3: dog, 5: cat}\n")
    made.write("photos/labels/x.txt", b"5 0.5 0.5 0.5 \xff\n")
    with pytest.raises(InputError, match="label_file_unreadable 1"):
        made.convert("yolo", images=made.folder / "photos" / "images")


def test_yolo_paths_of_the_machine_that_made_the_file_and_missing_splits(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.image("images/train/a b.JPG", format="JPEG")
    made.write("labels/train/a b.txt", "0 0.5 0.5 1 1\n")
    made.write("list.txt", f"{made.folder}/images/train/a b.JPG\n")
    monkeypatch.chdir(made.folder.parent)
    expected = [("images/train/a b.JPG", "cup", [0, 0, W, H])]
    for number, lines in enumerate(
        [
            "path: /content/x\ntrain: /content/x/images/train",  # Ultralytics, made on another machine
            f"path: {made.folder}\ntrain: images/train",
            "train: ../images/train\nval: ../valid/images\ntest: ../test/images",  # Roboflow, without these splits
            "train: list.txt",
        ]
    ):
        made.write("data.yaml", f"{lines}\nnames: [cup]\n")
        out = Path(f"{number}.json")
        done = convert_annotations("data", out, source="yolo")  # a relative path
        assert (objects(json.loads(out.read_text())), done.dropped) == (expected, {})


def test_yolo_numbers_refer_to_the_image_as_exif_orients_it(made: Made) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    made.image("images/a.jpg", exif=exif)
    made.write("labels/a.txt", "0 0.5 0.25 0.5 0.5\n")
    made.write("classes.txt", "cup\n")
    coco, done = made.convert("yolo")
    assert coco["images"][0]["width"] == H
    assert objects(coco) == [("images/a.jpg", "cup", [25, 0, 75, 100])]
    assert done.notes["images with an EXIF orientation: use them with annotations.orientation=apply"] == 1
    coco, _ = made.convert("yolo", orientation="ignore")
    assert objects(coco) == [("images/a.jpg", "cup", [50, 0, 150, 50])]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"images/a.txt": ""}, "no names of categories"),
        ({"data.yaml": "names: 3"}, "not valid"),
        ({"data.yaml": "names: [yes, no]"}, "in quotes"),
        ({"data.yaml": "- a"}, "not a YOLO config"),
        ({"data.yaml": "names: [a"}, "not YAML"),
        ({"data.yaml": "names: [a]\ntrain: ../../etc"}, "not below"),
        ({"data.yaml": "names: [a]\ntrain: images"}, "not below"),
        ({"classes.txt": "a"}, "Nothing can be converted"),
    ],
)
def test_yolo_errors_name_what_is_wrong(made: Made, files: dict[str, str], expected: str) -> None:
    for name, content in files.items():
        made.write(name, content)
    with pytest.raises(InputError, match=expected):
        made.convert("yolo")


# --- Pascal VOC


def voc(filename: str, *items: str, size: tuple[int, int] | None = (W, H), before: str = "") -> str:
    tag = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    name = f"<filename>{escape(filename)}</filename>"
    return f"{before}<annotation><folder>x</folder>{name}<path>/etc/{name}</path>{tag}{''.join(items)}</annotation>"


def voc_object(name: str, box: tuple[object, ...], more: str = "") -> str:
    edges = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{escape(name)}</name>{more}<bndbox>{edges}</bndbox></object>"


def test_voc_pixels_are_counted_from_one_and_marks_are_kept(made: Made) -> None:
    made.image("JPEGImages/a.jpg")
    made.image("JPEGImages/b.jpg")
    difficult = "<difficult>1</difficult><truncated>0</truncated>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    items = [
        voc_object("dog", (1, 1, W, H)),
        voc_object("salt & pepper", (11, 21, 30, 40), difficult),
        voc_object("dog", (5, "x", 6, 7)),
        voc_object("", (5, 5, 6, 7)),
        f"<object><name>dog</name>{part}<polygon><x1>10</x1><y1>20</y1><x2>30</x2><y2>20</y2><x3>20</x3><y3>50</y3></polygon></object>",
        "<object><name>dog</name></object>",
    ]
    made.write("Annotations/a.xml", voc("a.jpg", *items))
    made.write("Annotations/b.xml", voc("renamed.jpg", voc_object("cat", (3, 3, 9, 9)), size=None))
    bomb = '<!DOCTYPE x [<!ENTITY a "1"><!ENTITY b "&a;&a;">]>'
    made.write("Annotations/c.xml", voc("a.jpg", before=bomb))
    made.write("Annotations/d.xml", "<annotation><object>")
    made.write("Annotations/e.xml", "<html/>")
    made.write("Annotations/f.xml", voc("gone.jpg", voc_object("cat", (3, 3, 9, 9))))
    made.write("Annotations/g.xml", voc("../a.jpg", voc_object("cat", (3, 3, 9, 9))))
    made.write("ImageSets/Main/train.txt", "b\n")
    made.write("ImageSets/Main/dog_train.txt", "b  1\nh 1 -1\n")
    coco, done = made.convert("voc")
    assert objects(coco) == [
        ("a.jpg", "dog", [0, 0, W, H]),
        ("a.jpg", "salt & pepper", [10, 20, 30, 40]),
        ("a.jpg", "dog", [10, 20, 30, 50]),
        ("b.jpg", "cat", [2, 2, 9, 9]),
    ]
    assert [entry.get("difficult") for entry in coco["annotations"]] == [None, 1, None, None]
    assert reasons(coco) == [
        ("a.xml: object 3", "row_unreadable"),
        ("a.xml: object 4", "category_without_name"),
        ("a.xml: object 6", "shape_without_box"),
        ("c.xml", "label_file_unreadable"),
        ("d.xml", "label_file_unreadable"),
        ("e.xml", "label_file_unreadable"),
        ("f.xml", "image_missing"),
        ("f.xml: object 1", "object_image_dropped"),
        ("g.xml", "image_repeated"),
        ("g.xml: object 1", "object_image_dropped"),
    ]
    assert "document type" in next(item["got"] for item in coco["dropped"] if item["where"] == "c.xml")
    assert done.images == made.folder / "JPEGImages"
    coco, _ = made.convert("voc", drop=["difficult"])
    assert ("a.xml: object 2", "mark_dropped") in reasons(coco)
    made.image("JPEGImages/h 1.jpg")
    wide = '<?xml version="1.0" encoding="utf-16"?>' + voc("h 1.jpg", voc_object("cat", (3, 3, 9, 9)))
    made.write("Annotations/h 1.xml", wide.encode("utf-16"))
    coco, _ = made.convert("voc", split="dog_train")
    assert [name for name, *_ in objects(coco)] == ["b.jpg", "h 1.jpg"]
    coco, _ = made.convert("voc", split="train", zero_based=True)
    assert objects(coco) == [("b.jpg", "cat", [3, 3, 9, 9])]
    with pytest.raises(InputError, match=r"no split test[\s\S]*train"):
        made.convert("voc", split="test")


def test_voc_without_images_keeps_the_stated_sizes_and_points_out_zeros(made: Made) -> None:
    made.write("a/1.xml", voc("1.jpg", voc_object("cat", (0, 4, 9, 9))))
    made.write("a/2.xml", voc("2.jpg", voc_object("cat", (4, 4, 9, 9)), size=(0, 0)))
    coco, done = made.convert("voc")
    assert objects(coco) == [("a/1.jpg", "cat", [-1, 3, 9, 9])]
    assert reasons(coco) == [("a/2.xml", "image_missing"), ("a/2.xml: object 1", "object_image_dropped")]
    assert any("--zero-based" in note for note in done.notes)


# --- CSV


def test_csv_open_images(made: Made) -> None:
    made.image("photos/0a.jpg")
    made.image("photos/0b.png", (50, 50))
    header = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    rows = [
        "0a,x,/m/1,1,0.1,0.5,0.2,0.8,0,1,0,0,0",  # x 20 to 100, y 20 to 80
        "0b,x,/m/2,1,0,1,0,1,0,0,1,0,0",
        "0a,x,/m/3,1,0,1,0,1,0,0,0,0,0",
        "0c,x,/m/1,1,0,1,0,1,0,0,0,0,0",
        "0a,x,/m/1,1,0,400,0,1,0,0,0,0,0",
        "0a,x,/m/1,1,0,,0,1,0,0,0,0,0",
    ]
    made.write("boxes.csv", "\n".join([header, *rows]))
    classes = made.write("classes.csv", '/m/1,Dog\n/m/2,"Cat, big"\n')
    info = made.write(
        "info.csv", "ImageID,Subset,OriginalURL,OriginalLandingURL,License\n0a,t,u,https://f/1,https://cc/by\n"
    )
    coco, _ = made.convert(
        "csv", "boxes.csv", images=made.folder / "photos", classes=classes, image_info=info, drop=["occluded"]
    )
    assert objects(coco) == [("0a.jpg", "Dog", [20, 20, 100, 80]), ("0b.png", "Cat, big", [0, 0, 50, 50])]
    assert [entry["iscrowd"] for entry in coco["annotations"]] == [0, 1]
    assert coco["annotations"][0]["truncated"] == 1
    assert reasons(coco) == [
        ("line 4", "object_category_unknown"),
        ("line 5", "image_missing"),
        ("line 5", "object_image_dropped"),
        ("line 6", "numbers_not_normalized"),
        ("line 7", "row_unreadable"),
    ]
    assert coco["licenses"] == [{"id": 1, "name": "https://cc/by"}]
    assert (coco["images"][0]["license"], coco["images"][0]["coco_url"]) == (1, "https://f/1")
    path = made.folder / "out-1.json"
    assert read_coco(path).licenses[0] == "https://cc/by"


def test_csv_retinanet_named_columns_and_box_formats(made: Made) -> None:
    made.image("img/a.jpg")
    made.image("img/b.jpg")
    made.write("r.csv", f"img/a.jpg,10,20,30,40,dog\n{made.folder}/img/b.jpg,,,,,\n../x.jpg,1,2,3,4,dog\n")
    coco, done = made.convert("csv", "r.csv")
    assert objects(coco) == [("img/a.jpg", "dog", [10, 20, 30, 40])]
    assert len(coco["images"]) == 2
    assert reasons(coco) == [("line 3", "image_file_name_unsafe"), ("line 3", "object_image_dropped")]
    assert done.notes == {"rows without an object, only with an image": 1}
    # semicolons, a byte order mark, sizes in columns: no image is opened
    made.write(
        "t.csv",
        "\ufefffilename;width;height;class;xmin;ymin;xmax;ymax\nz.jpg;90;80;dog;1;2;3;4\nz.jpg;90;80;cat;5;6;700;8\n",
    )
    coco, _ = made.convert("csv", "t.csv")
    made.write("bars.csv", "filename|width|height|class|xmin|ymin|xmax|ymax\nz.jpg|90|80|a, b|1|2|3|4\n")
    assert objects(made.convert("csv", "bars.csv")[0]) == [("z.jpg", "a, b", [1, 2, 3, 4])]
    assert objects(coco) == [("z.jpg", "dog", [1, 2, 3, 4]), ("z.jpg", "cat", [5, 6, 700, 8])]
    assert (coco["images"][0]["width"], coco["images"][0]["height"]) == (90, 80)
    # one column with four numbers, no category
    made.write("k.csv", 'image_id,bbox\nimg/a,"[10.5, 20.0, 30.0, 40.0]"\n')
    with pytest.raises(InputError, match="--box-format xyxy"):
        made.convert("csv", "k.csv", category="wheat")
    coco, _ = made.convert("csv", "k.csv", category="wheat", box_format="xywh")
    assert objects(coco) == [("img/a.jpg", "wheat", [10.5, 20, 40.5, 60])]
    # columns of any name
    made.write("n.csv", "a,b,c,d,e,f\nimg/a.jpg,0.5,0.5,0.2,0.4,dog\n")
    columns = {"image": "a", "cx": "b", "cy": "c", "w": "d", "h": "e", "label": "f"}
    with pytest.raises(InputError, match="cxcywh-normalized"):
        made.convert("csv", "n.csv", columns=columns)
    coco, _ = made.convert("csv", "n.csv", columns=columns, box_format="cxcywh-normalized")
    assert objects(coco) == [("img/a.jpg", "dog", [80, 30, 120, 70])]
    for changed, expected in (
        ({**columns, "cx": "no"}, "no column no"),
        ({**columns, "z": "a"}, "unknown field"),
    ):
        with pytest.raises(ConfigError, match=expected):
            made.convert("csv", "n.csv", columns=changed)
    with pytest.raises(InputError, match="file names"):
        made.convert("csv", "n.csv")


# --- Label Studio


def rectangle(box: list[float], labels: list[str], **more: Any) -> Json:
    x, y, w, h = box
    value = {"x": x, "y": y, "width": w, "height": h, "rotation": more.pop("rotation", 0), "rectanglelabels": labels}
    return {"type": "rectanglelabels", "original_width": W, "original_height": H, "value": value, **more}


def test_label_studio_percentages_rotations_and_several_annotations(made: Made) -> None:
    size = {"original_width": W, "original_height": H}
    results = [
        rectangle([10, 20, 30, 40], ["dog"]),  # x 20 to 80, y 20 to 60
        # 40 × 20 px at (100, 50), turned clockwise by 90° around that corner: x 80 to 100, y 50 to 90
        rectangle([50, 50, 20, 20], ["cat"], rotation=90),
        {"type": "polygonlabels", **size, "value": {"points": [[1, 2], [11, 2], [6, 12]], "polygonlabels": ["dog"]}},
        {
            "type": "ellipselabels",
            **size,
            "value": {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "ellipselabels": ["cup"]},
        },
        {"type": "rectangle", "id": "r1", **size, "value": {"x": 0, "y": 0, "width": 50, "height": 50}},
        {
            "type": "labels",
            "id": "r1",
            **size,
            "value": {"x": 0, "y": 0, "width": 50, "height": 50, "labels": ["a", "b"]},
        },
        {"type": "brushlabels", **size, "value": {"format": "rle", "rle": [1], "brushlabels": ["dog"]}},
        {"type": "keypointlabels", **size, "value": {"x": 1, "y": 1, "width": 0.5, "keypointlabels": ["dog"]}},
        rectangle([1, 1, 5, 5], ["dog"], image_rotation=90),
        rectangle([1, 1, 5, 5], []),
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    tasks = [
        {
            "id": 41,
            "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"},
            "annotations": [
                {"id": 1, "result": [rectangle([0, 0, 9, 9], ["old"])], "updated_at": "2024-01-01T00:00:00Z"},
                {"id": 2, "result": results, "updated_at": "2024-02-01T00:00:00Z"},
                {"id": 3, "result": [], "was_cancelled": True, "updated_at": "2025-01-01T00:00:00Z"},
            ],
            "predictions": [{"result": []}],
        },
        {"id": 42, "data": {"photo": "https://host/p/b%201.jpg?x=1"}, "annotations": [{"result": []}]},
        {
            "id": 43,
            "data": {"image": "s3://bucket/gone.jpg"},
            "annotations": [{"result": [rectangle([0, 0, 9, 9], ["x"])]}],
        },
        "no task",
    ]
    made.write("export.json", tasks)
    made.image("img/a.jpg")
    made.image("img/b 1.jpg")
    coco, done = made.convert("label-studio", "export.json", images=made.folder / "img")
    assert objects(coco) == [
        ("a.jpg", "dog", [20, 20, 80, 60]),
        ("a.jpg", "cat", [80, 50, 100, 90]),
        ("a.jpg", "dog", [2, 2, 22, 12]),
        ("a.jpg", "cup", [80, 40, 120, 60]),
        ("a.jpg", "a", [0, 0, 100, 50]),
        ("a.jpg", "b", [0, 0, 100, 50]),
    ]
    assert [image["id"] for image in coco["images"]] == [41, 42]
    assert coco["images"][1]["coco_url"] == "https://host/p/b%201.jpg?x=1"
    assert reasons(coco) == [
        ("task 41: annotation 3", "annotation_cancelled"),
        ("task 41: annotation 1", "annotation_superseded"),
        ("task 41: brushlabels 6", "shape_without_box"),
        ("task 41: keypointlabels 7", "shape_without_box"),
        ("task 41: rectanglelabels 8", "image_turned_in_editor"),
        ("task 41: rectanglelabels 9", "category_without_name"),
        ("task 43", "image_missing"),
        ("task 43: rectanglelabels 1", "object_image_dropped"),
        ("task 4", "entry_not_an_object"),
    ]
    assert done.notes["tasks with predictions, which are not converted"] == 1
    # without images: names as they are, and tasks without a box are counted
    coco, done = made.convert("label-studio", "export.json", rotated="drop")
    assert [image["file_name"] for image in coco["images"]] == ["0a1b2c3d-a.jpg", "gone.jpg"]
    assert "box_rotated" in dict(map(reversed, reasons(coco)))
    assert done.notes["tasks without a box: the size of their image is unknown (--images)"] == 1
    # JSON-MIN
    value = {
        "x": 10,
        "y": 20,
        "width": 30,
        "height": 40,
        "rectanglelabels": ["dog"],
        "original_width": W,
        "original_height": H,
    }
    made.write("min.json", [{"id": 5, "image": "/data/local-files/?d=sub/c.jpg", "label": [value]}])
    coco, _ = made.convert("label-studio", "min.json")
    assert objects(coco) == [("sub/c.jpg", "dog", [20, 20, 80, 60])]


def test_label_studio_renames_uploaded_files(made: Made) -> None:
    # Names as Django's get_valid_filename makes them, which Label Studio applies to an upload.
    uploads = {
        "0a1b2c3d-s_1.jpg": "s 1.jpg",
        "0a1b2c3d-s_2_copy.jpg": "s 2 (copy).jpg",
        "0a1b2c3d-%C3%A9t%C3%A9_50.JPG": "été 50%.JPG",
        "0a1b2c3d-plain.jpg": "plain.JPG",  # spelled alike
        "0a1b2c3d-t_1.jpg": None,  # two files get this name
        "s_1.jpg": None,  # not uploaded
        "0a1b2c3d-kept.jpg": "0a1b2c3d-kept.jpg",  # downloaded from Label Studio
    }
    for name in (*filter(None, uploads.values()), "kept.jpg", "t 1.jpg", "t_1.jpg"):
        made.image(f"img/{name}")
    results = [{"result": [rectangle([10, 20, 30, 40], ["dog"])]}]
    data = [{"image": f"/data/upload/1/{name}"} for name in uploads]
    made.write("e.json", [{"id": k, "data": data, "annotations": results} for k, data in enumerate(data, 1)])
    coco, done = made.convert("label-studio", "e.json", images=made.folder / "img")
    assert {image["id"]: image["file_name"] for image in coco["images"]} == {
        k: name for k, name in enumerate(uploads.values(), 1) if name
    }
    assert [item for item in reasons(coco) if "missing" in item[1]] == [
        ("task 5", "image_missing"),
        ("task 6", "image_missing"),
    ]
    assert done.examples["image: image_missing"] == (
        "task 5: 2 files that Label Studio calls t_1.jpg: 't 1.jpg', 't_1.jpg'"
    )


@pytest.mark.parametrize("recorded", [(W, H), (H, W)])
def test_label_studio_percentages_refer_to_the_image_as_the_browser_shows_it(
    made: Made, recorded: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 200 × 100, shown 100 × 200
    made.image("img/a.jpg", exif=exif)
    width, height = recorded
    result = {**rectangle([10, 20, 30, 40], ["dog"]), "original_width": width, "original_height": height}
    made.write("e.json", [{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [result]}]}])
    coco, _ = made.convert("label-studio", "e.json", images=made.folder / "img")
    assert (coco["images"][0]["width"], coco["images"][0]["height"]) == (100, 200)
    assert objects(coco) == [("a.jpg", "dog", [10, 40, 40, 120])]


# --- CVAT


def test_cvat_shapes_tracks_and_rotation(made: Made) -> None:
    xml = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><labels><label><name>zebra</name></label><label><name>dog</name></label></labels>
<original_size><width>{W}</width><height>{H}</height></original_size></task></meta>
<image id="3" name="sub/a.jpg" width="{W}" height="{H}" subset="train">
<box label="dog" occluded="1" xtl="10" ytl="20" xbr="30.5" ybr="40"><attribute name="color">red</attribute></box>
<box label="dog" xtl="80" ytl="40" xbr="120" ybr="60" rotation="90"></box>
<polygon label="zebra" points="1,2;11,2;6,12"/>
<ellipse label="zebra" cx="50" cy="50" rx="10" ry="20"/>
<mask label="dog" rle="1, 2" left="5" top="6" width="7" height="8"/>
<polyline label="dog" points="1,2;3,4"/>
<tag label="dog"/>
<box label="dog" xtl="1" ytl="2" xbr="3"/>
</image>
<image id="4" name="b.jpg" width="0" height="9"><box label="dog" xtl="0" ytl="0" xbr="5" ybr="5"/></image>
<track id="0" label="dog">
<box frame="5" outside="0" xtl="0" ytl="0" xbr="5" ybr="5"/><box frame="6" outside="1" xtl="0" ytl="0" xbr="5" ybr="5"/>
</track></annotations>"""
    made.write("annotations.xml", xml)
    coco, done = made.convert("cvat")
    assert [category["name"] for category in coco["categories"]] == ["zebra", "dog"]
    assert objects(coco) == [
        ("frame_000005.PNG", "dog", [0, 0, 5, 5]),
        ("sub/a.jpg", "dog", [10, 20, 30.5, 40]),
        ("sub/a.jpg", "dog", [90, 30, 110, 70]),  # 40 × 20 around (100, 50)
        ("sub/a.jpg", "zebra", [1, 2, 11, 12]),
        ("sub/a.jpg", "zebra", [40, 30, 60, 70]),
        ("sub/a.jpg", "dog", [5, 6, 12, 14]),
    ]
    assert {image["file_name"]: image["id"] for image in coco["images"]} == {"sub/a.jpg": 3, "frame_000005.PNG": 5}
    assert reasons(coco) == [
        ("image 3 sub/a.jpg: polyline 6", "shape_without_box"),
        ("image 3 sub/a.jpg: tag 7", "shape_without_box"),
        ("image 3 sub/a.jpg: box 8", "row_unreadable"),
        ("image 4 b.jpg", "image_size_invalid"),
        ("image 4 b.jpg: box 1", "object_image_dropped"),
        ("track 0, frame 6", "box_not_visible"),
    ]
    assert done.notes["objects with attributes, which are not kept"] == 1
    coco, _ = made.convert("cvat", "annotations.xml", split="train", rotated="drop", drop=["occluded"])
    assert [row[2] for row in objects(coco)] == [[1, 2, 11, 12], [40, 30, 60, 70], [5, 6, 12, 14]]
    made.image("images/00005.jpg")
    coco, _ = made.convert("cvat", frames="{:05d}.png")
    assert objects(coco) == [("00005.jpg", "dog", [0, 0, 5, 5])]
    assert "image_missing" in dict(map(reversed, reasons(coco)))
    with pytest.raises(InputError, match="not a format"):
        made.convert("cvat", frames="{x}")
    made.write("annotations.xml", '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>')
    with pytest.raises(InputError, match="document type"):
        made.convert("cvat")
    made.write("annotations.xml", "<annotations>" + "<a>" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        made.convert("cvat")


# --- all formats


def coco_photos(folder: Path) -> tuple[Json, Path]:
    return json.loads((folder / "instances.json").read_text()), folder / "images"


def normalized(value: float, size: int) -> str:
    return f"{value / size:.6f}"


def write_yolo(coco: Json, images: Path, out: Path) -> None:
    names = [category["name"] for category in coco["categories"]]
    index = {category["id"]: k for k, category in enumerate(coco["categories"])}
    out.mkdir()
    (out / "images").symlink_to(images)
    (out / "labels").mkdir()
    (out / "data.yaml").write_text(json.dumps({"train": "images", "names": names}))
    for image in coco["images"]:
        w, h = image["width"], image["height"]
        lines = []
        for item in coco["annotations"]:
            if item["image_id"] == image["id"]:
                x, y, bw, bh = item["bbox"]
                numbers = normalized(x + bw / 2, w), normalized(y + bh / 2, h), normalized(bw, w), normalized(bh, h)
                lines.append(" ".join([str(index[item["category_id"]]), *numbers]))
        (out / "labels" / f"{Path(image['file_name']).stem}.txt").write_text("\n".join(lines))


def write_voc(coco: Json, images: Path, out: Path) -> None:
    names = {category["id"]: category["name"] for category in coco["categories"]}
    out.mkdir()
    (out / "JPEGImages").symlink_to(images)
    (out / "Annotations").mkdir()
    for image in coco["images"]:
        items = []
        for item in coco["annotations"]:
            if item["image_id"] == image["id"]:
                x, y, w, h = item["bbox"]
                items.append(voc_object(names[item["category_id"]], (x + 1, y + 1, x + w, y + h)))
        text = voc(image["file_name"], *items, size=(image["width"], image["height"]))
        (out / "Annotations" / f"{Path(image['file_name']).stem}.xml").write_text(text)


def write_csv(coco: Json, _: Path, out: Path) -> None:
    names = {category["id"]: category["name"] for category in coco["categories"]}
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    out.mkdir()
    rows = [[files[a["image_id"]], names[a["category_id"]], *a["bbox"]] for a in coco["annotations"]]
    random.Random(0).shuffle(rows)
    with (out / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label", "x", "y", "w", "h"], *rows])


def write_label_studio(coco: Json, _: Path, out: Path) -> None:
    names = {category["id"]: category["name"] for category in coco["categories"]}
    out.mkdir()
    tasks = []
    for image in coco["images"]:
        w, h = image["width"], image["height"]
        results = []
        for item in coco["annotations"]:
            if item["image_id"] == image["id"]:
                x, y, bw, bh = item["bbox"]
                value = {"x": 100 * x / w, "y": 100 * y / h, "width": 100 * bw / w, "height": 100 * bh / h}
                value["rectanglelabels"] = [names[item["category_id"]]]
                results.append({"type": "rectanglelabels", "original_width": w, "original_height": h, "value": value})
        data = {"image": f"/data/upload/1/0123abcd-{image['file_name']}"}
        tasks.append({"id": image["id"], "data": data, "annotations": [{"result": results}]})
    (out / "export.json").write_text(json.dumps(tasks))


def write_cvat(coco: Json, _: Path, out: Path) -> None:
    names = {category["id"]: category["name"] for category in coco["categories"]}
    out.mkdir()
    parts = []
    for image in coco["images"]:
        shapes = []
        for item in coco["annotations"]:
            if item["image_id"] == image["id"]:
                x, y, w, h = item["bbox"]
                turned = (x + w / 2 - h / 2, y + h / 2 - w / 2, x + w / 2 + h / 2, y + h / 2 + w / 2)  # by 90°
                edges = " ".join(f'{k}="{v}"' for k, v in zip(("xtl", "ytl", "xbr", "ybr"), turned, strict=True))
                shapes.append(f'<box label="{escape(names[item["category_id"]])}" rotation="270" {edges}/>')
        size = f'width="{image["width"]}" height="{image["height"]}"'
        parts.append(f'<image id="{image["id"]}" name="{image["file_name"]}" {size}>{"".join(shapes)}</image>')
    (out / "annotations.xml").write_text(f"<annotations>{''.join(parts)}</annotations>")


WRITERS = {
    "yolo": (write_yolo, "", 0.01),
    "voc": (write_voc, "", 1e-3),
    "csv": (write_csv, "boxes.csv", 1e-3),
    "label-studio": (write_label_studio, "export.json", 1e-3),
    "cvat": (write_cvat, "annotations.xml", 1e-3),
}


@pytest.mark.parametrize("source", WRITERS)
def test_photographs_come_back_from_every_format(photos: Path, tmp_path: Path, source: str) -> None:
    coco, images = coco_photos(photos)
    coco["annotations"] = [item for item in coco["annotations"] if not item["iscrowd"]]
    write, path, tolerance = WRITERS[source]
    write(coco, images, tmp_path / "made")
    options = {"images": images} if source in ("csv", "label-studio", "yolo") else {}
    if source == "yolo":
        options["images"] = tmp_path / "made" / "images"
    out = tmp_path / "back.json"
    done = convert_annotations(tmp_path / "made" / path, out, source=source, **options)
    before, after = read_coco(photos / "instances.json"), read_coco(out)
    assert after.image_ids.tolist() == [int(Path(name).stem) for name in after.file_names]
    keep = ~before.crowd

    def rows(annotations: Any, chosen: Any) -> list[tuple[str, str, float, float, float, float]]:
        owner = [k for k in range(len(annotations.image_ids)) for _ in range(*annotations.rows(k).indices(10**9))]
        return sorted(
            (annotations.file_names[owner[k]], annotations.categories[annotations.category[k]], *map(float, box))
            for k, box in enumerate(annotations.boxes_xyxy)
            if chosen is None or chosen[k]
        )

    expected, found = rows(before, keep), rows(after, None)
    assert len(found) == len(expected) > 100
    assert done.dropped == {}
    unmatched = list(expected)
    for row in found:  # sorting may exchange objects whose edges differ by rounding
        same = [other for other in unmatched if other[:2] == row[:2]]
        best = min(same, key=lambda other: max(abs(a - b) for a, b in zip(other[2:], row[2:], strict=True)))
        assert max(abs(a - b) for a, b in zip(best[2:], row[2:], strict=True)) <= tolerance
        unmatched.remove(best)
    images_with_objects = {row[0] for row in expected}
    assert {name for name in after.file_names if name in images_with_objects} == images_with_objects


def test_ids_depend_on_the_file_name_alone_and_output_is_never_replaced(made: Made) -> None:
    rows = ["x/7.jpg,10,20,30,40,dog", "y/7.jpg,10,20,30,40,dog", "y/008.jpg,10,20,30,40,cat"]
    for name in ("x/7.jpg", "y/7.jpg", "y/008.jpg", "new.jpg"):
        made.image(name)
    made.write("a.csv", "\n".join(rows))
    made.write("b.csv", "\n".join(["new.jpg,1,2,3,4,ant", *reversed(rows)]))
    first, _ = made.convert("csv", "a.csv")
    second, _ = made.convert("csv", "b.csv")
    ids = [{image["file_name"]: image["id"] for image in coco["images"]} for coco in (first, second)]
    assert ids[0].items() < ids[1].items()
    assert ids[0]["y/008.jpg"] == 8
    assert all(2**52 <= ids[1][name] < 2**53 for name in ("x/7.jpg", "y/7.jpg", "new.jpg"))
    out = made.folder / "out-1.json"
    before = out.read_bytes()
    assert not convert_annotations(made.folder / "a.csv", out, source="csv").written
    with pytest.raises(RunError, match="other converted annotations"):
        convert_annotations(made.folder / "b.csv", out, source="csv")
    mine = made.write("mine.json", "{}")
    with pytest.raises(RunError, match="left unchanged"):
        convert_annotations(made.folder / "a.csv", mine, source="csv")
    with pytest.raises(RunError, match="a folder"):
        convert_annotations(made.folder / "a.csv", made.folder / "x", source="csv")
    assert out.read_bytes() == before
    assert mine.read_text() == "{}"
    assert not list(made.folder.glob(".*"))


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("yollo", {}, "did you mean `yolo`"),
        ("voc", {"rotated": "drop"}, r"--rotated does not apply to --from voc[\s\S]*--zero-based"),
        ("csv", {"drop": ["hard"]}, "unknown mark"),
        ("csv", {"box_format": "yxyx"}, "--box-format is unknown"),
        ("csv", {"images": Path("/nowhere")}, "no image folder"),
    ],
)
def test_options_that_do_not_apply_are_errors(made: Made, source: str, options: Json, expected: str) -> None:
    made.write("a.csv", "a.jpg,1,2,3,4,dog")
    with pytest.raises((ConfigError, InputError), match=expected):
        made.convert(source, "a.csv", **options)


@pytest.mark.parametrize("source", ["yolo", "voc", "csv", "label-studio", "cvat", "hf"])
def test_missing_and_damaged_inputs_are_explained(made: Made, source: str) -> None:
    made.folder.mkdir()
    options = {"images": made.folder / "img"} if source == "hf" else {}
    with pytest.raises(InputError):
        made.convert(source, "./nothing" if source != "hf" else "", **options)
    for content in (b"", b"\x00\x01\x02", b"[1, {", b"<a", b"\xff\xfe", b"PK\x03\x04"):
        made.write("odd", content)
        if source != "hf":
            with pytest.raises(InputError):
                made.convert(source, "odd")
