"""The embedded describer, whose batches are refilled, writes the same bytes with one process and with three."""

import hashlib

import pytest
import torch

from spr.config import make_config
from spr.embedded.scenes import write_scenes
from spr.pipeline.runner import run
from spr.records import TRUNCATED
from spr.runs.store import StageStore


def describe(data, out, processes):
    """Describe the regions of scenes; returns one hash for each shard, and why the answers ended."""
    section = {
        "model": "embedded/describer",
        "device": "cpu",
        "num_processes": processes,
        # Fewer than the requests of a shard, and a limit that cuts some of them: rows become free at different steps.
        "batch_size": 4,
        "max_new_tokens": 40,
        "truncated": "keep",
        "samples": {"full": 2, "crop": 1, "crop_objects": 3},
    }
    annotations = {"path": str(data), "images": str(data.parent / "images"), "min_area": 60, "crowds": "drop"}
    run(
        make_config({"describer": section, "annotations": annotations, "shard_rows": 3}),
        out,
        until="candidates",
        workers=processes,
    )
    store = StageStore(out / "candidates")
    shards = store.finished().shards
    paths = [path for shard in shards for path in (store.part(shard.index), store.drops(shard.index))]
    reasons = {row["finish_reason"] for table in store.tables() for row in table.to_pylist()}
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths], reasons


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_one_and_three_processes_write_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # of this process, which may have imported PyTorch with more
    data = write_scenes(tmp_path / "scenes", 12, 0)
    try:
        alone, reasons = describe(data, tmp_path / "one", 1)
        assert describe(data, tmp_path / "three", 3) == (alone, reasons)
    finally:
        torch.set_num_threads(before)
    assert len(alone) >= 2 * 3
    assert reasons == {"stop", TRUNCATED}
