"""The four kinds of markup, as data, with the patterns that read them.

Every pattern takes linear time on any text: quantifiers are possessive, or bounded by characters that they can't match.
All alternatives of a pattern start with a literal character outside a group, so that `re` skips the words between by a
table, which doubles the speed.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

NUMBER = r"[-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+"

_SPECIAL = r"<(?:/?s|pad|bos|eos|/?image|grounding|region_fea|\|(?:im_start|im_end|endoftext)\|)>"
SPECIAL = re.compile(_SPECIAL)
"""A special token, which can be in an answer that was decoded with them; they are removed from the text."""

_ITEM = rf"(?:[A-Za-z]\w{{0,11}}+\s?+[=:]\s?+)?+{NUMBER}(?:\s?+(?:%|px\b))?+"


def _run(bracket: str, opened: str, closed: str) -> str:
    """Pattern of four or more numbers, optionally named, after ``bracket``, with ``opened`` and ``closed`` between.

    It does not require an end, so that it can't fail late: `stray` decides about the whole match.
    """
    gap = rf"(?=[\s,;{closed}])[{closed}]?+[\s,;]*+[{opened}]?+\s?+"
    return rf"{bracket}\s?+[{opened}]{{0,2}}+\s?+{_ITEM}(?:{gap}{_ITEM}){{3,}}+(?:\s*+[{closed}])*+"


_TAG = (
    r"<(?:/?(?:ref|box|phrase|object|quad)|\|(?:object_ref|box|quad)_(?:start|end)\||/delimiter_of_multi_objects/"
    r"|patch_index_[0-9]{1,9})>|<loc_?[0-9]{1,9}>(?:<loc_?[0-9]{1,9}>)*+"
)
_IN_BRACES = _run(r"\{", r"\[\(", r"\]\)}")
_STRAY_IN_PARENTHESES = "|".join((_run(r"\(", r"\(", r"\)"), _IN_BRACES, _TAG))
_STRAY = "|".join((_run(r"\(", r"\[\(", r"\]\)"), _run(r"\[", r"\[\(", r"\]\)"), _IN_BRACES, _TAG))
_ITEM_PATTERN = re.compile(_ITEM)
_BRACKET = re.compile(r"[\[\](){}]")
OTHER_NUMBERS = re.compile(rf"\s*+{_ITEM}(?:(?=[\s,])\s*+,?+\s*+{_ITEM}){{3}}\s*+")
"""Four numbers in other forms, such as "x1=5, y1=5, x2=9, y2=9" or "5 5 9 9"."""
STRAY_COORDINATES = "coordinates without the dialect's markup: dropped"
FOREIGN_TAG = "tag of another dialect: dropped"
_NUMBERED = ("<loc", "<patch", "</delim")


def stray(match: re.Match[str]) -> str | None:
    """The problem with coordinates or a tag in another dialect's form; None if the match is ordinary words.

    Four numbers in brackets are coordinates, and so are two bracketed pairs; also if the answer ends before the closing
    bracket. "(1998)", "(2, 3)", "(1998) [1] (2, 3)" and "(1, 2, 3, 4, 5)" are words.
    """
    piece = match[0]
    if piece[0] == "<":
        return STRAY_COORDINATES if piece.startswith(_NUMBERED) else FOREIGN_TAG
    if piece[-1] not in ")]}" and match.end() < len(match.string):
        return None
    counts = [len(_ITEM_PATTERN.findall(group)) for group in _BRACKET.split(piece)]
    counts = [count for count in counts if count]
    return STRAY_COORDINATES if 4 in counts or (2, 2) in itertools.pairwise(counts) else None


@dataclass(frozen=True)
class Brackets:
    """Prose in which a box in brackets follows its phrase; the phrase is not marked.

    Attributes:
        box: Template of a box's four numbers, without the brackets.
        width: Number of brackets: 1 for ``[…]``, 2 for ``[[…]]``.
        separator: Separator of the boxes of one phrase inside the brackets; None if each box has its own brackets.
    """

    box: str
    width: int = 1
    separator: str | None = None

    keeps_prose = True
    numbers = (1, 2, 3, 4)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """A well-formed box, any other bracket, a special token, or a `stray`."""
        opened, closed = r"\[" * self.width, r"\]" * self.width
        return re.compile(
            rf"{opened}({NUMBER}),\s?({NUMBER}),\s?({NUMBER}),\s?({NUMBER}){closed}"
            rf"|\[(?P<open>\[?)(?!\[)(?P<inner>[^\[\]]*+)(?P<close>\]{{0,2}})|{_SPECIAL}"
            rf"|{_STRAY_IN_PARENTHESES}"
        )


@dataclass(frozen=True)
class Tags:
    """Prose in which tags mark phrases and boxes.

    Attributes:
        phrase: Opening and closing tag of a phrase.
        grounding: Opening and closing tag of its boxes.
        box: Template of one box.
        shape: Pattern of one box, with one group per number.
        bare: Pattern, without groups, of coordinates that have lost their tags, if it is specific to the dialect.
        between: Pattern of the separator between boxes, if one pair of tags can contain several.
        separator: Separator of the boxes of one phrase inside the tags; None if each box has its own tags.
        wrap: Text around all boxes inside the tags.
        space_inside: Whether the space before a phrase is written inside its tag, as in the model's own answers.
    """

    phrase: tuple[str, str]
    grounding: tuple[str, str]
    box: str
    shape: str
    bare: str | None = None
    between: str | None = None
    separator: str | None = None
    wrap: tuple[str, str] = ("", "")
    space_inside: bool = False

    keeps_prose = True

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """A phrase (group 1) with one well-formed box, any tag, a special token, or a `stray`."""
        tags = [re.escape(tag) for tag in (*self.phrase, *self.grounding)]
        (opened, closed, before, after), (left, right) = tags, map(re.escape, self.wrap)
        whole = rf"{opened}([^<]*+){closed}{before}{left}{self.shape}{right}{after}"
        return re.compile("|".join((whole, *tags, _SPECIAL, *filter(None, (self.bare,)), _STRAY)))

    @cached_property
    def closing(self) -> re.Pattern[str]:
        """The closing tag of boxes, with white space before it."""
        return re.compile(rf"\s*+{re.escape(self.grounding[1])}")

    @cached_property
    def shape_pattern(self) -> re.Pattern[str]:
        """One box."""
        return re.compile(rf"\s*+{self.shape}\s*+")

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The groups of ``pattern`` that are the numbers of the box."""
        return tuple(range(2, 2 + self.shape_pattern.groups))


@dataclass(frozen=True)
class Tokens:
    """A list of labels with boxes as location tokens, without prose.

    Attributes:
        box: Template of one box.
        token: Pattern of one token, with its number in a group.
        broken: Pattern of text that looks like a token but is not valid.
        label_first: Whether the label comes before its boxes; if not, each box comes before its label.
        separator: Separator between two detections.
        order: The positions of x1, y1, x2, y2 among the four tokens.
        polygons: Whether more than four tokens in a row can be the corners of a polygon, which is not read as boxes.
    """

    box: str
    token: str
    broken: str
    label_first: bool
    separator: str = ""
    order: tuple[int, int, int, int] = (0, 1, 2, 3)
    polygons: bool = False

    keeps_prose = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """A run of tokens (of four, with groups), a special token, an invalid token, or a `stray`."""
        token = self.token.replace("(", "(?:")
        return re.compile(rf"{self.token * 4}(?!{token})|{token}(?:{token})*+|{_SPECIAL}|{self.broken}|{_STRAY}")

    @cached_property
    def token_pattern(self) -> re.Pattern[str]:
        """One token."""
        return re.compile(self.token)

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The groups of ``pattern`` that are x1, y1, x2 and y2."""
        return tuple(1 + place for place in self.order)


@dataclass(frozen=True)
class JsonList:
    """A JSON list of entries with a box and a label, without prose.

    Attributes:
        box_key: The key of a box, or of a list of boxes.
        label_key: The key of the label.
        other_label_keys: Keys that are read as the label of entries without ``label_key``, the first one that is there.
    """

    box_key: str = "bbox_2d"
    label_key: str = "label"
    other_label_keys: tuple[str, ...] = ("class", "category", "text_content", "name", "class_name", "category_name")

    box = "[{}, {}, {}, {}]"
    separator = ", "
    keeps_prose = False
    numbers = (1, 2, 3, 4)

    @cached_property
    def label_keys(self) -> tuple[str, ...]:
        """All keys of labels, by precedence."""
        return self.label_key, *self.other_label_keys

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """An entry in the models' form (four numbers, then the label as a JSON string), any other brace, or a `stray`.

        Braces in labels must be escaped, as `render` does, so that an incomplete entry does not include the next one.
        """
        box, label = re.escape(f'"{self.box_key}"'), re.escape(f'"{self.label_key}"')
        entry = rf"{box}:\s?\[({NUMBER}),\s?({NUMBER}),\s?({NUMBER}),\s?({NUMBER})\],\s*+{label}:\s?"
        return re.compile(rf'\{{\s*+{entry}("[^"\\{{}}\n]*+")\s*+\}}|\{{|{_STRAY}')

    @cached_property
    def string(self) -> re.Pattern[str]:
        """A string in single or double quotes (group 1).

        It ends at a quote before a comma, colon or closing bracket, so that it may contain quotes that are not escaped.
        One that is not closed extends to the next box key, or to the end of the text.
        """
        key = re.escape(self.box_key)
        strings = (
            rf"{quote}(?:[^{quote}\\{{]++|\\.|\\\Z|\{{(?!\s*+[\"']{key}[\"'])"
            rf"|{quote}(?!\s*+(?:[,:}}\])]|//|\Z)|{key}{quote}\s*+:))*+(?:{quote}(?!{key}{quote}\s*+:))?+"
            for quote in "\"'"
        )
        return re.compile(rf"\s*+({'|'.join(strings)})", re.DOTALL)

    @cached_property
    def token(self) -> re.Pattern[str]:
        """A mark, a key with its colon, a string, a comment, or anything else up to the next mark."""
        key = r""""(?:[^"\\]++|\\.)*+"|'(?:[^'\\]++|\\.)*+'|\w++"""
        return re.compile(
            rf"\s*+(?:(?P<mark>[{{}}\[\](),:])|(?P<key>{key})\s*+:|(?:{self.string.pattern})|//[^\n]*+"
            r"|[^{}\[\](),:]++)",
            re.DOTALL,
        )


Markup: TypeAlias = Brackets | Tags | Tokens | JsonList
