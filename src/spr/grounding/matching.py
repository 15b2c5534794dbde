"""Matching between a description and the annotated objects: category names in phrases, and boxes by IoU.

Evaluation and rewards count with the same functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
"""A word, with its apostrophes and hyphens."""


def reaches(values: npt.ArrayLike, threshold: float) -> Bools:
    """``values >= threshold``, robust to rounding errors.

    IoUs are ratios of products of float64 numbers: one that is exactly 0.7 on paper can come out 1e-16 lower. A ratio
    of whole pixels is never this close to a threshold without being equal to it.

    >>> reaches([0.7 - 1e-15, 0.6999999], 0.7).tolist()
    [True, False]
    """
    return np.asarray(np.asarray(values, dtype=np.float64) >= threshold * (1 - 1e-9))


def count_placed(overlaps: Floats, same_name: Bools, threshold: float = 0.5) -> int:
    """Count the objects that are placed by a box of their own name; each box places at most one object.

    Boxes and objects are matched greedily, highest IoU first.

    Args:
        overlaps: IoU, shape ``(objects, boxes)``, 0 to 1.
        same_name: Bool, shape ``(objects, boxes)``: whether the box's phrase names the object.
        threshold: The lowest IoU that counts.

    >>> overlaps = np.array([[0.9, 0.6], [0.8, 0.0]])  # the first object takes the first box; the second gets none
    >>> count_placed(overlaps, np.ones((2, 2), bool)), count_placed(overlaps, np.array([[0, 1], [1, 1]], bool))
    (1, 2)
    """
    usable = np.where(same_name & reaches(overlaps, threshold), overlaps, 0.0)
    count = 0
    while usable.size and usable.max() > 0:
        row, column = np.unravel_index(int(usable.argmax()), usable.shape)
        usable[row, :] = 0.0
        usable[:, column] = 0.0
        count += 1
    return count


def count_named(categories: Sequence[str], phrases: Sequence[str]) -> int:
    """Count the objects whose category is named; each phrase names at most one object.

    Args:
        categories: The category of each object.
        phrases: The phrases of the description.

    >>> count_named(["dog", "dog", "cat"], ["a brown dog", "the cat", "two cats"])
    2
    """
    unused = list(phrases)
    count = 0
    for category in categories:
        index = next((k for k, phrase in enumerate(unused) if names_category(phrase, category)), None)
        if index is not None:
            del unused[index]
            count += 1
    return count


def names_category(phrase: str, category: str) -> bool:
    """Whether a phrase contains the words of a category, in order and next to each other.

    Case and a plural s are ignored. Underscores in a category are spaces; a slash separates alternative names.

    >>> names_category("two Wine glasses", "wine glass"), names_category("a hotdog", "dog")
    (True, False)
    >>> names_category("a dining table", "Dining Table/Desk")
    True
    """
    words = _singular_words(phrase)
    for name in category.replace("_", " ").split("/"):
        wanted = _singular_words(name)
        width = len(wanted)
        if wanted and any(words[k : k + width] == wanted for k in range(len(words) - width + 1)):
            return True
    return False


def _singular_words(text: str) -> list[str]:
    return [_singular(word) for word in WORD.findall(text.lower())]


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
