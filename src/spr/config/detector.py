"""The config section `detector`: the open-vocabulary detector of the localization score and of crowds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spr.config.section import DType, Float, Int, Section


class DetectorConfig(Section):
    """The open-vocabulary detector of the localization score and of crowds (METHOD §1.2, §4)."""

    runtime_fields = frozenset({"batch_size", "device"})

    backend: Literal["grounding_dino", "owlv2", "fake", "none"] = "grounding_dino"
    """`none`: predictions are the description's boxes alone, and crowds are dropped."""
    model: str = "IDEA-Research/grounding-dino-base"
    """A model id or folder."""
    revision: str | None = None
    """The model's revision on the hub."""
    box_threshold: Float = Field(default=0.35, ge=0, le=1)
    """Finds with a lower score are left out [ours]; OWL models score lower, and want 0.1."""
    text_threshold: Float = Field(default=0.25, ge=0, le=1)
    """Tokens with a lower score are not part of a find's phrase [ours]."""
    batch_size: Int = Field(default=16, ge=1)
    """Requests a batch."""
    dtype: DType = "auto"
    """`auto` is what the weights are stored in."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""
