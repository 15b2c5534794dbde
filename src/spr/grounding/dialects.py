"""The dialects as data: how each model writes boxes into text, and what SPR must know of models that write so.

`docs/dialects.md` lists the source of each fact, and shows how another package adds a dialect.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from dataclasses import dataclass
from typing import Any, SupportsIndex

from spr.core.errors import GroundingError, closest
from spr.core.registry import Registry
from spr.grounding.coding import Cells, Coding, Frame, Numbers
from spr.grounding.geometry import Geometry, Relative, Resized, check_size
from spr.grounding.markup import NUMBER, Brackets, JsonList, Markup, Tags, Tokens
from spr.records import Size

_IMAGE = Relative()
_MAX_OPTION = 10**12
_LOCATE = "Please provide the bounding box coordinate of the region this sentence describes: {expression}"
_LOCATE_JSON = "Locate {expression}, output its bbox coordinates using JSON format."
_LOCATE_BOX = "Give the bounding box of {expression}."


@dataclass(frozen=True)
class Dialect:
    """How one family of models writes boxes into text.

    Attributes:
        key: The name used in configs and on the command line. Must equal the name it is registered under.
        model: The models that write it, for people to read.
        example: The phrase "a dog" with one box, as the model writes it.
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
    rec_prompt: str = _LOCATE
    rec_keeps_commas: bool = True
    description_prompt: str | None = None
    special_tokens: str | None = None
    servers_keep_tokens: bool = False

    @property
    def keeps_prose(self) -> bool:
        """Whether the words between phrases can be written. If not, `render` writes only the phrases with boxes."""
        return self.markup.keeps_prose

    @property
    def spec(self) -> str:
        """The key and the options that differ from the registered dialect, in the form that `get_dialect` reads.

        >>> get_dialect("llava_onevision", padded=True).spec, get_dialect("ferret").spec
        ('llava_onevision:padded=true', 'ferret')
        """
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

    def frame(self, size_wh: Size) -> Frame:
        """The encoder and decoder of the boxes of an image; raises a GroundingError for a size that is not positive."""
        return self.coding.frame(self.geometry.canvas(check_size(size_wh)))

    def max_error(self, size_wh: Size) -> tuple[float, float]:
        """The quantisation error: how far, in pixels, an edge in the image can move from `render` to `parse`.

        The first bound is for x1 and x2, the second for y1 and y2. Some box attains or approaches each.

        >>> get_dialect("qwen2_vl").max_error((640, 480))  # half of 1/1000 of each side
        (0.32, 0.24)
        """
        return self.frame(size_wh).max_error()


_REF_AND_BOX = ("<ref>", "</ref>"), ("<box>", "</box>")
_REF_AND_BOX_TOKENS = "</?(?:ref|box|quad)>"
_TAG_NUMBERS = rf"({NUMBER})\s*+,\s*+({NUMBER})"
_CORNERS = rf"\(\s*+{_TAG_NUMBERS}\s*+\)\s*+,\s*+\(\s*+{_TAG_NUMBERS}\s*+\)"

_ALL = (
    Dialect(
        "ferret",
        "Ferret",
        "a dog [100, 150, 300, 200]",
        Brackets("{}, {}, {}, {}"),
        Numbers(floor=True),
        region_suffix=" <region_fea>",
        region_point="[{}, {}]",
        rec_prompt="What is the location of {expression} in the image?",
        rec_keeps_commas=False,
    ),
    Dialect(
        "cogvlm",
        "CogVLM",
        "a dog [[100,150,300,200]]",
        Brackets("{:03d},{:03d},{:03d},{:03d}", width=2, separator=";"),
        Numbers(high=999),
        rec_prompt="Where is {expression}? answer in [[x0,y0,x1,y1]] format.",
    ),
    Dialect(
        "llava",
        "LLaVA-1.5",
        "a dog [0.10, 0.15, 0.30, 0.20]",
        Brackets("{:.2f}, {:.2f}, {:.2f}, {:.2f}"),
        Numbers(units=1, decimals=2),
        Relative(padded=True),
        options=("padded",),
    ),
    Dialect(
        "llava_onevision",
        "LLaVA-OneVision",
        "a dog [0.10, 0.15, 0.30, 0.20]",
        Brackets("{:.2f}, {:.2f}, {:.2f}, {:.2f}"),
        Numbers(units=1, decimals=2),
        options=("padded",),
    ),
    Dialect(
        "shikra",
        "Shikra",
        "a dog [0.100,0.150,0.300,0.200]",
        Brackets("{:.3f},{:.3f},{:.3f},{:.3f}", separator=";"),
        Numbers(units=1, decimals=3),
        Relative(padded=True),
        rec_prompt="Where is {expression} in the image? Answer with its coordinates.",
    ),
    Dialect(
        "kosmos2",
        "Kosmos-2",
        "<phrase>a dog</phrase><object><patch_index_0131><patch_index_0201></object>",
        Tags(
            ("<phrase>", "</phrase>"),
            ("<object>", "</object>"),
            "<patch_index_{:04d}><patch_index_{:04d}>",
            r"<patch_index_([0-9]{1,9})>\s*+<patch_index_([0-9]{1,9})>",
            r"(?:<patch_index_[^<>\s]{0,12}+>?|</delimiter_of_multi_objects/>)++",
            between="</delimiter_of_multi_objects/>",
            separator="</delimiter_of_multi_objects/>",
            space_inside=True,
        ),
        Cells(32),
        rec_prompt="<grounding><phrase>{expression}</phrase>",
        special_tokens="</?(?:phrase|object|delimiter_of_multi_objects/|grounding)>|<patch_index_[0-9]{1,4}>",
    ),
    Dialect(
        "qwen_vl",
        "Qwen-VL",
        "<ref>a dog</ref><box>(100,150),(300,200)</box>",
        Tags(*_REF_AND_BOX, "({},{}),({},{})", _CORNERS, space_inside=True),
        Numbers(units=999),
        rec_prompt=_LOCATE_BOX,
        special_tokens=_REF_AND_BOX_TOKENS,
    ),
    Dialect(
        "qwen2_vl",
        "Qwen2-VL",
        "<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(100,150),(300,200)<|box_end|>",
        Tags(
            ("<|object_ref_start|>", "<|object_ref_end|>"),
            ("<|box_start|>", "<|box_end|>"),
            "({},{}),({},{})",
            _CORNERS,
        ),
        Numbers(),
        rec_prompt=_LOCATE_BOX,
        special_tokens=r"<\|(?:object_ref|box|quad|point)_(?:start|end)\|>",
    ),
    Dialect(
        "qwen2_5_vl",
        "Qwen2.5-VL",
        '[{"bbox_2d": [64, 63, 193, 84], "label": "a dog"}]',
        JsonList(),
        Numbers(units=None),
        Resized(),
        options=("min_pixels", "max_pixels", "resized_wh"),
        rec_prompt=_LOCATE_JSON,
    ),
    Dialect(
        "qwen3_vl",
        "Qwen3-VL",
        '[{"bbox_2d": [100, 150, 300, 200], "label": "a dog"}]',
        JsonList(),
        Numbers(),
        rec_prompt=_LOCATE_JSON,
    ),
    Dialect(
        "internvl",
        "InternVL 2 to 3",
        "<ref>a dog</ref><box>[[100, 150, 300, 200]]</box>",
        Tags(
            *_REF_AND_BOX,
            "[{}, {}, {}, {}]",
            rf"\[?+{_TAG_NUMBERS}\s*+,\s*+{_TAG_NUMBERS}\]?+",
            between=r"[\[\]]++",
            separator=", ",
            wrap=("[", "]"),
        ),
        Numbers(floor=True),
        rec_prompt=_LOCATE.replace("{expression}", "<ref>{expression}</ref>"),
        special_tokens=_REF_AND_BOX_TOKENS,
    ),
    Dialect(
        "paligemma",
        "PaliGemma",
        "<loc0153><loc0102><loc0205><loc0307> a dog",
        Tokens(
            "<loc{1:04d}><loc{0:04d}><loc{3:04d}><loc{2:04d}>",
            r"<loc([0-9]{1,9})>",
            r"<(?:loc|seg)[^<>\s;]{0,12}+>?",
            label_first=False,
            separator=" ; ",
            order=(1, 0, 3, 2),
        ),
        Numbers(units=1023),
        rec_prompt="detect {expression}",
        special_tokens="<(?:loc|seg)[0-9]{1,4}>",
        servers_keep_tokens=True,
    ),
    Dialect(
        "florence2",
        "Florence-2",
        "a dog<loc_100><loc_150><loc_300><loc_200>",
        Tokens(
            "<loc_{}><loc_{}><loc_{}><loc_{}>",
            "<loc_([0-9]{1,9})>",
            r"<loc_?[^<>\s]{0,12}+>?|<(?:/?poly|sep)>",
            label_first=True,
            polygons=True,
        ),
        Numbers(high=999, floor=True, offset=0.5),
        rec_prompt="<CAPTION_TO_PHRASE_GROUNDING>{expression}",
        special_tokens="<loc_[0-9]{1,4}>",
        servers_keep_tokens=True,
    ),
    Dialect(
        "minicpm_v",
        "MiniCPM-V",
        "<ref>a dog</ref><box>100 150 300 200</box>",
        Tags(*_REF_AND_BOX, "{} {} {} {}", r"(?:\s*+,\s*+|\s++)".join([rf"({NUMBER})"] * 4)),
        Numbers(),
        special_tokens=_REF_AND_BOX_TOKENS,
    ),
)

DIALECTS: Registry[Dialect] = Registry("dialect", "spr.dialects", {dialect.key: dialect for dialect in _ALL})
"""The dialects by key: the built-in ones, those of the entry-point group ``spr.dialects``, and registered ones."""


def get_dialect(dialect: str | Dialect, **options: Any) -> Dialect:
    """The dialect of a key, with its options set as the model's image processor is set up.

    Args:
        dialect: A `Dialect`, or a key of `DIALECTS`, optionally with options: ``llava_onevision:padded=true``,
            ``qwen2_5_vl:min_pixels=3136,max_pixels=1003520``.
        options: Options of the dialect by name; None leaves an option at its default. The built-in ones are:
            ``padded`` (bool; LLaVA-1.5, LLaVA-OneVision): numbers are relative to the image padded to a square, which
            is the default of LLaVA-1.5 only. ``min_pixels``, ``max_pixels`` (int; Qwen2.5-VL): the settings of its
            image processor; 3,136 and 12,845,056 by default. ``resized_wh`` (Qwen2.5-VL): the size in pixels to which
            the processor resized the image, for one image.

    Raises:
        GroundingError: for an unknown key, naming the nearest one; for an option that the dialect does not have; for
            a value of another type than the option's, an integer that is not between 1 and 10^12, or ``min_pixels``
            above ``max_pixels``.

    >>> get_dialect("qwen2_5_vl", max_pixels=1003520).max_error((3000, 2000))  # resized to 1204 × 812
    (2.4916943521594686, 2.4630541871921183)
    """
    if isinstance(dialect, Dialect):
        return dialect.with_options(**options)
    key, _, text = dialect.partition(":")
    if key not in DIALECTS:
        near = closest(key.lower().replace("-", "_").replace(".", "_"), DIALECTS)
        fix = f"did you mean `{near}`?" if near else None
        raise GroundingError("Unknown dialect", got=repr(key), expected=", ".join(DIALECTS), fix=fix)
    registered = DIALECTS[key]
    if registered.key != key:
        raise GroundingError(f"Dialect `{key}` is registered under another name than its own", got=registered.key)
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    return registered.with_options(**{**options, **{name: _read_option(value) for name, _, value in pairs}})


def _read_option(text: str) -> bool | int | str:
    """The value of an option in the text of a dialect; what is neither a bool nor an integer stays text."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else text


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
