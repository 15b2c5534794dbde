"""The training loop of all embedded models: reproducible and resumable.

All random choices of a step depend on (seed, step) alone. So a run that is resumed from a checkpoint gives the same
result as one that was never interrupted, and the number of workers changes nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from spr.core.atomic import atomic_file
from spr.core.errors import InputError
from tools.embedded.optim import Optimiser

Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True)
class Run:
    """The settings of a training run.

    Attributes:
        out: Folder of the checkpoint and the log.
        seed: Seed of the scenes, the initial weights and all random choices.
        steps: Length of the schedule.
        batch_size: Views per step.
        device: Device to train on.
        workers: Processes that make batches; 0 for this process.
        resume: Continue from the checkpoint in ``out``.
        stop_at: Stop after this step, before the end of the schedule; None to run to the end.
        start_from: Checkpoint of an earlier run of the same model, for the initial weights.
        log_every: Steps between two rows of the log.
        save_every: Steps between two checkpoints.
    """

    out: Path
    seed: int
    steps: int
    batch_size: int
    device: torch.device
    workers: int = 0
    resume: bool = False
    stop_at: int | None = None
    start_from: Path | None = None
    log_every: int = 100
    save_every: int = 500


class _Steps(Dataset[Batch]):
    def __init__(self, make: Callable[[int], Batch], steps: int) -> None:
        self.make, self.steps = make, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        return self.make(step)


@dataclass(frozen=True, slots=True)
class Task(Generic[Batch]):
    """What to train, and how.

    Attributes:
        name: File name of the checkpoint and the log, without suffix.
        modules: The modules with trained parameters, by name.
        make_batch: Maps a step to its batch; may run in a worker process.
        loss: Maps a batch and the completed share of the run (0–1) to the loss and figures for the log.
        lr: Peak learning rate of AdamW.
        muon_lr: Peak learning rate of Muon.
    """

    name: str
    modules: dict[str, nn.Module]
    make_batch: Callable[[int], Batch]
    loss: Callable[[Batch, float], tuple[Tensor, dict[str, Tensor]]]
    lr: float = 3e-3
    muon_lr: float = 0.02


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed torch and select deterministic algorithms."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def train(task: Task[Batch], run: Run) -> None:
    """Train to ``run.steps``, from the checkpoint if ``run.resume``; the log is ``run.out/<name>.jsonl``.

    Raises:
        InputError: if there is no checkpoint to resume from, or it belongs to another run.
    """
    run.out.mkdir(parents=True, exist_ok=True)
    log_path, path = run.out / f"{task.name}.jsonl", checkpoint_path(run.out, task.name)
    optimiser = Optimiser(task.modules, steps=run.steps, lr=task.lr, muon_lr=task.muon_lr)
    if run.start_from is not None:
        load_modules(run.start_from, **task.modules)
    first = _restore(task, run, optimiser, path) if run.resume else 0
    _keep_rows(log_path, first)
    for module in task.modules.values():
        module.train()
    batches = _batches(task, run, first)
    sums: dict[str, Tensor] = {}
    counted, started = 0, time.monotonic()
    with log_path.open("a", encoding="utf-8") as log:
        for step, batch in enumerate(batches, start=first):
            loss, figures = task.loss(batch, step / run.steps)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step(step)
            for name, value in {"loss": loss.detach(), **figures}.items():
                sums[name] = sums[name] + value if name in sums else value
            counted += 1
            if (step + 1) % run.log_every == 0 or step + 1 == run.steps:
                row = {"step": step + 1, **{name: value.item() / counted for name, value in sums.items()}}
                log.write(json.dumps(row) + "\n")
                log.flush()
                shown = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
                print(f"{task.name} {step + 1}/{run.steps}  {time.monotonic() - started:.0f} s  {shown}", flush=True)
                sums, counted = {}, 0
            if (step + 1) % run.save_every == 0 or step + 1 == run.steps or step + 1 == run.stop_at:
                _save(task, run, optimiser, path, step + 1)
            if step + 1 == run.stop_at:
                break
    for module in task.modules.values():
        module.eval()


def checkpoint_path(out: Path, name: str) -> Path:
    """The path of a task's checkpoint."""
    return out / f"{name}.pt"


def load_modules(path: Path, **modules: nn.Module) -> None:
    """Load the weights of a checkpoint into modules, by name.

    Raises:
        InputError: if there is no such checkpoint.
    """
    if not path.exists():
        raise InputError(f"There is no checkpoint {path}", fix="train that model first, with the same --out")
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])


def _batches(task: Task[Batch], run: Run, first: int) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        _Steps(task.make_batch, run.steps),
        batch_size=None,
        sampler=range(first, run.steps),
        num_workers=run.workers,
        prefetch_factor=4 if run.workers else None,
        multiprocessing_context="fork" if run.workers else None,
    )
    return iter(loader)


def _keep_rows(log_path: Path, last: int) -> None:
    """Remove log rows after step ``last``, which an interrupted run wrote after its last checkpoint."""
    lines = log_path.read_text(encoding="utf-8").splitlines(keepends=True) if log_path.exists() else []
    log_path.write_text("".join(line for line in lines if json.loads(line)["step"] <= last), encoding="utf-8")


def _identity(run: Run) -> dict[str, int]:
    return {"seed": run.seed, "steps": run.steps, "batch_size": run.batch_size}


def _save(task: Task[Batch], run: Run, optimiser: Optimiser, path: Path, step: int) -> None:
    state = {
        "step": step,
        "run": _identity(run),
        "modules": {name: module.state_dict() for name, module in task.modules.items()},
        "optimiser": optimiser.state_dict(),
    }
    with atomic_file(path) as partial:
        torch.save(state, partial)


def _restore(task: Task[Batch], run: Run, optimiser: Optimiser, path: Path) -> int:
    if not path.exists():
        raise InputError(
            f"There is no checkpoint {path} to resume", fix="leave --resume out, or give the --out of that run"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["run"] != _identity(run):
        fix = "give the same --seed, --steps and --batch-size, or leave --resume out"
        raise InputError(f"{path} belongs to another run", got=state["run"], expected=_identity(run), fix=fix)
    for name, module in task.modules.items():
        module.load_state_dict(state["modules"][name])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])
