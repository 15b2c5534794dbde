"""Conversations as the text that a model reads: its chat template, or its family's turn where the folder has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spr.models.families import Family

Message = dict[str, Any]


def user_turn(prompt: str) -> list[Message]:
    """One turn of the user: the image, then the prompt."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


def render_turn(processor: Any, family: Family | None, messages: Sequence[Message]) -> str:
    """The conversation and the start of the answer, as the model expects them; the image is one placeholder.

    Args:
        processor: From `spr.models.image_processors.load_processor`.
        family: Of the model; its ``turn`` serves where the processor has no chat template.
        messages: As chat templates take them: ``role``, and ``content`` as a list of ``image`` and ``text`` parts.
    """
    messages = _without_placeholders(processor, messages)
    if processor.chat_template is None:
        turn = family.turn if family is not None else ""
        said = "\n".join(part["text"] for message in messages for part in message["content"] if "text" in part)
        return turn.replace("{image}", processor.image_token).replace("{prompt}", said)
    return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def render_answer(processor: Any, family: Family | None, messages: Sequence[Message], answer: str) -> str:
    """What stands behind `render_turn`'s text when the model gives this answer, its end of turn included.

    That is what the chat template puts there, as other trainers have it. Where it puts no token that ends an answer, or
    there is no template, the answer is followed by the family's end of turn or the tokenizer's end of text.
    """
    turn = render_turn(processor, family, messages)
    tokenizer = processor.tokenizer
    ends = [*(family.end_of_turn if family is not None else ()), tokenizer.eos_token]
    if processor.chat_template is not None:
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        messages = [*_without_placeholders(processor, messages), said]
        whole = str(processor.apply_chat_template(messages, tokenize=False))
        rest = whole.removeprefix(turn)
        if rest != whole and answer in rest and any(end in rest for end in ends if end):
            return rest
    # Prompts such as "ASSISTANT:" are followed by a space, markup and line ends by the answer itself.
    joint = " " if family is not None and family.turn.endswith(":") and turn.endswith(":") else ""
    return joint + answer + str(next(end for end in ends if end))


def _without_placeholders(processor: Any, messages: Sequence[Message]) -> list[Message]:
    """The messages with the image's placeholder taken out of their texts: it would be counted as another image."""
    placeholders = [getattr(processor, f"{kind}_token", None) for kind in ("image", "video")]
    cleaned = []
    for message in messages:
        parts = []
        for part in message["content"]:
            text = part.get("text")
            for placeholder in placeholders:
                text = text.replace(placeholder, " ") if text and placeholder else text
            parts.append(part if text is None else {**part, "text": text})
        cleaned.append({**message, "content": parts})
    return cleaned
