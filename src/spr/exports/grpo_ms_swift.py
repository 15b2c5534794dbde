"""ms-swift: messages that end with the user's turn; the reward gets the other columns by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spr.exports.formats import ExportSplit, Format, Labels, PromptRow, Writer
from spr.exports.json_lines import JsonWriter
from spr.exports.ms_swift import PLACEHOLDERS, size_environment
from spr.grounding import Dialect

SETTINGS = "train_grpo.yaml"


def to_row(row: PromptRow) -> dict[str, Any]:
    """A row without the keys ``objects`` and ``solution``, which ms-swift would treat in its own way."""
    return {
        "messages": [{"role": "user", "content": f"<image>{row.prompt.text}"}],
        "images": [row.image.path],
        "truth": row.prompt.truth,
        "query_id": row.prompt.query_id,
        "task": row.prompt.task,
    }


def settings(dialect: Dialect) -> str:
    """The YAML file for ``swift rlhf``."""
    options = {"ENV": size_environment(dialect), "rlhf_type": "grpo", "num_generations": 8}
    return yaml.safe_dump(options, sort_keys=False)


def _open(folder: Path, labels: Labels, split: ExportSplit) -> Writer[PromptRow]:
    (folder / SETTINGS).write_text(settings(labels.dialect), encoding="utf-8")
    return JsonWriter(folder / f"{split}.jsonl", to_row)


FORMAT = Format(
    reader="ms-swift (GRPO)",
    images=("copy", "path"),
    placeholders=PLACEHOLDERS,
    data_files="{split}.jsonl",
    columns={
        "messages": "the user's turn, in which `<image>` stands for the image",
        "images": "a list with the path of the image, relative to this folder (`ROOT_IMAGE_DIR`) or absolute",
        "truth": "what an answer should place, as JSON; the rewards of `spr.rewards.ms_swift` read this column",
        "query_id": "the region query, `<image_id>/<n>`, or the question, `<image_id>/<task>-<n>`",
        "task": "`describe`, `detect`, `locate` or `absent`",
    },
    usage=f"""```python
# plugin.py
from swift.rewards import orms
from spr.rewards.ms_swift import make

orms["spr"] = make("0.8*f1@0.75 + 0.2*format", name="spr")
```

```sh
ROOT_IMAGE_DIR={{out}} swift rlhf {{out}}/{SETTINGS} --dataset {{out}}/train.jsonl --model … \\
    --external_plugins plugin.py --reward_funcs spr
```

`{SETTINGS}` sets the limits of the image size, unless the environment has others.""",
    open=_open,
    rows="prompts",
)
