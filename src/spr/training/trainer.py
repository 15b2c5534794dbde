"""The training loop: pairs → a LoRA adapter by direct preference optimisation (METHOD §6), on Accelerate.

It reads from top to bottom: `train` loads the model, plans the pairs, computes the reference once, and takes the steps.
Processes share a step's batches, so that two with one batch each take the same step as one with two.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from spr.config import TrainingConfig
from spr.core.errors import InputError
from spr.runs.store import dropped_table, write_table
from spr.training.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    read_finished,
    save_adapter,
    save_checkpoint,
    save_finished,
)
from spr.training.collate import Batch, collate
from spr.training.encode import PlannedPair, Read, context_length, plan_digest
from spr.training.log import TrainingLog
from spr.training.loss import PairLogps, pair_losses
from spr.training.metering import Meter
from spr.training.pairs import TrainingPair
from spr.training.prefetch import prefetch
from spr.training.processes import check_trackers, in_any_process, of_all_processes
from spr.training.reference import ReferenceFile
from spr.training.schedule import learning_rate, steps_of_training
from spr.training.setup import load_trainee
from spr.training.sight import BatchEncoder
from spr.training.stopping import InterruptedTrainingError, check_finite, clear_memory_errors, interrupts

SAVE_REFERENCE_EVERY = 200
"""Batches between two writes of the reference's file."""


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """What a training did: pairs trained on and dropped, steps, seconds, and the last step's values."""

    pairs: int
    dropped: dict[str, int]
    steps: int
    seconds: float
    last: dict[str, float]
    done_before: bool = False


def train(
    pairs: Iterable[TrainingPair],
    model: str,
    settings: TrainingConfig,
    out: Path,
    *,
    revision: str | None = None,
    seed: int = 0,
    reference: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> TrainingSummary:
    """Train an adapter; goes on from the newest checkpoint in ``out/training``.

    Args:
        pairs: From `spr.training.pairs`.
        model: A folder or a hub id.
        settings: The config's section.
        out: The run folder: ``adapter/`` in PEFT's format, ``training/`` with log, checkpoints and the reference.
        revision: Branch, tag or commit of the hub's repository.
        seed: Decides the adapter's first matrices and the order of the pairs.
        reference: Another training's file of log-probabilities, to be used where it knows a pair.
        report: Told what a user wants to know, line by line.

    Raises:
        RunError: if ``out`` holds a training under another config.
        InputError: if no pair is left to train on, or ``reference`` is not there.
        ConfigError: for a tracker that is not there, or a target of the adapter.
        ModelError: if the model can't be loaded or trained.
        DeviceMemoryError: if a batch does not fit; says what to lower.
        InterruptedTrainingError: after Ctrl-C.
        SprError: for a loss that is not finite; the batch is saved.
    """
    check_trackers(settings.report_to)
    return _Training(model, settings, out, revision, seed, report).run(pairs, reference)


class _Training:
    def __init__(
        self,
        model: str,
        settings: TrainingConfig,
        out: Path,
        revision: str | None,
        seed: int,
        report: Callable[[str], None],
    ) -> None:
        self.settings, self.folder, self.seed = settings, out / "training", seed
        self.adapter = out / "adapter"
        self.accelerator = Accelerator(
            cpu=settings.device == "cpu",
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            log_with=list(settings.report_to) or None,
            project_dir=str(self.folder),
        )
        self.report = report if self.accelerator.is_main_process else lambda _: None
        trainee = load_trainee(
            model, settings, self.accelerator.device, revision=revision, seed=seed, features=self.folder / "features"
        )
        for line in trainee.remarks:
            self.report(line)
        self.trainee, self.encoder = trainee, trainee.encoder
        parameters = [parameter for parameter in trainee.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(trainee.model, optimizer)
        self.batches = BatchEncoder(self.encoder, trainee.model, self.model, self.accelerator)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.trainee.base.device
        return device

    # ── the run ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, pairs: Iterable[TrainingPair], known: Path | None) -> TrainingSummary:
        settings, started = self.settings, time.monotonic()
        limit = context_length(self.trainee.base, settings.max_length)
        planned, dropped = self.encoder.plan(pairs, limit, with_rejected=settings.loss_type != "sft")
        self._note_dropped(planned, dropped)
        counts = dict(Counter(reason for _, reason in dropped))
        a_step = self.accelerator.num_processes * settings.gradient_accumulation_steps
        deciding = {
            "seed": self.seed,
            "model": self.trainee.name,
            "batches_a_step": a_step,
            "pairs": plan_digest(planned),
            "training": {
                name: value
                for name, value in settings.model_dump(mode="json").items()
                if name not in settings.runtime_fields | {"gradient_accumulation_steps"}
            },
        }
        done = read_finished(self.folder / "finished.json", self.adapter, deciding)
        if done is not None:
            return TrainingSummary(len(planned), counts, done["steps"], done["seconds"], done["last"], True)
        reference = self._reference(planned, known) if settings.loss_type != "sft" else None
        steps = steps_of_training(
            [pair.length for pair in planned],
            batch_size=settings.per_device_train_batch_size,
            batches_a_step=a_step,
            epochs=settings.num_train_epochs,
            max_steps=settings.max_steps,
            seed=self.seed,
        )
        torch.manual_seed(self.seed)  # dropout
        newest = newest_checkpoint(self.folder / "checkpoints", deciding)
        first, last = 0, dict[str, float]()
        if newest is not None:
            first, last = load_checkpoint(newest, self.accelerator, self.model, self.optimizer)
            self.report(f"Going on from {newest}, after step {first:,} of {len(steps):,}.")
        last = self._steps(planned, steps, first, reference, deciding) or last
        save_adapter(self.adapter, self.accelerator, self.model)
        seconds = time.monotonic() - started
        if self.accelerator.is_main_process:
            save_finished(self.folder / "finished.json", deciding, steps=len(steps), seconds=seconds, last=last)
        return TrainingSummary(len(planned), counts, len(steps), seconds, last)

    def _note_dropped(self, planned: Sequence[PlannedPair], dropped: Sequence[tuple[str, str]]) -> None:
        if self.accelerator.is_main_process:
            write_table(self.folder / "dropped.parquet", dropped_table("training", "pair", dropped))
        if not planned:
            counts = Counter(reason for _, reason in dropped)
            counted = ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "no pairs came"
            fix = f"look at {self.folder / 'dropped.parquet'} (spr show); training.max_length bounds prompt and answer"
            raise InputError("No pair is left to train on", got=f"dropped: {counted}", fix=fix)

    # ── the reference ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _reference(self, planned: Sequence[PlannedPair], known: Path | None) -> ReferenceFile:
        """Log-probabilities with the adapter off, of the pairs that the file lacks."""
        accelerator, file = self.accelerator, ReferenceFile(self.folder / "reference.parquet", self.trainee.identity)
        if known is not None:
            file.take_over(known)
        missing = sorted(file.missing(planned), key=lambda pair: -pair.length)
        size = self.settings.per_device_train_batch_size
        batches = [missing[start : start + size] for start in range(0, len(missing), size)]
        world, rank = accelerator.num_processes, accelerator.process_index
        rounds = [batches[start : start + world] for start in range(0, len(batches), world)]
        if missing:
            self.report(f"Reference log-probabilities of {len(missing):,} pairs")
        # Every process takes part in each round, for sharded models gather their weights together.
        work = [(group, group[min(rank, len(group) - 1)]) for group in rounds]
        reads = prefetch((own for _, own in work), self._read)
        self.model.eval()
        with interrupts() as interrupted, torch.no_grad(), self.trainee.model.peft.disable_adapter():
            for number, ((group, own), (_, read)) in enumerate(zip(work, reads, strict=True), start=1):
                with clear_memory_errors(own, self.settings, step=False):
                    batch = self._encode(own, read)
                    logps = self._forward(batch)
                both = torch.stack([logps.chosen, logps.rejected], dim=1)
                check_finite(both.sum(1), batch, None, "log-probability", self.folder)
                mine = [both.tolist()] if rank < len(group) else [None]
                made = [part for part in of_all_processes(mine, accelerator) if part is not None]
                for part, values in zip(group, made, strict=True):
                    file.add(part, [(chosen, rejected) for chosen, rejected in values])
                stop = in_any_process(interrupted.is_set(), accelerator)
                if accelerator.is_main_process and (stop or number % SAVE_REFERENCE_EVERY == 0):
                    file.save()
                if stop:
                    got, fix = f"what was computed is in {file.path}", "the same command goes on from there"
                    raise InterruptedTrainingError("Interrupted in the reference pass", got=got, fix=fix)
        if accelerator.is_main_process and (missing or known is not None):
            file.save()
        accelerator.wait_for_everyone()
        return file

    # ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _steps(
        self,
        planned: Sequence[PlannedPair],
        steps: Sequence[Sequence[Sequence[int]]],
        first: int,
        reference: ReferenceFile | None,
        deciding: dict[str, Any],
    ) -> dict[str, float]:
        settings, accelerator = self.settings, self.accelerator
        checkpoints = self.folder / "checkpoints"
        if settings.report_to:
            accelerator.init_trackers("spr", config={"seed": self.seed, "model": self.trainee.name})
        log = TrainingLog(self.folder / "log.jsonl", len(steps), first, active=accelerator.is_main_process)
        log.event("start", first_step=first, steps=len(steps), pairs=len(planned), **deciding["training"])
        self.model.train()
        meter, values = Meter(accelerator), {}
        pairs_of = [sum(map(len, step)) for step in steps]
        seen = list(accumulate(pairs_of))
        with log, interrupts() as interrupted:
            batches = self._micro_batches(planned, steps[first:])
            for number in range(first + 1, len(steps) + 1):
                rate = learning_rate(
                    number - 1,
                    len(steps),
                    peak=settings.learning_rate,
                    warmup=settings.warmup_ratio,
                    schedule=settings.lr_scheduler_type,
                )
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                norm, share = None, 1 / pairs_of[number - 1]
                for _ in range(settings.gradient_accumulation_steps):
                    own, read, weight = next(batches)
                    with clear_memory_errors(own, settings), accelerator.accumulate(self.model):
                        batch = self._encode(own, read)
                        logps = self._forward(batch)
                        losses = pair_losses(logps, self._reference_of(own, reference), settings)
                        check_finite(losses.loss, batch, number, "loss", self.folder)
                        # Accelerate divides by the accumulation, data parallelism by the processes.
                        scale = weight * share * accelerator.num_processes * settings.gradient_accumulation_steps
                        accelerator.backward(losses.loss.sum() * scale)
                        meter.add(logps, losses, batch.tokens, weight)
                        if accelerator.sync_gradients:
                            norm = self._clip(number, batch)
                        self.optimizer.step()
                        self.optimizer.zero_grad()
                values = meter.read(norm) | {"learning_rate": rate, "epoch": seen[number - 1] / len(planned)}
                log.step(number, values, written=number % settings.logging_steps == 0 or number == len(steps))
                if settings.report_to:
                    accelerator.log(values, step=number)
                stop = in_any_process(interrupted.is_set(), accelerator)
                if stop or number % settings.save_steps == 0:
                    made = save_checkpoint(
                        checkpoints, accelerator, self.model, self.optimizer, number, deciding, values
                    )
                    log.event("checkpoint", step=number, folder=made.name)
                if stop and number < len(steps):
                    fix = "the same command goes on from there"
                    raise InterruptedTrainingError(
                        f"Interrupted after step {number:,}", got=f"checkpoint {made}", fix=fix
                    )
        if values:
            log.event("end", step=len(steps), **values)
        if settings.report_to:
            accelerator.end_training()
        return values

    def _micro_batches(
        self, planned: Sequence[PlannedPair], steps: Sequence[Sequence[Sequence[int]]]
    ) -> Iterator[tuple[list[PlannedPair], list[Read], float]]:
        """This process's batches, ``gradient_accumulation_steps`` a step; where a step has fewer, one of weight 0."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        order = []
        for step in steps:
            for turn in range(self.settings.gradient_accumulation_steps):
                place = turn * world + rank
                numbers = step[place] if place < len(step) else step[0]
                order.append(([planned[k] for k in numbers], float(place < len(step))))
        for (own, weight), read in prefetch(order, lambda item: self._read(item[0])):
            yield own, read, weight

    def _read(self, pairs: Sequence[PlannedPair]) -> list[Read]:
        return [self.encoder.read(pair) for pair in pairs]

    def _encode(self, pairs: Sequence[PlannedPair], read: Sequence[Read]) -> Batch:
        encoded = self.batches.encode(pairs, read)
        return collate(encoded, self.encoder.pad, shared=self.trainee.shared).to(self.device)

    def _forward(self, batch: Batch) -> PairLogps:
        return PairLogps(*self.model(batch))

    def _reference_of(self, pairs: Sequence[PlannedPair], file: ReferenceFile | None) -> tuple[Tensor, Tensor] | None:
        if file is None:
            return None
        values = torch.tensor([file.of(pair) for pair in pairs], dtype=torch.float32, device=self.device)
        return values[:, 0], values[:, 1]

    def _clip(self, number: int, batch: Batch) -> float:
        limit = self.settings.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit if limit is not None else float("inf"))
        if norm is None:  # the engine clips by its own config
            return 0.0
        check_finite(torch.as_tensor(norm), batch, number, "gradient norm", self.folder)
        return float(norm)
