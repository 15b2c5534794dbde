"""LLaMA-Factory: ShareGPT conversations with ranking, and the entry for its `dataset_info.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spr.exports.json_lines import JsonWriter
from spr.exports.rows import ExportRow, Format, Labels, Writer

DATASET = "spr_pairs"
"""The data set's name for `--dataset`."""


def to_row(row: ExportRow) -> dict[str, Any]:
    """A row of ``conversations`` that end with the user's turn, ``chosen``, ``rejected`` and ``images``."""
    return {
        "conversations": [{"from": "human", "value": f"<image>{row.texts.prompt}"}],
        "chosen": {"from": "gpt", "value": row.texts.chosen},
        "rejected": {"from": "gpt", "value": row.texts.rejected},
        "images": [row.image.path],
        "query_id": row.pair.query_id,
    }


def dataset_info() -> dict[str, Any]:
    """The entry that tells LLaMA-Factory how to read the file."""
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    entry = {"file_name": "train.jsonl", "formatting": "sharegpt", "ranking": True, "columns": columns}
    return {DATASET: entry}


def _open(folder: Path, _: Labels) -> Writer:
    (folder / "dataset_info.json").write_text(json.dumps(dataset_info(), indent=2) + "\n", encoding="utf-8")
    return JsonWriter(folder / "train.jsonl", to_row)


FORMAT = Format(
    key="llamafactory",
    reader="LLaMA-Factory",
    images=("copy", "path"),
    placeholders=("<image>", "<video>", "<audio>"),
    data_files="train.jsonl",
    columns={
        "conversations": "the user's turn; `<image>` stands for the image",
        "chosen": "the best description, its boxes corrected",
        "rejected": "the worst description, as generated",
        "images": "a list of the one image's path, relative to this folder or absolute",
        "query_id": "the region query, `<image_id>/<n>`; LLaMA-Factory leaves it out",
    },
    usage=f"""```sh
llamafactory-cli train --stage dpo --pref_beta 0.1 --dataset_dir {{out}} --dataset {DATASET} …
```

To train on it beside other data, copy the entry in `dataset_info.json` into your own and set its `file_name`.""",
    open=_open,
)
