"""Detection annotations of COCO and LVIS, and of benchmarks that use their form, such as ODinW-13.

The task `detection` reads them itself, with errors of its own; this entry names them in the errors of other tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spr.evaluation.detection.annotations import DetectionData, read_detection
from spr.evaluation.layouts.content import Content
from spr.evaluation.layouts.layout import Layout


@dataclass(frozen=True, slots=True)
class OdinwSet:
    """One of the 13 data sets of ODinW-13.

    Attributes:
        name: Its name, which is also its folder.
        folder: The folder of the images and of ``annotations_without_background.json``.
        categories: The names that the file gives its categories.
    """

    name: str
    folder: str
    categories: tuple[str, ...]


_VOC = "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant"
ODINW13 = (
    OdinwSet("AerialMaritimeDrone", "AerialMaritimeDrone/large/valid", ("boat", "car", "dock", "jetski", "lift")),
    OdinwSet(
        "Aquarium",
        "Aquarium/Aquarium Combined.v2-raw-1024.coco/valid",
        ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray"),
    ),
    OdinwSet("CottontailRabbits", "CottontailRabbits/valid", ("Cottontail-Rabbit",)),
    OdinwSet("EgoHands", "EgoHands/generic/valid", ("hand",)),
    OdinwSet(
        "NorthAmericaMushrooms",
        "NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco/valid",
        ("CoW", "chanterelle"),
    ),
    OdinwSet("Packages", "Packages/Raw/valid", ("package",)),
    OdinwSet("PascalVOC", "PascalVOC/valid", (*_VOC.split(), "sheep", "sofa", "train", "tvmonitor")),
    OdinwSet("pistols", "pistols/export/valid", ("pistol",)),
    OdinwSet("pothole", "pothole/valid", ("pothole",)),
    OdinwSet("Raccoon", "Raccoon/Raccoon.v2-raw.coco/valid", ("raccoon",)),
    OdinwSet("ShellfishOpenImages", "ShellfishOpenImages/raw/valid", ("Crab", "Lobster", "Shrimp")),
    OdinwSet("thermalDogsAndPeople", "thermalDogsAndPeople/valid", ("dog", "person")),
    OdinwSet(
        "VehiclesOpenImages",
        "VehiclesOpenImages/416x416/valid",
        ("Ambulance", "Bus", "Car", "Motorcycle", "Truck"),
    ),
)
"""ODinW-13 as in mmdetection's configs/odinw/glip_atss_swin-t_a_fpn_dyhead_pretrain_odinw13.py.

The benchmark's figure is the mean of the AP of the 13 sets. mmdetection's override_category.py renames the mushrooms to
``flat mushroom`` and ``yellow mushroom``, because the names in the file are not words.
"""


def _read(content: Content, _: Any) -> DetectionData:
    return read_detection(content.path)


_KEYS = ("images[].id", "images[].width", "annotations[].image_id", "annotations[].category_id", "annotations[].bbox")
LAYOUT = Layout(
    "COCO's detection JSON", "detection", ("a JSON object",), (*_KEYS, "categories[].id", "categories[].name"), _read
)
