"""The config section `scoring`: how the scores are combined."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spr.config.section import Float, Section


class ScoringConfig(Section):
    """How semantic and localization scores become one score (paper, Sec. 3.2)."""

    semantic_weight: Float = Field(default=0.8, ge=0, le=1)
    """λ in S = λ S_sem + (1 − λ) S_loc (paper)."""
    ground_truth: Literal["annotations", "annotations+detections"] = "annotations"
    """Objects that S_loc is measured against: the annotated ones, or the detector's as well (our choice)."""
