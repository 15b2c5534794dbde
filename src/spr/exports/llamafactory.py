"""LLaMA-Factory: ShareGPT conversations with ranking, and an entry for `dataset_info.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spr.exports.formats import ExportRow, Format, Labels, Writer
from spr.exports.json_lines import JsonWriter

DATASET = "spr_pairs"  # for LLaMA-Factory's --dataset


def to_row(row: ExportRow) -> dict[str, Any]:
    """A ShareGPT row, whose ``conversations`` hold only the user's turn."""
    return {
        "conversations": [{"from": "human", "value": f"<image>{row.texts.prompt}"}],
        "chosen": {"from": "gpt", "value": row.texts.chosen},
        "rejected": {"from": "gpt", "value": row.texts.rejected},
        "images": [row.image.path],
        "query_id": row.pair.query_id,
    }


def _open(folder: Path, _: Labels) -> Writer:
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    entry = {"file_name": "train.jsonl", "formatting": "sharegpt", "ranking": True, "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps({DATASET: entry}, indent=2) + "\n", encoding="utf-8")
    return JsonWriter(folder / "train.jsonl", to_row)


FORMAT = Format(
    reader="LLaMA-Factory",
    images=("copy", "path"),
    placeholders=("<image>", "<video>", "<audio>"),
    data_files="train.jsonl",
    columns={
        "conversations": "the user's turn; `<image>` stands for the image",
        "chosen": "the best description, with corrected boxes",
        "rejected": "the worst description, as generated",
        "images": "a list with the path of the image, relative to this folder or absolute",
        "query_id": "the region query, `<image_id>/<n>`; LLaMA-Factory ignores it",
    },
    usage=f"""```sh
llamafactory-cli train --stage dpo --pref_beta 0.1 --dataset_dir {{out}} --dataset {DATASET} …
```

To mix it with other data, copy the entry of `dataset_info.json` into your own file and adjust its `file_name`.""",
    open=_open,
)
