"""Joins a Ray cluster, or starts one here and cleans up after it; what Ray prints stays out of the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spr.config import EngineConfig
from spr.core.errors import RunError, missing_package

_OBJECT_STORE = 512 * 2**20  # bytes, of a cluster that is started here: only the rows of a few shards are in it
_CONNECT = 10.0  # seconds


@contextlib.contextmanager
def connected(settings: EngineConfig) -> Iterator[None]:
    """Be connected to a cluster, which is started if there is none. Leaves things as they were."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # prints nothing; what ends a run is in its error
    try:
        import ray
    except ModuleNotFoundError as error:
        raise missing_package(error, "engine.name: ray") or error from error
    if ray.is_initialized():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    session = _start_or_join(settings)
    try:
        # Ray's own handler prints a C++ stack trace, and ends this process without its session being deleted.
        _handle_sigterm(_interrupt if before in (signal.SIG_DFL, None) else before)
        yield
    finally:
        ray.shutdown()
        _handle_sigterm(before)
        if session is not None:
            _delete_session(session)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _handle_sigterm(handler: Any) -> None:
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _start_or_join(settings: EngineConfig) -> Path | None:
    """Connect to a cluster, or start one; returns the folder in which Ray keeps the session of a cluster started here.

    Raises:
        RunError: if there is no cluster at the address.
    """
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    address = os.environ.get("RAY_ADDRESS") or "auto" if settings.address == "auto" else settings.address
    where = address
    try:
        with _quiet():
            _check_port(address)
            if address == "auto":
                try:
                    ray.init(address="auto", **options)
                except ConnectionError:
                    address = "local"
                else:
                    return None
            if address == "local":
                options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
            context: Any = ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        fix = "start it (ray start --head), correct engine.address, or use engine.address=local"
        raise RunError(f"There is no Ray cluster at {where}", got=" ".join(str(error).split())[:300], fix=fix) from None
    return Path(context.address_info["session_dir"]) if address == "local" else None


def _delete_session(folder: Path) -> None:
    """Delete what Ray has left of a cluster that was started here: its logs and sockets."""
    shutil.rmtree(folder, ignore_errors=True)
    latest = folder.parent / "session_latest"
    with contextlib.suppress(OSError):
        if latest.is_symlink() and not latest.exists():
            latest.unlink()


def _check_port(address: str) -> None:
    """Raise OSError if nothing listens at ``HOST:PORT``: Ray would end this process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT).close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray prints while it starts out of the terminal."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def lost() -> Iterator[None]:
    """Turn the errors of a cluster that is gone into a `RunError`."""
    import ray

    try:
        yield
    except (ray.exceptions.RaySystemError, ray.exceptions.LocalRayletDiedError, ConnectionError) as error:
        fix = "run the same command again, once the cluster is there: finished shards are kept"
        raise RunError("The Ray cluster is gone", got=" ".join(str(error).split())[:300], fix=fix) from None
