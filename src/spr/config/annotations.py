"""The config section `annotations`: images and objects."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from spr.config.section import Float, Int, Section
from spr.core.images import MAX_PIXELS, ImageSource


class AnnotationsConfig(Section):
    """Which annotated images are used (supplement, Sec. 1)."""

    path: Path
    """Path of the annotations: COCO, LVIS or Objects365 JSON."""
    images: Path
    """Folder that the file names in the annotations are relative to."""
    min_area: Float = Field(default=300.0, ge=0)
    """Objects with a smaller box area, in px², are dropped (supplement, Sec. 1)."""
    min_objects: Int = Field(default=9, ge=1)
    """Images with fewer objects are dropped (supplement, Sec. 1: "containing more than eight objects")."""
    max_images: Int | None = Field(default=10_000, ge=1)
    """Number of images to sample; null uses all of them (supplement, Sec. 1)."""
    crowds: Literal["drop", "detect"] = "drop"
    """Drop crowd annotations, or replace them with the objects that the detector finds (supplement, Sec. 1)."""
    crowd_nms_iou: Float = Field(default=0.5, ge=0, le=1)
    """IoU threshold for non-maximum suppression among the detections in a crowd (our choice)."""
    crowd_duplicate_iou: Float = Field(default=0.5, ge=0, le=1)
    """A detection whose IoU with an object of the same category is over this value is dropped (our choice)."""
    check_images: bool = True
    """Open and decode each sampled image to find files that are missing, truncated or of another size."""
    orientation: Literal["auto", "apply", "ignore"] = "auto"
    """How to treat EXIF rotation: `auto` rotates an image if only that fits the annotated size, and drops it if both
    readings fit; `apply` always rotates; `ignore` never does (our choice)."""
    max_pixels: Int = Field(default=MAX_PIXELS, ge=1, le=MAX_PIXELS)
    """Images with more pixels are dropped without being decoded; at most Pillow's own limit."""

    @property
    def image_source(self) -> ImageSource:
        """The image folder with the options for reading it."""
        return ImageSource(self.images, self.orientation, self.max_pixels)
