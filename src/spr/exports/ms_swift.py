"""ms-swift: messages with a rejected response; boxes are literal coordinates in the texts."""

from __future__ import annotations

from typing import Any

from spr.exports.formats import ExportRow, Format
from spr.exports.json_lines import JsonWriter


def to_row(row: ExportRow) -> dict[str, Any]:
    """A row without the key ``objects``, with which ms-swift would write the boxes again in each model's format."""
    return {
        "messages": [
            {"role": "user", "content": f"<image>{row.texts.prompt}"},
            {"role": "assistant", "content": row.texts.chosen},
        ],
        "rejected_response": row.texts.rejected,
        "images": [row.image.path],
    }


FORMAT = Format(
    reader="ms-swift",
    images=("copy", "path"),
    placeholders=("<image>", "<video>", "<audio>", "<bbox>", "<ref-object>", "<cot-process>", "<start-image>"),
    data_files="train.jsonl",
    columns={
        "messages": "the user's turn, in which `<image>` stands for the image, and the best description, with "
        "corrected boxes",
        "rejected_response": "the worst description, as generated",
        "images": "a list with the path of the image, relative to this folder (`ROOT_IMAGE_DIR`) or absolute",
    },
    usage="""```sh
ROOT_IMAGE_DIR={out} swift rlhf --rlhf_type dpo --beta 0.1 --dataset {out}/train.jsonl …
```""",
    open=lambda folder, _: JsonWriter(folder / "train.jsonl", to_row),
)
