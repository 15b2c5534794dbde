"""The 14 dialects as data: how each model writes boxes into text. docs/dialects.md says where each fact is from."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from spr.core.errors import GroundingError
from spr.grounding.coding import Cells, Coding, Frame, Numbers
from spr.grounding.geometry import Geometry, PaddedSquare, Resized, Squash, check_size
from spr.grounding.markup import NUMBER, Brackets, JsonList, Markup, Tags, Tokens
from spr.grounding.options import checked_option, read_options
from spr.records import Size

_SQUASH = Squash()


@dataclass(frozen=True)
class Dialect:
    """How one model writes boxes.

    Attributes:
        key: Its name in configs.
        model: The models that write it.
        example: A phrase with a box, as the model writes it.
        markup: Template and separators (`spr.grounding.markup`).
        coding: Range, rounding and decoding of the numbers (`spr.grounding.coding`).
        geometry: What the numbers are relative to (`spr.grounding.geometry`).
        region_suffix: What follows a region's box in a prompt.
    """

    key: str
    model: str
    example: str
    markup: Markup
    coding: Coding
    geometry: Geometry = _SQUASH
    region_suffix: str = ""

    @property
    def keeps_prose(self) -> bool:
        """Whether the words between phrases can be written. If not, only phrases with boxes survive `render`."""
        return self.markup.keeps_prose

    @property
    def spec(self) -> str:
        """The key, with the options in which the dialect differs from its default, as `get_dialect` reads it.

        >>> get_dialect("llava_onevision", padded=True).spec, get_dialect("ferret").spec
        ('llava_onevision:padded=true', 'ferret')
        """
        usual = DIALECTS[self.key].geometry
        if self.geometry == usual:
            return self.key
        if not isinstance(self.geometry, Resized):
            return f"{self.key}:padded={str(isinstance(self.geometry, PaddedSquare)).lower()}"
        given = {name: getattr(self.geometry, name) for name in ("min_pixels", "max_pixels")}
        changed = [f"{name}={value}" for name, value in given.items() if value != getattr(usual, name)]
        return ":".join([self.key, ",".join(changed)]) if changed else self.key

    def frame(self, size_wh: Size) -> Frame:
        """What encodes and decodes the boxes of an image of ``size_wh`` pixels.

        Raises:
            GroundingError: if the size is not two whole numbers of at least 1.
        """
        return self.coding.frame(self.geometry.canvas(check_size(size_wh)))

    def max_error(self, size_wh: Size) -> tuple[float, float]:
        """The quantisation error: how far, in pixels, an edge in the image can move from `render` to `parse`.

        Args:
            size_wh: Width and height of the image in pixels.

        Returns:
            The bound for x1 and x2 and the bound for y1 and y2. Some box attains or approaches each.

        >>> get_dialect("qwen2_vl").max_error((640, 480))  # half of 1/1000 of each side
        (0.32, 0.24)
        """
        return self.frame(size_wh).max_error()


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
    ),
    Dialect(
        "cogvlm",
        "CogVLM",
        "a dog [[100,150,300,200]]",
        Brackets("{:03d},{:03d},{:03d},{:03d}", width=2, separator=";"),
        Numbers(high=999),
    ),
    Dialect(
        "llava",
        "LLaVA-1.5",
        "a dog [0.10, 0.15, 0.30, 0.20]",
        Brackets("{:.2f}, {:.2f}, {:.2f}, {:.2f}"),
        Numbers(units=1, decimals=2),
        PaddedSquare(),
    ),
    Dialect(
        "llava_onevision",
        "LLaVA-OneVision",
        "a dog [0.10, 0.15, 0.30, 0.20]",
        Brackets("{:.2f}, {:.2f}, {:.2f}, {:.2f}"),
        Numbers(units=1, decimals=2),
    ),
    Dialect(
        "shikra",
        "Shikra",
        "a dog [0.100,0.150,0.300,0.200]",
        Brackets("{:.3f},{:.3f},{:.3f},{:.3f}", separator=";"),
        Numbers(units=1, decimals=3),
        PaddedSquare(),
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
    ),
    Dialect(
        "qwen_vl",
        "Qwen-VL",
        "<ref>a dog</ref><box>(100,150),(300,200)</box>",
        Tags(("<ref>", "</ref>"), ("<box>", "</box>"), "({},{}),({},{})", _CORNERS, space_inside=True),
        Numbers(units=999),
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
    ),
    Dialect(
        "qwen2_5_vl",
        "Qwen2.5-VL",
        '[{"bbox_2d": [64, 63, 193, 84], "label": "a dog"}]',
        JsonList(),
        Numbers(units=None),
        Resized(),
    ),
    Dialect("qwen3_vl", "Qwen3-VL", '[{"bbox_2d": [100, 150, 300, 200], "label": "a dog"}]', JsonList(), Numbers()),
    Dialect(
        "internvl",
        "InternVL 2 to 3",
        "<ref>a dog</ref><box>[[100, 150, 300, 200]]</box>",
        Tags(
            ("<ref>", "</ref>"),
            ("<box>", "</box>"),
            "[{}, {}, {}, {}]",
            rf"\[?+{_TAG_NUMBERS}\s*+,\s*+{_TAG_NUMBERS}\]?+",
            between=r"[\[\]]++",
            separator=", ",
            wrap=("[", "]"),
        ),
        Numbers(floor=True),
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
    ),
    Dialect(
        "florence2",
        "Florence-2",
        "a dog<loc_100><loc_150><loc_300><loc_200>",
        Tokens(
            "<loc_{}><loc_{}><loc_{}><loc_{}>",
            r"<loc_([0-9]{1,9})>",
            r"<loc_?[^<>\s]{0,12}+>?",
            label_first=True,
        ),
        Numbers(high=999, floor=True, offset=0.5),
    ),
    Dialect(
        "minicpm_v",
        "MiniCPM-V",
        "<ref>a dog</ref><box>100 150 300 200</box>",
        Tags(
            ("<ref>", "</ref>"),
            ("<box>", "</box>"),
            "{} {} {} {}",
            rf"({NUMBER})(?:\s*+,\s*+|\s++)({NUMBER})(?:\s*+,\s*+|\s++)({NUMBER})(?:\s*+,\s*+|\s++)({NUMBER})",
        ),
        Numbers(),
    ),
)

DIALECTS: dict[str, Dialect] = {dialect.key: dialect for dialect in _ALL}
"""The dialects by key."""


def get_dialect(
    key: str,
    *,
    padded: bool | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    resized_wh: Size | None = None,
) -> Dialect:
    """The dialect of a key, with its geometry adjusted where the model was set up differently.

    Args:
        key: A key of `DIALECTS`, perhaps with options: ``llava_onevision:padded=true``,
            ``qwen2_5_vl:min_pixels=3136,max_pixels=1003520``.
        padded: LLaVA-1.5 and LLaVA-OneVision: numbers are relative to the image padded to a square (the default for
            the first), or to the image itself (the default for the second).
        min_pixels: Qwen2.5-VL: what its processor is configured with; 3,136 by default.
        max_pixels: Qwen2.5-VL: what its processor is configured with; 12,845,056 by default.
        resized_wh: Qwen2.5-VL: the size that the processor resized the image to, if known; for one image.

    Raises:
        GroundingError: for an unknown key, naming the nearest one; an option that the dialect does not have; a value
            that is not true or false (``padded``) or not a whole number from 1 to 10^12 (``min_pixels``,
            ``max_pixels``); ``min_pixels`` over ``max_pixels``; a ``resized_wh`` that is not a size.

    >>> get_dialect("qwen2_5_vl", max_pixels=1003520).max_error((3000, 2000))  # seen as 1204 × 812
    (2.4916943521594686, 2.4630541871921183)
    """
    key, _, options = key.partition(":")
    if key not in DIALECTS:
        near = difflib.get_close_matches(key.lower().replace("-", "_").replace(".", "_"), DIALECTS, 1, 0.5)
        fix = f"did you mean `{near[0]}`?" if near else None
        raise GroundingError("Unknown dialect", got=repr(key), expected=", ".join(DIALECTS), fix=fix)
    dialect = DIALECTS[key]
    given: dict[str, Any] = {
        "padded": padded,
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "resized_wh": resized_wh,
        **read_options(key, options),
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        owned = key in ("llava", "llava_onevision") if name == "padded" else isinstance(dialect.geometry, Resized)
        if not owned:
            raise GroundingError(f"Dialect `{key}` has no option `{name}`", fix=f"leave out `{name}`")
    given = {name: checked_option(key, name, value) for name, value in given.items()}
    if "padded" in given:
        return dataclasses.replace(dialect, geometry=PaddedSquare() if given["padded"] else Squash())
    if given:
        dialect = dataclasses.replace(dialect, geometry=dataclasses.replace(dialect.geometry, **given))
    return dialect
