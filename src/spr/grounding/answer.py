"""The answer in what a model generated: reasoning before it is not part of it."""

from __future__ import annotations

import re
from typing import NamedTuple

UNFINISHED_REASONING = "reasoning is not closed: no answer"

_REASONING = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_ANSWER = re.compile(r"<(/?)answer>", re.IGNORECASE)


class FinalAnswer(NamedTuple):
    """What a model answered, and the problem if there is no answer."""

    text: str
    problem: str | None = None


def final_answer(generated: str) -> FinalAnswer:
    r"""Remove the reasoning from a generated text; everything that reads answers applies this first.

    The answer is what follows the last ``</think>``, and of that only what is inside the last ``<answer>``, if there is
    one; an ``<answer>`` that is not closed extends to the end. White space around it is removed with the tags. A
    ``<think>`` that is not closed leaves no answer. Text without these tags is returned unchanged.

    >>> final_answer("<think>A dog?</think>\n<answer>a dog [1, 2, 3, 4]</answer>").text
    'a dog [1, 2, 3, 4]'
    >>> final_answer("<think>A dog [1, 2, 3").problem
    'reasoning is not closed: no answer'
    """
    if "<" not in generated:
        return FinalAnswer(generated)
    text = generated
    tags = list(_REASONING.finditer(text))
    if tags:
        if not tags[-1][1]:
            return FinalAnswer("", UNFINISHED_REASONING)
        text = text[tags[-1].end() :].strip()
    opened = next((tag for tag in reversed([*_ANSWER.finditer(text)]) if not tag[1]), None)
    if opened is None:
        return FinalAnswer(text)
    closed = next((tag.start() for tag in _ANSWER.finditer(text, opened.end())), None)
    return FinalAnswer(text[opened.end() : closed].strip())
