"""Runs give the same rows for any order, sharding and workers; nothing is lost, computed twice or mixed."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import warm_python
from run_folders import FAKES, files, rows
from spr.config import make_config
from spr.core.errors import InputError, RunError
from spr.pipeline.runner import run
from spr.pipeline.stage import STAGES
from spr.runs.folder import lock_run
from spr.runs.store import StageStore, read_table

NAMES = ("objects", "regions")


def test_a_run_makes_objects_and_regions_with_counts_that_add_up(dataset, tmp_path):
    config = dataset.config(seed=1, shard_rows=16, annotations={"min_area": 650, "min_objects": 10})
    objects, regions = run(make_config(config), tmp_path / "run")
    small = objects.dropped.get("object: area_under_minimum", 0)
    assert objects.counts["images with a valid entry"] == 40
    assert objects.rows + objects.dropped.get("image: too_few_objects", 0) == 40
    kept = rows(tmp_path / "run", "objects")
    assert sum(len(row["objects"]) for row in kept) <= 40 * 12 - small
    assert regions.rows == len(rows(tmp_path / "run", "regions")) > 20
    dropped = read_table(tmp_path / "run" / "dropped.parquet")
    # Every dropped object and image has the file name that the annotations give the image.
    files = {str(entry["id"]): entry["file_name"] for entry in dataset.coco["images"]}
    owners = {str(entry["id"]): str(entry["image_id"]) for entry in dataset.coco["annotations"]}
    for row in dropped.to_pylist():
        image_id = owners[row["id"]] if row["kind"] == "object" else row["id"]
        assert row["file_name"] == files[image_id]
    assert {"object", "image"} == set(dropped["kind"].to_pylist())
    assert len(dropped) == sum(objects.dropped.values()) + sum(regions.dropped.values())


@pytest.mark.parametrize("ids", ["per image", "absent"])
def test_objects_without_ids_of_their_own_are_kept_and_counted(make_dataset, tmp_path, ids):
    dataset = make_dataset(tmp_path / "data", images=24)
    (before,) = run(make_config(dataset.config()), tmp_path / "own", until="objects")
    for entry in dataset.coco["annotations"]:
        entry["id"] %= 100
        if ids == "absent":
            del entry["id"]
    dataset.write()
    (summary,) = run(make_config(dataset.config()), tmp_path / "run", until="objects")
    assert (summary.rows, summary.dropped, summary.advice) == (before.rows, before.dropped, None)
    assert summary.counts["ids missing or not unique: annotations are numbered"] == 288
    assert "ids missing or not unique: annotations are numbered" not in before.counts
    kept = [sorted(item["box"] for item in row["objects"]) for row in rows(tmp_path / "run", "objects")]
    assert kept == [sorted(item["box"] for item in row["objects"]) for row in rows(tmp_path / "own", "objects")]
    numbers = [item["id"] for row in rows(tmp_path / "run", "objects") for item in row["objects"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("name", ["sofa [1, 2, 3, 4]", "<image>", "a\x00b"])
def test_a_category_whose_name_is_not_words_does_not_stop_a_run(make_dataset, tmp_path, name):
    dataset = make_dataset(tmp_path / "data", images=4, objects=24)
    dataset.coco["categories"][1]["name"] = name
    dataset.write()
    summaries = run(make_config(dataset.config(**FAKES)), tmp_path / "run")
    assert summaries[-1].name == "pairs"
    assert summaries[0].dropped["category: category_name_not_words"] == 1
    assert summaries[0].dropped["object: object_category_dropped"] == 48
    assert "sofa" not in str(rows(tmp_path / "run", "candidates"))


def test_what_more_than_half_of_the_items_were_dropped_for_is_said(make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "data", images=4, objects=20)
    for entry in dataset.coco["annotations"]:
        entry["bbox"][2:] = [30, 30] if entry["id"] % 20 < 10 else [2, 2]
        entry["category_id"] = 9 if entry["id"] % 20 == 0 else 1
    dataset.write()
    settings = {"annotations": {"min_objects": 1}}
    (summary,) = run(make_config(dataset.config(**settings)), tmp_path / "half", until="objects")
    assert (summary.dropped["object: area_under_minimum"], summary.advice) == (40, None)  # of 80
    for entry in dataset.coco["annotations"][10:12]:
        entry["bbox"][2:] = [2, 2]
    for entry in dataset.coco["annotations"][8:10]:
        entry["bbox"][2:] = [2, 2]
    dataset.write()
    for k in range(3):
        (dataset.images / f"{1000 + 7 * k}.png").unlink()
    (summary,) = run(make_config(dataset.config(**settings)), tmp_path / "more", until="objects")
    assert summary.advice == (
        "3 of 4 images were dropped as image_missing (there is no such file in the image folder, and not exactly one "
        "whose name is spelled alike): check annotations.images; 42 of 80 objects were dropped as area_under_minimum "
        "(the area of the box is under `annotations.min_area`): lower annotations.min_area to keep them"
    )
    for entry in dataset.coco["images"][:3]:
        entry["width"] = 0
    dataset.write()
    settings = {"annotations": {"min_objects": 1, "check_images": False}}
    (summary,) = run(make_config(dataset.config(**settings)), tmp_path / "sizes", until="objects")
    images, objects = summary.advice.split("; ")
    assert images.startswith("3 of 4 images were dropped as image_size_invalid (width or height is missing")
    assert objects.startswith("60 of 80 objects were dropped as object_image_dropped")


def test_rows_do_not_depend_on_file_order_sharding_or_workers(dataset, tmp_path):
    settings = {"seed": 3, "annotations": {"max_images": 20}}
    run(make_config(dataset.config(**settings, shard_rows=512)), tmp_path / "a")
    order = random.Random(5)
    for entries in dataset.coco.values():
        order.shuffle(entries)
    dataset.write()
    run(make_config(dataset.config(**settings, shard_rows=3)), tmp_path / "b", workers=2)
    for stage in NAMES:
        assert rows(tmp_path / "b", stage) == rows(tmp_path / "a", stage)
    assert len(rows(tmp_path / "a", "objects")) == 20


def test_one_worker_and_two_write_the_same_bytes(dataset, tmp_path):
    config = make_config(dataset.config(shard_rows=4, annotations={"max_images": 21}))
    run(config, tmp_path / "one", workers=1)
    run(config, tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_the_sample_is_the_first_images_of_an_order_that_the_seed_decides(dataset, tmp_path):
    def sample(name, **settings):
        run(make_config(dataset.config(**settings)), tmp_path / name, until="objects")
        return [row["image_id"] for row in rows(tmp_path / name, "objects")]

    everything = sample("all", annotations={"max_images": None})
    assert sample("ten", annotations={"max_images": 10}, shard_rows=7) == everything[:10]
    assert sample("other", seed=1, annotations={"max_images": 10}) != everything[:10]
    # The images left out come first in the sample of the same seed.
    assert sample("next", annotations={"max_images": 10, "skip_images": 10}) == everything[10:20]


def test_an_image_that_can_not_be_read_is_counted_and_makes_room_for_the_next(dataset, tmp_path):
    run(make_config(dataset.config(annotations={"max_images": 10})), tmp_path / "before", until="objects")
    first, *others = [row["file_name"] for row in rows(tmp_path / "before", "objects")]
    (dataset.images / first).write_bytes(b"no image")
    (summary,) = run(make_config(dataset.config(annotations={"max_images": 10})), tmp_path / "after", until="objects")
    names = [row["file_name"] for row in rows(tmp_path / "after", "objects")]
    assert names[:9] == others
    assert len(names) == 10
    assert summary.dropped["image: image_unreadable"] == 1


def test_images_outside_the_sample_are_listed(dataset, tmp_path):
    config = make_config(dataset.config(annotations={"max_images": 10}, shard_rows=4))
    (summary,) = run(config, tmp_path / "run", until="objects")
    left_out = summary.dropped["image: not_sampled"]
    assert left_out == summary.counts["images that may qualify"] - 10
    dropped = read_table(tmp_path / "run" / "dropped.parquet").to_pylist()
    named = {row["id"] for row in dropped if row["reason"] == "not_sampled"}
    assert len(named) == left_out
    files = {str(entry["id"]): entry["file_name"] for entry in dataset.coco["images"]}
    assert all(row["file_name"] == files[row["id"]] for row in dropped if row["kind"] == "image")
    assert not named & {row["image_id"] for row in rows(tmp_path / "run", "objects")}


def test_a_second_run_computes_nothing(dataset, tmp_path):
    config = make_config(dataset.config(shard_rows=8))
    run(config, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("part-*")}
    again = run(config, tmp_path / "run")
    assert all(summary.done_before for summary in again)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("part-*")} == before


def test_only_a_damaged_shard_is_computed_again(dataset, tmp_path):
    config = make_config(dataset.config(shard_rows=8))
    run(config, tmp_path / "run")
    whole = files(tmp_path / "run")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "regions").glob("part-*")}
    assert len(times) >= 4
    torn = tmp_path / "run" / "regions" / "part-00001.parquet"
    torn.write_bytes(b"torn")
    run(config, tmp_path / "run")
    assert files(tmp_path / "run") == whole
    assert {p for p, before in times.items() if p.stat().st_mtime_ns != before} == {torn}
    (tmp_path / "run" / "objects" / "part-00001.parquet").unlink()
    run(config, tmp_path / "run")
    assert files(tmp_path / "run") == whole


@pytest.mark.parametrize(
    "name",
    ["objects/dropped-source", "objects/dropped-00000", "regions/dropped-00001", "scores/dropped-00000", "dropped"],
)
@pytest.mark.parametrize("content", [b"PAR1 nonsense", None])
def test_damaged_drops_of_any_stage_heal(name, content, finished_run, tmp_path):
    config, whole = finished_run
    out = shutil.copytree(whole, tmp_path / "run")
    (out / f"{name}.parquet").unlink()
    if content is not None:
        (out / f"{name}.parquet").write_bytes(content)
    run(config, out)
    assert files(out) == files(whole)


@pytest.fixture(scope="module")
def finished_run(make_dataset, tmp_path_factory):
    data = make_dataset(tmp_path_factory.mktemp("finished") / "data", images=8)
    config = make_config(data.config(**FAKES, shard_rows=4, annotations={"max_images": 6}))
    run(config, data.folder / "run")
    return config, data.folder / "run"


def test_rows_computed_from_other_rows_than_the_present_ones_are_computed_again(dataset, tmp_path):
    config = make_config(dataset.config(shard_rows=8))
    hidden = [path.rename(path.with_suffix(".hidden")) for path in sorted(dataset.images.iterdir())[:5]]
    first = run(config, tmp_path / "run")
    for path in hidden:
        path.rename(path.with_suffix(".png"))
    shutil.rmtree(tmp_path / "run" / "objects")
    second = run(config, tmp_path / "run")
    undisturbed = run(config, tmp_path / "other")
    assert first[0].rows < second[0].rows
    assert [s.rows for s in second] == [s.rows for s in undisturbed]
    assert files(tmp_path / "run") == files(tmp_path / "other")


def test_the_same_is_dropped_for_any_shard_size(dataset, tmp_path):
    for path in sorted(dataset.images.iterdir())[::3]:
        path.unlink()
    counts = []
    for shard_rows in (1, 4, 512):
        config = make_config(dataset.config(annotations={"max_images": 5}, shard_rows=shard_rows))
        (summary,) = run(config, tmp_path / str(shard_rows), until="objects")
        counts.append((summary.rows, summary.dropped))
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][1]["image: image_missing"] > 0


# Runs in a process of its own and dies, as by `kill -9`, at the n-th sync of a file: before a shard's rename, between
# a shard and its manifest, between the two files of a shard, while merging the drops …
DIE = """
import os, pathlib, signal, sys, yaml
from spr.config import make_config
from spr.pipeline.runner import run
left, real = int(sys.argv[3]), os.fsync
def fsync(fd):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(fd)
os.fsync = fsync
run(make_config(yaml.safe_load(open(sys.argv[1]))), pathlib.Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def undisturbed(make_dataset, tmp_path_factory):
    data = make_dataset(tmp_path_factory.mktemp("kill") / "data", images=24)
    raw = data.config(shard_rows=4, annotations={"max_images": 18})
    path = data.folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    run(make_config(raw), data.folder / "whole")
    return path, raw, files(data.folder / "whole")


def test_shards_beyond_the_sample_are_removed_also_after_an_interruption(undisturbed, tmp_path, monkeypatch):
    _, raw, whole = undisturbed
    sweeps = []

    def sweep(store, manifest):
        sweeps.append(store.folder)
        if len(sweeps) == 2:
            raise KeyboardInterrupt
        real(store, manifest)

    real = StageStore.sweep
    monkeypatch.setattr(StageStore, "sweep", sweep)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(raw), tmp_path / "run", workers=2)
    monkeypatch.undo()
    run(make_config(raw), tmp_path / "run")
    assert files(tmp_path / "run") == whole


@pytest.mark.processes
@pytest.mark.parametrize("syncs", [0, 2, 5, 9, 14, 20, 27, 35, 44, 60])
def test_a_run_that_was_killed_resumes_to_the_same_bytes(undisturbed, tmp_path, syncs):
    path, raw, whole = undisturbed
    command = [*warm_python.start(), "-c", DIE, str(path), str(tmp_path / "run"), str(syncs)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert files(tmp_path / "run") != whole
    run(make_config(raw), tmp_path / "run")
    assert files(tmp_path / "run") == whole


@pytest.mark.processes
def test_workers_die_with_a_killed_run_and_the_next_run_is_complete(undisturbed, tmp_path):
    path, raw, whole = undisturbed
    command = [sys.executable, "-m", "spr", "run", str(path), "--out", str(tmp_path / "run"), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "objects" / "manifest.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    while _processes_of_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _processes_of_session(process.pid) == []
    run(make_config(raw), tmp_path / "run")
    assert files(tmp_path / "run") == whole


def _processes_of_session(session: int) -> list[int]:
    processes = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[3]) == session and fields[0] != "Z":
            processes.append(int(stat.parent.name))
    return processes


# The command line, with shards that take long enough to be interrupted.
SLOW = """
import time
from spr import cli
from spr.pipeline import jobs
real = jobs.run_shard
def slow(job):
    time.sleep(0.2)
    return real(job)
jobs.run_shard = slow
cli.main()
"""


@pytest.mark.processes
def test_ctrl_c_stops_with_a_message_and_keeps_finished_shards(undisturbed, tmp_path):
    path, raw, whole = undisturbed
    command = [sys.executable, "-c", SLOW, "run", str(path), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "objects" / "manifest.json").is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command to resume" in errors
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "run" / "objects" / "manifest.json").read_text())["shards"]
    run(make_config(raw), tmp_path / "run")
    assert files(tmp_path / "run") == whole


def test_a_changed_config_is_refused_with_the_field_and_nothing_is_changed(dataset, tmp_path):
    run(make_config(dataset.config()), tmp_path / "run")
    before = files(tmp_path / "run")
    with pytest.raises(RunError, match=r"regions\.per_image: 1 → 2[\s\S]*delete \S+/run/regions"):
        run(make_config(dataset.config(regions={"per_image": 2})), tmp_path / "run")
    with pytest.raises(RunError, match=r"seed: 0 → 9[\s\S]*delete \S+/run/objects"):
        run(make_config(dataset.config(seed=9)), tmp_path / "run")
    assert files(tmp_path / "run") == before


def test_a_field_may_change_as_long_as_no_stage_that_needs_it_has_begun(dataset, tmp_path):
    run(make_config(dataset.config()), tmp_path / "run", until="objects")
    changed = make_config(dataset.config(regions={"per_image": 2}))
    run(changed, tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["regions"]["per_image"] == 2


def test_annotations_that_have_changed_are_refused(dataset, tmp_path):
    config = make_config(dataset.config())
    run(config, tmp_path / "run")
    os.utime(dataset.json, ns=(1, 1))  # touched, but unchanged: accepted
    run(config, tmp_path / "run")
    dataset.coco["annotations"].pop()
    dataset.write()
    with pytest.raises(RunError, match=r"instances\.json has changed"):
        run(config, tmp_path / "run")


def test_a_new_version_of_a_stage_is_refused_with_the_fix(dataset, tmp_path):
    config = make_config(dataset.config())
    stage = dataclasses.replace(STAGES["regions"], name="added")
    try:
        STAGES.register("added", stage)
        run(config, tmp_path / "run")
        STAGES.unregister("added")
        STAGES.register("added", dataclasses.replace(stage, version=99))
        with pytest.raises(RunError, match=r"another version of SPR[\s\S]*delete .*added"):
            run(config, tmp_path / "run")
    finally:
        STAGES.unregister("added")


def test_two_runs_into_one_folder_are_refused(dataset, tmp_path):
    config = make_config(dataset.config())
    with lock_run(tmp_path / "run"), pytest.raises(RunError, match="in use by another run"):
        run(config, tmp_path / "run")


def test_a_folder_with_other_files_is_refused_and_left_alone(dataset, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"not a run folder[\s\S]*data, thesis\.tex"):
        run(make_config(dataset.config()), tmp_path)
    assert not (tmp_path / "config.yaml").exists()


def test_a_file_in_place_of_the_run_folder_is_refused(dataset, tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(RunError, match="can't be used as a run folder"):
        run(make_config(dataset.config()), tmp_path / "run")


def test_a_damaged_config_of_the_run_is_named(dataset, tmp_path):
    run(make_config(dataset.config()), tmp_path / "run", until="objects")
    (tmp_path / "run" / "config.yaml").write_text("a: [")
    with pytest.raises(RunError, match=r"config\.yaml is damaged"):
        run(make_config(dataset.config()), tmp_path / "run")


def test_a_stage_without_rows_stops_the_run_with_the_reasons(dataset, tmp_path):
    with pytest.raises(InputError, match=r"`objects` has no images[\s\S]*object: area_under_minimum"):
        run(make_config(dataset.config(annotations={"min_area": 1e6})), tmp_path / "a")
    few = r"image: too_few_objects[\s\S]*too_few_objects means: [^`]*`{}`"
    with pytest.raises(InputError, match=rf"`objects` has no images[\s\S]*{few.format('annotations.min_objects')}"):
        run(make_config(dataset.config(annotations={"min_objects": 999})), tmp_path / "c")
    with pytest.raises(InputError, match=rf"`regions` has no regions[\s\S]*{few.format('regions.min_inside')}"):
        run(make_config(dataset.config(regions={"min_inside": 13})), tmp_path / "b")


def test_missing_inputs_are_named(dataset, tmp_path):
    with pytest.raises(InputError, match=r"no file .*nowhere\.json[\s\S]*annotations\.path"):
        run(make_config(dataset.config(annotations={"path": str(tmp_path / "nowhere.json")})), tmp_path / "a")
    with pytest.raises(InputError, match=r"no image folder .*nowhere[\s\S]*annotations\.images"):
        run(make_config(dataset.config(annotations={"images": str(tmp_path / "nowhere")})), tmp_path / "b")


def test_an_image_outside_the_folder_is_never_opened(dataset, tmp_path):
    outside = tmp_path / "secret.png"
    (dataset.images / "1000.png").rename(outside)
    (dataset.images / "1000.png").symlink_to(outside)
    dataset.coco["images"][1]["file_name"] = "../../secret.png"
    dataset.coco["images"][2]["file_name"] = str(outside)
    dataset.write()
    (summary,) = run(make_config(dataset.config()), tmp_path / "run", until="objects")
    assert summary.dropped["image: path_outside_images"] == 1
    assert summary.dropped["image: image_file_name_unsafe"] == 2
    for reason in ("path_outside_images", "image_file_name_unsafe"):
        many = dataclasses.replace(summary, dropped={f"image: {reason}": 9 * summary.rows}, totals={})
        assert "set annotations.allow_outside_images=true, with another --out" in many.advice


def test_the_log_lists_the_start_and_the_end_of_each_stage(dataset, tmp_path):
    run(make_config(dataset.config()), tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(e["event"], e["stage"]) for e in events] == [
        (event, stage) for stage in NAMES for event in ("stage started", "stage finished")
    ]


def check_counts(annotations, out, *, images, objects, crowds):
    run_objects, regions = run(make_config({"annotations": annotations}), out)
    assert run_objects.counts["images with a valid entry"] == images
    assert run_objects.counts["objects with a valid entry"] == objects
    assert run_objects.dropped["object: crowd_without_detector"] == crowds
    assert run_objects.rows + run_objects.dropped["image: too_few_objects"] == images
    assert regions.rows + regions.dropped.get("image: no_valid_region", 0) == run_objects.rows


def test_generated_images_give_objects_and_regions(dataset, tmp_path):
    for entry in dataset.coco["annotations"][:6]:
        entry["iscrowd"] = 1
    dataset.write()
    # The first image has six crowds, which leaves six of its twelve objects: too few.
    check_counts(dataset.config()["annotations"], tmp_path / "run", images=40, objects=480, crowds=6)


def test_the_photographs_give_objects_and_regions(photos, tmp_path):
    annotations = {"path": str(photos / "instances.json"), "images": str(photos / "images")}
    check_counts(annotations, tmp_path / "run", images=80, objects=705, crowds=6)
