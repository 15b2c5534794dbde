"""Object storage against a local disk: the same run with fake models, on disk and on an S3 server on this machine.

Times are those of whole runs of all stages in one process, alternating; the median ratio is reported. The server (moto)
is a program in Python on the same cores, so the overhead is that of requests, not of a network. Images and annotations
are on the same kind of storage as the run.

    python benchmarks/bench_storage.py [--images 200] [--shard-rows 64] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spr.config import Config, make_config
from spr.core.paths import as_path
from spr.pipeline.runner import run
from spr.runs.store import STAGE_ORDER, StageStore

BUCKET = "bench"
OBJECTS = 12


def write_dataset(folder: Path, count: int) -> None:
    """JPEG images of noise, 320 × 240, with random boxes."""
    draw, noise = random.Random(0), np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    coco: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "box"}]}
    for number in range(count):
        pixels = noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((320, 240)).save(folder / "images" / f"{number}.jpg")
        coco["images"].append({"id": number, "file_name": f"{number}.jpg", "width": 320, "height": 240})
        for k in range(OBJECTS):
            box = [draw.uniform(0, 240), draw.uniform(0, 180), draw.uniform(20, 80), draw.uniform(20, 60)]
            entry = {"id": number * OBJECTS + k, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0}
            coco["annotations"].append(entry)
    (folder / "instances.json").write_text(json.dumps(coco))


def config_for(place: str, shard_rows: int) -> Config:
    """The config of a run with fake models on a dataset."""
    fakes = {section: {"backend": "fake"} for section in ("describer", "scorer", "detector")}
    paths = {"path": f"{place}/instances.json", "images": f"{place}/images"}
    return make_config({**fakes, "shard_rows": shard_rows, "annotations": paths})


def start_server() -> None:
    """Start an S3 server in a process of its own, with an empty bucket."""
    import http.client
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    context.Process(target=_serve, args=(sender,), daemon=True).start()
    host, port = receiver.recv()
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/b/us-east-1"}
    connection = http.client.HTTPConnection(host, port)
    connection.request("PUT", f"/{BUCKET}", headers=signed)
    connection.getresponse().read()
    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"


def _serve(sender: Any) -> None:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    sender.send(server.get_host_and_port())
    while True:
        time.sleep(60)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--shard-rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    start_server()
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name), as_path(f"s3://{BUCKET}")
        write_dataset(folder / "data", options.images)
        for path in sorted((folder / "data").rglob("*")):
            if path.is_file():
                (store / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
        places = {"disk": folder, "s3": store}
        first: dict[str, list[float]] = {name: [] for name in places}
        again: dict[str, list[float]] = {name: [] for name in places}
        for number in range(options.repeats + 1):
            for name, place in places.items():
                for seconds in (first, again):
                    start = time.perf_counter()
                    run(config_for(str(place / "data"), options.shard_rows), place / f"run-{number}")
                    if number:  # the first round warms up
                        seconds[name].append(time.perf_counter() - start)
        hashes = [
            [s.sha256 for stage in STAGE_ORDER for s in StageStore(place / "run-1" / stage).finished().shards]
            for place in places.values()
        ]
        print(json.dumps({"images": options.images, "shards": len(hashes[0]), "same bytes": hashes[0] == hashes[1]}))
        for what, seconds in (("all stages", first), ("nothing to do", again)):
            ratios = [s3 / disk for s3, disk in zip(seconds["s3"], seconds["disk"], strict=True)]
            medians = {name: round(statistics.median(times), 2) for name, times in seconds.items()}
            print(json.dumps({"run": what, "seconds": medians, "s3 over disk": round(statistics.median(ratios), 2)}))


if __name__ == "__main__":
    main()
