"""Whether the images of a run are still those that its rows were computed from: ``RUN/images.parquet``.

Size and modification time identify an image, as they do for ``make`` and ``rsync``; its sha256 does if the config asks
for it. An image in a tar file has the time of the tar file. Images are not part of the stages' fingerprints, so that a
copied image folder can be accepted.
"""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from spr.config import AnnotationsConfig
from spr.core.errors import RunError
from spr.core.images import ImageProblem, ImageSource
from spr.core.ordered_map import ordered_map
from spr.core.paths import is_remote
from spr.core.progress import Progress, advance
from spr.runs.store import StageStore, read_table, write_table

IMAGES = "images.parquet"
_REQUESTS = 32
_SCHEMA = pa.schema(
    [("file_name", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("sha256", pa.string())]
)


class _Identity(NamedTuple):
    size: int | None  # None if the file was missing
    mtime_ns: int | None
    sha256: str | None


_MISSING = _Identity(None, None, None)


def check_images(run: Path, annotations: AnnotationsConfig, *, renew: bool = False, write: bool = True) -> None:
    """Compare the images of a run's `objects` with ``RUN/images.parquet``.

    An image has changed if its size or its modification time differs. If its sha256 is known, only if that differs
    too. Missing images are not reported here: every stage drops them with a reason. With ``write``, new images are
    added to the file; ``renew`` writes it anew, without comparing.

    Raises:
        RunError: naming the images that have changed.
    """
    path, source = run / IMAGES, annotations.image_source
    store = StageStore(run / "objects")
    parts = (read_table(store.part(shard.index), ["file_name"]) for shard in store.finished().shards)
    names = {name for part in parts for name in part["file_name"].to_pylist()}
    before = _read(path) if path.is_file() and not renew else {}
    now = {}
    if _is_empty(source.folder) and not source.allow_outside:  # looking for other spellings of the names takes long
        now = dict.fromkeys(sorted(names), _MISSING)
    else:
        with Progress("checking images", len(names), "images"):
            # One request per image in object storage, of which many can wait at once; a local disk answers at once.
            ordered, found = sorted(names), source.identity
            remote = is_remote(source.folder)
            one_by_one = zip(ordered, map(found, ordered), strict=True)
            for name, is_ in ordered_map(found, ordered, threads=_REQUESTS, ahead=512) if remote else one_by_one:
                size, mtime_ns = is_ or (None, None)
                now[name] = _Identity(size, mtime_ns, None)
                advance()
    differing = [name for name, is_ in now.items() if name in before and _differs(before[name], is_)]
    verified = [name for name in differing if before[name].sha256 and before[name].size == now[name].size]
    hashed = [name for name in now if now[name].size is not None and not (name in before and before[name].sha256)]
    digests = _hash(source, [*verified, *(hashed if annotations.hash_images else ())])
    changed = [name for name in differing if name not in verified or digests.get(name) != before[name].sha256]
    if changed:
        cases = [f"{name!r}: {_text(before[name])} → {_text(now[name])}" for name in changed[:3]]
        got = "; ".join(cases) + (f"; and {len(changed) - 3:,} more" if len(changed) > 3 else "")
        fix = f"restore them, or choose another --out; if the pictures are the same (a copied folder), delete {path}"
        raise RunError(f"{len(changed):,} of {len(now):,} images have changed since {run} was made", got=got, fix=fix)
    recorded = {name: before[name].sha256 for name in before}
    rows = [(name, *is_[:2], digests.get(name) or recorded.get(name)) for name, is_ in now.items()]
    if write and rows != [(name, *is_) for name, is_ in before.items()]:
        write_table(path, pa.table(list(map(list, zip(*rows, strict=True))) or [[]] * 4, schema=_SCHEMA))


def _read(path: Path) -> dict[str, _Identity]:
    try:
        table, problem = read_table(path), None
    except RunError as error:
        table, problem = _SCHEMA.empty_table(), error.got
    if problem is not None or not table.schema.equals(_SCHEMA):
        fix = f"delete {path}; the next command records the images again"
        raise RunError(f"{path} is damaged", got=problem or table.schema, expected="the table that SPR wrote", fix=fix)
    return {name: _Identity(*rest) for name, *rest in zip(*table.to_pydict().values(), strict=True)}


def _differs(before: _Identity, now: _Identity) -> bool:
    return None not in (before.size, now.size) and before[:2] != now[:2]


def _is_empty(folder: Path) -> bool:
    """Whether there is nothing in a folder, or no folder; False for a tar file and in object storage."""
    if is_remote(folder):
        return False
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False


def _hash(source: ImageSource, names: list[str]) -> dict[str, str]:
    def digest(name: str) -> str:
        try:
            return hashlib.sha256(source.read_bytes(name)).hexdigest()
        except ImageProblem as problem:
            return problem.reason

    digests = {}
    with Progress("hashing images", len(names), "images") as progress:
        for name, value in ordered_map(digest, names):
            digests[name] = value
            progress.advance(1)
    return digests


def _text(identity: _Identity) -> str:
    modified = datetime.fromtimestamp((identity.mtime_ns or 0) / 1e9, UTC)
    return f"{identity.size:,} bytes of {modified:%Y-%m-%d %H:%M:%S}"
