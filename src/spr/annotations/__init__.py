"""Annotations → objects: reading COCO-style annotation files, and replacing crowds (supplement, Sec. 1)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spr.annotations.assembly import Annotations, Dropped
from spr.annotations.coco import read_coco
from spr.annotations.crowd import CrowdDetector, CrowdQuery, replace_crowds

if TYPE_CHECKING:
    from spr.annotations.convert import Conversion, convert_annotations, prepare_annotations

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


def __getattr__(name: str) -> Any:
    """Import the conversion on first use: it needs pyarrow, which reading COCO-style files does not."""
    if name not in ("Conversion", "convert_annotations", "prepare_annotations"):
        raise AttributeError(f"module 'spr.annotations' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module("spr.annotations.convert"), name)
    return value
