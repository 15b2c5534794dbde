"""Texts about scenes: the prompts that the describer is trained on, and descriptions in its dialect.

Boxes are written in the `llava_onevision` dialect: ``[x1, y1, x2, y2]`` in 0–1 of the image, with two decimals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

PROMPTS: dict[str, str] = {
    "full": "Describe the region {region} and locate its objects.",
    "crop": "Describe the image and locate its objects.",
    "crop_objects": "Describe the image and locate its objects: {objects}.",
    "rec": "Where is {expression}?",
}
"""The describer's prompts. ``{region}`` is a box; ``{objects}`` is ``1 red circle [0.12, …]; 2 blue star […]``."""


def box_text(box: npt.ArrayLike) -> str:
    """A box in 0–1 of the image, written in the dialect.

    >>> box_text([0.123, 0, 0.5, 1])
    '[0.12, 0.00, 0.50, 1.00]'
    """
    return "[" + ", ".join(f"{value:.2f}" for value in np.clip(np.asarray(box, dtype=np.float64), 0, 1)) + "]"


def listed(names: Iterable[str]) -> str:
    """The names as an enumeration: ``a, b and c``.

    >>> listed(["a red ring", "a blue star", "a green cross"])
    'a red ring, a blue star and a green cross'
    """
    items = list(names)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def with_article(name: str) -> str:
    """The name with its indefinite article.

    >>> with_article("orange star"), with_article("red circle")
    ('an orange star', 'a red circle')
    """
    return ("an " if name[0] in "aeiou" else "a ") + name


def description(names: Sequence[str], boxes: Sequence[npt.ArrayLike] | None = None) -> str:
    """A sentence that names objects, each with its box if boxes (in 0–1 of the image) are given.

    >>> description(["red ring", "blue star"], [[0, 0, 0.25, 0.5], [0.5, 0.5, 1, 1]])
    'a red ring [0.00, 0.00, 0.25, 0.50] and a blue star [0.50, 0.50, 1.00, 1.00].'
    """
    phrases = [with_article(name) for name in names]
    if boxes is not None:
        phrases = [f"{phrase} {box_text(box)}" for phrase, box in zip(phrases, boxes, strict=True)]
    return listed(phrases) + "."


def object_list(names: Sequence[str], boxes: Sequence[npt.ArrayLike]) -> str:
    """The numbered list of a crop's objects, for the prompt ``crop_objects``.

    >>> object_list(["red ring", "blue star"], [[0, 0, 0.25, 0.5], [0.5, 0.5, 1, 1]])
    '1 red ring [0.00, 0.00, 0.25, 0.50]; 2 blue star [0.50, 0.50, 1.00, 1.00]'
    """
    rows = zip(names, boxes, strict=True)
    return "; ".join(f"{k} {name} {box_text(box)}" for k, (name, box) in enumerate(rows, start=1))
