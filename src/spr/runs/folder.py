"""The run folder around the stages: its marker, version, lock, config, annotations and log.

A run folder is recognised by ``run.json``, which is written before anything else. Folders of earlier versions, which
have none, are recognised by a manifest, ``inputs.json`` or training that SPR wrote.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml

from spr.config import Config, TrainingPart, changed_fields, make_config
from spr.core import FORMAT_VERSION
from spr.core.atomic import append_line, is_temporary, sha256, write_atomically
from spr.core.documents import parse_yaml, read_json
from spr.core.errors import ConfigError, InputError, RunError
from spr.core.locks import Lock, hold
from spr.core.paths import is_file, is_remote
from spr.core.progress import MEGABYTE, Progress
from spr.core.text_input import read_text
from spr.runs.store import MANIFEST, Manifest, StageStore, is_manifest, stage_folders, version_error

MARKER = "run.json"
_MARK = {"format": "spr run"}
_OLD_MANIFEST = re.compile(rb'\s*\{\s*"format"\s*:')


@contextlib.contextmanager
def open_run(out: Path, config: Config | TrainingPart) -> Iterator[dict[str, str]]:
    """Lock a run folder for this process, write the config into it, and yield what identifies the annotations.

    In a folder that holds a run, a field may change as long as no stage whose rows depend on it has begun. Runtime
    fields, which affect no row, may always change. A ``config.yaml`` that already says the same is left as it is, with
    its comments; one that was edited by hand is never rewritten. If the work in the block is refused with a `RunError`
    or a `ConfigError` before any stage or training has begun under the new config, the previous ``config.yaml`` is
    restored, so that it keeps describing what the folder holds. Yields ``annotations_sha256`` for the stages'
    fingerprints; nothing for a `TrainingPart`, which trains on pairs from elsewhere.

    Raises:
        RunError: as `lock_run`; or naming the fields that must not change, or the annotations if they have changed; or
            because a run with annotations is asked to train on pairs from elsewhere, or the config, edited by hand,
            would have to be rewritten.
        InputError: if the annotations can't be read.
    """
    with lock_run(out), adopted_config(out, config) as inputs:
        yield inputs


@contextlib.contextmanager
def adopted_config(
    out: Path, config: Config | TrainingPart, alone: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
) -> Iterator[dict[str, str]]:
    """`open_run` in a folder that is locked; ``alone`` makes the lock exclusive while ``config.yaml`` is changed."""
    path = out / "config.yaml"
    previous = path.read_bytes() if path.is_file() else None
    begun = _progress(out)
    inputs = check_config(out, config)
    write_config(path, config, alone)
    try:
        yield inputs
    except (RunError, ConfigError):
        changed = previous is not None and path.read_bytes() != previous
        if previous is not None and changed and _progress(out) == begun:
            write_atomically(path, previous)
        raise


def _progress(out: Path) -> tuple[set[str], bytes]:
    """What a run has finished: its stages, and the log of its training."""
    log = out / "training" / "log.jsonl"
    return set(map(str, _manifests(out))), log.read_bytes() if is_file(log) else b""


@contextlib.contextmanager
def lock_run(out: Path, *, shared: bool = False) -> Iterator[Lock]:
    """Lock a run folder for this process, and yield the lock.

    The lock is released when the process ends, however it ends; in object storage, some time after that. Several
    processes can have a ``shared`` lock, during which the run's stages don't change.

    Raises:
        RunError: if SPR 0.1 made the folder, it holds something else than a run, is in use, or can't be written to.
    """
    busy = RunError(f"{out} is in use by another run", fix="wait for it, or choose another --out")
    with contextlib.ExitStack() as held:
        try:
            if not _has_content(out / MARKER, _MARK):
                entries = out.iterdir() if out.is_dir() else ()
                foreign = [path.name for path in entries if path.name != ".lock" and not is_temporary(path)]
                if foreign and not is_run(out):
                    fix = "choose a new or empty folder for --out"
                    raise RunError(f"{out} is not a run folder", got=", ".join(sorted(foreign)[:5]), fix=fix)
            check_run_version(out)
            out.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(hold(out / ".lock", busy, shared=shared))
        except OSError as error:
            raise RunError(f"{out} can't be used as a run folder", got=error, fix="choose another --out") from None
        for path in () if shared or is_remote(out) else out.iterdir():
            # Unfinished folders may belong to a living process; `atomic_dir` removes those that don't.
            if is_temporary(path) and not path.is_dir():
                path.unlink()
        if not (out / MARKER).exists():
            marker = {**_MARK, "format_version": FORMAT_VERSION}
            write_atomically(out / MARKER, (json.dumps(marker) + "\n").encode())
        yield lock


def is_run(folder: Path) -> bool:
    """Whether SPR has made a run in a folder, in whatever version."""
    if _has_content(folder / MARKER, _MARK):
        return True
    training = [folder / "training" / "finished.json", *folder.glob("training/checkpoints/step-*/checkpoint.json")]
    return (
        any(map(is_manifest, folder.glob(f"*/{MANIFEST}")))
        or "sha256" in read_inputs(folder)
        or any(_has_content(path, {"format_version": FORMAT_VERSION}) for path in training)
    )


def not_a_run(folder: Path, fix: str | None = None, *, got: str | None = None, expected: str | None = None) -> RunError:
    """The error for a folder that is not a run; of rounds or a sweep, it names the runs inside instead of ``fix``."""
    inside = [] if is_remote(folder) else sorted(path.parent.name for path in folder.glob("*/config.yaml"))
    if inside:
        more = ", …" if len(inside) > 4 else ""
        fix = f"give one of the runs in it: {', '.join(inside[:4])}{more}"
    return RunError(f"{folder} is not a run folder", got=got, expected=expected, fix=fix)


def _has_content(path: Path, fields: dict[str, Any]) -> bool:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and all(content.get(name) == value for name, value in fields.items())


def check_run_version(run: Path) -> None:
    """Refuse a run folder that another version of SPR made, without changing it. A folder without a config passes.

    Raises:
        RunError: if another version made it, its ``config.yaml`` is damaged, or SPR wrote nothing in the folder.
    """
    if not is_file(run / "config.yaml"):
        return
    version = _read_config(run / "config.yaml").get("format_version")
    # No earlier version could write to object storage.
    old = not is_remote(run) and any(map(_is_old_manifest, run.glob(f"*/{MANIFEST}")))
    if version is None and not old and not is_run(run):
        got, fix = "a config.yaml that SPR did not write", "give the folder that `spr run CONFIG --out RUN` has made"
        raise RunError(f"{run} is not a run folder", got=got, fix=fix)
    old = old or version is None
    if old or version != FORMAT_VERSION:
        raise version_error(run, 1 if old else version)


def check_config(out: Path, config: Config | TrainingPart) -> dict[str, str]:
    """Check a config against what a run folder holds, and record the annotations.

    Returns and raises what `open_run` does.
    """
    if isinstance(config, TrainingPart):
        if (out / "inputs.json").is_file():
            fix = "leave --pairs out to train on the run's own pairs, or choose another --out"
            raise RunError(f"{out} is a run with its own annotations", got="--pairs", fix=fix)
        return {}
    begun = _manifests(out)
    if (path := out / "config.yaml").is_file():
        _check_changes(_read_config(path), config, out, begun)
    before = read_inputs(out)
    identity = _identify(config.annotations.json_path, before)
    if begun and before.get("sha256") not in (None, identity["sha256"]):
        fix = "choose another --out; the rows in this folder come from the previous content of the file"
        raise RunError(f"{config.annotations.path} has changed since {out} was made", fix=fix)
    if identity != before:
        write_atomically(out / "inputs.json", json.dumps(identity, indent=1).encode())
    return {"annotations_sha256": identity["sha256"]}


def write_config(
    path: Path,
    config: Config | TrainingPart,
    alone: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> None:
    """Write a config, unless the file already says the same; a file that was edited by hand is a `RunError`."""
    if path.is_file():
        old = _read_config(path)
        changed = changed_fields(_with_defaults(old, config), config.model_dump(mode="json"))
        if not changed:
            return
        # What SPR writes has no comments, and is written in the same way again.
        if yaml.safe_dump(old, sort_keys=False, allow_unicode=True) != path.read_text(encoding="utf-8"):
            lines = "; ".join("{}: {} → {}".format(key, *values) for key, values in changed.items())
            fix = "make the change in this file, or choose another --out (or --name, for a training)"
            raise RunError(f"{path} was edited by hand, so it is not rewritten", got=lines, fix=fix)
    with alone():
        write_atomically(path, config.to_yaml().encode())


def _with_defaults(raw: dict[str, Any], config: Config | TrainingPart) -> dict[str, Any]:
    """The config of a run folder with all defaults; as it is if it is not valid."""
    content = {key: value for key, value in raw.items() if key != "format_version"}
    try:
        valid = make_config(content) if isinstance(config, Config) else TrainingPart.model_validate(content)
    except (ConfigError, ValueError):
        return content
    return valid.model_dump(mode="json")


def append_log(out: Path, event: str, **details: Any) -> None:
    """Append a line to ``RUN/log.jsonl``."""
    entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **details}
    try:
        append_line(out / "log.jsonl", json.dumps(entry))
    except OSError as error:
        fix = "free some disk space or check the permissions"
        raise RunError(f"{out / 'log.jsonl'} can't be written", got=error, fix=fix) from None


def _manifests(out: Path) -> dict[str, Manifest]:
    """The manifests of the stages that have begun, by stage; a stage comes after its inputs."""
    stores = [StageStore(folder) for folder in stage_folders(out)]
    begun = {store.folder.name: manifest for store in stores if (manifest := store.manifest()) is not None}
    inputs = {name: [stage for stage in manifest.inputs if stage in begun] for name, manifest in begun.items()}
    try:
        return {name: begun[name] for name in TopologicalSorter(inputs).static_order()}
    except CycleError as error:
        got, fix = " → ".join(error.args[1]), "restore the manifests, or choose another --out"
        raise RunError(f"The stages of {out} are inputs of each other", got=got, fix=fix) from None


def _check_changes(old: dict[str, Any], config: Config, out: Path, begun: dict[str, Manifest]) -> None:
    """Raise `RunError` if a field has changed on which the rows of a stage that has begun depend."""
    changed = changed_fields(old, config.model_dump(mode="json"))
    changed = {key: values for key, values in changed.items() if not config.is_runtime_field(key)}
    fields: set[str] = set()
    stale: list[str] = []
    for name, manifest in begun.items():
        own = {key for key in changed if not {key, key.split(".")[0]}.isdisjoint(manifest.sections)}
        fields |= own
        if own or set(stale).intersection(manifest.inputs):
            stale.append(name)
    if stale:
        lines = "; ".join("{}: {} → {}".format(key, *changed[key]) for key in sorted(fields))
        delete = " and ".join(str(out / name) for name in stale)
        fix = f"use the old values, or another --out with --reuse {out}, which keeps what agrees, or delete {delete}"
        raise RunError(f"{out} was made with another config", got=lines, expected="no change", fix=fix)


def _read_config(path: Path) -> dict[str, Any]:
    fix = "restore it, or choose another --out"
    try:
        raw = parse_yaml(read_text(path, error=RunError, fix=fix))
    except ValueError as error:
        raise RunError(f"{path} is damaged", got=str(error)[:200], fix=fix) from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise RunError(f"{path} is damaged", got=str(raw)[:200], expected="a mapping", fix=fix)
    return raw


def _is_old_manifest(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return _OLD_MANIFEST.match(file.read(64)) is not None
    return False


def _identify(annotations: Path, before: dict[str, Any]) -> dict[str, Any]:
    """What identifies the annotations; they are only hashed if path, size or modification time differ from before."""
    try:
        stat = annotations.stat()
        if not S_ISREG(stat.st_mode):
            raise InputError(f"{annotations} is not a file", fix="set annotations.path to a JSON file")
        identity = {"path": str(annotations), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        same = all(before.get(key) == value for key, value in identity.items())
        return {**identity, "sha256": before["sha256"] if same else _hash(annotations, stat.st_size)}
    except FileNotFoundError:
        fix = "set annotations.path; relative paths start at the current folder"
        raise InputError(f"There is no file {annotations}", fix=fix) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{annotations} can't be read", got=error, fix="set annotations.path to a JSON file") from None


def _hash(path: Path, size: int) -> str:
    with Progress(f"hashing {path.name}", size // MEGABYTE, "MB") as progress:
        return sha256(path, lambda done: progress.set(done // MEGABYTE))


def read_inputs(run: Path) -> dict[str, Any]:
    """What identifies the annotations, from ``RUN/inputs.json``: path, size, sha256; empty if it can't be read."""
    # The sha256 is also part of the stages' fingerprints, so the file may be missing.
    try:
        known = read_json(run / "inputs.json")
    except (OSError, ValueError):
        return {}
    ours = (
        isinstance(known, dict) and {"path", "size", "mtime_ns"} <= set(known) and isinstance(known.get("sha256"), str)
    )
    return known if ours else {}
