"""TRL: the conversations that `GRPOTrainer` and `RLOOTrainer` take for vision-language models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spr.exports.formats import ExportSplit, Format, Labels, PromptRow, Writer
from spr.exports.image_limits import pixel_limits
from spr.exports.parquet import ParquetWriter

SETTINGS = "processor.json"
_COPIED = ("query_id", "image_id", "file_name", "width", "height", "region", "split", "task")


def to_row(row: PromptRow) -> dict[str, Any]:
    """A row whose prompt places the image before the text, as the pipeline did."""
    content = [{"type": "image", "text": None}, {"type": "text", "text": row.prompt.text}]
    return {
        "images": [{"bytes": row.image.data, "path": row.image.path}],
        "prompt": [{"role": "user", "content": content}],
        "truth": row.prompt.truth,
        **{name: getattr(row.prompt, name) for name in _COPIED},
    }


def _open(folder: Path, labels: Labels, split: ExportSplit) -> Writer[PromptRow]:
    from datasets import Features, Image, Value

    text = Value("string")
    features = Features(
        {
            "images": [Image()],
            "prompt": [{"role": text, "content": [{"type": text, "text": text}]}],
            **dict.fromkeys(("truth", "query_id", "image_id", "file_name"), text),
            **dict.fromkeys(("width", "height"), Value("int32")),
            "region": [Value("float32")],
            **dict.fromkeys(("split", "task"), text),
        }
    )
    (folder / SETTINGS).write_text(json.dumps(pixel_limits(labels.dialect)) + "\n", encoding="utf-8")
    return ParquetWriter(folder, features.arrow_schema, to_row, split)


FORMAT = Format(
    reader="TRL's GRPOTrainer and RLOOTrainer",
    images=("embed", "path"),
    placeholders=("<image>",),
    data_files="data/{split}-*.parquet",
    columns={
        "images": "a list with the image",
        "prompt": "the user's turn: the image and the prompt",
        "truth": "what an answer should place, as JSON; the rewards of `spr.rewards.trl` read this column",
        "query_id": "the region query, `<image_id>/<n>`, or the question, `<image_id>/<task>-<n>`",
        "image_id": "the image's id in the annotations",
        "file_name": "the image file, as the annotations name it",
        "width": "width of the image, in pixels",
        "height": "height of the image, in pixels",
        "region": "the region of the prompt: x1, y1, x2, y2 in pixels of the image; null for a question",
        "split": "`train`, or `holdout` in the split `test`",
        "task": "`describe`, `detect`, `locate` or `absent`",
    },
    usage="""```python
import json

from datasets import load_dataset
from transformers import AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from spr.rewards.trl import make

prompts = load_dataset("{out}", split="train")
with open("{out}/processor.json") as limits:  # limits of the image size that the boxes need; {} if they need none
    processor = AutoProcessor.from_pretrained(MODEL, **json.load(limits))
reward = make("0.8*f1@0.75 + 0.2*format", tokenizer=processor.tokenizer)
arguments = GRPOConfig(output_dir="grpo", num_generations=8, per_device_train_batch_size=8)
GRPOTrainer(
    model=MODEL, reward_funcs=reward, args=arguments, train_dataset=prompts, processing_class=processor
).train()
```""",
    open=_open,
    rows="prompts",
    decodes=True,
)
