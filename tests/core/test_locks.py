"""Locks on local disks and in object storage: one holder, or several that share; a dead holder's is taken over."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from spr.core import locks
from spr.core.errors import RunError
from spr.core.locks import check_free, check_held, hold
from spr.core.remote import NoConditionsError, RemotePath

BUSY = RunError("the folder is in use", fix="wait for it")


@pytest.fixture(params=["disk", "store"])
def place(request, tmp_path):
    return tmp_path if request.param == "disk" else request.getfixturevalue("bucket")


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(locks, "REFRESH", 0.05)
    monkeypatch.setattr(locks, "WATCHED", 0.3)
    monkeypatch.setattr(locks, "_POLL", 0.05)


def holders(path):
    return json.loads(path.read_bytes())["holders"]


def write_holder(path, *, seconds=0):
    seen = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
    entry = {"host": "elsewhere", "pid": 7, "process": "boot:pid 1", "exclusive": True, "since": seen}
    content = {"format": "spr lock", "holders": {"other": {**entry, "refreshed": seen}}}
    path.write_bytes(json.dumps(content).encode())


def test_a_lock_is_held_by_one_or_shared(place):
    path = place / ".lock"
    with hold(path, BUSY):
        for shared in (False, True):
            with pytest.raises(RunError, match="the folder is in use"), hold(path, BUSY, shared=shared):
                pass
    with hold(path, BUSY, shared=True) as lock, hold(path, BUSY, shared=True):
        with pytest.raises(RunError, match="the folder is in use"), hold(path, BUSY):
            pass
        with pytest.raises(RunError, match="only one"), lock.alone(RunError("only one can")):
            pass
    with hold(path, BUSY, shared=True) as lock:
        with lock.alone(BUSY), pytest.raises(RunError), hold(path, BUSY, shared=True):
            pass
        with hold(path, BUSY, shared=True):
            pass
    with hold(path, BUSY):
        pass


def test_who_holds_a_lock_in_a_store_is_said(bucket):
    with hold(bucket / ".lock", BUSY), pytest.raises(RunError) as caught, hold(bucket / ".lock", BUSY):
        pass
    assert f"process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%dT}" in caught.value.got
    assert "wait for it; if that process is dead, its lock can be taken over 120 s after" in caught.value.fix


def test_a_lock_of_a_process_that_has_ended_on_this_machine_is_taken_over_at_once(bucket):
    script = (
        "import os, sys\nfrom spr.core.errors import RunError\nfrom spr.core.locks import hold\n"
        "from spr.core.paths import as_path\n"
        "held = hold(as_path(sys.argv[1]), RunError('busy'))\nheld.__enter__()\nos._exit(0)\n"
    )
    path = bucket / ".lock"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60)
    assert len(holders(path)) == 1
    started = time.monotonic()
    with hold(path, BUSY):
        assert [holder["pid"] for holder in holders(path).values()] == [os.getpid()]
    assert time.monotonic() - started < 5


@pytest.mark.usefixtures("fast")
def test_a_silent_lock_is_taken_over_after_watching_it(bucket, capsys):
    path = bucket / ".lock"
    write_holder(path, seconds=119)
    with pytest.raises(RunError, match="elsewhere, process 7"), hold(path, BUSY):
        pass
    write_holder(path, seconds=130)
    started = time.monotonic()
    with hold(path, BUSY):
        assert "other" not in holders(path)
    assert time.monotonic() - started >= 0.3
    assert "its holder is silent" in capsys.readouterr().err


@pytest.mark.usefixtures("fast")
def test_a_lock_is_not_taken_from_a_living_process_whose_clock_is_wrong(bucket):
    path = bucket / ".lock"
    write_holder(path, seconds=3600)
    stop = threading.Event()

    def live():
        while not stop.wait(0.1):
            write_holder(path, seconds=3600)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(RunError, match="the folder is in use"), hold(path, BUSY):
            pass
    finally:
        stop.set()
        thread.join()


@pytest.mark.usefixtures("fast")
def test_a_lock_is_refreshed_while_it_is_held(bucket):
    path = bucket / ".lock"
    with hold(path, BUSY):
        first = next(iter(holders(path).values()))["refreshed"]
        deadline = time.monotonic() + 10
        while next(iter(holders(path).values()))["refreshed"] == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert next(iter(holders(path).values()))["refreshed"] > first
        check_held(bucket / "objects" / "manifest.json")
    assert holders(path) == {}


@pytest.mark.usefixtures("fast")
def test_a_lock_that_another_process_took_is_lost(bucket):
    path = bucket / ".lock"
    with hold(path, BUSY):
        write_holder(path)
        time.sleep(1)
        with pytest.raises(RunError, match=r"has lost .*\.lock(.|\n)*taken over by elsewhere, process 7"):
            check_held(bucket / "objects" / "manifest.json")
        check_held(bucket.parent / "another" / "manifest.json")
    assert list(holders(path)) == ["other"]


def test_a_lock_that_can_not_be_refreshed_is_lost(bucket, s3, monkeypatch):
    monkeypatch.setattr(locks, "REFRESH", 0.05)
    monkeypatch.setattr(locks, "EXPIRES", 0.6)
    with hold(bucket / ".lock", BUSY):
        s3.inject("403 AccessDenied")
        time.sleep(0.7)
        with pytest.raises(RunError, match="could not be refreshed for"):
            check_held(bucket / "manifest.json")
        s3.calm()


def test_a_lock_that_was_copied_from_a_disk_is_free_and_anything_else_is_damaged(bucket):
    path = bucket / ".lock"
    path.write_bytes(b"")
    with hold(path, BUSY):
        pass
    for content in (b"[]", b"{", b'{"format": "other", "holders": {}}', b'{"format": "spr lock", "holders": {"a": 1}}'):
        path.write_bytes(content)
        with pytest.raises(RunError, match="is damaged"), hold(path, BUSY):
            pass


def test_a_run_that_is_only_read_needs_no_lock_but_that_nobody_writes(bucket):
    path = bucket / ".lock"
    check_free(path, BUSY)
    assert not path.exists()
    with hold(path, BUSY), pytest.raises(RunError, match="the folder is in use"):
        check_free(path, BUSY)
    with hold(path, BUSY, shared=True):
        check_free(path, BUSY)
    write_holder(path, seconds=200)
    check_free(path, BUSY)


def test_many_that_share_a_lock_all_get_it(bucket):
    errors = []

    def share():
        try:
            with hold(bucket / ".lock", BUSY, shared=True):
                time.sleep(0.05)
        except RunError as error:
            errors.append(error)

    threads = [threading.Thread(target=share) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert holders(bucket / ".lock") == {}


def test_without_conditional_writes_a_warning_says_what_can_not_be_promised(bucket, monkeypatch, capsys):
    put = RemotePath.put

    def unconditional(self, data, *, only=None):
        if only is not None:
            raise NoConditionsError("no conditions")
        return put(self, data)

    monkeypatch.setattr(locks, "_conditional", {})
    monkeypatch.setattr(RemotePath, "put", unconditional)
    with hold(bucket / ".lock", BUSY):
        assert len(holders(bucket / ".lock")) == 1
    assert "s3://bucket has no conditional writes, so SPR can't keep two processes from" in capsys.readouterr().err
