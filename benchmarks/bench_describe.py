"""Claims: what describing costs, each against another way in the same run.

* ``tokens``: `HfDescriber` reaches at least 90 % of the tokens per second of a bare batched `generate` call. Every
  request has an image of its own, so nothing is shared, and all answers have the same number of tokens.
* ``samples``: six samples of one prompt of 1,500 tokens, at least 3 times the speed of `generate` on six sequences.
* ``families``: no family is slower than bare `generate`: the tiny models of the tests, which a step's Python dominates.
* ``embedded``: the descriptions of the quickstart (its processes, batch size and prompts), at least 2.5 times as many
  per second as at the commit in ``--before``, a checkout with `src/`. Answers that differ between the two are counted.

The model of the first two is a LLaVA-OneVision with about 70 million random parameters. The describer's time includes
everything it does: chat template, image processing, tokenization, sampling by seed and decoding. Bare calls get
prepared tensors, and sample with the temperature and top-p of transformers (``generate``) or take the most likely token
(``greedy``). Ways are measured in turn, each in processes of its own apart from ``families``; a ratio compares
measurements of the same round, and the median ratio is reported. Memory is the most that a process ever held.

    python benchmarks/bench_describe.py [tokens] [samples] [families] [embedded] [--before CHECKOUT] [--repeats 3]
        [--new-tokens 48] [--threads 1] [--regions 256] [--processes 2] [--dtype float32]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from describe_cases import embedded, make_requests, prepare_scenes, save_model, tiny_models, ways

__all__ = ["make_requests"]

CASES = ("tokens", "samples", "families", "embedded")
BATCH, BATCHES, SAMPLES = 4, 2, 6
SIDES = {"tokens": 224, "samples": 392}
"""Sides of the images: prompts of 584 and 1,517 tokens."""


class Process:
    """A process that does one way's work when it is told to."""

    def __init__(self, source: Path, threads: int, options: dict[str, Any]) -> None:
        paths = os.pathsep.join(map(str, (source / "src", Path(__file__).parent)))
        command = [sys.executable, __file__, "--work", json.dumps(options | {"threads": threads})]
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self._to: Any = process.stdin
        self._from: Any = process.stdout

    def read(self) -> dict[str, Any]:
        """The next line of JSON."""
        line = self._from.readline()
        if not line:
            raise SystemExit("a process of the benchmark failed: see its messages above")
        return dict(json.loads(line))

    def start(self, word: str = "go") -> None:
        """Tell it to do its work once, or to ``end``."""
        self._to.write(word + "\n")
        self._to.flush()


def do_work(options: dict[str, Any]) -> None:
    """The process's side: one line when it is ready, one for each time that it worked, and one at the end."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    torch.set_num_threads(options["threads"])
    folder = Path(options["folder"])
    if options["case"] == "embedded":
        work, count = embedded(folder, part=options["part"], parts=options["parts"], dtype=options["dtype"])
    else:
        batch, new = options["batch"], options["new"]
        requests = make_requests(options["count"], images=options["images"])
        work = ways(folder, requests, batch=batch, new=new, dtype=options["dtype"])[options["way"]]
        count = len(requests) * new
    answers = work()
    print(
        json.dumps({"count": count, "answers": answers if options["case"] == "embedded" else None}),
        file=out,
        flush=True,
    )
    for line in sys.stdin:
        if line.strip() == "end":
            break
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        seconds = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(seconds), file=out, flush=True)
    print(json.dumps({"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), file=out, flush=True)


def in_turn(groups: dict[str, list[Process]], repeats: int) -> dict[str, dict[str, Any]]:
    """Let each group of processes work in turn, its processes at the same time; figures by the group's name."""
    found: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():  # one group warms up at a time
        ready = [process.read() for process in group]
        answers = [one["answers"] for one in ready]
        found[name] = {"count": sum(one["count"] for one in ready), "seconds": [], "cpu": [], "answers": answers}
    for _ in range(repeats):
        for name, group in groups.items():
            start = time.perf_counter()
            for process in group:
                process.start()
            done = [process.read() for process in group]
            found[name]["seconds"].append(time.perf_counter() - start)
            found[name]["cpu"].append(sum(one["cpu"] for one in done))
    for name, group in groups.items():
        for process in group:
            process.start("end")
        found[name]["mib"] = max(process.read()["mib"] for process in group)
    return found


def ratio(found: dict[str, dict[str, Any]], name: str, to: str, clock: str = "seconds") -> float:
    """How many times as fast ``to`` was as ``name``: the median over rounds."""
    return statistics.median(a / b for a, b in zip(found[name][clock], found[to][clock], strict=True))


def against_generate(case: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """``tokens`` and ``samples``."""
    save_model(folder, SIDES[case])
    options: dict[str, Any] = {"case": case, "folder": str(folder), "new": given.new_tokens, "dtype": given.dtype}
    if case == "tokens":
        options |= {"count": BATCH * BATCHES, "images": None, "batch": BATCH}
    else:
        options |= {"count": SAMPLES, "images": 1, "batch": SAMPLES}
    names = ("describe",) if given.ours else ("describe", "generate", "greedy")
    groups = {name: [Process(given.source, given.threads, options | {"way": name})] for name in names}
    found = in_turn(groups, given.repeats)
    print(f"{case}: {given.new_tokens} new tokens, {options['count']} requests in batches of {options['batch']}")
    return show(found, "describe", "tokens")


def against_before(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """``embedded``."""
    prepare_scenes(folder, given.regions)
    sources = {"now": given.source} | ({"before": given.before} if given.before else {})
    groups = {}
    for name, source in sources.items():
        parts = range(given.processes)
        options = {"case": "embedded", "folder": str(folder), "parts": len(parts), "dtype": given.dtype}
        groups[name] = [Process(source.resolve(), given.threads, options | {"part": part}) for part in parts]
    found = in_turn(groups, given.repeats)
    print(f"embedded: {given.processes} processes, {given.regions} regions")
    result = show(found, "now", "descriptions")
    if "before" in found:
        pairs = [
            (one, other)
            for mine, theirs in zip(found["now"]["answers"], found["before"]["answers"], strict=True)
            for one, other in zip(mine, theirs, strict=True)
        ]
        result["different"] = sum(one != other for one, other in pairs)
        print(f"{result['different']} of {len(pairs)} answers differ from those of before ({given.dtype})")
    return result


def show(found: dict[str, dict[str, Any]], first: str, unit: str) -> dict[str, Any]:
    """Print one case's table: speeds, how many times as fast the first way is, and memory; returns its figures."""
    print(f"{'':12}{unit + '/s':>16}{first + ' is':>16}{'by CPU time':>14}{'peak MiB':>12}")
    result: dict[str, Any] = {}
    for name, one in found.items():
        speed = one["count"] / statistics.median(one["seconds"])
        times, by_cpu = (ratio(found, name, first, clock) for clock in ("seconds", "cpu"))
        compared = f"{times:15.2f}×{by_cpu:13.2f}×" if name != first else " " * 30
        print(f"{name:12}{speed:16.1f}{compared}{one['mib']:12.0f}")
        result[name] = {
            "speed": speed,
            "ratio": times,
            "cpu_ratio": by_cpu,
            "mib": one["mib"],
            "seconds": one["seconds"],
        }
    print()
    return result


def of_families(folder: Path, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """``families``: how many times as fast as bare sampled `generate` the describer is, by model and clock."""
    print(f"families: tiny models, 4 requests in one batch, {given.new_tokens} new tokens; times as fast as generate")
    print(f"{'':20}{'generate':>20}{'encode + generate':>20}\n{'':20}" + 2 * f"{'wall':>10}{'CPU':>10}")
    found: dict[str, dict[str, float]] = {}
    for name, requests, saved in tiny_models(folder):
        works = ways(saved, requests, batch=len(requests), new=given.new_tokens)
        measured: dict[str, list[tuple[float, float]]] = {"describe": [], "generate": [], "encode + generate": []}
        for turn in range(given.repeats + 1):
            for way, times in measured.items():
                wall, cpu = time.perf_counter(), time.process_time()
                works[way]()
                if turn:
                    times.append((time.perf_counter() - wall, time.process_time() - cpu))
        own = measured.pop("describe")
        found[name] = {
            f"{way}, {clock}": statistics.median(b[k] / a[k] for a, b in zip(own, times, strict=True))
            for way, times in measured.items()
            for k, clock in enumerate(("wall", "CPU"))
        }
        print(f"{name:20}" + "".join(f"{value:9.2f}×" for value in found[name].values()), flush=True)
    print()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table per case, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)} (default: all)")
    parser.add_argument("--before", type=Path, help="a checkout to compare `embedded` with")
    defaults = {"repeats": 3, "new-tokens": 48, "threads": 1, "regions": 256, "processes": 2}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--source", type=Path, default=Path(__file__).parents[1], help="measure another checkout's code"
    )
    parser.add_argument("--ours", action="store_true", help="`tokens` and `samples` without `generate`")
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"unknown cases: {', '.join(sorted(unknown))}; known are {', '.join(CASES)}")
    if given.work is not None:
        do_work(given.work)
        return
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} threads per process, {given.dtype}\n")
    results: dict[str, Any] = {}
    for case in given.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            if case == "families":
                results[case] = of_families(Path(folder), given)
            elif case == "embedded":
                results[case] = against_before(Path(folder), given)
            else:
                results[case] = against_generate(case, Path(folder), given)
    print(json.dumps({"benchmark": "describe", **results}))


if __name__ == "__main__":
    main()
