"""What a model's chat template writes around a question and its answer, without loading a processor."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from spr.core.documents import parse_json
from spr.core.errors import SprError
from spr.core.paths import is_file
from spr.core.text_input import read_text
from spr.models.family import Family

_PROMPT, _ANSWER = "PROMPT-5b1d", "ANSWER-0f4e"
_IMAGES = re.compile(
    r"<\|vision_start\|>(?:<\|image_pad\|>)?<\|vision_end\|>|<img>[^<]*+</img>|<image(?:_\d+)?>|<\|image(?:_pad|_\d+)?\|>"
)
"""How data mark the place of an image in a prompt: in LLaVA's format, and in those of Qwen-VL, Phi and others."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """The text of a conversation with one question and one answer: ``start + prompt + middle + answer + end``.

    Attributes:
        start: What comes before the question, with the image's placeholder if the template writes one.
        middle: What is between the question and the answer.
        end: What follows the answer.
        image: What ``start`` has more than that of a question without an image; empty if the placeholder is not there.
        source: Where this comes from, for people.
    """

    start: str = ""
    middle: str = "\n"
    end: str = ""
    image: str = ""
    source: str = "the prompt and the answer alone: there is no chat template"

    def text(self, prompt: str, answer: str) -> str:
        """The whole text; ``prompt`` is without placeholders of images."""
        return f"{self.start}{prompt}{self.middle}{answer}{self.end}"


PLACEHOLDER = re.compile(r"<\|?image(?:_pad)?\|?>|<image_soft_token>|<start_of_image>|\[IMG\]|<IMG_CONTEXT>")
"""The text in a template that the tokens of an image replace."""


def conversation_of(folder: Path | None, family: Family | None) -> Conversation:
    """The conversation of a model: by the chat template in its folder, else by its family's turn, else without one."""
    template = None if folder is None else _template(folder)
    if folder is not None and template is not None:
        for with_parts in (True, False):  # templates of language models alone take a text, not a list of parts
            found = _rendered(template, _settings(folder), with_parts)
            if found is not None:
                return found
    if family is not None:
        turn = family.turn.replace("{image}", "<image>", 1)
        start, _, middle = turn.partition("{prompt}")
        end = family.end_of_turn[0] if family.end_of_turn else ""
        middle += " " if middle.endswith(":") else ""
        return Conversation(
            start,
            middle,
            end,
            "<image>" if "<image>" in start else "",
            f"the turn of the family {family.model_type}: there is no chat template",
        )
    return Conversation()


def without_images(prompt: str) -> tuple[str, int]:
    r"""A prompt without the placeholders of images, and how many there were.

    >>> without_images("<image>\nWhere is the dog?")
    ('Where is the dog?', 1)
    """
    if "<" not in prompt:
        return prompt, 0
    text, count = _IMAGES.subn("", prompt)
    return (text.strip() if count else text), count


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        settings = parse_json(read_text(path)) if is_file(path) else {}
    except (SprError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _template(folder: Path) -> str | None:
    """The chat template: of chat_template.jinja, chat_template.json or tokenizer_config.json."""
    try:
        if is_file(folder / "chat_template.jinja"):
            return read_text(folder / "chat_template.jinja")
        if is_file(folder / "chat_template.json"):
            found = parse_json(read_text(folder / "chat_template.json"))
            template = found.get("chat_template") if isinstance(found, dict) else None
            return template if isinstance(template, str) else None
    except (SprError, ValueError):
        return None
    template = _settings(folder).get("chat_template")
    if isinstance(template, list):  # several by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _rendered(template: str, settings: dict[str, Any], with_parts: bool) -> Conversation | None:
    whole = _render(template, settings, with_parts, image=with_parts)
    pieces = None if whole is None else re.split(f"{_PROMPT}|{_ANSWER}", whole)
    if pieces is None or len(pieces) != 3:
        return None
    start, middle, end = pieces
    plain = _render(template, settings, with_parts, image=False) if with_parts else None
    without = "" if plain is None else plain.partition(_PROMPT)[0]
    image = ""
    if plain is not None and len(start) > len(without):
        same = next((k for k, pair in enumerate(zip(start, without, strict=False)) if pair[0] != pair[1]), len(without))
        image = start[same : same + len(start) - len(without)]
    return Conversation(start, middle, end, image, "the model's chat template around them")


def _render(template: str, settings: dict[str, Any], with_parts: bool, *, image: bool) -> str | None:
    """The conversation as a template writes it; None if it can't."""
    text: list[dict[str, str]] = [{"type": "text", "text": _PROMPT}]
    question = [{"type": "image"}, *text] if image else text
    reply = [{"type": "text", "text": _ANSWER}]
    messages = [
        {"role": "user", "content": question if with_parts else _PROMPT},
        {"role": "assistant", "content": reply if with_parts else _ANSWER},
    ]
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals.update(raise_exception=_refuse, strftime_now=lambda _: "2025-01-01")
    tokens = {name: _token(settings.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    try:
        return environment.from_string(template).render(messages=messages, add_generation_prompt=False, **tokens)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError):
        return None


class _Generation(jinja2.ext.Extension):
    """The block ``{% generation %}`` around what is trained on, which transformers adds; it changes no text."""

    tags = {"generation"}  # noqa: RUF012 (as in Jinja)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The content of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _token(value: Any) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""
