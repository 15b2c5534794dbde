"""Damage the files of a run folder at random: every reader must succeed or raise one clear error.

python tests/run_folder_fuzz.py --count 100000
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from spr.config import load_config
from spr.core.errors import SprError
from spr.evaluation.compare import load_results
from spr.evaluation.metrics import Share
from spr.evaluation.result import Result
from spr.evaluation.tasks.description import Description
from spr.exports.writing import export
from spr.pipeline.answers import _read as read_answers
from spr.pipeline.runner import run
from spr.report.funnel import count_stages, training_drops
from spr.report.page import write_report
from spr.report.results import read_results
from spr.report.show import show
from spr.report.target import check_target
from spr.report.training import read_training
from spr.runs.cues import pair_cues
from spr.runs.folder import check_run_version, is_run, lock_run
from spr.runs.pair_stats import pair_summary
from spr.runs.reader import Run
from spr.training.pairs import run_pairs

DEEP = 30_000
WRONG = [None, True, -1, 0, 5, 10**30, 1e308, "", "x", "\ud800", [], [[]], {}, {"x": {}}, [1, "x", None], "9" * 5000]
SLOW = 100
"""Every so many cases, the whole command `run` resumes in the damaged folder as well."""


def make_folder(folder: Path, config) -> Path:
    """A run with everything that a folder may hold, small."""
    out = folder / "run"
    run(config, out)
    write_report(out)
    export(out, out / "export", "llava")
    (out / "candidates" / "unfinished-00000.jsonl").write_text(
        '{"key": "k", "answer": "a", "finish_reason": "stop"}\n' * 3
    )
    result = Result("rec", {"a": 1}, ("1", "2"), ("1", "2"), {"acc@0.5": Share.mean(np.array([1.0, 0.0]))})
    entry = result.write(out / "evaluation" / "before-rec.json", out)
    metrics = {"format_version": 2, "before": {"rec": entry}, "after": {"rec": entry}, "counts": {}, "seconds": {}}
    (out / "metrics.json").write_text(json.dumps(metrics))
    make_training(out)
    return out


def make_training(out: Path) -> None:
    """What a training leaves, of a model with one layer."""
    import torch

    from spr.core.outputs import write_marker
    from spr.training.checkpoint import save_finished
    from spr.training.reference import ReferenceFile
    from spr.training.vision_cache import DiskFeatures, Features

    adapter = out / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    (adapter / "adapter_model.safetensors").write_bytes(b"weights" * 9)
    state = training_state()
    for step in (1, 2):
        state.save(out / "training" / "checkpoints", step, {"seed": 0}, {"loss": 0.5})
    log = [{"event": "start", "first_step": 0}, *({"event": "step", "step": k, "loss": 1 / k} for k in (1, 2, 3))]
    (out / "training" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    reference = ReferenceFile(out / "training" / "reference.parquet", {"model": "m"})
    reference._known["k"] = {"pair_id": "1", "key": "k", "chosen": -1.0, "rejected": -2.0}
    reference.save()
    DiskFeatures(out / "training" / "features").put("abc", Features(torch.zeros(2, 3)))
    path = out / "training" / "finished.json"
    details = {"steps": 2, "seconds": 1.0, "last": {"loss": 0.5, "margin": 0.0, "accuracy": 1.0}}
    save_finished(path, {"seed": 0}, **details, adapter=write_marker(adapter, "spr train"))


def training_state():
    import torch
    from accelerate import Accelerator

    from spr.training.checkpoint import TrainingState

    model = torch.nn.Linear(2, 2)
    return TrainingState(Accelerator(cpu=True), model, torch.optim.AdamW(model.parameters()))


def allow(read: Callable[[], object]) -> None:
    """Call a reader, which may refuse the folder with an error that names what is wrong."""
    try:
        read()
    except SprError as error:
        if not error.what or len(str(error)) > 20_000:
            raise RuntimeError(f"an error of {len(str(error))} characters") from error


def readers(out: Path, name: Path) -> list[Callable[[], object]]:
    """What reads a file of a run folder."""
    from spr.models.loading import check_adapter_files
    from spr.training.checkpoint import check_adapter_folder, read_finished
    from spr.training.log import TrainingLog
    from spr.training.reference import ReferenceFile
    from spr.training.vision_cache import DiskFeatures

    def lock() -> None:
        with lock_run(out):
            pass

    training, adapter = out / "training", out / "adapter"
    finished = [
        lambda: check_adapter_folder(adapter, training),
        lambda: check_adapter_files(adapter),
        lambda: read_finished(training / "finished.json", adapter, {"seed": 0}),
    ]
    logs = [lambda: read_training(Run(out)), lambda: TrainingLog(training / "log.jsonl", 9, 2)]
    results = [
        lambda: load_results(out),
        lambda: load_results(out / "evaluation" / "before-rec.json"),
        lambda: read_results(Run(out)),
    ]
    own: dict[str, list[Callable[[], object]]] = {
        "adapter": finished,
        "checkpoints": [lambda: training_state().load(training / "checkpoints", {"seed": 0})],
        "reference.parquet": [lambda: ReferenceFile(training / "reference.parquet", {"model": "m"})],
        "features": [lambda: DiskFeatures(training / "features").get("abc")],
        "finished.json": finished,
        "training": logs,
        "report": [lambda: check_target(out / "report")],
        "export": [lambda: export(out, out / "export", "llava")],
        "evaluation": results,
        "metrics.json": results,
        "unfinished-00000.jsonl": [lambda: read_answers(out / "candidates" / "unfinished-00000.jsonl")],
        "config.yaml": [lambda: load_config(out / "config.yaml")],
        "dropped.parquet": [lambda: list(show(out / "dropped.parquet", n=2)), lambda: Run(out).table("dropped")],
    }
    for part in (name.name, *(parent.name for parent in name.parents)):
        if part in own:
            return own[part]
    return [
        lambda: is_run(out),
        lambda: check_run_version(out),
        lock,
        lambda: list(show(out)),
        lambda: [list(show(out / stage, n=1)) for stage in ("objects", "candidates", "scores", "pairs")],
        lambda: list(pair_summary(out)),
        lambda: pair_cues(out),
        lambda: (count_stages(Run(out)), training_drops(Run(out))),
        lambda: Description().load(out),
        lambda: list(run_pairs(out, load_config(out / "config.yaml").annotations.image_source)),
    ]


def nodes(value: object, holder: object = None, key: object = None) -> Iterator[tuple]:
    """Every place in a JSON value, as container and key."""
    if holder is not None:
        yield holder, key
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in list(items):
        yield from nodes(item, value, name)


def damage(path: Path, draw: random.Random) -> str:
    """Damage a file in a random way; returns which."""
    data = path.read_bytes()
    text = path.suffix in (".json", ".jsonl", ".yaml")
    kind = draw.choice(
        ["truncate", "flip", "noise", "empty", "delete", "folder", *(["value"] * 6 + ["nest"] if text else ["table"])]
    )
    if kind == "truncate":
        path.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "flip":
        changed = bytearray(data)
        for _ in range(draw.choice([1, 1, 4, 30])):
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
    elif kind == "noise":
        path.write_bytes(draw.randbytes(draw.choice([1, 40, 3000])))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "delete":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "nest":
        path.write_text(draw.choice(["[", '{"a":', "- ", "[{"]) * DEEP)
    elif kind == "table":
        table = pa.table({"id": pa.array(["x"]), "image_id": pa.array([1])})
        pq.write_table(table, path)
    else:
        change_value(path, draw)
    return kind


def change_value(path: Path, draw: random.Random) -> None:
    """Give a random place in a JSON or YAML document another value, or remove it."""
    text = path.read_text()
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    number = draw.randrange(len(lines))
    content = yaml.safe_load(lines[number]) if path.suffix == ".yaml" else json.loads(lines[number])
    places = list(nodes(content))
    wrong = draw.choice(WRONG)
    if not places or draw.random() < 0.05:
        content = wrong
    else:
        holder, key = draw.choice(places)
        if draw.random() < 0.25:
            del holder[key]
        else:
            holder[key] = wrong
    lines[number] = json.dumps(content)
    path.write_text("\n".join(lines))


def fuzz(out: Path, config, count: int, seed: int) -> list[str]:
    """Damage a file of a folder from `make_folder` ``count`` times; returns what went wrong, one text per case."""
    draw, failures = random.Random(seed), []
    names = [
        path.relative_to(out)
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and path.stat().st_size
        and "gallery" not in path.parts
        and (path.suffix in (".json", ".jsonl", ".yaml", ".parquet", ".pt", ".safetensors"))
        and path.name != "train.json"
    ]
    pristine = out.with_name("pristine")
    shutil.copytree(out, pristine)
    for number in range(count):
        name = draw.choice(names)
        started = time.monotonic()
        kind = damage(out / name, draw)
        try:
            allow(draw.choice(readers(out, name)))
            if number % SLOW == 0:
                allow(lambda: run(config, out))
        except BaseException:
            failures.append(f"case {number}, {name}, {kind}:\n{traceback.format_exc()}")
            if len(failures) >= 20:
                return failures
        seconds = time.monotonic() - started
        if seconds > 5:
            failures.append(f"case {number}, {name}, {kind}: {seconds:.1f} s")
        if number % SLOW == 0:
            shutil.rmtree(out)
            shutil.copytree(pristine, out)
        else:
            damaged = out / name
            if damaged.is_dir():
                shutil.rmtree(damaged)
            shutil.copy2(pristine / name, damaged)
            shutil.copy2(pristine / "training" / "log.jsonl", out / "training" / "log.jsonl")  # a reader shortens it
    shutil.rmtree(pristine)
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="number of damaged folders")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from conftest import Dataset
    from run_folders import FAKES
    from spr.config import make_config

    with tempfile.TemporaryDirectory() as place:
        data = Dataset(Path(place) / "data", images=6)
        sections = {"annotations": {"max_images": 4}, "shard_rows": 2, "scoring": {"ground_truth": "annotations"}}
        config = make_config(data.config(**FAKES, **sections))
        failures = fuzz(make_folder(Path(place), config), config, options.count, options.seed)
    print("\n".join(failures))
    print(f"{options.count} cases, {len(failures)} failures (seed {options.seed})")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
