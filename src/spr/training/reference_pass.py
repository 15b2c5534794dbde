"""The reference pass: what is known of the pairs before the first step, computed once and kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from spr.core.ordered_map import ordered_map
from spr.core.progress import Progress
from spr.core.terminal import count_text
from spr.training.encoding import PlannedPair
from spr.training.kept_memory import kept_memory
from spr.training.loss import (
    difficulty_weights,
)
from spr.training.reference import ReferenceFile, open_reference
from spr.training.session import Session
from spr.training.stopping import InterruptedTrainingError, check_finite, clear_memory_errors, interrupts

SAVE_REFERENCE_EVERY = 200
"""Rounds of batches between two writes of the reference file."""


def reference_logps(session: Session, shared: Path, known: Path | None, tell: Callable[[str], None]) -> ReferenceFile:
    """Compute the log-probabilities that the reference file lacks.

    The reference is the model as it is before the first step: with `training.init_adapter`, or with the adapter off.
    """
    accelerator, size = session.state.accelerator, session.settings.per_device_train_batch_size
    file = open_reference([shared, session.folder], session.trainee.identity)
    if known is not None:
        file.import_from(known)
    file.share()  # another training may have written to the file since some processes read it
    all_pairs = [pair for pair in (*session.planned, *session.held_out) if not pair.pair.supervised]
    missing = sorted(file.missing(all_pairs), key=lambda pair: -pair.length)
    if missing:
        tell(f"Reference log-probabilities of {count_text(len(missing), 'pairs')}")
    rounds, own_batches = rounds_of(missing, size, accelerator)
    rank = accelerator.process_index
    session.state.model.eval()
    peft, starts_anew = session.trainee.model.peft, session.settings.init_adapter is None
    as_before = peft.disable_adapter() if starts_anew else nullcontext()
    progress = Progress("reference", len(all_pairs), "pairs", done=len(all_pairs) - len(missing))
    memory = kept_memory(active=accelerator.device.type == "cpu")
    with progress, interrupts() as interrupted, torch.no_grad(), as_before, memory:
        processed_batches = ordered_map(session.process, own_batches)
        for number, (group, (own, processed)) in enumerate(zip(rounds, processed_batches, strict=True), start=1):
            with clear_memory_errors(own, session.settings, step=False):
                batch, logps = session.forward(own, processed)
            values = torch.stack([logps.chosen, logps.rejected], dim=1)
            check_finite(values.sum(1), batch, None, "log-probability", session.folder)
            results = gather_object([values.tolist()] if rank < len(group) else [])
            for part, rows in zip(group, results, strict=True):
                file.add(part, rows)
                progress.advance(len(part))
            stop = any(gather_object([interrupted.is_set()]))
            if accelerator.is_main_process and (stop or number % SAVE_REFERENCE_EVERY == 0):
                file.save()
            if stop:
                got, fix = f"finished pairs are in {file.path}", "run the same command again to resume"
                raise InterruptedTrainingError("Interrupted in the reference pass", got=got, fix=fix)
    if accelerator.is_main_process and (missing or known is not None):
        file.save()
        session.saved()
    accelerator.wait_for_everyone()
    return file


def rounds_of(
    pairs: Sequence[PlannedPair], size: int, accelerator: Accelerator
) -> tuple[list[list[Sequence[PlannedPair]]], list[Sequence[PlannedPair]]]:
    """Batches of pairs, one per process in each round, and those of this process.

    Every process takes part in every round, because sharded models gather their weights together.
    """
    batches = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    world, rank = accelerator.num_processes, accelerator.process_index
    rounds = [batches[start : start + world] for start in range(0, len(batches), world)]
    return rounds, [group[min(rank, len(group) - 1)] for group in rounds]


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known of the pairs before the first step: log-probabilities of the reference, and weights by key.

    None if the loss uses no reference, or if all pairs have the same weight.
    """

    reference: ReferenceFile | None
    weights: Mapping[str, float] | None

    def of(
        self, pairs: Sequence[PlannedPair], device: torch.device
    ) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """The same of a batch, ``(B,)`` float32 each."""
        logps = weights = None
        if self.reference is not None:
            rows = [(0.0, 0.0) if pair.pair.supervised else self.reference.of(pair) for pair in pairs]
            values = torch.tensor(rows, dtype=torch.float32, device=device)
            logps = values[:, 0], values[:, 1]
        if self.weights is not None and any(pair.key in self.weights for pair in pairs):
            # Held-out pairs and mixed rows have none.
            known = [self.weights.get(pair.key, 1.0) for pair in pairs]
            weights = torch.tensor(known, dtype=torch.float32, device=device)
        return logps, weights


def weights_by_difficulty(session: Session, file: ReferenceFile) -> dict[str, float]:
    """The weight of each pair by key, from how far apart the reference rates its answers per token."""

    def size(ids: Tensor, weights: Tensor | None) -> float:
        return len(ids) if weights is None else weights.sum().item()

    gaps, own = [], [pair for pair in session.planned if not pair.pair.mixed]
    for pair in own:
        chosen, rejected = file.of(pair)
        chosen /= size(pair.chosen, pair.chosen_weights)
        rejected /= size(pair.rejected, pair.rejected_weights)
        gaps.append(chosen - rejected)
    weights = difficulty_weights(torch.tensor(gaps, dtype=torch.float64), session.settings.difficulty_weight)
    return {pair.key: weight for pair, weight in zip(own, weights.tolist(), strict=True)}
