"""The two trainers of bench_dpo.py, each timed in a process of its own: seconds of wall and CPU, losses, peaks."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk

from dpo_cases import CASES, PATCH
from spr.config import LoraSection, TrainingConfig
from spr.training.pair_model import PairModel
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee
from spr.training.trainer import train

GROUPS = {
    "attention": ("scaled_dot_product", "flash", "fmha"),
    "products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::index", "aten::fill_"),
}
"""Kinds of operations in the profile, by what their names hold; the others are mostly elementwise."""


class Clock:
    """Wall and CPU seconds at marks, and the profile of what lies between the last two.

    Args:
        device: Waited for before the time is read.
        last: How many marks of the kind ``step`` there will be; 0: no profile.
    """

    def __init__(self, device: str, last: int) -> None:
        self.marks: list[tuple[str, float, float]] = []
        self.shares: dict[str, float] = {}
        self._device, self._last = device, last
        self._profile: Any = None

    def mark(self, kind: str) -> None:
        """Note that a batch of this kind is done."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        self.marks.append((kind, time.perf_counter(), time.process_time()))
        steps = sum(mark[0] == "step" for mark in self.marks)
        if kind == "step" and self._last and steps == self._last - 1:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profile = torch.profiler.profile(activities=activities)
            self._profile.__enter__()
        elif kind == "step" and self._profile is not None:
            self._profile.__exit__(None, None, None)
            self._share(self._profile.key_averages())
            self._profile = None

    def _share(self, events: Any) -> None:
        name = "self_device_time_total" if self._device == "cuda" else "self_cpu_time_total"
        whole = sum(getattr(event, name) for event in events)
        self.shares = {"seconds": whole / 1e6, **dict.fromkeys([*GROUPS, "other"], 0.0)}
        for event in events:
            group = next((g for g, parts in GROUPS.items() if any(part in event.key for part in parts)), "other")
            self.shares[group] += getattr(event, name) / whole

    def between(self, kind: str) -> list[tuple[float, float]]:
        """Wall and CPU seconds from each mark of a kind to the next, the first such and a profiled one left out."""
        found = [mark for mark in self.marks if mark[0] == kind]
        pairs = list(pairwise(found))
        pairs = pairs[1 if len(pairs) > 1 else 0 :]
        pairs = pairs[: -1 if self.shares and kind == "step" and len(pairs) > 1 else None]
        return [(b[1] - a[1], b[2] - a[2]) for a, b in pairs]


def settings_of(given: argparse.Namespace) -> TrainingConfig:
    """What both trainers are set to."""
    rank = CASES[given.case]["rank"]
    return TrainingConfig(
        device=given.device,
        dtype=getattr(given, "dtype", "bfloat16" if given.device == "cuda" else "float32"),
        attn_implementation=getattr(given, "attn_implementation", "sdpa"),
        per_device_train_batch_size=given.batch // given.accumulate,
        gradient_accumulation_steps=given.accumulate,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        lora=LoraSection(r=rank, lora_alpha=2 * rank),
        vision_cache=given.features,
        prefix_sharing=given.prefix,
        gradient_checkpointing=given.checkpointing,
        load_in_4bit=getattr(given, "load_in_4bit", False),
    )


def ours(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """`spr train`'s trainer, watched from outside: the end of each forward pass is a mark."""
    steps = given.pairs // given.batch * given.accumulate
    clock = Clock(given.device, steps if given.profile else 0)
    forward, seen, found = PairModel.forward, [], dict[str, int]()

    def watched(self: PairModel, batch: Any = None, vision: Any = None) -> Any:
        if vision is not None:
            pixels = vision["pixel_values"]  # Qwen's are patches already
            shape = pixels.shape
            patches = len(pixels) if pixels.dim() == 2 else pixels[..., 0, 0, 0].numel() * (shape[-1] // PATCH) ** 2
            found["patches"] = max(found.get("patches", 0), patches)
        elif batch is not None:
            found["prompt"] = max(found.get("prompt", 0), batch.begin + 1)
        start = time.process_time()
        made = forward(self, batch, vision)
        kind = "vision" if vision is not None else "step" if torch.is_grad_enabled() else "reference"
        if kind == "vision" and given.device == "cuda":
            torch.cuda.synchronize()
        seen.append(time.process_time() - start if kind == "vision" else None)
        clock.mark(kind)
        return made

    PairModel.forward = watched  # type: ignore[method-assign]
    out = folder / f"ours-{time.monotonic_ns()}"
    pairs = list(trl_pairs(folder / "pairs"))
    begun = time.perf_counter(), time.process_time()
    train(iter(pairs), str(folder / "model"), settings_of(given), out)
    ended = time.perf_counter(), time.process_time()
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    log = [line for line in lines if line["event"] == "step"]
    sights = [seconds for seconds in seen if seconds is not None]
    return {
        "losses": [[line[name] for name in ("loss", "chosen_logps", "rejected_logps")] for line in log],
        "reference": clock.between("reference"),
        "steps": clock.between("step"),
        "vision": sum(sights) / len(sights),
        "all": [b - a for a, b in zip(begun, ended, strict=True)],
        "shares": clock.shares,
        "micro": given.batch // given.accumulate,
        **found,
    }


def trl(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """TRL's trainer from the same adapter, in the same order; the end of each of its steps is a mark."""
    from trl import DPOConfig, DPOTrainer

    warnings.simplefilter("ignore")
    settings = settings_of(given)
    device = torch.device(given.device)
    clock = Clock(given.device, given.pairs // given.batch if given.profile else 0)
    # The same model, processor and adapter as ours.
    trainee = load_trainee(str(folder / "model"), settings, device, features=folder / "features")
    peft, processor = trainee.model.peft, trainee.encoder.processor
    config = peft.peft_config["default"]
    values = {name: part.detach().cpu().clone() for name, part in peft.named_parameters() if part.requires_grad}
    base = peft.unload()
    del trainee, peft
    losses: list[list[float]] = []

    class Watched(DPOTrainer):
        def training_step(self, *arguments: Any, **options: Any) -> Any:
            made = super().training_step(*arguments, **options)
            seen = self._metrics["train"]
            losses.append([made.item(), seen["logps/chosen"][-1], seen["logps/rejected"][-1]])
            clock.mark("step")
            return made

    trainer = Watched(
        model=base,
        args=DPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=given.batch,
            num_train_epochs=1,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            beta=settings.beta,
            max_length=None,
            use_cpu=given.device == "cpu",
            bf16=settings.dtype == "bfloat16",
            gradient_checkpointing=given.checkpointing,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            train_sampling_strategy="sequential",
        ),
        train_dataset=load_from_disk(str(folder / "ordered")),
        processing_class=processor,
        peft_config=config,
    )
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(values.pop(name))
    if values:
        raise SystemExit(f"TRL does not train {', '.join(values)}")
    trainer.train()
    return {
        "losses": losses,
        "reference": [],
        "steps": clock.between("step"),
        "shares": clock.shares,
        "micro": given.batch,
    }


def peaks(device: str) -> dict[str, float]:
    """GiB of this process's memory at its largest, and of the device's."""
    unit = 1 if sys.platform == "darwin" else 1024
    made = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    return made | ({"device": torch.cuda.max_memory_allocated() / 2**30} if device == "cuda" else {})
