"""VLM-R1: JSON Lines with a conversation whose second turn is the solution, and a config for its script.

The layout is that of ``src/open-r1-multimodal/src/open_r1/grpo_jsonl.py`` of github.com/om-ai-lab/VLM-R1 (commit
90052f4), which puts the second turn between ``<answer>`` tags and passes it to the reward as ``solution``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spr.exports.formats import ExportSplit, Format, Labels, PromptRow, Writer
from spr.exports.image_limits import pixel_limits
from spr.exports.json_lines import JsonWriter
from spr.grounding import Dialect

SETTINGS = "train_grpo.yaml"


def to_row(row: PromptRow) -> dict[str, Any]:
    """A row with VLM-R1's keys; the other ones reach the reward, too."""
    return {
        "id": row.prompt.query_id,
        "image": row.image.path,
        "conversations": [
            {"from": "human", "value": f"<image>{row.prompt.text}"},
            {"from": "gpt", "value": row.prompt.truth},
        ],
        "task": row.prompt.task,
    }


def settings(dialect: Dialect) -> str:
    """The YAML file for the script's ``--config``; it also needs the name of a dataset, which it does not use."""
    return yaml.safe_dump({"dataset_name": "not_used", "num_generations": 8, **pixel_limits(dialect)}, sort_keys=False)


def _open(folder: Path, labels: Labels, split: ExportSplit) -> Writer[PromptRow]:
    (folder / SETTINGS).write_text(settings(labels.dialect), encoding="utf-8")
    return JsonWriter(folder / f"{split}.jsonl", to_row)


FORMAT = Format(
    reader="VLM-R1",
    images=("copy", "path"),
    placeholders=("<image>",),
    data_files="{split}.jsonl",
    columns={
        "id": "the region query, `<image_id>/<n>`, or the question, `<image_id>/<task>-<n>`",
        "image": "path of the image, relative to this folder (`--image_folders`) or absolute",
        "conversations": "the prompt, preceded by `<image>`, and what an answer should place, as JSON, which the "
        "rewards of `spr.rewards.vlm_r1` read as `solution`",
        "task": "`describe`, `detect`, `locate` or `absent`",
    },
    usage=f"""```python
# src/open_r1/grpo_spr.py, beside grpo_jsonl.py
import grpo_jsonl as trainer
from spr.rewards.vlm_r1 import make

trainer.reward_funcs_registry["spr"] = make("0.8*f1@0.75 + 0.2*format")
parser = trainer.TrlParser((trainer.GRPOScriptArguments, trainer.GRPOConfig, trainer.GRPOModelConfig))
trainer.main(*parser.parse_args_and_config())
```

```sh
torchrun src/open_r1/grpo_spr.py --config {{out}}/{SETTINGS} --data_file_paths {{out}}/train.jsonl \\
    --image_folders {{out}} --reward_funcs spr --model_name_or_path … --output_dir …
```

VLM-R1 asks for reasoning after each prompt. `{SETTINGS}` sets the limits of the image size.""",
    open=_open,
    rows="prompts",
)
