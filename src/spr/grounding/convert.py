"""Convert text from one dialect to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from spr.core.errors import GroundingError
from spr.grounding.dialects import Dialect, get_dialect
from spr.grounding.parse import parse
from spr.grounding.prose import PROBLEM_LENGTH, without_surrogates
from spr.grounding.render import render
from spr.grounding.text import Problem
from spr.records import Size


def convert(text: str, source: str | Dialect, target: str | Dialect, size_wh: Size, *, strict: bool = False) -> str:
    """Rewrite a model's answer in another dialect.

    Converting there and back moves an edge by at most ``source.max_error(size_wh)`` plus ``target.max_error(size_wh)``.
    A dialect that keeps no prose (``target.keeps_prose``) gets the phrases with boxes only.

    Args:
        text: The answer as generated.
        source: The dialect of the text: a key of `DIALECTS` or a `Dialect`.
        target: The dialect to write.
        size_wh: Width and height of the original image in pixels.
        strict: Raise if the text is malformed, instead of dropping malformed pieces.

    Raises:
        GroundingError: for an unknown dialect, a wrong image size, or words that the target would read as markup; with
            ``strict`` also for a malformed piece, naming its offset.

    >>> convert("<ref>a dog</ref><box>(0,0),(999,500)</box> barks", "qwen_vl", "ferret", (640, 480))
    'a dog [0, 0, 1000, 500] barks'
    """
    return render(parse(text, source, size_wh, strict=strict), target, size_wh)


class Converted(NamedTuple):
    """A converted line, and the malformed pieces of the input."""

    text: str
    problems: tuple[Problem, ...]


def convert_lines(
    lines: Iterable[str], source: str | Dialect, target: str | Dialect, size_wh: Size, *, strict: bool = False
) -> Iterator[Converted]:
    r"""Convert lines lazily; yields one result per line, without line end.

    A line with words that the target would read as markup gives an empty text and a problem that explains it.

    Raises:
        GroundingError: for an unknown dialect or a wrong image size; with ``strict`` as `convert`.

    >>> list(convert_lines(["a dog [1, 2, 3]\n", "\n"], "ferret", "llava", (100, 100)))[0].text
    'a dog'
    """
    source, target = get_dialect(source), get_dialect(target)
    for line in lines:
        grounded = parse(line.rstrip("\r\n"), source, size_wh, strict=strict)
        try:
            text = render(grounded, target, size_wh)
        except GroundingError as error:
            if strict:
                raise
            piece = without_surrogates(line.rstrip("\r\n"))[:PROBLEM_LENGTH]
            problem = Problem(0, piece, f"line not written: {error.what}, got {error.got}")
            yield Converted("", (*grounded.problems, problem))
            continue
        # A label in JSON can contain an escaped line end.
        yield Converted(" ".join(text.splitlines()), grounded.problems)
