"""Splits texts that are longer than an encoder's limit at the ends of sentences or phrases (our choice).

A text is tokenized once, and its pieces are runs of those tokens: no piece exceeds the limit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

Span: TypeAlias = tuple[int, int]

_SENTENCE_ENDS = ".!?…"
_WIDE_SENTENCE_ENDS = "。！？｡"
_PHRASE_ENDS = ",;:–—)"
_WIDE_PHRASE_ENDS = "，、；：）"
_CLOSING = "\"'”’»」』"
_ABBREVIATION = re.compile(r"\.\w\.")  # "8 a.m. to", "e.g. a dog"; before a capital letter it ends a sentence
_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokens(NamedTuple):
    """The ids of a text's tokens, and the position of each in the text."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]


def tokenize(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """Tokenize texts of any length with a fast tokenizer of transformers, without adding special tokens.

    Special tokens that appear in a text ("<|endoftext|>") are read as plain characters, and unpaired surrogates as
    question marks.
    """
    if not texts:
        return []
    encoded = tokenizer(
        [_SURROGATES.sub("?", text) for text in texts],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        split_special_tokens=True,
        verbose=False,
    )
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [Tokens(tuple(ids), tuple((start, end) for start, end in spans)) for ids, spans in pairs]


def split(text: str, spans: Sequence[Span], limit: int) -> list[range]:
    r"""Split tokens into runs of at most ``limit``.

    Each run is the longest that ends with a sentence; if no sentence ends within the limit, with a phrase; else with a
    word.

    Returns ranges of indices of ``spans``, the start and end of each token in the text: one empty range if there are
    no tokens.

    >>> text = "A red cat, a dog. A bird sings"
    >>> spans = [m.span() for m in re.finditer(r"\w+|[.,]", text)]
    >>> [text[spans[run[0]][0] : spans[run[-1]][1]] for run in split(text, spans, 8)]
    ['A red cat, a dog.', 'A bird sings']
    >>> [text[spans[run[0]][0] : spans[run[-1]][1]] for run in split(text, spans, 5)]
    ['A red cat,', 'a dog.', 'A bird sings']
    """
    runs: list[range] = []
    start = 0
    while len(spans) - start > limit:
        cut = max(range(start + 1, start + limit + 1), key=lambda k: (_rank(text, spans, k), k))
        runs.append(range(start, cut))
        start = cut
    return [*runs, range(start, len(spans))]


def token_parts(tokenizer: Any, phrases: Sequence[str], limit: int) -> list[list[tuple[tuple[int, ...], Span]]]:
    """For each phrase, the tokens and the place in the phrase of its parts of at most ``limit`` tokens.

    Nearly all phrases have one part; phrases without tokens have none.
    """
    parts = []
    for phrase, (ids, spans) in zip(phrases, tokenize(tokenizer, phrases), strict=True):
        runs = [run for run in split(phrase, spans, limit) if run]
        parts.append([(ids[run.start : run.stop], (spans[run[0]][0], spans[run[-1]][1])) for run in runs])
    return parts


def _rank(text: str, spans: Sequence[Span], index: int) -> int:
    """Rank of a split before this token: 3 after a sentence, 2 after a phrase, 1 after a word, 0 within a word."""
    end, begin = spans[index - 1][1], spans[index][0]
    between = text[end : begin + 1]
    spaced = any(char.isspace() for char in between)
    tail = text[max(0, end - 5) : end].rstrip(_CLOSING)
    last = tail[-1:]
    if "\n" in between:
        return 3
    if spaced and _ABBREVIATION.fullmatch(tail[-3:]) and not text[begin : begin + 1].isupper():
        return 1
    if last and (last in _WIDE_SENTENCE_ENDS or (spaced and last in _SENTENCE_ENDS)):
        return 3
    if last and (last in _WIDE_PHRASE_ENDS or (spaced and last in _PHRASE_ENDS)):
        return 2
    return int(spaced)
