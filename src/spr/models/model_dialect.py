"""The dialect of a model, as its family and its image processor say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from spr.grounding import DIALECTS, Dialect, get_dialect
from spr.grounding.geometry import Resized
from spr.models.errors import ModelError
from spr.models.families import FAMILIES, unknown_family


def is_grounding_token(token: str, *dialects: Dialect) -> bool:
    """Whether a special token is part of the markup of a dialect: a registered one, or one of ``dialects``.

    >>> tuple(is_grounding_token(token) for token in ("<loc0123>", "<|box_end|>", "</ref>", "<|im_end|>", "<image>"))
    (True, True, True, False, False)
    """
    patterns = (dialect.special_tokens for dialect in (*DIALECTS.values(), *dialects))
    return any(pattern is not None and re.fullmatch(pattern, token) for pattern in patterns)


def control_ids(tokenizer: Any, *dialects: Dialect, keep: Callable[[str], object]) -> frozenset[int]:
    """Ids of a tokenizer's special tokens, except those of a box markup and those to ``keep``."""
    special = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return frozenset(n for n, token in special.items() if not (is_grounding_token(token, *dialects) or keep(token)))


def choose_dialect(dialect: str | Dialect | None, model_type: str, image_processor: Any) -> Dialect:
    """The dialect of a model, given by key, or its family's dialect if None; a `Dialect` is returned unchanged.

    The image processor may be None before it is loaded.

    One in pixels of the resized image (Qwen2.5-VL) is set up to match the image processor of families with a
    `Family.resized_geometry`; for other families, its options must say how large the images become.

    Raises:
        ModelError: if ``dialect`` is None and the family is not in `FAMILIES`, or if it is not known to how many pixels
            the family resizes an image.
        GroundingError: for an unknown key.
    """
    if isinstance(dialect, Dialect):
        return dialect
    if dialect is None:
        if model_type not in FAMILIES:
            what = "The dialect of this model family is unknown"
            raise unknown_family(model_type, what, instead="set describer.dialect")
        dialect = FAMILIES[model_type].dialect
    chosen = get_dialect(dialect)
    if not isinstance(chosen.geometry, Resized):
        return chosen
    if model_type in FAMILIES and FAMILIES[model_type].resized_geometry:
        if image_processor is None:
            return chosen
        factor, size = image_processor.patch_size * image_processor.merge_size, image_processor.size
        geometry = Resized(factor=factor, min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"])
        return dataclasses.replace(chosen, geometry=geometry)
    if chosen == DIALECTS.get(chosen.key):
        what = f"It is not known to how many pixels models of type {model_type} resize their images"
        fix = f"give the settings, as in describer.dialect={chosen.key}:min_pixels=3136,max_pixels=12845056"
        raise ModelError(what, got=f"dialect {chosen.key}", expected="a dialect relative to the image", fix=fix)
    return chosen
