"""The config section `regions`: how region queries are built."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spr.config.section import Float, Int, Section


class RegionsConfig(Section):
    """How a region grows around a random object (paper, Sec. 3.1; supplement, Sec. 1)."""

    per_image: Int = Field(default=1, ge=1)
    """Number of region queries per image, each with a different start object (our choice)."""
    min_inside: Int = Field(default=5, ge=1)
    """Minimum number of objects inside a region (paper: "more than 4")."""
    min_aspect: Float = Field(default=1 / 3, ge=0, lt=1)
    """The region's short side divided by its long side must be over this value, 0..1 (supplement, Sec. 1)."""
    inside_fraction: Float = Field(default=0.5, gt=0, le=1)
    """An object is inside a region if at least this share of its area lies in it, 0..1 (supplement, Sec. 1)."""
    distance: Literal["edge", "centre"] = "edge"
    """Distance by which objects are close: between box edges (ties by centres), or between centres (our choice)."""
    failed_aspect: Literal["grow", "next_start"] = "grow"
    """A region with enough objects that is too narrow keeps growing, or the next start object is used (our choice)."""
