"""The config section `regions`: how region queries grow."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spr.config.section import Float, Int, Section


class RegionsConfig(Section):
    """Objects → region queries (METHOD §2)."""

    per_image: Int = Field(default=1, ge=1)
    """Region queries an image, each from another start object [ours]."""
    min_inside: Int = Field(default=5, ge=1)
    """A region grows until this many objects are inside [paper: "more than 4"]."""
    min_aspect: Float = Field(default=1 / 3, ge=0, lt=1)
    """Short side over long side must be over this [seed]."""
    inside_fraction: Float = Field(default=0.5, gt=0, le=1)
    """An object is inside when at least this share of its area is [seed]."""
    distance: Literal["edge", "centre"] = "edge"
    """What "closest" means: the gap between the edges (ties by the centres), or between the centres [ours]."""
    failed_aspect: Literal["grow", "next_start"] = "grow"
    """A region with enough objects but too narrow goes on growing, or the next start object is tried [ours]."""
