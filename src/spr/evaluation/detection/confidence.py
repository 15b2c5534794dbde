"""Confidences for the boxes of answers, which MLLMs don't give by themselves; average precision needs them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from spr.core.errors import ConfigError
from spr.evaluation.predictions import Answers
from spr.grounding import Dialect, GroundedText
from spr.records import Size

Confidence: TypeAlias = Literal["constant", "order", "scores", "token-probability"]
CONFIDENCE_HELP = (
    "The confidence of a box, for AP. constant: the same for all; ties keep the order of images and answers. order: "
    "falls with its place in the answer. scores: the `scores` of --predictions. token-probability: from its `logprobs`."
)
_ROUNDING = 1e-3  # log-probabilities in half precision can be above 0
OfAnswer: TypeAlias = Callable[[int, GroundedText, Size], Sequence[float] | None]
"""The confidences of an answer's boxes, in the order of ``GroundedText.boxes``; None if they can't be told."""

_EXAMPLES = {
    "scores": '{"id": "1", "answer": "…", "scores": [0.9, 0.4]}, one number per box',
    "logprobs": '{"id": "1", "answer": "…", "logprobs": [{"token": "a", "logprob": -0.1}, …]}, all tokens',
}
_SOURCES = {
    "scores": "write the model's own scores of the boxes into the lines",
    "logprobs": "ask an OpenAI-compatible server with `logprobs: true`, and copy `choices[0].logprobs.content` into "
    "the lines; SPR's own describers don't return log-probabilities",
}


def confidences(rule: Confidence, answers: Answers, dialect: Dialect) -> OfAnswer:
    """The function that gives the boxes of the k-th answer their confidences.

    The confidence ``order`` is 1 / (1 + place), so that first boxes of all images come before second ones.
    ``token-probability`` is the geometric mean of the probabilities of the tokens that write the numbers of a box.

    Raises:
        ConfigError: if the answers lack what the rule needs.
    """
    if rule == "constant":
        return lambda _, grounded, __: [1.0] * len(grounded.boxes)
    if rule == "order":
        return lambda _, grounded, __: [1.0 / (1 + place) for place in range(len(grounded.boxes))]
    field = "scores" if rule == "scores" else "logprobs"
    values = getattr(answers, field)
    if values is None or all(value is None for value in values):
        what = f"--confidence {rule} needs the field `{field}` in the lines of --predictions"
        fix = f"{_SOURCES[field]}; or give --confidence constant or order"
        raise ConfigError(what, got="no line with it", expected=_EXAMPLES[field], fix=fix)
    if rule == "scores":
        return lambda k, grounded, _: _given(values[k], len(grounded.boxes))
    return lambda k, grounded, size_wh: token_probabilities(answers.raw[k] or "", values[k], grounded, dialect, size_wh)


def _given(values: Any, count: int) -> Sequence[float] | None:
    if not isinstance(values, list) or len(values) != count:
        return None
    try:
        numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    except OverflowError:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def token_probabilities(
    raw: str, logprobs: Any, grounded: GroundedText, dialect: Dialect, size_wh: Size
) -> Sequence[float] | None:
    """The geometric mean of the probabilities of the tokens that write the numbers of each box.

    Args:
        raw: What the model generated.
        logprobs: Its tokens with their log-probabilities, as OpenAI-compatible servers return them: objects with
            ``token`` and ``logprob``, or these objects as the value of ``content``. The tokens must be the whole text;
            what follows it, such as the end of turn, is ignored.
        grounded: The parsed answer, which is a part of the text if there is reasoning before it.
        dialect: Its dialect.
        size_wh: Width and height of the image in pixels.

    Returns:
        One value per box, 0 to 1; None if the tokens are not those of the text, if a log-probability is above 0 or not
        a number, or if a box can't be placed in the text.
    """
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else logprobs
    source = grounded.source
    if not isinstance(tokens, list) or source is None:
        return None
    try:
        pairs = [(str(token["token"]), float(token["logprob"])) for token in tokens]
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    if not all(logprob <= _ROUNDING for _, logprob in pairs):
        return None
    if not "".join(text for text, _ in pairs).startswith(raw):
        return None
    start = raw.rfind(source.text)
    ends = list(itertools.accumulate(len(text) for text, _ in pairs))
    frame = dialect.frame(size_wh)
    of_box: dict[tuple[float, ...], list[float]] = {}
    for place in source.places:
        if not place.is_read or not place.numbers:
            continue
        spans = [(start + first, start + last) for first, last in place.numbers]
        box, _ = frame.decode([float(source.text[first:last]) for first, last in place.numbers])
        if box is None:
            return None
        own = [
            logprob
            for (text, logprob), end in zip(pairs, ends, strict=True)
            if any(first < end and end - len(text) < last for first, last in spans)
        ]
        of_box.setdefault(box, []).append(min(math.exp(sum(own) / len(own)), 1.0) if own else 0.0)
    found = [of_box[box].pop(0) if of_box.get(box) else None for box in grounded.boxes]
    return None if None in found else [value for value in found if value is not None]
