"""The page "Your data": its JSON is the smallest that works, its tables are true, and its commands run."""

import copy
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

import warm_python
from spr.annotations import read_coco
from spr.annotations.convert import SOURCES
from spr.commands.convert import convert
from spr.config import AnnotationsConfig
from spr.core.errors import InputError

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


def block(language):
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return text


def read(tmp_path, coco):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco))
    return read_coco(path)


def test_the_smallest_json_works_and_without_a_key_the_table_is_right(tmp_path):
    smallest = json.loads(block("json"))
    found = read(tmp_path, smallest)
    assert (found.file_names, found.categories) == (["street.jpg"], ("traffic light",))
    assert found.boxes_xyxy.tolist() == [[100, 50, 130.5, 130]]
    assert not len(found.dropped)
    rows = dict(re.findall(r"^\| `(\w+\[\]\.\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    keys = {f"{name}[].{key}" for name, items in smallest.items() for key in items[0]}
    assert rows.keys() >= keys
    for key in sorted(keys):
        name, _, field = key.partition("[].")
        changed = copy.deepcopy(smallest)
        del changed[name][0][field]
        if name == "images":  # a file without a usable image is an error, so it has another one
            changed["images"].append({"id": 2, "file_name": "b.jpg", "width": 9, "height": 9})
        if name == "annotations":  # the same for annotations without a box
            changed["annotations"].append({"id": 11, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]})
        found = read(tmp_path, changed)
        reasons = set(found.dropped.reasons)
        if name == "images":  # the objects of the dropped image
            reasons -= {"object_image_unknown", "object_image_dropped"}
        assert reasons == set(re.findall(r"`(\w+_\w+)`", rows[key])) - {"coco_url"}, key
        assert found.numbered == (1 if key == "annotations[].id" else 0)
    for name in smallest:
        with pytest.raises(InputError, match=f"has no `{name}`"):
            read(tmp_path, {other: items for other, items in smallest.items() if other != name})


def test_the_table_of_formats_names_every_option():
    options = {
        option
        for parameter in typer.main.get_command(convert).commands["annotations"].params
        for option in parameter.opts
        if option.startswith("--")
    }
    rows = dict(re.findall(r"^\| `([\w-]+)` \| .* \| (.*) \|$", PAGE, re.MULTILINE))
    assert rows.keys() >= SOURCES.keys()
    listed = {name: set(re.findall(r"`(--[\w-]+)`", rows[name])) for name in SOURCES}
    for name, read_source in SOURCES.items():
        own = set(read_source.__annotations__) - {"path", "images", "return"}
        assert listed[name] == {f"--{option.replace('_', '-')}" for option in own}, name
    assert options == set().union(*listed.values()) | {"--from", "--to", "--out", "--images"}


def test_the_commands_run_from_a_yolo_folder_to_regions(dataset, tmp_path):
    names = [category["name"] for category in dataset.coco["categories"]]
    folder = tmp_path / "yolo"
    (folder / "labels").mkdir(parents=True)
    dataset.images.rename(folder / "images")
    (folder / "data.yaml").write_text(yaml.safe_dump({"train": "images", "names": dict(enumerate(names))}))
    for image in dataset.coco["images"]:
        lines = []
        for item in dataset.coco["annotations"]:
            if item["image_id"] == image["id"]:
                x, y, w, h = item["bbox"]
                center = (x + w / 2) / 200, (y + h / 2) / 160, w / 200, h / 160
                lines.append(" ".join([str(item["category_id"] - 1), *(f"{number:.4f}" for number in center)]))
        (folder / "labels" / image["file_name"]).with_suffix(".txt").write_text("\n".join(lines))
    environment = {**os.environ, "PATH": warm_python.path()}
    command = ["bash", "-euo", "pipefail", "-c", block("sh")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "40 images, 480 objects, 2 categories" in result.stdout
    assert "regions: " in result.stdout
    before, after = read_coco(dataset.json), read_coco(tmp_path / "instances.json")
    assert after.image_ids.tolist() == before.image_ids.tolist()
    assert after.file_names == [f"images/{name}" for name in before.file_names]
    assert after.categories == before.categories
    assert after.offsets.tolist() == before.offsets.tolist()
    assert after.category.tolist() == before.category.tolist()
    assert abs(after.boxes_xyxy - before.boxes_xyxy).max() < 0.5


def test_the_config_of_a_dataset_is_valid():
    section = AnnotationsConfig.model_validate(yaml.safe_load(block("yaml"))["annotations"])
    assert section.is_dataset
    assert section.json_path == Path("data/cppe-5/annotations.json")
