"""Conversations as model input: by the model's chat template, or its family's turn if the folder has no template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spr.models.families import FAMILIES, Family
from spr.models.loading import ModelError, Source

Message = dict[str, Any]


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
        text = str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options))
        return text if thinking or family is None or family.thinking is None else family.thinking.without(text)
    turn = family.turn if family is not None else ""
    prompt = "\n".join(part["text"] for message in messages for part in message["content"] if "text" in part)
    return turn.replace("{image}", getattr(processor, "image_token", "")).replace("{prompt}", prompt)


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


def render_answer(processor: Any, family: Family | None, messages: Sequence[Message], answer: str) -> str:
    """The text that follows `render_turn` if the model gives this answer without reasoning, with the end of turn.

    It is rendered by the chat template. If the template does not end the answer with a token, or there is none, the
    family's end of turn or the tokenizer's end of text is appended to the answer.
    """
    turn = render_turn(processor, family, messages)
    tokenizer, options = processor.tokenizer, _switch(processor, family, thinking=False)
    ends = [*(family.end_of_turn if family is not None else ()), tokenizer.eos_token]
    if processor.chat_template is not None:
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        messages = [*_without_placeholders(processor, messages), reply]
        whole = str(processor.apply_chat_template(messages, tokenize=False, **options))
        rest = whole.removeprefix(turn)
        if rest != whole and answer in rest and any(end in rest for end in ends if end):
            return rest
    # A space follows prompts such as "ASSISTANT:", but not markup or a newline.
    joint = " " if family is not None and family.turn.endswith(":") and turn.endswith(":") else ""
    return joint + answer + str(next(end for end in ends if end))


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


def _switch(processor: Any, family: Family | None, *, thinking: bool) -> dict[str, bool]:
    """The argument of the chat template that switches reasoning on or off, if this model's template has it."""
    option = family.thinking.option if family is not None and family.thinking is not None else None
    return {option: thinking} if option is not None and option in str(processor.chat_template) else {}


def _without_placeholders(processor: Any, messages: Sequence[Message]) -> list[Message]:
    """Remove image placeholders from the texts of messages: each would count as another image."""
    # A processor's placeholder of an image can be another token than those that it writes in its place.
    parts = (processor, processor.tokenizer)
    placeholders = {getattr(part, f"{kind}_token", None) for part in parts for kind in ("image", "video")}

    def clean(part: Message) -> Message:
        text = part.get("text")
        if text is None:
            return part
        for placeholder in filter(None, placeholders):
            text = text.replace(placeholder, " ")
        return {**part, "text": text}

    return [{**message, "content": list(map(clean, message["content"]))} for message in messages]
