"""MDETR's JSON of RefCOCO and others: COCO JSON in which each entry of ``images`` is an expression, its ``caption``.

The files are those of ``mdetr_annotations.tar.gz`` (ashkamath/mdetr, .github/pretrain.md and refexp.md).
"""

from __future__ import annotations

from spr.workflows.checking.layouts.layout import ObjectLayout

LAYOUT = ObjectLayout(
    "mdetr",
    "MDETR or RefCOCO JSON",
    "an object with `images` (id, file_name, caption, width, height) and `annotations` (image_id, bbox)",
    has_captions=True,
)
