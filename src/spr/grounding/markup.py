"""The kinds of markup, as data, with the patterns that read them.

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

_SPECIAL = (
    r"<(?:/?s|pad|bos|eos|end_of_turn|turn\||/?image|grounding|region_fea|｜end▁of▁sentence｜"
    r"|\|(?:im_start|im_end|endoftext|user|observation|grounding|eot_id)\|)>"
)
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
    r"<(?:/?(?:ref|bbox|box|phrase|object|quad|points?)|\|(?:object_ref|box|quad|point)_(?:start|end)\|"
    r"|\|/?(?:ref|det)\||\|(?:begin|end)_of_box\||points?\s[^<>]*+|/delimiter_of_multi_objects/"
    r"|patch_index_[0-9]{1,9})>|<loc_?[0-9]{1,9}>(?:<loc_?[0-9]{1,9}>)*+"
    r"|<[0-9]{1,4}><[0-9]{1,4}>(?:<[0-9]{1,4}>)*+"
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
_NUMBERED = re.compile(r"<(?:loc|patch|/delim|points?\s|[0-9])")


def stray(match: re.Match[str]) -> str | None:
    """The problem with coordinates or a tag in another dialect's form; None if the match is ordinary words.

    Four numbers in brackets are coordinates, and so are two bracketed pairs; also if the answer ends before the closing
    bracket. "(1998)", "(2, 3)", "(1998) [1] (2, 3)" and "(1, 2, 3, 4, 5)" are words.
    """
    piece = match[0]
    if piece[0] == "<":
        return STRAY_COORDINATES if _NUMBERED.match(piece) is not None else FOREIGN_TAG
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
    writes_boxes = True
    writes_points = False
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
    """Prose in which tags mark boxes, and perhaps phrases and points.

    Attributes:
        phrase: Opening and closing tag of a phrase; None if phrases are not marked.
        grounding: Opening and closing tag of its boxes.
        box: Template of one box.
        shape: Pattern of one box, with one group per number.
        bare: Pattern, without groups, of coordinates that have lost their tags, if it is specific to the dialect.
        between: Pattern of the separator between boxes, if one pair of tags can contain several.
        separator: Separator of the boxes of one phrase inside the tags; None if each box has its own tags.
        wrap: Text around all boxes inside the tags.
        space_inside: Whether the space before a phrase is written inside its tag, as in the model's own answers.
        point: Template of one point; None if the dialect has no points.
        point_shape: Pattern of one point, with a group for x and one for y.
        point_tags: Opening and closing tag of points; None for those of boxes.
        absent: What the tags of boxes contain if the object is not in the image.
        holds_words: Whether the tags of boxes may contain words instead of boxes, or beside them, which are kept.
        tags_optional: Whether the model also writes boxes without their tags, which is then not reported.
        json: How answers in JSON are read, which the model also writes; None if it does not.
    """

    phrase: tuple[str, str] | None
    grounding: tuple[str, str]
    box: str
    shape: str
    bare: str | None = None
    between: str | None = None
    separator: str | None = None
    wrap: tuple[str, str] = ("", "")
    space_inside: bool = False
    point: str | None = None
    point_shape: str | None = None
    point_tags: tuple[str, str] | None = None
    absent: str | None = None
    holds_words: bool = False
    tags_optional: bool = False
    json: JsonList | None = None

    keeps_prose = True
    writes_boxes = True

    @property
    def writes_points(self) -> bool:
        """Whether the dialect has points."""
        return self.point is not None

    def of(self, text: str) -> Tags | JsonList:
        """How a text is read: by these tags, or as JSON, if the models write that as well and the text has it."""
        json = self.json
        if json is None or not (json.box_key in text or json.point_key in text) or json.key.search(text) is None:
            return self
        return json

    @cached_property
    def pairs(self) -> dict[str, str]:
        """The closing tag of each opening tag."""
        return dict(pair for pair in (self.phrase, self.grounding, self.point_tags) if pair is not None)

    @cached_property
    def tags(self) -> frozenset[str]:
        """All tags."""
        return frozenset(tag for pair in self.pairs.items() for tag in pair)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """A phrase (group 1; empty if not marked) with one well-formed box, any tag, a special token, or a `stray`."""
        tags = [re.escape(tag) for pair in self.pairs.items() for tag in pair]
        left, right = map(re.escape, self.wrap)
        before, after = map(re.escape, self.grounding)
        if self.phrase is None:
            whole = rf"{before}(){left}{self.shape}{right}{after}"
        else:
            opened, closed = map(re.escape, self.phrase)
            whole = rf"{opened}([^<]*+){closed}{before}{left}{self.shape}{right}{after}"
        return re.compile("|".join((whole, *tags, _SPECIAL, *filter(None, (self.bare,)), _STRAY)))

    @cached_property
    def closing(self) -> re.Pattern[str]:
        """The closing tag of boxes, with white space before it."""
        return re.compile(rf"\s*+{re.escape(self.grounding[1])}")

    @cached_property
    def separators(self) -> re.Pattern[str] | None:
        """What is between boxes, if one pair of tags can contain several."""
        return None if self.between is None else re.compile(self.between)

    @cached_property
    def point_pattern(self) -> re.Pattern[str] | None:
        """One point."""
        return None if self.point_shape is None else re.compile(rf"\s*+{self.point_shape}\s*+")

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
    writes_boxes = True
    writes_points = False

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
    """A JSON list of entries with a box or a point, and a label, without prose.

    Attributes:
        box_key: The key of a box, or of a list of boxes.
        label_key: The key of the label.
        other_label_keys: Keys that are read as the label of entries without ``label_key``, the first one that is there.
        point_key: The key of a point, or of a list of points.
        y_first: Whether y comes before x.
        number: Format of a number.
        around: Pattern of tags around the list, which are removed without a report.
        quoted_box: Pattern of a box in a string, with one group per number, if boxes may also be strings.
    """

    box_key: str = "bbox_2d"
    label_key: str = "label"
    other_label_keys: tuple[str, ...] = ("class", "category", "text_content", "name", "class_name", "category_name")

    point_key: str = "point_2d"
    y_first: bool = False
    number: str = ""
    around: str | None = None
    quoted_box: str | None = None

    separator = ", "
    keeps_prose = False
    writes_boxes = True
    writes_points = True

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The positions of x1, y1, x2, y2 among the four numbers."""
        return (1, 0, 3, 2) if self.y_first else (0, 1, 2, 3)

    @cached_property
    def box(self) -> str:
        """Template of a box."""
        return f"[{', '.join(f'{{{place}:{self.number}}}' for place in self.order)}]"

    @cached_property
    def point(self) -> str:
        """Template of a point."""
        return f"[{', '.join(f'{{{place}:{self.number}}}' for place in self.order[:2])}]"

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The groups of ``pattern`` that are x1, y1, x2 and y2."""
        return tuple(1 + place for place in self.order)

    @cached_property
    def point_numbers(self) -> tuple[int, ...]:
        """The groups of ``pattern`` that are x and y of a point."""
        return tuple(6 + place for place in self.order[:2])

    @cached_property
    def label_keys(self) -> tuple[str, ...]:
        """All keys of labels, by precedence."""
        return self.label_key, *self.other_label_keys

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """An entry in the models' form (the numbers, then the label as a JSON string), any other brace, or a `stray`.

        Groups 1 to 4 are the numbers of a box, 5 its label, 6 and 7 those of a point, 8 its label. Braces in labels
        must be escaped, as `render` does, so that an incomplete entry does not include the next one.
        """
        box, point, label = (re.escape(f'"{key}"') for key in (self.box_key, self.point_key, self.label_key))
        number, label = rf"({NUMBER})", rf'\],\s*+{label}:\s?("[^"\\{{}}\n]*+")'
        four, two = (r",\s?".join([number] * count) for count in (4, 2))
        entry = rf"(?:{box}:\s?\[{four}{label}|{point}:\s?\[{two}{label})"
        return re.compile(rf"\{{\s*+{entry}\s*+\}}|\{{|{_STRAY}")

    @cached_property
    def key(self) -> re.Pattern[str]:
        """The quoted key of a box or point."""
        keys = "|".join(map(re.escape, (self.box_key, self.point_key)))
        return re.compile(rf"[\"'](?:{keys})[\"']\s*+:")

    @cached_property
    def string(self) -> re.Pattern[str]:
        """A string in single or double quotes (group 1).

        It ends at a quote before a comma, colon or closing bracket, so that it may contain quotes that are not escaped.
        One that is not closed extends to the next box key, or to the end of the text.
        """
        key = f"(?:{re.escape(self.box_key)}|{re.escape(self.point_key)})"
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


@dataclass(frozen=True)
class Elements:
    """Prose in which a phrase stands in an element whose attributes are its points (Molmo).

    Attributes:
        one: Template of the element of one point, from ``x``, ``y`` and ``phrase``.
        many: Template of the element of several points, from ``points`` and ``phrase``.
        item: Template of a point in ``points``, from its ``number``, counted from 1, and ``x`` and ``y``.
        pair: Pattern of a point in the attributes, with a group for x and one for y.
        coordinates: Pattern of what the points are in, within the attributes, in group 1; None for all attributes.
        image: Pattern of the number of the points' image, before them, in a group; only 1 is read.
        number: Format of a coordinate.
        attributes: Pattern of the attributes, in group 1, in the model's usual form; None if it varies.
    """

    one: str
    many: str
    item: str
    pair: str
    number: str
    coordinates: str | None = None
    image: str | None = None
    attributes: str | None = None

    keeps_prose = True
    writes_boxes = False
    writes_points = True

    @property
    def point(self) -> str:
        """Template of the two numbers of a point, for their formats."""
        return f"{{:{self.number}}} {{:{self.number}}}"

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """An opening tag with its attributes (group 1; 2 if not closed), a closing tag, a special token, a `stray`."""
        return re.compile(rf"<points?(?=[\s/>])([^<>]*+)>|<points?\s([^<>]*+)|</points?+>|{_SPECIAL}|{_STRAY}")

    @cached_property
    def pair_pattern(self) -> re.Pattern[str]:
        """A point in the attributes."""
        return re.compile(self.pair)

    @cached_property
    def coordinates_pattern(self) -> re.Pattern[str] | None:
        """What the points are in, within the attributes."""
        return None if self.coordinates is None else re.compile(self.coordinates)

    @cached_property
    def image_pattern(self) -> re.Pattern[str] | None:
        """The number of the points' image."""
        return None if self.image is None else re.compile(self.image)


Markup: TypeAlias = Brackets | Tags | Tokens | JsonList | Elements
