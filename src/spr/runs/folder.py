"""The run folder around the stages: its lock, its config and inputs, its log."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml

from spr.config import Config, changed_fields
from spr.core.errors import InputError, RunError
from spr.pipeline.stage import Stage
from spr.core.progress import MEGABYTE, Progress
from spr.core.atomic import is_temporary, sha256, write_atomically
from spr.runs.store import StageStore


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the run folder for this process; the lock goes with the process, however it ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        strangers = [p.name for p in out.iterdir() if p.name != ".lock" and not is_temporary(p)]
        if strangers and not (out / "config.yaml").is_file():
            fix = "choose a new or empty folder for --out"
            raise RunError(f"{out} holds other things than a run", got=", ".join(sorted(strangers)[:5]), fix=fix)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise RunError(f"{out} can't be used as a run folder", got=error, fix="choose another --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{out} is in use by another run", fix="wait for it, or choose another --out") from None
        for path in filter(is_temporary, out.iterdir()):
            if not path.is_dir():
                path.unlink()
        yield


def adopt(config: Config, out: Path, stages: Sequence[Stage]) -> dict[str, Any]:
    """Write the config and what identifies the annotations into the run, or hold them against what is there.

    A field may change as long as no stage that depends on it has begun; those that decide no row may always.

    Returns:
        What identifies the input: part of every stage's fingerprint.

    Raises:
        RunError: naming the fields that may not change, or the annotations if they have.
        InputError: if the annotations can't be read.
    """
    path, new = out / "config.yaml", config.model_dump(mode="json")
    begun = [stage for stage in stages if StageStore(out / stage.name).manifest() is not None]
    if path.is_file():
        changed = changed_fields(_read_config(path), new)
        changed = {key: values for key, values in changed.items() if not config.is_runtime_field(key)}
        deciding = {
            stage.name: {key for key in changed if key.split(".")[0] in stage.deciding(config)} for stage in begun
        }
        spoilt = [name for name, fields in deciding.items() if fields]
        if spoilt:
            fields = sorted(set().union(*deciding.values()))
            lines = "; ".join("{}: {} → {}".format(key, *changed[key]) for key in fields)
            after = list(deciding)[list(deciding).index(spoilt[0]) :]
            fix = f"use the old values, or another --out, or delete {' and '.join(f'{name}/' for name in after)}"
            raise RunError(f"{out} was made under another config", got=lines, expected="no change", fix=fix)
    identity, before = _identify(config.annotations.path, out / "inputs.json")
    if begun and before not in (None, identity["sha256"]):
        fix = "choose another --out; this folder's rows come from the file as it was"
        raise RunError(f"{config.annotations.path} has changed since {out} was made", fix=fix)
    write_atomically(path, config.to_yaml().encode())
    write_atomically(out / "inputs.json", json.dumps(identity, indent=1).encode())
    return {"annotations_sha256": identity["sha256"]}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{path} is damaged", got=error, fix="restore it, or choose another --out") from None
    if not isinstance(raw, dict):
        raise RunError(f"{path} is damaged", got=raw, fix="restore it, or choose another --out")
    return raw


def _identify(annotations: Path, known: Path) -> tuple[dict[str, Any], str | None]:
    """What tells the annotations from others, and the sha256 that is known from before.

    The file is only hashed where its path, size or time are not as they were.
    """
    try:
        stat = annotations.stat()
        if not S_ISREG(stat.st_mode):
            raise InputError(f"{annotations} is not a file", fix="set annotations.path to a JSON file")
        identity = {"path": str(annotations), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        before = _read_known(known)
        same = all(before.get(key) == value for key, value in identity.items())
        digest = before["sha256"] if same else _hash(annotations, stat.st_size)
    except FileNotFoundError:
        fix = "set annotations.path, relative to the current folder"
        raise InputError(f"There is no file {annotations}", fix=fix) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{annotations} can't be read", got=error, fix="set annotations.path to a JSON file") from None
    return {**identity, "sha256": digest}, before.get("sha256")


def _hash(path: Path, size: int) -> str:
    with Progress(f"hashing {path.name}", size // MEGABYTE, "MB") as progress:
        return sha256(path, lambda done: progress.advance(done // MEGABYTE - progress.done))


def _read_known(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        # Nothing is lost without it: the stages' fingerprints hold the sha256, too.
        return {}
    return known if isinstance(known, dict) and "sha256" in known else {}


def log(out: Path, event: str, **details: Any) -> None:
    """Add a line to ``RUN/log.jsonl``."""
    entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **details}
    try:
        with (out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise RunError(f"{out / 'log.jsonl'} can't be written", got=error, fix="make room, or allow it") from None
