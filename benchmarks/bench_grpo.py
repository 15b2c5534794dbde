"""Compare SPR's preference training, GRPO with spatial rewards (TRL's trainer), and both in sequence.

    python benchmarks/bench_grpo.py search --out runs/grpo             # settings of GRPO, on tuning scenes
    python benchmarks/bench_grpo.py final --out runs/grpo --seeds 2    # all arms, on held-out scenes
    python benchmarks/bench_grpo.py table --out runs/grpo              # what is measured so far, training nothing

The embedded describer, the preset `quickstart` for SPR, and rows of `spr export --format grpo-trl` from the same scenes
for GRPO. An arm is a sequence of trainings; each starts from the model that the one before it left, with its adapter
merged. What is there in ``--out`` is not made again. Seconds are CPU time of this process, which has one thread. Prints
a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForImageTextToText, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

import spr.rewards.trl
from item_shares import Shares, averaged, read_shares
from spr.config import Config, load_config
from spr.core.terminal import count_text
from spr.embedded.scenes import write_scenes
from spr.evaluation.metrics import Difference, paired_difference
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.description import Description
from spr.evaluation.tasks.rec import Rec
from spr.exports.prompt_options import PromptOptions
from spr.exports.writing import export
from spr.models.describers.hf import HfDescriber
from spr.models.loading import model_source
from spr.models.questions import EMBEDDED_PROMPT
from spr.pipeline import runner
from spr.runs.store import StageStore
from spr.training.run import run as train

TRAIN, TUNE, HELD_OUT = 7_600_001, 7_700_001, 900_000_007
"""Seeds of the scenes: to train on, to choose settings on, and to measure on."""
MODEL = str(model_source("embedded/describer"))
EXACT = ("annotations.crowds=drop", "annotations.holdout=0")
"""For scenes that are only evaluated on: all of them, and no objects that a detector found."""


@dataclass(frozen=True)
class Grpo:
    """A training by GRPO; its ``tasks`` are those of `spr export`, and it generates ``steps · batch`` answers."""

    reward: str
    tasks: tuple[str, ...] = ("describe",)
    learning_rate: float = 1e-3
    steps: int = 50
    batch: int = 64
    generations: int = 8
    temperature: float = 1.0


_LOCATE, _BOTH = ("locate",), ("describe", "locate")
SEARCH: dict[str, Grpo] = {
    "describe s_loc": Grpo("s_loc"),
    "describe s_loc and precision": Grpo("0.5*s_loc + 0.5*precision"),
    "describe f1": Grpo("f1@0.5:0.9/50"),
    "describe iou": Grpo("iou"),
    "describe iou 3e-4 16": Grpo("iou", learning_rate=3e-4, generations=16),
    "describe iou_squared 0.7": Grpo("iou_squared", temperature=0.7),
    "both iou": Grpo("iou", _BOTH, steps=75),
    "locate iou": Grpo("iou", _LOCATE, steps=100),
    "locate iou_squared": Grpo("iou_squared", _LOCATE, steps=100),
    "locate f1": Grpo("f1@0.5:0.9/100", _LOCATE, steps=100),
    "locate iou_squared 3e-3": Grpo("iou_squared", _LOCATE, steps=100, learning_rate=3e-3),
    "locate iou_squared 3e-4": Grpo("iou_squared", _LOCATE, steps=100, learning_rate=3e-4),
    "locate iou_squared 16": Grpo("iou_squared", _LOCATE, steps=100, generations=16),
    "locate iou_squared 300": Grpo("iou_squared", _LOCATE, steps=300),
}
"""Settings that are compared on tuning scenes; numbers: learning rate, answers per prompt, temperature, steps."""
TRAININGS: dict[str, Grpo] = {
    "GRPO s_loc": SEARCH["describe s_loc"],
    "GRPO s_loc and precision": SEARCH["describe s_loc and precision"],
    "GRPO locate 100": SEARCH["locate iou_squared"],
    "GRPO locate": SEARCH["locate iou_squared 300"],
}
"""GRPO in the arms; SPR is set as in the preset."""
SPR = "SPR"
ARMS: tuple[tuple[str, ...], ...] = (
    (SPR,),
    *((name,) for name in TRAININGS),
    (SPR, "GRPO locate"),
    ("GRPO locate", SPR),
)
SHOWN = (
    ("rec", "acc@0.5"),
    ("rec", "acc@0.9"),
    ("rec", "mean_iou"),
    ("description", "s_loc"),
    ("description", "recall@0.5"),
    ("description", "recall@0.9"),
    ("description", "objects_named"),
    ("description", "unmatched_boxes"),
    ("description", "boxes"),
    ("description", "words"),
)


def config_of(data: Path, *changes: str) -> Config:
    """The preset `quickstart` on the scenes in ``data``, in one process."""
    paths = {"annotations.path": data / "instances.json", "annotations.images": data / "images"}
    overrides = [f"{name}={json.dumps(str(path))}" for name, path in paths.items()]
    overrides += [f"{section}.num_processes=1" for section in ("describer", "scorer", "detector")]
    return load_config("quickstart", [*overrides, *changes])


def prepare(data: Path, scenes: int, seed: int, *changes: str) -> Path:
    """The folder ``data`` with scenes and a run of their regions, made unless they exist."""
    write_scenes(data / "scenes", scenes, seed)
    runner.run(config_of(data / "scenes", f"seed={seed}", *changes), data / "run", until="regions")
    return data


def rows_of(data: Path, tasks: Sequence[str]) -> Dataset:
    """The rows that `spr export --format grpo-trl` writes for the run in ``data``."""
    folder = data / ("rows-" + "-".join(tasks))
    export(data / "run", folder, "grpo-trl", prompts=PromptOptions(tasks=tuple(tasks)))
    return load_dataset(str(folder), split="train", cache_dir=str(data / "cache"))


def train_grpo(model: str, data: Path, setting: Grpo, seed: int, folder: Path) -> dict[str, Any]:
    """Train an adapter in ``folder/adapter`` with TRL's `GRPOTrainer`."""
    arguments = GRPOConfig(
        output_dir=str(folder / "trl"),
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=setting.batch,
        num_generations=setting.generations,
        max_steps=setting.steps,
        max_completion_length=160,
        learning_rate=setting.learning_rate,
        temperature=setting.temperature,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model,
        spr.rewards.trl.make(setting.reward),
        arguments,
        rows_of(data, setting.tasks),
        peft_config=LoraConfig(r=32, lora_alpha=64, target_modules=r"model\.language_model\.layers\..*_proj"),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    log = [line for line in trainer.state.log_history if "reward" in line]
    (folder / "log.json").write_text(json.dumps(log))
    part = max(1, len(log) // 10)
    rewards = [float(np.mean([line["reward"] for line in lines])) for lines in (log[:part], log[-part:])]
    return {"answers": setting.steps * setting.batch, "steps": len(log), "rewards": rewards}


def train_spr(model: str, data: Path, seed: int, folder: Path) -> dict[str, Any]:
    """Describe, score, pair and train as `spr quickstart` does; the adapter is in ``folder/adapter``."""
    config = config_of(data / "scenes", f"seed={seed}", f"describer.model={json.dumps(model)}")
    runner.run(config, folder / "run")
    summary = train(config, folder / "run")
    shutil.copytree(folder / "run" / "adapter", folder / "adapter")
    queries = sum(table.num_rows for table in StageStore(folder / "run" / "regions").tables())
    answers = sum(n for _, n in config.describer.samples) * queries
    return {"answers": answers, "steps": summary.steps, "pairs": summary.pairs}


def merge(model: str, adapter: Path, to: Path) -> str:
    """Write the model with the adapter merged, and return its folder."""
    if not (to / "done").is_file():
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(model, to)
        base = AutoModelForImageTextToText.from_pretrained(model)
        PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().save_pretrained(to)
        (to / "done").write_text("")
    return str(to)


def measure(data: Path, model: str, adapter: Path | None, to: Path) -> None:
    """Write the results of both tasks on the scenes in ``data`` to a folder, unless they are there."""
    if (to / "done").is_file():
        return
    describer = HfDescriber(
        model, peft_adapter=adapter, temperature=0.0, batch_size=64, max_new_tokens=160, device="cpu"
    )
    regions, images = Description(prompt=config_of(data / "scenes").prompts.full), data / "scenes" / "images"
    expressions = data / "scenes" / "expressions.json"
    evaluate(Rec(prompt=EMBEDDED_PROMPT), expressions, describer=describer, images=images).write(to / "rec.json")
    found = evaluate(regions, regions.load(data / "run"), describer=describer, images=images)
    found.write(to / "description.json")
    (to / "done").write_text("")


def trained(folder: Path, what: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Train in a folder unless it was done; returns what the training says of itself, and its seconds."""
    file = folder / "training.json"
    if not file.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        start = time.process_time()
        made = what()
        file.write_text(json.dumps({**made, "seconds": time.process_time() - start}))
    return dict(json.loads(file.read_text()))


def search(out: Path, data: Path, tune: Path, names: Sequence[str]) -> None:
    """Train with each setting once, and print what it changes on tuning scenes."""
    measure(tune, MODEL, None, out / "search" / "before")
    base = read_shares(out / "search" / "before", SHOWN)
    print_values("before", {key: share.value() for key, (share, _) in base.items()})
    for name in names:
        folder = out / "search" / name.replace(" ", "_")
        made = trained(folder, lambda: train_grpo(MODEL, data, SEARCH[name], 0, folder))  # noqa: B023 - called at once
        measure(tune, MODEL, folder / "adapter", folder / "tune")
        tuned = read_shares(folder / "tune", SHOWN)
        values = {key: share.value() - base[key][0].value() for key, (share, _) in tuned.items()}
        print_values(f"{name}: {made['seconds']:.0f} s", values)


def final(out: Path, data: Path, held_out: Path, arms: Sequence[tuple[str, ...]], seeds: int) -> None:
    """Train all arms with each seed, and measure them on held-out scenes."""
    measure(held_out, MODEL, None, out / "before")
    for seed in range(seeds):
        for arm in arms:
            model, folder = MODEL, out / str(seed)
            for position, name in enumerate(arm):
                if position:
                    model = merge(model, folder / "adapter", folder / "model")
                folder = folder / name.replace(" ", "_")
                if name == SPR:
                    made = trained(folder, lambda: train_spr(model, data, seed, folder))  # noqa: B023
                else:
                    made = trained(folder, lambda: train_grpo(model, data, TRAININGS[name], seed, folder))  # noqa: B023
            measure(held_out, model, folder / "adapter", folder / "held-out")
            print(f"seed {seed}, {', then '.join(arm)}: {made['seconds']:.0f} s", flush=True)


def table(out: Path, arms: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
    """Print the arms' metrics, means over the seeds, with their differences from before and from each other.

    Two arms are compared over the seeds that both have.
    """
    base = read_shares(out / "before", SHOWN)
    print_values("before", {key: share.value() for key, (share, _) in base.items()})
    found: dict[tuple[str, ...], dict[str, Shares]] = {}
    lines: list[dict[str, Any]] = [
        {"arm": "before", **{" ".join(key): share.value() for key, (share, _) in base.items()}}
    ]
    for arm in arms:
        folders = [place / Path(*(name.replace(" ", "_") for name in arm)) for place in sorted(out.glob("[0-9]*"))]
        folders = [folder for folder in folders if (folder / "held-out" / "done").is_file()]
        if folders:
            found[arm] = {folder.parts[-1 - len(arm)]: read_shares(folder / "held-out", SHOWN) for folder in folders}
            costs = np.mean([cost(folder, len(arm)) for folder in folders], axis=0)
            title = f"{', then '.join(arm)} ({count_text(len(folders), 'seeds')})"
            print(f"\n{title}: {costs[0]:.0f} s, {costs[1]:.0f} answers")
            lines += compare(title, base, averaged(list(found[arm].values())))
    for position, arm in enumerate(arms):
        for other in arms[:position]:
            seeds = sorted(set(found.get(arm, ())) & set(found.get(other, ())))
            if seeds and (other == (SPR,) or set(other) < set(arm)):
                title = f"{', then '.join(arm)} minus {', then '.join(other)} ({count_text(len(seeds), 'seeds')})"
                print(f"\n{title}")
                means = (averaged([found[which][seed] for seed in seeds]) for which in (other, arm))
                lines += compare(title, *means)
    return lines


def cost(folder: Path, trainings: int) -> tuple[float, int]:
    """CPU seconds and generated answers of a sequence of trainings, of which ``folder`` has the last."""
    parts = [json.loads((place / "training.json").read_text()) for place in (folder, *folder.parents)[:trainings]]
    return sum(part["seconds"] for part in parts), sum(part["answers"] for part in parts)


def compare(name: str, a: Shares, b: Shares) -> list[dict[str, Any]]:
    """Print and return the differences of all metrics, B − A, with 95 % intervals that resample scenes."""
    lines: list[dict[str, Any]] = []
    for key, (share, clusters) in b.items():
        found: Difference | None = paired_difference(a[key][0], share, clusters)
        if found is None:
            continue
        interval = f" [{found.ci95[0]:+.4f}, {found.ci95[1]:+.4f}]" if found.ci95 else ""
        print(f"  {' '.join(key):<28}{share.value():8.4f}  {found.value:+.4f}{interval}")
        lines.append({"arm": name, "metric": " ".join(key), "value": share.value()})
        lines[-1] |= {"difference": found.value, "ci95": found.ci95}
    return lines


def print_values(title: str, values: dict[tuple[str, str], float | None]) -> None:
    """One line for each metric."""
    print(title, " ".join(f"{name} {value:+.3f}" for (_, name), value in values.items()), flush=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of TRL and transformers about their own renamed options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("search", "final", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=540)
    parser.add_argument("--tune", type=int, default=200)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", help="settings, or arms such as `SPR,GRPO locate`, separated by semicolons")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out
    wanted = None if arguments.only is None else arguments.only.split(";")
    arms = [arm for arm in ARMS if wanted is None or ",".join(arm) in wanted]
    lines: list[dict[str, Any]] = []
    with quiet():
        if arguments.what != "table":
            data = prepare(out / "train", arguments.scenes, TRAIN)
        if arguments.what == "search":
            tune = prepare(out / "tune", arguments.tune, TUNE, *EXACT)
            search(out, data, tune, [name for name in SEARCH if wanted is None or name in wanted])
            return
        if arguments.what == "final":
            held_out = prepare(out / "held-out", arguments.held_out, HELD_OUT, *EXACT)
            final(out, data, held_out, arms, arguments.seeds)
        lines = table(out, arms)
    print(json.dumps({"benchmark": "grpo", "lines": lines}))


if __name__ == "__main__":
    main()
