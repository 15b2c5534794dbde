"""Two processes on gloo, with whole and with sharded weights: interrupted, resumed, and equal to one process."""

import dataclasses
import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file

import warm_python
from spr.training.pairs import trl_pairs
from spr.training.trainer import train

pytestmark = pytest.mark.processes

# Both processes: whole weights (DDP) and sharded ones (FSDP2), each undisturbed and with a stop behind the second step,
# and with batches of four pairs beside batches of two.
# Accelerate shards on accelerators alone; that this is a CPU is kept from it.
SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate import Accelerator, state
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor
from spr.config import TrainingConfig
from spr.training.checkpoint import TrainingState
from spr.training.pairs import trl_pairs
from spr.training.trainer import train
model, pairs, out, settings = sys.argv[1:5]
pairs, out, settings = list(trl_pairs(Path(pairs))), Path(out), TrainingConfig(**json.loads(settings))
pairs += [dataclasses.replace(pair, split="holdout") for pair in pairs[:3]]

class Watching(Accelerator):
    def prepare(self, model, optimizer):
        model, optimizer = super().prepare(model, optimizer)
        sharded = sum(isinstance(p, DTensor) for p in model.parameters())
        with (out / f"kinds-{self.process_index}.txt").open("a") as file:
            print(self.distributed_type.value, self.num_processes, sharded > 0, file=file)
        return model, optimizer

class Sharding(Watching):
    def __init__(self, cpu, **options):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Qwen2DecoderLayer", "SiglipEncoderLayer"],
        )
        state.PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
        state.PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
        super().__init__(fsdp_plugin=plugin, **options)

class Stopped(Exception):
    pass

def twice(name, accelerator):
    def run(settings, folder):
        train(pairs, model, settings, out / folder, seed=3, accelerator=accelerator(cpu=True))
    run(settings, name)
    save = TrainingState.save
    def save_then_stop(self, folder, step, *arguments):
        path = save(self, folder, step, *arguments)
        if step == 2:
            raise Stopped
        return path
    TrainingState.save = save_then_stop
    try:
        run(settings, f"{name}-cut")
        raise AssertionError("not stopped")
    except Stopped:
        TrainingState.save = save
    run(settings, f"{name}-cut")
    uneven = {"per_device_train_batch_size": 4, "num_train_epochs": 2}
    for kept in ("auto", "none"):
        run(settings.model_copy(update=uneven | {"vision_cache": kept}), f"{name}-uneven-{kept}")
    run(TrainingConfig(**{**json.loads(sys.argv[4]), **json.loads(sys.argv[5])}), f"{name}-options")

twice("whole", Watching)
state.AcceleratorState._reset_state(True)
twice("sharded", Sharding)
"""


def steps_of(out, event="step"):
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def losses_of(out):
    return [(line["step"], line["loss"], line["margin"], line["grad_norm"]) for line in steps_of(out)]


def adapter_of(out):
    return load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def out(trainable_folder, pairs_folder, tmp_path_factory):
    """What the script made."""
    out = tmp_path_factory.mktemp("processes")
    script = out / "script.py"
    script.write_text(SCRIPT)
    arguments = [
        str(trainable_folder("llava_onevision")),
        str(pairs_folder),
        str(out),
        json.dumps(FIELDS),
        json.dumps(OPTIONS),
    ]
    command = [
        warm_python.executable(),
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(script),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": warm_python.executable()}
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return out


# Three batches an epoch, two a step: each second step has one, and the second process none.
FIELDS = {
    "device": "cpu",
    "dtype": "float32",
    "learning_rate": 0.01,
    "lora": {"r": 4, "lora_alpha": 8},
    "per_device_train_batch_size": 2,
    "num_train_epochs": 4,
    "save_steps": 1,
}
OPTIONS = {"loss_type": "mpo", "anchor_weight": 0.5, "box_token_weight": 3, "difficulty_weight": 1, "eval_steps": 3}
OPTIONS |= {"load_best_model_at_end": True, "metric_for_best_model": "margin"}


def test_what_was_meant_to_be_sharded_was(out):
    for rank in (0, 1):
        kinds = (out / f"kinds-{rank}.txt").read_text().splitlines()
        assert kinds == ["MULTI_CPU 2 False"] * 6 + ["FSDP 2 True"] * 6


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_two_processes_take_the_steps_of_one_with_twice_the_accumulation(
    kind, out, trainable_folder, pairs_folder, settings, tmp_path
):
    one = settings(per_device_train_batch_size=2, num_train_epochs=4, gradient_accumulation_steps=2)
    train(trl_pairs(pairs_folder), str(trainable_folder("llava_onevision")), one, tmp_path, seed=3)
    ours, theirs = steps_of(out / kind), steps_of(tmp_path)
    assert [line["step"] for line in ours] == list(range(1, 9))
    for name in ("loss", "margin", "chosen_logps", "rejected_logps", "grad_norm"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], rel=1e-5, abs=1e-5)
    assert [line["accuracy"] for line in ours] == [line["accuracy"] for line in theirs]
    adapters = adapter_of(out / kind), adapter_of(tmp_path)
    torch.testing.assert_close(*adapters, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kept", ["auto", "none"])
@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_a_process_with_fewer_pairs_looks_at_as_many_images_where_it_must(
    kind, kept, out, trainable_folder, pairs_folder, settings, tmp_path
):
    one = settings(per_device_train_batch_size=4, num_train_epochs=2, gradient_accumulation_steps=2)
    train(trl_pairs(pairs_folder), str(trainable_folder("llava_onevision")), one, tmp_path, seed=3)
    ours, theirs = steps_of(out / f"{kind}-uneven-{kept}"), steps_of(tmp_path)
    assert [line["step"] for line in ours] == [1, 2]
    for name in ("loss", "margin", "grad_norm"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_two_processes_that_were_stopped_resume_to_the_same_losses(kind, out):
    assert losses_of(out / f"{kind}-cut") == losses_of(out / kind)
    ours, theirs = adapter_of(out / f"{kind}-cut"), adapter_of(out / kind)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_mixtures_weights_and_shift_are_those_of_one_process(
    kind, out, trainable_folder, pairs_folder, settings, tmp_path
):
    fields = {"per_device_train_batch_size": 2, "num_train_epochs": 4, "gradient_accumulation_steps": 2}
    pairs = list(trl_pairs(pairs_folder))
    pairs += [dataclasses.replace(pair, split="holdout") for pair in pairs[:3]]
    train(pairs, str(trainable_folder("llava_onevision")), settings(**fields, **OPTIONS), tmp_path, seed=3)
    ours, theirs = steps_of(out / f"{kind}-options"), steps_of(tmp_path)
    assert [line["step"] for line in ours] == list(range(1, 9))
    for name in ("loss", "margin", "reward_shift", "grad_norm"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], rel=1e-5, abs=1e-5)
    ours, theirs = steps_of(out / f"{kind}-options", "eval"), steps_of(tmp_path, "eval")
    assert [line["step"] for line in ours] == [3, 6, 8]
    for name in ("eval_loss", "eval_margin", "eval_accuracy"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], rel=1e-5, abs=1e-5)
    torch.testing.assert_close(adapter_of(out / f"{kind}-options"), adapter_of(tmp_path), rtol=1e-3, atol=1e-5)
