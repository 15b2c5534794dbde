"""The config section `detector`: the open-vocabulary detector of the localization score and of crowds."""

from __future__ import annotations

from pydantic import Field, field_validator

from spr.config.backends import DETECTORS, check_backend
from spr.config.section import DType, Float, Int, Section


class DetectorConfig(Section):
    """The open-vocabulary detector of the localization score and of crowds (paper, Sec. 3.2; supplement, Sec. 1)."""

    runtime_fields = frozenset({"batch_size", "device"})

    backend: str = "grounding_dino"
    """`grounding_dino`, `owlv2` (OWLv2 and OWL-ViT), `fake`, or `none`: then predictions are the boxes of the
    description alone, and crowds are dropped."""
    model: str = "IDEA-Research/grounding-dino-base"
    """Model id or folder."""
    revision: str | None = None
    """Revision of the model on the Hugging Face Hub."""
    box_threshold: Float = Field(default=0.35, ge=0, le=1)
    """Detections below this score are dropped (our choice). OWL models give lower scores and need about 0.1."""
    text_threshold: Float = Field(default=0.25, ge=0, le=1)
    """Tokens below this score are not part of a detection's phrase (our choice)."""
    batch_size: Int = Field(default=16, ge=1)
    """Requests per batch."""
    dtype: DType = "auto"
    """Data type of the weights; `auto` uses the stored one."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""

    @field_validator("backend")
    @classmethod
    def _backend_exists(cls, value: str) -> str:
        return value if value == "none" else check_backend(value, DETECTORS, "none")
