"""The local engine with several processes for models: same bytes, and what becomes of processes that die."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

import faulty
from run_folders import FAKES, table_files
from spr.config import make_config
from spr.core.errors import InputError, RunError
from spr.pipeline.engines import processes
from spr.pipeline.engines.local import LocalEngine
from spr.pipeline.engines.processes import Needs, environments, needs_of
from spr.pipeline.runner import run
from spr.pipeline.stage import STAGES
from spr.runs.store import StageStore

SECTIONS = {"annotations": {"path": "a", "images": "b"}}


@pytest.fixture(scope="module")
def whole(make_dataset, tmp_path_factory):
    data = make_dataset(tmp_path_factory.mktemp("local") / "data", images=9)
    raw = data.config(**FAKES, shard_rows=2)
    run(make_config(raw), data.folder / "run")
    return raw, data.folder / "run"


@pytest.fixture
def faulty_run(whole, tmp_path, monkeypatch):
    """The config with a describer that fails on demand in one of two processes, and its folder of faults."""
    raw, _ = whole
    faults = faulty.install(tmp_path, monkeypatch)
    return make_config({**raw, "describer": {"backend": "faulty", "num_processes": 2}}), faults


@pytest.mark.processes
@pytest.mark.parametrize("count", [2, 4])
def test_models_in_several_processes_give_the_same_bytes(count, whole, tmp_path):
    raw, expected = whole
    several = {name: {"backend": "fake", "num_processes": count} for name in FAKES}
    run(make_config({**raw, **several}), tmp_path / "run", workers=count)
    assert table_files(tmp_path / "run") == table_files(expected)


@pytest.mark.processes
def test_a_killed_process_stops_the_run_with_one_message_and_it_resumes(faulty_run, whole, tmp_path):
    config, faults = faulty_run
    (faults / "kill-1").touch()
    with pytest.raises(RunError, match=r"A worker process died[\s\S]*a smaller num_processes"):
        run(config, tmp_path / "run")
    run(config, tmp_path / "run")
    assert table_files(tmp_path / "run") == table_files(whole[1])


@pytest.mark.processes
def test_an_error_in_a_process_is_the_error_of_the_run_and_finished_shards_stay(faulty_run, whole, tmp_path):
    config, faults = faulty_run
    (faults / "refuse-1").touch()
    with pytest.raises(InputError, match="The model refuses this"):
        run(config, tmp_path / "run")
    assert StageStore(tmp_path / "run" / "regions").finished()
    run(config, tmp_path / "run")
    assert table_files(tmp_path / "run") == table_files(whole[1])


@pytest.mark.processes
def test_ctrl_c_stops_processes_that_work_on_a_long_shard_at_once(faulty_run, whole, tmp_path):
    config, faults = faulty_run
    (faults / "sleep-always").touch()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "spr", "run", tmp_path / "config.yaml", "--out", tmp_path / "run"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(list(tmp_path.glob("slept-*"))) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "run the same command to resume" in errors
    for path in tmp_path.glob("slept-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.partition("-")[2]), 0)
    (faults / "sleep-always").unlink()
    run(config, tmp_path / "run")
    assert table_files(tmp_path / "run") == table_files(whole[1])


@pytest.mark.processes
@pytest.mark.parametrize("guard", [False, True])
def test_a_script_without_a_main_guard_is_not_repeated_by_worker_processes(guard, whole, tmp_path):
    raw, expected = whole
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    lines = ["import pathlib, spr", "with open('times', 'a') as file:", "    file.write('once ')"]
    lines += ['if __name__ == "__main__":' if guard else "if True:", "    config = spr.load_config('config.yaml')"]
    lines += ["    from spr.pipeline.runner import run", "    run(config, pathlib.Path('run'), workers=2)"]
    (tmp_path / "script.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert table_files(tmp_path / "run") == table_files(expected)
    assert (len((tmp_path / "times").read_text().split()) == 1) is not guard


IMPORTED = """
import os, sys

from spr.pipeline.engines.local import Pool


class Quiet:
    def follow(self, _):
        pass


def imported(module):
    here = module in sys.modules
    import torch

    return here, torch.get_num_threads(), os.getppid()


if __name__ == "__main__":
    for threads in ("1", "2"):
        pool = Pool([{"OMP_NUM_THREADS": threads}], Quiet(), modules=["spr.models.detectors.owl"])
        pool.submit("spr.models.detectors.owl", imported)
        [(_, (here, used, parent))] = pool.wait()
        pool.stop()
        print(here, used == int(threads), parent)
"""


def test_worker_processes_fork_from_a_server_that_has_imported_the_models_modules(tmp_path):
    (tmp_path / "script.py").write_text(IMPORTED)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    first, second = (line.split() for line in done.stdout.splitlines())
    assert first[:2] == second[:2] == ["True", "True"], done.stdout + done.stderr
    assert first[2] == second[2]  # one server for both pools


@pytest.mark.parametrize(("rows", "jobs"), [(20, 1), (4, 3)])
def test_the_engine_knows_how_many_jobs_a_first_stage_has_at_most(rows, jobs, whole, tmp_path):
    begun = {}

    class Watched(LocalEngine):
        def begin(self, stage, config, at_most, progress):
            begun[stage.name] = at_most
            super().begin(stage, config, at_most, progress)

    raw, _ = whole
    run(make_config({**raw, "shard_rows": rows}), tmp_path / "run", until="regions", engine=Watched())
    assert begun == {"objects": jobs, "regions": jobs}


STOPPED = """
import os
from multiprocessing import forkserver

from spr.config import make_config
from spr.pipeline.engines.local import LocalEngine, Pool, stop_server
from spr.pipeline.stage import STAGES


class Quiet:
    def follow(self, count):
        pass


def parent(job):
    return os.getppid()


def server():
    pool = Pool([{}], Quiet())
    pool.submit("a job", parent)
    [(_, pid)] = pool.wait()
    stop_server()  # its child is still running
    os.kill(pid, 0)
    pool.stop()
    return pid


def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sections = {"annotations": {"path": "a.json", "images": "."}, "scorer": {"device": "cpu", "num_processes": 2}}
    config = make_config({**sections, "detector": {"backend": "none"}})
    first, engine = server(), LocalEngine()
    engine.begin(STAGES["regions"], config, 1, Quiet())
    print(runs(first))
    engine.begin(STAGES["scores"], config, 1, Quiet())
    print(runs(first))
    second = server()
    print(second != first, runs(second))
    stop_server()
    stop_server()
    print(runs(second))
    del forkserver._forkserver
    stop_server()
"""


def test_the_server_ends_before_the_only_shard_of_a_stage_with_models_and_starts_again(tmp_path):
    (tmp_path / "script.py").write_text(STOPPED)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["True", "False", "True True", "False"], done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


STARTING = """
import time

from spr.core.processes import sigint_blocked
from spr.pipeline.engines.local import _server, forkserver

if __name__ == "__main__":
    _server(["slow"])
    with sigint_blocked():
        forkserver.ensure_running()
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_ctrl_c_does_not_reach_a_server_that_is_importing(tmp_path):
    (tmp_path / "script.py").write_text(STARTING)
    begun, imported = (f"pathlib.Path('{name}').touch()" for name in ("begun", "imported"))
    (tmp_path / "slow.py").write_text(f"import pathlib, time\n{begun}\ntime.sleep(1.5)\n{imported}\n")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, start_new_session=True, **pipes) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (output, errors) == ("interrupted\n", "")
    assert (tmp_path / "imported").exists()


INTERRUPTED = """
import os
import signal
import threading
from multiprocessing import forkserver

from spr.pipeline.engines.local import Pool, _server, stop_server
from script import Quiet, parent

if __name__ == "__main__":
    _server(["slow"])
    forkserver.ensure_running()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        stop_server()
    except KeyboardInterrupt:
        print("interrupted")
    pool = Pool([{}], Quiet())
    pool.submit("a job", parent)
    print(len(pool.wait()))
    pool.stop()
"""


def test_after_ctrl_c_while_the_server_ends_another_one_can_start(tmp_path):
    (tmp_path / "script.py").write_text(STOPPED)
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(1.5)\n")
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    command = [sys.executable, "interrupted.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n1\n"), done.stderr


@pytest.mark.parametrize(
    ("overrides", "stage", "expected"),
    [
        ({"describer": {"backend": "fake"}}, "candidates", Needs(None, 0, False)),
        ({"describer": {"model": "a"}}, "candidates", Needs(None, 1, True)),
        ({"describer": {"model": "a", "num_processes": 3, "device": "cpu"}}, "candidates", Needs(3, 0, False)),
        ({"describer": {"model": "a", "device": "cuda:1"}}, "candidates", Needs(None, 1, False)),
        ({"describer": {"model": "a", "device_map": "auto"}}, "candidates", Needs(None, 1, False)),
        ({"describer": {"model": "a", "device_map": "auto", "num_gpus": 2}}, "candidates", Needs(None, 2, True)),
        ({"describer": {"model": "a"}}, "scores", Needs(None, 1, True)),
        ({"scorer": {"num_processes": 4, "num_gpus": 0.25}, "detector": {"num_gpus": 0.25}}, "scores",
         Needs(4, 0.5, True)),
        ({"scorer": {"num_processes": 4}, "detector": {"num_processes": 2}}, "scores", Needs(2, 1, True)),
        ({"detector": {"backend": "none"}, "annotations": {**SECTIONS["annotations"], "crowds": "drop"},
          "scoring": {"ground_truth": "annotations"}}, "scores", Needs(None, 0.5, True)),
        ({}, "regions", None),
    ],
)  # fmt: skip
def test_what_a_stage_needs(overrides, stage, expected):
    assert needs_of(STAGES[stage], make_config({**SECTIONS, **overrides})) == expected


@pytest.mark.parametrize(
    ("needs", "gpus", "expected"),
    [
        (Needs(None, 1, True), 8, 8),
        (Needs(None, 1, True), 0, 1),
        (Needs(None, 0.25, True), 2, 8),
        (Needs(None, 0.3, True), 2, 6),
        (Needs(None, 2, True), 5, 2),
        (Needs(None, 1, False), 8, 1),
        (Needs(None, 0, False), 8, 1),
        (Needs(3, 1, True), 8, 3),
    ],
)
def test_the_number_of_processes_on_gpus(needs, gpus, expected):
    assert needs.processes_on(gpus) == expected


def test_each_process_has_its_gpus_and_its_share_of_the_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    four = environments(Needs(None, 0.5, True), 4, ["2", "5"])
    assert [own["CUDA_VISIBLE_DEVICES"] for own in four] == ["2", "2", "5", "5"]
    assert {own["OMP_NUM_THREADS"] for own in four} == {"2"}
    pairs = environments(Needs(None, 2, True), 2, ["0", "1", "2", "3"])
    assert [own["CUDA_VISIBLE_DEVICES"] for own in pairs] == ["0,1", "2,3"]
    assert "CUDA_VISIBLE_DEVICES" not in environments(Needs(2, 1, False), 2, ["0", "1"])[1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environments(Needs(2, 0, False), 2, []) == [{}, {}]
