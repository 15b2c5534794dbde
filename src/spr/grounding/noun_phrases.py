"""Finds the noun phrases of a text, which open-vocabulary detectors are asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spr.grounding.phrases import BREAKERS, COLOURS, DETERMINERS, PLACES
from spr.records import Span

_WORD = re.compile(r"[^\s。，、；：！？（）「」【】]+")
_EDGES = ".,;:!?()[]{}<>\"'“”‘’«»…*_-–—|"
_ENDS = '.,;:!?)]}>"”»…–—|'
_NEVER_LAST = DETERMINERS | BREAKERS | {"of"}
_OPENERS = '([{<"“«'


def noun_phrases(text: str) -> list[tuple[int, int]]:
    """Start and end of each noun phrase in a text, in order, from word lists and without a tagger.

    A phrase is a run of words. It ends at punctuation, at the end of a line, before a determiner, and at a connective,
    preposition or common verb (`spr.grounding.phrases.BREAKERS`), which are not part of it. There are three exceptions:
    after a determiner, such a word is an adjective ("a standing man"); "and" joins two colours; and "of" joins anything
    but a place ("the left of the dog"). In other languages, phrases are the parts between punctuation marks.

    >>> text = "There are several pieces of luggage next to a standing man, and the black and white cat."
    >>> [text[start:end] for start, end in noun_phrases(text)]
    ['several pieces of luggage', 'a standing man', 'the black and white cat']
    """
    found: list[tuple[int, int]] = []
    phrase: list[tuple[str, int, int]] = []

    def close() -> None:
        while phrase and phrase[-1][0] in _NEVER_LAST:
            phrase.pop()
        if phrase and not all(word in DETERMINERS for word, _, _ in phrase):
            found.append((phrase[0][1], phrase[-1][2]))
        phrase.clear()

    words = list(_WORD.finditer(text))
    end = 0
    for k, match in enumerate(words):
        raw = match.group()
        core = raw.strip(_EDGES)
        gap = text[end : match.start()]
        if gap.strip() or "\n" in gap or raw[0] in _OPENERS:
            close()
        end = match.end()
        word = core.lower()
        after = words[k + 1].group().strip(_EDGES).lower() if k + 1 < len(words) else ""
        before = phrase[-1][0] if phrase else ""
        if not core or _breaks(word, before, after):
            close()
        elif word == "of" and (not phrase or before in PLACES):
            phrase.clear()
        else:
            if word in DETERMINERS and phrase and before not in DETERMINERS | {"of"}:
                close()
            start = match.start() + raw.index(core)
            phrase.append((word, start, start + len(core)))
        if raw[-1] in _ENDS:
            close()
    close()
    return found


def phrases_to_detect(text: str, spans: Sequence[Span] = ()) -> tuple[str, ...]:
    """The noun phrases of a description, each once, in the order in which they are first mentioned (our choice).

    A phrase with a box is taken as the description marks it, and replaces the noun phrases that it overlaps. Phrases
    that differ only in case or white space are the same; the first is returned.

    Args:
        text: The description without coordinates.
        spans: The phrases of the text that have boxes.

    >>> phrases_to_detect("A dog and a red cup. The red car is near a dog.")
    ('A dog', 'a red cup', 'The red car')
    >>> text = "A man riding a horse, a dog"
    >>> phrases_to_detect(text, [Span("A man riding a horse", 0, 20, ((0, 0, 9, 9),))])
    ('A man riding a horse', 'a dog')
    """
    marked = [(span.start, span.end) for span in spans if span.phrase.strip()]
    others = [
        (start, end)
        for start, end in noun_phrases(text)
        if not any(start < marked_end and marked_start < end for marked_start, marked_end in marked)
    ]
    first: dict[str, str] = {}
    for start, end in sorted([*marked, *others]):
        words = text[start:end].split()
        first.setdefault(" ".join(words).lower(), " ".join(words))
    return tuple(first.values())


def _breaks(word: str, before: str, after: str) -> bool:
    if word == "and" and before in COLOURS and after in COLOURS:
        return False
    return word in BREAKERS and before not in DETERMINERS
