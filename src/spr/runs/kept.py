"""Results that depend only on a run's tables, kept in the run folder so that they are computed once."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spr import __version__
from spr.core.atomic import write_atomically
from spr.core.documents import read_json
from spr.core.errors import RunError, StorageError
from spr.runs.store import StageStore

_STAGES = ("regions", "candidates", "scores", "pairs")


def kept(run: Path, name: str, options: Any, compute: Callable[[], Any]) -> Any:
    """The JSON value of ``compute``, from the file ``RUN/name`` if it was computed from the same rows and options.

    A file that can't be read or written only costs the time to compute the value again.

    Raises:
        RunError: if a stage up to ``pairs`` is damaged; and what ``compute`` raises.
    """
    manifests = [StageStore(run / stage).manifest() for stage in _STAGES]
    shards = [[shard.sha256 for shard in manifest.shards] if manifest else None for manifest in manifests]
    key = hashlib.sha256(json.dumps([__version__, options, shards]).encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = read_json(run / name)
        if found["key"] == key:
            return found["value"]
    value = compute()
    with contextlib.suppress(RunError, StorageError):
        write_atomically(run / name, json.dumps({"key": key, "value": value}, indent=1).encode())
    return value
