"""The config section `regions`: how region queries grow."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spr.config.section import Float, Int, Section


class RegionsConfig(Section):
    """How regions grow around a random object (paper, Sec. 3.1; supplement, Sec. 1)."""

    per_image: Int = Field(default=1, ge=1)
    """Number of region queries per image, each grown from a different object (our choice)."""
    min_inside: Int = Field(default=5, ge=1)
    """A region grows until it contains this many objects (paper: "more than 4")."""
    min_aspect: Float = Field(default=1 / 3, ge=0, lt=1)
    """Lower bound, exclusive, for short side over long side (supplement, Sec. 1)."""
    inside_fraction: Float = Field(default=0.5, gt=0, le=1)
    """An object is inside a region when at least this share of its area is (supplement, Sec. 1)."""
    distance: Literal["edge", "centre"] = "edge"
    """Measure of closeness: the gap between box edges (ties by the centres), or between the centres (our choice)."""
    failed_aspect: Literal["grow", "next_start"] = "grow"
    """A region with enough objects but too narrow keeps growing, or the next start object is tried (our choice)."""
