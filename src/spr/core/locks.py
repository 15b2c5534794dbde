"""Locks, so that no two processes write into one folder: a locked file on local disks, an object in object storage.

The kernel releases a lock on a local disk when its process ends. In object storage, the object ``.lock`` names its
holders, each of which refreshes its entry. A holder that has not done so for `EXPIRES` seconds, or whose process on
this machine has ended, has lost the lock. All changes are conditional writes. That the others' clocks may differ is
harmless: nobody loses a lock that it was seen to refresh within `WATCHED` seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

from spr.core.documents import parse_json
from spr.core.errors import RunError, SprError, StorageError
from spr.core.remote import ConflictError, NoConditionsError, RemotePath, Version
from spr.core.terminal import echo

REFRESH = 20.0
"""Seconds between two signs of life of a lock's holder."""
EXPIRES = 120.0
"""Seconds without a sign of life after which another process may take a lock over."""
WATCHED = 45.0
"""Seconds for which a process watches an expired lock before it takes it over."""
_POLL = 3.0
_FORMAT = "spr lock"
_TEXTS = ("host", "process", "since", "refreshed")
_MOST_CONFLICTS = 50


class Lock(Protocol):
    """A lock that this process holds."""

    def alone(self, busy: SprError) -> contextlib.AbstractContextManager[None]:
        """Hold a shared lock alone during a block; raises ``busy`` if others hold it too."""


@contextlib.contextmanager
def hold(path: Path, busy: SprError, *, shared: bool = False, create: bool = True) -> Iterator[Lock]:
    """Hold the lock of the file or object ``path`` during a block, alone or ``shared``.

    Without ``create``, the file must be there, and is not written to.

    Raises:
        RunError: ``busy``, with who has the lock where that is known.
        OSError: if the file can't be opened.
        StorageError: if the store can't be reached.
    """
    if isinstance(path, RemotePath):
        lock = _RemoteLock(path, busy, shared=shared)
        with lock.held():
            yield lock
        return
    with path.open("a" if create else "rb") as file:
        if not try_lock(file, shared=shared):
            raise busy
        yield _FileLock(file)


def try_lock(file: IO[Any], *, shared: bool = False) -> bool:
    """Lock an open file on a local disk until it is closed; False if another process has locked it."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(file: IO[Any]) -> None:
    """Lock an open file on a local disk until it is closed, when all others have released it."""
    fcntl.flock(file, fcntl.LOCK_EX)


class _FileLock:
    def __init__(self, file: IO[Any]) -> None:
        self._file = file

    @contextlib.contextmanager
    def alone(self, busy: SprError) -> Iterator[None]:
        if not try_lock(self._file):
            raise busy
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_SH)


# ── object storage ────────────────────────────────────────────────────────────────────────────────────────────────────

_held: list[_RemoteLock] = []
_conditional: dict[str, bool] = {}
"""Whether a bucket honours conditional writes, as far as this process has tried."""


def check_held(path: Path) -> None:
    """Raise `RunError` if this process has lost the lock of a folder in object storage that contains ``path``."""
    for lock in _held:
        if isinstance(path, RemotePath) and path.is_relative_to(lock.path.parent):
            lock.check()


def check_free(path: RemotePath, busy: SprError) -> None:
    """Raise ``busy`` if a process holds the lock ``path`` alone; nothing is written."""
    lock = _RemoteLock(path, busy, shared=True)
    holders, _ = lock.read()
    for holder in holders.values():
        if holder["exclusive"] and not (_has_ended(holder) or _age(holder) > EXPIRES):
            raise lock.busy_with(holder)


class _Watch(Exception):  # noqa: N818 - not an error: look again later
    pass


class _RemoteLock:
    def __init__(self, path: RemotePath, busy: SprError, *, shared: bool) -> None:
        self.path, self._busy, self._shared = path, busy, shared
        self._token = secrets.token_hex(8)
        self._since = _now()
        self._alone = not shared
        self._seen: dict[str, tuple[str, float]] = {}  # others' last sign of life, and when it was first seen
        self._lost: str | None = None
        self._refreshed = time.monotonic()
        self._released = threading.Event()
        self._changing = threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._acquire()
        _held.append(self)
        thread = threading.Thread(target=self._refresh, name=f"lock {self.path}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._released.set()
            _held.remove(self)
            with contextlib.suppress(StorageError, RunError):
                self._change(lambda holders: {t: h for t, h in holders.items() if t != self._token})

    @contextlib.contextmanager
    def alone(self, busy: SprError) -> Iterator[None]:
        def enter(holders: dict[str, Any]) -> dict[str, Any]:
            if others := [holder for token, holder in holders.items() if token != self._token]:
                raise self.busy_with(others[0], busy)
            return {self._token: self._entry()}

        self._alone = True
        try:
            self._change(enter)
            yield
        finally:
            self._alone = not self._shared
            self._change(lambda holders: {**holders, self._token: self._entry()})

    def check(self) -> None:
        silent = time.monotonic() - self._refreshed
        if self._lost is None and silent > EXPIRES - 2 * REFRESH:
            self._lost = f"the lock could not be refreshed for {silent:.0f} s"
        if self._lost is not None:
            fix = "see that no other process uses this folder, then run the same command again: it resumes"
            raise RunError(f"This process has lost {self.path}", got=self._lost, fix=fix)

    def read(self) -> tuple[dict[str, Any], Version | None]:
        try:
            data, info = self.path.read()
        except FileNotFoundError:
            return {}, None
        if not data:  # a lock on a local disk, copied with its run
            return {}, info.version
        try:
            content = parse_json(data)
            holders = content["holders"]
            texts = [holder[name] for holder in holders.values() for name in _TEXTS]
            if content["format"] != _FORMAT or not all(isinstance(text, str) for text in texts):
                raise ValueError("it is not a lock of SPR")
            return {token: {**holder, "exclusive": bool(holder["exclusive"])} for token, holder in holders.items()}, (
                info.version
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunError(f"{self.path} is damaged", got=error, fix=f"delete {self.path}") from None

    def busy_with(self, holder: dict[str, Any], busy: SprError | None = None) -> SprError:
        busy = busy or self._busy
        got = f"{holder['host']}, process {holder.get('pid')}, since {holder['since']}, seen {_age(holder):.0f} s ago"
        fix = f"{busy.fix}; if that process is dead, its lock can be taken over {EXPIRES:.0f} s after it was last seen"
        return type(busy)(busy.what, got=got, fix=fix)

    def _acquire(self) -> None:
        waits = False
        while True:
            try:
                self._change(self._enter)
                break
            except _Watch:
                if not waits:
                    echo(f"{self.path}: its holder is silent; taking it over in {WATCHED:.0f} s …", err=True)
                waits = True
                time.sleep(min(_POLL, WATCHED / 5))
        self._try_conditions()

    def _enter(self, holders: dict[str, Any]) -> dict[str, Any]:
        dead = set()
        for token, holder in holders.items():
            if self._shared and not holder["exclusive"]:
                continue
            sign, first = self._seen.setdefault(token, (holder["refreshed"], time.monotonic()))
            if not _has_ended(holder):
                if _age(holder) <= EXPIRES or sign != holder["refreshed"]:
                    raise self.busy_with(holder)
                if time.monotonic() - first < WATCHED:
                    raise _Watch
            dead.add(token)
        kept = {token: holder for token, holder in holders.items() if token not in dead}
        return {**kept, self._token: self._entry()}

    def _entry(self) -> dict[str, Any]:
        process = {"host": socket.gethostname(), "pid": os.getpid(), "process": _process(os.getpid())}
        return {**process, "exclusive": self._alone, "since": self._since, "refreshed": _now()}

    def _refresh(self) -> None:
        def again(holders: dict[str, Any]) -> dict[str, Any]:
            if self._token not in holders:
                others = ", ".join(f"{holder['host']}, process {holder.get('pid')}" for holder in holders.values())
                self._lost = f"taken over by {others or 'another process, which has ended'}"
                raise _Watch
            return {**holders, self._token: self._entry()}

        while not self._released.wait(REFRESH):
            try:
                self._change(again)
            except _Watch:
                return
            except SprError:
                continue  # `check` counts the time

    def _change(self, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Replace the holders by ``edit`` of them, again if another process changes them meanwhile."""
        with self._changing:
            for attempt in range(_MOST_CONFLICTS):
                started = time.monotonic()
                holders, version = self.read()
                data = _content(edit(holders))
                try:
                    if _conditional.get(self.path.anchor, True):
                        self.path.put(data, only="new" if version is None else version)
                    else:
                        self.path.put(data)
                    self._refreshed = started
                    return
                except NoConditionsError:
                    _without_conditions(self.path.anchor, "has no conditional writes")
                except ConflictError:
                    if attempt == _MOST_CONFLICTS - 1:
                        raise
                    time.sleep(random.uniform(0.05, 0.5))

    def _try_conditions(self) -> None:
        """Find out whether the store ignores conditions: then it puts a new object where there is one."""
        if self.path.anchor in _conditional:
            return
        holders, _ = self.read()
        try:
            self.path.put(_content(holders) + b"\n", only="new")
        except ConflictError:
            _conditional[self.path.anchor] = True
        else:
            _without_conditions(self.path.anchor, "ignores the conditions of writes")


def _without_conditions(bucket: str, why: str) -> None:
    _conditional[bucket] = False
    echo(f"Note: {bucket} {why}, so SPR can't keep two processes from using one run. Start only one.", err=True)


def _content(holders: dict[str, Any]) -> bytes:
    return (json.dumps({"format": _FORMAT, "holders": holders}, indent=1) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _age(holder: dict[str, Any]) -> float:
    """Seconds since the last sign of life, by the clocks of both machines; infinite if it is not a time."""
    try:
        return max((datetime.now(UTC) - datetime.fromisoformat(holder["refreshed"])).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return float("inf")


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine, as far as it tells its processes apart, that has ended."""
    pid = holder.get("pid")
    machine, _, started = holder["process"].partition(" ")
    own_machine, _, _ = _process(os.getpid()).partition(" ")
    if not machine or machine != own_machine or type(pid) is not int:
        return False
    return _process(pid) != f"{machine} {started}"


def _process(pid: int) -> str:
    """What identifies a process: the boot and PID namespace of its machine, and when it started; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""
    return f"{boot}:{namespace} {started}"
