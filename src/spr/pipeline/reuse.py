"""Taking over finished stages of another run whose inputs and settings agree (`spr run … --reuse RUN`)."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from spr.config import Config, changed_fields
from spr.core.atomic import atomic_file, has_sha256
from spr.core.errors import ConfigError, RunError
from spr.core.locks import check_free, hold
from spr.core.ordered_map import ordered_map
from spr.core.paths import as_path, is_file, is_remote
from spr.core.remote import RemotePath
from spr.models.registry import local_weights
from spr.pipeline.stage import Stage
from spr.runs.images import IMAGES, check_images
from spr.runs.reader import Run
from spr.runs.store import Manifest, StageStore

_WAIT = "wait for it, or leave --reuse out"


class OtherRun:
    """A run whose finished stages another run may take over.

    Raises:
        RunError: if it is not a run.
        ConfigError: if its config is not valid.
    """

    def __init__(self, path: Path) -> None:
        self.path = as_path(path)
        self.config = Run(self.path).config
        self._images_checked = False
        self._refused: set[str] = set()  # stages made by other weights, and those that read them

    @contextlib.contextmanager
    def locked(self, out: Path) -> Iterator[None]:
        """Keep the run's stages from changing meanwhile.

        Raises:
            ConfigError: if ``out`` is the same run.
            RunError: if the run is in use.
        """
        same_kind = is_remote(out) == is_remote(self.path)
        if same_kind and (out.absolute() == self.path.absolute() or (out.exists() and out.samefile(self.path))):
            fix = "leave --reuse out: a run always keeps its own finished stages"
            raise ConfigError("--reuse names the run itself", got=self.path, fix=fix)
        path, busy = self.path / ".lock", RunError(f"{self.path} is in use by another run", fix=_WAIT)
        with contextlib.ExitStack() as held:
            if isinstance(path, RemotePath):  # which may be only readable; what is copied is checked
                check_free(path, busy)
            else:
                with contextlib.suppress(FileNotFoundError):  # a run that was copied without it
                    held.enter_context(hold(path, busy, shared=True, create=False))
            yield

    def give(self, stage: Stage, config: Config, out: Path, fingerprints: Mapping[str, str]) -> str | None:
        """Put a finished stage into the run folder ``out``; returns why it doesn't fit, or None.

        ``fingerprints`` are those of this stage and of those before it, in ``out``. The files are hard links where
        the file system allows it, and copies otherwise.

        Raises:
            RunError: if the stage agrees, but images have changed since it was made.
        """
        own, other = StageStore(out / stage.name), StageStore(self.path / stage.name)
        manifest = other.manifest()
        if manifest is None or not manifest.complete or not manifest.shards:
            return "it is not finished there"
        if manifest.fingerprint != fingerprints[stage.name]:
            return self._difference(stage, config, fingerprints)
        if before := self._refused.intersection(stage.inputs):
            self._refused.add(stage.name)
            return f"its input `{min(before)}` differs"
        if (changed := changed_weights(manifest, local_weights(config, stage.models_for(config)))) is not None:
            self._refused.add(stage.name)
            return changed
        files = {other.part(shard.index): shard.sha256 for shard in manifest.shards}
        files |= {other.drops(shard.index): shard.dropped_sha256 for shard in manifest.shards}
        if (expected := manifest.source.get("dropped_sha256")) is not None:
            files[other.source_drops] = expected
        checked = ordered_map(lambda item: has_sha256(*item), files.items())
        damaged = [path.name for (path, _), unchanged in checked if not unchanged]
        if damaged:
            return f"{', '.join(damaged[:3])} changed or missing there"
        if not self._images_checked:  # also where `out` has its own objects: they don't depend on the pixels
            check_images(self.path, config.annotations, write=False)
            self._images_checked = True
        if stage.name == "objects" and is_file(self.path / IMAGES):
            _place(self.path / IMAGES, out / IMAGES)
        own.folder.mkdir(parents=True, exist_ok=True)
        for _ in ordered_map(lambda path: _place(path, own.folder / path.name), files):
            pass
        own.save(manifest)
        return None

    def _difference(self, stage: Stage, config: Config, fingerprints: Mapping[str, str]) -> str:
        changed = changed_fields(stage.settings(self.config), stage.settings(config))
        if changed:
            return "; ".join(f"{name}: {old} → {new}" for name, (old, new) in changed.items())
        for name in stage.inputs:
            manifest = StageStore(self.path / name).manifest()
            if manifest is None or manifest.fingerprint != fingerprints[name]:
                return f"its input `{name}` differs"
        return "it was made by another version of SPR" if stage.inputs else "the annotations differ"


def changed_weights(manifest: Manifest, now: Mapping[str, str]) -> str | None:
    """Which model of a stage is not the one that made its shards, and has the same folder; None if none is."""
    for name in sorted({*manifest.weights, *now}):
        old, new = (found.get(name, "not recorded") for found in (manifest.weights, now))
        if old != new:
            return f"the weights of `{name}` have changed: {old} → {new}"
    return None


def take_over(
    others: Sequence[OtherRun], stage: Stage, config: Config, out: Path, fingerprints: Mapping[str, str]
) -> str | None:
    """Take a stage over from the first run where it agrees; returns a line about it, or None."""
    begun = StageStore(out / stage.name).manifest()
    if begun is not None:
        return None if begun.complete or not others else f"not taken over: it has begun in {out}"
    refused = []
    for other in others:
        reason = other.give(stage, config, out, fingerprints)
        if reason is None:
            return f"taken over from {other.path}"
        refused.append(f"not taken over from {other.path}: {reason}")
    return "; ".join(refused) or None


def _place(source: Path, target: Path) -> None:
    """Put a file into a run: a hard link, or a copy; files of a run are only ever replaced as a whole."""
    if not is_remote(source) and not is_remote(target):
        target.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    with source.open("rb") as original, atomic_file(target) as copy:
        shutil.copyfileobj(original, copy)
