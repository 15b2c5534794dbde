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

_SLACK = 0.01  # px: largest float32 rounding error of a box in an image of 100,000 px


def texts_of(
    pair: PreferencePair,
    source: Dialect,
    target: Dialect | None,
    prompts: PromptsConfig,
    placeholders: Sequence[str] = (),
) -> Texts | str:
    """The texts of a pair, converted from ``source`` to ``target`` if that is not None; or why the pair is left out.

    The reasons are ``truncated_answer`` (the trainer would add an end of turn), ``not_renderable`` (the target dialect
    would read the words as coordinates), ``chosen_equals_rejected`` (in the target dialect) and ``placeholder_in_text``
    (the trainer would replace it).
    The prompt is rendered again from ``prompts``.
    """
    if pair.truncated:
        return "truncated_answer"
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
    """Parse a text, and replace its boxes, which its dialect rounds, one by one by the exact boxes of the spans.

    If they don't correspond (another number of boxes, or a difference that rounding can't explain), the text's own
    boxes are kept.

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
