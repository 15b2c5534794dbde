"""The config section `pairing`: refinement and the selection of pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from spr.config.section import Float, Int, Section


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

    negatives: Int = Field(default=0, ge=0, le=8)
    """Questions per image about absent objects (our choice: 0, none). The chosen answer says that the object is not
    there, the rejected one gives the box of another object. In the stage `negatives`."""
    negatives_from: Literal["random", "popular", "adversarial"] = "random"
    """Absent categories are drawn with equal probabilities; `popular`: in proportion to how many images have them;
    `adversarial`: in proportion to how often they occur together with the image's own categories (our choice)."""
    positives: bool = True
    """Ask as many questions about present objects, of which the image has one each, and skip what has no counterpart:
    a model that only learns to refuse gains nothing (our choice)."""
    locate_prompt: str | None = None
    """The question of `negatives`, with `{expression}`, such as `the dog`; null uses the wording of the model's family
    (our choice)."""
    absent_answer: str = "There is no {category} in the image."
    """The answer about an absent object. Must contain `{category}` (our choice)."""

    @field_validator("locate_prompt", "absent_answer")
    @classmethod
    def _has_its_placeholder(cls, value: str | None, info: ValidationInfo) -> str | None:
        placeholder = {"locate_prompt": "{expression}", "absent_answer": "{category}"}[str(info.field_name)]
        if value is not None and placeholder not in value:
            raise ValueError(f"must contain {placeholder}")
        return value

    @field_validator("negatives_from", "positives", "locate_prompt", "absent_answer")
    @classmethod
    def _belongs_to_negatives(cls, value: object, info: ValidationInfo) -> object:
        default = cls.model_fields[str(info.field_name)].default
        if value != default and not info.data.get("negatives", 1):
            raise ValueError(f"there are no negatives: set negatives too, or remove {info.field_name}")
        return value

    @field_validator("box_iou")
    @classmethod
    def _is_a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] < value[1] < 1:
            raise ValueError("give the lowest and the highest IoU, such as [0.5, 0.8], between 0 and 1")
        return value
