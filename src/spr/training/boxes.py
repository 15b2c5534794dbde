"""Weights of answer tokens: the numbers of the boxes in which the two answers of a pair differ count more.

RLHF-V (Yu et al., CVPR 2024) does this for the segments that a person has corrected.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spr.grounding import Dialect, parse
from spr.grounding.text import Range
from spr.records import Size


def box_ranges(text: str, dialect: Dialect, size_wh: Size) -> list[tuple[Range, ...]]:
    """Where the numbers of each box are in a text in this dialect, box by box."""
    source = parse(text, dialect, size_wh).source
    return [place.numbers for place in source.places if place.numbers] if source is not None else []


def changed_numbers(text: str, other: str, dialect: Dialect, size_wh: Size) -> list[Range]:
    """Where the numbers of the changed boxes of an answer are: the boxes that the other answer does not contain.

    Boxes are equal if their numbers are written the same. All numbers of a changed box count, also those that a box of
    the other answer shares.

    >>> from spr.grounding import get_dialect
    >>> one, two = "a cat [1, 2, 30, 40], a dog [5, 6, 7, 8]", "a cat [1, 2, 30, 41], a dog [5, 6, 7, 8]"
    >>> [one[start:end] for start, end in changed_numbers(one, two, get_dialect("ferret"), (640, 480))]
    ['1', '2', '30', '40']
    """

    def boxes(words: str) -> list[tuple[tuple[str, ...], tuple[Range, ...]]]:
        places = box_ranges(words, dialect, size_wh)
        return [(tuple(words[start:end] for start, end in place), place) for place in places]

    known = {numbers for numbers, _ in boxes(other)}
    return [place for numbers, places in boxes(text) if numbers not in known for place in places]


def token_weights(offsets: Sequence[Range], ranges: Sequence[Range], weight: float) -> Tensor:
    """``(R,)`` float32: ``weight`` for each token that shares a character with one of the ranges, else 1.

    ``offsets`` are the tokens' places in the text.

    >>> token_weights([(0, 2), (2, 5), (5, 6)], [(4, 5)], 5.0).tolist()
    [1.0, 5.0, 1.0]
    """
    inside = [any(start < end_of and begin < end for begin, end_of in ranges) for start, end in offsets]
    return torch.tensor([weight if changed else 1.0 for changed in inside])
