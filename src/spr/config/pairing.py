"""The config section `pairing`: refinement and the selection of pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spr.config.section import Float, Section


class PairingConfig(Section):
    """How the best description is refined, and which pairs are kept (paper, Sec. 3.3)."""

    unmatched: Literal["remove_box", "keep_box", "remove_phrase"] = "remove_box"
    """What refinement does with a box that matches no object: remove the box, keep it, or remove its phrase too (our
    choice)."""
    min_margin: Float = Field(default=0.0, ge=0)
    """Minimum difference between the scores of a pair (our choice)."""
    max_length_ratio: Float | None = Field(default=None, gt=1)
    """Maximum ratio between the lengths of a pair's answers, in words; null allows any (our choice)."""
