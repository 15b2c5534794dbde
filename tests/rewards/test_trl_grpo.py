"""TRL's GRPOTrainer trains the embedded describer with spatial rewards, on rows that `spr export` writes."""

import json
import warnings

import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from peft import LoraConfig
from safetensors.torch import load_file
from trl import GRPOConfig, GRPOTrainer
from typer.testing import CliRunner

import spr.rewards.trl
from spr.cli import app
from spr.config import load_config
from spr.embedded.scenes import write_scenes
from spr.models.loading import model_source
from spr.pipeline import runner
from spr.rewards import Truth, get_reward

SUM = "0.6*f1@0.5:0.9/4 + 0.3*iou + 0.1*format"
STEPS, BATCH, GROUP = 3, 8, 4


def spr_command(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight scenes, a run of their regions, and its rows for GRPO."""
    folder = tmp_path_factory.mktemp("grpo")
    write_scenes(folder / "scenes", 8, 11)
    paths = {"path": folder / "scenes" / "instances.json", "images": folder / "scenes" / "images"}
    changes = [f"annotations.{name}={json.dumps(str(path))}" for name, path in paths.items()]
    config = load_config("quickstart", [*changes, "annotations.crowds=drop", "annotations.holdout=0"])
    runner.run(config, folder / "run", until="regions")
    spr_command("export", folder / "run", "--format", "grpo-trl", "--out", folder / "rows")
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return load_dataset(str(folder / "rows"), split="train", cache_dir=str(folder / "cache"))


@pytest.fixture(scope="module")
def log(folder, rows):
    """The log of a finished training of a few steps with two rewards; each step's completions are in a file."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = GRPOTrainer(
            model=str(model_source("embedded/describer")),
            reward_funcs=[spr.rewards.trl.f1, spr.rewards.trl.make(SUM, name="sum")],
            args=GRPOConfig(
                output_dir=str(folder / "trl"),
                per_device_train_batch_size=BATCH,
                num_generations=GROUP,
                max_steps=STEPS,
                max_completion_length=100,
                learning_rate=1e-3,
                reward_weights=[0.5, 1.0],
                log_completions=True,
                num_completions_to_print=0,
                logging_steps=1,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=rows,
            peft_config=LoraConfig(r=8, target_modules=r"model\.language_model\..*\.[qv]_proj"),
        )
        trainer.train()
        trainer.save_model(str(folder / "adapter"))
    return [line for line in trainer.state.log_history if "reward" in line]


def test_logged_rewards_are_those_of_the_logged_completions(log, folder, rows):
    def text(prompt):
        return prompt[0]["content"][1]["text"]

    truths = {text(row["prompt"]): Truth.from_json(row["truth"]) for row in rows}
    assert len(truths) == len(rows) == 8
    assert all(truth.objects for truth in truths.values())
    rewards = {"f1": get_reward("f1"), "sum": get_reward(SUM)}
    assert len(log) == STEPS
    different = set()
    for step, line in enumerate(log):
        table = pq.read_table(folder / "trl" / "completions" / f"completions_{step + 1:05d}.parquet").to_pylist()
        assert len(table) == BATCH
        for name, reward in rewards.items():
            expected = []
            for row in table:
                truth = truths[text(row["prompt"])]
                # TRL has done `step` optimizer steps when it asks for these rewards.
                expected.append(reward(truth.read(row["completion"][0]["content"], step=step), truth))
            assert [row[name] for row in table] == pytest.approx(expected, abs=1e-6)
            assert line[f"rewards/{name}/mean"] == pytest.approx(sum(expected) / BATCH, abs=1e-6)
            different |= {round(value, 6) for value in expected}
    assert len(different) > 10  # neither all 0 nor all 1


@pytest.mark.usefixtures("log")
def test_the_trained_adapter_changes_the_model_and_serves_spr_evaluate(folder):
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    raised = [value.abs().max().item() for name, value in weights.items() if "lora_B" in name]
    assert len(raised) == 8
    assert min(raised) > 0  # LoRA's B is zero before training
    spr_command(
        *("evaluate", "description", "--annotations", folder / "run", "--images", folder / "scenes" / "images"),
        *("--model", "embedded/describer", "--adapter", folder / "adapter", "--out", folder / "result.json"),
    )
    assert json.loads((folder / "result.json").read_text())["n"] == 8
