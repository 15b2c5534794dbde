"""Families of multimodal LLMs, as data: what one must know of each that its files don't say."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from spr.grounding import DIALECTS, Dialect, get_dialect
from spr.grounding.geometry import Resized
from spr.models.loading import ModelError


@dataclass(frozen=True, slots=True)
class Family:
    """Models that share a class of transformers.

    Attributes:
        model_type: Of their config.
        models: Whose names people know.
        dialect: Key of `spr.grounding.DIALECTS`.
        turn: The user's turn and the start of the answer, for folders without a chat template, as the model's card
            gives it. ``{image}`` stands for the image, ``{prompt}`` for the user's text.
        end_of_turn: Tokens that end an answer, beside those that the generation config names.
        pads_square: Trained on images padded to a square, while the saved processor cuts the longer side off.
        max_aspect: Long side over short side from which on the image processor refuses an image.
    """

    model_type: str
    models: str
    dialect: str
    turn: str
    end_of_turn: tuple[str, ...] = ()
    pads_square: bool = False
    max_aspect: float | None = None


_CHAT_ML = "<|im_start|>user\n{image}{prompt}<|im_end|>\n<|im_start|>assistant\n"
_QWEN_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_QWEN_TURN = _CHAT_ML.replace("{image}", "<|vision_start|>{image}<|vision_end|>")
# The conversation template ferret_v1: the system's text ends with a space, and so does what follows it.
FERRET_SYSTEM = (
    "A chat between a human and an AI that understands visuals. In images, [x, y] denotes points: top-left [0, 0], "
    "bottom-right [width-1, height-1]. Increasing x moves right; y moves down. Bounding box: [x1, y1, x2, y2]. "
    "Image size: 1000x1000. Follow instructions.  "
)
"""What the conversation template ``ferret_v1`` begins with; the models were trained with it."""
_FERRET_TURN = FERRET_SYSTEM + "USER: {image}\n{prompt} ASSISTANT:"

_ALL = (
    Family(
        "llava",
        "LLaVA-1.5",
        "llava",
        "USER: {image}\n{prompt} ASSISTANT:",
        pads_square=True,
    ),
    Family(
        "llava_onevision",
        "LLaVA-OneVision 0.5B, 7B, 72B",
        "llava_onevision",
        "<|im_start|>user {image}\n{prompt}<|im_end|><|im_start|>assistant\n",
        ("<|im_end|>",),
    ),
    Family("qwen2_vl", "Qwen2-VL", "qwen2_vl", _QWEN_SYSTEM + _QWEN_TURN, ("<|im_end|>",), max_aspect=200),
    Family("qwen2_5_vl", "Qwen2.5-VL", "qwen2_5_vl", _QWEN_SYSTEM + _QWEN_TURN, ("<|im_end|>",), max_aspect=200),
    Family("qwen3_vl", "Qwen3-VL", "qwen3_vl", _QWEN_TURN, ("<|im_end|>",), max_aspect=200),
    Family("internvl", "InternVL3", "internvl", _CHAT_ML.replace("{image}", "{image}\n"), ("<|im_end|>",)),
    # No chat: the processor itself puts the beginning of the text behind the image and ends the prompt with a newline.
    Family("paligemma", "PaliGemma, PaliGemma 2", "paligemma", "{image}{prompt}"),
    Family("ferret", "Ferret 7B, 13B", "ferret", _FERRET_TURN),
    # The grounding models' turn; cogvlm-chat's, "Question: … Answer:", comes with its config's template_version.
    Family("cogvlm", "CogVLM-17B (grounding-generalist, chat, base)", "cogvlm", "{image}{prompt}"),
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}
"""The families by ``model_type``."""


def is_grounding_token(token: str, *dialects: Dialect) -> bool:
    """Whether a special token is part of the markup of a dialect, and so belongs to a model's answer.

    Args:
        token: The token's text.
        dialects: Dialects to look at besides the registered ones.

    >>> [is_grounding_token(token) for token in ("<loc0123>", "<|box_end|>", "</ref>", "<|im_end|>", "<image>")]
    [True, True, True, False, False]
    """
    patterns = (dialect.special_tokens for dialect in (*DIALECTS.values(), *dialects))
    return any(pattern is not None and re.fullmatch(pattern, token) is not None for pattern in patterns)


def choose_dialect(dialect: str | Dialect | None, model_type: str, image_processor: Any) -> Dialect:
    """The dialect that a model writes, set up as its image processor is.

    Args:
        dialect: A dialect to be taken as it is, a key, or None for the family's.
        model_type: Of the model's config.
        image_processor: The model's; for dialects that count pixels of the resized image (Qwen2.5-VL), its ``size``,
            ``patch_size`` and ``merge_size`` say how it resizes.

    Raises:
        ModelError: if None is given for a family that is not in `FAMILIES`.
        GroundingError: for an unknown key.
    """
    if isinstance(dialect, Dialect):
        return dialect
    if dialect is None:
        if model_type not in FAMILIES:
            raise ModelError(
                "The dialect of this family of models is not known",
                got=f"model_type {model_type}",
                expected=", ".join(FAMILIES),
                fix="set describer.dialect",
            )
        dialect = FAMILIES[model_type].dialect
    chosen = get_dialect(dialect)
    if not isinstance(chosen.geometry, Resized) or not hasattr(image_processor, "merge_size"):
        return chosen
    geometry = Resized(
        factor=image_processor.patch_size * image_processor.merge_size,
        min_pixels=image_processor.size["shortest_edge"],
        max_pixels=image_processor.size["longest_edge"],
    )
    return dataclasses.replace(chosen, geometry=geometry)
