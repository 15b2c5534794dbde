"""Write grounded text in a dialect, and convert it from one dialect to another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeAlias

from spr.core.errors import GroundingError
from spr.grounding.coding import Frame
from spr.grounding.dialects import DIALECTS, Dialect, get_dialect
from spr.grounding.editing import source_text
from spr.grounding.markup import SPECIAL, Brackets, Elements, JsonList, Markup, Tags, Tokens, stray
from spr.grounding.parse import parse
from spr.grounding.points import centre
from spr.grounding.prose import is_coordinates
from spr.grounding.text import PROBLEM_LENGTH, GroundedText, Problem, with_ascii_punctuation, without_surrogates
from spr.records import Box, Point, Size, Span

_BoxMarkup: TypeAlias = Brackets | Tags | Tokens | JsonList
_IN_ATTRIBUTES = str.maketrans({'"': "'", "<": None, ">": None})


def render(grounded: GroundedText, dialect: str | Dialect, size_wh: Size) -> str:
    """Write a text with its boxes and points in the form of the dialect's models.

    A text that was parsed in this dialect for this size comes back as it was, character by character, but for the boxes
    that `replace_boxes` changed. Otherwise boxes follow their phrase (in PaliGemma's dialect they precede it) and are
    clipped to the image; the points of a phrase follow its boxes. Spans without either are written as plain words.
    Dialects that keep no prose (``dialect.keeps_prose``) get the phrases with boxes or points only, unless the text has
    none. ``size_wh`` is the size of the original image in pixels.

    Raises:
        GroundingError: for an unknown dialect, a wrong image size, a box with x2 < x1 or y2 < y1, points or boxes that
            the dialect can't write (`spr.grounding.points.without_points` removes them), or words that the dialect
            would read as markup ("[1, 2, 3, 4]", "<box>").

    >>> grounded = parse("A man [[100,150,300,800]] rides.", "cogvlm", (1000, 500))
    >>> render(grounded, "internvl", (1000, 500))
    '<ref>A man</ref><box>[[100, 150, 300, 800]]</box> rides.'
    >>> render(grounded, "qwen3_vl", (1000, 500))
    '[{"bbox_2d": [100, 150, 300, 800], "label": "A man"}]'
    """
    dialect = get_dialect(dialect)
    own = source_text(grounded, dialect, size_wh)
    if own is not None:
        return own
    markup, frame = dialect.markup, dialect.frame(size_wh)
    spans = [span for span in grounded.spans if span.boxes or span.points]
    _check_can_write(spans, dialect)
    if not spans:
        text = grounded.plain_text
    elif isinstance(markup, JsonList):
        return _render_json(spans, markup, frame)
    elif isinstance(markup, Tokens):
        text = _render_tokens(spans, markup, frame)
    elif isinstance(markup, Elements):
        text = _render_elements(grounded.plain_text, spans, markup, frame)
    else:
        text = _render_prose(grounded.plain_text, spans, markup, frame)
    _check_reads_back(text, grounded, dialect, size_wh)
    return text


def render_box(box: Box, dialect: str | Dialect, size_wh: Size, *, region: bool = False) -> str:
    """Write one box (xyxy pixels of the original image, clipped to it) alone, for a prompt.

    With ``region``, the box is an input region, which is followed by the dialect's ``region_suffix``. A dialect without
    boxes gets points instead (our choice): two corners of a region, or the centre of an object's box.

    Raises:
        GroundingError: for an unknown dialect, a wrong image size or a box with x2 < x1 or y2 < y1.

    >>> render_box((100, 75, 300, 400), "ferret", (1000, 500), region=True)
    '[100, 150, 300, 800] <region_fea>'
    >>> render_box((100, 75, 300, 400), "molmo2", (1000, 500), region=True)
    '<points coords="1 1 100 150 2 300 800"></points>'
    """
    dialect = get_dialect(dialect)
    if not dialect.writes_boxes and isinstance(dialect.markup, Elements):
        frame = dialect.frame(size_wh)
        _check_corners(box)
        points = (box[:2], box[2:]) if region else (centre(box),)
        return _render_elements("", [Span("", 0, 0, (), points)], dialect.markup, frame)
    return _boxes((box,), _with_boxes(dialect), dialect.frame(size_wh)) + dialect.region_suffix * region


def render_point(point: Point, dialect: str | Dialect, size_wh: Size) -> str:
    """Write one point (xy pixels of the original image, clipped to it) alone, for a prompt.

    Raises:
        GroundingError: for an unknown dialect or one without points, or a wrong image size.

    >>> render_point((100, 75), "gemini", (1000, 500))  # y comes first
    '[150, 100]'
    """
    dialect = get_dialect(dialect)
    span = Span("", 0, 0, (), (point,))
    _check_can_write([span], dialect)
    markup, frame = dialect.markup, dialect.frame(size_wh)
    if isinstance(markup, Elements):
        return _render_elements("", [span], markup, frame)
    if isinstance(markup, Tags):
        return _points((point,), markup, frame)
    return markup.point.format(*frame.encode_point(point)) if isinstance(markup, JsonList) else ""


def convert(text: str, source: str | Dialect, target: str | Dialect, size_wh: Size, *, strict: bool = False) -> str:
    """Rewrite a model's answer in another dialect.

    Converting there and back moves an edge by at most ``source.max_error(size_wh)`` plus ``target.max_error(size_wh)``.
    The arguments, and the errors raised, are those of `parse` and `render`.

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

    A line that `render` refuses gives an empty text and a problem that explains it, or an error with ``strict``.

    Raises:
        GroundingError: for an unknown dialect or a wrong image size; with ``strict`` as `convert`.

    >>> list(convert_lines(["a dog [1, 2, 3]\n", "\n"], "ferret", "llava", (100, 100)))[0].text
    'a dog'
    """
    source, target = get_dialect(source), get_dialect(target)
    for line in lines:
        answer = without_surrogates(line.rstrip("\r\n"))
        grounded = parse(answer, source, size_wh, strict=strict)
        try:
            # A label in JSON can contain an escaped line end.
            text, problems = " ".join(render(grounded, target, size_wh).splitlines()), grounded.problems
        except GroundingError as error:
            if strict:
                raise
            problem = Problem(0, answer[:PROBLEM_LENGTH], f"line not written: {error.what}, got {error.got}")
            text, problems = "", (*grounded.problems, problem)
        yield Converted(text, problems)


def _with_boxes(dialect: Dialect) -> _BoxMarkup:
    if isinstance(dialect.markup, Elements):
        raise _unwritable(dialect, "boxes", "`spr.grounding.points.without_boxes` removes boxes")
    return dialect.markup


def _check_can_write(spans: Sequence[Span], dialect: Dialect) -> None:
    if not dialect.writes_points and any(span.points for span in spans):
        raise _unwritable(dialect, "points", "`spr.grounding.points.without_points` removes points")
    if any(span.boxes for span in spans):
        _with_boxes(dialect)


def _unwritable(dialect: Dialect, what: str, how: str) -> GroundingError:
    able = ", ".join(key for key, other in DIALECTS.items() if getattr(other, f"writes_{what}"))
    fix = f"choose another dialect; {how}, and keeps their words"
    return GroundingError(f"Dialect `{dialect.key}` has no {what}", got=f"a text with {what}", expected=able, fix=fix)


def _boxes(boxes: tuple[Box, ...], markup: _BoxMarkup, frame: Frame) -> str:
    """The boxes of one phrase as text."""
    written = []
    for box in boxes:
        _check_corners(box)
        written.append(markup.box.format(*frame.encode(box)))
    if isinstance(markup, Brackets):
        opened, closed, gap = "[" * markup.width, "]" * markup.width, " "
    elif isinstance(markup, Tags):
        opened, closed, gap = markup.grounding[0] + markup.wrap[0], markup.wrap[1] + markup.grounding[1], ""
    else:
        return "".join(written)
    if markup.separator is None:
        return gap.join(opened + text + closed for text in written)
    return opened + markup.separator.join(written) + closed


def _check_corners(box: Box) -> None:
    if not (box[0] <= box[2] and box[1] <= box[3]):
        raise GroundingError("Box can't be written", got=box, expected="x1 ≤ x2 and y1 ≤ y2 (xyxy pixels)")


def _points(points: tuple[Point, ...], markup: Tags, frame: Frame) -> str:
    """The points of one phrase as text."""
    if markup.point is None or not points:
        return ""
    opened, closed = markup.point_tags or markup.grounding
    opened, closed = opened + markup.wrap[0], markup.wrap[1] + closed
    written = [markup.point.format(*frame.encode_point(point)) for point in points]
    if markup.separator is None:
        return "".join(opened + text + closed for text in written)
    return opened + markup.separator.join(written) + closed


def _render_prose(plain: str, spans: list[Span], markup: Brackets | Tags, frame: Frame) -> str:
    pieces, position = [], 0
    is_marked = isinstance(markup, Tags) and markup.phrase is not None
    gap = "" if is_marked else " "
    for span in spans:
        boxes = _boxes(span.boxes, markup, frame) if span.boxes else ""
        if isinstance(markup, Tags):
            boxes += _points(span.points, markup, frame)
        if isinstance(markup, Tags) and markup.phrase is not None and span.phrase:
            start = span.start
            if markup.space_inside and start > position and plain[start - 1] == " ":
                start -= 1
            opened, closed = markup.phrase
            pieces += [plain[position:start], opened, plain[start : span.end], closed, boxes]
            position = span.end
        else:
            # Never after white space, since `parse` removes it with the box.
            end = position + len(plain[position : span.end].rstrip())
            pieces += [plain[position:end], gap if end else "", boxes, "" if end else gap]
            position = end
    text = "".join((*pieces, plain[position:]))
    return text if plain else text.removesuffix(gap)


def _render_tokens(spans: list[Span], markup: Tokens, frame: Frame) -> str:
    if markup.label_first:
        pieces = [span.phrase + _boxes(span.boxes, markup, frame) for span in spans]
    else:
        pieces = [f"{_boxes((box,), markup, frame)} {span.phrase}".rstrip() for span in spans for box in span.boxes]
    return markup.separator.join(pieces)


# Braces end an entry in `parse`; special tokens would be recognised by the model's tokenizer.
_NOT_RAW = re.compile(rf"[{{}}]|{SPECIAL.pattern}")


def _render_json(spans: list[Span], markup: JsonList, frame: Frame) -> str:
    entries: list[str] = []
    for span in spans:
        label = json.dumps(span.phrase, ensure_ascii=False)
        label = _NOT_RAW.sub(lambda match: f"\\u{ord(match[0][0]):04x}{match[0][1:]}", label)
        tail = f', "{markup.label_key}": {label}}}' if span.phrase else "}"
        entries += [f'{{"{markup.box_key}": {_boxes((box,), markup, frame)}{tail}' for box in span.boxes]
        points = [markup.point.format(*frame.encode_point(point)) for point in span.points]
        entries += [f'{{"{markup.point_key}": {point}{tail}' for point in points]
    return f"[{markup.separator.join(entries)}]"


def _render_elements(plain: str, spans: list[Span], markup: Elements, frame: Frame) -> str:
    pieces, position = [], 0
    for span in spans:
        xy = [[format(value, markup.number) for value in frame.encode_point(point)] for point in span.points]
        alt = span.phrase.translate(_IN_ATTRIBUTES)
        if len(xy) == 1:
            element = markup.one.format(x=xy[0][0], y=xy[0][1], phrase=span.phrase, alt=alt)
        else:
            items = [markup.item.format(number=number, x=x, y=y) for number, (x, y) in enumerate(xy, start=1)]
            element = markup.many.format(points=" ".join(items), phrase=span.phrase, alt=alt)
        pieces += [plain[position : span.start], element]
        position = span.end
    return "".join((*pieces, plain[position:]))


def _check_reads_back(text: str, grounded: GroundedText, dialect: Dialect, size_wh: Size) -> None:
    """Raise if the words contain markup, so that the text would be parsed as something else."""
    refused = f"Text can't be written in dialect `{dialect.key}`"
    piece = _literal_markup(grounded.plain_text, dialect.markup)
    if piece is not None:
        expected = "words without the dialect's brackets, tags or tokens"
        what, fix = f"{refused}: its own words would be read as markup", "remove this piece from the plain text"
        raise GroundingError(what, got=repr(piece), expected=expected, fix=fix)
    again = parse(text, dialect, size_wh)
    if dialect.keeps_prose or not (grounded.boxes or grounded.points):
        same = again.plain_text == grounded.plain_text.strip()
    else:
        # Neighbours with the same phrase are read back as one.
        before = groupby(span.phrase.strip() for span in grounded.spans if span.boxes or span.points)
        after = groupby(span.phrase for span in again.spans)
        same = [phrase for phrase, _ in before] == [phrase for phrase, _ in after]
    counts = [(len(text.boxes), len(text.points)) for text in (grounded, again)]
    if not same or counts[0] != counts[1]:
        fix = "check for a box without a phrase, or for brackets or tags next to a phrase"
        raise GroundingError(f"{refused}: it would be read back as something else", got=repr(text[:120]), fix=fix)


def _literal_markup(plain: str, markup: Markup) -> str | None:
    if special := SPECIAL.search(plain):
        return special[0]
    if isinstance(markup, JsonList):
        return None
    is_box = is_coordinates if isinstance(markup, Brackets) else stray
    return next(
        (
            match[0][:60]
            for match in markup.pattern.finditer(with_ascii_punctuation(plain))
            if match[0][0] == "<" or is_box(match)
        ),
        None,
    )
