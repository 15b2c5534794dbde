"""Conversations as model input: by the model's chat template, or its family's turn if the folder has no template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2

from spr.models.errors import ModelError
from spr.models.families import FAMILIES, Family
from spr.models.loading import Source

Message = dict[str, Any]

_ANSWER = "ANSWER-0f4e"  # stands for an answer, to see what a template writes around it


def user_turn(prompt: str) -> list[Message]:
    """A user turn: the image, then the prompt."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


def render_turn(processor: Any, family: Family | None, messages: Sequence[Message], *, thinking: bool = False) -> str:
    """The conversation and the start of the answer as the model's input text, with one placeholder for the image.

    The ``content`` of each message is a list of ``image`` and ``text`` parts. The family's ``turn`` is used if the
    processor has no chat template. Models that reason are told to if ``thinking``; otherwise the turn ends with what
    makes them answer at once.
    """
    messages = _without_placeholders(processor, messages)
    if processor.chat_template is not None:
        options = _switch(processor, family, thinking=thinking)
        text = apply_template(processor, messages, add_generation_prompt=True, **options)
        text = text if thinking or family is None or family.thinking is None else family.thinking.without(text)
        return _begin(processor, family, text)
    turn = family.turn if family is not None else ""
    prompt = "\n".join(part["text"] for message in messages for part in message["content"] if "text" in part)
    text = turn.replace("{image}", getattr(processor, "image_token", "")).replace("{prompt}", prompt)
    return _begin(processor, family, text)


def apply_template(processor: Any, messages: Sequence[Message], **options: bool) -> str:
    """The conversation as the processor's chat template writes it; a `ModelError` if the template fails on it."""
    try:
        return str(processor.apply_chat_template(messages, tokenize=False, **options))
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        what = f"The chat template of {processor.tokenizer.name_or_path} can't write a conversation"
        roles = ", ".join(message["role"] for message in messages)
        expected = f"a template for messages of {roles}, whose content is a list of image and text parts"
        got, fix = f"{type(error).__name__}: {error}", "correct chat_template.jinja"
        raise ModelError(what, got=got, expected=expected, fix=fix) from error


def image_token_ids(processor: Any) -> list[int]:
    """The ids of all tokens that stand for a part of an image, or between such parts."""
    return [token for token in processor.image_token_ids if token is not None]


def check_chat_template(source: Source, processor: Any, family: Family | None) -> None:
    """Raise `ModelError` if no template is known for the model, or if its template does not insert the image once."""
    if processor.chat_template is None and family is None:
        fix = "save the model's chat template as chat_template.jinja in its folder"
        raise ModelError(f"{source} has no chat template", got="none", expected="chat_template.jinja", fix=fix)
    turn, token = render_turn(processor, family, user_turn("?")), getattr(processor, "image_token", None)
    own = processor.chat_template is None and family is not None and "{image}" not in family.turn
    if token is not None and turn.count(token) != 1 and not own:
        what, fix = f"The chat template of {source} does not insert the image once", "correct chat_template.jinja"
        raise ModelError(what, got=turn, expected=f"one {token}", fix=fix)


def check_image_token(source: Source, processor: Any, config: Any) -> None:
    """Raise `ModelError` if the tokenizer has another id for the image's token than the model's ``config``."""
    named = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    own = next((token for token in named if token is not None), None)
    known = image_token_ids(processor)
    if own is not None and own not in known:
        what = f"The tokenizer of {source} is not that of the model: they disagree on the token of an image"
        fix = "copy the model's own tokenizer.json and tokenizer_config.json into its folder"
        raise ModelError(what, got=f"token ids {', '.join(map(str, known))}", expected=own, fix=fix)


class RenderedAnswer(NamedTuple):
    """An answer as it follows the text of `render_turn`.

    Attributes:
        before: What the chat template writes between the start of the answer and its text: nothing, a space, or the
            empty reasoning of an answer without reasoning.
        text: The answer.
        end: The end of the turn, with what the template writes before it.
    """

    before: str
    text: str
    end: str

    @property
    def reasoning(self) -> str:
        """The template's empty reasoning, which belongs to the prompt: no model gives it as a part of its answer."""
        return self.before if self.before.strip() else ""


def render_answer(processor: Any, family: Family | None, messages: Sequence[Message], answer: str) -> RenderedAnswer:
    """What follows `render_turn` if the model gives this answer at once, up to and including the end of turn.

    The answer is written as it is, also if the chat template would trim it. The template's text around it is used if
    the whole conversation starts with the turn. Otherwise the answer follows the turn as in the family's ``turn``. What
    the template writes after the end of turn is left out: generation stops before it. If the template does not end an
    answer with the family's end of turn or the tokenizer's end of text, the first of these is appended.
    """
    turn = render_turn(processor, family, messages)
    ends = [end for end in (*(family.end_of_turn if family is not None else ()), processor.tokenizer.eos_token) if end]
    # A space follows prompts such as "ASSISTANT:", but not markup or a newline.
    before = " " if family is not None and family.turn.endswith(":") and turn.endswith(":") else ""
    after, text = "", answer
    if processor.chat_template is not None:
        start, found, after = _render_reply(processor, family, messages, _ANSWER).rpartition(_ANSWER)
        if not found:
            after = ""
        elif start.startswith(turn):
            before = start.removeprefix(turn)
        # Templates that know reasoning put an answer's own reasoning in the place of the empty one.
        own = _render_reply(processor, family, messages, answer)
        if own.startswith(turn) and own.endswith(answer + after):
            said = own[len(turn) : len(own) - len(after)]
            text = answer if said.endswith(answer) else said
            before = said.removesuffix(text)
    places = [place for end in ends if (place := after.find(end)) >= 0]
    if not places:
        return RenderedAnswer(before, text, ends[0])
    first = min(places)
    return RenderedAnswer(before, text, after[:first] + next(end for end in ends if after.startswith(end, first)))


def _begin(processor: Any, family: Family | None, text: str) -> str:
    """The text with the token that the family's processor puts before it, so that it is counted, too."""
    if family is None or not family.starts_with_bos:
        return text
    begin = processor.tokenizer.bos_token or processor.tokenizer.eos_token
    return text if text.startswith(begin) else begin + text


def check_thinking(source: Source, processor: Any, family: Family | None) -> None:
    """Raise `ModelError` if a model can't be told to reason: its family does not reason, or this model of it."""
    what, off = f"{source} can't be told to reason", "set describer.thinking=false"
    if family is None or family.thinking is None:
        known = ", ".join(name for name, entry in FAMILIES.items() if entry.thinking is not None)
        got = "an unknown family" if family is None else f"model_type {family.model_type}"
        raise ModelError(what, got=got, expected=f"a model of {known}", fix=off)
    if processor.chat_template is None:
        raise ModelError(what, got="no chat template", expected="chat_template.jinja", fix=off)
    turn = render_turn(processor, family, user_turn("?"), thinking=True)
    switch = _switch(processor, family, thinking=True)
    if not (family.thinking.always or switch or family.thinking.opens(turn)):
        expected = f"a chat template that ends with {family.thinking.start}"
        raise ModelError(what, got=repr(turn[-40:]), expected=expected, fix=f"{off}, or use a model that reasons")


def _render_reply(processor: Any, family: Family | None, messages: Sequence[Message], answer: str) -> str:
    """The whole conversation with an answer, by the chat template, in the form of models that answer at once."""
    reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    messages, options = _without_placeholders(processor, messages), _switch(processor, family, thinking=False)
    return _begin(processor, family, apply_template(processor, [*messages, reply], **options))


def _switch(processor: Any, family: Family | None, *, thinking: bool) -> dict[str, bool]:
    """The argument of the chat template that switches reasoning on or off, if this model's template has it."""
    option = family.thinking.option if family is not None and family.thinking is not None else None
    return {option: thinking} if option is not None and option in str(processor.chat_template) else {}


def _without_placeholders(processor: Any, messages: Sequence[Message]) -> list[Message]:
    """Remove image placeholders from the texts of messages: each would count as another image, or a part of one."""
    # A processor's placeholder of an image can be another token than those that it writes in its place.
    parts = (processor, processor.tokenizer)
    placeholders = {getattr(part, f"{kind}_token", None) for part in parts for kind in ("image", "video")}
    placeholders |= set(processor.tokenizer.convert_ids_to_tokens(image_token_ids(processor)))

    def clean(part: Message) -> Message:
        text = part.get("text")
        if text is None:
            return part
        for placeholder in filter(None, placeholders):
            text = text.replace(placeholder, " ")
        return {**part, "text": text}

    return [{**message, "content": list(map(clean, message["content"]))} for message in messages]
