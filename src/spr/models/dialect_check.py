"""Whether a model's tokenizer and chat template keep what its dialect writes: checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig

from spr.grounding import Dialect, parse
from spr.models.chat import apply_template, render_answer, render_turn, user_turn
from spr.models.continuation import continue_tokens
from spr.models.describers.answer_tokens import AnswerTokens
from spr.models.dialect_samples import SAMPLE_SIZE, markup_tokens, sample_texts
from spr.models.errors import ModelError
from spr.models.families import Family
from spr.models.loading import Source

_QUESTION = user_turn("Where is it?")
_COPY_FIX = "copy the model's own tokenizer.json and tokenizer_config.json into its folder"
_TOKENIZER_FIX = f"{_COPY_FIX}, or choose a dialect that the tokenizer keeps (describer.dialect)"
_SHOWN = 4


def check_dialect(
    source: Source, processor: Any, family: Family | None, dialect: Dialect, *, trains: bool = False
) -> None:
    """Check that texts of a dialect survive the model's chat template, and its tokenizer there and back.

    Sample answers with boxes all over the dialect's range are encoded after a prompt, and decoded as the describer does
    it. Their words and boxes must be the same, but for white space, and for words that the vocabulary lacks.

    Args:
        source: The model, for messages.
        processor: From `spr.models.image_processors.load_processor`.
        family: The model's family.
        dialect: How the answers are written.
        trains: Whether the model is to be trained on such answers: they must survive the chat template too, and end
            with one token.

    Raises:
        ModelError: if the chat template changes the words of a prompt or of an answer; if the end of turn is not one
            token; if numbers or markup are lost or changed by the tokenizer; or if it splits special tokens of the
            family's own dialect. As text, they would survive, but the published models have one token for each, so
            this can't be the model's tokenizer, and the model's own tokens would be decoded to something else.
    """
    samples = sample_texts(dialect)
    _check_template(source, processor, family, samples, trains)
    reader = AnswerTokens.of(processor.tokenizer, family, dialect, GenerationConfig())
    turn = render_turn(processor, family, _QUESTION)
    for sample in samples:
        if trains:
            rendered = render_answer(processor, family, _QUESTION, sample)
            before, text = turn + rendered.reasoning, "".join(rendered).removeprefix(rendered.reasoning)
            ids, _ = continue_tokens(processor.tokenizer, before, text)
            _check_end(source, reader, ids, rendered.end)
        else:
            ids, _ = continue_tokens(processor.tokenizer, turn, sample)
        found = reader.decode(ids)
        words = processor.tokenizer.unk_token_id not in ids  # a small vocabulary may lack the sample's words
        if _content(found, dialect, words) != _content(sample, dialect, words):
            what = f"The tokenizer of {source} does not keep the dialect `{dialect.key}`"
            raise ModelError(what, got=_around(found, sample), expected=_around(sample, found), fix=_TOKENIZER_FIX)
    if family is not None and family.markup_tokens and dialect.key == family.dialect and dialect.special_tokens:
        used = markup_tokens(dialect, samples)
        _check_whole(source, processor.tokenizer, used, f"as in {family.models}")


def _check_template(source: Source, processor: Any, family: Family | None, samples: list[str], trains: bool) -> None:
    if processor.chat_template is None:
        return
    for sample in samples:
        texts = {"a prompt": render_turn(processor, family, user_turn(sample))}
        if trains:
            reply = {"role": "assistant", "content": [{"type": "text", "text": sample}]}
            texts["an answer"] = apply_template(processor, [*_QUESTION, reply])
        for where, text in texts.items():
            if sample not in text:
                what = f"The chat template of {source} drops or changes the text of {where}"
                fix = "correct chat_template.jinja: each text part of a message must be written as it is"
                raise ModelError(what, got=text[-400:], expected=sample, fix=fix)


def _check_end(source: Source, reader: AnswerTokens, ids: list[int], end: str) -> None:
    if not ids or ids[-1] not in reader.ends:
        got = f"{end!r}, tokens: {' '.join(map(str, reader.tokenizer.convert_ids_to_tokens(ids[-8:])))}"
        what = f"Answers of {source} would not be trained to end with a token that ends generation"
        raise ModelError(what, got=got, expected="one special token", fix=_TOKENIZER_FIX)


def _check_whole(source: Source, tokenizer: Any, tokens: Iterable[str], why: str) -> None:
    split = {token: ids for token in tokens if len(ids := tokenizer(token, add_special_tokens=False)["input_ids"]) > 1}
    if split:
        pieces = [f"{token} → {' '.join(tokenizer.convert_ids_to_tokens(ids))}" for token, ids in split.items()]
        got = "; ".join(pieces[:_SHOWN]) + (f"; and {len(split) - _SHOWN} more" if len(split) > _SHOWN else "")
        what = f"The tokenizer of {source} splits special tokens of its dialect"
        raise ModelError(what, got=got, expected=f"one token each, {why}", fix=_COPY_FIX)


def _content(text: str, dialect: Dialect, words: bool) -> tuple[Any, ...]:
    """What must survive: the boxes and points of each phrase; with ``words``, also the words without white space."""
    grounded = parse(text, dialect, SAMPLE_SIZE)
    boxes = [(span.boxes, span.points) for span in grounded.spans if span.boxes or span.points]
    return (boxes, "".join(text.split()), [problem.reason for problem in grounded.problems]) if words else (boxes,)


def _around(text: str, other: str) -> str:
    """The part of a text from a little before its first difference to another."""
    first = next((k for k, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, first - 20)
    return ("…" if start else "") + text[start : start + 100]
