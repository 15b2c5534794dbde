"""Measure the effect of preference training on the embedded describer: pairs from generated scenes, held-out metrics.

    python benchmarks/bench_effect.py search --out runs/effect            # tuning scenes, one line per setting
    python benchmarks/bench_effect.py final --out runs/effect --seeds 3   # held-out scenes, ablation, intervals

Prints a table, then one line of JSON. Settings with the same pool share one run up to the scores; each selects its own
pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from spr.config import Config, load_config
from spr.embedded.scenes import write_scenes
from spr.evaluation.metrics import Difference, Share, cluster_numbers, intervals, paired_difference
from spr.evaluation.result import Result, read_items
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.description import Description
from spr.evaluation.tasks.rec import Rec
from spr.grounding.matching import localization_score
from spr.models.chat import user_turn
from spr.models.describers.hf import HfDescriber
from spr.models.loading import model_source
from spr.pipeline import runner
from spr.pipeline.pair import make_pair
from spr.records import Candidate, PreferencePair, RegionQuery, Scores
from spr.records.schemas import from_table
from spr.runs.store import StageStore
from spr.training.pairs import RunImage, TrainingPair
from spr.training.trainer import train

MODEL = model_source("embedded/describer")
TRAIN, TUNE, HELD_OUT = 7_100_001, 7_200_001, 900_000_004
"""Seeds of scenes that the embedded models were not trained on. The first search's held-out seed was 900,000,003."""


PIPELINE_OPTIONS = (
    "describer.samples={full: 2, crop: 2, crop_objects: 2}",
    "scoring={}",
    "pairing={}",
    "detector={backend: owlv2, model: embedded/detector, box_threshold: 0.3}",
    "training={device: cpu}",
)
"""The paper's settings for the embedded models, from which every setting starts, whatever `quickstart` configures."""


POOLS = {
    "train": (1, ()),
    "wide": (2, ("describer.samples={full: 6, crop: 0, crop_objects: 0}", "detector={backend: none}")),
}
"""Sources of pairs: a factor on the number of training scenes, and config overrides."""


@dataclass(frozen=True)
class Setting:
    """One experiment: how pairs are selected, and how the model is trained on them.

    ``samples`` limits the descriptions per region and prompt kind, ``pairs`` the training pairs; None means no limit.
    """

    name: str
    kinds: tuple[str, ...] = ("full", "crop", "crop_objects")
    semantic_weight: float = 0.8
    own_boxes: bool = False
    refine: bool = True
    unmatched: str = "remove_box"
    max_length_ratio: float | None = None
    min_margin: float = 0.0
    pool: str = "train"
    samples: int | None = None
    pairs: int | None = None
    training: dict[str, Any] = field(default_factory=dict)


def pool(out: Path, name: str, scenes: int) -> Path:
    """The run of a pool on training scenes up to the scores; an existing one is reused."""
    times, changes = POOLS[name]
    return prepare(out, name, times * scenes, TRAIN, until="scores", changes=changes)


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
    config = _config(run, setting)
    queries = {query.query_id: query for query in _rows(run, "regions", RegionQuery)}
    candidates = {row.candidate_id: row for row in _rows(run, "candidates", Candidate)}
    scored: dict[str, list[tuple[Candidate, Scores]]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for scores in _rows(run, "scores", Scores):
        candidate = candidates[scores.candidate_id]
        if candidate.prompt_kind not in setting.kinds:
            continue
        seen[candidate.query_id, candidate.prompt_kind] += 1
        if setting.samples is not None and seen[candidate.query_id, candidate.prompt_kind] > setting.samples:
            continue
        if setting.own_boxes:
            boxes = [box for span in candidate.spans for box in span.boxes]
            located = localization_score(queries[candidate.query_id].inside, boxes, [])
            scores = replace(scores, localization=located.score)
        weight = setting.semantic_weight
        combined = weight * scores.semantic + (1 - weight) * scores.localization
        scored.setdefault(candidate.query_id, []).append((candidate, replace(scores, score=combined)))
    results = [
        make_pair(query, scored.get(query_id, []), config.pairing, config.prompts)
        for query_id, query in queries.items()
    ]
    pairs = [pair for pair in results if isinstance(pair, PreferencePair)]
    if not setting.refine:
        pairs = [_unrefined(pair, candidates) for pair in pairs]
    return pairs[: setting.pairs]


def _unrefined(pair: PreferencePair, candidates: dict[str, Candidate]) -> PreferencePair:
    best = candidates[pair.chosen_candidate]
    return replace(pair, chosen=best.text, chosen_spans=best.spans)


def _config(run: Path, setting: Setting) -> Config:
    overrides = [f"pairing.unmatched={setting.unmatched}", f"pairing.min_margin={setting.min_margin}"]
    if setting.max_length_ratio is not None:
        overrides.append(f"pairing.max_length_ratio={setting.max_length_ratio}")
    return load_config(run / "config.yaml", overrides)


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
                pair.query_id, user_turn(pair.prompt), pair.chosen, pair.rejected, load, load.digest, size_wh
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
                source = pool(out, setting.pool, scenes)
                last = train_on(source, pairs_of(source, setting), setting, trained, seed=0)
                adapter = trained / "adapter"
            values = figures(measure(data, adapter, samples=2))
            entry = {"name": setting.name, "values": values, "last": last, "seconds": time.monotonic() - start}
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            known[setting.name] = entry
        print(row(setting.name, known[setting.name]["values"], known["base"]["values"]), flush=True)
    return list(known.values())


def final(out: Path, settings: Sequence[Setting], *, scenes: int, held_out: int, seeds: int) -> list[dict[str, Any]]:
    """Train every setting with several seeds and measure it on held-out scenes; metrics are means over the seeds.

    Confidence intervals resample scenes; both sides of a difference use the same resamples.
    """
    prepare(out, "held-out", held_out, HELD_OUT, until="regions")
    data = out / "held-out-scenes"
    base = _averaged([_measured(out / "final" / "base", data, None)])
    found, counts = {"before": base}, {}
    for setting in settings:
        source = pool(out, setting.pool, scenes)
        pairs = pairs_of(source, setting)
        counts[setting.name] = len(pairs)
        runs = []
        for seed in range(seeds):
            folder = out / "final" / setting.name.replace(" ", "_") / str(seed)
            if not (folder / "adapter" / "adapter_model.safetensors").is_file():
                train_on(source, pairs, setting, folder, seed)
            runs.append(_measured(folder / "held-out", data, folder / "adapter"))
        found[setting.name] = _averaged(runs)
    lines = []
    if {"preference training", "fine-tuning on chosen"} <= set(found):
        print("\ndifference: preference training minus fine-tuning on chosen")
        for (task, metric), (share, clusters) in found["preference training"].items():
            difference = paired_difference(found["fine-tuning on chosen"][task, metric][0], share, clusters)
            if difference is not None:
                print(f"  {task + ' ' + metric:<24}{difference.value:+.4f} {_shown(difference)}")
    for name, shares in found.items():
        print(f"\n{name}" + (f" ({counts[name]:,} pairs)" if name in counts else ""))
        for (task, metric), (share, clusters) in shares.items():
            before, _ = base[task, metric]
            difference = paired_difference(before, share, clusters)
            (interval,) = intervals([share], clusters)
            shown = {"name": name, "figure": f"{task} {metric}", "value": share.value(), "ci95": interval.ci95}
            text = f"  {task + ' ' + metric:<24}{share.value():8.4f}"
            if name != "before" and difference is not None:
                shown |= {"difference": difference.value, "difference_ci95": difference.ci95, "p": difference.p}
                text += f"  {difference.value:+.4f} {_shown(difference)}  p {difference.p:.4f}"
            print(text, flush=True)
            lines.append(shown)
    return lines


def _shown(difference: Difference) -> str:
    return "[{:+.4f}, {:+.4f}]".format(*difference.ci95) if difference.ci95 else f"[– {difference.reason}]"


def _measured(folder: Path, data: Path, adapter: Path | None) -> dict[tuple[str, str], tuple[Share, Any]]:
    """The held-out metrics per item; results in ``folder`` are reused."""
    if not (folder / "done").is_file():
        for task, result in measure(data, adapter, samples=1).items():
            result.write(folder / f"{task}.json")
        (folder / "done").write_text("")
    found = {}
    for task in ("rec", "greedy", "sampled"):
        _, images, shares = read_items(folder / f"{task}.items.parquet")
        clusters = cluster_numbers(images)
        found |= {(task, name): (share, clusters) for name, share in shares.items() if (task, name) in SHOWN}
    return found


def _averaged(runs: Sequence[dict[tuple[str, str], tuple[Share, Any]]]) -> dict[tuple[str, str], tuple[Share, Any]]:
    """Each item's mean over the seeds."""
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


OWN = {"semantic_weight": 0.0, "own_boxes": True, "unmatched": "keep_box"}
_BEST = dpo(3e-4, nll_weight=0.5)
_FULL = {"kinds": ("full",), **OWN}


def _wide(name: str, training: dict[str, Any] = _BEST, **more: Any) -> Setting:
    """The selected setting with pairs from the wide pool; by default two descriptions per region and 1,000 pairs."""
    return Setting(f"wide {name}", pool="wide", **{"samples": 2, "pairs": 1000, **_FULL, **more}, training=training)


SEARCH = (
    Setting("dpo 1e-4", training=dpo(1e-4)),
    Setting("sft 3e-4", training=dpo(3e-4, loss_type="sft")),
    Setting("dpo 1e-4 nll 1", training=dpo(1e-4, nll_weight=1.0)),
    Setting("dpo 3e-4 nll 1", training=dpo(3e-4, nll_weight=1.0)),
    Setting("dpo 3e-5", training=dpo(3e-5)),
    Setting("keep dpo 3e-4", unmatched="keep_box", training=dpo(3e-4)),
    Setting("keep dpo 1e-4 x3", unmatched="keep_box", training=dpo(1e-4, num_train_epochs=3)),
    Setting("keep sft 1e-4", unmatched="keep_box", training=dpo(1e-4, loss_type="sft")),
    Setting("keep dpo 1e-4 b.5", unmatched="keep_box", training=dpo(1e-4, beta=0.5)),
    Setting("full own dpo 1e-4", kinds=("full",), **OWN, training=dpo(1e-4)),
    Setting("full own dpo 3e-4", kinds=("full",), **OWN, training=dpo(3e-4)),
    Setting("full own sft 3e-4", kinds=("full",), **OWN, training=dpo(3e-4, loss_type="sft")),
    Setting("full own dpo 3e-4 nll.5", kinds=("full",), **OWN, training=dpo(3e-4, nll_weight=0.5)),
    Setting("full own dpo 3e-4 x2", kinds=("full",), **OWN, training=dpo(3e-4, num_train_epochs=2)),
    Setting("full own dpo 6e-4", kinds=("full",), **OWN, training=dpo(6e-4)),
    Setting("full own dpo 3e-4 b.3", kinds=("full",), **OWN, training=dpo(3e-4, beta=0.3)),
    Setting("full own dpo 3e-4 bs8", kinds=("full",), **OWN, training=dpo(3e-4, per_device_train_batch_size=8)),
    Setting("full own .8 dpo 3e-4", kinds=("full",), **{**OWN, "semantic_weight": 0.8}, training=dpo(3e-4)),
    Setting("full .8 dpo 3e-4", kinds=("full",), unmatched="keep_box", training=dpo(3e-4)),
    Setting("full .8 rm dpo 3e-4", kinds=("full",), training=dpo(3e-4)),
    Setting("full .8 rm sft 3e-4", kinds=("full",), training=dpo(3e-4, loss_type="sft")),
    Setting("own dpo 1e-4 x3", **OWN, training=dpo(1e-4, num_train_epochs=3)),
    Setting("own dpo 3e-4", **OWN, training=dpo(3e-4)),
    _wide("k2"),
    _wide("k4", samples=4),
    _wide("k6", samples=6),
    _wide("k2 sft", dpo(3e-4, loss_type="sft")),
    _wide("k6 sft", dpo(3e-4, loss_type="sft"), samples=6),
    _wide("k2 nll 1", dpo(3e-4, nll_weight=1.0)),
    _wide("k2 nll 2", dpo(3e-4, nll_weight=2.0)),
    _wide("k2 nll 5", dpo(3e-4, nll_weight=5.0)),
    _wide("k2 2000", pairs=2000),
    _wide("k2 2000 sft", dpo(3e-4, loss_type="sft"), pairs=2000),
    _wide("k2 rank 8", {**_BEST, "lora.r": 8, "lora.lora_alpha": 16}),
    _wide("k2 rank 128", {**_BEST, "lora.r": 128, "lora.lora_alpha": 256}),
    _wide("k2 length 1.1", max_length_ratio=1.1, pairs=1000),
    _wide("k2 margin .1", min_margin=0.1, pairs=1000),
    _wide("k6 nll 5", dpo(3e-4, nll_weight=5.0), samples=6),
    _wide("k6 2000", samples=6, pairs=2000),
    _wide("k6 2000 sft", dpo(3e-4, loss_type="sft"), samples=6, pairs=2000),
    _wide("k6 2000 nll 2", dpo(3e-4, nll_weight=2.0), samples=6, pairs=2000),
    _wide("k6 2000 nll 5", dpo(3e-4, nll_weight=5.0), samples=6, pairs=2000),
    _wide("k6 2000 nll 5 length 1.1", dpo(3e-4, nll_weight=5.0), samples=6, pairs=2000, max_length_ratio=1.1),
)


_SIX = {**_FULL, "pool": "wide", "samples": 6, "pairs": 2000}
_CHOSEN = dpo(3e-4, nll_weight=2.0)
FINAL = (
    Setting("preference training", **_SIX, training=_CHOSEN),
    Setting("fine-tuning on chosen", **_SIX, training=dpo(3e-4, loss_type="sft")),
    Setting("without refinement", **_SIX, refine=False, training=_CHOSEN),
    Setting("lambda 0.8", **{**_SIX, "semantic_weight": 0.8}, training=_CHOSEN),
    Setting("lambda 1", **{**_SIX, "semantic_weight": 1.0}, training=_CHOSEN),
    Setting("two descriptions and half the pairs", **{**_SIX, "samples": 2, "pairs": 1000}, training=_BEST),
)


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("search", "final"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--tune", type=int, default=300)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="comma-separated names of settings")
    arguments = parser.parse_args()
    wanted = None if arguments.only is None else arguments.only.split(",")
    settings = [setting for setting in SEARCH if wanted is None or setting.name in wanted]
    if arguments.what == "search":
        lines = search(arguments.out, settings, scenes=arguments.scenes, tune=arguments.tune)
    else:
        sizes = {"scenes": arguments.scenes, "held_out": arguments.held_out, "seeds": arguments.seeds}
        lines = final(arguments.out, [s for s in FINAL if wanted is None or s.name in wanted], **sizes)
    print(json.dumps({"benchmark": "effect", "what": arguments.what, "settings": lines}))


if __name__ == "__main__":
    main()
