"""The config section `scorer`: the image-text model of the semantic score."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spr.config.section import DType, Int, Section


class ScorerConfig(Section):
    """The image-text model of the semantic score (METHOD §4)."""

    runtime_fields = frozenset({"batch_size", "device"})

    backend: Literal["clip", "fake"] = "clip"
    """`fake`: stable numbers that mean nothing."""
    model: str = "openai/clip-vit-large-patch14-336"
    """A CLIPModel's id or folder [seed]."""
    revision: str | None = None
    """The model's revision on the hub."""
    long_text: Literal["pieces", "truncate"] = "pieces"
    """What becomes of texts longer than the encoder reads [ours]."""
    batch_size: Int = Field(default=64, ge=1)
    """Views or texts a batch."""
    dtype: DType = "auto"
    """`auto` is what the weights are stored in."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""
