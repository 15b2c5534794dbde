"""Fixtures: small annotated image folders, which the tests generate."""

import json
import random
import signal
import threading
from pathlib import Path

import pytest
from PIL import Image

pytest_plugins = ("tiny_mllms",)

# In a process that a shell started in the background, Ctrl-C is ignored, and programs that it starts inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "coco-photos"


class Dataset:
    """An images folder with COCO JSON; ``coco`` may be changed before `write`."""

    def __init__(self, folder: Path, images: int = 40, objects: int = 12, seed: int = 0) -> None:
        self.folder, self.json, self.images = folder, folder / "instances.json", folder / "images"
        self.images.mkdir(parents=True)
        draw = random.Random(seed)
        self.coco = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "box"}, {"id": 2, "name": "cup"}],
        }
        for k in range(images):
            image_id = 1000 + 7 * k
            name = f"{image_id}.png"
            Image.new("RGB", (200, 160), (k, 2 * k, 3 * k)).save(self.images / name)
            self.coco["images"].append({"id": image_id, "file_name": name, "width": 200, "height": 160})
            for j in range(objects):
                x, y = draw.uniform(0, 150), draw.uniform(0, 120)
                box = [x, y, draw.uniform(18, 50), draw.uniform(18, 40)]
                entry = {"id": 100 * k + j, "image_id": image_id, "category_id": 1 + j % 2, "bbox": box, "iscrowd": 0}
                self.coco["annotations"].append(entry)
        self.write()

    def write(self) -> None:
        self.json.write_text(json.dumps(self.coco))

    def config(self, **sections) -> dict:
        paths = {"path": str(self.json), "images": str(self.images)}
        return {**sections, "annotations": {**paths, **sections.get("annotations", {})}}


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path / "data")


@pytest.fixture(scope="session")
def make_dataset():
    return Dataset


@pytest.fixture(scope="session")
def photos():
    if not PHOTOS.is_dir():
        pytest.skip(f"the photographs in {PHOTOS.name} are not part of the repository")
    return PHOTOS
