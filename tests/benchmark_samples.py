"""Two-row samples of the layouts of published benchmarks. The rows are made up; only their form is the publishers'."""

import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

RED, BLUE = (200, 100, "red"), (100, 200, "blue")
"""Width, height and colour of the two images."""


def png(width, height, colour):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def mask(width, height, box):
    """A mask image that is white inside a box (x1, y1, x2, y2)."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def embedded(*images):
    """A column of images as the datasets library writes it."""
    return [{"bytes": png(*image), "path": None} for image in images]


def write_parquet(path, columns):
    pq.write_table(pa.table(columns), path, row_group_size=1)
    return path


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_tsv(path, rows):
    text = "\n".join("\t".join(map(str, row)) for row in [list(rows[0]), *(row.values() for row in rows)])
    path.write_text(text + "\n")
    return path


@dataclass
class Sample:
    """A file, the task that reads it, answers in LLaVA-OneVision's dialect by id, and the metrics that these have."""

    task: str
    path: Path
    answers: dict[str, str]
    metrics: dict[str, float]
    options: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    colours: tuple[str, ...] = field(default=())


# Of the red image, the object has the box (20, 10, 60, 50) in pixels; of the blue one (50, 100, 100, 200).
RIGHT, WRONG = "[0.10, 0.10, 0.30, 0.50]", "[0.00, 0.00, 0.10, 0.10]"
HALF = {"acc@0.5": 0.5, "mean_iou": 0.5}


def rec_lines(folder):
    rows = [
        {"image": "r.png", "sentence": "a cup", "box": [20, 10, 60, 50], "width": 200, "height": 100},
        {"image": "b.png", "sentence": "a cat", "box": [50, 100, 100, 200], "width": 100, "height": 200},
    ]
    return Sample("rec", write_lines(folder / "mine.jsonl", rows), {"0": RIGHT, "1": WRONG}, HALF)


def mdetr_content(**more):
    names = [("r.png", 200, 100, "a cup", [20, 10, 40, 40]), ("b.png", 100, 200, "a cat", [50, 100, 50, 100])]
    images = [
        {"id": k, "file_name": name, "width": w, "height": h, "caption": text, "dataset_name": "refcoco"}
        for k, (name, w, h, text, _) in enumerate(names)
    ]
    annotations = [{"id": 9 - k, "image_id": k, "bbox": row[4], **more} for k, row in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": []}


def mdetr(folder):
    path = write_json(folder / "finetune_refcoco_val.json", mdetr_content())
    return Sample("rec", path, {"0": RIGHT, "1": WRONG}, HALF, groups=("refcoco",))


def finecops_positive(folder):
    path = write_json(folder / "test_expression_coco_format.json", mdetr_content(level=2, tuple_type="1_hop"))
    return Sample("rec", path, {"0": RIGHT, "1": WRONG}, HALF, groups=("level 2",))


def finecops_all(folder):
    content = mdetr_content(level=1, tuple_type="and")
    negative = {"negative_type": "attribute", "negative_level": 1, "negative_cate": "text", "positive_id": 0}
    content["annotations"][1] |= negative
    path = write_json(folder / "test_all_coco_format.json", content)
    answers = {"0": RIGHT, "1": "There is none."}
    groups = ("positive", "positive/level 1", "negative/text", "negative/text/attribute/level 1")
    return Sample("multi-rec", path, answers, {"acc@0.5": 1.0, "rejection_acc": 1.0}, groups=groups)


def ref_l4(folder):
    columns = {
        "id": [7, 8],
        "caption": ["In the image, a white cup.", "A cat in the corner."],
        "bbox": [[20.0, 10.0, 40.0, 40.0], [50.0, 100.0, 50.0, 100.0]],
        "bbox_area": [1600.0, 5000.0],
        "bbox_id": ["1", "2"],
        "ori_category_id": ["o365_11", "refcoco_17"],
        "image_id": ["3", "4"],
        "height": [100, 200],
        "width": [200, 100],
        "file_name": ["r.png", "b.png"],
        "is_rewrite": [True, False],
        "split": ["val", "val"],
    }
    path = write_parquet(folder / "ref-l4-val.parquet", columns)
    return Sample("rec", path, {"7": RIGHT, "8": WRONG}, HALF, groups=("o365", "refcoco"))


def lmms_eval_refcoco(folder):
    columns = {
        "question_id": ["5", "6"],
        "image": embedded(RED, BLUE),
        "question": ["Please describe the region.", "Please describe the region."],
        "answer": [["a cup", "the left cup"], ["a cat"]],
        "segmentation": [[1.0], [1.0]],
        "bbox": pa.array([[20, 10, 40, 40], [50, 100, 50, 100]], pa.list_(pa.float32())),
        "iscrowd": [0, 0],
        "file_name": ["COCO_train2014_000000000001_3.jpg", "COCO_train2014_000000000002_0.jpg"],
    }
    path = write_parquet(folder / "val-00000-of-00001.parquet", columns)
    metrics = {"acc@0.5": 2 / 3, "mean_iou": 2 / 3}
    colours = ("red", "red", "blue")
    return Sample("rec", path, {"0": RIGHT, "1": RIGHT, "2": WRONG}, metrics, colours=colours)


def vlmevalkit_refcoco(folder):
    question = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>"
    rows = [
        {
            "index": index,
            "image": image,
            "question": question.format(text),
            "answer": f"[{', '.join(map(str, box))}]",
            "category": "RefCOCO testA",
        }
        for index, image, text, box in (
            (3, base64.b64encode(png(*RED)).decode(), "a cup", (0.1, 0.1, 0.3, 0.5)),
            (4, 3, "the left cup", (0.1, 0.1, 0.3, 0.5)),
            (5, base64.b64encode(png(*BLUE)).decode(), "a cat", (0.5, 0.5, 1.0, 1.0)),
        )
    ]
    answers = {"RefCOCO_testA_3": RIGHT, "RefCOCO_testA_4": RIGHT, "RefCOCO_testA_5": WRONG}
    metrics = {"acc@0.5": 2 / 3, "mean_iou": 2 / 3}
    path = write_tsv(folder / "RefCOCO.tsv", rows)
    colours = ("red", "red", "blue")
    return Sample("rec", path, answers, metrics, groups=("RefCOCO_testA",), colours=colours)


GROUNDINGME = {
    "subtask_l1": ["Discriminative", "Rejection"],
    "subtask_l2": ["Appearance", "Appearance"],
    "width": [200, 100],
    "height": [100, 200],
}
GROUNDINGME_GROUPS = ("Discriminative", "Discriminative/Appearance", "Rejection", "Rejection/Appearance")


def groundingme(folder):
    columns = {
        "id": [1, 2],
        "description": ["the white cup", "the green cat"],
        "image": embedded(RED, BLUE),
        "bbox": [[20, 10, 60, 50], [50, 100, 100, 200]],
        "detection_type": ["a", "b"],
        **GROUNDINGME,
    }
    path = write_parquet(folder / "test-00000-of-00004.parquet", columns)
    answers, metrics = {"1": RIGHT, "2": WRONG}, {"acc@0.5": 0.5, "rejection_acc": 0.0}
    return Sample("multi-rec", path, answers, metrics, groups=GROUNDINGME_GROUPS, colours=("red", "blue"))


def vlmevalkit_groundingme(folder):
    images = [base64.b64encode(png(*image)).decode() for image in (RED, BLUE)]
    first = {"index": [1, 2], "image": images, "question": ["the white cup", "the green cat"]}
    columns = {**first, "answer": ["[20, 10, 60, 50]", "None"], **GROUNDINGME}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    answers, metrics = {"1": RIGHT, "2": "No such cat."}, {"acc@0.5": 1.0, "rejection_acc": 1.0}
    path = write_tsv(folder / "GroundingME.tsv", rows)
    return Sample("multi-rec", path, answers, metrics, groups=GROUNDINGME_GROUPS, colours=("red", "blue"))


# The centre of RIGHT is (40, 30), and that of WRONG (5, 10) in the blue image.
POINTS = {"accuracy": 0.5, "success": 0.5}


def pointing_lines(folder):
    rows = [
        {"id": "a", "image": "r.png", "question": "Where?", "boxes": [[20, 10, 60, 50]], "width": 200, "height": 100},
        {"id": "b", "image": "b.png", "question": "Where?", "boxes": [[50, 0, 60, 9]], "width": 100, "height": 200},
    ]
    return Sample("pointing", write_lines(folder / "points.jsonl", rows), {"a": RIGHT, "b": WRONG}, POINTS)


W2P = "Please point out free area. Your answer should be formatted as a list of tuples, i.e. [(x1, y1), ...]."


def where2place(folder):
    (folder / "masks").mkdir()
    (folder / "masks" / "00.jpg").write_bytes(mask(200, 100, (20, 10, 60, 50)))
    (folder / "masks" / "01.jpg").write_bytes(mask(100, 200, (50, 100, 100, 200)))
    rows = [{"question_id": k, "image": f"0{k}.jpg", "text": W2P, "label": "", "category": "seen"} for k in range(2)]
    path = write_lines(folder / "point_questions.jsonl", rows)
    return Sample("pointing", path, {"0": RIGHT, "1": WRONG}, POINTS, groups=("seen",))


def where2place_parquet(folder):
    masks = [mask(200, 100, (20, 10, 60, 50)), mask(100, 200, (50, 100, 100, 200))]
    columns = {
        "question_id": [0, 1],
        "question": [W2P, W2P],
        "image": embedded(RED, BLUE),
        "mask": [{"bytes": data, "path": None} for data in masks],
    }
    path = write_parquet(folder / "test-00000-of-00001.parquet", columns)
    return Sample("pointing", path, {"0": RIGHT, "1": WRONG}, POINTS, colours=("red", "blue"))


def point_bench(folder):
    masks = folder / "unpacked"
    (masks / "spatial").mkdir(parents=True)
    (masks / "spatial" / "r.png_mask.png").write_bytes(mask(200, 100, (20, 10, 60, 50)))
    (masks / "b.png_mask.png").write_bytes(mask(100, 200, (0, 0, 100, 200)))
    rows = [
        {"image_filename": "x.png", "user_input": "no mask", "category": "spatial"},
        {
            "image_filename": "r.png",
            "mask_filename": "r.png_mask.png",
            "user_input": "Point to the cup.",
            "category": "spatial",
            "count": 1,
        },
        {
            "image_filename": "b.png",
            "mask_filename": "b.png_mask.png",
            "user_input": "Point to the cats.",
            "category": "counting",
            "count": 2,
        },
    ]
    path = write_json(folder / "data.json", rows)
    # Both cats are in the mask, but only one is pointed at.
    options, metrics = ("--masks", str(masks)), {"accuracy": 1.0, "success": 0.5}
    return Sample("pointing", path, {"1": RIGHT, "2": WRONG}, metrics, options, ("spatial", "counting"))


def pixmo_points(folder):
    def rows(width, height, boxes):
        found = np.zeros((len(boxes), height, width), dtype=bool)
        for own, (x1, y1, x2, y2) in zip(found, boxes, strict=True):
            own[y1:y2, x1:x2] = True
        return found.tolist()

    columns = {
        "image_url": ["https://example.org/a/r.png?x=1", "https://example.org/b.jpeg"],
        "image_sha256": ["0" * 64, "1" * 64],
        "label": ["cup", "cats"],
        # In percent of the sides; (40, 30) px, and (10, 10) and (90, 190) px.
        "points": [[{"x": 20.0, "y": 30.0}], [{"x": 10.0, "y": 5.0}, {"x": 90.0, "y": 95.0}]],
        "masks": [
            rows(200, 100, [(20, 10, 60, 50)]),
            rows(100, 200, [(0, 0, 20, 20), (80, 180, 100, 200)]),
        ],
    }
    path = write_parquet(folder / "test-00000-of-00001.parquet", columns)
    # Of the two cats, one is pointed at: precision 1, recall 1/2, F1 2/3.
    metrics = {"accuracy": 1.0, "success": 1.0, "precision": 1.0, "recall": 0.75, "f1": (1 + 2 / 3) / 2}
    return Sample("pointing", path, {"0": RIGHT, "1": WRONG}, metrics)


def odinw(folder):
    content = {
        "images": [
            {"id": 1, "file_name": "r.png", "width": 200, "height": 100},
            {"id": 2, "file_name": "b.png", "width": 100, "height": 200},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 10, 40, 40], "area": 1600, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [50, 100, 50, 100], "area": 5000, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "person"}],
    }
    path = write_json(folder / "annotations_without_background.json", content)
    answers = {"1": f"dog {RIGHT}", "2": f"person {WRONG}"}
    return Sample("detection", path, answers, {"AP50": 0.5, "f1@0.5": 0.5})


SAMPLES = {
    "rec-lines": rec_lines,
    "mdetr-refcoco": mdetr,
    "finecops-ref": finecops_positive,
    "finecops-ref-all": finecops_all,
    "ref-l4": ref_l4,
    "lmms-eval-refcoco": lmms_eval_refcoco,
    "vlmevalkit-refcoco": vlmevalkit_refcoco,
    "groundingme": groundingme,
    "vlmevalkit-groundingme": vlmevalkit_groundingme,
    "pointing-lines": pointing_lines,
    "where2place": where2place,
    "where2place-parquet": where2place_parquet,
    "point-bench": point_bench,
    "pixmo-points": pixmo_points,
    "coco-detection": odinw,
}
"""The samples by the layouts' names in `LAYOUTS`."""
