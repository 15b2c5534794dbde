"""Measures the library on one NVIDIA GPU with 80 GB or more: training, describing, scoring, and running out of memory.

    python benchmarks/gpu.py --out gpu.jsonl --minutes 8       # on the GPU
    python benchmarks/gpu.py --out tiny.jsonl --rehearse       # the same cases on the CPU, at tiny sizes in float32

Needs no network and no weights: models have the published sizes and random weights. Each case runs in a process of its
own with a time limit. Its row is appended to ``--out`` as soon as it ends, also if it fails, for example when the GPU
runs out of memory. The command may be stopped at any moment; the next call with the same file measures the cases that
are missing. Cases for which too little time is left get a row that says so, and are measured by a later call.

A machine without network gets the missing packages as wheels. First, where there is one:

    sh benchmarks/gpu_wheels.sh wheels                         # Python 3.12 on Linux, x86-64

Then copy the checkout with that folder to the machine, and run there:

    python3 -m pip install -q --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site:src python3 benchmarks/gpu.py --out gpu.jsonl
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple


class Case(NamedTuple):
    """A case: function and arguments in gpu_cases.py, and seconds that it needs at least and is given at most."""

    function: str
    arguments: tuple[Any, ...]
    needs: int
    limit: int


def _dpo(model: str, needs: int, limit: int, *, checkpointing: bool = False) -> dict[str, Case]:
    mode = " checkpointing" if checkpointing else ""
    function = "dpo_checkpointing" if checkpointing else "dpo"
    trainers = ("ours", "trl")
    return {f"dpo {model}{mode} {name}": Case(function, (model, name), needs, limit) for name in trainers}


CASES: dict[str, Case] = {
    "matmul": Case("matmul", (), 15, 60),
    **_dpo("llava-onevision-0.5b", 25, 90),
    **_dpo("qwen2.5-vl-7b", 35, 120),
    **_dpo("llava-onevision-7b", 40, 120),
    "describe llava-onevision-0.5b": Case("describe", ("llava-onevision-0.5b",), 30, 90),
    "score clip": Case("score_clip", (), 20, 60),
    "score grounding-dino": Case("score_dino", (), 25, 90),
    "memory describe": Case("memory_describe", ("llava-onevision-0.5b",), 20, 60),
    "memory train": Case("memory_train", ("llava-onevision-0.5b",), 25, 60),
    "describe qwen2.5-vl-7b": Case("describe", ("qwen2.5-vl-7b",), 40, 120),
    "ferret-7b step": Case("ferret_step", (), 25, 90),
    "four bits": Case("four_bits", ("llava-onevision-0.5b",), 15, 90),
    **_dpo("llava-onevision-7b", 45, 120, checkpointing=True),
}
"""The cases in their order: cheapest and most informative first."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that a stopped call left incomplete is ignored."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row in one write, so that the file is complete at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            start = b"" if file.read(1) == b"\n" else b"\n"
        else:
            start = b""
        file.write(start + json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def print_row(row: dict[str, Any]) -> None:
    """One line of the table."""
    hidden = {"case", "rehearsal", "wall_s", "time"}
    shown = [f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, int | float) and k not in hidden]
    shown += [row[name] for name in ("reason", "error") if name in row]
    print(f"{row['case']:<43}{row['status']:<9}{row['wall_s']:>7.1f} s  {', '.join(shown)[:500]}", flush=True)


class Child:
    """A process that imports what a case needs and then waits for its turn, while the case before it runs."""

    def __init__(self, name: str, folder: str) -> None:
        self.name, self.errors = name, Path(folder, f"{name}.stderr")
        environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--child", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    def run(self, options: dict[str, Any], limit: float, left: float) -> dict[str, Any]:
        """Let it measure for up to ``limit`` seconds, but at most ``left``; returns its figures, or how it failed."""
        try:
            output, _ = self.process.communicate(json.dumps(options) + "\n", timeout=min(limit, left))
        except subprocess.TimeoutExpired:
            self.stop()
            if left < limit:
                return {"status": "no time", "reason": f"stopped after the last {left:.0f} s"}
            return {"status": "failed", "error": f"stopped after {limit:.0f} s"}
        if self.process.returncode:
            lines = self.errors.read_text(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip() and not line.startswith(" ")), "no message")
            return {"status": "failed", "error": f"code {self.process.returncode}: {last}"[:1000]}
        return dict(json.loads(output.splitlines()[-1]))

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def measure(name: str) -> None:
    """What a child does: import, wait for the options, measure, and print one line of JSON."""
    import torch
    import transformers

    import gpu_cases

    if name.endswith(" trl"):
        importlib.import_module("trl.trainer.dpo_trainer")  # the slow import, before the time is measured
    line = sys.stdin.readline()
    if not line:
        return
    options = json.loads(line)
    case, rehearse = CASES[name], options["rehearse"]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    device = "cpu" if rehearse else torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        run = gpu_cases.Run(rehearse, Path(folder), options["rows"])
        try:
            found = {"status": "ok", **getattr(gpu_cases, case.function)(run, *case.arguments)}
        except gpu_cases.NotPossibleError as error:
            found = {"status": "skipped", "reason": str(error)}
    print(json.dumps({**found, "device": device, **versions}))


def main() -> None:
    """Measure the cases that the file lacks, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of rows, one JSON object per line")
    parser.add_argument("--minutes", type=float, default=8, help="time for all cases")
    parser.add_argument("--cases", nargs="*", default=[], help="only cases whose names begin with one of these")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        measure(given.child)
        return
    if given.out is None:
        parser.error("--out is missing: give the file that the rows are appended to")
    end = time.monotonic() + 60 * given.minutes
    rows = {row["case"]: row for row in read_rows(given.out) if row["rehearsal"] == given.rehearse}
    wanted = [name for name in CASES if not given.cases or name.startswith(tuple(given.cases))]
    missing = [name for name in wanted if rows.get(name, {"status": "no time"})["status"] == "no time"]
    with tempfile.TemporaryDirectory() as folder:
        ahead: Child | None = None
        for place, name in enumerate(missing):
            case, left = CASES[name], end - time.monotonic()
            started, needs = time.monotonic(), 1 if given.rehearse else case.needs
            if left < needs:
                found = {"status": "no time", "reason": f"needs {needs} s, {max(0, left):.0f} s are left"}
            else:
                if ahead is not None and ahead.name != name:
                    ahead.stop()
                    ahead = None
                child = ahead or Child(name, folder)
                ahead = Child(missing[place + 1], folder) if place + 1 < len(missing) else None
                found = child.run({"rehearse": given.rehearse, "rows": rows}, case.limit, left)
            wall = time.monotonic() - started
            row = {"case": name, "rehearsal": given.rehearse, "wall_s": round(wall, 2), "time": time.time(), **found}
            if name not in rows or found["status"] != "no time":
                append_row(given.out, row)
            rows[name] = row
            print_row(row)
        if ahead is not None:
            ahead.stop()


if __name__ == "__main__":
    main()
