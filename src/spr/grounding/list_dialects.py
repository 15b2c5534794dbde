"""The dialects that list objects without prose, as data: JSON and location tokens.

`docs/dialects.md` lists the source of each fact.
"""

from __future__ import annotations

from spr.grounding.coding import Numbers
from spr.grounding.dialect import Dialect
from spr.grounding.geometry import Resized
from spr.grounding.markup import JsonList, Tokens

LOCATE_JSON = "Locate {expression}, output its bbox coordinates using JSON format."
_POINT_JSON = "Locate {expression}. Output the point coordinates in JSON format."

LIST_DIALECTS = (
    Dialect(
        "qwen2_5_vl",
        "Qwen2.5-VL",
        '[{"bbox_2d": [64, 63, 193, 84], "label": "a dog"}]',
        JsonList(),
        Numbers(units=None),
        Resized(),
        options=("min_pixels", "max_pixels", "resized_wh"),
        rec_prompt=LOCATE_JSON,
        point_prompt=_POINT_JSON,
    ),
    Dialect(
        "qwen3_vl",
        "Qwen3-VL",
        '[{"bbox_2d": [100, 150, 300, 200], "label": "a dog"}]',
        JsonList(),
        Numbers(),
        rec_prompt=LOCATE_JSON,
        point_prompt=_POINT_JSON,
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
        description_prompt="<REGION_TO_DESCRIPTION>{region}",
        special_tokens="<loc_[0-9]{1,4}>",
        servers_keep_tokens=True,
    ),
    Dialect(
        "gemini",
        "Gemini, Gemma 3 and 4",
        '[{"box_2d": [150, 100, 200, 300], "label": "a dog"}]',
        JsonList(box_key="box_2d", point_key="point", y_first=True),
        Numbers(),
        rec_prompt="Detect {expression} in the image. "
        "The box_2d should be [ymin, xmin, ymax, xmax] normalized to 0-1000.",
        point_prompt='Point to {expression}. The answer should follow the json format: [{"point": <point>, "label": '
        "<label1>}, ...]. The points are in [y, x] format normalized to 0-1000.",
    ),
    Dialect(
        "kimi_vl",
        "Kimi-VL, Kimi K2.5",
        '[{"bbox_2d": [0.100, 0.150, 0.300, 0.200], "label": "a dog"}]',
        JsonList(number=".3f"),
        Numbers(units=1, decimals=3),
        rec_prompt=LOCATE_JSON,
    ),
)
