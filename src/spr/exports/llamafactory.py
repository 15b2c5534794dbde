"""LLaMA-Factory: ShareGPT conversations with ranking, and an entry for `dataset_info.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from spr.core.images import MAX_PIXELS
from spr.exports.formats import ExportRow, ExportSplit, Format, Labels, Writer
from spr.exports.image_limits import TOKEN_PIXELS, pixel_limits
from spr.exports.json_lines import JsonWriter
from spr.grounding import Dialect

DATASET = "spr_pairs"  # for LLaMA-Factory's --dataset
HELD_OUT = "spr_pairs_test"  # for its --eval_dataset
SETTINGS = "train_dpo.yaml"
_TEXT_TOKENS = 4096  # room for the texts of a pair, beside its image


def to_row(row: ExportRow) -> dict[str, Any]:
    """A ShareGPT row, whose ``conversations`` hold only the user's turn."""
    return {
        "conversations": [{"from": "human", "value": f"<image>{row.texts.prompt}"}],
        "chosen": {"from": "gpt", "value": row.texts.chosen},
        "rejected": {"from": "gpt", "value": row.texts.rejected},
        "images": [row.image.path],
        "query_id": row.pair.query_id,
    }


def settings(dialect: Dialect) -> str:
    """The YAML file for ``llamafactory-cli train``.

    LLaMA-Factory resizes an image of more than ``image_max_pixels`` (768 × 768 by default) before the model's processor
    does, and each rounds in its own way. So only the processor may, if numbers are pixels of its output. Its default
    ``cutoff_len`` of 2,048 tokens would then cut the prompt within the image.
    """
    options = {"stage": "dpo", "do_train": True, "finetuning_type": "lora", "pref_beta": 0.1, "dataset": DATASET}
    if not (limits := pixel_limits(dialect)):
        return yaml.safe_dump(options, sort_keys=False)
    options["cutoff_len"] = limits["max_pixels"] // TOKEN_PIXELS + _TEXT_TOKENS
    note = "".join(f"#   {name}: {value}\n" for name, value in limits.items())
    return (
        yaml.safe_dump({**options, "image_max_pixels": MAX_PIXELS, "image_min_pixels": 1}, sort_keys=False)
        + "# With these limits, only the model's processor resizes images. Boxes fit if preprocessor_config.json in\n"
        f"# the model's folder has these values, which LLaMA-Factory can't set:\n{note}"
    )


def _open(folder: Path, labels: Labels, split: ExportSplit) -> Writer[ExportRow]:
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    entry = {"formatting": "sharegpt", "ranking": True, "columns": columns}
    names = {DATASET: "train"} if split == "train" else {DATASET: "train", HELD_OUT: "test"}
    info = {name: {"file_name": f"{part}.jsonl", **entry} for name, part in names.items()}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    (folder / SETTINGS).write_text(settings(labels.dialect), encoding="utf-8")
    return JsonWriter(folder / f"{split}.jsonl", to_row)


FORMAT = Format(
    reader="LLaMA-Factory",
    images=("copy", "path"),
    placeholders=("<image>", "<video>", "<audio>"),
    data_files="{split}.jsonl",
    columns={
        "conversations": "the user's turn; `<image>` stands for the image",
        "chosen": "the best description, with corrected boxes",
        "rejected": "the worst description, as generated",
        "images": "a list with the path of the image, relative to this folder or absolute",
        "query_id": "the region query, `<image_id>/<n>`; LLaMA-Factory ignores it",
    },
    usage=f"""```sh
llamafactory-cli train {{out}}/{SETTINGS} dataset_dir={{out}} model_name_or_path=… template=… output_dir=…
```

`{SETTINGS}` keeps LLaMA-Factory from resizing images to its own default limits where that would move boxes.
To mix it with other data, copy the entry of `dataset_info.json` into your own file and adjust its `file_name`.""",
    open=_open,
)
