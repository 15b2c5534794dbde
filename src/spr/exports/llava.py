"""LLaVA: conversations for fine-tuning on the chosen answers, and the keys of LLaVA-NeXT's preference data."""

from __future__ import annotations

from typing import Any

from spr.exports.formats import ExportRow, Format
from spr.exports.json_lines import JsonWriter


def to_row(row: ExportRow) -> dict[str, Any]:
    """LLaVA's fine-tuning reads the first three keys.

    LLaVA-NeXT's DPO reads ``image`` and the last four, and inserts ``<image>`` before the prompt itself.
    """
    texts = row.texts
    return {
        "id": row.pair.pair_id,
        "image": row.image.path,
        "conversations": [
            {"from": "human", "value": f"<image>\n{texts.prompt}"},
            {"from": "gpt", "value": texts.chosen},
        ],
        "prompt": texts.prompt,
        "answer": texts.chosen,
        "chosen": texts.chosen,
        "rejected": texts.rejected,
        "split": row.pair.split,
    }


FORMAT = Format(
    reader="LLaVA and LLaVA-NeXT",
    images=("copy", "path"),
    placeholders=("<image>",),
    data_files="{split}.json",
    columns={
        "id": "the region query, `<image_id>/<n>`",
        "image": "path of the image, relative to this folder (`--image_folder`) or absolute",
        "conversations": "the prompt, preceded by `<image>`, and the best description, with corrected boxes",
        "prompt": "the prompt, without `<image>`",
        "answer": "the same as `chosen`; LLaVA-NeXT's DPO counts its words",
        "chosen": "the best description, with corrected boxes",
        "rejected": "the worst description, as generated",
        "split": "`train`, or `holdout` in `test.json`; LLaVA ignores it",
    },
    usage="""```sh
python llava/train/train_mem.py --data_path {out}/train.json --image_folder {out} …
```

This is LLaVA's fine-tuning, on the chosen answers alone. The rows also have the keys of LLaVA-NeXT's preference data,
but its script `train_dpo.py` doesn't start: it imports `data_processing`, which the repository lacks
([LLaVA-NeXT, issue 333](https://github.com/LLaVA-VL/LLaVA-NeXT/issues/333)). For DPO, export to another format, such as
`spr export --format trl`.""",
    open=lambda folder, _, split: JsonWriter(folder / f"{split}.json", to_row, "list"),
)
