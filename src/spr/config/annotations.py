"""The config section `annotations`: which images and objects are used."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from spr.config.section import AnyPath, Float, Int, Section
from spr.core.images import MAX_PIXELS, ImageSource

HF_PREFIX = "hf:"
"""An annotations path with this prefix names a Hugging Face dataset."""


class AnnotationsConfig(Section):
    """Which annotated images and objects are used (supplement, Sec. 1)."""

    runtime_fields = frozenset({"allow_outside_images", "hash_images"})
    later_fields = frozenset({"skip_images"})

    path: AnyPath
    """Annotation file: COCO, LVIS or Objects365 JSON. Or a Hugging Face detection dataset: `hf:NAME[:CONFIG]:SPLIT`, or
    `hf:/FOLDER:SPLIT` offline. A JSON file can be a URL of object storage (`s3://`, `gs://`, `az://`, `https://`)."""
    images: AnyPath
    """Folder that the file names in the annotations are relative to, or that holds the images in tar files; or a tar
    file. Each may be a URL of object storage. For a Hugging Face dataset: a new local folder, into which its images and
    its annotations as JSON are written once."""
    min_area: Float = Field(default=300.0, ge=0)
    """Minimum box area in px²; smaller objects are dropped (supplement, Sec. 1)."""
    min_objects: Int = Field(default=9, ge=1)
    """Minimum number of objects; images with fewer are dropped (supplement, Sec. 1: "more than eight objects")."""
    max_images: Int | None = Field(default=10_000, ge=1)
    """Number of images to sample, those held out included; null uses all images (supplement, Sec. 1)."""
    skip_images: Int | None = Field(default=None, ge=1)
    """Number of images to leave out at the beginning of the sample, for a sample of other images; null leaves out none
    (our choice). `spr rounds --data fresh` sets it."""
    holdout: Float = Field(default=0.05, ge=0, lt=1)
    """Share of the images, 0 ≤ x < 1, that is held out from training, for evaluation. Which ones depends on their ids
    only, so runs with other seeds hold out the same images (our choice)."""
    crowds: Literal["drop", "detect"] | None = None
    """Replace each crowd annotation with the detector's detections in it (`detect`; supplement, Sec. 1), or drop it
    (`drop`). The default is `detect` if a detector is configured: by a `detector` section, or by a describer, whose
    answers it scores. It is `drop` otherwise. `detect` with `detector.backend: none` is an error."""
    crowd_nms_iou: Float = Field(default=0.5, ge=0, le=1)
    """IoU threshold, 0..1, of the non-maximum suppression among the detections in a crowd (our choice)."""
    crowd_duplicate_iou: Float = Field(default=0.5, ge=0, le=1)
    """Detections in a crowd are dropped if their IoU with an object of the category is over this value (our choice)."""
    crowd_min_inside: Float = Field(default=0.5, ge=0, le=1)
    """Detections with a smaller share of their area, 0..1, in the crowd's box are dropped (our choice)."""
    check_images: bool = True
    """Open and decode each sampled image, and drop missing and damaged files and those of another size (our choice)."""
    orientation: Literal["auto", "apply", "ignore"] = "auto"
    """How to treat the EXIF orientation: `auto` rotates an image if only that matches the annotated size, and drops it
    if both orientations match; `apply` always rotates, also if the annotated size is the stored one (Label Studio);
    `ignore` never rotates (our choice)."""
    max_pixels: Int = Field(default=MAX_PIXELS, ge=1, le=MAX_PIXELS)
    """Images with more pixels are dropped without being decoded; at most Pillow's limit (our choice)."""

    allow_outside_images: bool = False
    """Also open images whose file name is absolute or leads out of the image folder, by `..` or a link. Only for data
    that you trust: it names any file of this machine. To include images that were dropped before, delete
    `RUN/objects` (our choice)."""

    hash_images: bool = False
    """Record the sha256 of each image. A run is refused if images have changed since it began: with a sha256, if the
    content has; otherwise if size or modification time have, also by copying the folder (our choice)."""

    @property
    def json_path(self) -> Path:
        """The annotation file; for a Hugging Face dataset, the one that is written into the image folder."""
        return self.images / "annotations.json" if self.is_dataset else self.path

    @property
    def is_dataset(self) -> bool:
        """Whether the annotations are a Hugging Face dataset, which `spr.annotations.prepare_annotations` writes."""
        return str(self.path).startswith(HF_PREFIX)

    @property
    def image_source(self) -> ImageSource:
        """The image folder or tar file with the options for reading it."""
        return ImageSource(self.images, self.orientation, self.max_pixels, self.allow_outside_images)
