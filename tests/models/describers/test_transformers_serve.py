"""A real server, `transformers serve`, started on this machine with tiny models, asked through the config.

Without torchvision it serves families that have no video processor (LLaVA-1.5) as it is. Of LLaVA-OneVision it can't
load the processor ("requires `torchvision` to be installed"); there a launcher hands it the image-only processor of
`spr.models.image_processors`, and all the rest is the real serving code.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from spr.config import make_config
from spr.models.describers.hf import HfDescriber
from spr.models.describers.json_client import ServerError
from spr.models.describers.openai import OpenAiDescriber
from spr.pipeline.runner import run
from spr.runs.store import StageStore

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="`transformers serve` needs openai"),
]

SERVE = "from transformers.cli.transformers import main; main()"
WITHOUT_VIDEO = """
from transformers import AutoConfig, AutoProcessor
from spr.models.image_processors import load_processor
def load(source, **_):
    return load_processor(source, AutoConfig.from_pretrained(source).model_type)
AutoProcessor.from_pretrained = load
"""


@contextmanager
def serving(model, code, log):
    """The base URL of `transformers serve MODEL` in a separate process, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", code, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=file, stderr=file, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not _is_there(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_there(url):
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:  # noqa: S310 (it is http)
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def sampling(folder, to, **settings):
    """A copy of a model folder whose generation config contains only these settings."""
    copy = shutil.copytree(folder, to / folder.name)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, **settings}))
    return copy


@pytest.fixture(scope="module")
def folder(mllm_folder, tmp_path_factory):
    return sampling(mllm_folder("llava_onevision"), tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def served(folder):
    with serving(folder, WITHOUT_VIDEO + SERVE, folder.parent / "log") as url:
        yield url


GREEDY = {"dialect": "llava_onevision", "temperature": 0, "max_new_tokens": 16}


def test_the_served_model_gives_the_answers_of_the_local_one(served, folder, ask, picture):
    requests = [ask(picture(70 + 30 * k, 80, 60 * k), f"What is {k}?", seed=k) for k in range(4)]
    expected = HfDescriber(folder, device="cpu", **GREEDY).describe(requests)
    remote = OpenAiDescriber(str(folder), base_url=served, concurrency=4, **GREEDY)
    assert remote.describe(requests) == expected
    assert len(set(expected)) == 4  # image and prompt reach the model
    # The server lists only models in the hub's cache.
    assert remote.name == f"{folder}@unlisted"


def test_a_run_through_the_server_has_the_candidates_of_a_run_with_the_local_model(
    served, folder, make_dataset, tmp_path
):
    data = make_dataset(tmp_path / "data", images=3)
    fakes = {"scorer": {"backend": "fake"}, "detector": {"backend": "fake"}}
    asked = {**GREEDY, "truncated": "keep", "model": str(folder), "samples": {"full": 1, "crop": 1, "crop_objects": 1}}
    said = {}
    for name, adapter in {"remote": {"backend": "openai", "base_url": served}, "local": {"device": "cpu"}}.items():
        run(make_config(data.config(describer={**asked, **adapter}, **fakes)), tmp_path / name, until="scores")
        tables = StageStore(tmp_path / name / "candidates").tables()
        columns = ("candidate_id", "raw_text", "finish_reason")
        said[name] = [[row[column] for column in columns] for table in tables for row in table.to_pylist()]
    assert said["remote"] == said["local"]
    assert len(said["remote"]) >= 3


def test_a_refusal_is_reported_with_the_message_of_the_server(served, folder, ask, picture):
    def describe(**changes):
        settings = {"model": str(folder), "base_url": served, "dialect": "llava", "retries": 0, "max_new_tokens": 5}
        chosen = {**settings, **changes}
        return OpenAiDescriber(chosen.pop("model"), **chosen).describe([ask(picture(50, 40))])

    with pytest.raises(ServerError, match=r"Server is pinned to .*; requested 'another/model'"):
        describe(model="another/model")
    with pytest.raises(ServerError, match=r"Unexpected fields.*skip_special_tokens[\s\S]*describer\.request_fields"):
        describe(request_fields={"skip_special_tokens": False})
    with pytest.raises(ServerError, match=r"Not Found[\s\S]*ends in /v1"):
        describe(base_url=served.removesuffix("/v1"))


def test_the_documented_command_serves_llava_and_the_seed_determines_the_sample(mllm_folder, tmp_path, ask, picture):
    folder = sampling(mllm_folder("llava"), tmp_path, do_sample=True, top_k=0)
    with serving(folder, SERVE, tmp_path / "log") as url:
        # One request at a time, because this server has one global seed.
        model = OpenAiDescriber(str(folder), base_url=url, dialect="llava", max_new_tokens=16, concurrency=1)
        image = picture(60, 40)
        one, two, again, other = model.describe([ask(image, seed=seed) for seed in (1, 2, 1, 3)])
    assert one == again
    assert len({one, two, other}) == 3
