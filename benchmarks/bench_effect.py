"""Measure the effect of preference training on the embedded describer: pairs from generated scenes, held-out metrics.

    python benchmarks/bench_effect.py search --out runs/effect            # tuning scenes, one line per setting
    python benchmarks/bench_effect.py final --out runs/effect --seeds 3   # held-out scenes, ablation, intervals
    python benchmarks/bench_effect.py table --out runs/effect             # what is measured so far, training nothing

Prints a table, then one line of JSON. Settings with the same pool share one run up to the scores; each selects its own
pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from spr.config import load_config
from spr.embedded.scenes import write_scenes
from spr.evaluation.metrics import Share, cluster_numbers, paired_difference
from spr.evaluation.result import Result, read_items
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.description import Description
from spr.evaluation.tasks.rec import Rec
from spr.models.chat import user_turn
from spr.models.describers.hf import HfDescriber
from spr.models.loading import model_source
from spr.pipeline import runner
from spr.pipeline.pair import make_pairs
from spr.records import Candidate, PreferencePair, RegionQuery, Scores
from spr.records.schemas import from_table
from spr.runs.store import StageStore
from spr.training.pairs import RunImage, TrainingPair
from spr.training.trainer import train

MODEL = model_source("embedded/describer")
TUNE, HELD_OUT = 7_200_001, 900_000_005
"""Seeds of scenes that the embedded models were not trained on. Earlier searches' held-out seeds were 900,000,003 and
900,000,004."""

PIPELINE_OPTIONS = (
    "scoring={}",
    "pairing={}",
    "detector={backend: owlv2, model: embedded/detector, box_threshold: 0.3}",
    "training={device: cpu}",
)
"""The paper's settings for the embedded models, from which every setting starts, whatever `quickstart` configures."""

POOLS = {"one": 7_100_001, "two": 7_300_001}
"""Independent pools of candidates, by the seed of their scenes."""
SAMPLES = {
    "all": "describer.samples={full: 2, crop: 2, crop_objects: 2}",
    "full": "describer.samples={full: 6, crop: 0, crop_objects: 0}",
}
"""The descriptions of each region: six in all, from all kinds of prompts or from the training prompt alone."""


@dataclass(frozen=True)
class Setting:
    """One experiment: how pairs are selected, and how the model is trained on them."""

    name: str
    samples: str = "all"
    semantic_weight: float = 0.8
    refine: bool = True
    pairing: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def pool(out: Path, name: str, samples: str, scenes: int) -> Path:
    """The run of a pool up to the scores; an existing one is reused."""
    return prepare(out, f"{name}-{samples}", scenes, POOLS[name], until="scores", changes=[SAMPLES[samples]])


def prepare(out: Path, name: str, scenes: int, seed: int, *, until: str, changes: Sequence[str] = ()) -> Path:
    """Write scenes and run the pipeline on them up to a stage; existing ones are reused."""
    data, run = out / f"{name}-scenes", out / f"{name}-run"
    if not (data / "instances.json").is_file():
        write_scenes(data, scenes, seed)
    paths = {"annotations.path": data / "instances.json", "annotations.images": data / "images"}
    overrides = [f"{name}={json.dumps(str(path))}" for name, path in paths.items()]
    overrides += [*PIPELINE_OPTIONS, *changes, f"seed={seed}", "shard_rows=4096"]
    runner.run(load_config("quickstart", overrides), run, until=until)
    return run


def pairs_of(run: Path, setting: Setting) -> list[PreferencePair]:
    """Combine the run's scores and select pairs again, as the setting asks."""
    pairing = [f"pairing.{name}={json.dumps(value)}" for name, value in setting.pairing.items()]
    config = load_config(run / "config.yaml", pairing)
    candidates = {row.candidate_id: row for row in _rows(run, "candidates", Candidate)}
    weight = setting.semantic_weight
    scores = [
        replace(row, score=weight * row.semantic + (1 - weight) * row.localization)
        for row in _rows(run, "scores", Scores)
    ]
    queries = _rows(run, "regions", RegionQuery)
    pairs = make_pairs(queries, candidates.values(), scores, config.pairing, config.prompts, seed=config.seed)
    return pairs if setting.refine else [_unrefined(pair, candidates) for pair in pairs]


def _unrefined(pair: PreferencePair, candidates: dict[str, Candidate]) -> PreferencePair:
    best = candidates[pair.chosen_candidate]
    return replace(pair, chosen=best.text, chosen_spans=best.spans)


def _rows(run: Path, stage: str, kind: Any) -> Iterator[Any]:
    for table in StageStore(run / stage).tables():
        yield from from_table(table, kind)


def train_on(run: Path, pairs: Sequence[PreferencePair], setting: Setting, out: Path, seed: int) -> dict[str, float]:
    """Train an adapter in ``out/adapter``; the log-probabilities of the reference model are shared between settings."""
    config = load_config(run / "config.yaml")
    changes = {f"training.{key}": value for key, value in {"vision_cache": "memory", **setting.training}.items()}
    section = load_config(
        run / "config.yaml", [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    ).training

    def each() -> Iterator[TrainingPair]:
        for pair in pairs:
            size_wh = pair.width, pair.height
            load = RunImage(config.annotations.image_source, pair.file_name, size_wh)
            yield TrainingPair(
                pair.pair_id, user_turn(pair.prompt), pair.chosen, pair.rejected, load, load.digest, size_wh
            )

    shared, own = out.parent / "reference.parquet", out / "training" / "reference.parquet"
    shutil.rmtree(out, ignore_errors=True)
    if shared.is_file():
        own.parent.mkdir(parents=True)
        shutil.copyfile(shared, own)
    done = train(each(), MODEL, section, out, seed=seed)
    if own.is_file():
        shutil.copyfile(own, shared)
    return done.last


def measure(data: Path, adapter: Path | None, *, samples: int, limit: int | None = None) -> dict[str, Result]:
    """Evaluate on the scenes in ``data``: greedy REC, greedy descriptions, and sampled descriptions."""
    greedy = HfDescriber(MODEL, peft_adapter=adapter, temperature=0.0, batch_size=128, max_new_tokens=160)
    regions = Description().load(data.with_name(data.name.replace("-scenes", "-run")))
    regions = replace(regions, queries=regions.queries[:limit])
    images = data / "images"
    found = {
        "rec": evaluate(Rec(prompt=REC), data / "expressions.json", describer=greedy, images=images),
        "greedy": evaluate(Description(), regions, describer=greedy, images=images),
    }
    if samples:
        sampling = greedy.with_sampling(temperature=1.0, top_p=0.95)
        found["sampled"] = evaluate(Description(samples=samples), regions, describer=sampling, images=images)
    return found


REC = "Where is {expression}?"
SHOWN = (
    ("rec", "acc@0.5"),
    ("rec", "acc@0.7"),
    ("rec", "acc@0.9"),
    ("rec", "mean_iou"),
    ("greedy", "s_loc"),
    ("greedy", "recall@0.5"),
    ("greedy", "recall@0.9"),
    ("greedy", "objects_named"),
    ("greedy", "unmatched_boxes"),
    ("greedy", "words"),
    ("sampled", "s_loc"),
    ("sampled", "recall@0.5"),
    ("sampled", "recall@0.9"),
    ("sampled", "words"),
)


def figures(found: dict[str, Result]) -> dict[str, float]:
    """The metrics in `SHOWN` that were measured, by ``"task metric"``."""
    return {
        f"{task} {name}": float(found[task].value(name) or 0.0)
        for task, name in SHOWN
        if task in found and name in found[task].shares
    }


def row(name: str, values: dict[str, float], base: dict[str, float]) -> str:
    """One line of the table: the metrics of the base, or the differences from it."""
    cells = []
    for key in (f"{task} {figure}" for task, figure in SHOWN):
        if key not in values or key not in base:  # measured before this metric was added
            cells.append(f"{'–':>9}")
        else:
            cells.append(f"{values[key]:9.3f}" if values is base else f"{values[key] - base[key]:+9.3f}")
    return f"{name:<34}" + "".join(cells)


def search(out: Path, settings: Sequence[Setting], *, scenes: int, tune: int) -> list[dict[str, Any]]:
    """Train every setting once and measure it on tuning scenes; results in ``search.jsonl`` are reused."""
    prepare(out, "tune", tune, TUNE, until="regions")
    data, log = out / "tune-scenes", out / "search.jsonl"
    known = {line["name"]: line for line in map(json.loads, log.read_text().splitlines())} if log.is_file() else {}
    print(f"{'':<34}" + "".join(f"{name[:8]:>9}" for _, name in SHOWN))
    for setting in (Setting("base"), *settings):
        if setting.name not in known:
            adapter, last, start = None, {}, time.monotonic()
            if setting.name != "base":
                trained = out / f"work-{os.getpid()}" / "trained"
                source = pool(out, "one", setting.samples, scenes)
                last = train_on(source, pairs_of(source, setting), setting, trained, seed=0)
                adapter = trained / "adapter"
            values = figures(measure(data, adapter, samples=2))
            entry = {"name": setting.name, "values": values, "last": last, "seconds": time.monotonic() - start}
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            known[setting.name] = entry
        print(row(setting.name, known[setting.name]["values"], known["base"]["values"]), flush=True)
    return list(known.values())


def final(out: Path, settings: Sequence[Setting], *, scenes: int, held_out: int, seeds: int) -> None:
    """Train every setting with several seeds on both pools, and measure it on held-out scenes; existing results count.

    Several processes may do this together, with other ``--only``.
    """
    prepare(out, "held-out", held_out, HELD_OUT, until="regions")
    data = out / "held-out-scenes"
    _measured(out / "final" / "base", data, None)
    for setting in settings:
        for name in POOLS:
            source = pool(out, name, setting.samples, scenes)
            pairs = pairs_of(source, setting)
            for seed in range(seeds):
                folder = out / "final" / setting.name.replace(" ", "_") / name / str(seed)
                if not (folder / "held-out" / "done").is_file():
                    train_on(source, pairs, setting, folder, seed)
                    (folder / "pairs").write_text(str(len(pairs)))
                _measured(folder / "held-out", data, folder / "adapter")


Shares: TypeAlias = dict[tuple[str, str], tuple[Share, Any]]


def table(out: Path, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Print what `final` has measured: means over seeds, over both pools together and for each alone.

    Confidence intervals resample scenes; both sides of a difference use the same resamples.
    """
    base = _read(out / "final" / "base")
    lines: list[dict[str, Any]] = []
    found: dict[str, dict[str, list[Shares]]] = {}
    for setting in settings:
        folders = sorted((out / "final" / setting.name.replace(" ", "_")).glob("*/*/held-out/done"))
        for folder in (done.parent for done in folders):
            found.setdefault(setting.name, {}).setdefault(folder.parts[-3], []).append(_read(folder))
    _print_rows("before", {"": base}, None, lines)
    for name, pools in found.items():
        both = [run for runs in pools.values() for run in runs]
        count = f"{name} ({len(both)} trainings)"
        _print_rows(count, {"": _averaged(both), **{key: _averaged(runs) for key, runs in pools.items()}}, base, lines)
    reference = _averaged([run for runs in found["paper"].values() for run in runs]) if "paper" in found else None
    for name, pools in found.items():
        if reference is not None and name != "paper":
            other = {"": _averaged([run for runs in pools.values() for run in runs])}
            other |= {key: _averaged(runs) for key, runs in pools.items()}
            _print_rows(f"{name} minus the paper's setting", other, reference, lines)
    return lines


def _print_rows(title: str, averages: dict[str, Shares], base: Shares | None, lines: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    for task, metric in averages[""]:
        text, entry = f"  {task + ' ' + metric:<24}", {"name": title, "figure": f"{task} {metric}"}
        for key, shares in averages.items():
            share, clusters = shares[task, metric]
            if base is None:
                text += f"{share.value():8.4f}"
                entry["value"] = share.value()
                continue
            difference = paired_difference(base[task, metric][0], share, clusters)
            if difference is None:
                continue
            if key:
                text += f"   {key} {difference.value:+.4f}"
                entry[f"pool {key}"] = difference.value
            else:
                text += f"{share.value():8.4f}  {difference.value:+.4f}"
                entry |= {"value": share.value(), "difference": difference.value, "p": difference.p}
                if difference.ci95 is not None:
                    text += f" [{difference.ci95[0]:+.4f}, {difference.ci95[1]:+.4f}]"
                    entry["difference_ci95"] = difference.ci95
        print(text, flush=True)
        lines.append(entry)


def _read(folder: Path) -> Shares:
    found: Shares = {}
    for task in ("rec", "greedy", "sampled"):
        _, images, shares = read_items(folder / f"{task}.items.parquet")
        clusters = cluster_numbers(images)
        found |= {(task, name): (share, clusters) for name, share in shares.items() if (task, name) in SHOWN}
    return found


def _measured(folder: Path, data: Path, adapter: Path | None) -> None:
    """Write the held-out metrics per item to a folder, unless they are there."""
    if not (folder / "done").is_file():
        for task, result in measure(data, adapter, samples=1).items():
            result.write(folder / f"{task}.json")
        (folder / "done").write_text("")


def _averaged(runs: Sequence[Shares]) -> Shares:
    """Each item's mean over the runs."""
    return {
        key: (
            Share(
                np.mean([run[key][0].parts for run in runs], axis=0),
                np.mean([run[key][0].wholes for run in runs], axis=0),
            ),
            clusters,
        )
        for key, (_, clusters) in runs[0].items()
    }


def dpo(rate: float, **more: Any) -> dict[str, Any]:
    """Training fields: a rank-32 adapter and batches of 16 pairs."""
    lora = {"lora.r": 32, "lora.lora_alpha": 64}
    return {**lora, "per_device_train_batch_size": 16, "learning_rate": rate, **more}


_PAPER = dpo(3e-4, beta=0.5, num_train_epochs=2)
_SFT = dpo(3e-4, loss_type="sft", num_train_epochs=2)
_BOXES = {"kind": "boxes", "box_iou": [0.5, 0.8]}
_BOTH = {"kind": "both", "box_iou": [0.5, 0.8]}

SEARCH = (
    Setting("dpo 3e-4 b.5 x2", training=_PAPER),
    Setting("sft 3e-4 x2", training=_SFT),
    Setting("boxes b.1", pairing=_BOXES, training=dpo(3e-4)),
    Setting("both b.5", pairing=_BOTH, training=dpo(3e-4, beta=0.5)),
    Setting("gamma 3 b.5 x2", training={**_PAPER, "box_token_weight": 3.0}),
    Setting("both b.5 keep", pairing={**_BOTH, "unmatched": "keep_box"}, training=dpo(3e-4, beta=0.5)),
    Setting("boxes .7-.95 b.1", pairing={"kind": "boxes", "box_iou": [0.7, 0.95]}, training=dpo(3e-4)),
    Setting("both .7-.95 b.5", pairing={"kind": "both", "box_iou": [0.7, 0.95]}, training=dpo(3e-4, beta=0.5)),
)

FINAL = (
    Setting("paper", training=_PAPER),
    Setting("fine-tuning on chosen", training=_SFT),
    Setting("lambda 0", semantic_weight=0.0, training=_PAPER),
    Setting("lambda 1", semantic_weight=1.0, training=_PAPER),
    Setting("without refinement", refine=False, training=_PAPER),
    Setting("whole image only", samples="full", training=_PAPER),
    Setting("keep_box", pairing={"unmatched": "keep_box"}, training=_PAPER),
    Setting("boxes too", pairing=_BOTH, training=_PAPER),
)


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("search", "final", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=1400)
    parser.add_argument("--tune", type=int, default=300)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="comma-separated names of settings")
    arguments = parser.parse_args()
    wanted = None if arguments.only is None else arguments.only.split(",")
    known = SEARCH if arguments.what == "search" else FINAL
    settings = [setting for setting in known if wanted is None or setting.name in wanted]
    lines: list[dict[str, Any]] = []
    if arguments.what == "search":
        lines = search(arguments.out, settings, scenes=arguments.scenes, tune=arguments.tune)
    else:
        if arguments.what == "final":
            sizes = {"scenes": arguments.scenes, "held_out": arguments.held_out, "seeds": arguments.seeds}
            final(arguments.out, settings, **sizes)
        lines = table(arguments.out, settings)
    print(json.dumps({"benchmark": "effect", "what": arguments.what, "settings": lines}))


if __name__ == "__main__":
    main()
