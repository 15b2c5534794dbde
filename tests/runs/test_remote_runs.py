"""Runs in object storage: the same bytes as on a local disk, with and without faults."""

import json
import threading
from pathlib import Path

import pytest

from run_folders import FAKES
from s3_server import upload
from spr.config import make_config
from spr.core import locks
from spr.core.errors import ConfigError, RunError, StorageError
from spr.exports.writing import export
from spr.pipeline.runner import run
from spr.report.page import write_report
from spr.report.show import show
from spr.runs.folder import lock_run
from spr.runs.reader import Run
from spr.runs.store import STAGE_ORDER, StageStore, stage_folders

SHARDS = 3


def hashes(out):
    """The SHA-256 of every shard and of its drops, by stage."""
    finished = {name: StageStore(out / name).finished() for name in STAGE_ORDER}
    return {name: [(s.sha256, s.dropped_sha256) for s in manifest.shards] for name, manifest in finished.items()}


@pytest.fixture(scope="module")
def made(make_dataset, tmp_path_factory):
    """A dataset, its config by where it is, and an undisturbed local run."""
    folder = tmp_path_factory.mktemp("made")
    dataset = make_dataset(folder / "data", images=4 * SHARDS, objects=8)

    def config(place=folder / "data", **sections):
        paths = {"path": f"{place}/instances.json", "images": f"{place}/images", "min_objects": 1}
        return make_config({**FAKES, "shard_rows": 4, **sections, "annotations": paths})

    run(config(), folder / "run")
    return dataset, config, folder / "run"


@pytest.fixture
def config(made, monkeypatch):
    monkeypatch.setattr(locks, "WATCHED", 0.3)
    monkeypatch.setattr(locks, "_POLL", 0.1)
    return made[1]


def test_a_run_from_and_to_object_storage_has_the_bytes_of_a_local_one(made, config, bucket):
    dataset, _, local = made
    upload(dataset.folder, bucket / "data")
    run(config(bucket / "data"), bucket / "run", workers=2)
    found = hashes(bucket / "run")
    assert found == hashes(local)
    assert (bucket / "run" / "dropped.parquet").read_bytes() == (local / "dropped.parquet").read_bytes()
    assert all(summary.done_before for summary in run(config(bucket / "data"), bucket / "run"))
    # On a store, nothing but the lock and what a local run has.
    names = {path.relative_to(bucket / "run").as_posix() for path in (bucket / "run").below()}
    assert names == {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()}
    assert json.loads((bucket / "run" / ".lock").read_bytes())["holders"] == {}


def test_a_finished_shard_is_checked_by_one_small_request(config, bucket, s3):
    run(config(), bucket, until="regions")
    s3.calm()
    run(config(), bucket, until="regions")
    assert s3.count(r"^HEAD .*/regions/(part|dropped)-") == 2 * SHARDS
    assert s3.count(r"^GET .*/regions/part-") == 0
    assert s3.count(r"^PUT .*/(part|dropped)-\d") == 0


def test_a_shard_that_changed_is_computed_again_whoever_copied_it(made, config, bucket):
    run(config(), bucket)
    part = StageStore(bucket / "regions").part(1)
    original = part.read_bytes()
    part.write_bytes(original[:-4] + b"PAR2")
    StageStore(bucket / "scores").drops(0).unlink()
    run(config(), bucket)
    assert part.read_bytes() == original
    assert hashes(bucket) == hashes(made[2])


def test_shards_that_another_tool_copied_are_read_to_check_them(config, bucket, s3):
    import obstore

    from spr.core.object_store import connect

    run(config(), bucket, until="objects")
    part = StageStore(bucket / "objects").part(0)
    obstore.put(connect("s3", bucket.bucket), part.key, part.read_bytes())  # without the attribute
    assert part.info().sha256 is None
    s3.calm()
    (summary,) = run(config(), bucket, until="objects")
    assert summary.done_before
    assert s3.count(f"^GET .*{part.name}") >= 1


def test_a_run_moves_between_a_disk_and_a_store_and_goes_on(made, config, bucket, tmp_path):
    _, _, local = made
    run(config(), tmp_path / "run", until="candidates")
    upload(tmp_path / "run", bucket)
    kept, *_, last = run(config(), bucket)
    assert (kept.done_before, last.done_before) == (True, False)
    assert hashes(bucket) == hashes(local)


def test_finished_stages_are_taken_over_from_and_to_a_store(made, config, bucket, tmp_path):
    _, _, local = made
    summaries = run(config(), bucket / "a", reuse=[local])
    assert all(summary.reuse == f"taken over from {local}" for summary in summaries)
    run(config(), bucket / "b", reuse=[bucket / "a"])
    summaries = run(config(), tmp_path / "c", reuse=[bucket / "b"])
    assert summaries[-1].reuse == f"taken over from {bucket / 'b'}"
    assert hashes(tmp_path / "c") == hashes(bucket / "b") == hashes(local)
    with pytest.raises(ConfigError, match="names the run itself"):
        run(config(), bucket / "b", reuse=[bucket / "b"])
    with lock_run(bucket / "a"), pytest.raises(RunError, match="is in use by another run"):
        run(config(), bucket / "d", reuse=[bucket / "a"])


def test_tables_reports_and_exports_are_read_from_a_store_and_written_to_it(made, bucket, tmp_path):
    _, _, local = made
    upload(local, bucket)
    assert Run(Path(str(bucket))).table("pairs").equals(Run(local).table("pairs"))
    assert list(show(bucket / "pairs")) == [line.replace(str(local), str(bucket)) for line in show(local / "pairs")]
    (bucket / "report" / "old.txt").write_bytes(b"")
    with pytest.raises(RunError, match="is not a report"):
        write_report(bucket)
    (bucket / "report" / "old.txt").unlink()
    index = write_report(bucket)
    (bucket / "report" / "notes.txt").write_bytes(b"mine")
    assert index == bucket / "report" / "index.html"
    write_report(bucket, images=False)
    page = {path.relative_to(bucket / "report").as_posix() for path in (bucket / "report").below()}
    assert "notes.txt" in page
    assert "gallery/page-00000.js" in page
    assert not any(name.startswith("thumbs/") for name in page)
    assert str(bucket) not in index.read_text()
    for name in ("trl", "llava"):
        here = export(local, tmp_path / name, name)
        there = export(bucket, bucket / name, name)
        assert there.pairs == here.pairs > 0
        for path in (tmp_path / name).rglob("*"):
            if path.is_file() and path.suffix in (".parquet", ".json", ".png", ".jpg"):
                assert (bucket / name / path.relative_to(tmp_path / name).as_posix()).read_bytes() == path.read_bytes()
        assert export(bucket, bucket / name, name).done_before
    with pytest.raises(RunError, match="holds another export"):
        export(bucket, bucket / "trl", "trl", images="none")


def test_listings_that_lag_decide_nothing(made, config, bucket, s3):
    s3.lag = 3600
    run(config(), bucket, until="candidates")
    assert list(bucket.iterdir()) == []
    assert [folder.name for folder in stage_folders(bucket)] == ["candidates", "objects", "regions"]
    assert Run(bucket).stages == ["objects", "regions", "candidates"]
    with pytest.raises(RunError, match="made with another config"):
        run(config(regions={"per_image": 2}), bucket)
    run(config(), bucket)
    assert hashes(bucket) == hashes(made[2])


def test_a_folder_that_is_no_run_is_left_alone(config, bucket):
    (bucket / "photo.jpg").write_bytes(b"x")
    with pytest.raises(RunError, match=r"is not a run folder(.|\n)*photo.jpg"):
        run(config(), bucket)
    assert [path.name for path in bucket.below()] == ["photo.jpg"]


# ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "pattern", "every"),
    [
        ("503 SlowDown", "", 5),
        pytest.param("cut", "^GET", 7, marks=pytest.mark.long),
        pytest.param("cut after", "parquet", 7, marks=pytest.mark.long),
        pytest.param("500 InternalError", "^PUT", 4, marks=pytest.mark.long),
    ],
)
def test_passing_faults_change_nothing(made, config, bucket, s3, action, pattern, every):
    upload(made[0].folder, bucket / "data")
    for start in range(0, 400, every):
        s3.inject(action, pattern, times=1, after=start)
    run(config(bucket / "data"), bucket / "run")
    assert sum(fault.hits > fault.after for fault in s3.faults) >= 10
    assert hashes(bucket / "run") == hashes(made[2])


@pytest.mark.parametrize(
    ("action", "pattern", "message"),
    [
        ("507 XMinioStorageFull", "^PUT .*scores/part-00001", "the store is full"),
        ("hang", "^GET .*candidates/part-00001", "no answer within 1 s"),
        pytest.param("403 AccessDenied", "^PUT .*scores/part-00001", "AccessDenied", marks=pytest.mark.long),
        pytest.param("503 SlowDown", "^PUT .*scores/manifest", "SlowDown", marks=pytest.mark.long),
        pytest.param("403 AccessDenied", "^GET .*images/", "AccessDenied", marks=pytest.mark.long),
    ],
)
def test_faults_that_stay_stop_the_run_with_one_message_and_it_resumes(
    made, config, bucket, s3, monkeypatch, action, pattern, message
):
    upload(made[0].folder, bucket / "data")
    monkeypatch.setenv("SPR_STORAGE_TIMEOUT", "1")
    s3.inject(action, pattern)
    with pytest.raises(StorageError) as caught:
        run(config(bucket / "data"), bucket / "run")
    assert message in str(caught.value)
    assert str(bucket) in str(caught.value)
    s3.calm()
    monkeypatch.setenv("SPR_STORAGE_TIMEOUT", "20")
    run(config(bucket / "data"), bucket / "run")
    assert hashes(bucket / "run") == hashes(made[2])


def test_two_drivers_on_one_run_are_one_too_many(made, config, bucket, tmp_path):
    for out in (bucket, tmp_path / "run"):
        with lock_run(out), pytest.raises(RunError, match="is in use by another run") as caught:
            run(config(), out)
        assert caught.value.fix
        run(config(), out)
        assert hashes(out) == hashes(made[2])


def test_of_drivers_that_start_together_one_makes_the_run(made, config, bucket):
    results = []

    def drive():
        try:
            run(config(), bucket)
            results.append("done")
        except RunError as error:
            results.append(error.what)

    threads = [threading.Thread(target=drive) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "done" in results
    assert {result for result in results if result != "done"} <= {f"{bucket} is in use by another run"}
    assert hashes(bucket) == hashes(made[2])


def test_a_driver_that_was_replaced_overwrites_nothing(config, bucket):
    run(config(), bucket, until="objects")
    old = StageStore(bucket / "objects")
    manifest = old.manifest()
    new = StageStore(bucket / "objects")
    new.save(new.manifest())
    kept = (bucket / "objects" / "manifest.json").info()
    other = StageStore(bucket / "objects")
    changed = other.manifest()
    changed.weights = {"describer": "other"}
    other.save(changed)
    manifest.complete = False
    with pytest.raises(RunError, match=r"written by another program(.|\n)*nothing was overwritten"):
        old.save(manifest)
    assert (bucket / "objects" / "manifest.json").info().version != kept.version
    assert StageStore(bucket / "objects").finished().weights == {"describer": "other"}


def test_a_run_whose_lock_was_lost_stops_and_can_be_resumed(made, config, bucket, monkeypatch):
    monkeypatch.setattr(locks, "REFRESH", 0.05)
    done = threading.Event()

    def steal(summary):
        if summary.name == "regions":
            content = {"format": "spr lock", "holders": {}}
            (bucket / ".lock").write_bytes(json.dumps(content).encode())
            done.wait(0.5)

    with pytest.raises(RunError, match=r"has lost .*\.lock(.|\n)*taken over"):
        run(config(), bucket, report=steal)
    run(config(), bucket)
    assert hashes(bucket) == hashes(made[2])


def test_a_store_without_conditional_writes_is_used_with_a_warning(made, config, bucket, s3, monkeypatch, capsys):
    monkeypatch.setattr(locks, "_conditional", {})
    s3.inject("deny conditions")
    run(config(), bucket)
    assert (
        "ignores the conditions of writes, so SPR can't keep two processes from using one run"
        in capsys.readouterr().err
    )
    assert hashes(bucket) == hashes(made[2])
    monkeypatch.setattr(locks, "_conditional", {})


def test_answers_of_an_unfinished_shard_survive_in_a_store(made, config, bucket, monkeypatch):
    from spr.models.fakes import FakeDescriber
    from spr.pipeline import answers

    monkeypatch.setattr(answers, "PAUSE", 0)
    asked, describe, write = [], FakeDescriber.describe, StageStore.write_shard

    def ask(self, requests):
        asked.append(len(requests))
        return describe(self, requests)

    def stop(self, index, *arguments, **options):
        if self.folder.name == "candidates" and index == 1:
            raise KeyboardInterrupt
        return write(self, index, *arguments, **options)

    monkeypatch.setattr(FakeDescriber, "describe", ask)
    monkeypatch.setattr(StageStore, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        run(config(), bucket)
    journal = StageStore(bucket / "candidates").unfinished(1)
    assert len(journal.read_text().splitlines()) == asked[1]
    monkeypatch.setattr(StageStore, "write_shard", write)
    run(config(), bucket)
    assert asked[2:] == asked[2:3]
    assert hashes(bucket) == hashes(made[2])
    assert not journal.exists()
