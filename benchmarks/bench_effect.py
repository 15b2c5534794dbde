"""Measure the effect of preference training on the embedded describer: pairs from generated scenes, held-out metrics.

    python benchmarks/bench_effect.py pools --out runs/effect             # candidates and scores, which the others use
    python benchmarks/bench_effect.py search --out runs/effect            # tuning scenes, one line per setting
    python benchmarks/bench_effect.py final --out runs/effect --seeds 3   # held-out scenes, with the best of the search
    python benchmarks/bench_effect.py table --out runs/effect             # what is measured so far, training nothing

``--jobs`` trains several settings at once, each in a process of its own, and ``--device cuda`` does so on a GPU. Prints
a table, then one line of JSON. Settings with the same pool share one run up to the scores; each selects its own pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from item_shares import Shares, averaged, read_shares
from spr.config import load_config
from spr.embedded.scenes import write_scenes
from spr.evaluation.metrics import paired_difference
from spr.evaluation.result import Result
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
    "training={}",
)
"""The paper's settings for the embedded models, from which every setting starts, whatever `quickstart` configures."""

BATCH = {"cpu": 128, "cuda": 512}
"""Answers that are generated together, by device."""

EXACT = ("annotations.crowds=drop",)
"""For the scenes of an evaluation, whose objects are all annotated: a detector's boxes are no ground truth."""

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
    choice: str = ""
    """The question of `choose` that the setting may be the answer to."""


def pool(out: Path, name: str, samples: str, scenes: int, device: str) -> Path:
    """The run of a pool up to the scores; an existing one is reused."""
    changes = [SAMPLES[samples]]
    return prepare(out, f"{name}-{samples}", scenes, POOLS[name], until="scores", device=device, changes=changes)


def prepare(
    out: Path, name: str, scenes: int, seed: int, *, until: str, device: str, changes: Sequence[str] = ()
) -> Path:
    """Write scenes and run the pipeline on them up to a stage; existing ones are reused."""
    data, run = out / f"{name}-scenes", out / f"{name}-run"
    if not (data / "instances.json").is_file():
        write_scenes(data, scenes, seed)
    paths = {"annotations.path": data / "instances.json", "annotations.images": data / "images"}
    overrides = [f"{name}={json.dumps(str(path))}" for name, path in paths.items()]
    overrides += [*PIPELINE_OPTIONS, *changes, f"seed={seed}", "shard_rows=4096"]
    overrides += [f"describer.batch_size={BATCH[device]}"]
    overrides += [f"{section}.device={device}" for section in ("describer", "scorer", "detector", "training")]
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
    """Train an adapter in ``out/adapter``, from the start."""
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

    shutil.rmtree(out / "training", ignore_errors=True)
    shutil.rmtree(out / "adapter", ignore_errors=True)
    return train(each(), MODEL, section, out, seed=seed).last


def measure(data: Path, adapter: Path | None, *, samples: int, device: str) -> dict[str, Result]:
    """Evaluate on the scenes in ``data``: greedy REC, greedy descriptions, and sampled descriptions."""
    options = {"temperature": 0.0, "batch_size": BATCH[device], "max_new_tokens": 160, "device": device}
    greedy = HfDescriber(MODEL, peft_adapter=adapter, **options)
    regions = Description().load(data.with_name(data.name.replace("-scenes", "-run")))
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
    ("rec", "acc@0.6"),
    ("rec", "acc@0.7"),
    ("rec", "acc@0.8"),
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


@dataclass(frozen=True)
class Bench:
    """Where results go, on how many scenes they are measured, and what computes them."""

    out: Path
    scenes: int
    device: str
    jobs: int

    def each(self, work: Sequence[Callable[[], Any]]) -> Iterable[Any]:
        """Do all of the work, in any order, ``jobs`` at a time; raises what one of them raises."""
        with ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn")) as workers:
            for done in as_completed([workers.submit(one) for one in work]):
                yield done.result()

    def scores_of(self, pool_name: str, samples: str) -> Path:
        """The run of a pool up to the scores, made if it is not there."""
        return pool(self.out, pool_name, samples, self.scenes, self.device)

    def prepare_all(self, *, tune: int = 0, held_out: int = 0) -> None:
        """Make every pool's scores, and the scenes to measure on, at the same time; what is there is not made again."""
        work: list[Callable[[], Any]] = [
            partial(self.scores_of, name, samples) for name, samples in product(POOLS, SAMPLES)
        ]
        options = {"until": "regions", "device": self.device, "changes": EXACT}
        for name, scenes, seed in (("tune", tune, TUNE), ("held-out", held_out, HELD_OUT)):
            if scenes:
                work.append(partial(prepare, self.out, name, scenes, seed, **options))
        list(self.each(work))

    def train(self, setting: Setting, pool_name: str, seed: int, folder: Path) -> dict[str, float]:
        """Train an adapter in ``folder/adapter`` on the setting's pairs."""
        run = self.out / f"{pool_name}-{setting.samples}-run"
        pairs = pairs_of(run, setting)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pairs").write_text(str(len(pairs)))
        changed = replace(setting, training={"device": self.device, **setting.training})
        return train_on(run, pairs, changed, folder, seed)


def search(bench: Bench, settings: Sequence[Setting], *, tune: int) -> list[dict[str, Any]]:
    """Train every setting once and measure it on tuning scenes; results in ``search.jsonl`` are reused."""
    bench.prepare_all(tune=tune)
    known = _searched_before(bench.out)
    todo = [setting for setting in (Setting("base"), *settings) if setting.name not in known]
    for entry in bench.each([partial(_searched, bench, setting) for setting in todo]):
        with (bench.out / "search.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        known[entry["name"]] = entry
        print(f"{entry['name']}: trained {entry['trained_s']:.0f} s, all {entry['seconds']:.0f} s", flush=True)
    print(f"{'':<34}" + "".join(f"{name[:8]:>9}" for _, name in SHOWN))
    for setting in (Setting("base"), *settings):
        print(row(setting.name, known[setting.name]["values"], known["base"]["values"]), flush=True)
    return list(known.values())


def _searched(bench: Bench, setting: Setting) -> dict[str, Any]:
    adapter, last, trained_s, start = None, {}, 0.0, time.monotonic()
    if setting.name != "base":
        trained = bench.out / "search" / setting.name.replace(" ", "_")
        last = bench.train(setting, "one", 0, trained)
        adapter, trained_s = trained / "adapter", time.monotonic() - start
    values = figures(measure(bench.out / "tune-scenes", adapter, samples=2, device=bench.device))
    return {
        "name": setting.name,
        "values": values,
        "last": last,
        "trained_s": trained_s,
        "seconds": time.monotonic() - start,
    }


def final(bench: Bench, settings: Sequence[Setting], *, held_out: int, seeds: int) -> None:
    """Train every setting with several seeds on both pools, and measure it on held-out scenes; existing results count.

    Several processes may do this together, with other ``--only``.
    """
    bench.prepare_all(held_out=held_out)
    work = [partial(_measured, bench, bench.out / "final" / "base", None)]
    for seed in range(seeds):
        for setting in settings:
            work += [partial(_finished, bench, setting, name, seed) for name in POOLS]
    for done in bench.each(work):
        print(done, flush=True)


def _finished(bench: Bench, setting: Setting, pool_name: str, seed: int) -> str:
    folder = bench.out / "final" / setting.name.replace(" ", "_") / pool_name / str(seed)
    start = time.monotonic()
    if not (folder / "held-out" / "done").is_file():
        bench.train(setting, pool_name, seed, folder)
    trained = time.monotonic() - start
    _measured(bench, folder / "held-out", folder / "adapter")
    return f"{folder}: trained {trained:.0f} s, all {time.monotonic() - start:.0f} s"


def table(out: Path, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Print what `final` has measured: means over seeds, over both pools together and for each alone.

    Confidence intervals resample scenes; both sides of a difference use the same resamples.
    """
    base = read_shares(out / "final" / "base", SHOWN)
    lines: list[dict[str, Any]] = []
    found: dict[str, dict[str, list[Shares]]] = {}
    for setting in settings:
        folders = sorted((out / "final" / setting.name.replace(" ", "_")).glob("*/*/held-out/done"))
        for folder in (done.parent for done in folders):
            found.setdefault(setting.name, {}).setdefault(folder.parts[-3], []).append(read_shares(folder, SHOWN))
    _print_rows("before", {"": base}, None, lines)
    averages = {name: _averages(pools) for name, pools in found.items()}
    for name, of_pools in averages.items():
        count = sum(map(len, found[name].values()))
        _print_rows(f"{name} ({count} trainings)", of_pools, dict.fromkeys(of_pools, base), lines)
    for reference, others in (
        ("plain DPO", set(found) - {"plain DPO"}),
        ("fine-tuning on chosen", {"boxes", "box pairs and NLL"}),
    ):
        for name in found:
            if reference in found and name in others:
                _print_rows(f"{name} minus {reference}", averages[name], averages[reference], lines)
    return lines


def _averages(pools: dict[str, list[Shares]]) -> dict[str, Shares]:
    """Each item's mean over all trainings, under ``""``, and over those of each pool, under its name."""
    every = [run for runs in pools.values() for run in runs]
    return {"": averaged(every), **{key: averaged(runs) for key, runs in pools.items()}}


def _print_rows(
    title: str, averages: dict[str, Shares], bases: dict[str, Shares] | None, lines: list[dict[str, Any]]
) -> None:
    print(f"\n{title}")
    for task, metric in averages[""]:
        text, entry = f"  {task + ' ' + metric:<24}", {"name": title, "figure": f"{task} {metric}"}
        for key, shares in averages.items():
            share, clusters = shares[task, metric]
            if bases is None:
                text += f"{share.value():8.4f}"
                entry["value"] = share.value()
                continue
            difference = None if key not in bases else paired_difference(bases[key][task, metric][0], share, clusters)
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


def _measured(bench: Bench, folder: Path, adapter: Path | None) -> str:
    """Write the held-out metrics per item to a folder, unless they are there."""
    if not (folder / "done").is_file():
        for task, result in measure(bench.out / "held-out-scenes", adapter, samples=1, device=bench.device).items():
            result.write(folder / f"{task}.json")
        (folder / "done").write_text("")
    return str(folder)


def dpo(rate: float, **more: Any) -> dict[str, Any]:
    """Training fields: a rank-32 adapter and batches of 16 pairs."""
    lora = {"lora.r": 32, "lora.lora_alpha": 64}
    return {**lora, "per_device_train_batch_size": 16, "learning_rate": rate, **more}


def _pair(**pairing: Any) -> dict[str, Any]:
    return {"unmatched": "keep_box", **pairing}


_TWICE = {"num_train_epochs": 2}
_KEEP, _REMOVE = _pair(), _pair(unmatched="remove_box")
_BOXES, _BOTH = _pair(kind="boxes", box_iou=[0.5, 0.8]), _pair(kind="both", box_iou=[0.5, 0.8])
_NEAR = _pair(kind="both", box_iou=[0.7, 0.95])

SEARCH = (
    *(
        Setting(f"β {beta} {name}{' ×2' * (epochs == 2)}", pairing=pairing, training=training, choice="plain")
        for beta, epochs in ((0.1, 1), (0.3, 1), (0.3, 2), (0.5, 2), (1.0, 2))
        for name, pairing in (("keep", _KEEP), ("remove", _REMOVE))
        for training in [dpo(3e-4, beta=beta, num_train_epochs=epochs)]
    ),
    Setting("β 1 keep ×3", pairing=_KEEP, training=dpo(3e-4, beta=1.0, num_train_epochs=3), choice="plain"),
    Setting("sft keep ×2", pairing=_KEEP, training=dpo(3e-4, loss_type="sft", **_TWICE)),
    Setting("sft keep ×3", pairing=_KEEP, training=dpo(3e-4, loss_type="sft", num_train_epochs=3)),
    Setting("sft keep 6e-4 ×2", pairing=_KEEP, training=dpo(6e-4, loss_type="sft", **_TWICE)),
    Setting("sft remove ×2", pairing=_REMOVE, training=dpo(3e-4, loss_type="sft", **_TWICE)),
    *(
        Setting(f"{name} {more}", pairing=pairing, training=dpo(3e-4, **options), choice="boxes")
        for name, pairing, more, options in (
            ("keep", _KEEP, "β 0.5 γ 3 ×2", {"beta": 0.5, "box_token_weight": 3.0, **_TWICE}),
            ("keep", _KEEP, "β 0.1 γ 3", {"box_token_weight": 3.0}),
            ("keep", _KEEP, "β 0.5 γ 10", {"beta": 0.5, "box_token_weight": 10.0}),
            ("keep", _KEEP, "β 0.5 γ 3 NLL 2 ×2", {"beta": 0.5, "box_token_weight": 3.0, "nll_weight": 2.0, **_TWICE}),
            ("keep", _KEEP, "β 0.5 γ 3 NLL 5 ×2", {"beta": 0.5, "box_token_weight": 3.0, "nll_weight": 5.0, **_TWICE}),
            ("keep", _KEEP, "β 0.3 NLL 2 ×2", {"beta": 0.3, "nll_weight": 2.0, **_TWICE}),
            ("boxes", _BOXES, "β 1", {"beta": 1.0}),
            ("boxes", _BOXES, "β 0.5 NLL 2", {"beta": 0.5, "nll_weight": 2.0}),
            ("boxes", _BOXES, "β 1 NLL 5 ×2", {"beta": 1.0, "nll_weight": 5.0, **_TWICE}),
            ("boxes", _BOXES, "β 0.5 anchor 1", {"beta": 0.5, "anchor_weight": 1.0}),
            ("both", _BOTH, "β 0.5", {"beta": 0.5}),
            ("both", _BOTH, "β 1 NLL 2", {"beta": 1.0, "nll_weight": 2.0}),
            ("both", _BOTH, "β 0.5 NLL 5", {"beta": 0.5, "nll_weight": 5.0}),
            ("both near", _NEAR, "β 0.5", {"beta": 0.5}),
            ("both near", _NEAR, "β 1 NLL 2", {"beta": 1.0, "nll_weight": 2.0}),
        )
    ),
    *(
        Setting(f"{name} {more}", pairing=pairing, training=dpo(3e-4, **options), choice="second")
        for name, pairing, more, options in (
            ("both near", _NEAR, "β 0.5 NLL 20", {"beta": 0.5, "nll_weight": 20.0}),
            ("both", _BOTH, "β 0.5 NLL 20", {"beta": 0.5, "nll_weight": 20.0}),
            ("both near", _NEAR, "β 0.1 NLL 5", {"nll_weight": 5.0}),
            ("keep", _KEEP, "β 0.1 γ 3 NLL 20 ×2", {"box_token_weight": 3.0, "nll_weight": 20.0, **_TWICE}),
        )
    ),
    Setting("mpo keep ×2", pairing=_KEEP, training=dpo(3e-4, loss_type="mpo", **_TWICE)),
    Setting("λ 0", semantic_weight=0.0, pairing=_KEEP, training=dpo(3e-4, beta=0.5, **_TWICE)),
    Setting("λ 0.5", semantic_weight=0.5, pairing=_KEEP, training=dpo(3e-4, beta=0.5, **_TWICE)),
    Setting("λ 1", semantic_weight=1.0, pairing=_KEEP, training=dpo(3e-4, beta=0.5, **_TWICE)),
)


def choose(searched: dict[str, dict[str, Any]], choice: str) -> Setting:
    """The setting of the search with the highest sum of gains that keeps what must not get worse.

    ``plain``: plain DPO, by its gains in Acc@0.9 and greedy S_loc; ``boxes``: box weights and box-only pairs, by the
    gain in Acc@0.9 less what S_loc loses; ``second``: a second search, between these and fine-tuning, by both gains.
    Excluded, if others are left, are settings that lose more than 0.01 in Acc@0.5 or greedy recall, or change the words
    by more than 0.5.
    """
    base = searched["base"]["values"]

    def gain(setting: Setting, figure: str) -> float:
        return float(searched[setting.name]["values"][figure] - base[figure])

    def total(setting: Setting) -> float:
        s_loc = gain(setting, "greedy s_loc")
        return gain(setting, "rec acc@0.9") + (min(0.0, s_loc) if choice == "boxes" else s_loc)

    def sound(setting: Setting) -> bool:
        kept = min(gain(setting, "rec acc@0.5"), gain(setting, "greedy recall@0.5"))
        return kept >= -0.01 and abs(gain(setting, "greedy words")) <= 0.5

    asked = [setting for setting in SEARCH if setting.choice == choice and setting.name in searched]
    return max(list(filter(sound, asked)) or asked, key=total)


def final_settings(out: Path) -> tuple[Setting, ...]:
    """The best settings of the search, and the paper's ablations of them."""
    searched = _searched_before(out)
    plain, boxes = replace(choose(searched, "plain"), name="plain DPO"), choose(searched, "boxes")
    other = _KEEP if plain.pairing == _REMOVE else _REMOVE
    tuned = {**plain.training, "loss_type": "sft"}
    return (
        plain,
        replace(plain, name="fine-tuning on chosen", training=tuned),
        replace(boxes, name="boxes"),
        replace(choose(searched, "second"), name="box pairs and NLL"),
        replace(plain, name="lambda 0", semantic_weight=0.0),
        replace(plain, name="lambda 1", semantic_weight=1.0),
        replace(plain, name="without refinement", refine=False),
        replace(plain, name="whole image only", samples="full"),
        replace(plain, name="unmatched boxes " + ("kept" if other == _KEEP else "removed"), pairing=other),
    )


def _searched_before(out: Path) -> dict[str, dict[str, Any]]:
    log = out / "search.jsonl"
    return {line["name"]: line for line in map(json.loads, log.read_text().splitlines())} if log.is_file() else {}


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pools", "search", "final", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=1400)
    parser.add_argument("--tune", type=int, default=600)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="comma-separated names of settings")
    parser.add_argument("--device", default="cpu", choices=tuple(BATCH))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time, one thread each")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes started for the jobs
    wanted = None if arguments.only is None else arguments.only.split(",")
    bench = Bench(arguments.out, arguments.scenes, arguments.device, arguments.jobs)
    if arguments.what == "pools":
        bench.prepare_all(tune=arguments.tune, held_out=arguments.held_out)
        return
    known = SEARCH if arguments.what == "search" else final_settings(arguments.out)
    settings = [setting for setting in known if wanted is None or setting.name in wanted]
    lines: list[dict[str, Any]] = []
    if arguments.what == "search":
        lines = search(bench, settings, tune=arguments.tune)
    else:
        if arguments.what == "final":
            final(bench, settings, held_out=arguments.held_out, seeds=arguments.seeds)
        lines = table(bench.out, settings)
    print(json.dumps({"benchmark": "effect", "what": arguments.what, "settings": lines}))


if __name__ == "__main__":
    main()
