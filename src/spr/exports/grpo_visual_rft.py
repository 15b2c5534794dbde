"""Visual-RFT: a `DatasetDict` on disk with ``image``, ``problem`` and ``solution``, and a config for its script.

The layout is that of ``src/virft/src/open_r1/grpo.py`` of github.com/Liuziyu77/Visual-RFT (commit 9486633).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spr.exports.formats import ExportSplit, Format, Labels, PromptRow, Writer
from spr.exports.image_limits import pixel_limits
from spr.exports.saved_dataset import SavedDatasetWriter
from spr.grounding import Dialect

SETTINGS = "train_grpo.yaml"


def to_row(row: PromptRow) -> dict[str, Any]:
    """A row; the image goes before the problem."""
    return {
        "image": {"bytes": row.image.data, "path": row.image.path},
        "problem": row.prompt.text,
        "solution": row.prompt.truth,
        "query_id": row.prompt.query_id,
        "task": row.prompt.task,
    }


def settings(dialect: Dialect) -> str:
    """The YAML file for the script's ``--config``."""
    return yaml.safe_dump({"num_generations": 8, **pixel_limits(dialect)}, sort_keys=False)


def _open(folder: Path, labels: Labels, split: ExportSplit) -> Writer[PromptRow]:
    from datasets import Features, Image, Value

    features = Features(dict.fromkeys(FORMAT.columns, Value("string")) | {"image": Image()})
    (folder / SETTINGS).write_text(settings(labels.dialect), encoding="utf-8")
    return SavedDatasetWriter(folder, features, to_row, split)


FORMAT = Format(
    reader="Visual-RFT",
    images=("embed", "path"),
    placeholders=("<image>",),
    data_files="{split}/data-*.arrow",
    columns={
        "image": "the image",
        "problem": "the prompt",
        "solution": "what an answer should place, as JSON; the rewards of `spr.rewards.vlm_r1` read this column",
        "query_id": "the region query, `<image_id>/<n>`, or the question, `<image_id>/<task>-<n>`",
        "task": "`describe`, `detect`, `locate` or `absent`",
    },
    usage=f"""```python
# src/open_r1/grpo_spr.py, beside grpo.py, whose `main` adds up these three
import grpo as trainer
from spr.rewards.vlm_r1 import f1, format, iou

trainer.reward_funcs_registry.update(accuracy_iou=iou, accuracy_confidence=f1, format=format)
parser = trainer.TrlParser((trainer.GRPOScriptArguments, trainer.GRPOConfig, trainer.ModelConfig))
trainer.main(*parser.parse_args_and_config())
```

```sh
torchrun src/open_r1/grpo_spr.py --config {{out}}/{SETTINGS} --dataset_name {{out}} \\
    --model_name_or_path … --output_dir …
```

Raise `--max_prompt_length` from its default of 512 tokens, after which the script cuts prompts, with their images.
`{SETTINGS}` sets the limits of the image size.""",
    open=_open,
    rows="prompts",
)
