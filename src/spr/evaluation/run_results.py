"""The results of a run, ``RUN/metrics.json``: before and after training, and under names of the user's choice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from spr.core import FORMAT_VERSION
from spr.core.atomic import write_atomically
from spr.core.documents import read_json
from spr.core.errors import ConfigError, RunError
from spr.evaluation.result import Result, check_result
from spr.runs.folder import is_run, lock_run, not_a_run

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,63}")
_OTHER_KEYS = ("format_version", "counts", "seconds")


def read_metrics(run: Path) -> dict[str, Any]:
    """The content of ``RUN/metrics.json``; empty before the first result.

    Raises:
        RunError: if it is damaged, or has another format version.
    """
    path = run / "metrics.json"
    try:
        raw = read_json(path)
        if not isinstance(raw, dict) or not all(isinstance(part, dict) for part in named(raw).values()):
            raise ValueError("not an object with `before` and `after`")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    version = raw.get("format_version")
    if raw and version != FORMAT_VERSION:
        got, fix = version or "1 (none is given)", "evaluate again with this version of SPR, or move the file away"
        raise RunError(f"{path} has another format version", got=got, expected=FORMAT_VERSION, fix=fix)
    return raw


def named(metrics: dict[str, Any]) -> dict[str, Any]:
    """The results of ``metrics.json`` by name and task: those before and after training first."""
    names = dict.fromkeys([*(name for name in ("before", "after") if name in metrics), *metrics])
    return {name: metrics[name] for name in names if name not in _OTHER_KEYS and metrics[name] is not None}


def damaged(path: Path, error: Exception) -> RunError:
    """The error for a ``metrics.json`` that can't be read."""
    expected = '{"before": {TASK: RESULT}, "after": {…}} with RESULT as `spr evaluate --out` writes it'
    return RunError(f"{path} is damaged", got=error, expected=expected, fix="evaluate again, or move the file away")


def check_target(run: Path, name: str, task: str, *, answers: bool) -> None:
    """Raise an error if `add_result` would fail; to be called before the model is loaded."""
    if not _NAME.fullmatch(name) or name in _OTHER_KEYS:
        expected = "before, after, or a name of letters, digits and . _ = + -"
        raise ConfigError("--as is not a name", got=repr(name), expected=expected)
    if not is_run(run):
        raise not_a_run(run, "give the folder that `spr run CONFIG --out RUN` has made")
    with lock_run(run):
        read_metrics(run)
    check_result(result_path(run, name, task), answers=answers)


def result_path(run: Path, name: str, task: str) -> Path:
    """The file of a run's result."""
    return run / "evaluation" / f"{name}-{task}.json"


def add_result(run: Path, name: str, result: Result) -> str | None:
    """Write a result into a run: its files into ``RUN/evaluation``, and its entry into ``RUN/metrics.json``.

    Returns:
        What was replaced, as a sentence; None if there was no result of this name and task.

    Raises:
        RunError: if a file can't be written or another command works in the run. The answers of a model are kept.
    """
    path = result_path(run, name, result.task)
    entry = result.write(path, run)
    try:
        with lock_run(run):
            return put(run, name, result.task, entry)
    except RunError as error:
        answers = f" with --predictions {run / entry['answers']}" if "answers" in entry else ""
        error.add_note(f"  The result is in {path}. To add it to the run, evaluate again{answers}.")
        raise


def put(run: Path, name: str, task: str, entry: dict[str, Any], *, seconds: float | None = None) -> str | None:
    """Set an entry of ``RUN/metrics.json`` in a run that this process has locked; returns what it replaced.

    ``seconds`` is how long the evaluation took, all tasks of the name up to this one together.
    """
    metrics = {"format_version": FORMAT_VERSION, "before": {}, "after": {}, **read_metrics(run)}
    before = metrics.setdefault(name, {}).get(task)
    metrics[name][task] = entry
    metrics.setdefault("counts", {})[task] = entry["n"]
    if seconds is not None:
        metrics.setdefault("seconds", {})[name] = seconds
    write_atomically(run / "metrics.json", (json.dumps(metrics, indent=2, ensure_ascii=False) + "\n").encode())
    if not isinstance(before, dict):
        return None
    old, new = ((one.get("protocol") or {}).get("model") for one in (before, entry))
    other = f", of another model: {old}, now {new}" if old != new else ""
    return f"Replaces the earlier result {name} of {task}{other}."
