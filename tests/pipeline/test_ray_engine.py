"""The Ray engine: same bytes as the local one, whatever dies. Each test has a cluster of its own on this machine."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

import faulty
from run_folders import FAKES, table_files
from spr.config import make_config
from spr.core.errors import InputError, RunError
from spr.pipeline.runner import run
from spr.runs.store import StageStore

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")
LOCAL = {"name": "ray", "address": "local"}


@pytest.fixture(scope="module")
def whole(make_dataset, tmp_path_factory):
    """A raw config, and a run of it by the local engine."""
    data = make_dataset(tmp_path_factory.mktemp("ray") / "data", images=9)
    raw = data.config(**FAKES, shard_rows=2)
    run(make_config(raw), data.folder / "run")
    return raw, data.folder / "run"


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """The folder of faults, see `faulty`."""
    return faulty.install(tmp_path, monkeypatch)


def faulty_config(raw, **describer):
    return make_config({**raw, "engine": LOCAL, "describer": {"backend": "faulty", "num_processes": 2, **describer}})


@pytest.mark.processes
def test_a_killed_actor_and_one_with_a_broken_gpu_are_replaced_and_the_bytes_stay_the_same(faults, whole, tmp_path):
    raw, expected = whole
    (faults / "kill-1").touch()
    (faults / "raise-1").touch()
    section = {"backend": "faulty", "num_processes": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**raw, "describer": section}))
    command = ["spr", "run", tmp_path / "config.yaml", "--out", tmp_path / "run", "engine=ray", "engine.address=local"]
    with sessions() as folder:
        environment = {**os.environ, "RAY_TMPDIR": folder}
        full = [sys.executable, "-m", *command]
        done = subprocess.run(full, capture_output=True, text=True, timeout=120, env=environment)
        assert not list(Path(folder).rglob("session_*"))
    assert done.returncode == 0, done.stderr
    assert not list(faults.iterdir())
    assert table_files(tmp_path / "run") == table_files(expected)
    assert "(raylet)" not in done.stdout  # Ray's logs stay out of the terminal
    assert all(line.startswith("objects to pairs: ") for line in done.stderr.splitlines())


@pytest.mark.long
def test_a_job_that_always_fails_stops_the_run_with_its_error_and_finished_shards_stay(faults, whole, tmp_path):
    raw, expected = whole
    (faults / "raise-always").touch()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(faulty_config(raw), tmp_path / "run")
    kept = StageStore(tmp_path / "run" / "regions").manifest()
    assert kept.shards
    (faults / "raise-always").unlink()
    run(make_config({**raw, "describer": {"backend": "faulty"}}), tmp_path / "run")  # on the local engine
    assert table_files(tmp_path / "run") == table_files(expected)


@pytest.mark.long
def test_a_process_that_always_dies_stops_the_run_with_one_message(faults, whole, tmp_path):
    raw, _ = whole
    for number in range(20):
        (faults / f"kill-{number}").touch()
    with pytest.raises(RunError, match=r"The process of shard \d of `candidates` died 3 times[\s\S]*run the same"):
        run(faulty_config(raw), tmp_path / "run")


@pytest.mark.long
def test_an_error_of_the_input_is_not_tried_again(faults, whole, tmp_path):
    raw, _ = whole
    (faults / "refuse-1").touch()
    with pytest.raises(InputError, match="The model refuses this"):
        run(faulty_config(raw), tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize(("first", "then"), [("ray", "local"), ("local", "ray")])
def test_a_killed_driver_is_continued_by_another_engine_with_other_processes(first, then, faults, whole, tmp_path):
    raw, expected = whole
    engines = {"ray": LOCAL, "local": {"name": "local"}}
    section = {"backend": "faulty", "num_processes": 2}
    (faults / "sleep-1").touch()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**raw, "engine": engines[first], "describer": section}))
    command = [sys.executable, "-m", "spr", "run", path, "--out", tmp_path / "run"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(tmp_path.glob("slept-*")):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = StageStore(tmp_path / "run" / "objects").manifest()
    assert before.shards
    config = make_config({**raw, "engine": engines[then], "describer": {**section, "num_processes": 1}})
    run(config, tmp_path / "run", workers=2)
    assert table_files(tmp_path / "run") == table_files(expected)


@pytest.fixture
def two_nodes():
    """A cluster of two simulated nodes, to which this process is connected; its nodes by the pid of their raylet."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})  # nothing runs on it
    nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster, {node.all_processes["raylet"][0].process.pid: node for node in nodes}
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.long
def test_a_node_that_dies_in_the_middle_costs_only_its_shards(faults, two_nodes, whole, tmp_path):
    import threading

    raw, expected = whole
    cluster, nodes = two_nodes
    out = tmp_path / "run"
    (faults / "sleep-1").touch()  # one describer hangs, and the node on which it may be dies
    (faults / "sleep-2").touch()

    def kill():
        while len(list(tmp_path.glob("slept-*"))) < 2:
            time.sleep(0.1)
        sleeping = {int(path.name.partition("-")[2]) for path in tmp_path.glob("slept-*")}
        parent = int(Path(f"/proc/{min(sleeping)}/stat").read_text().split()[3])
        cluster.remove_node(nodes[parent], allow_graceful=False)  # kills its raylet, and its processes end
        until = time.monotonic() + 60
        while sum(node["Alive"] for node in ray.nodes()) > 2 and time.monotonic() < until:
            time.sleep(0.2)
        left.extend(pid for pid in sleeping if Path(f"/proc/{pid}").exists())
        for pid in left:
            os.kill(pid, signal.SIGKILL)

    left = []
    killer = threading.Thread(target=kill)
    killer.start()
    run(make_config({**raw, "engine": "ray", "describer": {"backend": "faulty", "num_processes": 2}}), out)
    killer.join()
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    assert len(left) < 2  # at least one was on the node that died
    assert table_files(out) == table_files(expected)


@pytest.mark.long
@pytest.mark.usefixtures("faults", "two_nodes")
def test_an_object_store_that_is_full_changes_nothing(whole, tmp_path):
    import numpy as np

    raw, expected = whole
    held = [ray.put(np.zeros(8 * 2**20, np.uint8)) for _ in range(30)]  # three times what fits
    run(make_config({**raw, "engine": "ray", "describer": {"backend": "faulty"}}), tmp_path / "run")
    assert len(held) == 30
    assert table_files(tmp_path / "run") == table_files(expected)


@pytest.mark.long
@pytest.mark.usefixtures("two_nodes")
def test_a_node_that_sees_other_files_is_refused(whole, tmp_path, monkeypatch):
    from spr.pipeline.engines import ray as engine

    raw, _ = whole
    real = engine.Marks.of
    monkeypatch.setattr(
        engine.Marks, "of", lambda *args: real(*args).__class__(*[*_fields(real(*args))[:4], "gone.png"])
    )
    with pytest.raises(RunError, match=r"Not every node sees the images[\s\S]*gone\.png[\s\S]*s3://"):
        run(make_config({**raw, "engine": "ray"}), tmp_path / "run")


def test_a_node_that_does_not_see_the_tar_file_with_the_images_is_refused(whole, tmp_path):
    from spr.pipeline.engines.ray import Marks

    raw, made = whole
    images = tmp_path / "images.tar"
    images.touch()
    raw = {**raw, "annotations": {**raw["annotations"], "images": str(images)}}
    marks = Marks.of(made, make_config(raw))
    marks.check()
    images.unlink()
    with pytest.raises(RunError, match=r"Not every node sees the images in .*images\.tar[\s\S]*no such file on"):
        marks.check()


def _fields(marks):
    return [getattr(marks, name) for name in ("run", "version", "config", "images", "image")]


@pytest.fixture
def gpus(request, monkeypatch):
    """A cluster whose node claims GPUs, to which this process is connected. Fake models take part of them."""
    monkeypatch.setattr("spr.pipeline.engines.processes.WITHOUT_GPU", frozenset())
    options = {"num_cpus": 2, "num_gpus": request.param, "object_store_memory": 80 * 2**20}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", **options)
    yield
    ray.shutdown()


@pytest.mark.long
@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_processes_without_a_gpu_hold_no_shards_and_more_gpus_than_a_node_has_are_an_error(whole, tmp_path):
    raw, expected = whole
    describer = {"backend": "fake", "num_processes": 4}
    run(make_config({**raw, "engine": "ray", "describer": describer}), tmp_path / "run")
    assert table_files(tmp_path / "run") == table_files(expected)
    with pytest.raises(RunError, match=r"has the 4 GPUs for a process of `candidates`[\s\S]*at most 2 GPUs"):
        run(make_config({**raw, "engine": "ray", "describer": {**describer, "num_gpus": 4}}), tmp_path / "too-large")
    assert ray.is_initialized()  # the connection is not ours


@pytest.mark.long
@pytest.mark.parametrize("gpus", [1], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_an_idle_actor_gives_its_gpu_to_a_stage_that_has_none(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("spr.pipeline.engines.ray._STARVED", 1.0)
    raw, expected = whole
    out = shutil.copytree(expected, tmp_path / "run")
    for stage in ("scores", "pairs"):
        shutil.rmtree(out / stage)
    for stage in ("regions", "candidates"):  # the scorer begins, and waits for these
        StageStore(out / stage).part(4).unlink()
    run(make_config({**raw, "engine": "ray"}), out)
    assert table_files(out) == table_files(expected)


def test_a_finished_run_needs_no_cluster(whole, tmp_path):
    raw, expected = whole
    out = shutil.copytree(expected, tmp_path / "run")
    summaries = run(make_config({**raw, "engine": {"name": "ray", "address": "127.0.0.1:1"}}), out)
    assert all(summary.done_before for summary in summaries)
    assert table_files(out) == table_files(expected)


@pytest.mark.long
def test_sigterm_ends_the_driver_without_output_of_ray_or_a_session(faults, whole, tmp_path):
    raw, expected = whole
    (faults / "sleep-1").touch()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**raw, "engine": LOCAL, "describer": {"backend": "faulty"}}))
    command = [sys.executable, "-m", "spr", "run", tmp_path / "config.yaml", "--out", tmp_path / "run"]
    with sessions() as folder:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "RAY_TMPDIR": folder})
        while process.poll() is None and not list(tmp_path.glob("slept-*")):
            time.sleep(0.1)
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert not list(Path(folder).rglob("session_2*"))
    assert process.returncode == 130
    *progress, interrupted = filter(None, errors.splitlines())
    assert all(line.startswith("objects to pairs: ") for line in progress)
    assert "run the same command to resume" in interrupted
    run(make_config(raw), tmp_path / "run")
    assert table_files(tmp_path / "run") == table_files(expected)


def sessions():
    """A folder for the sessions of Ray, whose sockets need a short path."""
    return tempfile.TemporaryDirectory(prefix="ray", dir="/tmp")


@pytest.mark.processes
def test_an_address_without_a_cluster_is_an_error_that_says_what_to_do(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "1")
    raw, _ = whole
    engine = {"name": "ray", "address": "127.0.0.1:1"}
    command = [sys.executable, "-m", "spr", "run", tmp_path / "config.yaml", "--out", tmp_path / "run"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**raw, "engine": engine}))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "There is no Ray cluster at 127.0.0.1:1" in done.stderr
    assert "engine.address=local" in done.stderr
    assert "Traceback" not in done.stderr
