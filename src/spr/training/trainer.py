"""The training loop: preference pairs → a LoRA adapter (paper; supplement, Sec. 2), on Accelerate.

The file reads from top to bottom: `train` loads the model and plans the pairs, `reference_logps` computes the
reference model's log-probabilities once, `_take_steps` is the loop, and `_take_step` is one optimizer step.
Processes share the batches of a step: two processes with one batch each take the same step as one process with two.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from spr.config import TrainingConfig
from spr.core.errors import ConfigError, InputError, RunError
from spr.core.ordered_map import ordered_map
from spr.core.progress import Progress
from spr.core.terminal import count_text
from spr.runs.cues import measure_cue
from spr.runs.store import dropped_table, write_table
from spr.training.checkpoint import (
    TrainingState,
    check_adapter_folder,
    check_checkpoint,
    read_finished,
    save_finished,
)
from spr.training.encoding import PlannedPair, ProcessedPair, context_length, plan_digest
from spr.training.held_out import Best, Evaluate, best_folder, copy_best, keep_only, mean
from spr.training.kept_memory import kept_memory
from spr.training.log import Meter, TrainingLog, check_trackers
from spr.training.lora_layers import speed_up_layers
from spr.training.loss import (
    needs_reference,
    needs_rejected,
    needs_reward_shift,
    pair_losses,
)
from spr.training.mix import at_share, check_mix, read_mix, rows_of_epoch, rows_per_epoch
from spr.training.norm_layers import speed_up_norms
from spr.training.optimizer import check_optimizer, make_optimizer
from spr.training.pairs import TrainingPair
from spr.training.reference import check_reference
from spr.training.reference_pass import Known, reference_logps, rounds_of, weights_by_difficulty
from spr.training.schedule import learning_rate, steps_of_training
from spr.training.session import Kinds, Session
from spr.training.stopping import InterruptedTrainingError, check_finite, clear_memory_errors, interrupts
from spr.training.trainee import load_trainee, open_model
from spr.training.vision_cache import UNSHARDED, BatchEncoder

Step = Sequence[Sequence[int]]
"""The batches of an optimizer step, as indices of pairs."""
OwnBatch = tuple[list[PlannedPair], list[ProcessedPair], float]
"""A batch of this process: its pairs, the same after the processor, and its weight in the step."""


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """The numbers of pairs trained on, of dropped pairs by reason and of optimizer steps, and the last step's metrics.

    ``seconds`` is the wall time of the last call that trained. If the training was already finished, ``done_before`` is
    True, and nothing was done.
    """

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
    dialect: str | None = None,
    shared: Path | None = None,
    reference: Path | None = None,
    evaluate: Evaluate | None = None,
    saved: Callable[[], None] | None = None,
    accelerator: Accelerator | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> TrainingSummary:
    """Train an adapter, or resume from the newest checkpoint in ``out/training``.

    Writes ``adapter/`` in PEFT's format into the run folder ``out``, and ``training/`` with log, checkpoints and the
    reference's log-probabilities. The model is a folder, a model id of the Hub, or an embedded model
    (``embedded/describer``). The seed determines a new adapter's initial weights, dropout and the order of the pairs.
    ``dialect`` is how the answers write boxes, by default as the model's family does; only `training.box_token_weight`
    needs it. ``shared`` is a folder for what trainings of the same pairs share, the reference's log-probabilities and
    image features; by default ``out/training``. ``reference`` is another training's ``reference.parquet``, used for the
    pairs that it knows. ``evaluate`` measures `training.eval_tasks`, on the main process. Pairs of another split than
    ``train`` are held out: `training.eval_steps` evaluates on them. `training.mix` adds rows of its file to each
    epoch. ``saved`` is called on the main process when the reference pass, a checkpoint or the training is complete in
    ``out``. The accelerator, for example one with a
    sharding plugin, is made from the settings by default.

    Raises:
        RunError: if ``out`` holds a training under another config.
        InputError: if no pair is left to train on, or ``reference`` does not exist.
        SprError: if the package of `training.optim` is not installed.
        ConfigError: for an unknown tracker or LoRA target, for ``reference`` with a loss that uses none, or for
            evaluations without held-out pairs.
        ModelError: if the model can't be loaded or trained.
        DeviceMemoryError: if a batch does not fit into the device's memory; says what to lower.
        InterruptedTrainingError: after Ctrl-C or SIGTERM, once a checkpoint is written.
        SprError: for a loss that is not finite; the batch is saved.
    """
    check_trackers(settings.report_to)
    check_optimizer(settings)
    if reference is not None and not needs_reference(settings):
        what, fix = f"The loss `{' + '.join(settings.losses)}` uses no reference", "leave --reference out"
        raise ConfigError(what, got=f"--reference {reference}", fix=fix)
    if reference is not None:
        check_reference(reference)
    started, folder, adapter = time.monotonic(), out / "training", out / "adapter"
    if settings.device.startswith("cuda:"):
        torch.cuda.set_device(settings.device)  # Accelerate moves the model to the current one
    accelerator = accelerator or Accelerator(
        cpu=settings.device == "cpu",
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        log_with=list(settings.report_to) or None,
        project_dir=str(folder),
    )
    main, shared = accelerator.is_main_process, shared or folder
    if main:
        check_adapter_folder(adapter, folder)
    accelerator.wait_for_everyone()
    tell = report if main else lambda _: None
    # Everything that can be refused or answered without the model's weights comes before they are loaded.
    if settings.mix.path is not None:
        check_mix(settings.mix)
    opened = open_model(model, settings, revision=revision, dialect=dialect)
    with Progress("reading pairs", unit="pairs"):
        limit, with_rejected = context_length(opened.config, settings.max_length), needs_rejected(settings)
        pairs = list(pairs) if settings.eval_steps else pairs
        names: dict[str, str | None] = {}
        own, dropped = opened.planner.plan(_noted(pairs, names), limit, with_rejected=with_rejected)
        evaluated = (
            [replace(pair, split="train") for pair in pairs if pair.split != "train"] if settings.eval_steps else []
        )
        held_out, _ = opened.planner.plan(evaluated, limit, with_rejected=with_rejected)
    planned, mixed = own, 0  # what is trained on, and how many rows of `training.mix` are in an epoch
    if settings.mix.path is not None and own:
        with Progress("reading training.mix", unit="rows"):
            wanted = rows_per_epoch(len(own), settings.mix.share)
            without_image = opened.planner.trains_without_image and accelerator.distributed_type in UNSHARDED
            most = wanted * settings.num_train_epochs
            rows, unusable = read_mix(settings.mix, most, seed, without_image=without_image)
            usable, more = opened.planner.plan(_noted(rows, names), limit, with_rejected=with_rejected)
        more = [*unusable, *more]
        planned, dropped, mixed = [*own, *usable], [*dropped, *more], min(wanted, len(usable))
        if not usable:
            got = ", ".join(sorted({reason for _, reason in more}))
            fix = (
                "docs/drop-reasons.md explains them; training.mix.images is the folder that image paths are relative to"
            )
            raise InputError(f"No row of {settings.mix.path} can be trained on", got=f"dropped: {got}", fix=fix)
        tell(f"training.mix: {count_text(mixed, 'rows')} in each epoch, beside {count_text(len(own), 'pairs')}")
        if (line := at_share(len(own), len(usable), settings.mix.share)) is not None:
            tell(f"Warning: {line}")
    if settings.eval_steps and not held_out:
        fix = "set training.eval_steps=null, or make a run with annotations.holdout and enough images"
        raise ConfigError("`training.eval_steps` needs held-out pairs", got="none in these pairs", fix=fix)
    if settings.eval_tasks and (evaluate is None or accelerator.distributed_type not in UNSHARDED):
        got = "no function `evaluate`" if evaluate is None else f"weights shared out by {accelerator.distributed_type}"
        raise ConfigError("`training.eval_tasks` can't be evaluated", got=got, fix="set training.eval_tasks=[]")
    if main:
        file_names = [names.get(pair_id) for pair_id, _ in dropped]
        write_table(folder / "dropped.parquet", dropped_table("training", "pair", dropped, file_names))
    counts = dict(Counter(reason for _, reason in dropped))
    if not planned:
        got = ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "there were no pairs"
        fix = f"see {folder / 'dropped.parquet'} (spr show); training.max_length bounds a prompt with its answer"
        if "path_outside_images" in counts:
            fix += "; --allow-outside-images opens images outside the folder of --pairs"
        if "held_out" in counts:
            fix += "; only pairs whose `split` is `train`, or that have none, are trained on (annotations.holdout)"
        raise InputError("No pair is left to train on", got=f"dropped: {got}", fix=fix)

    if len(set(gather_object([plan_digest(planned)]))) > 1:
        fix = "run the same command again, without changing the run meanwhile (`spr review`)"
        raise RunError("The processes of the training have different pairs", fix=fix)
    batches_per_step = accelerator.num_processes * settings.gradient_accumulation_steps
    ignored = settings.fields_without_effect | {"gradient_accumulation_steps", "init_adapter"}
    fingerprint = {
        "seed": seed,
        "model": opened.name,
        "batches_per_step": batches_per_step,
        "pairs": plan_digest(planned),
        "training": {name: value for name, value in settings.model_dump(mode="json").items() if name not in ignored},
        **({"init_adapter": opened.init.name} if opened.init is not None else {}),
    }
    if (finished := read_finished(folder / "finished.json", adapter, fingerprint, tell)) is not None:
        return TrainingSummary(len(own), counts, **finished, done_before=True)
    check_checkpoint(folder / "checkpoints", fingerprint)

    options: dict[str, Any] = {"revision": revision, "seed": seed, "dialect": dialect, "files": opened}
    trainee = load_trainee(model, settings, accelerator.device, **options, features=shared / "features")
    for line in trainee.remarks:
        tell(line)
    if accelerator.distributed_type in UNSHARDED:
        speed_up_layers(trainee.model.base)
        speed_up_norms(trainee.model.base)

    if needs_rejected(settings):
        cue = measure_cue("tokens", [len(pair.chosen) for pair in own], [len(pair.rejected) for pair in own])
        tell("Tokens per answer: {chosen} chosen, {rejected} rejected on average".format_map(cue.means))
        if cue.warning:
            tell(f"Warning: {cue.warning}")
    parameters = [parameter for parameter in trainee.model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, settings)
    wrapped, optimizer = accelerator.prepare(trainee.model, optimizer)
    batches = BatchEncoder(trainee.encoder, trainee.model, wrapped, accelerator)
    state = TrainingState(accelerator, wrapped, optimizer)
    saved = saved if main and saved is not None else lambda: None
    data = planned, held_out, len(own) + mixed
    session = Session(settings, folder, trainee, *data, fingerprint, state, batches, evaluate, saved, tell)
    file = reference_logps(session, shared, reference, tell) if needs_reference(settings) else None
    known = Known(
        file, weights_by_difficulty(session, file) if file is not None and settings.difficulty_weight else None
    )
    steps = steps_of_training(
        [pair.length for pair in planned],
        batch_size=settings.per_device_train_batch_size,
        batches_per_step=batches_per_step,
        epochs=settings.num_train_epochs,
        max_steps=settings.max_steps,
        seed=seed,
        members=lambda epoch: [*range(len(own)), *_mixed(epoch, len(own), len(planned), mixed)],
    )
    torch.manual_seed(seed)  # for dropout
    first, last = 0, dict[str, float]()
    if (loaded := state.load(folder / "checkpoints", fingerprint)) is not None:
        newest, first, last = loaded
        tell(f"Resuming from {newest}, after step {first:,} of {len(steps):,}.")
    taken, last, best = _take_steps(session, steps, first, last, known)
    if settings.load_best_model_at_end and 0 < best.step < taken:
        tell(f"The adapter is that of step {best.step:,}, whose {settings.metric_for_best_model} was best.")
        files = copy_best(folder, best.step, adapter) if main else {}
        accelerator.wait_for_everyone()
    else:
        files = state.save_adapter(adapter)
    seconds = time.monotonic() - started
    if main:
        path = folder / "finished.json"
        save_finished(path, fingerprint, steps=taken, seconds=seconds, last=last, adapter=files)
        saved()
    return TrainingSummary(len(own), counts, taken, seconds, last)


def _mixed(epoch: int, own: int, planned: int, count: int) -> list[int]:
    """The indices of the mixed rows of an epoch, which come after the ``own`` pairs."""
    return [own + row for row in rows_of_epoch(epoch, planned - own, count)] if count else []


def _noted(pairs: Iterable[TrainingPair], names: dict[str, str | None]) -> Iterator[TrainingPair]:
    """The pairs, after putting the file names of their images into ``names``."""
    for pair in pairs:
        names[pair.pair_id] = pair.file_name
        yield pair


def _take_steps(
    session: Session, steps: Sequence[Step], first: int, before: Mapping[str, float], known: Known
) -> tuple[int, dict[str, float], Best]:
    """Take the steps after the first ``first`` ones; returns their number, the last one's metrics and the best one.

    ``before`` are the metrics of the last step already taken.
    """
    best, last = Best.read(before), {name: value for name, value in before.items() if not name.startswith("best_")}
    if first == len(steps) or best.stops(session.settings):
        return first, last, best
    settings, state, planned, fingerprint = session.settings, session.state, session.planned, session.fingerprint
    accelerator = state.accelerator
    if settings.report_to:
        accelerator.init_trackers("spr", config={name: fingerprint[name] for name in ("seed", "model")})
    log = TrainingLog(session.folder / "log.jsonl", len(steps), first, active=accelerator.is_main_process)
    log.event("start", first_step=first, steps=len(steps), pairs=len(planned), **fingerprint["training"])
    state.model.train()
    meter, values = Meter(accelerator, mix=settings.mix.path is not None), dict[str, float]()
    seen = list(accumulate(sum(map(len, step)) for step in steps))
    own = [sum(not planned[k].pair.mixed for batch in step for k in batch) for step in steps]
    own_seen = list(accumulate(own))
    shift, shifts = before.get("reward_shift", 0.0), needs_reward_shift(settings)
    with log, interrupts() as interrupted, kept_memory(active=accelerator.device.type == "cpu"):
        batches = _own_batches(session, steps[first:])
        for number, step in enumerate(steps[first:], start=first + 1):
            peak, warmup, schedule = settings.learning_rate, settings.warmup_ratio, settings.lr_scheduler_type
            rate = learning_rate(number - 1, len(steps), peak=peak, warmup=warmup, schedule=schedule)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            norm = _take_step(session, number, step, batches, known, shift, meter)
            values = meter.read(norm) | {"learning_rate": rate, "epoch": seen[number - 1] / session.per_epoch}
            if shifts:  # the mean over all pairs so far, for the next step; a checkpoint holds it with the metrics
                if own[number - 1]:
                    reward = (values["chosen_rewards"] + values["rejected_rewards"]) / 2
                    shift += (reward - shift) * own[number - 1] / own_seen[number - 1]
                values["reward_shift"] = shift
            log.step(number, values, written=number % settings.logging_steps == 0 or number == len(steps))
            if settings.report_to:
                accelerator.log(values, step=number)
            if settings.eval_steps and (number % settings.eval_steps == 0 or number == len(steps)):
                best = _evaluate(session, number, known, shift, best, log)
            ended = number == len(steps) or best.stops(settings)
            stop = any(gather_object([interrupted.is_set()]))
            # The last one always: from it, a damaged adapter is written again.
            if stop or number % settings.save_steps == 0 or ended:
                checkpoint = state.save(session.folder / "checkpoints", number, fingerprint, values | best.numbers)
                log.event("checkpoint", step=number, folder=checkpoint.name)
                if accelerator.is_main_process and best.step:
                    keep_only(session.folder, best.step)
                session.saved()
            if ended:
                break
            if stop:
                got, fix = f"checkpoint {checkpoint}", "run the same command again to resume"
                raise InterruptedTrainingError(f"Interrupted after step {number:,}", got=got, fix=fix)
    if number < len(steps):
        how = f"no better {settings.metric_for_best_model} after {count_text(best.worse, 'evaluations')}"
        session.tell(f"Stopped early, after step {number:,} of {len(steps):,}: {how} since step {best.step:,}.")
    log.event("end", step=number, **values)
    if settings.report_to:
        accelerator.end_training()
    return number, values, best


def _evaluate(session: Session, number: int, known: Known, shift: float, best: Best, log: TrainingLog) -> Best:
    """Evaluate on the held-out pairs and tasks after a step, and keep the adapter if it is the best so far.

    Neither the training's random state nor its mode are different afterwards.
    """
    settings, state = session.settings, session.state
    accelerator, device = state.accelerator, session.trainee.model.base.device
    rows: list[dict[str, float]] = []
    size = settings.per_device_train_batch_size
    rounds, own_batches = rounds_of(sorted(session.held_out, key=lambda pair: -pair.length), size, accelerator)
    state.model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for group, (own, processed) in zip(rounds, ordered_map(session.process, own_batches), strict=True):
            with clear_memory_errors(own, settings, step=False):
                _, logps = session.forward(own, processed)
            reference, _ = known.of(own, logps.chosen.device)
            losses = pair_losses(logps, reference, settings, reward_shift=shift)
            columns = {"loss": losses.loss, "margin": losses.margins, "accuracy": losses.accuracies}
            lists = {name: column.detach().double().tolist() for name, column in columns.items()}
            found = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
            results = gather_object([found] if accelerator.process_index < len(group) else [])
            rows += [row for part in results for row in part]
        metrics = mean(rows)
        if session.evaluate is not None and settings.eval_tasks:
            measured: list[Mapping[str, float]] = [{}]
            if accelerator.is_main_process:
                trainee = session.trainee
                with trainee.model.autocast():
                    measured = [session.evaluate(trainee.model.base, trainee.encoder.processor, trainee.name)]
            metrics |= broadcast_object_list(measured)[0]
    state.model.train()
    named = {f"eval_{name}": value for name, value in metrics.items()}
    log.event("eval", step=number, **named)
    if settings.report_to:
        accelerator.log(named, step=number)
    session.tell(f"held out, step {number:,}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    best = best.after(number, metrics.get(settings.metric_for_best_model, float("nan")), settings)
    if settings.load_best_model_at_end and best.step == number:
        state.save_adapter(best_folder(session.folder, number))
    return best


def _own_batches(session: Session, steps: Sequence[Step]) -> Iterator[OwnBatch]:
    """This process's batches, ``gradient_accumulation_steps`` per step.

    Where a step has fewer batches than the processes need, one of them is repeated with weight 0.
    """
    accelerator = session.state.accelerator
    own, weights = [], []
    for step in steps:
        for turn in range(session.settings.gradient_accumulation_steps):
            place = turn * accelerator.num_processes + accelerator.process_index
            indices = step[place] if place < len(step) else step[0]
            own.append([session.planned[index] for index in indices])
            weights.append(float(place < len(step)))
    for weight, (pairs, processed) in zip(weights, ordered_map(session.process, own), strict=True):
        yield pairs, processed, weight


def _take_step(
    session: Session,
    number: int,
    step: Step,
    batches: Iterator[OwnBatch],
    known: Known,
    shift: float,
    meter: Meter,
) -> float | None:
    """One optimizer step; returns the gradient norm."""
    settings, state = session.settings, session.state
    accelerator, accumulation = state.accelerator, settings.gradient_accumulation_steps
    norm = None
    for _ in range(accumulation):
        pairs, processed, weight = next(batches)
        with clear_memory_errors(pairs, settings), accelerator.accumulate(state.model):
            batch, logps = session.forward(pairs, processed)
            reference, weights = known.of(pairs, logps.chosen.device)
            kinds = Kinds.of(pairs, logps.chosen.device) if settings.mix.path is not None else None
            supervised = None if kinds is None else kinds.supervised
            losses = pair_losses(logps, reference, settings, reward_shift=shift, weights=weights, supervised=supervised)
            check_finite(losses.loss, batch, number, "loss", session.folder)
            # The mean over the step's pairs. Accelerate divides by the accumulation, data parallelism by the processes.
            scale = weight / sum(map(len, step)) * accelerator.num_processes * accumulation
            accelerator.backward(losses.loss.sum() * scale)
            meter.add(logps, losses, batch.tokens, weight, None if kinds is None else kinds.mixed)
            if accelerator.sync_gradients:
                limit = settings.max_grad_norm if settings.max_grad_norm is not None else float("inf")
                clipped = accelerator.clip_grad_norm_(state.model.parameters(), limit)
                if clipped is not None:  # None if an engine clips by its own config
                    check_finite(torch.as_tensor(clipped), batch, number, "gradient norm", session.folder)
                    norm = float(clipped)
            state.optimizer.step()
            state.optimizer.zero_grad()
    return norm
