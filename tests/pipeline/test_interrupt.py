"""The model stages, stopped at any point, resume to the same bytes; the number of workers changes nothing."""

import os
import shutil
import signal
import subprocess

import pytest
import yaml

import warm_python
from run_folders import FAKES, files, rows
from spr.config import make_config
from spr.config.backends import DESCRIBERS
from spr.models.fakes import FakeDescriber
from spr.models.registry import release
from spr.pipeline.runner import run


@pytest.fixture(scope="module")
def begun(make_dataset, tmp_path_factory):
    """A config, a run of it that has its regions, and the files of a complete run."""
    data = make_dataset(tmp_path_factory.mktemp("interrupt") / "data", images=7)
    raw = data.config(**FAKES, shard_rows=3)
    run(make_config(raw), data.folder / "begun", until="regions")
    shutil.copytree(data.folder / "begun", data.folder / "whole")
    run(make_config(raw), data.folder / "whole")
    (data.folder / "config.yaml").write_text(yaml.safe_dump(raw))
    return raw, data.folder / "begun", files(data.folder / "whole")


class Stopped(BaseException):
    """Like KeyboardInterrupt, it is caught by the outermost code only."""


def run_until_sync(raw, out, left, monkeypatch):
    """Run, stop before the file sync with this number, and return whether it was stopped."""
    real = os.fsync
    counted = iter(range(left))

    def fsync(descriptor):
        if next(counted, None) is None:
            raise Stopped
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        try:
            run(make_config(raw), out)
        except Stopped:
            return True
    return False


def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bytes(begun, tmp_path, monkeypatch):
    raw, start, whole = begun
    out = shutil.copytree(start, tmp_path / "run")
    # Each run writes config, inputs and drops (two syncs per file), so each must be allowed more syncs to get further.
    stops = 0
    while run_until_sync(raw, out, 4 + 3 * stops, monkeypatch):
        stops += 1
    assert stops > 5
    assert files(out) == whole


@pytest.mark.parametrize("left", range(6, 60, 9))
def test_a_run_stopped_once_anywhere_ends_with_the_same_bytes(left, begun, tmp_path, monkeypatch):
    raw, start, whole = begun
    out = shutil.copytree(start, tmp_path / "run")
    assert run_until_sync(raw, out, left, monkeypatch)
    assert files(out) != whole
    run(make_config(raw), out)
    assert files(out) == whole


# In a process of its own that is killed while the describer, the scorer or the detector is at work.
KILL = """
import os, pathlib, signal, sys, yaml
from spr.config import make_config
from spr.models import fakes
from spr.pipeline.runner import run
kind, method, calls = getattr(fakes, sys.argv[3]), sys.argv[4], int(sys.argv[5])
real = getattr(kind, method)
def work(self, items):
    global calls
    calls -= 1
    if calls < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, items)
setattr(kind, method, work)
run(make_config(yaml.safe_load(open(sys.argv[1]))), pathlib.Path(sys.argv[2]))
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "method", "calls"),
    [("FakeDescriber", "describe", 1), ("FakeScorer", "embed_views", 0), ("FakeDetector", "detect", 2)],
)
def test_a_run_killed_while_a_model_works_resumes_to_the_same_bytes(kind, method, calls, begun, tmp_path):
    raw, start, whole = begun
    out = shutil.copytree(start, tmp_path / "run")
    command = [*warm_python.start(), "-c", KILL, start.parent / "config.yaml", out, kind, method, str(calls)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    run(make_config(raw), out, workers=2)
    assert files(out) == whole


def test_finished_answers_of_an_unfinished_shard_are_not_requested_again(begun, tmp_path):
    raw, start, _ = begun
    raw = {**raw, "describer": {"backend": "counted"}}
    whole, out = shutil.copytree(start, tmp_path / "whole"), shutil.copytree(start, tmp_path / "run")
    asked = []

    class Counted(FakeDescriber):
        most = 10**6

        def describe_each(self, requests, answered):
            for number, request in enumerate(requests):
                if len(asked) == Counted.most:
                    raise Stopped
                asked.append(request.seed)
                answered(number, self.describe([request])[0])

    DESCRIBERS.register("counted", Counted)
    try:
        run(make_config(raw), whole)
        asked.clear()
        # Three queries per shard, six requests per query: the second shard has the answers of one query.
        Counted.most = 24
        with pytest.raises(Stopped):
            run(make_config(raw), out)
        assert len(asked) == 24
        assert [path.name for path in out.rglob("unfinished*")] == ["unfinished-00001.jsonl"]
        Counted.most = 10**6
        run(make_config(raw), out)
    finally:
        DESCRIBERS.unregister("counted")
        release()
    assert len(asked) == len(set(asked)) == 6 * len(rows(out, "regions"))
    assert files(out) == files(whole)


def test_one_worker_and_two_write_the_same_bytes(begun, tmp_path):
    raw, start, whole = begun
    out = shutil.copytree(start, tmp_path / "run")
    run(make_config(raw), out, workers=2)
    assert files(out) == whole


@pytest.mark.parametrize(
    "change",
    [{"describer": {"backend": "fake", "batch_size": 3}}, {"scorer": {"backend": "fake", "batch_size": 5}}],
)
def test_fields_that_affect_no_row_may_change_at_any_time(change, begun, tmp_path):
    raw, start, whole = begun
    out = shutil.copytree(start, tmp_path / "run")
    run(make_config(raw), out, until="scores")
    assert all(summary.done_before for summary in run(make_config({**raw, **change}), out)[:-1])
    changed = {name: data for name, data in files(out).items() if name != "config.yaml"}
    assert changed == {name: data for name, data in whole.items() if name != "config.yaml"}
