"""The four families of markup, as data, with the patterns that read them.

Every pattern reads in linear time whatever the text: quantifiers are possessive or bounded by characters that they
cannot match themselves. All alternatives of a pattern start with a literal character, outside any group: then `re`
skips the words between by a table, which doubles the speed.
"""

from __future__ import annotations

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
        """A well-formed box with its numbers in groups 1 to 4, any other bracket, or a special token."""
        opened, closed = r"\[" * self.width, r"\]" * self.width
        return re.compile(
            rf"{opened}({NUMBER}),\s?({NUMBER}),\s?({NUMBER}),\s?({NUMBER}){closed}"
            rf"|\[(?P<open>\[?)(?!\[)(?P<inner>[^\[\]]*+)(?P<close>\]{{0,2}})|{_SPECIAL}"
        )


@dataclass(frozen=True)
class Tags:
    """Prose in which tags mark phrases and boxes.

    Attributes:
        phrase: Opening and closing tag of a phrase.
        grounding: Opening and closing tag of its boxes.
        box: Template of one box.
        shape: Pattern of one box, a group a number.
        bare: Pattern of coordinates that lost their tags, without groups.
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
        """A phrase with one well-formed box, any tag, a special token, or coordinates without tags.

        Group 1 is the phrase, the next ones are the numbers.
        """
        opened, closed = map(re.escape, self.phrase)
        before, after = map(re.escape, self.grounding)
        whole = (
            rf"{opened}([^<]*+){closed}{before}{re.escape(self.wrap[0])}{self.shape}{re.escape(self.wrap[1])}{after}"
        )
        return re.compile("|".join((whole, opened, closed, before, after, _SPECIAL, *filter(None, (self.bare,)))))

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
        """A run of tokens, a special token, or something that looks like a token.

        Groups 1 to 4 are the numbers of a run of four tokens.
        """
        token = self.token.replace("(", "(?:")
        return re.compile(rf"{self.token * 4}(?!{token})|{token}(?:{token})*+|{_SPECIAL}|{self.broken}")

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
        """An entry as the models write it (four numbers, then the label as JSON text), or any other brace.

        A label with a brace of its own must have it escaped, as `render` does: so an entry that is cut off never
        swallows the next one.
        """
        box, label = re.escape(f'"{self.box_key}"'), re.escape(f'"{self.label_key}"')
        entry = rf"{box}:\s?\[({NUMBER}),\s?({NUMBER}),\s?({NUMBER}),\s?({NUMBER})\],\s*+{label}:\s?"
        return re.compile(rf'\{{\s*+{entry}("[^"\\{{}}\n]*+")\s*+\}}|\{{(?P<inner>[^{{}}]*+)(?P<close>\}}?)')


Markup: TypeAlias = Brackets | Tags | Tokens | JsonList
