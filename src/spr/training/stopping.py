"""How a training stops early: interrupts, values that are not finite, and a device whose memory is full."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from spr.config import TrainingConfig
from spr.core.atomic import atomic_file
from spr.core.errors import RunError, SprError
from spr.models.batching import DeviceMemoryError
from spr.models.loading import clear_write_errors
from spr.training.batches import Batch
from spr.training.encoding import PlannedPair


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
    """Save the batch in a folder and raise `SprError` if a value is not finite; ``step`` is None in the reference pass.

    The value is ``(B,)``, one number per pair, or a single number; ``what`` is its name.
    """
    finite = torch.isfinite(value)
    if bool(finite.all()):
        return
    path = folder / f"not-finite-{'reference' if step is None else f'step-{step}'}.pt"
    named = {name: getattr(batch, name) for name in ("input_ids", "positions", "mask", "labels", "owners")}
    tensors = {name: None if tensor is None else tensor.cpu() for name, tensor in named.items()}
    names = list(batch.pair_ids)
    saved = f"the batch is in {path}"
    try:
        with atomic_file(path) as file, clear_write_errors(path):
            torch.save({"pair_ids": names, **tensors}, file)
    except RunError as error:
        saved = f"the batch can't be saved: {error.got}"
    if value.numel() == len(names):
        names = [name for name, good in zip(names, finite.reshape(-1).tolist(), strict=True) if not good]
    where, fix = "the reference", "set training.dtype=float32, or check the texts and the image of the pairs"
    if step is not None:
        where = f"step {step}"
        fix = "lower training.learning_rate or set training.dtype=float32; the last checkpoint is kept"
    got = f"pairs {', '.join(names)}; {saved}"
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
