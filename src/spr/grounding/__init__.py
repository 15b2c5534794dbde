"""Text with boxes and points: parse, render and convert the dialects of 23 model families.

`parse` turns a model's answer into plain text with spans (phrase, offsets, boxes and points in pixels of the image),
`render` writes it in any dialect, and `convert` does both. docs/dialects.md lists the dialects.
"""

from spr.grounding.answer import FinalAnswer, final_answer
from spr.grounding.dialects import DIALECTS, Dialect, get_dialect
from spr.grounding.editing import map_to_image, replace_boxes
from spr.grounding.geometry import smart_resize
from spr.grounding.parse import parse
from spr.grounding.render import Converted, convert, convert_lines, render, render_box
from spr.grounding.text import GroundedText, Problem

__all__ = [
    "DIALECTS",
    "Converted",
    "Dialect",
    "FinalAnswer",
    "GroundedText",
    "Problem",
    "convert",
    "convert_lines",
    "final_answer",
    "get_dialect",
    "map_to_image",
    "parse",
    "render",
    "render_box",
    "replace_boxes",
    "smart_resize",
]
