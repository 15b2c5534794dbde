"""The config section `pairing`: refinement and the selection of pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from spr.config.section import Float, Section


class PairingConfig(Section):
    """How the best description is refined, and which pairs are kept (paper, Sec. 3.3)."""

    kind: Literal["answers", "boxes", "both"] = "answers"
    """Kinds of pairs: `answers`: the best answer, refined, against the worst (paper, Sec. 3.3); `boxes` (our choice):
    the best answer, refined, against the same words with displaced boxes; `both`: one of each kind per region."""
    box_iou: tuple[Float, Float] = (0.5, 0.8)
    """`boxes`: lowest and highest IoU between a displaced box and the object's (our choice)."""
    unmatched: Literal["auto", "remove_box", "keep_box", "remove_phrase"] = "auto"
    """What refinement does with a box that matches no object: remove the box, keep it, or remove its phrase too (our
    choice). `auto` removes the box, but keeps it in dialects that list objects (Qwen2.5-VL, Qwen3-VL, PaliGemma,
    Florence-2), where a box can't be removed without its words and chosen answers would become shorter."""
    min_margin: Float = Field(default=0.0, ge=0)
    """Minimum difference between the scores of a pair of `answers` (our choice)."""
    max_length_ratio: Float | None = Field(default=None, gt=1)
    """Maximum ratio between the lengths of a pair's answers; null allows any (our choice). Lengths are words, without
    boxes; in dialects that list objects, characters of the whole text."""

    @field_validator("box_iou")
    @classmethod
    def _is_a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] < value[1] < 1:
            raise ValueError("give the lowest and the highest IoU, such as [0.5, 0.8], between 0 and 1")
        return value
