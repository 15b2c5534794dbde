"""The options of a dialect, from its text or from a caller: what is wrong is refused before it reaches the geometry."""

from __future__ import annotations

import operator
import re
from typing import Any, SupportsIndex

from spr.core.errors import GroundingError
from spr.grounding.geometry import check_size

_DIGITS = re.compile(r"[0-9]{1,18}")
_MOST = 10**12


def read_options(key: str, text: str) -> dict[str, Any]:
    """Options from a text such as ``min_pixels=784,max_pixels=3136``, unchecked.

    A value that is no number or bool stays text, for `checked_option` to refuse.

    Raises:
        GroundingError: for a name that no dialect has.
    """
    given: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        if name not in ("padded", "min_pixels", "max_pixels"):
            expected = "padded=true, padded=false, min_pixels=N or max_pixels=N"
            raise GroundingError(f"An option of dialect `{key}` is malformed", got=repr(pair), expected=expected)
        if name == "padded":
            given[name] = {"true": True, "false": False}.get(value, value)
        else:
            given[name] = int(value) if _DIGITS.fullmatch(value) else value
    return given


def checked_option(key: str, name: str, value: Any) -> Any:
    """The value of an option as the geometry takes it.

    Raises:
        GroundingError: if ``padded`` is not a bool, a number of pixels not a whole number from 1 to 10^12, or
            ``resized_wh`` not a size.
    """
    if name == "resized_wh":
        return check_size(value)
    if name == "padded":
        if isinstance(value, bool):
            return value
        expected = "true or false"
    else:
        if isinstance(value, SupportsIndex) and not isinstance(value, bool) and 1 <= operator.index(value) <= _MOST:
            return operator.index(value)
        expected = f"a whole number from 1 to {_MOST:,}"
    raise GroundingError(f"Option `{name}` of dialect `{key}` is wrong", got=repr(value)[:60], expected=expected)
