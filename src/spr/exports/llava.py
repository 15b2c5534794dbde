"""LLaVA: conversations for fine-tuning on the chosen answers, with the keys that its DPO forks read beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spr.exports.json_lines import JsonWriter
from spr.exports.rows import ExportRow, Format, Labels, Writer


def to_row(row: ExportRow) -> dict[str, Any]:
    """A row of ``id``, ``image``, ``conversations``, and ``prompt``, ``answer``, ``chosen``, ``rejected``.

    LLaVA's fine-tuning reads the first three. LLaVA-NeXT's DPO reads ``image`` and the last four, and puts the image's
    place before the prompt itself.
    """
    texts = row.texts
    return {
        "id": row.pair.query_id,
        "image": row.image.path,
        "conversations": [
            {"from": "human", "value": f"<image>\n{texts.prompt}"},
            {"from": "gpt", "value": texts.chosen},
        ],
        "prompt": texts.prompt,
        "answer": texts.chosen,
        "chosen": texts.chosen,
        "rejected": texts.rejected,
    }


def _open(folder: Path, _: Labels) -> Writer:
    return JsonWriter(folder / "train.json", to_row, "list")


FORMAT = Format(
    key="llava",
    reader="LLaVA and LLaVA-NeXT",
    images=("copy", "path"),
    placeholders=("<image>",),
    data_files="train.json",
    columns={
        "id": "the region query, `<image_id>/<n>`",
        "image": "the image's path, relative to this folder (`--image_folder`) or absolute",
        "conversations": "what is asked, with `<image>` first, and the best description, its boxes corrected",
        "prompt": "what is asked, without `<image>`",
        "answer": "the same as chosen; LLaVA-NeXT's DPO counts its words",
        "chosen": "the best description, its boxes corrected",
        "rejected": "the worst description, as generated",
    },
    usage="""```sh
python llava/train/train_mem.py --data_path {out}/train.json --image_folder {out} …   # fine-tuning on chosen
python llava/train/train_dpo.py --data_path {out}/train.json --image_folder {out} --dpo_alpha 1.0 --beta 0.1 …
```

The first is LLaVA's fine-tuning, on the chosen answers alone; the second LLaVA-NeXT's DPO.""",
    open=_open,
)
