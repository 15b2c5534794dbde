"""`spr text`: convert grounded text from one dialect to another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Annotated

import typer

from spr.core.errors import ConfigError, GroundingError
from spr.core.terminal import echo


def text(
    source: Annotated[str, typer.Option("--from", help="Dialect of the input.")],
    target: Annotated[str, typer.Option("--to", help="Dialect of the output.")],
    size: Annotated[str, typer.Option(help="Width and height of the image in pixels, such as 640x480.")],
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first malformed box or tag.")] = False,
) -> None:
    """Convert grounded text between dialects, line by line, from standard input to standard output.

    A dialect is given by its key (`spr doctor` lists them) and optional settings: `llava_onevision:padded=true`,
    `qwen2_5_vl:max_pixels=1003520`. Problems are written to standard error with line and offset.
    """
    from spr import grounding

    dialects = grounding.get_dialect(source), grounding.get_dialect(target)
    lines = grounding.convert_lines(_input_lines(), *dialects, _parse_size(size), strict=strict)
    # A file or another program gets the text as it is.
    write, number = echo if sys.stdout.isatty() else partial(print, flush=True), 1
    try:
        for number, converted in enumerate(lines, start=1):
            for problem in converted.problems:
                echo(f"line {number}, {problem}", err=True)
            write(converted.text)
            number += 1
    except GroundingError as error:
        error.add_note(f"  line:     {number}")
        raise


def _input_lines() -> Iterator[str]:
    from spr.core.text_input import TextInput, text_lines

    # Undecodable bytes become U+FFFD, so that one of them does not stop the conversion of the other lines.
    return iter(()) if sys.stdin is None else text_lines(TextInput(sys.stdin.buffer, "Standard input"), replace=True)


def _parse_size(text_wh: str) -> tuple[int, int]:
    width, _, height = text_wh.lower().replace("×", "x").partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        expected = "WIDTHxHEIGHT in pixels, such as 640x480"
        raise ConfigError("--size is not an image size", got=text_wh, expected=expected)
    return int(width), int(height)
