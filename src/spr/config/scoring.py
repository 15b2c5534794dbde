"""The config section `scoring`: how the scores are combined."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spr.config.section import Float, Section


class ScoringConfig(Section):
    """How the scores are joined (METHOD §4)."""

    semantic_weight: Float = Field(default=0.8, ge=0, le=1)
    """λ: S = λ S_sem + (1 − λ) S_loc [paper]."""
    ground_truth: Literal["annotations", "annotations+detections"] = "annotations"
    """The objects that S_loc asks for; with detections, what the detector finds counts as one, too [ours]."""
