"""RLAIF-V: the Parquet schema of its published dataset, with embedded images."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from spr.exports.formats import ExportRow, ExportSplit, Format, Labels, Writer
from spr.exports.parquet import ParquetWriter


def to_row(labels: Labels, row: ExportRow) -> dict[str, Any]:
    """A row with the nine columns of openbmb/RLAIF-V-Dataset."""
    return {
        "ds_name": labels.name,
        "image": {"bytes": row.image.data, "path": row.image.path},
        "question": row.texts.prompt,
        "chosen": row.texts.chosen,
        "rejected": row.texts.rejected,
        "origin_dataset": labels.origin,
        "origin_split": json.dumps({"model": labels.describer, "type": "region_description"}, ensure_ascii=False),
        "idx": row.pair.pair_id,
        "image_path": row.pair.file_name,
    }


def _open(folder: Path, labels: Labels, split: ExportSplit) -> Writer[ExportRow]:
    from datasets import Features, Image, Value

    features = Features(dict.fromkeys(FORMAT.columns, Value("string")) | {"image": Image()})
    return ParquetWriter(folder, features.arrow_schema, partial(to_row, labels), split)


FORMAT = Format(
    reader="RLAIF-V",
    # RLAIF-V's trainer reads bytes only.
    images=("embed",),
    placeholders=("<image>",),
    data_files="data/{split}-*.parquet",
    columns={
        "ds_name": "name of this dataset",
        "image": "the image: its bytes, and its file name as the path",
        "question": "the prompt",
        "chosen": "the best description, with corrected boxes",
        "rejected": "the worst description, as generated",
        "origin_dataset": "file name of the annotations",
        "origin_split": "JSON: the model that wrote both answers, and the type of the question",
        "idx": "the region query, `<image_id>/<n>`",
        "image_path": "the image file, as the annotations name it",
    },
    usage="""```python
from datasets import load_dataset

pairs = load_dataset("{out}", split="train")
```

RLAIF-V's own trainer loads a fixed dataset in `muffin/data/datasets.py`: replace its name by this folder.""",
    open=_open,
)
