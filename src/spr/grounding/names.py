"""Category names as people write them: what prompts, detectors, matching and metrics make of ``car_(automobile)``."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

MAX_LENGTH = 200
"""A name has at most this many characters: it is in prompts once per object."""

# PaliGemma's and Florence-2's dialects separate objects with semicolons.
_AS_WORDS = str.maketrans("_;", " ,")
_QUALIFIER = re.compile(r"\s?[(（]([^()（）]*)[)）](?!\S)")
_WORD = re.compile(r"[^\W_]")
_TOKEN = re.compile(r"<[^<>]+>|[{}]|\[/?(?:INST|IMG|CLS|SEP|MASK|PAD|UNK|BOS|EOS)\]")
# A number after a square bracket, or three after a round one. "Golf (1998-2004)" is a name.
_COORDINATES = re.compile(r"[\[［]\D*+\d|[(（](?:\D*+\d[\d.]*+){3}")


class CategoryName(NamedTuple):
    """A category's name as words.

    Attributes:
        words: The name, such as ``car`` or ``Cabinet/shelf``.
        qualifier: What LVIS adds in brackets, such as ``automobile``; empty if there is nothing.
        alternatives: The names to look for in a text: ``words`` split at slashes, and the words after a qualifier.
    """

    words: str
    qualifier: str
    alternatives: tuple[str, ...]


@lru_cache(maxsize=4096)
def category_name(category: str) -> CategoryName:
    """The readable name of a category of COCO, LVIS or Objects365. Case is kept.

    >>> category_name("car_(automobile)")
    CategoryName(words='car', qualifier='automobile', alternatives=('car',))
    >>> category_name("monitor_(computer_equipment) computer_monitor").alternatives
    ('monitor', 'computer monitor')
    >>> category_name("Cabinet/shelf")
    CategoryName(words='Cabinet/shelf', qualifier='', alternatives=('Cabinet', 'shelf'))
    """
    pieces = _QUALIFIER.split(_as_text(category))
    names = [piece.strip() for piece in pieces[::2] if _WORD.search(piece)]
    qualifiers = [piece.strip() for piece in pieces[1::2] if piece.strip()]
    if not names:
        names, qualifiers = qualifiers[:1] or [pieces[0]], qualifiers[1:]
    alternatives = tuple(part.strip() for name in names for part in name.split("/") if _WORD.search(part))
    return CategoryName(names[0], ", ".join(qualifiers), alternatives)


def readable_names(categories: Sequence[str]) -> list[str]:
    """The names of categories in a prompt: with the qualifier only where two of them would have the same name.

    >>> readable_names(["wine_glass", "bow_(weapon)", "wine_glass"])
    ['wine glass', 'bow', 'wine glass']
    >>> readable_names(["crab_(animal)", "crab_(food)"])
    ['crab (animal)', 'crab (food)']
    """
    names = {category: category_name(category) for category in categories}
    shared = Counter(name.words.lower() for name in names.values())
    texts = {
        category: f"{name.words} ({name.qualifier})"
        if name.qualifier and shared[name.words.lower()] > 1
        else name.words
        for category, name in names.items()
    }
    return [texts[category] for category in categories]


def is_readable(category: str) -> bool:
    """Whether a category's name is words, which prompts and descriptions can contain.

    It is not if it has no letter or digit, more than `MAX_LENGTH` characters, control characters, braces, a special
    token such as ``<image>``, or numbers in brackets, which a dialect could read as coordinates.

    >>> [is_readable(name) for name in ("car_(automobile)", "sofa [1, 2, 3, 4]", "<image>", "")]
    [True, False, False, False]
    """
    name = category.strip()
    if len(name) > MAX_LENGTH or not _WORD.search(name) or _TOKEN.search(name):
        return False
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
        return False
    return not _COORDINATES.search(name)


def _as_text(category: str) -> str:
    return " ".join(category.translate(_AS_WORDS).split())
