"""The job files in examples/cluster: each is run with fakes of what only a cluster has, and its commands are checked.

The fakes of `srun`, `ray`, `accelerate` and so on come first on PATH and record their arguments, which the real parsers
of Ray, Accelerate and PyTorch then read. The commands of `spr` run as they are on a few images with fake models, or are
parsed by the real command line, and their configs are loaded.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

import warm_python
from run_folders import FAKES, files, rows
from spr.cli import app
from spr.config import load_config, make_config
from spr.pipeline.runner import run as run_pipeline
from spr.runs.trainings import run_config
from spr.training.pairs import trl_pairs

ROOT = Path(__file__).parents[1]
JOBS = ROOT / "examples" / "cluster"
SCRIPTS = sorted([*JOBS.glob("*.sh"), *JOBS.glob("*.sbatch")])
PAGES = {
    "machine-8-gpus.sh": "run-on-one-machine.md",
    "slurm-array.sbatch": "run-on-slurm.md",
    "slurm-array-trainings.sbatch": "run-on-slurm.md",
    "slurm-ray.sbatch": "run-on-slurm.md",
    "kuberay.yaml": "run-on-kubernetes.md",
    "skypilot.yaml": "run-on-skypilot.md",
    "train-multi-node.sbatch": "train-on-several-nodes.md",
}
# Options of sbatch that the files use, from its manual.
SBATCH = {
    *("array", "cpus-per-task", "exclusive", "gpus-per-node", "gpus-per-task", "job-name", "mem", "nodes", "ntasks"),
    *("ntasks-per-node", "open-mode", "output", "requeue", "signal", "time"),
}

RECORD = """#!/bin/bash
printf '%s\\0' "$@" > "$RECORDS/{name}.$$"
"""
# Runs its command on each of the job's nodes at the same time, and ends as the last task with a failure.
SRUN = """
while [[ $1 == --* ]]; do shift; done
tasks=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node "$@" &
    tasks+=($!)
    echo $! >> "$RECORDS/tasks"
done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit $code
"""

# In place of `ray symmetric-run`, which stops every Ray of this machine at its end: a cluster of two nodes on this
# machine, with the address and the token of the job.
SYMMETRIC = """
import os, subprocess, sys
from ray.cluster_utils import Cluster
words = sys.argv[1:]
host, _, port = words[words.index("--address") + 1].partition(":")
if os.environ["SLURM_NODEID"] == "0":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "gcs_server_port": int(port)})
    assert cluster.address == f"{host}:{port}", cluster.address
    cluster.add_node(num_cpus=1)
    code = subprocess.run(words[words.index("--") + 1 :]).returncode
    cluster.shutdown()
    sys.exit(code)
"""


class Cluster:
    """A folder with a dataset, a config and fakes, in which job files are run."""

    def __init__(self, folder, data):
        self.folder, self.bin, self.records = folder, folder / "bin", folder / "records"
        self.bin.mkdir()
        self.records.mkdir()
        self.config = folder / "mine.yaml"
        self.config.write_text(yaml.safe_dump(data.config(**FAKES, shard_rows=4)))

    def fake(self, *names, more=""):
        for name in names:
            (self.bin / name).write_text(RECORD.format(name=name) + more)
            (self.bin / name).chmod(0o755)

    def calls(self, name):
        """The arguments of each call of a fake, in order of the processes' numbers."""
        found = sorted(self.records.glob(f"{name}.*"), key=lambda path: int(path.suffix[1:]))
        return [path.read_bytes().decode().split("\0")[:-1] for path in found]

    def run(self, *command, expect=0, **variables):
        path = os.pathsep.join([str(self.bin), warm_python.path()])
        environment = {**os.environ, "PATH": path, "RECORDS": str(self.records), "HOME": str(self.folder)}
        environment |= {"PYTHON_EXEC": warm_python.executable(), "OMP_NUM_THREADS": "1", **variables}
        done = subprocess.run(
            ["bash", *map(str, command)], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=240
        )
        assert (done.returncode == 0) == (expect == 0), done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def cluster(make_dataset, tmp_path):
    # Of these images, `annotations.holdout` holds two out.
    return Cluster(tmp_path, make_dataset(tmp_path / "data", images=8, ids=range(44, 52)))


def slurm(job, **variables):
    """What Slurm sets in a job with the options of a job file."""
    options = directives(job)
    given = {"SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": options["nodes"]}
    given |= {"SLURM_CPUS_PER_TASK": "2"} if "cpus-per-task" in options else {}
    return {**given, **variables}


def directives(job):
    """The #SBATCH options of a job file."""
    lines = re.findall(r"^#SBATCH --(\S+)$", (JOBS / job).read_text(), re.MULTILINE)
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def parsed(words):
    """The parameters of a line that starts with `spr`, as the command line reads them."""
    assert words[0] == "spr", words
    command = typer.main.get_command(app).get_command(None, words[1])
    return command.make_context(words[1], list(words[2:])).params


def loaded(words, config=None):
    """The config that a line `spr run` makes; ``config`` takes the place of a file that is elsewhere."""
    parameters = parsed(words)
    return load_config(config or parameters["config"], parameters["overrides"] or ())


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_valid_syntax_and_stop_at_errors(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert lines[first] == "set -euo pipefail"
    # sbatch reads no options after the first command.
    assert all(number < first for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    if path.suffix == ".sbatch":
        assert set(directives(path.name)) <= SBATCH
        assert {"job-name", "nodes", "time", "requeue"} <= set(directives(path.name))


def test_every_job_file_is_shown_on_a_page_that_says_what_users_need():
    assert {path.name for path in JOBS.iterdir()} == set(PAGES)
    navigation = (ROOT / "mkdocs.yml").read_text()
    for job, name in PAGES.items():
        page = (ROOT / "docs" / "how-to" / name).read_text()
        assert f"<!-- example: cluster/{job} -->" in page
        assert f"how-to/{name}" in navigation
        for topic in ("What to change", "How to see that it works", "When a", "How to resume"):
            assert re.search(rf"^(## |\*\*){topic}", page, re.MULTILINE), (name, topic)


@pytest.mark.processes
def test_one_machine_makes_the_pairs_and_then_trains_on_all_gpus(cluster):
    from accelerate.commands.launch import launch_command_parser

    cluster.fake("accelerate")
    output = cluster.run(JOBS / "machine-8-gpus.sh", WORKERS="2", RUN="runs/mine")
    assert "pairs: 8 pairs" in output
    assert (cluster.folder / "runs" / "mine" / "report" / "index.html").is_file()
    (launched,) = cluster.calls("accelerate")
    assert launched[0] == "launch"
    options = launch_command_parser().parse_args(launched[1:])
    assert (options.num_processes, options.num_machines, options.multi_gpu, options.module) == (8, 1, True, True)
    train = parsed([options.training_script, *options.training_script_args])
    config = run_config(Path(cluster.folder / train["config"]), train["overrides"] or ())
    assert config.describer.num_processes == "auto"
    # The same command again finds the pairs.
    assert "pairs: 8 pairs (done before)" in cluster.run(JOBS / "machine-8-gpus.sh", WORKERS="3", RUN="runs/mine")


def split_as_on_the_page(cluster, parts):
    page = (ROOT / "docs" / "how-to" / "run-on-slurm.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    code = code.replace("parts = 8", f"parts = {parts}").replace("instances.json", "data/instances.json")
    subprocess.run([sys.executable, "-c", code], cwd=cluster.folder, check=True)


def test_an_array_makes_the_queries_of_one_run_and_pairs_that_training_reads(cluster):
    split_as_on_the_page(cluster, 2)
    variables = {"RUNS": "runs", "EXPORTS": "exports"}
    for task in ("0", "1"):
        cluster.run(JOBS / "slurm-array.sbatch", **slurm("slurm-array.sbatch", SLURM_ARRAY_TASK_ID=task), **variables)
    one = cluster.folder / "one"
    run_pipeline(load_config(cluster.config, ["annotations.max_images=null"]), one)
    parts = [cluster.folder / "runs" / f"part-{number}" for number in (0, 1)]
    assert [len(rows(part, "objects")) for part in parts] == [4, 4]
    for stage in ("objects", "regions"):
        both = [row for part in parts for row in rows(part, stage)]
        key = "image_id" if stage == "objects" else "query_id"
        assert sorted(both, key=lambda row: row[key]) == sorted(rows(one, stage), key=lambda row: row[key])
    pairs = list(trl_pairs(cluster.folder / "exports"))
    assert len(pairs) == sum(len(rows(part, "pairs")) for part in parts) == len(rows(one, "pairs"))
    assert (
        sum(pair.split != "train" for pair in pairs) == sum(row["split"] != "train" for row in rows(one, "pairs")) == 2
    )


def test_the_array_of_trainings_has_one_valid_setting_per_task(cluster):
    job = "slurm-array-trainings.sbatch"
    run = cluster.folder / "run"
    run_pipeline(load_config(cluster.config, ["describer.model=embedded/describer"]), run)
    cluster.fake("spr")
    first, last = map(int, directives(job)["array"].split("-"))
    assert first == 0
    for task in range(last + 1):
        cluster.run(JOBS / job, **slurm(job, SLURM_ARRAY_TASK_ID=str(task)), RUN=str(run))
    output = cluster.run(JOBS / job, expect=1, **slurm(job, SLURM_ARRAY_TASK_ID=str(last + 1)), RUN=str(run))
    assert "unbound variable" in output
    trainings = [parsed(["spr", *call]) for call in cluster.calls("spr")]
    configs = {each["name"]: run_config(Path(each["config"]), each["overrides"], each["name"]) for each in trainings}
    assert sorted((name, config.training.beta) for name, config in configs.items()) == [
        ("beta=0.1", 0.1),
        ("beta=0.3", 0.3),
        ("beta=0.5", 0.5),
        ("beta=1.0", 1.0),
    ]


def test_slurm_starts_the_same_ray_command_on_every_node(cluster):
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    job = "slurm-ray.sbatch"
    cluster.fake("srun", more=SRUN)
    cluster.fake("hostname", more="echo '10.0.0.1 fd00::1'\n")
    cluster.fake("ray", more='echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN $RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT"\n')
    output = cluster.run(JOBS / job, **slurm(job), RUN="runs/mine")
    calls = cluster.calls("ray")
    assert len(calls) == int(directives(job)["nodes"])
    assert all(call == calls[0] for call in calls)
    (told,) = set(output.splitlines())  # all nodes have the same token
    assert re.fullmatch(r"token [0-9a-f]{64} 600", told)

    assert calls[0][0] == "symmetric-run"
    separator = calls[0].index("--")
    options, entrypoint = calls[0][1:separator], calls[0][separator + 1 :]
    context = symmetric_run.make_context("symmetric-run", list(options))
    assert (context.params["address"], context.params["min_nodes"]) == ("10.0.0.1:6379", 4)
    ray_start = start.make_context("start", curate_and_validate_ray_start_args(options)).params
    assert (ray_start["num_cpus"], ray_start["disable_usage_stats"]) == (2, True)
    config = loaded(entrypoint, cluster.config)
    assert (config.engine.name, config.engine.address) == ("ray", "10.0.0.1:6379")

    # The same command on one machine.
    command = [word for word in entrypoint if not word.startswith("engine")]
    assert "pairs: 8 pairs" in cluster.run("-c", shlex.join(command))


@pytest.mark.long
def test_the_ray_job_of_slurm_makes_the_bytes_of_one_machine(cluster):
    job = "slurm-ray.sbatch"
    cluster.fake("srun", more=SRUN)
    (cluster.bin / "ray").write_text(f"#!{sys.executable}{SYMMETRIC}")
    (cluster.bin / "ray").chmod(0o755)
    output = cluster.run(JOBS / job, **slurm(job), RUN="with-ray", PORT=free_port())
    assert "pairs: 8 pairs" in output
    run_pipeline(load_config(cluster.config), cluster.folder / "here")
    parts = [name for name in files(cluster.folder / "here") if name.endswith((".parquet", "manifest.json"))]
    assert len(parts) >= 2 * 5
    with_ray, here = files(cluster.folder / "with-ray"), files(cluster.folder / "here")
    assert [name for name in parts if with_ray.get(name) != here[name]] == []
    assert "done before" in cluster.run(JOBS / job, **slurm(job), RUN="with-ray", PORT=free_port())


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def test_kuberay_gets_a_complete_rayjob(cluster):
    documents = {each["kind"]: each for each in yaml.safe_load_all((JOBS / "kuberay.yaml").read_text())}
    account, config_map, job = documents["ServiceAccount"], documents["ConfigMap"], documents["RayJob"]
    # Required by the schema of ray.io/v1 (ray-operator/config/crd/bases/ray.io_rayjobs.yaml of KubeRay 1.7), or by
    # its webhook; `authOptions` needs Ray 2.52 and KubeRay 1.5.1.
    assert job["apiVersion"] == "ray.io/v1"
    optional = {"backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}
    assert set(job["spec"]) == {"entrypoint", "rayClusterSpec", *optional}
    cluster_spec = job["spec"]["rayClusterSpec"]
    assert job["spec"]["shutdownAfterJobFinishes"] is True  # without it, ttlSecondsAfterFinished is an error
    head, (workers,) = cluster_spec["headGroupSpec"], cluster_spec["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert re.fullmatch(r"[a-z0-9-]+", workers["groupName"])
    assert cluster_spec["rayVersion"] == pinned("ray")
    pods = [group["template"]["spec"] for group in (head, workers)]
    for group, pod in zip((head, workers), pods, strict=True):
        # Ray's command line takes texts.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    assert "nvidia.com/gpu" in pods[1]["containers"][0]["resources"]["limits"]

    # The entrypoint runs on the head pod, with the config of the ConfigMap.
    words = shlex.split(job["spec"]["entrypoint"])
    (mount,) = pods[0]["containers"][0]["volumeMounts"]
    assert pods[0]["volumes"][0]["configMap"]["name"] == config_map["metadata"]["name"]
    ((name, text),) = config_map["data"].items()
    assert parsed(words)["config"] == f"{mount['mountPath']}/{name}"
    assert words[words.index("--out") + 1].startswith("s3://")
    file = cluster.folder / name
    file.write_text(text)
    config = loaded(words, file)
    assert (config.engine.name, config.engine.address) == ("ray", "auto")
    assert {text.partition("://")[0] for text in yaml.safe_load(text)["annotations"].values()} == {"s3"}


def pinned(package):
    return re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_skypilot_starts_the_run_on_the_first_machine_only(cluster, rank):
    task = yaml.safe_load((JOBS / "skypilot.yaml").read_text())
    # From SkyPilot's schema of tasks (sky/utils/schemas.py).
    assert set(task) == {"name", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run"}
    assert set(task["resources"]) == {"infra", "accelerators", "cpus", "disk_size", "use_spot", "job_recovery"}
    assert task["resources"]["job_recovery"] == {"max_restarts_on_errors": 3}
    assert all(isinstance(value, str) for value in task["envs"].values())
    for name in ("spr/bin/activate", "sky_templates/ray/start_cluster"):
        path = cluster.folder / name
        path.parent.mkdir(parents=True)
        path.write_text(RECORD.format(name=path.name))
        path.chmod(0o755)
    cluster.fake("uv", "spr")
    cluster.run("-c", task["setup"])
    installed = [word for call in cluster.calls("uv") for word in call if "[" in word]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.search(r"^spatial-preference-rewarding\[(.*)\]$", installed[0])[1].split(",")) <= set(extras)
    assert installed[1] == f"ray[default]=={pinned('ray')}"

    variables = {**task["envs"], "RAY_AUTH_TOKEN": "x", "SKYPILOT_NODE_RANK": rank}
    cluster.run("-c", task["run"], **variables, SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2")
    assert len(cluster.calls("start_cluster")) == 1
    assert len(cluster.calls("spr")) == (rank == "0")
    for call in cluster.calls("spr"):
        words = ["spr", *call]
        assert parsed(words)["config"] == str(cluster.folder / "mine.yaml")  # where file_mounts puts it
        assert task["file_mounts"] == {"~/mine.yaml": "./mine.yaml"}
        assert words[words.index("--out") + 1] == task["envs"]["RUN"]
        assert f"annotations.path={task['envs']['ANNOTATIONS']}" in words
        assert f"annotations.images={task['envs']['IMAGES']}" in words
        config = loaded(words)
        assert (config.engine.name, config.engine.address) == ("ray", "10.0.0.1:6379")


def test_training_on_several_nodes_starts_one_torchrun_per_node(cluster):
    from torch.distributed.run import get_args_parser

    job = "train-multi-node.sbatch"
    cluster.fake("srun", more=SRUN)
    cluster.fake("hostname", more="echo '10.0.0.1 fd00::1'\n")
    cluster.fake("torchrun")
    run = cluster.folder / "run"
    run_pipeline(load_config(cluster.config, ["describer.model=embedded/describer"]), run)
    cluster.run(JOBS / job, **slurm(job), RUN=str(run))
    calls = cluster.calls("torchrun")
    assert len(calls) == int(directives(job)["nodes"])
    assert all(call == calls[0] for call in calls)
    options = get_args_parser().parse_args(calls[0])
    assert (options.nnodes, options.nproc_per_node, options.module) == ("2", "8", True)
    assert (options.rdzv_backend, options.rdzv_id, options.rdzv_endpoint) == ("c10d", "17", "10.0.0.1:29500")
    train = parsed([options.training_script, *options.training_script_args])
    assert run_config(Path(train["config"]), train["overrides"] or ()).training.num_train_epochs == 1


def test_the_launch_commands_of_the_page_are_accepted():
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    page = (ROOT / "docs" / "how-to" / "train-on-several-nodes.md").read_text().replace("\\\n", " ")
    lines = [shlex.split(line) for line in page.splitlines() if line.startswith(("torchrun ", "accelerate launch "))]
    assert [words[0] for words in lines] == ["torchrun", "accelerate"]
    torchrun = get_args_parser().parse_args(lines[0][1:])
    accelerate = launch_command_parser().parse_args(lines[1][2:])
    # Accelerate's number is that of all nodes, torchrun's that of one.
    assert accelerate.num_processes == int(torchrun.nnodes) * int(torchrun.nproc_per_node) == 16
    assert (accelerate.num_machines, accelerate.machine_rank) == (2, 0)
    for options in (torchrun, accelerate):
        assert parsed([options.training_script, *options.training_script_args])["config"] == "runs/mine"


class Nodes:
    """Two groups of training processes, as on two nodes, that meet on one machine."""

    job = "train-multi-node.sbatch"

    def __init__(self, cluster, model, **training):
        self.cluster, self.run = cluster, cluster.folder / "run"
        training |= {"device": "cpu", "dtype": "float32", "per_device_train_batch_size": 2, "lora": {"r": 4}}
        fields = yaml.safe_load(cluster.config.read_text())
        run_pipeline(
            make_config({**fields, "describer": {"backend": "fake", "model": model}, "training": training}), self.run
        )
        cluster.fake("srun", more=SRUN)
        here = {"RUN": str(self.run), "PROCESSES_PER_NODE": "1", "HEAD_IP": "127.0.0.1", "PORT": free_port()}
        self.variables = {**slurm(self.job), **here}

    def train(self, **options):
        return self.cluster.run(JOBS / self.job, **self.variables, **options)

    def log(self):
        path = self.run / "training" / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [
            line for line in map(json.loads, (line for line in lines if line.endswith("\n"))) if line["event"] == "step"
        ]


@pytest.mark.processes
def test_two_nodes_share_the_steps_of_one_training(cluster, mllm_folder):
    nodes = Nodes(cluster, str(mllm_folder("llava_onevision")))
    assert nodes.train().count("training: 2 steps on 6 pairs") == 1  # the first process alone prints
    finished = json.loads((nodes.run / "training" / "finished.json").read_text())
    assert finished["fingerprint"]["batches_per_step"] == 2
    assert (nodes.run / "adapter" / "adapter_model.safetensors").is_file()
    assert "training: 2 steps on 6 pairs (done before)" in nodes.train()


@pytest.mark.long
def test_a_training_on_two_nodes_that_slurm_stops_writes_a_checkpoint_and_resumes(cluster, mllm_folder):
    nodes = Nodes(cluster, str(mllm_folder("llava_onevision")), num_train_epochs=40)
    cluster.config.unlink()  # the run's own config is enough

    def stop():
        deadline = time.monotonic() + 120
        while len(nodes.log()) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        for task in (cluster.records / "tasks").read_text().split():
            os.kill(int(task), signal.SIGTERM)

    stopping = threading.Thread(target=stop)
    stopping.start()
    # A client of the server of Python processes would not pass signals on.
    output = nodes.train(expect=1, PYTHON_EXEC=sys.executable)
    stopping.join()
    assert "Interrupted" in output
    taken = len(nodes.log())
    assert 3 <= taken < 80
    assert [path.name for path in (nodes.run / "training" / "checkpoints").iterdir()] == [f"step-{taken:06d}"]
    output = nodes.train(PYTHON_EXEC=sys.executable)
    assert f"after step {taken:,} of 80" in output
    assert [line["step"] for line in nodes.log()] == list(range(1, 81))
