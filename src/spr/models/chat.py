"""Conversations as model input: by the model's chat template, or its family's turn if the folder has no template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spr.models.families import Family
from spr.models.loading import ModelError, Source

Message = dict[str, Any]


def user_turn(prompt: str) -> list[Message]:
    """A user turn: the image, then the prompt."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


def render_turn(processor: Any, family: Family | None, messages: Sequence[Message]) -> str:
    """The conversation and the start of the answer as the model's input text, with one placeholder for the image.

    The ``content`` of each message is a list of ``image`` and ``text`` parts. The family's ``turn`` is used if the
    processor has no chat template.
    """
    messages = _without_placeholders(processor, messages)
    if processor.chat_template is not None:
        return _by_template(processor, family, messages, add_generation_prompt=True)
    turn = family.turn if family is not None else ""
    prompt = "\n".join(part["text"] for message in messages for part in message["content"] if "text" in part)
    return _begin(processor, family, turn.replace("{image}", processor.image_token).replace("{prompt}", prompt))


def image_token_ids(processor: Any) -> list[int]:
    """The ids of all tokens that stand for a part of an image, or between such parts."""
    return [token for token in processor.image_token_ids if token is not None]


def check_chat_template(source: Source, processor: Any, family: Family | None) -> None:
    """Raise `ModelError` if no template is known for the model, or if its template does not insert the image once."""
    if processor.chat_template is None and family is None:
        fix = "save the model's chat template as chat_template.jinja in its folder"
        raise ModelError(f"{source} has no chat template", got="none", expected="chat_template.jinja", fix=fix)
    turn, token = render_turn(processor, family, user_turn("?")), getattr(processor, "image_token", None)
    if token is not None and turn.count(token) != 1:
        what, fix = f"The chat template of {source} does not insert the image once", "correct chat_template.jinja"
        raise ModelError(what, got=turn, expected=f"one {token}", fix=fix)


def render_answer(processor: Any, family: Family | None, messages: Sequence[Message], answer: str) -> str:
    """The text that follows `render_turn` if the model gives this answer, including the end of turn.

    It is rendered by the chat template. If the template does not end the answer with a token, or there is none, the
    family's end of turn or the tokenizer's end of text is appended to the answer.
    """
    turn = render_turn(processor, family, messages)
    tokenizer = processor.tokenizer
    ends = [*(family.end_of_turn if family is not None else ()), tokenizer.eos_token]
    if processor.chat_template is not None:
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        messages = [*_without_placeholders(processor, messages), reply]
        whole = _by_template(processor, family, messages)
        rest = whole.removeprefix(turn)
        if rest != whole and answer in rest and any(end in rest for end in ends if end):
            return rest
    # A space follows prompts such as "ASSISTANT:", but not markup or a newline.
    joint = " " if family is not None and family.turn.endswith(":") and turn.endswith(":") else ""
    return joint + answer + str(next(end for end in ends if end))


def _by_template(processor: Any, family: Family | None, messages: Sequence[Message], **options: bool) -> str:
    return _begin(processor, family, str(processor.apply_chat_template(messages, tokenize=False, **options)))


def _begin(processor: Any, family: Family | None, text: str) -> str:
    if family is None or not family.starts_with_bos:
        return text
    begin = processor.tokenizer.bos_token or processor.tokenizer.eos_token
    return text if text.startswith(begin) else begin + text


def _without_placeholders(processor: Any, messages: Sequence[Message]) -> list[Message]:
    """Remove image placeholders from the texts of messages: each would count as another image, or a part of one."""
    placeholders = [getattr(processor, f"{kind}_token", None) for kind in ("image", "video")]
    placeholders += processor.tokenizer.convert_ids_to_tokens(image_token_ids(processor))

    def clean(part: Message) -> Message:
        text = part.get("text")
        if text is None:
            return part
        for placeholder in filter(None, placeholders):
            text = text.replace(placeholder, " ")
        return {**part, "text": text}

    return [{**message, "content": list(map(clean, message["content"]))} for message in messages]
