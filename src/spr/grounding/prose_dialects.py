"""The dialects that keep prose, as data: brackets, tags and elements around words.

`docs/dialects.md` lists the source of each fact, and shows how another package adds a dialect.
"""

from __future__ import annotations

from typing import TypedDict

from spr.grounding.coding import Cells, Numbers
from spr.grounding.dialect import LOCATE, Dialect
from spr.grounding.geometry import Relative
from spr.grounding.markup import NUMBER, Brackets, Elements, JsonList, Tags

_REF_AND_BOX = ("<ref>", "</ref>"), ("<box>", "</box>")
_QWEN_TAGS = ("<|object_ref_start|>", "<|object_ref_end|>"), ("<|box_start|>", "<|box_end|>")
_REF_AND_BOX_TOKENS = "</?(?:ref|box|quad)>"
_TAG_NUMBERS = rf"({NUMBER})\s*+,\s*+({NUMBER})"
_CORNERS = rf"\(\s*+{_TAG_NUMBERS}\s*+\)\s*+,\s*+\(\s*+{_TAG_NUMBERS}\s*+\)"
_SPACED = r"(?:\s*+,\s*+|\s++)".join([rf"({NUMBER})"] * 4)
_FOUR = r"\s*+,\s*+".join([rf"\s*+{NUMBER}\s*+"] * 4)
_BIN = "<([0-9]{1,4})>"
_DECIMAL = r"[0-9]++(?:\.[0-9]++)?+"
_REF_AND_DET = Tags(
    ("<|ref|>", "<|/ref|>"),
    ("<|det|>", "<|/det|>"),
    "[{}, {}, {}, {}]",
    rf"\[?+{_TAG_NUMBERS}\s*+,\s*+{_TAG_NUMBERS}\]?+",
    between=r"[\[\]]++",
    separator=", ",
    wrap=("[", "]"),
)
_LOCATE_BOX = "Give the bounding box of {expression}."
_POINT_TO = "Point to {expression}"


class _PointTags(TypedDict):
    point: str
    point_shape: str
    point_tags: tuple[str, str]


_POINT_TAGS: _PointTags = {
    "point": "{} {}",
    "point_shape": r"(?:\s*+,\s*+|\s++)".join([rf"({NUMBER})"] * 2),
    "point_tags": ("<point>", "</point>"),
}


PROSE_DIALECTS = (
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
        rec_prompt="<grounding><phrase> {expression}</phrase>",
        description_prompt="<grounding><phrase> It</phrase>{region} is",
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
        Tags(*_QWEN_TAGS, "({},{}),({},{})", _CORNERS),
        Numbers(),
        rec_prompt=_LOCATE_BOX,
        special_tokens=r"<\|(?:object_ref|box|quad|point)_(?:start|end)\|>",
    ),
    Dialect(
        "internvl",
        "InternVL 2 to 3.5",
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
        rec_prompt=LOCATE.replace("{expression}", "<ref>{expression}</ref>"),
        special_tokens=_REF_AND_BOX_TOKENS,
    ),
    Dialect(
        "minicpm_v",
        "MiniCPM-V",
        "<ref>a dog</ref><box>100 150 300 200</box>",
        Tags(*_REF_AND_BOX, "{} {} {} {}", _SPACED, **_POINT_TAGS),
        Numbers(),
        rec_prompt=LOCATE.replace("{expression}", "<ref>{expression}</ref>"),
        special_tokens="</?(?:ref|box|quad|point)>",
    ),
    Dialect(
        "glm_v",
        "GLM-4.1V to 4.6V",
        "a dog <|begin_of_box|>[[100,150,300,200]]<|end_of_box|>",
        Tags(
            None,
            ("<|begin_of_box|>", "<|end_of_box|>"),
            "[{},{},{},{}]",
            rf"\[?+{_TAG_NUMBERS}\s*+,\s*+{_TAG_NUMBERS}\]?+",
            bare=rf"\[\s*+\[?+{_FOUR}\](?:\s*+,\s*+\[{_FOUR}\])*+\]?+",
            between=r"[\[\](){}<>]++",
            separator=",",
            wrap=("[", "]"),
            point="[{},{}]",
            point_shape=_TAG_NUMBERS,
            holds_words=True,
            tags_optional=True,
            json=JsonList(around=r"<\|(?:begin|end)_of_box\|>"),
        ),
        Numbers(),
        rec_prompt="Please pinpoint the bounding box [[x1,y1,x2,y2], …] in the image as per the given description. "
        "{expression}",
        special_tokens=r"<\|(?:begin|end)_of_box\|>",
    ),
    Dialect(
        "deepseek_vl2",
        "DeepSeek-VL2",
        "<|ref|>a dog<|/ref|><|det|>[[100, 150, 300, 200]]<|/det|>",
        _REF_AND_DET,
        Numbers(units=999),
        rec_prompt="<|ref|>{expression}<|/ref|>",
        special_tokens=r"<\|/?(?:ref|det)\|>|<\|grounding\|>",
    ),
    Dialect(
        "deepseek_ocr",
        "DeepSeek-OCR",
        "<|ref|>a dog<|/ref|><|det|>[[100, 150, 300, 200]]<|/det|>",
        _REF_AND_DET,
        Numbers(units=999),
        rec_prompt="Locate <|ref|>{expression}<|/ref|> in the image.",
        special_tokens=r"<\|/?(?:ref|det)\|>|<\|grounding\|>",
    ),
    Dialect(
        "seed_vl",
        "Seed1.5-VL",
        "a dog <bbox>100 150 300 200</bbox>",
        Tags(
            None,
            ("<bbox>", "</bbox>"),
            "{} {} {} {}",
            _SPACED,
            **_POINT_TAGS,
            json=JsonList(
                box_key="bbox",
                point_key="point",
                label_key="category",
                other_label_keys=("label", "name"),
                quoted_box=rf"<bbox>\s*+{_SPACED}\s*+</bbox>",
            ),
        ),
        Numbers(high=999),
        rec_prompt="Draw a box around {expression} and output the coordinates of the bounding box.",
        special_tokens="</?(?:bbox|point)>",
        servers_keep_tokens=True,
    ),
    Dialect(
        "rex_omni",
        "Rex-Omni",
        "<|object_ref_start|>a dog<|object_ref_end|><|box_start|><100><150><300><200><|box_end|>",
        Tags(
            *_QWEN_TAGS,
            "<{}><{}><{}><{}>",
            _BIN * 4,
            between=",",
            separator=",",
            point="<{}><{}>",
            point_shape=_BIN * 2,
            absent="None",
        ),
        Numbers(units=999, floor=True),
        rec_prompt="Detect {expression}. Output the bounding box coordinates in [x0, y0, x1, y1] format.",
        point_prompt="Point to {expression}.",
        special_tokens=r"<\|(?:object_ref|box)_(?:start|end)\|>|<[0-9]{1,3}>",
    ),
    Dialect(
        "molmo",
        "Molmo",
        '<point x="10.0" y="15.0" alt="a dog">a dog</point>',
        Elements(
            '<point x="{x}" y="{y}" alt="{alt}">{phrase}</point>',
            '<points {points} alt="{alt}">{phrase}</points>',
            'x{number}="{x}" y{number}="{y}"',
            rf"""\bx(?:[0-9]*+)\s*+=\s*+["']\s*+({NUMBER})\s*+["']\s++y[0-9]*+\s*+=\s*+["']\s*+({NUMBER})\s*+["']""",
            ".1f",
            attributes=rf"""((?: x[0-9]*+="{_DECIMAL}" y[0-9]*+="{_DECIMAL}")++ alt="[^"'=<>]*+")""",
        ),
        Numbers(units=100, decimals=1),
        rec_prompt=_POINT_TO,
        point_prompt=_POINT_TO,
    ),
    Dialect(
        "molmo2",
        "Molmo2",
        '<points coords="1 1 100 150">a dog</points>',
        Elements(
            '<points coords="1 1 {x} {y}">{phrase}</points>',
            '<points coords="1 {points}">{phrase}</points>',
            "{number} {x} {y}",
            r"[0-9]++\s++([0-9]++)\s++([0-9]++)(?![0-9.])",
            "03d",
            coordinates=r"""\bcoords\s*+=\s*+["']([^"']*+)""",
            image=r"\s*+([0-9]++(?:\.[0-9]++)?+)(?=\s)",
            attributes=r' coords="1((?: [0-9]++ [0-9]++ [0-9]++)++)"',
        ),
        Numbers(),
        rec_prompt=_POINT_TO,
        point_prompt=_POINT_TO,
    ),
)
