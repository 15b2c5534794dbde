"""Annotations → objects: reading COCO-style annotation files, and replacing crowds (supplement, Sec. 1)."""

from spr.annotations.coco import Annotations, Dropped, read_coco
from spr.annotations.convert import Conversion, convert_annotations, prepare_annotations
from spr.annotations.crowd import CrowdDetector, CrowdQuery, replace_crowds

__all__ = [
    "Annotations",
    "Conversion",
    "CrowdDetector",
    "CrowdQuery",
    "Dropped",
    "convert_annotations",
    "prepare_annotations",
    "read_coco",
    "replace_crowds",
]
