"""How a training stops before its end: Ctrl-C, numbers that are none, a device without room."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from spr.config import TrainingConfig
from spr.core.errors import SprError
from spr.models.batching import DeviceMemoryError
from spr.training.collate import Batch
from spr.training.encode import PlannedPair


class InterruptedTrainingError(SprError):
    """Ctrl-C, or SIGTERM: the training has written a checkpoint and left."""

    exit_code = 130


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set an event, so that a step is finished first; a second Ctrl-C stops at once."""
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
    """Raise `SprError` if a loss or a norm is not finite, after saving the batch for inspection.

    Args:
        value: ``(B,)``, a number a pair, or one.
        batch: What it was computed from.
        step: Counted from 1; None for the reference pass.
        what: The value's name.
        folder: Where the batch is saved.
    """
    if bool(torch.isfinite(value).all()):
        return
    place = folder / f"not-finite-{'reference' if step is None else f'step-{step}'}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(batch, name).cpu() for name in ("input_ids", "positions", "mask", "labels", "owners")}
    torch.save({"pair_ids": list(batch.pair_ids), **tensors}, place)
    names = list(batch.pair_ids)
    if value.numel() == len(names):
        names = [name for name, bad in zip(names, (~torch.isfinite(value)).tolist(), strict=True) if bad]
    of, mend = f"step {step}", "lower training.learning_rate or set training.dtype=float32; the last checkpoint is kept"
    if step is None:
        of, mend = "the reference", "set training.dtype=float32, or look at what the pair's texts and image are"
    got = f"pairs {', '.join(names)}; the batch is in {place}"
    raise SprError(f"The {what} of {of} is not finite", got=got, fix=mend)


@contextmanager
def clear_memory_errors(pairs: Sequence[PlannedPair], settings: TrainingConfig, *, step: bool = True) -> Iterator[None]:
    """Around a step, or a batch of the reference pass: out of memory becomes one error that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        longest = max(pairs, key=lambda planned: planned.length)
        lower = (
            [f"training.per_device_train_batch_size (now {settings.per_device_train_batch_size})"]
            if settings.per_device_train_batch_size > 1
            else []
        )
        lower += ["training.max_length", "training.lora.r"] if step else ["training.max_length"]
        other = [] if settings.gradient_checkpointing or not step else ["training.gradient_checkpointing=true"]
        other += [] if settings.load_in_4bit else ["training.load_in_4bit=true"]
        raise DeviceMemoryError(
            f"A {'training step' if step else 'batch of the reference pass'} does not fit into the device's memory",
            got=f"{str(error)[:200]}; longest pair {longest.pair.pair_id}: {longest.length:,} tokens",
            fix=f"lower {', '.join(lower)}{', or set ' if other else ''}{' or '.join(other)}; what was done is kept",
        ) from error
