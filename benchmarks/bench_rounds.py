"""Measure three rounds against one round with three times the pairs, on the embedded describer and generated scenes.

    python benchmarks/bench_rounds.py --out runs/rounds                       # all of it, then the table
    python benchmarks/bench_rounds.py --out runs/rounds --only same --seed 0  # one part; a last call prints the table

The setting is that of `spr quickstart`; every arm trains on answers to as many region queries, one of each scene:

- ``same``: three rounds on the same scenes, each with new samples (`spr rounds`).
- ``fresh``: three rounds on other scenes each (`spr rounds --data fresh`).
- ``wide``: one round on the scenes of all rounds of ``fresh``, that is on the same regions.
- ``offline``: the trainings of ``fresh`` on answers of the model before the first round: each continues the adapter of
  the one before, with that as its reference, but nothing is described again. It separates what rounds do.

The first round of ``same``, with a third of the pairs, is the first one of ``fresh`` and of ``offline``, too.

Interrupted, the same command resumes. Prints a table of the metrics pooled over the seeds, whose differences are paired
by scene, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spr.config import Config, load_config
from spr.embedded.scenes import write_scenes
from spr.evaluation.metrics import Share, cluster_numbers, intervals, paired_difference
from spr.evaluation.result import read_items
from spr.evaluation.task import evaluate
from spr.models.registry import release
from spr.pipeline import runner
from spr.workflows.evaluations import Evaluation, describer_of, result_file
from spr.workflows.rounds import Outcome, rounds
from spr.workflows.training import train

ROUNDS = 3
SCENES = 7_600_001
"""Seed of the scenes to train on; each seed has its own. The embedded models were trained on scenes of other seeds."""
HELD_OUT = 900_000_011
ARMS = ("same", "fresh", "wide", "offline")
METRICS = (("rec", "acc@0.9"), ("rec", "acc@0.5"), ("rec", "mean_iou"), ("description", "s_loc"))
METRICS = (*METRICS, ("description", "recall@0.5"), ("description", "unmatched_boxes"))
PLACES: dict[str, tuple[str, str]] = {
    "base": ("same", "base"),
    "one round": ("same", "round-00"),
    "one round, three times the pairs": ("wide", "round-00"),
    "two rounds, same scenes": ("same", "round-01"),
    "three rounds, same scenes": ("same", "round-02"),
    "two rounds, fresh scenes": ("fresh", "round-01"),
    "three rounds, fresh scenes": ("fresh", "round-02"),
    "two trainings, fresh scenes, answers of the base": ("offline", "round-01"),
    "three trainings, fresh scenes, answers of the base": ("offline", "round-02"),
}
"""Where the results of a row are: the arm, and the name in its folder."""
AGAINST = "one round, three times the pairs"


def config_of(data: Path, seed: int, *changes: str) -> Config:
    """The preset `quickstart` on generated scenes, in one process."""
    paths = {"annotations.path": data / "instances.json", "annotations.images": data / "images"}
    overrides = [f"{name}={json.dumps(str(path))}" for name, path in paths.items()]
    overrides += [f"{name}.num_processes=1" for name in ("describer", "scorer", "detector")]
    return load_config("quickstart", [*overrides, f"seed={seed}", *changes])


def evaluations(out: Path, scenes: int) -> list[Evaluation]:
    """The evaluations on held-out scenes, whose regions are made here."""
    data, run = out / "held-out-scenes", out / "held-out"
    write_scenes(data, scenes, HELD_OUT)
    # All objects of these scenes are annotated: a detector's boxes are no ground truth.
    exact = ("annotations.crowds=drop", "annotations.holdout=0")
    runner.run(config_of(data, 0, *exact), run, until="regions")
    describer = {"batch_size": 64, "max_new_tokens": 160}
    rec = {"task": "rec", "annotations": data / "expressions.json", "images": data / "images", "describer": describer}
    description = {"task": "description", "annotations": run, "options": {"split": "all"}, "describer": describer}
    return [Evaluation.model_validate(content) for content in (rec, description)]


def measure(out: Path, arm: str, seed: int, scenes: int, held_out: int) -> Outcome:
    """Run an arm, or find it done."""
    data = out / f"scenes-{seed}"
    write_scenes(data, ROUNDS * scenes, SCENES + 100_000 * seed)
    most = ROUNDS * scenes if arm == "wide" else scenes
    options: dict[str, Any] = {"n": 1 if arm == "wide" else ROUNDS, "data": "fresh" if arm == "fresh" else "same"}
    first = out / f"same-{seed}" / "round-00"
    if arm == "fresh" and (first / "adapter").is_dir():  # its first round has the same candidates
        options["reuse"] = [first]
    return rounds(
        config_of(data, seed, f"annotations.max_images={most}"),
        out / f"{arm}-{seed}",
        **options,
        stop="never",
        evaluations=evaluations(out, held_out),
        report=lambda line: print(line, flush=True),
    )


def measure_offline(out: Path, seed: int, scenes: int, held_out: int) -> None:
    """Continue the adapter of the first round on answers of the model without one; finished parts are skipped."""
    place, data = out / f"offline-{seed}", out / f"scenes-{seed}"
    adapter = out / f"same-{seed}" / "round-00" / "adapter"
    for number in range(1, ROUNDS):
        run = place / f"round-{number:02d}"
        changes = (f"annotations.max_images={scenes}", f"annotations.skip_images={number * scenes}")
        config = config_of(data, seed, *changes, f"training.init_adapter={adapter}")
        runner.run(config, run)
        release()
        train(config, run, report=lambda line: print(line, flush=True))
        adapter = run / "adapter"
        for evaluation in evaluations(out, held_out):
            path = result_file(place, run.name, evaluation.label)
            if not path.is_file():
                describer = describer_of(config, evaluation, adapter)
                options: dict[str, Any] = {"describer": describer, "images": evaluation.images}
                result = evaluate(evaluation.make_task(), evaluation.annotations, **options)
                path.parent.mkdir(exist_ok=True)
                result.write(path)
                release()


def pooled(out: Path, row: str, metric: tuple[str, str], seeds: Sequence[int]) -> tuple[Share, tuple[str, ...]]:
    """A metric with the sums of all seeds for each item, and the items' images."""
    arm, name = PLACES[row]
    found = [read_items(out / f"{arm}-{seed}" / "results" / f"{name}.{metric[0]}.items.parquet") for seed in seeds]
    if any(ids != found[0][0] for ids, *_ in found):
        raise ValueError("the seeds were not evaluated on the same items")
    shares = [values[metric[1]] for *_, values in found]
    parts, wholes = (sum(getattr(share, name) for share in shares) for name in ("parts", "wholes"))
    return Share(parts, wholes), found[0][1]


def table(out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Print the table of all arms; returns its figures."""
    figures: dict[str, Any] = {}
    for metric in METRICS:
        name = " ".join(metric)
        print(f"\n| {name} | {len(seeds)} seeds pooled | per seed | − base | − {AGAINST} |\n|---|---|---|---|---|")
        base, images = pooled(out, "base", metric, seeds)
        clusters = cluster_numbers(images)
        wide, _ = pooled(out, AGAINST, metric, seeds)
        for row in PLACES:
            share, _ = pooled(out, row, metric, seeds)
            (interval,) = intervals([share], clusters)
            each = [pooled(out, row, metric, [seed])[0].value() for seed in seeds]
            to_base, to_wide = (paired_difference(other, share, clusters) for other in (base, wide))
            cells = [_measured(share.value(), interval.ci95), ", ".join(f"{value:.4f}" for value in each)]
            cells += ["" if row == "base" else _measured(to_base.value, to_base.ci95, "+")]
            cells += ["" if row in ("base", AGAINST) else _measured(to_wide.value, to_wide.ci95, "+")]
            print(f"| {row} | {' | '.join(cells)} |")
            figures[f"{row}: {name}"] = [
                share.value(),
                interval.ci95,
                to_base.value,
                to_base.ci95,
                to_wide.value,
                to_wide.ci95,
            ]
    return figures


def _measured(value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    if value is None:
        return "–"
    around = "" if interval is None else f" [{interval[0]:{sign}.4f}, {interval[1]:{sign}.4f}]"
    bold = "**" if sign and interval is not None and not interval[0] <= 0 <= interval[1] else ""
    return f"{bold}{value:{sign}.4f}{bold}{around}"


def trainings(outcomes: Mapping[tuple[str, int], Outcome]) -> None:
    """Print what was trained on."""
    print(
        "\n| arm, seed | round | pairs | steps | mean score of candidates | mean margin of pairs | loss of last step |"
    )
    print("|---|---|---|---|---|---|---|")
    for (arm, seed), outcome in outcomes.items():
        for row in outcome.rows[1:]:
            loss, pipeline = row.training["loss"], row.pipeline
            cells = [
                f"{row.training['pairs']:,}",
                row.training["steps"],
                pipeline["mean_score"],
                pipeline["mean_margin"],
            ]
            print(f"| {arm}, {seed} | {row.name} | {' | '.join(map(str, cells))} | {loss:.3f} |")


def main() -> None:
    """Run the parts that are asked for, then print the table if all are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of scenes, runs and results")
    parser.add_argument("--scenes", type=int, default=360, help="scenes per round (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=300, help="held-out scenes (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds (default: %(default)s)")
    parser.add_argument("--only", choices=ARMS, help="run this arm alone, and print no table")
    parser.add_argument("--seed", type=int, help="with --only: this seed alone")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = list(range(args.seeds)) if args.seed is None else [args.seed]
    started, outcomes = time.monotonic(), {}
    for seed in seeds:
        for arm in ARMS if args.only is None else (args.only,):
            if arm == "offline":
                measure_offline(args.out, seed, args.scenes, args.held_out)
            else:
                outcomes[arm, seed] = measure(args.out, arm, seed, args.scenes, args.held_out)
    if args.only is None:
        trainings(outcomes)
        print("\n" + json.dumps(table(args.out, seeds)))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
