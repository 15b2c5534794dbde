"""Claim: no benchmark needs more memory than it did at an earlier commit.

Every benchmark runs at a small size, with the code of another checkout and with this one's in turn; the scripts are
this one's. Its peak is the highest sum of the proportional set sizes of all its processes, eight samples per second.
A page of a library counts less the more processes of the machine have loaded it, so on a machine that does other work
the part of a peak that is not in files is the one to compare: it is judged, by the median over the repeats.

    git worktree add ../before COMMIT
    python benchmarks/bench_peaks.py --before ../before [--only report,import] [--repeats 3] [--slack 0.02]

A peak that is more than ``--slack`` higher is marked, and the exit code is then 1. Training and describing run without
TRL and `generate`, which need more than ours; others include what they compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from process_tree import ProcessTree

HERE = Path(__file__).resolve().parents[1]
SMALL: dict[str, str] = {
    "quickstart": "-m spr quickstart --scenes 108 --held-out 60 --out {out}",
    "check": "{scripts}/bench_check.py --rows 100000",
    "describe": "{scripts}/bench_describe.py embedded --repeats 1 --source {checkout}",
    "describe, tokens": "{scripts}/bench_describe.py tokens --repeats 1 --ours --source {checkout}",
    "describe, samples": "{scripts}/bench_describe.py samples --repeats 1 --ours --source {checkout}",
    "detection": "{scripts}/bench_detection.py --images 1000 --repeats 1",
    "dpo small": "{scripts}/bench_dpo.py --case small --pairs 6 --ours",
    "dpo heavy": "{scripts}/bench_dpo.py --case heavy --pairs 6 --ours",
    "dpo qwen": "{scripts}/bench_dpo.py --case qwen --pairs 6 --ours",
    "engine": "{scripts}/bench_engine.py --queries 4000 --repeats 1",
    "evaluate": "{scripts}/bench_evaluate.py --answers 50000 --repeats 1",
    "export": "{scripts}/bench_export.py --pairs 6000",
    "grounding": "{scripts}/bench_grounding.py --descriptions 500 --rounds 2",
    "import": "{scripts}/bench_import.py --boxes 300000 --large-boxes 2000000 --repeats 1",
    "memory": "{scripts}/bench_memory.py --images 60 --scenes 16 --times 4",
    "plan": "{scripts}/bench_plan.py --models fake --sample 100",
    "regions": "{scripts}/bench_regions.py --images 50000 --repeats 1",
    "report": "{scripts}/bench_report.py --pairs 1000 --opens 1",
    "rewards": "{scripts}/bench_rewards.py --answers 200 --repeats 1",
    "score": "{scripts}/bench_score.py --queries 1 --repeats 1",
    "soak": "{scripts}/bench_soak.py --images 2000",
    "storage": "{scripts}/bench_storage.py --images 60 --repeats 1",
    "tar": "{scripts}/bench_tar.py --images 500 --members 50000 --repeats 1",
}
"""A small size of each benchmark. Left out are those that train on many scenes, whose steps are those of others."""


def peak(checkout: Path, command: str) -> tuple[float, float]:
    """The peak in MiB of a benchmark, and of its part that is not in files; NaN if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = command.format(out=folder, scripts=HERE / "benchmarks", checkout=checkout).split()
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with ProcessTree(process.pid, every=0.125) as tree:
            output, errors = process.communicate()
        # A benchmark that missed its claim has printed its figures, one line of JSON, nevertheless.
        if process.returncode != 0 and not output.rstrip().rpartition("\n")[2].startswith("{"):
            print(f"  failed in {checkout}: {errors.strip()[-300:]}", file=sys.stderr)
            return float("nan"), float("nan")
        return max(s.pss for s in tree.samples) / 2**20, max(s.own for s in tree.samples) / 2**20


def main() -> int:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the commit to compare with")
    parser.add_argument("--only", help="names of benchmarks, separated by semicolons")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--slack", type=float, default=0.02, help="how much higher a peak may be (default: %(default)s)"
    )
    arguments = parser.parse_args()
    names = arguments.only.split(";") if arguments.only else list(SMALL)
    checkouts = {"before": arguments.before.resolve(), "now": HERE}
    print(f"{'MiB':18}{'before':>8}{'now':>8}{'ratio':>7}   not in files:{'before':>8}{'now':>8}{'ratio':>7}")
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {}
    higher = []
    for name in names:
        found = rows[name] = {which: [] for which in checkouts}
        for _ in range(arguments.repeats):
            for which, checkout in checkouts.items():
                found[which].append(peak(checkout, SMALL[name]))
        cells = []
        for part in (0, 1):
            before, now = (statistics.median(pair[part] for pair in pairs) for pairs in found.values())
            cells.append(f"{before:8,.0f}{now:8,.0f}{now / before:7.2f}")
        if not now / before <= 1 + arguments.slack:
            higher.append(name)
        mark = "  higher" if name in higher else ""
        print(f"{name:18}{cells[0]}{'':16}{cells[1]}{mark}", flush=True)
    print(json.dumps({"benchmark": "peaks", "mib": rows, "higher": higher}))
    return 1 if higher else 0


if __name__ == "__main__":
    sys.exit(main())
