"""A dialect: what describes how one family of models writes boxes and points into text."""

from __future__ import annotations

import dataclasses
import operator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, SupportsIndex

from spr.core.errors import GroundingError
from spr.grounding.coding import Coding, Frame
from spr.grounding.geometry import Geometry, Relative, check_size
from spr.grounding.markup import Markup
from spr.records import Size

if TYPE_CHECKING:
    from spr.grounding.well_formed import WellFormed

_IMAGE = Relative()
_MAX_OPTION = 10**12
LOCATE = "Please provide the bounding box coordinate of the region this sentence describes: {expression}"


@dataclass(frozen=True)
class Dialect:
    """How one family of models writes boxes and points into text.

    Attributes:
        key: The name used in configs and on the command line. Must equal the name it is registered under.
        model: The models that write it, for people to read.
        example: The phrase "a dog" with one box, as the model writes it; with one point if it has no boxes.
        markup: Template and separators: one of the classes of `spr.grounding.markup`.
        coding: Range, rounding and decoding of the numbers: a class of `spr.grounding.coding`.
        geometry: What the numbers are relative to: a class of `spr.grounding.geometry`, or your own.
        options: Names of the fields of ``geometry`` that users may set, as in ``llava:padded=false``.
        region_suffix: Text that follows an input region in a prompt.
        region_point: How a prompt writes a region that is a point, with places for x and y in thousandths of the sides,
            rounded down; None for models that know no such regions.
        rec_prompt: The default question of the REC benchmark; contains ``{expression}``.
        rec_keeps_commas: False if the family's own REC evaluation removes commas from the expressions.
        description_prompt: The default question of the description benchmark; contains ``{region}``. None for the
            default of `prompts.full`.
        special_tokens: Pattern of the markup's tokens that tokenizers may declare as special tokens; they are kept when
            an answer is decoded.
        servers_keep_tokens: False if inference servers remove these tokens from answers unless a request sets
            ``skip_special_tokens: false``.
        point_prompt: The publisher's question for points; contains ``{expression}``. None if there is none.
    """

    key: str
    model: str
    example: str
    markup: Markup
    coding: Coding
    geometry: Geometry = _IMAGE
    options: tuple[str, ...] = ()
    region_suffix: str = ""
    region_point: str | None = None
    rec_prompt: str = LOCATE
    rec_keeps_commas: bool = True
    description_prompt: str | None = None
    special_tokens: str | None = None
    servers_keep_tokens: bool = False
    point_prompt: str | None = None

    @property
    def keeps_prose(self) -> bool:
        """Whether the words between phrases can be written. If not, `render` writes only the phrases with boxes."""
        return self.markup.keeps_prose

    @property
    def writes_boxes(self) -> bool:
        """Whether boxes can be written. If not, `render` refuses a text with boxes."""
        return self.markup.writes_boxes

    @property
    def writes_points(self) -> bool:
        """Whether points can be written. If not, `render` refuses a text with points."""
        return self.markup.writes_points

    @property
    def spec(self) -> str:
        """The key and the options that differ from the registered dialect, in the form that `get_dialect` reads.

        >>> from spr.grounding import get_dialect
        >>> get_dialect("llava_onevision", padded=True).spec, get_dialect("ferret").spec
        ('llava_onevision:padded=true', 'ferret')
        """
        from spr.grounding.dialects import DIALECTS

        usual = DIALECTS[self.key].geometry if self.key in DIALECTS else self.geometry
        values = {name: getattr(self.geometry, name) for name in self.options}
        changed = [
            f"{name}={str(value).lower()}"
            for name, value in values.items()
            if isinstance(value, int) and value != getattr(usual, name, None)
        ]
        return ":".join([self.key, ",".join(changed)]) if changed else self.key

    def with_options(self, **options: Any) -> Dialect:
        """The dialect with other values of its options; None leaves an option as it is.

        Raises:
            GroundingError: if the dialect has no such option, or for a value out of range.
        """
        geometry: Any = self.geometry
        values = {name: value for name, value in options.items() if value is not None}
        for name in values:
            if name not in self.options:
                expected = ", ".join(self.options) or "no options"
                what, fix = f"Dialect `{self.key}` has no option `{name}`", f"leave out `{name}`"
                raise GroundingError(what, expected=expected, fix=fix)
            values[name] = _checked_option(self.key, name, values[name], getattr(geometry, name))
        return dataclasses.replace(self, geometry=dataclasses.replace(geometry, **values)) if values else self

    @cached_property
    def well_formed(self) -> WellFormed:
        """Reads the well-formed answers, faster than the reader of the markup does."""
        from spr.grounding.well_formed import WellFormed

        return WellFormed(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "well_formed"}

    def frame(self, size_wh: Size) -> Frame:
        """The encoder and decoder of the boxes of an image; raises a GroundingError for a size that is not positive."""
        return self.coding.frame(self.geometry.canvas(check_size(size_wh)))

    def max_error(self, size_wh: Size) -> tuple[float, float]:
        """The quantisation error: how far, in pixels, an edge in the image can move from `render` to `parse`.

        The first bound is for x1 and x2, the second for y1 and y2. Some box attains or approaches each.

        >>> from spr.grounding import get_dialect
        >>> get_dialect("qwen2_vl").max_error((640, 480))  # half of 1/1000 of each side
        (0.32, 0.24)
        """
        return self.frame(size_wh).max_error()


def _checked_option(key: str, name: str, value: Any, default: Any) -> Any:
    """The value of an option; bools and integers are checked here, other types by the geometry itself."""
    if isinstance(default, bool):
        expected = "true or false"
        if isinstance(value, bool):
            return value
    elif isinstance(default, int):
        expected = f"an integer from 1 to {_MAX_OPTION:,}"
        whole = isinstance(value, SupportsIndex) and not isinstance(value, bool)
        if whole and 1 <= operator.index(value) <= _MAX_OPTION:
            return operator.index(value)
    else:
        return value
    raise GroundingError(f"Option `{name}` of dialect `{key}` is wrong", got=repr(value)[:60], expected=expected)
