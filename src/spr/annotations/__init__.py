"""Annotations → objects (METHOD §1): readers of annotation files, and what becomes of crowds."""

from spr.annotations.coco import read_coco
from spr.annotations.crowd import (
    CrowdDetector,
    CrowdDrop,
    CrowdFinds,
    CrowdQuery,
    replace_crowds,
)
from spr.annotations.table import Annotations, Dropped

__all__ = [
    "Annotations",
    "CrowdDetector",
    "CrowdDrop",
    "CrowdFinds",
    "CrowdQuery",
    "Dropped",
    "read_coco",
    "replace_crowds",
]
