"""Claims about the engines, on a machine with two cores:

- Ray is at most 20 % slower than the local engine in the steady state, over 20,000 queries with fake models;
- two processes are at least 1.7 times as fast as one in a stage that is bound by the CPU;
- two processes of one thread describe at least 1.3 times as fast as one process of two threads (`--embedded`).

Each case is a run in a process of its own, in turn, ``--repeats`` times; a ratio compares runs of the same round, and
the median is reported. The steady state lasts from the first shard that the driver gets to the last. What comes before,
the start of processes and of Ray and the time until the first shard, is reported as start-up.

    python benchmarks/bench_engine.py [--queries 20000] [--repeats 3]
    python benchmarks/bench_engine.py --embedded [--scenes 96] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

OBJECTS = 9
FILES = 200
FAKES = [f"{name}.backend=fake" for name in ("describer", "scorer", "detector")]
EMBEDDED = ["scorer.model=embedded/scorer", "detector.backend=owlv2", "detector.model=embedded/detector"]


def write_data(folder: Path, images: int) -> list[str]:
    """COCO JSON of so many images, which share `FILES` files; one query each. Returns the config as overrides."""
    (folder / "images").mkdir(parents=True)
    for number in range(FILES):
        Image.new("RGB", (320, 240), (number, 255 - number, 100)).save(folder / "images" / f"{number}.png")
    boxes = [(10 + 95 * (k % 3), 8 + 75 * (k // 3), 80, 60) for k in range(OBJECTS)]
    ids = range(1, images + 1)
    content = {
        "images": [{"id": k, "file_name": f"{k % FILES}.png", "width": 320, "height": 240} for k in ids],
        "annotations": [
            {"id": OBJECTS * k + n, "image_id": k, "category_id": 1 + n % 3, "bbox": box, "iscrowd": 0}
            for k in ids
            for n, box in enumerate(boxes)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(("dog", "cup", "chair"), 1)],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    paths = [f"annotations.path={folder}/instances.json", f"annotations.images={folder}/images"]
    return [*paths, "annotations.max_images=null", "annotations.holdout=0", "regions.per_image=1"]


MEASURED = """
import json, sys, time
from pathlib import Path
from spr.config import load_config
from spr.pipeline import stage_run
from spr.pipeline.runner import run
start, times = time.monotonic(), {}
def note(real):
    def accept(self, entry):
        times.setdefault(self.stage.name, []).append((time.monotonic() - start, entry.inputs))
        return real(self, entry)
    return accept
for kind in (stage_run.StageRun, stage_run.FirstStageRun):
    kind.accept = note(kind.accept)
until = sys.argv[4] or None
run(load_config(sys.argv[1], sys.argv[5:]), Path(sys.argv[2]), workers=int(sys.argv[3]), until=until)
print(json.dumps({"times": times, "total": time.monotonic() - start}))
"""


def measure(config: Path, out: Path, workers: int, overrides: list[str], threads: int, until: str = "") -> dict:
    """Run the pipeline in a process of its own; when which shards were finished, and the whole time, in seconds."""
    shutil.rmtree(out, ignore_errors=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", MEASURED, str(config), str(out), str(workers), until, *overrides]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(done.stdout)


def steady(result: dict) -> tuple[float, float]:
    """Seconds of the start-up and of the steady state."""
    moments = [moment for shards in result["times"].values() for moment, _ in shards]
    return min(moments), max(moments) - min(moments)


def rate(result: dict, stage: str) -> float:
    """Input rows per second of a stage, without its first shard."""
    shards = sorted(result["times"][stage])
    return sum(rows for _, rows in shards[1:]) / (shards[-1][0] - shards[0][0])


def rounded(ratios: list[float]) -> list[float]:
    """Ratios with two decimals."""
    return [round(ratio, 2) for ratio in ratios]


def with_fakes(folder: Path, queries: int, repeats: int) -> None:
    """Ray against the local engine, and two processes against one."""
    overrides = [*write_data(folder / "data", queries), *FAKES]
    config = folder / "empty.yaml"
    config.write_text("{}\n")
    two = [f"{name}.num_processes=2" for name in ("describer", "scorer", "detector")]
    ray = ["engine=ray", "engine.address=local"]
    cases = {"local, one process": (1, []), "local, two processes": (2, two), "Ray, two processes": (2, [*two, *ray])}
    found: dict[str, list[dict]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, (workers, more) in cases.items():
            found[name].append(measure(config, folder / "run", workers, [*overrides, *more], 1))
    for name, results in found.items():
        parts = [steady(result) for result in results]
        start, rest = (statistics.median(part[k] for part in parts) for k in (0, 1))
        total = statistics.median(result["total"] for result in results)
        print(f"{name:22} start-up {start:5.1f} s, steady {rest:6.1f} s, in all {total:6.1f} s")
    local, both, cluster = (found[name] for name in cases)
    ratios = [steady(c)[1] / steady(b)[1] for b, c in zip(both, cluster, strict=True)]
    print(f"Ray over local, steady, two processes each: {statistics.median(ratios):.2f} of {rounded(ratios)}")
    for stage in ("candidates", "scores", "pairs"):
        ratios = [rate(b, stage) / rate(a, stage) for a, b in zip(local, both, strict=True)]
        print(f"two processes over one, {stage}: {statistics.median(ratios):.2f} of {rounded(ratios)}")


def with_embedded(folder: Path, scenes: int, repeats: int) -> None:
    """Two processes of one thread against one of two, with the embedded describer."""
    from spr.embedded.scenes import write_scenes

    data = write_scenes(folder / "scenes", scenes, 0).parent
    overrides = [f"annotations.path={data}/instances.json", f"annotations.images={data}/images"]
    overrides += ["shard_rows=16", "describer.batch_size=48", "describer.device=cpu"]
    overrides += ["annotations.crowds=drop", "detector.backend=none", "scoring.ground_truth=annotations"]
    config = Path(__file__).parents[1] / "src" / "spr" / "config" / "presets" / "quickstart.yaml"
    ratios, seconds = [], []
    for _ in range(repeats):
        pair = []
        for processes, threads in ((1, 2), (2, 1)):
            more = [f"describer.num_processes={processes}", "scorer.backend=fake"]
            started = time.monotonic()
            result = measure(config, folder / "run", 1, [*overrides, *more], threads, "candidates")
            pair.append(rate(result, "candidates"))
            seconds.append((processes, round(time.monotonic() - started, 1)))
        ratios.append(pair[1] / pair[0])
        print(f"one process of two threads {pair[0]:.2f} queries/s, two of one thread {pair[1]:.2f}: {ratios[-1]:.2f}")
    print(f"two processes over one: {statistics.median(ratios):.2f}; whole runs (processes, seconds): {seconds}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--embedded", action="store_true")
    parser.add_argument("--scenes", type=int, default=96)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.embedded:
            with_embedded(Path(folder), options.scenes, options.repeats)
        else:
            with_fakes(Path(folder), options.queries, options.repeats)


if __name__ == "__main__":
    main()
