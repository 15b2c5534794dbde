"""The texts of a pair, as they are or written anew in another dialect."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from spr.config import PromptsConfig
from spr.core import boxes as bx
from spr.core.errors import GroundingError
from spr.exports.rows import Texts
from spr.grounding import Dialect, GroundedText, parse, render
from spr.pipeline.describe import training_prompt
from spr.records import PreferencePair, Size, Span

_SLACK = 0.01
"""Pixels: what float32 may have taken from a box of an image of 100,000 px."""


def texts_of(pair: PreferencePair, source: Dialect, target: Dialect | None, prompts: PromptsConfig) -> Texts | str:
    """Prompt, chosen and rejected of a pair, or the reason why it can't be written.

    Args:
        pair: The pair, whose texts are in ``source``.
        source: The dialect of the run's describer.
        target: The dialect to write; None leaves the texts as they are.
        prompts: The run's; the prompt is made anew from them.

    Returns:
        The texts, or ``not_renderable`` (the words would be read as coordinates in the target's dialect) or
        ``chosen_equals_rejected`` (in the target's grid or without prose both read the same).
    """
    if target is None:
        return Texts(pair.prompt, pair.chosen, pair.rejected)
    size_wh = pair.width, pair.height
    try:
        chosen = render(with_pixels(pair.chosen, pair.chosen_spans, source, size_wh), target, size_wh)
        rejected = render(with_pixels(pair.rejected, pair.rejected_spans, source, size_wh), target, size_wh)
    except GroundingError:
        return "not_renderable"
    if chosen == rejected:
        return "chosen_equals_rejected"
    return Texts(training_prompt(pair, target, prompts), chosen, rejected)


def with_pixels(text: str, spans: Iterable[Span], dialect: Dialect, size_wh: Size) -> GroundedText:
    """A text as words with boxes, the boxes as exact as the pair keeps them.

    The numbers in a text are rounded to its dialect's grid; to write them in a finer one, the boxes of the spans are
    put in their places, one by one in the order of the text. Where they can't belong together (another number of
    boxes, or one that is farther away than rounding explains) the text's own numbers are used.

    >>> from spr.grounding import get_dialect
    >>> exact = Span("a cup", 0, 5, ((33.3333, 0.0, 66.6667, 100.0),))
    >>> with_pixels("a cup [0.33, 0.00, 0.67, 1.00]", [exact], get_dialect("llava_onevision"), (100, 100)).boxes
    ((33.3333, 0.0, 66.6667, 100.0),)
    """
    parsed = parse(text, dialect, size_wh)
    exact = [box for span in spans for box in span.boxes]
    if len(exact) != len(parsed.boxes) or not exact:
        return parsed
    kept = bx.clip(np.asarray(exact, dtype=np.float64), size_wh)
    far = np.abs(kept - np.asarray(parsed.boxes)) - np.asarray(dialect.max_error(size_wh) * 2)
    if far.max() > _SLACK:
        return parsed
    boxes = iter(exact)
    replaced = [Span(s.phrase, s.start, s.end, tuple(next(boxes) for _ in s.boxes)) for s in parsed.spans]
    return GroundedText(parsed.plain_text, tuple(replaced))
