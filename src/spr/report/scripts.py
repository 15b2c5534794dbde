"""Data for a page that is opened from disk: JSON in script files, for a page may not fetch what lies beside it."""

from __future__ import annotations

import json
import math
from typing import Any

_HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def call_script(function: str, *arguments: Any) -> str:
    r"""A script that calls a function of the page with JSON values, safe as a file and within ``<script>``.

    Whatever a model or a dataset wrote stays inside a JSON text: ``<``, ``>`` and ``&`` are escaped, so are U+2028,
    U+2029 and all that is not ASCII. Numbers that JSON does not know (NaN, infinity) become null.

    >>> call_script("SPR.page", 3, {"text": "</script>\u2028é", "margin": float("nan")})
    'SPR.page(3,{"text":"\\u003c/script\\u003e\\u2028\\u00e9","margin":null});\n'
    """
    joined = ",".join(_dump(value) for value in arguments)
    for character, escaped in _HTML.items():
        joined = joined.replace(character, escaped)
    return f"{function}({joined});\n"


def _dump(value: Any) -> str:
    options: dict[str, Any] = {"ensure_ascii": True, "allow_nan": False, "separators": (",", ":")}
    try:
        return json.dumps(value, **options)
    except ValueError:
        return json.dumps(_finite(value), **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
