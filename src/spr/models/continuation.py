"""The tokens of a text that continues a prompt, as generation would give them."""

from __future__ import annotations

from typing import Any, TypeAlias

Range: TypeAlias = tuple[int, int]


def continue_tokens(
    tokenizer: Any, prompt: str, text: str, *, offsets: bool = False
) -> tuple[list[int], list[Range] | None]:
    """The token ids of ``text`` after those of ``prompt``, and with ``offsets`` the place of each in the text.

    They are those of the two texts together, unless a token would span the border. Generation can't undo the tokens of
    the prompt, so in this case, ``text`` is tokenized by itself: a line break after another keeps its own token.

    Args:
        tokenizer: A tokenizer of transformers; a fast one with ``offsets``.
        prompt: As rendered by a chat template, with its special tokens.
        text: What follows.
        offsets: Whether the places are needed.
    """
    texts = [prompt, prompt + text]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=offsets)
    before, whole = encoded["input_ids"]
    if whole[: len(before)] == before:
        places = encoded["offset_mapping"][1] if offsets else None
        return whole[len(before) :], _shift(places, len(before), len(prompt))
    expected = tokenizer.decode(whole, clean_up_tokenization_spaces=False)
    # Tokenizers such as Llama's put a space before a text, but not after a line break, with which nothing merges.
    for context in ("", "\n"):
        encoded = tokenizer([context, context + text], add_special_tokens=False, return_offsets_mapping=offsets)
        first, both = encoded["input_ids"]
        ids = both[len(first) :]
        places = encoded["offset_mapping"][1] if offsets else None
        joined = tokenizer.decode(before + ids, clean_up_tokenization_spaces=False)
        if both[: len(first)] == first and joined == expected:
            return ids, _shift(places, len(first), len(context))
    ids = tokenizer(text, add_special_tokens=False, return_offsets_mapping=offsets)
    return ids["input_ids"], ids["offset_mapping"] if offsets else None


def _shift(places: list[Range] | None, first: int, start: int) -> list[Range] | None:
    return None if places is None else [(begin - start, end - start) for begin, end in places[first:]]
