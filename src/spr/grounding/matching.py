"""Matching between descriptions and annotated objects: category names in phrases, and boxes by IoU.

Scoring, rewards and evaluation count with the same functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spr.core import boxes as bx
from spr.grounding.names import category_name
from spr.grounding.points import points_in_boxes
from spr.records import Box, ImageObject, Match, Point

THRESHOLD = 0.5
"""A match counts for S_loc if its IoU is above this (paper, Sec. 3.2)."""

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
"""A word, with its apostrophes and hyphens."""


class Localization(NamedTuple):
    """S_loc in 0–1, and the best predicted box of each object."""

    score: float
    matches: tuple[Match, ...]


def localization_score(
    objects: Sequence[ImageObject],
    text_boxes: Sequence[Box],
    detected_boxes: Sequence[Box] = (),
    *,
    points: Sequence[Point] = (),
    threshold: float = THRESHOLD,
) -> Localization:
    """S_loc = (1/|G|) Σ_i max_j p[i,j], where p[i,j] = IoU(g_i, b_j) if that is above 0.5, else 0 (paper, Sec. 3.2).

    Args:
        objects: G, the objects inside the region.
        text_boxes: The boxes in the description, in pixels of the original image.
        detected_boxes: The detector's boxes for the description's text; added to ``text_boxes``.
        points: The points in the description. One in an object's box counts as an IoU of 1 (our choice): it has no
            extent that could fit less well.
        threshold: An IoU counts if it is above this value, 0..1.

    Returns:
        The score, 0 for an empty G, and for each object the IoU (also if it does not count) and the source (``text``,
        ``detector``, ``none``) of its best prediction. Ties are resolved in favour of ``text``.

    >>> cup = ImageObject("1", "cup", (0, 0, 10, 10))
    >>> plate = ImageObject("2", "plate", (50, 50, 60, 60))
    >>> localization_score([cup, plate], [(0, 0, 10, 8), (0, 0, 10, 9)]).score
    0.45
    """
    predictions = bx.as_boxes([*text_boxes, *detected_boxes])
    if not (len(predictions) or points) or not objects:
        return Localization(0.0, tuple(Match(item.id, 0.0, "none") for item in objects))
    boxes = [item.box for item in objects]
    overlaps = np.hstack([points_in_boxes(points, boxes).T, bx.iou_matrix(boxes, predictions)])
    values = overlaps.max(axis=1)
    sources = np.where(overlaps.argmax(axis=1) < len(points) + len(text_boxes), "text", "detector")
    sources[values == 0] = "none"
    rows = zip(objects, values.tolist(), sources.tolist(), strict=True)
    matches = tuple(Match(item.id, value, source) for item, value, source in rows)
    return Localization(float(np.where(bx.over(values, threshold), values, 0.0).mean()), matches)


def reaches(values: npt.ArrayLike, threshold: float | bx.Array) -> npt.NDArray[np.bool_]:
    """``values >= threshold``, robust to rounding errors; several thresholds broadcast.

    IoUs are ratios of products of float64 numbers: one that is exactly 0.7 on paper can come out 1e-16 lower. A ratio
    of whole pixels is never this close to a threshold without being equal to it.

    >>> reaches([0.7 - 1e-15, 0.6999999], 0.7).tolist()
    [True, False]
    """
    return np.asarray(np.asarray(values, dtype=np.float64) >= threshold * (1 - 1e-9))


def count_placed(overlaps: bx.Array, same_name: npt.NDArray[np.bool_], threshold: float = 0.5) -> int:
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

    >>> count_named(["dog", "dog", "cat"], ["a brown dog", "the cat", "two cats"])
    2
    """
    unused = list(map(spaced_words, phrases))
    for category in categories:
        named = next((phrase for phrase in unused if contains_name(phrase, category)), None)
        if named is not None:
            unused.remove(named)
    return len(phrases) - len(unused)


def names_category(phrase: str, category: str) -> bool:
    """Whether a phrase contains the words of a category, in order and next to each other.

    Case, a plural s and LVIS's qualifiers are ignored; a slash separates alternative names (see
    `spr.grounding.names.category_name`).

    >>> names_category("two Wine glasses", "wine_glass"), names_category("a hotdog", "dog")
    (True, False)
    >>> names_category("a dining table", "Dining Table/Desk"), names_category("a red car", "car_(automobile)")
    (True, True)
    """
    return contains_name(spaced_words(phrase), category)


def spaced_words(text: str) -> str:
    """The words of `singular_words` between single spaces, for `contains_name`.

    >>> spaced_words("Two dogs!")
    ' two dog '
    """
    return f" {' '.join(singular_words(text))} "


def contains_name(spaced: str, category: str) -> bool:
    """`names_category` for words that are already read by `spaced_words`: for many categories, or a long text."""
    return any(name in spaced for name in _spaced_names(category))


@lru_cache(maxsize=4096)
def _spaced_names(category: str) -> tuple[str, ...]:
    names = [spaced_words(name) for name in category_name(category).alternatives]
    return tuple([name for name in names if name.strip()])


def singular_words(text: str) -> list[str]:
    """The words of a text in lower case, by which singular and plural are compared: without a plural s.

    An e after s, x, z, ch or sh is left out, too, since the plurals of "horse" and "bus" don't show whether there is
    one.

    >>> singular_words("Horses, buses and glasses"), singular_words("a horse, bus, glass")
    (['hors', 'bus', 'and', 'glass'], ['a', 'hors', 'bus', 'glass'])
    """
    return [_singular(word) for word in WORD.findall(text.lower())]


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith(("se", "xe", "ze", "che", "she")) else word
