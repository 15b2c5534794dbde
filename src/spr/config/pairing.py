"""The config section `pairing`: refinement, and which pairs are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spr.config.section import Float, Section


class PairingConfig(Section):
    """Which pairs are kept (METHOD §5)."""

    unmatched: Literal["remove_box", "keep_box", "remove_phrase"] = "remove_box"
    """What refinement does to boxes that match nothing [ours]."""
    min_margin: Float = Field(default=0.0, ge=0)
    """Pairs whose scores differ by less are dropped [ours]."""
    max_length_ratio: Float | None = Field(default=None, gt=1)
    """Pairs of which one answer has more than this many times the other's words are dropped; null keeps all [ours]."""
