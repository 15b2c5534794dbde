"""The dialects by key, and their options in text."""

from __future__ import annotations

import re
from typing import Any

from spr.core.errors import GroundingError, closest
from spr.core.registry import Registry
from spr.grounding.dialect import Dialect
from spr.grounding.list_dialects import LIST_DIALECTS
from spr.grounding.prose_dialects import PROSE_DIALECTS

__all__ = ["DIALECTS", "Dialect", "get_dialect"]

DIALECTS: Registry[Dialect] = Registry(
    "dialect", "spr.dialects", {dialect.key: dialect for dialect in (*PROSE_DIALECTS, *LIST_DIALECTS)}
)
"""The dialects by key: the built-in ones, those of the entry-point group ``spr.dialects``, and registered ones."""


def get_dialect(dialect: str | Dialect, **options: Any) -> Dialect:
    """The dialect of a key, with its options set as the model's image processor is set up.

    Args:
        dialect: A `Dialect`, or a key of `DIALECTS`, optionally with options: ``llava_onevision:padded=true``,
            ``qwen2_5_vl:min_pixels=3136,max_pixels=1003520``.
        options: Options of the dialect by name; None leaves an option at its default. The built-in ones are:
            ``padded`` (bool; LLaVA-1.5, LLaVA-OneVision): numbers are relative to the image padded to a square, which
            is the default of LLaVA-1.5 only. ``min_pixels``, ``max_pixels`` (int; Qwen2.5-VL): the settings of its
            image processor; 3,136 and 12,845,056 by default. ``resized_wh`` (Qwen2.5-VL): the size in pixels to which
            the processor resized the image, for one image.

    Raises:
        GroundingError: for an unknown key, naming the nearest one; for an option that the dialect does not have; for
            a value of another type than the option's, an integer that is not between 1 and 10^12, or ``min_pixels``
            above ``max_pixels``.

    >>> get_dialect("qwen2_5_vl", max_pixels=1003520).max_error((3000, 2000))  # resized to 1204 × 812
    (2.4916943521594686, 2.4630541871921183)
    """
    if isinstance(dialect, Dialect):
        return dialect.with_options(**options)
    key, _, text = dialect.partition(":")
    if key not in DIALECTS:
        near = closest(key.lower().replace("-", "_").replace(".", "_"), DIALECTS)
        fix = f"did you mean `{near}`?" if near else None
        raise GroundingError("Unknown dialect", got=repr(key), expected=", ".join(DIALECTS), fix=fix)
    registered = DIALECTS[key]
    if registered.key != key:
        raise GroundingError(f"Dialect `{key}` is registered under another name than its own", got=registered.key)
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    return registered.with_options(**{**options, **{name: _read_option(value) for name, _, value in pairs}})


def _read_option(text: str) -> bool | int | str:
    """The value of an option in the text of a dialect; what is neither a bool nor an integer stays text."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else text
