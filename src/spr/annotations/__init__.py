"""Annotations → objects (METHOD §1): readers of annotation files, and what becomes of crowds."""

from spr.annotations.coco import read_coco
from spr.annotations.crowd import (
    CROWD_DROP_REASONS,
    CrowdDetector,
    CrowdDrop,
    CrowdFinds,
    CrowdQuery,
    replace_crowds,
)
from spr.annotations.reasons import DROP_REASONS
from spr.annotations.table import Annotations, Dropped

__all__ = [
    "CROWD_DROP_REASONS",
    "DROP_REASONS",
    "Annotations",
    "CrowdDetector",
    "CrowdDrop",
    "CrowdFinds",
    "CrowdQuery",
    "Dropped",
    "read_coco",
    "replace_crowds",
]
