"""The config section `pairing`: refinement, and which pairs are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spr.config.section import Float, Section


class PairingConfig(Section):
    """How the best description is refined, and which pairs are kept (paper, Sec. 3.3)."""

    unmatched: Literal["remove_box", "keep_box", "remove_phrase"] = "remove_box"
    """What refinement does to a box that matches no object: remove the box, keep it, or remove its phrase as well (our
    choice)."""
    min_margin: Float = Field(default=0.0, ge=0)
    """Pairs whose scores differ by less are dropped (our choice)."""
    max_length_ratio: Float | None = Field(default=None, gt=1)
    """Pairs in which one answer has more than this many times the words of the other are dropped; null keeps all (our
    choice)."""
