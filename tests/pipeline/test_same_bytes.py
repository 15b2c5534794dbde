"""Every engine, number of processes and kind of storage gives the same bytes; the test prints the hashes.

The models are the embedded ones, with one thread per process: what a shard contains may depend on the backend, the kind
of device and the number of threads, and on nothing else.
"""

import hashlib

import pytest
import torch

from spr.config import make_config
from spr.embedded.scenes import write_scenes
from spr.pipeline.runner import run
from spr.runs.store import STAGE_ORDER, StageStore

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore:.*:FutureWarning")]

MODELS = {
    "describer": {
        "model": "embedded/describer",
        "max_new_tokens": 64,
        "samples": {"full": 1, "crop": 1, "crop_objects": 1},
    },
    "scorer": {"model": "embedded/scorer"},
    "detector": {"backend": "owlv2", "model": "embedded/detector", "box_threshold": 0.3},
}


def hashes(out):
    """One hash per stage, over the bytes of all of its shards."""
    found = {}
    for stage in (*STAGE_ORDER, "negatives"):
        store, digest = StageStore(out / stage), hashlib.sha256()
        for shard in store.finished().shards:
            for path in (store.part(shard.index), store.drops(shard.index)):
                digest.update(path.read_bytes())
        found[stage] = digest.hexdigest()[:16]
    return found


def config(data, count, engine):
    sections = {name: {**section, "device": "cpu", "num_processes": count} for name, section in MODELS.items()}
    return make_config(
        {
            **sections,
            "engine": engine,
            "annotations": {
                "path": str(data / "instances.json"),
                "images": str(data / "images"),
                "min_area": 60,
                "crowds": "drop",
            },
            "pairing": {"negatives": 2, "negatives_from": "adversarial"},
            "shard_rows": 3,
        }
    )


def test_engines_processes_and_storage_change_no_byte(tmp_path, monkeypatch, bucket):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # of this process, which may have imported PyTorch with more
    try:
        found = hashes_of_all(tmp_path, bucket)
    finally:
        torch.set_num_threads(before)
    for case, stages in found.items():
        print(f"{case:42} " + " ".join(stages.values()))
    assert len(found) == 9
    assert len({tuple(stages.values()) for stages in found.values()}) == 1


def hashes_of_all(tmp_path, bucket):
    """Run the pipeline in all ways; returns the hashes by case."""
    data = write_scenes(tmp_path / "scenes", 12, 0).parent
    ray = {"name": "ray", "address": "local"}
    cases = [(name, engine, count) for name, engine in (("local", "local"), ("ray", ray)) for count in (1, 2, 4)]
    found = {}
    for name, engine, count in cases:
        out = tmp_path / f"{name}-{count}"
        run(config(data, count, engine), out, workers=count)
        found[f"{name}, {count} processes"] = hashes(out)
    half = tmp_path / "half"
    run(config(data, 2, ray), half, until="candidates")
    store = StageStore(half / "candidates")
    manifest = store.finished()
    manifest.shards, manifest.complete = manifest.shards[:2], False  # as if it had been killed there
    store.save(manifest)
    run(config(data, 1, "local"), half)
    found["begun on Ray with 2, ended locally with 1"] = hashes(half)
    for name, engine in (("local", "local"), ("ray", ray)):
        out = bucket / f"run-{name}"
        run(config(data, 2, engine), out, workers=2)
        found[f"{name}, 2 processes, S3"] = hashes(out)
    return found
