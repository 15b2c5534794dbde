"""The four families of markup, as data, with the patterns that read them.

Every pattern reads in linear time whatever the text: quantifiers are possessive or bounded by characters that they
cannot match themselves. All alternatives of a pattern start with a literal character, outside any group: then `re`
skips the words between by a table, which doubles the speed.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

NUMBER = r"[-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+"
NUMBER_LIKE = re.compile(rf"(?:{NUMBER}|[-+]?(?:nan|inf(?:inity)?))", re.IGNORECASE)
FOUR_NUMBERS = re.compile(rf"\s*+({NUMBER})\s*+" + rf",\s*+({NUMBER})\s*+" * 3)

SPECIAL_TOKENS = (
    "<s>",
    "</s>",
    "<pad>",
    "<bos>",
    "<eos>",
    "<image>",
    "</image>",
    "<grounding>",
    "<region_fea>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
)
"""What tokenizers leave in an answer that was decoded with its special tokens: taken out of the text."""

_SPECIAL = f"<(?:{'|'.join(re.escape(token[1:]) for token in SPECIAL_TOKENS)})"
SPECIAL = re.compile(_SPECIAL)

_ITEM = rf"(?:[A-Za-z]\w{{0,11}}+\s?+[=:]\s?+)?+{NUMBER}"


def _run(bracket: str, opened: str, closed: str) -> str:
    """Pattern of at least four numbers, perhaps named, after ``bracket``; ``opened`` and ``closed`` may be between.

    It does not ask for the end, so that it never fails late: `stray` judges the whole run.
    """
    gap = rf"(?=[\s,;{closed}])[{closed}]?+[\s,;]*+[{opened}]?+\s?+"
    return rf"{bracket}\s?+[{opened}]{{0,2}}+\s?+{_ITEM}(?:{gap}{_ITEM}){{3,}}+(?:\s*+[{closed}])*+"


_TAG = (
    r"<(?:/?(?:ref|box|phrase|object|quad)|\|(?:object_ref|box|quad)_(?:start|end)\||/delimiter_of_multi_objects/"
    r"|patch_index_[0-9]{1,9})>|<loc_?[0-9]{1,9}>(?:<loc_?[0-9]{1,9}>)*+"
)
_STRAY_IN_PARENTHESES = "|".join((_run(r"\(", r"\(", r"\)"), _TAG))
_STRAY = "|".join((_run(r"\(", r"\[\(", r"\]\)"), _run(r"\[", r"\[\(", r"\]\)"), _TAG))
_ITEM_PATTERN = re.compile(_ITEM)
_BRACKET = re.compile(r"[\[\]()]")
OTHER_NUMBERS = re.compile(rf"\s*+{_ITEM}(?:(?=[\s,])\s*+,?+\s*+{_ITEM}){{3}}\s*+")
"""Four numbers as people and other models write them, such as "x1=5, y1=5, x2=9, y2=9" or "5 5 9 9"."""
STRAY_COORDINATES = "coordinates without the dialect's markup: dropped"
_NUMBERED = ("<loc", "<patch", "</delim")


def stray(match: re.Match[str]) -> str | None:
    """What is wrong with coordinates or a tag that are not the dialect's own; None if they are words.

    Four numbers in brackets are coordinates, and so are two pairs in brackets of their own; also where the answer was
    cut before the closing bracket. "(1998)", "(2, 3)", "(1998) [1] (2, 3)" and "(1, 2, 3, 4, 5)" are words.
    """
    piece = match[0]
    if piece[0] == "<":
        return STRAY_COORDINATES if piece.startswith(_NUMBERED) else "tag of another dialect: dropped"
    if piece[-1] not in ")]" and match.end() < len(match.string):
        return None
    counts = [len(_ITEM_PATTERN.findall(group)) for group in _BRACKET.split(piece)]
    counts = [count for count in counts if count]
    return STRAY_COORDINATES if 4 in counts or (2, 2) in itertools.pairwise(counts) else None


@dataclass(frozen=True)
class Brackets:
    """Prose in which a box in brackets follows its phrase, unmarked.

    Attributes:
        box: Template of a box's four numbers, without the brackets.
        width: Number of brackets: 1 for ``[…]``, 2 for ``[[…]]``.
        separator: Between the boxes of one phrase inside one pair of brackets; None where each box has its own.
    """

    box: str
    width: int = 1
    separator: str | None = None

    keeps_prose = True

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """A well-formed box with its numbers in groups 1 to 4, any other bracket, a special token, or a `stray`."""
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
        shape: Pattern of one box, a group a number.
        bare: Pattern of coordinates that lost their tags, without groups, where they look like nobody else's.
        between: Pattern of what divides boxes, where one pair of tags can hold several.
        separator: Between the boxes of one phrase inside one pair of tags; None where each box has its own tags.
        wrap: Around all boxes inside the tags.
        space_inside: The space before a phrase stands inside its tag, as the model's own answers have it.
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
        """A phrase with one well-formed box, any tag, a special token, or a `stray`.

        Group 1 is the phrase, the next ones are the numbers.
        """
        opened, closed = map(re.escape, self.phrase)
        before, after = map(re.escape, self.grounding)
        whole = (
            rf"{opened}([^<]*+){closed}{before}{re.escape(self.wrap[0])}{self.shape}{re.escape(self.wrap[1])}{after}"
        )
        others = (_SPECIAL, *filter(None, (self.bare,)), _STRAY)
        return re.compile("|".join((whole, opened, closed, before, after, *others)))

    @cached_property
    def shape_pattern(self) -> re.Pattern[str]:
        """One box."""
        return re.compile(rf"\s*+{self.shape}\s*+")


@dataclass(frozen=True)
class Tokens:
    """A list of labels with boxes of location tokens, and no words between.

    Attributes:
        box: Template of one box.
        token: Pattern of one token, its number in a group.
        broken: Pattern of what looks like a token but is none.
        label_first: The label comes before its boxes; else each box comes before its label.
        separator: Between two detections.
        order: Where x1, y1, x2, y2 stand among the four tokens.
    """

    box: str
    token: str
    broken: str
    label_first: bool
    separator: str = ""
    order: tuple[int, int, int, int] = (0, 1, 2, 3)

    keeps_prose = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """A run of tokens, a special token, something that looks like a token, or a `stray`.

        Groups 1 to 4 are the numbers of a run of four tokens.
        """
        token = self.token.replace("(", "(?:")
        return re.compile(rf"{self.token * 4}(?!{token})|{token}(?:{token})*+|{_SPECIAL}|{self.broken}|{_STRAY}")

    @cached_property
    def token_pattern(self) -> re.Pattern[str]:
        """One token."""
        return re.compile(self.token)


@dataclass(frozen=True)
class JsonList:
    """A JSON list of entries with a box and a label, and no words between."""

    box_key: str = "bbox_2d"
    label_key: str = "label"

    box = "[{}, {}, {}, {}]"
    separator = ", "
    keeps_prose = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """An entry as the models write it (four numbers, then the label as JSON text), any other brace, or a `stray`.

        A label with a brace of its own must have it escaped, as `render` does: so an entry that is cut off never
        swallows the next one.
        """
        box, label = re.escape(f'"{self.box_key}"'), re.escape(f'"{self.label_key}"')
        entry = rf"{box}:\s?\[({NUMBER}),\s?({NUMBER}),\s?({NUMBER}),\s?({NUMBER})\],\s*+{label}:\s?"
        return re.compile(rf'\{{\s*+{entry}("[^"\\{{}}\n]*+")\s*+\}}|\{{(?P<inner>[^{{}}]*+)(?P<close>\}}?)|{_STRAY}')


Markup: TypeAlias = Brackets | Tags | Tokens | JsonList
