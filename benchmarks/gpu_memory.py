"""The cases of gpu.py that run out of memory on purpose: batches are halved, and what does not fit says so.

On a GPU, the process is allowed less memory than the work needs. A rehearsal on a CPU has no such limit: there, a
forward pass with more rows than the limit raises PyTorch's error, and the row says so.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from dpo_trainers import settings_of
from gpu_models import Run, check_lengths, describer_of, make_requests, random_weights, training, use
from spr.core.errors import SprError
from spr.models.batching import DeviceMemoryError
from spr.training.pair_model import PairModel
from spr.training.pairs import trl_pairs
from spr.training.trainer import train

FAKED = "faked: a forward pass with more rows raises PyTorch's error"
REAL = "torch.cuda.set_per_process_memory_fraction"


def memory_describe(run: Run, model: str) -> dict[str, Any]:
    """A describer that starts with more requests at a time than fit, and then has no memory for a single one.

    The limit is halfway between what 2 requests at a time need and what the describer starts with needs.
    """
    sizes = run.sizes("memory")
    most, fits = sizes["batch"], sizes["fits"]
    describer, requests = describer_of(run, model, most), make_requests(most)
    weights, needed = reserved(run), dict[int, float]()
    expected = []
    for size in (fits, most):
        reserved(run)
        expected = describer.with_sampling(temperature=describer.temperature, batch_size=size).describe(requests)
        needed[size] = reserved(run, peak=True) - weights
    check_lengths(expected)
    before = largest_batch(describer.model, lambda: describer.describe(requests))
    limit = weights + (needed[fits] + needed[most]) / 2
    with limited(run, describer.model, limit, most=fits):
        answers = describer.describe(requests)
        after = largest_batch(describer.model, lambda: describer.describe(requests))
    with limited(run, describer.model, weights + 0.1 * needed[fits], most=0):
        message = refused(lambda: describer.describe(requests[:1]))
    if not fits <= after < before:
        raise SprError("The batches were not halved", got=f"{before} rows before, {after} after")
    same = sum(one == other for one, other in zip(answers, expected, strict=True))
    made = {"rows_before": before, "rows_after": after, "same_answers": same, "of_answers": len(answers)}
    gib = {f"gib_for_{size}": value / 2**30 for size, value in needed.items() if not run.tiny}
    return made | gib | {"limit": FAKED if run.tiny else REAL, "message": message}


def memory_train(run: Run, model: str) -> dict[str, Any]:
    """A training whose first step does not fit, and which is then resumed with enough memory."""
    use(run, model)
    settings = settings_of(training(run, model))
    folder, said = run.folder / "out", list[str]()
    forward, stack = PairModel.forward, ExitStack()

    def watched(self: PairModel, batch: Any = None, vision: Any = None) -> Any:
        if torch.is_grad_enabled() and batch is not None:
            if run.tiny:
                raise torch.OutOfMemoryError(FAKED)
            stack.enter_context(limited(run, self, reserved(run) + 2**25, most=0))
        return forward(self, batch, vision)

    def attempt() -> Any:
        pairs = trl_pairs(run.folder / "pairs")
        return train(iter(pairs), str(run.folder / "model"), settings, folder, report=said.append)

    with random_weights(run):
        with stack, patch.object(PairModel, "forward", watched):
            message = refused(attempt)
        computed = sum("Reference" in line for line in said)
        steps = attempt().steps
    again = sum("Reference" in line for line in said) - computed
    made = {"steps_after": steps, "reference_again": again, "peak_gib": run.peak()}
    return made | {"limit": FAKED if run.tiny else REAL, "message": message}


def reserved(run: Run, *, peak: bool = False) -> int:
    """Bytes of the device's memory that torch holds now, or held at most since the last call; 0 in a rehearsal."""
    if run.tiny:
        return 0
    if peak:
        return torch.cuda.max_memory_reserved()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_reserved()


@contextmanager
def watched_rows(model: Any, seen: Callable[[int], None]) -> Iterator[None]:
    """Call a function with the number of sequences in each forward pass of a model, before it begins."""
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen(len(inputs[0])))
    try:
        yield
    finally:
        hook.remove()


def largest_batch(model: Any, work: Callable[[], object]) -> int:
    """The largest number of sequences in a forward pass of a model during the work."""
    rows: list[int] = []
    with watched_rows(model, rows.append):
        work()
    return max(rows)


@contextmanager
def limited(run: Run, model: Any, limit: float, *, most: int) -> Iterator[None]:
    """Allow this process ``limit`` bytes of the device; in a rehearsal, a forward pass fails for over ``most`` rows."""
    if not run.tiny:
        reserved(run)
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return

    def check(rows: int) -> None:
        if rows > most:
            raise torch.OutOfMemoryError(FAKED)

    with watched_rows(model, check):
        yield


def refused(work: Callable[[], object]) -> str:
    """The message of the `DeviceMemoryError` that the work must raise."""
    try:
        work()
    except DeviceMemoryError as error:
        return str(error)
    raise SprError("The work fits into the limited memory", fix="lower the limit of this case")
