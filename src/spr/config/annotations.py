"""The config section `annotations`: images and objects."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from spr.config.section import Float, Int, Section
from spr.core.images import ImageSource


class AnnotationsConfig(Section):
    """Annotations → objects (METHOD §1)."""

    path: Path
    """COCO, LVIS or Objects365 JSON."""
    images: Path
    """The folder that the file names in the JSON are relative to."""
    min_area: Float = Field(default=300.0, ge=0)
    """Objects whose box area is under this, in px², are removed [seed]."""
    min_objects: Int = Field(default=9, ge=1)
    """Images with fewer objects left are dropped [seed: "containing more than eight objects"]."""
    max_images: Int | None = Field(default=10_000, ge=1)
    """How many images are sampled [seed]; null keeps all."""
    crowds: Literal["drop", "detect"] = "drop"
    """Crowd annotations are dropped, and counted; or the detector looks for their objects and replaces them [seed]."""
    crowd_nms_iou: Float = Field(default=0.5, ge=0, le=1)
    """Non-maximum suppression among what the detector finds in a crowd [ours]."""
    crowd_duplicate_iou: Float = Field(default=0.5, ge=0, le=1)
    """A find over this IoU with an object of the same category is that object, and dropped [ours]."""
    check_images: bool = True
    """Whether the sampled images are opened and decoded: finds files that are missing, truncated or of another size."""
    orientation: Literal["auto", "apply", "ignore"] = "auto"
    """What to do with EXIF rotation: `auto` rotates where only that fits the annotated size, and drops what can't be
    told; `apply` always rotates; `ignore` never does [ours]."""
    max_pixels: Int = Field(default=178_956_970, ge=1, le=178_956_970)
    """Larger images are dropped without being decoded (decompression bombs); at most what Pillow opens."""

    @property
    def image_source(self) -> ImageSource:
        """The folder of images, with the options for reading them."""
        return ImageSource(self.images, self.orientation, self.max_pixels)
