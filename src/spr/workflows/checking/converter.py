"""Converts a text of the data to another dialect: what a dialect can't read or write as it is, is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from spr.core.boxes import Size
from spr.grounding import Dialect, GroundedText, parse, render, render_box
from spr.grounding.editing import renumber
from spr.grounding.geometry import Relative
from spr.grounding.markup import Brackets, JsonList
from spr.grounding.parse import markup_of
from spr.grounding.text import without_surrogates
from spr.workflows.checking.layouts.layout import Slot, SlotKind
from spr.workflows.checking.text_boxes import find_boxes, forms_of

_ANY_SIZE = (10**6, 10**6)
# The trainer's own marks, which are not part of what a dialect writes, and reasoning.
_MARKS = re.compile(
    r"(<(?:image|video|audio)>|<img>[^<]*+</img>|</?think(?:ing)?>|</?answer>"
    r"|<\|(?:vision_start|vision_end|image_pad|image)\|>)",
    re.IGNORECASE,
)
_WORDS = re.compile(r"\w")


class Refused(Exception):  # noqa: N818 - the row is reported and left out
    """A row that can't be converted; the message says why."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A text in the new dialect, the number of its boxes, and the words that were lost."""

    text: str
    boxes: int = 0
    lost: str = ""


class Converter:
    r"""Converts the texts of a row from one dialect to another.

    >>> from spr.grounding import get_dialect
    >>> from spr.workflows.checking.layouts.layout import Slot
    >>> convert = Converter(get_dialect("ferret"), get_dialect("qwen2_vl"))
    >>> convert(Slot({"value": "<image>\nWhat is at [0, 0, 500, 500]?"}, "value", "prompt"), None).text
    '<image>\nWhat is at <|box_start|>(0,0),(500,500)<|box_end|>?'
    """

    def __init__(self, source: Dialect, target: Dialect) -> None:
        self.source, self.target = source, target
        self._needs_size = any(
            dialect.geometry != Relative() or getattr(dialect.coding, "units", 0) is None
            for dialect in (source, target)
        )
        # Where phrases are not marked, a box can stay where it is in the sentence.
        self._keeps_order = target.keeps_prose and getattr(target.markup, "phrase", None) is None
        self._forms = forms_of(source)
        self._errors = lru_cache(4096)(self._max_errors)

    def __call__(self, slot: Slot, size_wh: Size | None) -> Fixed:
        """The text of a slot in the new dialect.

        Raises:
            Refused: if a box can't be read or written as it is.
            GroundingError: if the dialect can't write the text.
        """
        text = slot.text
        if self.source == self.target or not find_boxes([text]).numbers:
            return Fixed(text)
        if size_wh is None and self._needs_size:
            raise Refused("the size of the image is not known: give --images")
        size = size_wh if size_wh is not None else _ANY_SIZE
        pieces = [
            Fixed(piece) if _MARKS.fullmatch(piece) else self._piece(piece, size, slot.kind)
            for piece in _MARKS.split(text)
        ]
        lost = " ".join(filter(None, (piece.lost for piece in pieces)))
        return Fixed("".join(piece.text for piece in pieces), sum(piece.boxes for piece in pieces), lost)

    def _piece(self, piece: str, size: Size, kind: SlotKind) -> Fixed:
        if not (expected := find_boxes([piece]).numbers):
            return Fixed(piece)
        core = piece.strip()
        before, after = piece[: piece.index(core)], piece[piece.index(core) + len(core) :]
        if without_surrogates(core) != core:
            raise Refused("the text is not valid Unicode")
        self._check_forms(piece, kind)
        source, target = self.source, self.target
        if kind == "prompt" and _lists_json(source) and isinstance(markup_of(source, core), JsonList):
            source = source if _has_key(source, core) else _in_brackets(source)
        grounded = parse(core, source, size)
        if grounded.problems:
            raise Refused(str(grounded.problems[0]))
        if len(grounded.boxes) != len(expected):
            raise Refused(f"{len(expected)} boxes in the text, of which {self.source.key} reads {len(grounded.boxes)}")
        if source is not self.source and isinstance(target.markup, JsonList) and not target.markup.y_first:
            text = renumber(grounded, _in_brackets(target))
        else:
            text = renumber(grounded, target)
        lost = ""
        if text is None and (kind == "prompt" or self._keeps_order):
            text = in_place(grounded, target, size)
        if text is None:
            text = render(grounded, target, size)
            lost = "" if target.keeps_prose else _other_words(grounded)
        self._check(grounded, text, size, is_bare=kind == "prompt" and not _has_key(target, text))
        return Fixed(before + text + after, len(expected), lost)

    def _check_forms(self, piece: str, kind: SlotKind) -> None:
        """Raise `Refused` if the dialect's models don't write boxes like those of a text."""
        allowed = self._forms | ({"brackets"} if kind == "prompt" else set())
        other = next((form for form in find_boxes([piece]).forms if form not in allowed), None)
        if other is not None:
            raise Refused(f"a box is written as {other}, and {self.source.key} writes {self.source.example}")

    def _max_errors(self, size: Size) -> tuple[float, float]:
        (ax, ay), (bx, by) = self.source.max_error(size), self.target.max_error(size)
        return ax + bx, ay + by

    def _check(self, grounded: GroundedText, text: str, size: Size, *, is_bare: bool) -> None:
        """Raise `Refused` unless the text has the same boxes; ``is_bare``: as numbers in brackets, in a prompt."""
        if is_bare and isinstance(self.target.markup, JsonList):
            frame, order = self.target.frame(size), self.target.markup.order
            found = [frame.decode([four[k] for k in order])[0] for four in find_boxes([text]).numbers]
            again = tuple([box for box in found if box is not None])
        else:
            again = parse(text, self.target, size).boxes
        x, y = self._errors(size)
        same = len(again) == len(grounded.boxes) and all(
            abs(new - old) <= (x, y)[k % 2] * (1 + 1e-9) + 1e-9
            for a, b in zip(grounded.boxes, again, strict=True)
            for k, (old, new) in enumerate(zip(a, b, strict=True))
        )
        if not same:
            raise Refused(f"written in {self.target.key}, its boxes would be read as other ones")


def in_place(grounded: GroundedText, target: Dialect, size_wh: Size) -> str | None:
    """The text with each box in another dialect at its place, such as in a question about a region.

    The marks of phrases are replaced, or removed if the dialect marks none. None if the text lists boxes as JSON.

    >>> from spr.grounding import get_dialect
    >>> text = "What is <ref>the dog</ref><box>(0,0),(499,499)</box> doing?"
    >>> in_place(parse(text, "qwen_vl", (999, 999)), get_dialect("ferret"), (999, 999))
    'What is the dog [0, 0, 499, 499] doing?'
    """
    source = grounded.source
    if source is None or isinstance(markup := markup_of(source.dialect, source.text), JsonList):
        return None
    units: dict[tuple[int, int], str] = {}
    places = [place for place in source.places if place.is_read]
    for place, box in zip(places, grounded.boxes, strict=True):
        written = render_box(box, target, size_wh)
        if place.unit in units or source.text[: place.unit[0]][-1:].isspace() or place.unit[0] == 0:
            units[place.unit] = units.get(place.unit, "") + written
        else:
            units[place.unit] = f" {written}" if isinstance(target.markup, Brackets) else written
    old, new = (getattr(one, "phrase", None) or ("", "") for one in (markup, target.markup))
    pieces, position = [], 0
    for (start, stop), written in sorted(units.items()):
        pieces += [source.text[position:start], written]
        position = stop
    pieces.append(source.text[position:])
    for before, after in zip(old, new, strict=True):
        pieces[::2] = [piece.replace(before, after) if before else piece for piece in pieces[::2]]
    return "".join(pieces)


def _lists_json(dialect: Dialect) -> bool:
    return isinstance(dialect.markup, JsonList)


def _has_key(dialect: Dialect, text: str) -> bool:
    return isinstance(dialect.markup, JsonList) and dialect.markup.key.search(text) is not None


def _in_brackets(dialect: Dialect) -> Dialect:
    """The dialect as it is written in prompts: numbers in brackets. Raises `Refused` if y comes first."""
    markup = dialect.markup
    if not isinstance(markup, JsonList) or markup.y_first:
        raise Refused(f"brackets in a prompt do not show that {dialect.key} writes y first")
    return replace(dialect, markup=Brackets(", ".join([f"{{:{markup.number}}}"] * 4)))


def _other_words(grounded: GroundedText) -> str:
    """The words of a text that are in no phrase with boxes; empty if there are only marks between the phrases."""
    pieces, position = [], 0
    for span in grounded.spans:
        if span.boxes:
            pieces.append(grounded.plain_text[position : span.start])
            position = span.end
    words = " … ".join(" ".join(piece.split()) for piece in (*pieces, grounded.plain_text[position:]))
    return words.strip(" …")[:200] if _WORDS.search(words) else ""
