"""The texts of a pair, unchanged or converted to another dialect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from spr.config import PromptsConfig
from spr.core import boxes as bx
from spr.core.errors import GroundingError
from spr.exports.formats import Texts
from spr.grounding import Dialect, GroundedText, parse, render
from spr.pipeline.describe import training_prompt
from spr.records import PreferencePair, Size, Span

_SLACK = 0.01
"""Pixels: largest float32 rounding error of a box in an image of 100,000 px."""


def texts_of(
    pair: PreferencePair,
    source: Dialect,
    target: Dialect | None,
    prompts: PromptsConfig,
    placeholders: Sequence[str] = (),
) -> Texts | str:
    """The prompt, the chosen and the rejected text of a pair, or the reason why the pair is left out.

    Args:
        pair: The pair, with texts in the dialect ``source``.
        source: The dialect of the run's describer.
        target: The dialect to convert to; None leaves the texts unchanged.
        prompts: The prompts of the run; the prompt is rendered again from them.
        placeholders: Texts that the trainer would replace by an image or the like.

    Returns:
        The texts, or the reason ``not_renderable`` (the words would be read as coordinates in the target dialect),
        ``chosen_equals_rejected`` (in the target dialect both answers have the same text) or ``placeholder_in_text``.
    """
    texts = Texts(pair.prompt, pair.chosen, pair.rejected)
    if target is not None:
        size_wh = pair.width, pair.height
        try:
            chosen = render(with_pixels(pair.chosen, pair.chosen_spans, source, size_wh), target, size_wh)
            rejected = render(with_pixels(pair.rejected, pair.rejected_spans, source, size_wh), target, size_wh)
        except GroundingError:
            return "not_renderable"
        if chosen == rejected:
            return "chosen_equals_rejected"
        texts = Texts(training_prompt(pair, target, prompts), chosen, rejected)
    return "placeholder_in_text" if any(mark in text for text in texts for mark in placeholders) else texts


def with_pixels(text: str, spans: Iterable[Span], dialect: Dialect, size_wh: Size) -> GroundedText:
    """Parse a text, and replace its rounded boxes by the exact boxes of the spans.

    The numbers in a text are rounded to the grid of its dialect. To convert them to a finer grid, the exact boxes
    replace them, one by one in the order of the text. If they don't correspond (another number of boxes, or a
    difference that rounding can't explain), the text's own numbers are kept.

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
