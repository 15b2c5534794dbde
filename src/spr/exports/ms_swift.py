"""ms-swift: messages with a rejected response; boxes are literal coordinates in the texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spr.exports.formats import ExportRow, ExportSplit, Format, Labels, Writer
from spr.exports.image_limits import TOKEN_PIXELS, pixel_limits
from spr.exports.json_lines import JsonWriter
from spr.grounding import Dialect

SETTINGS = "train_dpo.yaml"
PLACEHOLDERS = ("<image>", "<video>", "<audio>", "<bbox>", "<ref-object>", "<cot-process>", "<start-image>")


def to_row(row: ExportRow) -> dict[str, Any]:
    """A row without the key ``objects``, with which ms-swift would write the boxes again in each model's format."""
    return {
        "messages": [
            {"role": "user", "content": f"<image>{row.texts.prompt}"},
            {"role": "assistant", "content": row.texts.chosen},
        ],
        "rejected_response": row.texts.rejected,
        "images": [row.image.path],
        "query_id": row.pair.query_id,
    }


def size_environment(dialect: Dialect) -> dict[str, int]:
    """Environment variables with the limits of the image size, for qwen-vl-utils before and from 0.0.14 on."""
    if not (limits := pixel_limits(dialect)):
        return {}
    least, most = limits["min_pixels"], limits["max_pixels"]
    tokens = {"IMAGE_MIN_TOKEN_NUM": -(-least // TOKEN_PIXELS), "IMAGE_MAX_TOKEN_NUM": most // TOKEN_PIXELS}
    return {"MIN_PIXELS": least, "MAX_PIXELS": most, **tokens}


def settings(dialect: Dialect) -> str:
    """The YAML file for ``swift rlhf``; ``ENV`` holds the `size_environment`."""
    return yaml.safe_dump({"ENV": size_environment(dialect), "rlhf_type": "dpo", "beta": 0.1}, sort_keys=False)


def _open(folder: Path, labels: Labels, split: ExportSplit) -> Writer[ExportRow]:
    (folder / SETTINGS).write_text(settings(labels.dialect), encoding="utf-8")
    return JsonWriter(folder / f"{split}.jsonl", to_row)


FORMAT = Format(
    reader="ms-swift",
    images=("copy", "path"),
    placeholders=PLACEHOLDERS,
    data_files="{split}.jsonl",
    columns={
        "messages": "the user's turn, in which `<image>` stands for the image, and the best description, with "
        "corrected boxes",
        "rejected_response": "the worst description, as generated",
        "images": "a list with the path of the image, relative to this folder (`ROOT_IMAGE_DIR`) or absolute",
        "query_id": "the region query, `<image_id>/<n>`; ms-swift ignores it",
    },
    usage=f"""```sh
ROOT_IMAGE_DIR={{out}} swift rlhf {{out}}/{SETTINGS} --dataset {{out}}/train.jsonl --model …
```

`{SETTINGS}` sets the limits of the image size, unless the environment has others.""",
    open=_open,
)
