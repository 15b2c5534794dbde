"""TRL: the conversations that `DPOTrainer` takes for vision-language models, with images embedded or by path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spr.exports.formats import ExportRow, ExportSplit, Format, Labels, Writer
from spr.exports.image_limits import pixel_limits
from spr.exports.parquet import ParquetWriter

SETTINGS = "processor.json"
_COPIED = (
    "query_id",
    "image_id",
    "file_name",
    "width",
    "height",
    "region",
    "chosen_score",
    "rejected_score",
    "margin",
    "split",
)
"""Columns with the values of the pair's attributes of the same names; null for those that a question does not have."""


def to_row(row: ExportRow) -> dict[str, Any]:
    """A row whose prompt places the image before the text, as the pipeline did; a plain text leaves it to TRL."""
    pair, texts = row.pair, row.texts
    return {
        "images": [{"bytes": row.image.data, "path": row.image.path}],
        "prompt": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": texts.prompt}]}
        ],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": texts.chosen}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": texts.rejected}]}],
        **{name: getattr(pair, name, None) for name in _COPIED},
        "kind": pair.kind,
    }


def _open(folder: Path, labels: Labels, split: ExportSplit) -> Writer[ExportRow]:
    from datasets import Features, Image, Value

    text = Value("string")
    messages = [{"role": text, "content": [{"type": text, "text": text}]}]
    features = Features(
        {
            "images": [Image()],
            **dict.fromkeys(("prompt", "chosen", "rejected"), messages),
            **dict.fromkeys(("query_id", "image_id", "file_name"), text),
            **dict.fromkeys(("width", "height"), Value("int32")),
            "region": [Value("float32")],
            **dict.fromkeys(("chosen_score", "rejected_score", "margin"), Value("float32")),
            "split": text,
            "kind": text,
        }
    )
    writer = ParquetWriter(folder, features.arrow_schema, to_row, split)
    (folder / SETTINGS).write_text(json.dumps(pixel_limits(labels.dialect)) + "\n", encoding="utf-8")
    return writer


FORMAT = Format(
    reader="TRL's DPOTrainer",
    images=("embed", "path"),
    placeholders=("<image>",),
    data_files="data/{split}-*.parquet",
    columns={
        "images": "a list with the image",
        "prompt": "the user's turn: the image and the prompt",
        "chosen": "the assistant's turn: the best description, with corrected boxes",
        "rejected": "the assistant's turn: the worst description, as generated",
        "query_id": "the region query, `<image_id>/<n>`, or the question, `<image_id>/absent-<n>`",
        "image_id": "the image's id in the annotations",
        "file_name": "the image file, as the annotations name it",
        "width": "width of the image, in pixels",
        "height": "height of the image, in pixels",
        "region": "the region of the prompt: x1, y1, x2, y2 in pixels of the image",
        "chosen_score": "score S of the chosen description, before its boxes were corrected",
        "rejected_score": "score S of the rejected description",
        "margin": "chosen_score − rejected_score",
        "split": "`train`, or `holdout` in the split `test`",
        "kind": "`answers` or `boxes`: descriptions of a region; `absent` or `present`: a question about one object, "
        "which has no region and no scores",
    },
    usage="""```python
import json

from datasets import load_dataset
from transformers import AutoProcessor
from trl import DPOConfig, DPOTrainer

pairs = load_dataset("{out}", split="train")
with open("{out}/processor.json") as limits:  # limits of the image size that the boxes need; {} if they need none
    processor = AutoProcessor.from_pretrained(MODEL, **json.load(limits))
# max_length=None, because truncating a prompt would remove image tokens.
arguments = DPOConfig(output_dir="dpo", beta=0.1, per_device_train_batch_size=2, max_length=None)
DPOTrainer(model=MODEL, args=arguments, train_dataset=pairs, processing_class=processor).train()
```""",
    open=_open,
)
