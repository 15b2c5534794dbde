"""The texts of a pair, unchanged or converted to another dialect."""

from __future__ import annotations

from collections.abc import Sequence

from spr.config import PromptsConfig
from spr.core.errors import GroundingError
from spr.exports.formats import Texts
from spr.grounding import Dialect, render
from spr.models.questions import EXPRESSION
from spr.pipeline.describe import training_prompt
from spr.pipeline.negatives import located_at
from spr.records import PreferencePair, QuestionPair
from spr.runs.edits import with_pixels


def texts_of(
    pair: PreferencePair,
    source: Dialect,
    target: Dialect | None,
    prompts: PromptsConfig,
    placeholders: Sequence[str] = (),
) -> Texts | str:
    """The texts of a pair, converted from ``source`` to ``target`` if that is not None; or why the pair is left out.

    The reasons are ``truncated_answer`` (the trainer would add an end of turn), ``not_renderable`` (the target dialect
    would read the words as coordinates), ``points_not_writable`` and ``boxes_not_writable`` (it has none),
    ``chosen_equals_rejected`` (in the target dialect) and ``placeholder_in_text`` (the trainer would replace it). The
    prompt is rendered again from ``prompts``.
    """
    if pair.truncated:
        return "truncated_answer"
    texts = Texts(pair.prompt, pair.chosen, pair.rejected)
    if target is not None:
        size_wh = pair.width, pair.height
        sides = (pair.chosen, pair.chosen_spans), (pair.rejected, pair.rejected_spans)
        both = [with_pixels(*side, source, size_wh) for side in sides]
        if not target.writes_points and any(answer.points for answer in both):
            return "points_not_writable"
        if not target.writes_boxes and any(answer.boxes for answer in both):
            return "boxes_not_writable"
        try:
            chosen, rejected = (render(answer, target, size_wh) for answer in both)
        except GroundingError:
            return "not_renderable"
        if chosen == rejected:
            return "chosen_equals_rejected"
        texts = Texts(training_prompt(pair, target, prompts), chosen, rejected)
    return _checked(texts, placeholders)


def question_texts(
    pair: QuestionPair, target: Dialect | None, locate_prompt: str | None, placeholders: Sequence[str] = ()
) -> Texts | str:
    """The texts of a question, converted to ``target`` if that is not None; or why it is left out, as for `texts_of`.

    A converted question is asked in the wording of the target's models, unless ``locate_prompt`` gives another.
    """
    texts = Texts(pair.prompt, pair.chosen, pair.rejected)
    if target is not None:
        spans = pair.rejected_spans if pair.kind == "absent" else pair.chosen_spans
        name, size_wh = pair.expression.removeprefix("the "), (pair.width, pair.height)
        try:
            there, _ = located_at(name, spans[0].boxes[0], target, size_wh)
        except GroundingError:
            return "not_renderable"
        prompt = (locate_prompt or target.rec_prompt).replace(EXPRESSION, pair.expression)
        answers = (pair.chosen, there) if pair.kind == "absent" else (there, pair.rejected)
        texts = Texts(prompt, *answers)
    return _checked(texts, placeholders)


def _checked(texts: Texts, placeholders: Sequence[str]) -> Texts | str:
    return "placeholder_in_text" if any(mark in text for text in texts for mark in placeholders) else texts
