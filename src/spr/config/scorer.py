"""The config section `scorer`: the image-text model of the semantic score."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from spr.config.backends import SCORERS, check_backend
from spr.config.section import DType, Int, Section


class ScorerConfig(Section):
    """The image-text model of the semantic score (paper, Sec. 3.2)."""

    runtime_fields = frozenset({"batch_size", "device"})

    backend: str = "clip"
    """`clip`: a CLIP model; `fake`: reproducible numbers without meaning, for trying the pipeline without weights."""
    model: str = "openai/clip-vit-large-patch14-336"
    """Model id or folder (supplement, Sec. 1)."""
    revision: str | None = None
    """Revision of the model on the Hugging Face Hub."""
    long_text: Literal["pieces", "truncate"] = "pieces"
    """How to embed texts with more than CLIP's 77 tokens: in pieces that are averaged, or truncated (our choice)."""
    batch_size: Int = Field(default=64, ge=1)
    """Images or texts per batch."""
    dtype: DType = "auto"
    """Data type of the weights; `auto` uses the stored one."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""

    @field_validator("backend")
    @classmethod
    def _backend_exists(cls, value: str) -> str:
        return check_backend(value, SCORERS)
