"""Hugging Face datasets in `annotations.path`: their names, and the folder that their images are written into."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spr.config.annotations import HF_PREFIX
from spr.core.atomic import is_temporary, write_atomically
from spr.core.documents import read_json
from spr.core.errors import ConfigError, InputError, RunError
from spr.core.locks import hold
from spr.core.paths import is_dir

MARKER = "spr-dataset.json"
"""The file in a folder of images that says from which dataset `spr` has written them."""
_FORMAT = "spr dataset images"
_ENDS = 2**16


@dataclass(frozen=True, slots=True)
class DatasetName:
    """A dataset: the id on the hub or a folder, and optionally revision, configuration and split."""

    source: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder, if the name is a path: it begins with ``/``, ``.`` or ``~``."""
        return Path(self.source).expanduser() if self.source.startswith(("/", ".", "~")) else None

    @property
    def public_source(self) -> str:
        """The source without the path to a local folder, which would say whose machine it was."""
        return self.source if self.folder is None else self.folder.name


def parse_name(text: str) -> DatasetName:
    """The parts of ``hf:NAME[@REVISION][:CONFIG][:SPLIT]``, where NAME is an id of the hub or the path of a folder.

    >>> parse_name("hf:org/name@v1:train[:100]")
    DatasetName(source='org/name', revision='v1', config=None, split='train[:100]')

    Raises:
        ConfigError: if the name is empty or has more parts.
    """
    source, *rest = re.split(r":(?![^\[]*\])", text.removeprefix(HF_PREFIX))
    revision = None
    if not source.startswith(("/", ".", "~")):
        source, _, revision = source.partition("@")
    if not source or len(rest) > 2 or not all(rest):
        expected = "hf:NAME, hf:NAME:SPLIT, hf:NAME@REVISION:CONFIG:SPLIT, or hf:./FOLDER:SPLIT"
        raise ConfigError("The name of a dataset is not valid", got=text, expected=expected)
    config = rest[0] if len(rest) == 2 else None
    return DatasetName(source, revision or None, config, rest[-1] if rest else None)


class DatasetImages:
    """A folder for the images of one dataset, with a marker that names the dataset.

    Args:
        folder: The folder, which need not exist.
        name: The dataset.

    Raises:
        InputError: if the dataset is a folder that does not exist.
    """

    def __init__(self, folder: Path, name: DatasetName) -> None:
        self._folder, self._identity = folder, _identity(name)

    @property
    def complete(self) -> bool:
        """Whether `mark_complete` was called for this dataset with this content."""
        known = self._known()
        return bool(known.get("complete")) and known.get("dataset") == self._identity

    def check(self) -> None:
        """Raise `RunError` if the folder holds anything else than images of the dataset."""
        folder = self._folder
        found = [item.name for item in folder.iterdir() if not is_temporary(item)] if folder.exists() else []
        known = self._known()
        if found and known.get("dataset") != self._identity:
            got = json.dumps(known["dataset"]) if known else ", ".join(sorted(found)[:5])
            fix = "choose a new or empty folder; or delete this one, if the dataset was changed"
            raise RunError(
                f"{folder} does not hold the images of this dataset", got=got, expected=self._identity, fix=fix
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Check the folder, create and mark it where needed, and lock it.

        Raises:
            RunError: as `check` does; if the folder can't be used; or if another process writes into it.
        """
        busy = RunError(f"Another process writes into {self._folder}", fix="wait for it")
        with contextlib.ExitStack() as held:
            try:
                self.check()
                self._folder.mkdir(parents=True, exist_ok=True)
                if not self._known():
                    self._mark(complete=False)
                held.enter_context(hold(self._folder / MARKER, busy, create=False))
            except OSError as error:
                got, fix = error, "choose another folder"
                raise RunError(f"{self._folder} can't be used for images", got=got, fix=fix) from None
            for item in self._folder.iterdir():
                if is_temporary(item):
                    item.unlink(missing_ok=True)
            yield

    def mark_complete(self) -> None:
        """Record that all images are there."""
        self._mark(complete=True)

    def _mark(self, *, complete: bool) -> None:
        marker = {"format": _FORMAT, "dataset": self._identity, "complete": complete}
        write_atomically(self._folder / MARKER, (json.dumps(marker) + "\n").encode())

    def _known(self) -> dict[str, Any]:
        try:
            marker = read_json(self._folder / MARKER)
        except (OSError, ValueError):
            return {}
        return marker if isinstance(marker, dict) and marker.get("format") == _FORMAT else {}


def data_files(folder: Path) -> list[Path]:
    """The files below a folder that hold a dataset's rows and its description, sorted.

    Raises:
        InputError: if there is no such folder.
    """
    if not is_dir(folder):
        raise InputError(f"There is no folder {folder}", expected="a folder with a dataset")
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix in (".arrow", ".parquet", ".json", ".jsonl") and file.is_file()
    )


def _identity(name: DatasetName) -> dict[str, Any]:
    """What identifies the dataset: its name and, for a folder, the names, sizes, beginnings and ends of its files."""
    if name.folder is None:
        return asdict(name)
    digest = hashlib.sha256()
    for file in data_files(name.folder):
        size = file.stat().st_size
        with file.open("rb") as stream:
            ends = stream.read(_ENDS)
            stream.seek(max(size - _ENDS, 0))
            ends += stream.read(_ENDS)
        digest.update(f"{file.relative_to(name.folder)} {size} {hashlib.sha256(ends).hexdigest()}\n".encode())
    return {**asdict(name), "source": name.folder.name, "sha256": digest.hexdigest()}
