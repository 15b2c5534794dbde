"""The config section `detector`: the open-vocabulary detector for the localization score and for crowds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from spr.config.backends import DETECTORS, name_in
from spr.config.section import DType, Float, Int, Section


class DetectorConfig(Section):
    """The open-vocabulary detector for the localization score and for crowds (paper, Sec. 3.2; supplement, Sec. 1)."""

    runtime_fields = frozenset({"batch_size", "device"})

    backend: Annotated[str, name_in(DETECTORS, "none")] = "grounding_dino"
    """`grounding_dino` (paper), `owlv2` (OWLv2 and OWL-ViT), `fake`, or `none`, which measures the localization score
    with the boxes of the descriptions alone and can't replace crowds."""
    model: str = "IDEA-Research/grounding-dino-base"
    """Model id or folder (the paper does not give the size: our choice)."""
    revision: str | None = None
    """Revision of the model on the Hugging Face Hub."""
    box_threshold: Float = Field(default=0.35, ge=0, le=1)
    """Minimum score of a detection, 0..1 (our choice). OWL models have lower scores and need about 0.1."""
    text_threshold: Float = Field(default=0.25, ge=0, le=1)
    """Minimum score, 0..1, of the tokens that form a detection's phrase, for `grounding_dino` (our choice)."""
    batch_size: Int = Field(default=16, ge=1)
    """Pairs of image and text per batch."""
    dtype: DType = "auto"
    """Data type of the weights; `auto` keeps that of the checkpoint."""
    device: str = "auto"
    """Device of the model, such as `cpu` or `cuda:1`; `auto` uses a GPU if there is one."""
