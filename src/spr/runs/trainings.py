"""The trainings of a run: where each one is, its config and its lock.

The default training is in the run folder itself, ``RUN/adapter`` and ``RUN/training``, under ``RUN/config.yaml``. The
others are in ``RUN/trainings/NAME``, with a ``config.yaml`` of their own.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from spr.config import Config, TrainingPart, apply_overrides, load_config, load_training, make_config
from spr.core.atomic import write_atomically
from spr.core.errors import ConfigError, RunError
from spr.core.locks import hold
from spr.core.paths import is_dir, is_file, is_remote
from spr.runs.folder import (
    adopted_config,
    check_config,
    check_run_version,
    is_run,
    lock_run,
    not_a_run,
    read_inputs,
    write_config,
)

TRAININGS = "trainings"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,99}")


def training_place(run: Path, name: str | None = None) -> Path:
    """The folder that contains ``adapter/`` and ``training/``: the run's own, or ``RUN/trainings/NAME``.

    Raises:
        ConfigError: if the name is not one that a folder can have on every system.

    >>> training_place(Path("runs/mine"), "lr1e-4").as_posix()
    'runs/mine/trainings/lr1e-4'
    """
    if name is None:
        return run
    if not _NAME.fullmatch(name) or name.endswith("."):
        expected = "1 to 100 letters, digits or . _ + = , - beginning with a letter or digit"
        raise ConfigError("A training can't have this name", got=repr(name), expected=expected, fix="change --name")
    return run / TRAININGS / name


def training_names(run: Path) -> list[str | None]:
    """The trainings that a run has begun, by name: None is the default one, which comes first."""
    named = sorted(path.name for path in (run / TRAININGS).glob("*") if _NAME.fullmatch(path.name))
    names: list[str | None] = [None, *named]
    return [name for name in names if _has_begun(training_place(run, name))]


def _has_begun(place: Path) -> bool:
    return any(is_file(place / "training" / name) for name in ("log.jsonl", "finished.json"))


def run_config(run: Path, overrides: Iterable[str] = (), name: str | None = None) -> Config | TrainingPart:
    """The config of a run's training: that of the run, or of the training ``name`` if it has begun, with overrides.

    A run that was trained on pairs from elsewhere gives a `TrainingPart`.

    Raises:
        RunError: if the folder is not a run, or is one of the trainings of a run.
        ConfigError: if an override is not valid, or changes more than the training.
    """
    check_run_version(run)
    if run.parent.name == TRAININGS and is_file(run.parent.parent / "config.yaml"):
        fix = f"give the run, and --name {run.name}: spr train {run.parent.parent} --name {run.name}"
        raise RunError(f"{run} is a training, not a run", fix=fix)
    if not (is_remote(run) or is_dir(run)) or not is_run(run) or not is_file(run / "config.yaml"):
        fix = f"give a run folder, or a config with --out: spr train CONFIG --out {run}"
        raise not_a_run(run, fix, expected="a folder that `spr run` has made")
    changes, path, own = list(overrides), run / "config.yaml", training_place(run, name) / "config.yaml"
    has_annotations = "sha256" in read_inputs(run)
    for text in changes:
        _check_override(text, run, name, free_seed=not has_annotations)
    if not has_annotations:
        return load_training(own if is_file(own) else path, changes)
    raw = load_config(path).model_dump(mode="json")
    if name is not None and is_file(own):
        raw |= load_training(own).model_dump(mode="json", include={"seed", "training"})
    keys = [text.partition("=")[0].strip() for text in changes]
    return make_config(apply_overrides(raw, changes), str(path), keys)


def _check_override(text: str, run: Path, name: str | None, *, free_seed: bool) -> None:
    key = text.partition("=")[0].strip()
    if key.startswith("training.") or (key == "seed" and (free_seed or name is not None)):
        return
    what = f"`{key}` can't be changed in the run {run}"
    if key == "seed":
        fix = "add --name NAME: a training of that name can have its own seed"
        raise ConfigError(what, got=text, expected="the seed of its pairs", fix=fix)
    fix = f"make another run that takes over what agrees: spr run {run / 'config.yaml'} {key}=… --out NEW --reuse {run}"
    raise ConfigError(what, got=text, expected="fields of the section `training`, or `seed` with --name", fix=fix)


@contextlib.contextmanager
def open_training(run: Path, config: Config | TrainingPart, name: str | None = None) -> Iterator[None]:
    """Lock a training of a run for this process, and write its config.

    Trainings with different names can run at the same time; the run's stages can't change meanwhile. If the work in the
    block is refused with a `RunError` or a `ConfigError`, the previous config is restored.

    Raises:
        RunError: as `spr.runs.folder.open_run`, or because the training is in use.
    """
    place = training_place(run, name)
    fix = "wait for it, or choose another --name"
    with lock_run(run, shared=True) as lock, lock_folder(place / "training", "training", fix):

        def alone() -> contextlib.AbstractContextManager[None]:
            got, fix = "a changed config", "wait for it, or train with --name NAME, which leaves this file as it is"
            return lock.alone(RunError(f"{run / 'config.yaml'} is in use by another training", got=got, fix=fix))

        if name is None:
            with adopted_config(run, config, alone):
                yield
            return
        if isinstance(config, TrainingPart) and not is_file(run / "config.yaml"):
            write_config(run / "config.yaml", config, alone)
        own = TrainingPart(seed=config.seed, describer=config.describer, training=config.training)
        if isinstance(config, Config):
            config = config.model_copy(update={"seed": load_config(run / "config.yaml").seed})
        check_config(run, config)
        path = place / "config.yaml"
        previous = path.read_bytes() if path.is_file() else None
        write_config(path, own)
        try:
            yield
        except (RunError, ConfigError):
            if previous is None and not _has_begun(place):
                path.unlink()
            elif previous is not None and path.read_bytes() != previous:
                write_atomically(path, previous)
            raise


@contextlib.contextmanager
def lock_folder(folder: Path, what: str, fix: str) -> Iterator[None]:
    """Lock a folder, which is created, for this process; if it is locked already, it is in use by another ``what``.

    Raises:
        RunError: if it is in use, or can't be used.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(hold(folder / ".lock", RunError(f"{folder} is in use by another {what}", fix=fix)))
        except OSError as error:
            raise RunError(f"{folder} can't be used", got=error, fix="check the permissions") from None
        yield
