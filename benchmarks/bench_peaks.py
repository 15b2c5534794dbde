"""Claim: no benchmark needs more memory than it did at an earlier commit.

Every benchmark runs at a small size, once with the code and the scripts of another checkout and once with this one's,
in turn. Its peak is the highest sum of the proportional set sizes of all its processes, sampled eight times a second:
it includes what a benchmark compares with, such as TRL.

    git worktree add ../before COMMIT
    python benchmarks/bench_peaks.py --before ../before [--only report,import] [--repeats 1] [--slack 0.03]

A peak that is more than ``--slack`` higher is marked, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from process_tree import ProcessTree

HERE = Path(__file__).resolve().parents[1]
SMALL: dict[str, str] = {
    "quickstart": "-m spr quickstart --scenes 108 --held-out 60 --out {out}",
    "check": "benchmarks/bench_check.py --rows 100000",
    "describe": "benchmarks/bench_describe.py --repeats 1",
    "detection": "benchmarks/bench_detection.py --images 1000 --repeats 1",
    "dpo small": "benchmarks/bench_dpo.py --case small --pairs 6",
    "dpo heavy": "benchmarks/bench_dpo.py --case heavy --pairs 6",
    "dpo qwen": "benchmarks/bench_dpo.py --case qwen --pairs 6",
    "engine": "benchmarks/bench_engine.py --queries 4000 --repeats 1",
    "evaluate": "benchmarks/bench_evaluate.py --answers 50000 --repeats 1",
    "export": "benchmarks/bench_export.py --pairs 6000",
    "grounding": "benchmarks/bench_grounding.py --descriptions 500 --rounds 2",
    "import": "benchmarks/bench_import.py --boxes 300000 --large-boxes 2000000 --repeats 1",
    "memory": "benchmarks/bench_memory.py --images 60 --scenes 16 --times 4",
    "plan": "benchmarks/bench_plan.py --models fake --sample 100",
    "regions": "benchmarks/bench_regions.py --images 50000 --repeats 1",
    "report": "benchmarks/bench_report.py --pairs 1000 --opens 1",
    "rewards": "benchmarks/bench_rewards.py --answers 200 --repeats 1",
    "score": "benchmarks/bench_score.py --queries 1 --repeats 1",
    "soak": "benchmarks/bench_soak.py --images 2000",
    "storage": "benchmarks/bench_storage.py --images 60 --repeats 1",
    "tar": "benchmarks/bench_tar.py --images 500 --members 50000 --repeats 1",
}
"""A small size of each benchmark. Left out are those that train on many scenes, whose steps are those of others."""


def peak(checkout: Path, command: str) -> tuple[float, float]:
    """The peak in MiB and the seconds of a benchmark; NaN if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = command.format(out=folder).split()
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=checkout,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with ProcessTree(process.pid, every=0.125) as tree:
            _, errors = process.communicate()
        seconds = time.perf_counter() - started
        if process.returncode != 0:
            print(f"  failed in {checkout}: {errors.strip()[-300:]}", file=sys.stderr)
            return float("nan"), seconds
        return max(sample.pss for sample in tree.samples) / 2**20, seconds


def main() -> int:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the commit to compare with")
    parser.add_argument("--only", help="names of benchmarks, separated by commas")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--slack", type=float, default=0.03, help="how much higher a peak may be (default: %(default)s)"
    )
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(SMALL)
    checkouts = {"before": arguments.before.resolve(), "now": HERE}
    print(f"{'':14}{'before':>12}{'now':>12}{'ratio':>8}")
    rows, higher = {}, []
    for name in names:
        found: dict[str, list[float]] = {which: [] for which in checkouts}
        for _ in range(arguments.repeats):
            for which, checkout in checkouts.items():
                found[which].append(peak(checkout, SMALL[name])[0])
        before, now = (statistics.median(values) for values in found.values())
        rows[name] = {"before_mib": before, "now_mib": now, "ratio": now / before}
        if not now / before <= 1 + arguments.slack:
            higher.append(name)
        mark = "  higher" if name in higher else ""
        print(f"{name:14}{before:8,.0f} MiB{now:8,.0f} MiB{now / before:8.2f}{mark}", flush=True)
    print(json.dumps({"benchmark": "peaks", "rows": rows}))
    return 1 if higher else 0


if __name__ == "__main__":
    sys.exit(main())
