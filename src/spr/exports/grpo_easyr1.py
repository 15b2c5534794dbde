"""EasyR1: Parquet with ``problem``, ``images`` and ``answer``, and a config for it.

The layout is that of ``verl/utils/dataset.py`` of github.com/hiyouga/EasyR1 (commit b44b311).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spr.exports.formats import ExportSplit, Format, Labels, PromptRow, Writer
from spr.exports.image_limits import pixel_limits, prompt_tokens
from spr.exports.parquet import ParquetWriter
from spr.grounding import Dialect

SETTINGS = "train_grpo.yaml"


def to_row(row: PromptRow) -> dict[str, Any]:
    """A row; the reward gets ``answer`` as the ground truth."""
    return {
        "problem": f"<image>{row.prompt.text}",
        "images": [{"bytes": row.image.data, "path": row.image.path}],
        "answer": row.prompt.truth,
        "query_id": row.prompt.query_id,
        "task": row.prompt.task,
    }


def settings(dialect: Dialect) -> str:
    """The YAML file for ``python3 -m verl.trainer.main config=…``.

    EasyR1 resizes an image to its own limits before the model's processor does, and each rounds in its own way; so
    only the processor may, if numbers are pixels of its output.
    """
    data: dict[str, Any] = {"prompt_key": "problem", "answer_key": "answer", "image_key": "images"}
    data["max_prompt_length"] = prompt_tokens(dialect)
    limits = pixel_limits(dialect)
    data |= dict.fromkeys(limits)
    options: dict[str, Any] = {"data": data, "algorithm": {"adv_estimator": "grpo"}}
    if dialect.special_tokens is not None:
        options["worker"] = {"reward": {"skip_special_tokens": False}}  # they carry the boxes
    text = yaml.safe_dump(options, sort_keys=False)
    if not limits:
        return text
    note = "".join(f"#   {name}: {value}\n" for name, value in limits.items())
    return (
        f"{text}# Only the model's processor resizes images. Boxes fit if preprocessor_config.json in the model's\n"
        f"# folder has these values, which EasyR1 can't set:\n{note}"
    )


def _open(folder: Path, labels: Labels, split: ExportSplit) -> Writer[PromptRow]:
    from datasets import Features, Image, Value

    text = Value("string")
    features = Features({"problem": text, "images": [Image()], **dict.fromkeys(("answer", "query_id", "task"), text)})
    (folder / SETTINGS).write_text(settings(labels.dialect), encoding="utf-8")
    return ParquetWriter(folder, features.arrow_schema, to_row, split)


FORMAT = Format(
    reader="EasyR1",
    images=("embed", "path"),
    placeholders=("<image>", "<video>"),
    data_files="data/{split}-*.parquet",
    columns={
        "problem": "the prompt; `<image>` stands for the image",
        "images": "a list with the image",
        "answer": "what an answer should place, as JSON; the rewards of `spr.rewards.easyr1` read it as `ground_truth`",
        "query_id": "the region query, `<image_id>/<n>`, or the question, `<image_id>/<task>-<n>`",
        "task": "`describe`, `detect`, `locate` or `absent`",
    },
    usage=f"""```python
# reward_easyr1.py
from spr.rewards.easyr1 import make

REWARD_NAME, REWARD_TYPE = "spr", "batch"
compute_score = make("0.8*f1@0.75 + 0.2*format")
```

```sh
python3 -m verl.trainer.main config={{out}}/{SETTINGS} worker.actor.model.model_path=… \\
    data.train_files={{out}}/data@train data.val_files={{out}}/data@test \\
    worker.reward.reward_function=./reward_easyr1.py:compute_score
```

Without held-out images, there is no split `test`: give another `data.val_files`. `{SETTINGS}` names the columns, and
keeps EasyR1 from resizing images to its own limits where that would move boxes.""",
    open=_open,
    rows="prompts",
)
