"""The local copy in which a training of a run in object storage works, and its exchange with the store.

Trainings append to logs and rename folders, which stores can't do. So a training works in a local folder, and whole
files are put into the store whenever a checkpoint or the adapter is complete: first the files, then ``files.json``,
which lists them, then files that are gone are deleted. The store decides: a copy that does not continue what the store
holds is replaced by it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from spr.core.atomic import atomic_file, has_sha256, is_temporary, sha256, write_atomically
from spr.core.documents import parse_json
from spr.core.errors import RunError
from spr.core.locks import check_held
from spr.core.ordered_map import ordered_map
from spr.core.progress import Progress
from spr.core.remote import RemotePath
from spr.runs.trainings import training_place

CACHE = "SPR_CACHE"
"""The environment variable that names the cache folder; by default it is ``spr`` in ``XDG_CACHE_HOME`` or ~/.cache."""
_INDEX = "training/files.json"
_SYNCED = ".files.json"
"""In the local copy: the index as it was when copy and store agreed."""
_LAST = ("spr.json", "adapter_config.json", "checkpoint.json", "log.jsonl", "finished.json")
"""Files that show that those beside them are complete, in the order in which they are put, after all others."""
_BLOCK = 2**23


class TrainingCopy:
    """A local folder with ``adapter/`` and ``training/`` of a training of the run ``run`` in object storage."""

    def __init__(self, run: RemotePath, name: str | None) -> None:
        place = training_place(run, name)
        if not isinstance(place, RemotePath):
            raise TypeError(f"{place} is not in object storage")
        self.remote = place
        own = os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "spr"
        digest = hashlib.sha256(str(place).encode()).hexdigest()[:16]
        self.local = Path(own).expanduser() / "trainings" / f"{place.name}-{digest}"
        self._put: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}  # by name: size and time, and its entry

    def download(self) -> None:
        """Make the copy agree with the store, unless it continues what the store holds.

        Raises:
            RunError: if the list of the training's files is damaged, or one of them is missing.
            StorageError: if the store can't be reached.
        """
        data, files = self._read_index()
        synced = self.local / _SYNCED
        if self.local.is_dir() and synced.is_file() and synced.read_bytes() == data:
            return
        synced.unlink(missing_ok=True)
        for name in self._names():
            if name not in files:
                (self.local / name).unlink()
        for folder in sorted((self.local / "training" / "checkpoints").glob("*")):
            if not any(folder.iterdir()):
                folder.rmdir()
        with Progress("fetching the training", len(files), "files") as progress:
            for _ in ordered_map(lambda item: self._fetch(*item), files.items()):
                progress.advance(1)
        self.local.mkdir(parents=True, exist_ok=True)
        write_atomically(synced, data)

    def upload(self) -> None:
        """Put what is new in the copy into the store; interrupted anywhere, the store still has the state before.

        Raises:
            RunError: if this process has lost the training's lock.
            StorageError: if the store can't be written to.
        """
        check_held(self.remote / _INDEX)
        _, before = self._read_index()
        names = self._names()
        first = [name for name in names if Path(name).name not in _LAST]
        last = sorted(set(names).difference(first), key=lambda name: (_LAST.index(Path(name).name), name))
        entries = dict(ordered_map(lambda name: self._put_file(name, before.get(name)), first))
        entries |= {name: self._put_file(name, before.get(name)) for name in last}
        data = (json.dumps({"files": dict(sorted(entries.items()))}, indent=1) + "\n").encode()
        check_held(self.remote / _INDEX)
        (self.remote / _INDEX).put(data)
        write_atomically(self.local / _SYNCED, data)
        for name in before.keys() - entries.keys():
            (self.remote / name).unlink(missing_ok=True)

    def _names(self) -> list[str]:
        """The files of the copy that belong to the training, without locks, unfinished files and image features."""
        found = []
        for folder in ("adapter", "training"):
            for path in sorted((self.local / folder).rglob("*")):
                parts = path.relative_to(self.local).parts
                hidden = any(part.startswith(".") or is_temporary(Path(part)) for part in parts)
                if path.is_file() and not hidden and parts[:2] != ("training", "features"):
                    found.append("/".join(parts))
        return found

    def _put_file(self, name: str, before: dict[str, Any] | None) -> dict[str, Any]:
        path = self.local / name
        info = path.stat()
        state, known = self._put.get(name, (None, {}))
        if state == (info.st_size, info.st_mtime_ns):
            return known
        entry = {"size": info.st_size, "sha256": sha256(path)}
        if entry != before:
            (self.remote / name).put_file(path)
        self._put[name] = (info.st_size, info.st_mtime_ns), entry
        return entry

    def _fetch(self, name: str, entry: dict[str, Any]) -> None:
        path, source = self.local / name, self.remote / name
        if has_sha256(path, entry["sha256"]):
            return
        try:
            known = source.info().sha256
            with source.open("rb") as file, atomic_file(path) as copy:
                shutil.copyfileobj(file, copy, _BLOCK)
        except FileNotFoundError:
            raise self._damaged(f"{source} is missing") from None
        # A file that was put after the index, before an interruption, is as good: logs and references only grow, and a
        # training checks its checkpoints and its adapter itself.
        if sha256(path) not in (entry["sha256"], known):
            path.unlink()
            raise self._damaged(f"{source} has changed")

    def _read_index(self) -> tuple[bytes, dict[str, dict[str, Any]]]:
        try:
            data = (self.remote / _INDEX).read_bytes()
        except FileNotFoundError:
            return b"", {}
        try:
            files = parse_json(data)["files"]
            for name, entry in files.items():
                inside = name.partition("/")[0] in ("adapter", "training") and ".." not in name.split("/")
                if not inside or type(entry["size"]) is not int or type(entry["sha256"]) is not str:
                    raise ValueError(f"the entry of {name!r} has a wrong value")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._damaged(error) from None
        return data, files

    def _damaged(self, got: object) -> RunError:
        fix = f"restore the files, or delete {self.remote / 'training'} to train again"
        return RunError(f"The training in {self.remote} is damaged", got=got, fix=fix)
