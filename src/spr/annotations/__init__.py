"""Annotations → objects: reading COCO-style annotation files, and replacing crowds (supplement, Sec. 1)."""

from spr.annotations.coco import Annotations, Dropped, read_coco
from spr.annotations.crowd import CrowdDetector, CrowdQuery, replace_crowds

__all__ = ["Annotations", "CrowdDetector", "CrowdQuery", "Dropped", "read_coco", "replace_crowds"]
