"""The base class of config sections, and the number types of their fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from spr.core.paths import as_path

_EXPONENT = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+")


def _reject_strings(value: object) -> object:
    # A number in quotes or a boolean is most likely a mistake.
    if isinstance(value, str | bool):
        raise ValueError("not a number")
    return value


def _parse_exponent(value: object) -> object:
    # YAML parses 1e-5 as a string; only 1.0e-5 is a number there.
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else _reject_strings(value)


Int = Annotated[int, BeforeValidator(_reject_strings)]
Float = Annotated[float, BeforeValidator(_parse_exponent)]


BatchSize = Annotated[Int, Field(ge=1)] | Literal["auto"]
"""A number of items, or `auto`: as many as fit into the device's memory."""


Processes = Annotated[Int, Field(ge=1)] | Literal["auto"]
"""A number of processes, or `auto`: one for each GPU."""


def split_words(value: object) -> object:
    """The words of a text, separated by commas or spaces; other values as they are."""
    return [word for word in re.split(r"[\s,]+", value) if word] if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(split_words)]
"""A list of words. One word is a list, too, and so are words with commas or spaces between them."""

DType = Literal["auto", "float32", "bfloat16", "float16"]


def _as_path(value: object) -> object:
    return as_path(value) if isinstance(value, str | Path) else value


AnyPath = Annotated[Path, BeforeValidator(_as_path)]
"""A path on a local disk, or a URL of object storage."""


class Section(BaseModel):
    """A part of the config. Unknown keys are errors, and values can't be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    runtime_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that do not affect the results, such as the device. A run can be resumed after they were changed."""

    later_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that runs were made without. At null, their default, they are no part of a stage's settings, so that such
    a run can still be resumed."""
