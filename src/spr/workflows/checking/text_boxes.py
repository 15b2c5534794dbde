"""Every four numbers in texts that some dialect would read as a box, whatever they are relative to."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spr.grounding.dialect import Dialect
from spr.grounding.markup import NUMBER, Tags
from spr.grounding.text import with_ascii_punctuation
from spr.workflows.checking.rows import FORMS, Numbers

_N = rf"\s*+({NUMBER})\s*+"
_FOUR = ",".join([_N] * 4)
_SPACED = r"\s++".join([f"({NUMBER})"] * 4)
_PATCH = r"<patch_index_([0-9]{1,9})>"
# Each alternative has four groups, so that the last group that took part says which one it was.
_BOX = re.compile(
    "|".join(
        (
            rf"[\[;]{_FOUR}(?=[\];])",
            rf"\({_N},{_N}\)\s*+,\s*+\({_N},{_N}\)",
            rf"\({_FOUR}\)",
            rf"<(?:box|bbox)>\s*+{_SPACED}\s*+<",
            r"<loc([0-9]{1,9})>" * 4,
            r"<loc_([0-9]{1,9})>" * 4,
            r"<([0-9]{1,4})>" * 4,
            rf"{_PATCH}()\s*+{_PATCH}()",
        )
    )
)
_FORMS = ("brackets", "pairs", "parentheses", "spaces", "loc", "loc_", "bins", "patch")
_KEYS = tuple((f'"{key}"', key) for key in ("bbox_2d", "box_2d"))
_BEFORE = tuple(f'"{key}":{gap}{bracket}' for _, key in _KEYS for gap in (" ", "") for bracket in ("", "["))
_NOT_NUMBERS = re.compile(r"\[[^\[\]\0]{0,80}?\b(?:nan|-?inf(?:inity)?)\b[^\[\]\0]{0,80}\]", re.IGNORECASE)
_CELLS = 32


class TextBoxes(NamedTuple):
    """The boxes of some texts, text by text.

    Attributes:
        numbers: Each box as it is written.
        forms: How each is written: one of `spr.workflows.checking.rows.FORMS`.
        counts: How many boxes each text has.
        not_finite: The indices of texts with brackets that contain NaN, infinity or a number too large for a float.
    """

    numbers: list[Numbers]
    forms: list[str]
    counts: list[int]
    not_finite: list[int]


def find_boxes(texts: Sequence[str]) -> TextBoxes:
    """Find the boxes of many texts at once.

    >>> find_boxes(["a dog [1, 2, 3, 4]", "none", "<box>(5,6),(7,8)</box>"])[:3]
    ([(1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)], ['brackets', 'pairs'], [1, 0, 1])
    """
    joined = with_ascii_punctuation("\0".join(texts))
    numbers: list[Numbers] = []
    forms: list[str] = []
    starts: list[int] = []
    odd: list[int] = []
    for match in _BOX.finditer(joined):
        last = match.lastindex or 4
        a, b, c, d = match.group(last - 3, last - 2, last - 1, last)
        form = _FORMS[last // 4 - 1]
        box: Numbers
        if form == "patch":
            first, second = int(a), int(c)
            box = (first % _CELLS, first // _CELLS, second % _CELLS, second // _CELLS)
        else:
            box = (float(a), float(b), float(c), float(d))
            if not all(map(math.isfinite, box)):
                odd.append(match.start())
                continue
            if form == "brackets" and joined.endswith(_BEFORE, max(match.start() - 12, 0), match.start()):
                form = "bbox_2d" if joined.rfind("bbox_2d", match.start() - 12, match.start()) >= 0 else "box_2d"
        numbers.append(box)
        forms.append(form)
        starts.append(match.start())
    lowered = joined.lower()
    if "nan" in lowered or "inf" in lowered:
        odd += [match.start() for match in _NOT_NUMBERS.finditer(joined)]
    ends = np.fromiter(itertools.accumulate(len(text) + 1 for text in texts), np.int64, len(texts))
    of_text = np.searchsorted(ends, starts, side="right") if starts else np.zeros(0, np.int64)
    counts = np.bincount(of_text, minlength=len(texts)).tolist()
    return TextBoxes(numbers, forms, counts, sorted({int(k) for k in np.searchsorted(ends, odd, side="right")}))


def forms_of(dialect: Dialect) -> frozenset[str]:
    """The forms in which a dialect's models write boxes, of `spr.workflows.checking.rows.FORMS`.

    >>> from spr.grounding import get_dialect
    >>> sorted(forms_of(get_dialect("qwen3_vl"))), sorted(forms_of(get_dialect("glm_v")))
    (['bbox_2d'], ['bbox_2d', 'brackets'])
    """
    forms = set(find_boxes([dialect.example]).forms)
    json = dialect.markup.json if isinstance(dialect.markup, Tags) else None
    return frozenset(forms | ({json.box_key} & set(FORMS) if json is not None else set()))
