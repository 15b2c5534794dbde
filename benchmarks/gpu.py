"""Measures the library on one NVIDIA GPU with 80 GB or more: training, describing, scoring, and running out of memory.

    python benchmarks/gpu.py --out gpu.jsonl                   # on the GPU, in at most 8 minutes
    python benchmarks/gpu.py --table gpu.jsonl                 # the file's rows as tables in Markdown
    python benchmarks/gpu.py --out tiny.jsonl --rehearse       # the same cases on the CPU, at tiny sizes in float32

Needs no network and no weights: models have the published sizes and random weights in bfloat16. Each case runs in a
process of its own with a time limit, small models first. Its row is appended to ``--out`` as soon as it ends, also if
it fails, for example when the GPU runs out of memory. The command may be stopped at any moment, with any signal; the
next call with the same file measures the cases that are missing. Cases for which too little time is left get a row that
says so, and are measured by a later call. Failed ones are measured again with ``--retry``.

A machine without network gets the missing packages as wheels; docs/measure-on-a-gpu.md says how.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from gpu_rows import append_row, print_row, read_rows, tables

# fmt: off
NEEDED = (
    "torch", "numpy", "PIL", "transformers", "tokenizers", "safetensors", "huggingface_hub", "accelerate", "peft",
    "trl", "datasets", "pyarrow", "pandas", "msgspec", "pydantic", "yaml", "jinja2", "psutil", "tqdm", "regex",
)
# fmt: on
"""Modules that the cases import, directly or through others."""


class Case(NamedTuple):
    """A case: function and arguments in gpu_cases.py, and the seconds that it takes on an H100, by estimate."""

    function: str
    arguments: tuple[Any, ...]
    seconds: int

    @property
    def limit(self) -> int:
        """Seconds after which it is stopped: an A100 takes up to 2.5 times as long, a slow disk a while besides."""
        return 3 * self.seconds + 15


def _dpo(model: str, ours: int, trl: int, *, checkpointing: bool = False) -> dict[str, Case]:
    mode = " checkpointing" if checkpointing else ""
    function = "dpo_checkpointing" if checkpointing else "dpo"
    trainers = {"ours": ours, "trl": trl}
    return {f"dpo {model}{mode} {name}": Case(function, (model, name), least) for name, least in trainers.items()}


CASES: dict[str, Case] = {
    "matmul": Case("matmul", (), 20),
    **_dpo("llava-onevision-0.5b", 15, 20),
    "describe llava-onevision-0.5b": Case("describe", ("llava-onevision-0.5b",), 25),
    "score clip": Case("score_clip", (), 15),
    "score grounding-dino": Case("score_dino", (), 25),
    "memory describe": Case("memory_describe", ("llava-onevision-0.5b",), 20),
    "memory train": Case("memory_train", ("llava-onevision-0.5b",), 20),
    "four bits": Case("four_bits", ("llava-onevision-0.5b",), 15),
    **_dpo("qwen2.5-vl-7b", 20, 25),
    **_dpo("llava-onevision-7b", 25, 35),
    "ferret-7b step": Case("ferret_step", (), 20),
    "describe qwen2.5-vl-7b": Case("describe", ("qwen2.5-vl-7b",), 35),
    **_dpo("llava-onevision-7b", 30, 45, checkpointing=True),
    "attention flex": Case("dpo_attention", ("llava-onevision-0.5b", "flex_attention"), 30),
    "attention flash": Case("dpo_attention", ("llava-onevision-0.5b", "flash_attention_2"), 15),
}
"""The cases in their order: small models first. Their seconds add up to less than 8 minutes.

The seconds were estimated, not measured: the counted work of dpo_counts.py at 350 TFLOP/s, 30 ms per token of a batch
in `generate`, 5 s for a model's weights and processor, and 5 to 10 s for what runs on the CPU. The next case's process
imports its packages while a case runs. On an A100 the last cases may be left for a second call.
"""


class Child:
    """A process that imports what a case needs and then waits for its turn, while the case before it runs."""

    def __init__(self, name: str, folder: str) -> None:
        self.name, self.errors = name, Path(folder, f"{name}.stderr")
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
        quiet |= {"HF_HOME": str(Path(folder, "hf"))}
        # TRL refuses to see several GPUs, and kernels from the Hub would need the network.
        chosen = {"CUDA_VISIBLE_DEVICES": "0", "USE_HUB_KERNELS": "NO"}
        # This checkout is measured, also if another version is installed.
        source = str(Path(__file__).resolve().parents[1] / "src")
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), source]))
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--child", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**quiet, **chosen, **os.environ, "TMPDIR": folder, "PYTHONPATH": path},
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


def end_with_parent() -> None:
    """End this process when its parent has ended, so that no case goes on after the command was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def measure(name: str) -> None:
    """What a child does: import, wait for the options, measure, and print one line of JSON."""
    end_with_parent()
    import torch

    import gpu_cases
    import spr
    from gpu_models import NotPossibleError, Run

    if name.endswith(" trl"):
        importlib.import_module("trl.trainer.dpo_trainer")  # the slow import, before the time is measured
    line = sys.stdin.readline()
    if not line:
        return
    options = json.loads(line)
    case, rehearsal = CASES[name], options["rehearse"]
    device = torch.cuda.get_device_name() if rehearsal is None else "cpu"
    found = {"device": device, "dtype": rehearsal or "bfloat16", **versions(), "spr": spr.__version__}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(rehearsal is not None, getattr(torch, found["dtype"]), Path(folder), options["rows"])
        try:
            found |= {"status": "ok", **getattr(gpu_cases, case.function)(run, *case.arguments)}
        except NotPossibleError as error:
            found |= {"status": "skipped", "reason": str(error)}
    print(json.dumps(found), flush=True)
    # What libraries do at the end of a process takes seconds, and may fail.
    os._exit(0)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that matter."""
    names = {"torch": "torch", "transformers": "transformers", "trl": "trl", "peft": "peft"}
    found = {"python": platform.python_version()}
    for name, package in names.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


CHECK = """
import json, torch
if not torch.cuda.is_available():
    raise SystemExit(f"PyTorch {torch.__version__} sees no GPU")
free, total = torch.cuda.mem_get_info()
found = [torch.cuda.get_device_name(), f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"]
print(", ".join([*found, f"PyTorch {torch.__version__}"]))
"""


def check_machine(rehearse: str | None) -> None:
    """End with a message if a package or the GPU is missing, before any row is written."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        how = "gather them with benchmarks/gpu_wheels.sh, as docs/measure-on-a-gpu.md shows"
        raise SystemExit(f"Missing packages: {', '.join(missing)}; install them, or {how}")
    where = str(importlib.util.find_spec("datasets").origin)
    if "site-packages" not in where and not where.startswith((sys.prefix, sys.base_prefix)):
        # dill, with which datasets makes fingerprints, would store the package itself instead of its name, and fail.
        raise SystemExit(f"datasets is in {where}: install the wheels into a folder that is named site-packages")
    if rehearse is None:
        done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise SystemExit(f"The GPU can't be used: {last}; to try the cases on a CPU, add --rehearse")
        print(done.stdout.strip(), flush=True)


def measure_all(out: Path, cases: list[str], seconds: float, rehearse: str | None, *, retry: bool) -> None:
    """Measure the cases that the file lacks, one after the other."""
    end = time.monotonic() + seconds
    rehearsal = rehearse is not None
    rows = {row["case"]: row for row in read_rows(out) if row["rehearsal"] == rehearsal}
    again = {"no time", "failed"} if retry else {"no time"}
    missing = [name for name in cases if rows.get(name, {"status": "no time"})["status"] in again]
    with tempfile.TemporaryDirectory(prefix="spr-gpu-") as folder:
        ahead: Child | None = None
        for place, name in enumerate(missing):
            case, left = CASES[name], end - time.monotonic()
            started, needs = time.monotonic(), 1 if rehearsal else case.seconds
            if left < needs:
                found = {"status": "no time", "reason": f"needs {needs} s, {max(0, left):.0f} s are left"}
            else:
                if ahead is not None and ahead.name != name:
                    ahead.stop()
                    ahead = None
                child = ahead or Child(name, folder)
                ahead = Child(missing[place + 1], folder) if place + 1 < len(missing) else None
                limit = 10 * case.limit if rehearsal else case.limit  # a rehearsal is no measurement
                found = child.run({"rehearse": rehearse, "rows": rows}, limit, left)
            wall = time.monotonic() - started
            row = {"case": name, "rehearsal": rehearsal, "wall_s": round(wall, 2), "time": time.time(), **found}
            if name not in rows or found["status"] != "no time":
                append_row(out, row)
            rows[name] = row
            print_row(row)
        if ahead is not None:
            ahead.stop()


def main() -> None:
    """Measure, or print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of rows, one JSON object per line")
    parser.add_argument("--minutes", type=float, default=8, help="time for all cases")
    parser.add_argument("--cases", nargs="*", default=[], help="only cases whose names begin with one of these")
    parser.add_argument("--retry", action="store_true", help="measure failed cases again")
    kinds = {"nargs": "?", "const": "float32", "choices": ("float32", "bfloat16")}
    parser.add_argument("--rehearse", **kinds, help="tiny models on the CPU, in float32 unless bfloat16 is given")
    parser.add_argument("--table", type=Path, metavar="ROWS", help="print the tables of a file of rows, and end")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        measure(given.child)
        return
    if given.table is not None:
        rows = read_rows(given.table)
        if not rows:
            raise SystemExit(f"{given.table} has no rows")
        for rehearsal in (False, True):
            if some := [row for row in rows if row["rehearsal"] == rehearsal]:
                print(tables(some))
        return
    if given.out is None:
        parser.error("--out is missing: give the file that the rows are appended to")
    wanted = [name for name in CASES if not given.cases or name.startswith(tuple(given.cases))]
    if not wanted:
        parser.error(f"--cases {' '.join(given.cases)} names no case; there are: {', '.join(CASES)}")
    seconds = 60 * given.minutes
    started = time.monotonic()
    check_machine(given.rehearse)
    seconds -= time.monotonic() - started
    measure_all(given.out, wanted, seconds, given.rehearse, retry=given.retry)


if __name__ == "__main__":
    main()
