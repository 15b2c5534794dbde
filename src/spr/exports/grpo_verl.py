"""verl: the Parquet columns of its reinforcement learning, and a script that starts it.

The layout is that of `RLHFDataset` and the reward managers of verl 0.9.0 (``verl/utils/dataset/rl_dataset.py``,
``verl/experimental/reward_loop/reward_manager/naive.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spr.exports.formats import ExportSplit, Format, Labels, PromptRow, Writer
from spr.exports.image_limits import pixel_limits, prompt_tokens
from spr.exports.ms_swift import size_environment
from spr.exports.parquet import ParquetWriter
from spr.grounding import Dialect

SETTINGS = "train_grpo.sh"
DATA_SOURCE = "spr"


def to_row(row: PromptRow) -> dict[str, Any]:
    """A row with verl's columns; ``data_source`` tells the tasks apart in its logs."""
    prompt = row.prompt
    return {
        "data_source": f"{DATA_SOURCE}/{prompt.task}",
        "prompt": [{"role": "user", "content": f"<image>{prompt.text}"}],
        "images": [{"bytes": row.image.data, "path": row.image.path}],
        "ability": "grounding",
        "reward_model": {"style": "rule", "ground_truth": prompt.truth},
        "extra_info": {"query_id": prompt.query_id, "split": prompt.split, "task": prompt.task},
    }


def script(dialect: Dialect, *, held_out: bool) -> str:
    """The shell script that starts verl; its arguments are further overrides of verl's config.

    qwen-vl-utils resizes images first, by the environment, and then the model's processor, by the overrides.
    """
    limits = pixel_limits(dialect)
    environment = "".join(f"export {name}={value}\n" for name, value in size_environment(dialect).items())
    validation = "test" if held_out else "train"  # verl needs a file
    overrides = [
        "algorithm.adv_estimator=grpo",
        "\"data.train_files='$here/data/train-*.parquet'\"",
        f"\"data.val_files='$here/data/{validation}-*.parquet'\"",
        f"data.max_prompt_length={prompt_tokens(dialect)}",
    ]
    if limits:
        # In spite of their names, these are areas.
        size = f"{{shortest_edge:{limits['min_pixels']},longest_edge:{limits['max_pixels']}}}"
        overrides.append(f"'+data.mm_processor_kwargs.size={size}'")
    if dialect.special_tokens is not None:  # they carry the boxes, and verl's own managers remove them
        manager = {"source": "importlib", "name": "RewardManager", "module.path": "pkg://spr.rewards.verl"}
        overrides += [f"reward.reward_manager.{name}={value}" for name, value in manager.items()]
    command = " \\\n    ".join(["exec python3 -m verl.trainer.main_ppo", *overrides, '"$@"'])
    return f'#!/bin/sh\nset -e\nhere=$(cd "$(dirname "$0")" && pwd)\n{environment}{command}\n'


def _open(folder: Path, labels: Labels, split: ExportSplit) -> Writer[PromptRow]:
    from datasets import Features, Image, Value

    text = Value("string")
    features = Features(
        {
            "data_source": text,
            "prompt": [{"role": text, "content": text}],
            "images": [Image()],
            "ability": text,
            "reward_model": {"style": text, "ground_truth": text},
            "extra_info": dict.fromkeys(("query_id", "split", "task"), text),
        }
    )
    (folder / SETTINGS).write_text(script(labels.dialect, held_out=split == "test"), encoding="utf-8")
    return ParquetWriter(folder, features.arrow_schema, to_row, split)


FORMAT = Format(
    reader="verl",
    images=("embed", "path"),
    placeholders=("<image>", "<video>", "<audio>"),
    data_files="data/{split}-*.parquet",
    columns={
        "data_source": "`spr/` and the task: `describe`, `detect`, `locate` or `absent`",
        "prompt": "the user's turn, in which `<image>` stands for the image",
        "images": "a list with the image",
        "ability": "`grounding`",
        "reward_model": "`ground_truth`: what an answer should place, as JSON, which the rewards of `spr.rewards.verl` "
        "read; `style`: `rule`",
        "extra_info": "`query_id`: the region query, `<image_id>/<n>`, or the question, `<image_id>/<task>-<n>`; "
        "`split`: `train` or `holdout`; `task`",
    },
    usage=f"""```sh
sh {{out}}/{SETTINGS} actor_rollout_ref.model.path=… \\
    reward.custom_reward_function.path=pkg://spr.rewards.verl reward.custom_reward_function.name=f1
```

`{SETTINGS}` names the files, and sets the limits of the image size that the boxes need.""",
    open=_open,
    rows="prompts",
)
