"""The config section `scoring`: how the scores are combined."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from spr.config.section import Float, Int, Section
from spr.core.views import CLIP_MEAN

Byte: TypeAlias = Annotated[Int, Field(ge=0, le=255)]


class ScoringConfig(Section):
    """How the semantic and the localization score are combined (paper, Sec. 3.2)."""

    semantic_weight: Float = Field(default=0.8, ge=0, le=1)
    """λ, 0..1, in S = λ S_sem + (1 − λ) S_loc (paper, Sec. 3.2)."""
    ground_truth: Literal["annotations", "annotations+detections"] = "annotations"
    """Ground truth for S_loc (our choice): `annotations`: the annotated objects, and the predictions are the boxes of
    the description and the detections; `annotations+detections`: also the detections, and the predictions are the boxes
    of the description alone."""
    same_object_iou: Float = Field(default=0.5, ge=0, le=1)
    """With `annotations+detections`, a detection whose IoU with an object is over this value, 0..1, is that object and
    is not added to the ground truth (our choice)."""
    match_iou: Float = Field(default=0.5, ge=0, le=1)
    """A prediction counts in S_loc if its IoU with the object is over this value, 0..1 (paper, Sec. 3.2)."""
    local_view: Literal["window", "padded"] = "window"
    """The square for S_local (our choice): `window`: the part of the image that contains the region, with the image's
    short side or the region's long side, whichever is larger; `padded`: the whole image, padded to a square."""
    padding_colour: tuple[Byte, Byte, Byte] = CLIP_MEAN
    """RGB, 0..255, of the padding of squares for the scorer; CLIP's mean colour by default (our choice)."""
