"""Parse a model's answer in its dialect."""

from __future__ import annotations

from spr.core.errors import GroundingError
from spr.grounding.dialects import Dialect, get_dialect
from spr.grounding.markup import Brackets, JsonList, Tags
from spr.grounding.parse_brackets import parse_brackets
from spr.grounding.parse_lists import parse_json, parse_tokens
from spr.grounding.parse_tags import parse_tags
from spr.grounding.prose import without_surrogates
from spr.grounding.text import GroundedText
from spr.records import Size


def parse(text: str, dialect: str | Dialect, size_wh: Size, *, strict: bool = False) -> GroundedText:
    """Parse an answer into plain text, phrases with boxes in pixels, and problems.

    Parsing accepts any text: every well-formed box is kept, and every malformed piece is reported. Numbers out of the
    dialect's range are clipped and reported. A box entirely out of range is dropped and reported; the scale is never
    guessed. Swapped corners are sorted and reported. Lone surrogates, which no file can contain, become U+FFFD.

    Args:
        text: The answer as generated; it may contain special tokens of the tokenizer.
        dialect: A key of `DIALECTS` or a `Dialect`.
        size_wh: Width and height of the original image in pixels.
        strict: Raise an error for the first problem.

    Raises:
        GroundingError: for an unknown dialect or a wrong image size; with ``strict`` also for a malformed piece,
            naming its offset.

    Examples:
        >>> grounded = parse("A man [100, 150, 300, 800] and two dogs [0, 0, 50, 50] [9, 9, 9].", "ferret", (1000, 500))
        >>> grounded.plain_text
        'A man and two dogs.'
        >>> [(span.phrase, span.boxes) for span in grounded.spans]
        [('A man', ((100.0, 75.0, 300.0, 400.0),)), ('two dogs', ((0.0, 0.0, 50.0, 25.0),))]
        >>> print(*grounded.problems)
        offset 56: '9, 9, 9': 3 numbers instead of 4: dropped
    """
    dialect = get_dialect(dialect)
    text = without_surrogates(text)
    frame, markup = dialect.frame(size_wh), dialect.markup
    if isinstance(markup, Brackets):
        grounded = parse_brackets(text, markup, frame)
    elif isinstance(markup, Tags):
        grounded = parse_tags(text, markup, frame)
    elif isinstance(markup, JsonList):
        grounded = parse_json(text, markup, frame)
    else:
        grounded = parse_tokens(text, markup, frame)
    if strict and grounded.problems:
        problem = grounded.problems[0]
        raise GroundingError(
            f"Text in dialect `{dialect.key}` is malformed at offset {problem.offset}: {problem.reason}",
            got=repr(problem.text),
            expected=dialect.example,
            fix="parse without `strict` to keep the well-formed pieces",
        )
    return grounded
