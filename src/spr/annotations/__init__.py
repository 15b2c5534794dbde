"""Annotations → objects: reading COCO-style annotation files, and replacing crowds (supplement, Sec. 1)."""

from spr.annotations.coco import Annotations, Dropped, read_coco
from spr.annotations.crowd import (
    CrowdDetections,
    CrowdDetector,
    CrowdDrop,
    CrowdQuery,
    CrowdSettings,
    replace_crowds,
)

__all__ = [
    "Annotations",
    "CrowdDetections",
    "CrowdDetector",
    "CrowdDrop",
    "CrowdQuery",
    "CrowdSettings",
    "Dropped",
    "read_coco",
    "replace_crowds",
]
