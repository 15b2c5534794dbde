"""Several processes, and how a training stops early: interrupts, values that are not finite, a full device."""

from __future__ import annotations

import difflib
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType, gather_object
from torch import Tensor

from spr.config import TrainingConfig
from spr.core.errors import ConfigError, SprError
from spr.models.batching import DeviceMemoryError
from spr.training.pairs import PlannedPair
from spr.training.shared_prefix import Batch


def in_any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether the flag is set in at least one process; all processes call this together."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum")
    return bool(total.item() > 0)


def of_all_processes(items: list[Any], accelerator: Accelerator) -> list[Any]:
    """The items of all processes, in the order of the processes; all processes call this together."""
    return list(gather_object(items)) if accelerator.num_processes > 1 else items


def check_trackers(names: Sequence[str]) -> None:
    """Check that every tracker of `training.report_to` can be used; Accelerate would silently skip it.

    Raises:
        ConfigError: for a tracker that Accelerate does not know, or whose package is not installed.
    """
    known = sorted(LOGGER_TYPE_TO_CLASS)
    builtin = {str(tracker.value) for tracker in LoggerType}  # the others are classes that a program has registered
    missing = builtin - {str(tracker.value) for tracker in get_available_trackers()}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean `{near[0]}`?" if near else None
            raise ConfigError(
                "Config field `training.report_to` names an unknown tracker",
                got=name,
                expected=", ".join(known),
                fix=fix,
            )
        if name in missing:
            fix = f"pip install {name.replace('_', '-')}, or remove it: training/log.jsonl is always written"
            raise ConfigError(f"The tracker {name} of `training.report_to` is not installed", fix=fix)


class InterruptedTrainingError(SprError):
    """Ctrl-C or SIGTERM: the training wrote a checkpoint and stopped."""

    exit_code = 130


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event, so that the current step is completed; a second Ctrl-C stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, _: object) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_finite(value: Tensor, batch: Batch, step: int | None, what: str, folder: Path) -> None:
    """Save the batch and raise `SprError` if a loss or a norm is not finite.

    Args:
        value: ``(B,)``, one number per pair, or a single number.
        batch: The batch that it was computed from.
        step: The step, counted from 1; None for the reference pass.
        what: The value's name.
        folder: Where the batch is saved.
    """
    if bool(torch.isfinite(value).all()):
        return
    path = folder / f"not-finite-{'reference' if step is None else f'step-{step}'}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(batch, name).cpu() for name in ("input_ids", "positions", "mask", "labels", "owners")}
    torch.save({"pair_ids": list(batch.pair_ids), **tensors}, path)
    names = list(batch.pair_ids)
    if value.numel() == len(names):
        names = [name for name, bad in zip(names, (~torch.isfinite(value)).tolist(), strict=True) if bad]
    if step is None:
        where, fix = "the reference", "set training.dtype=float32, or check the texts and the image of the pairs"
    else:
        where = f"step {step}"
        fix = "lower training.learning_rate or set training.dtype=float32; the last checkpoint is kept"
    got = f"pairs {', '.join(names)}; the batch is in {path}"
    raise SprError(f"The {what} of {where} is not finite", got=got, fix=fix)


@contextmanager
def clear_memory_errors(pairs: Sequence[PlannedPair], settings: TrainingConfig, *, step: bool = True) -> Iterator[None]:
    """Turn an out-of-memory error of a step, or of a batch of the reference pass, into one that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        longest = max(pairs, key=lambda planned: planned.length)
        size = settings.per_device_train_batch_size
        lower = [f"training.per_device_train_batch_size (now {size})"] if size > 1 else []
        lower += ["training.max_length", "training.lora.r"] if step else ["training.max_length"]
        other = [] if settings.gradient_checkpointing or not step else ["training.gradient_checkpointing=true"]
        other += [] if settings.load_in_4bit else ["training.load_in_4bit=true"]
        raise DeviceMemoryError(
            f"A {'training step' if step else 'batch of the reference pass'} does not fit into the device's memory",
            got=f"{str(error)[:200]}; longest pair {longest.pair.pair_id}: {longest.length:,} tokens",
            fix=f"lower {', '.join(lower)}{', or set ' if other else ''}{' or '.join(other)}; finished work is kept",
        ) from error
