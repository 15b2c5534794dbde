"""Prompts of GroundingDINO, and how a box's token scores are read as its score and phrase (our choice).

A prompt holds the token ids between [CLS] and [SEP], at most as many as the text encoder reads. What is longer is split
into several prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from spr.models.text_pieces import Span, split, token_parts, tokenize

_IN_WORDS = "-'’_&"
_FIRST_IDEOGRAPH = "\u2e80"  # scripts from here on don't separate words with spaces


@dataclass(frozen=True, slots=True)
class PhrasePrompt:
    """Phrases joined by dots, as in GroundingDINO's training: ``a dog . a red cup .``

    Attributes:
        ids: The token ids.
        phrases: The phrases.
        places: The first and the last token of each phrase, as indices ``(first, last + 1)`` of ``ids``.
    """

    ids: tuple[int, ...]
    phrases: tuple[str, ...]
    places: tuple[Span, ...]

    def scores(self, probs: torch.Tensor) -> torch.Tensor:
        """The score of each box, ``(boxes,)``: the highest of the tokens of all phrases.

        ``probs (boxes, tokens)`` are the scores of [CLS], then of ``ids``, then of further tokens.
        """
        return torch.stack([probs[:, 1 + a : 1 + b].amax(dim=1) for a, b in self.places]).amax(dim=0)

    def phrase(self, probs: Sequence[float]) -> str:
        """The phrase with the highest score, given the scores of ``ids`` for one box; the first if there are several.

        >>> PhrasePrompt((7, 8, 1, 9, 1), ("red cup", "dog"), ((0, 2), (3, 4))).phrase([0.2, 0.6, 0.9, 0.5, 0.1])
        'red cup'
        """
        best = max(range(len(self.places)), key=lambda k: max(probs[slice(*self.places[k])]))
        return self.phrases[best]


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A text that ends with a dot, or a part of a longer text.

    Attributes:
        ids: The token ids.
        text: The whole text.
        spans: The start and end in the text of the tokens, without an added dot.
        words: Indices of the tokens that are words or parts of words.
        threshold: Minimum score of the tokens that form a phrase, 0..1.
    """

    ids: tuple[int, ...]
    text: str
    spans: tuple[Span, ...]
    words: frozenset[int]
    threshold: float

    def scores(self, probs: torch.Tensor) -> torch.Tensor:
        """The score of each box, ``(boxes,)``: the highest of all tokens, as in GroundingDINO's post-processing."""
        return probs.amax(dim=1)

    def phrase(self, probs: Sequence[float]) -> str:
        """The phrase of a box, given the scores of ``ids``.

        It starts at the word with the highest score and extends over whole words above the threshold, up to the next
        punctuation.
        """
        best = max(sorted(self.words), key=lambda k: probs[k])

        def joins(k: int, neighbour: int) -> bool:
            (_, border), (begin, _) = sorted((self.spans[k], self.spans[neighbour]))
            return border == begin and max(self.text[border - 1], self.text[border]) < _FIRST_IDEOGRAPH

        first = last = best
        while first - 1 in self.words and (probs[first - 1] > self.threshold or joins(first - 1, first)):
            first -= 1
        while last + 1 in self.words and (probs[last + 1] > self.threshold or joins(last + 1, last)):
            last += 1
        return self.text[self.spans[first][0] : self.spans[last][1]]


Prompt: TypeAlias = PhrasePrompt | TextPrompt


def phrase_prompts(tokenizer: Any, asked: Sequence[tuple[str, ...]], limit: int) -> list[list[PhrasePrompt]]:
    """The prompts for each request's phrases: as few as possible, in the order of the phrases.

    A phrase that is longer than a prompt is split. A phrase without letters and digits is left out.

    Args:
        tokenizer: A fast tokenizer of BERT.
        asked: The phrases of each request.
        limit: The maximum number of tokens of a prompt, including the dot after each phrase.
    """
    dot = tokenizer.convert_tokens_to_ids(".")
    distinct = list(dict.fromkeys(itertools.chain(*asked)))
    parts_of = dict(zip(distinct, token_parts(tokenizer, list(map(_lower, distinct)), limit - 1), strict=True))
    prompts: list[list[PhrasePrompt]] = []
    for phrases in asked:
        own: list[PhrasePrompt] = []
        for phrase in phrases:
            for ids, (start, end) in parts_of[phrase]:
                if _is_word(phrase, (start, end)):
                    _append(own, (*ids, dot), phrase[start:end], limit)
        prompts.append(own)
    return prompts


def _append(prompts: list[PhrasePrompt], ids: tuple[int, ...], phrase: str, limit: int) -> None:
    """Add a phrase, given with its dot, to the last prompt if there is room, else to a new one."""
    fits = prompts and len(prompts[-1].ids) + len(ids) <= limit
    last = prompts.pop() if fits else PhrasePrompt((), (), ())
    place = len(last.ids), len(last.ids) + len(ids) - 1
    prompts.append(PhrasePrompt((*last.ids, *ids), (*last.phrases, phrase), (*last.places, place)))


def text_prompts(tokenizer: Any, texts: Sequence[str], limit: int, threshold: float) -> list[list[TextPrompt]]:
    """The prompts for each text, which is split at the ends of sentences or phrases; none for a text without words.

    Args:
        tokenizer: A fast tokenizer of BERT.
        texts: The texts.
        limit: The maximum number of tokens of a prompt, including the final dot.
        threshold: Minimum score of the tokens that form a detection's phrase, 0..1.
    """
    dot = tokenizer.convert_tokens_to_ids(".")
    prompts: list[list[TextPrompt]] = []
    for text, (ids, spans) in zip(texts, tokenize(tokenizer, list(map(_lower, texts))), strict=True):
        own = []
        for run in split(text, spans, limit - 1):
            part, places = ids[run.start : run.stop], spans[run.start : run.stop]
            words = frozenset(k for k, span in enumerate(places) if _is_word(text, span))
            if words:
                ended = part if part[-1] == dot else (*part, dot)
                own.append(TextPrompt(ended, text, places, words, threshold))
        prompts.append(own)
    return prompts


def _lower(text: str) -> str:
    """Convert to lower case without changing the length, so that positions stay valid."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(char.lower() if len(char.lower()) == 1 else char for char in text)


def _is_word(text: str, span: Span) -> bool:
    """Whether a part of a text is a word. Punctuation ends phrases and is not detected."""
    return any(char.isalnum() or char in _IN_WORDS for char in text[slice(*span)])
