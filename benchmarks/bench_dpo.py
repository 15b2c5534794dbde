"""Preference training beside TRL's `DPOTrainer`: seconds a pair and peak memory, same model, adapter and pairs.

    python benchmarks/bench_dpo.py --case small     # a light language model with a long vocabulary
    python benchmarks/bench_dpo.py --case heavy     # the proportions of a 7B: most of the work in the language model
    python benchmarks/bench_dpo.py --case qwen      # a Qwen2.5-VL of the first one's size
    python benchmarks/bench_dpo.py --model 0.5b --device cuda     # LLaVA-OneVision's own sizes, random weights; or 7b

Counted work comes first. Then each trainer runs in a process of its own, one after the other: ours without keeping
features, ours as it comes, ours with two sequences a pair, and TRL's. All take the same steps from the same adapter in
the same order, and must see the same losses. The first step is left out of the times; a step's time holds all that is
done from one to the next, images, encoding and optimiser included. Three epochs are the reference pass and three times
the step. On the CPU that's `--threads` and float32, on a GPU bfloat16. Prints tables and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

CASES, MODELS = ("small", "heavy", "qwen"), ("0.5b", "7b")
RUNS = {
    "ours, features not kept": {"features": "none", "prefix": "shared"},
    "ours": {"features": "memory", "prefix": "shared"},
    "ours, two sequences": {"features": "memory", "prefix": "separate"},
    "TRL": {"features": "none", "prefix": "shared"},
}
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}
"""How far losses may be apart, relatively: float32, and bfloat16."""


def child(given: argparse.Namespace, kind: str, folder: str, **changes: str) -> dict[str, Any]:
    """A part of the work in a process of its own; this one stays small, for a child's peak starts at its parent's."""
    options = {**vars(given), **changes, "kind": kind, "folder": folder}
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    if given.device == "cpu":
        environment["OMP_NUM_THREADS"] = str(given.threads)
    command = [sys.executable, __file__, "--child", json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} failed with code {done.returncode}:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def work(options: dict[str, Any]) -> dict[str, Any]:
    """What a child does."""
    import torch

    given, folder = argparse.Namespace(**options), Path(options["folder"])
    device = torch.device(given.device)
    if given.device == "cpu":
        torch.set_num_threads(given.threads)
    if given.kind == "make":
        from dpo_cases import make_model, make_pairs

        dtype = torch.bfloat16 if given.device == "cuda" else torch.float32
        make_model(given.case, folder / "model", dtype, device)
        make_pairs(given.case, given.pairs, given.answer, given.batch, given.accumulate, folder)
        return {"device": torch.cuda.get_device_name() if given.device == "cuda" else platform.machine()}
    if given.kind == "count":
        from dpo_counts import logits_gib, our_work, sizes_of, trl_work

        sizes, fused = sizes_of(given.case, given.answer), given.device == "cuda"
        made: dict[str, Any] = {"prompt": sizes.prompt, "answer": sizes.answer}
        made["logits"] = logits_gib(sizes, given.batch, 2 if fused else 4)
        ours = partial(our_work, sizes, merged=not fused, batch=given.batch // given.accumulate)
        for epochs in (1, 3):
            ideas = {
                "TRL": trl_work(sizes, epochs, fused=fused),
                "ours, features not kept": ours(epochs, kept=False),
                "ours": ours(epochs),
                "two sequences": ours(epochs, shared=False),
                "an image twice a pass": ours(epochs, sight_once=False),
                "head on all tokens": ours(epochs, answers_only=False),
                "last layer on all tokens": ours(epochs, answers_last=False),
                "reference each epoch": ours(epochs, reference_once=False),
                "adapters not merged": ours(epochs, merged=False),
            }
            made[str(epochs)] = ideas
        return made
    from dpo_trainers import ours, peaks, trl

    found = trl(given, folder) if given.kind == "trl" else ours(given, folder)
    return found | {"peak": peaks(given.device)}


def a_pair(run: dict[str, Any], epochs: int, clock: int) -> float:
    """Seconds a pair: the reference pass, and a step an epoch; clock 0 is the wall's, 1 the processor's."""
    step = statistics.median(times[clock] for times in run["steps"])
    reference = statistics.median(times[clock] for times in run["reference"]) if run["reference"] else 0.0
    return (reference + epochs * step) / run["micro"]


def print_counts(counts: dict[str, Any]) -> None:
    """The counted work of a pair, in billions of multiply-adds."""
    print(
        f"\nCounted, 10⁹ multiply-adds a pair; {counts['prompt']:,} and {counts['answer']:,} tokens a prompt, an answer"
    )
    names = list(counts["1"]["TRL"])
    print(f"{'':<34}" + "".join(f"{name:>16}" for name in [*names, "all", "TRL's / this"]))
    for epochs in ("1", "3"):
        theirs = sum(counts[epochs]["TRL"].values())
        for way in ("TRL", "ours, features not kept", "ours"):
            parts = counts[epochs][way]
            cells = [f"{parts[name] / 1e9:>16,.1f}" for name in names] + [f"{sum(parts.values()) / 1e9:>16,.1f}"]
            print(f"{way + ', epochs: ' + epochs:<34}" + "".join(cells) + f"{theirs / sum(parts.values()):>16.2f}")
    logits = counts["logits"]
    print(
        f"Logits at a time, GiB: {logits['trl']:.2f} TRL, {logits['ours']:.2f} ours ({logits['all']:.2f} a whole step)"
    )


def print_times(runs: dict[str, dict[str, Any]], counts: dict[str, Any], device: str) -> dict[str, Any]:
    """Seconds a pair and memory; returns the ratios."""
    where = "device" if device == "cuda" else "host"
    ratios: dict[str, Any] = {}
    print(f"\n{'Measured, s a pair':<24}{'reference':>11}{'step':>8}{'epochs':>8}{'wall':>9}{'CPU':>9}", end="")
    print(f"{'TRL/this':>10}{'by CPU':>8}{'counted':>9}{'reached':>9}{'peak GiB':>10}{'of TRL':>8}")
    for name, run in runs.items():
        reference = a_pair(run, 0, 0)
        for epochs in (1, 3):
            wall, cpu = a_pair(run, epochs, 0), a_pair(run, epochs, 1)
            speed, by_cpu = (a_pair(runs["TRL"], epochs, clock) / a_pair(run, epochs, clock) for clock in (0, 1))
            ideas = counts[str(epochs)]
            counted = ideas["two sequences" if "two" in name else name]
            limit = sum(ideas["TRL"].values()) / sum(counted.values())
            best = speed if device == "cuda" else by_cpu
            memory = run["peak"][where] / runs["TRL"]["peak"][where]
            step = (wall - reference) / epochs
            print(f"{name:<24}{reference:>11.2f}{step:>8.2f}{epochs:>8}{wall:>9.2f}{cpu:>9.2f}", end="")
            print(f"{speed:>10.2f}{by_cpu:>8.2f}{limit:>9.2f}{best / limit:>9.0%}", end="")
            print(f"{run['peak'][where]:>10.2f}{memory:>8.0%}")
            found = {"speed": speed, "by_cpu": by_cpu, "counted": limit, "memory": memory, "seconds": wall}
            ratios.setdefault(name, {})[str(epochs)] = found
    return ratios


def print_ideas(runs: dict[str, dict[str, Any]], counts: dict[str, Any], clock: int) -> dict[str, Any]:
    """What a pair costs without one of the ideas, in shares of what it costs with all."""
    kept, plain, two = runs["ours"], runs["ours, features not kept"], runs["ours, two sequences"]
    print(f"\n{'Work without an idea, all = 1':<44}{'1 epoch':>9}{'3 epochs':>10}{'counted 1':>11}{'counted 3':>11}")
    shares: dict[str, Any] = {}
    for name, how in (
        ("features not kept", "measured"),
        ("two sequences", "measured"),
        ("an image twice a pass", "from vision's measured time"),
        ("head on all tokens", "counted"),
        ("last layer on all tokens", "counted"),
        ("reference each epoch", "from the reference's measured time"),
        ("adapters not merged", "counted"),
    ):
        row: list[float | None] = []
        for epochs in (1, 3):
            whole = a_pair(kept, epochs, clock)
            extra = {
                "features not kept": a_pair(plain, epochs, clock) - whole,
                "two sequences": a_pair(two, epochs, clock) - whole,
                # 2 (1 + epochs) looks instead of one.
                "an image twice a pass": (2 * (1 + epochs) - 1) * kept["vision"],
                "reference each epoch": (epochs - 1) * a_pair(kept, 0, clock),
            }
            row.append(1 + extra[name] / whole if name in extra else None)
        for epochs in ("1", "3"):
            ideas = counts[epochs]
            without = ideas["ours, " + name if name == "features not kept" else name]
            row.append(sum(without.values()) / sum(ideas["ours"].values()))
        shown = [f"{value:.2f}" if value is not None else "–" for value in row]
        print(f"{name + ' (' + how + ')':<53}{shown[0]}{shown[1]:>10}{shown[2]:>11}{shown[3]:>11}")
        shares[name] = row
    return shares


def print_profile(runs: dict[str, dict[str, Any]]) -> None:
    """Where a step's time goes, by kind of operation."""
    for name, run in runs.items():
        if run["shares"]:
            parts = ", ".join(f"{group} {share:.0%}" for group, share in run["shares"].items() if group != "seconds")
            print(f"A step of {name}, {run['shares']['seconds']:.1f} s by torch's profiler: {parts}")


def print_ours(given: argparse.Namespace) -> None:
    """Seconds per pair and peak memory of `ours` alone."""
    with tempfile.TemporaryDirectory() as folder:
        child(given, "make", folder)
        run = child(given, "ours", folder, **RUNS["ours"])
    where = "device" if given.device == "cuda" else "host"
    figures = {
        "reference_cpu": a_pair(run, 0, 1),
        "epoch_cpu": a_pair(run, 1, 1) - a_pair(run, 0, 1),
        "peak_gib": run["peak"][where],
    }
    print("CPU s per pair: reference {reference_cpu:.2f}, step {epoch_cpu:.2f}; {peak_gib:.2f} GiB".format_map(figures))
    print(json.dumps({"benchmark": "dpo", "case": given.case, **figures}))


def main() -> None:
    """Count, make the case, run the trainers, print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="small")
    parser.add_argument("--model", choices=MODELS, help="published sizes in place of a case")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pairs", type=int, default=8, help="a multiple of --batch, three times it at least")
    parser.add_argument("--batch", type=int, default=2, help="pairs a step")
    parser.add_argument("--answer", type=int, default=120, help="tokens")
    parser.add_argument("--accumulate", type=int, default=1, help="our batches a step")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, in both trainers")
    parser.add_argument("--profile", action="store_true", help="the last step of each trainer; needs 4 steps")
    parser.add_argument("--short", action="store_true", help="only `ours` and TRL, without the variants of ours")
    parser.add_argument("--ours", action="store_true", help="only `ours`, without TRL: seconds and peak memory")
    parser.add_argument("--count", action="store_true", help="only count")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(work(json.loads(given.child))))
        return
    if given.pairs % given.batch or given.pairs < 3 * given.batch or given.batch % given.accumulate:
        parser.error("--pairs must be a multiple of --batch, three times it at least, and --batch one of --accumulate")
    given.case = given.model or given.case
    counts = child(given, "count", ".")
    print_counts(counts)
    if given.count:
        return
    if given.ours:
        print_ours(given)
        return
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = child(given, "make", folder)
        for name, options in RUNS.items():
            if given.short and name not in ("ours", "TRL"):
                continue
            runs[name] = child(given, "trl" if name == "TRL" else "ours", folder, **options)
            print(f"{name}: done", file=sys.stderr)
    apart = max(
        abs(value - other) / abs(other)
        for run in runs.values()
        for values, others in zip(run["losses"], runs["TRL"]["losses"], strict=True)
        for value, other in zip(values, others, strict=True)
    )
    steps = len(runs["TRL"]["losses"])
    print(
        f"\n{made['device']}, batches of {given.batch}, {steps} steps; losses, log-probs apart by {apart:.1e} at most"
    )
    ratios = print_times(runs, counts, given.device)
    ideas = {} if given.short else print_ideas(runs, counts, 0 if given.device == "cuda" else 1)
    print_profile(runs)
    result = {"benchmark": "dpo", **vars(given), "loss_difference": apart, "ratios": ratios, "ideas": ideas}
    print(json.dumps({**result, "counted": counts, "runs": runs}))
    if apart > TOLERANCE[given.device]:
        raise SystemExit(f"The trainers saw other losses: {apart:.1e} apart, {TOLERANCE[given.device]:.0e} allowed")


if __name__ == "__main__":
    main()
