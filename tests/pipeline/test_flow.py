"""However an engine orders the jobs of a run, whether stages overlap or not, the run has the same bytes."""

import random
import shutil

import pytest

from run_folders import FAKES, files
from spr.config import make_config
from spr.core.errors import RunError
from spr.pipeline import runner
from spr.pipeline.jobs import run_shard
from spr.runs.store import StageStore


class ShuffledEngine:
    """Runs jobs in this process in a random order, several stages at a time, and stops after a number of jobs."""

    overlapping = True
    workers = None

    def __init__(self, seed, most=10**6, ahead=3):
        self.draw, self.most, self.ahead, self.jobs, self.order, self.closed = (
            random.Random(seed),
            most,
            ahead,
            [],
            [],
            0,
        )

    def begin(self, stage, config, at_most, progress):  # noqa: ARG002
        assert at_most is None or at_most > 0

    def has_room(self, stage):
        return sum(job.stage.name == stage.name for job in self.jobs) < self.ahead

    def submit(self, job):
        self.jobs.append(job)

    def wait(self):
        if len(self.order) == self.most:
            raise RunError("stopped")
        job = self.jobs.pop(self.draw.randrange(len(self.jobs)))
        self.order.append((job.stage.name, job.index))
        return [(job, run_shard(job))]

    def in_progress(self, stage):  # noqa: ARG002
        return 0

    def end(self, stage):
        for job in [job for job in self.jobs if job.stage.name == stage.name]:
            self.jobs.remove(job)
            run_shard(job)  # a job that runs already writes its shard, whatever becomes of it

    def close(self):
        self.closed += 1


@pytest.fixture(scope="module")
def whole(make_dataset, tmp_path_factory):
    """A config, and the files of a run of it by the local engine; the last shard of objects is shortened."""
    data = make_dataset(tmp_path_factory.mktemp("flow") / "data", images=30)
    raw = data.config(**FAKES, shard_rows=4, annotations={"max_images": 18})
    runner.run(make_config(raw), data.folder / "run")
    return make_config(raw), data.folder / "run"


def run_shuffled(config, out, monkeypatch, engine):
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_engine", lambda *_: engine)
        return runner.run(config, out)


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_jobs_gives_the_same_bytes(seed, whole, tmp_path, monkeypatch):
    config, expected = whole
    engine = ShuffledEngine(seed)
    summaries = run_shuffled(config, tmp_path / "run", monkeypatch, engine)
    assert [summary.name for summary in summaries] == ["objects", "regions", "candidates", "scores", "pairs"]
    assert files(tmp_path / "run") == files(expected)
    stages = [stage for stage, _ in engine.order]
    assert stages != sorted(stages, key=["objects", "regions", "candidates", "scores", "pairs"].index)  # they overlap
    assert engine.closed


def test_a_run_that_is_stopped_anywhere_continues_on_either_engine_to_the_same_bytes(whole, tmp_path, monkeypatch):
    config, expected = whole
    for number, most in enumerate(range(1, 24, 3)):
        out = tmp_path / str(most)
        with pytest.raises(RunError, match="stopped"):
            run_shuffled(config, out, monkeypatch, ShuffledEngine(number, most))
        listed = sum(len(StageStore(folder.parent).manifest().shards) for folder in out.glob("*/manifest.json"))
        assert listed >= min(most - 3, 1)  # finished shards are listed; those of objects wait for the ones before
        if number % 2:
            runner.run(config, out)
        else:
            engine = ShuffledEngine(number + 100)
            run_shuffled(config, out, monkeypatch, engine)
            assert len(engine.order) <= 25 - listed + 4  # the last of objects twice, and three after the limit
        assert files(out) == files(expected)


def test_damaged_shards_are_computed_again_and_no_others(whole, tmp_path, monkeypatch):
    config, expected = whole
    out = shutil.copytree(expected, tmp_path / "run")
    StageStore(out / "candidates").part(1).write_bytes(b"torn")
    StageStore(out / "regions").drops(2).unlink()
    engine = ShuffledEngine(0)
    run_shuffled(config, out, monkeypatch, engine)
    assert sorted(engine.order) == [("candidates", 1), ("regions", 2)]
    assert files(out) == files(expected)


def test_a_finished_run_needs_no_engine(whole, tmp_path, monkeypatch):
    config, expected = whole
    out = shutil.copytree(expected, tmp_path / "run")
    engine = ShuffledEngine(0)
    summaries = run_shuffled(config, out, monkeypatch, engine)
    assert not engine.order
    assert all(summary.done_before for summary in summaries)
    assert files(out) == files(expected)


def test_the_manifest_is_complete_although_it_is_not_written_after_each_shard(whole, tmp_path, monkeypatch):
    config, expected = whole
    saved = []
    real = StageStore.save
    monkeypatch.setattr("spr.pipeline.stage_run._SAVING", 1e-12)

    def save(self, manifest):
        saved.append(len(manifest.shards))
        real(self, manifest)

    monkeypatch.setattr(StageStore, "save", save)
    runner.run(config, tmp_path / "run", until="regions")
    assert len(saved) == 4  # the first shard of each stage, and the end
    for stage in ("objects", "regions"):
        assert StageStore(tmp_path / "run" / stage).manifest() == StageStore(expected / stage).manifest()
