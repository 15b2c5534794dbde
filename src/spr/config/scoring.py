"""The config section `scoring`: how the scores are combined."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spr.config.section import Float, Section


class ScoringConfig(Section):
    """How the semantic and the localization score are combined (paper, Sec. 3.2)."""

    semantic_weight: Float = Field(default=0.8, ge=0, le=1)
    """λ, 0..1, in S = λ S_sem + (1 − λ) S_loc (paper, Sec. 3.2)."""
    ground_truth: Literal["annotations", "annotations+detections"] = "annotations"
    """Ground truth for S_loc: the annotated objects, or these and the detector's detections (our choice)."""
