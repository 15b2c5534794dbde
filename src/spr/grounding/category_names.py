"""From the names in answers to categories: exact after normalisation, with synonyms; for evaluation and rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spr.grounding.matching import WORD, singular_words
from spr.grounding.names import MAX_LENGTH, category_name, readable_names

_ARTICLES = ("a", "an", "the")
_REMEMBERED = 10_000  # names: the answers of a long training repeat few


class CategoryNames:
    """Finds the category that a name in an answer means.

    Names are compared as words: case, punctuation, underscores, a leading article and a plural s don't matter. What a
    category is found by, in this order: its whole name, the synonyms that are given, its name without LVIS's qualifier,
    and the parts between slashes. A name that means several categories in the same way finds none.

    Args:
        categories: The names of the dataset.
        synonyms: Further names by category.

    >>> names = CategoryNames(["car_(automobile)", "wine_glass", "bow_(weapon)", "bow_(decorative_ribbons)"])
    >>> tuple(names.find(text) for text in ("Cars", "a wine glass", "bow (weapon)", "bow", "glass"))
    (0, 1, 2, -1, -1)
    """

    def __init__(self, categories: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None) -> None:
        self.readable = readable_names(categories)
        self._by_words: dict[tuple[str, ...], int] = {}
        self._known: dict[str, int] = {}
        position = {name: k for k, name in enumerate(categories)}
        given = [(name, position[category]) for category, names in (synonyms or {}).items() for name in names]
        whole = [(name, k) for k, name in enumerate(categories)] + [(name, k) for k, name in enumerate(self.readable)]
        parts = [category_name(name) for name in categories]
        short = [(name.words, k) for k, name in enumerate(parts)]
        other = [(name, k) for k, own in enumerate(parts) for name in own.alternatives]
        for level in (whole, given, short, other):
            self._add([(words_of(name), k) for name, k in level])
        for level in (whole, given, short, other):
            self._add([(tuple(singular_words(name)), k) for name, k in level])

    def _add(self, level: Sequence[tuple[tuple[str, ...], int]]) -> None:
        found: dict[tuple[str, ...], set[int]] = {}
        for words, k in level:
            found.setdefault(words, set()).add(k)
        for words, own in found.items():
            if words:
                self._by_words.setdefault(words, next(iter(own)) if len(own) == 1 else -1)

    def find(self, name: str) -> int:
        """The index of the category, or -1."""
        known = self._known.get(name)
        if known is None:
            known = self._find(name)
            if len(self._known) < _REMEMBERED and len(name) <= MAX_LENGTH:
                self._known[name] = known
        return known

    def _find(self, name: str) -> int:
        words = words_of(name)
        for own in (words, words[1:] if words[:1] and words[0] in _ARTICLES else ()):
            for form in (own, tuple(singular_words(" ".join(own)))):
                if form in self._by_words:
                    return self._by_words[form]
        return -1


def words_of(text: str) -> tuple[str, ...]:
    """The words of a name in lower case, by which names are compared."""
    return tuple(WORD.findall(text.lower().replace("_", " ")))
