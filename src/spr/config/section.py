"""What a section of the config is made of: strict numbers, known keys only, values that don't change once made."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

_EXPONENT = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+")


def _not_a_text(value: object) -> object:
    # A number in quotes is a typing error that must not pass silently.
    if isinstance(value, str | bool):
        raise ValueError("not a number")
    return value


def _not_another_text(value: object) -> object:
    # YAML reads 1e-5, which everyone writes, as a text: it wants 1.0e-5.
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else _not_a_text(value)


Int = Annotated[int, BeforeValidator(_not_a_text)]
Float = Annotated[float, BeforeValidator(_not_another_text)]


DType = Literal["auto", "float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values don't change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    runtime_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that say how and where the work is done, and decide no row: a run goes on when they change."""
