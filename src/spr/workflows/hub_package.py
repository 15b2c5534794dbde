"""What `spr push` uploads: the files of an export, an adapter or a run, without what they say about this machine."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, TypeAlias

import yaml

from spr.config.public import public_name, public_values
from spr.core import FORMAT_VERSION
from spr.core.atomic import is_temporary, sha256
from spr.core.documents import parse_yaml, read_json
from spr.core.errors import InputError, RunError
from spr.core.outputs import MARKER as WEIGHTS_MARKER
from spr.core.paths import is_dir, is_file
from spr.core.text_input import read_text
from spr.exports.marker import MARKER as EXPORT_MARKER
from spr.records.schemas import DROPPED, OBJECTS
from spr.runs.adapters import raw_config, run_of
from spr.runs.folder import is_run
from spr.runs.reviews import FILE as REVIEWS
from spr.runs.store import StageStore, read_table, stage_folders
from spr.workflows.hub_cards import adapter_card, run_card, with_license

Kind: TypeAlias = Literal["run", "adapter", "pairs"]
PUSHED = "spr-push.json"
"""The file in a repository that lists what `spr push` uploaded, with the SHA-256 of each file."""
CARD = "README.md"
_TEXTS = (".json", ".jsonl", ".yaml", ".md", ".txt", ".svg", ".csv")
_RUN_FILES = (
    *("run.json", "config.yaml", "inputs.json", "dropped.parquet", "log.jsonl", "summary.json", "cues.json"),
    *("metrics.json", REVIEWS),
)
_RUN_FOLDERS = ("adapter", "training", "trainings", "evaluation")
_HEAVY = ("checkpoints", "features")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", WEIGHTS_MARKER)
_NO_SERVER = "http://not-published.invalid/v1"


@dataclass(frozen=True)
class Package:
    """Files for a repository on the Hub.

    ``files`` maps a path in the repository to a file on disk, or to its content where that is changed. ``left_out``
    names what stays here, ``warnings`` what the user should know before uploading.
    """

    kind: Kind
    files: Mapping[str, Path | bytes]
    license_id: str
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def repo_type(self) -> str:
        """The type of repository: adapters are models, pairs and runs are datasets."""
        return "model" if self.kind == "adapter" else "dataset"

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: len(it) if isinstance(it, bytes) else it.stat().st_size for name, it in self.files.items()}

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file."""
        return {name: _sha(it) if isinstance(it, bytes) else sha256(it) for name, it in self.files.items()}

    def marker(self) -> bytes:
        """The content of `PUSHED`."""
        content = {"format": "spr push", "format_version": FORMAT_VERSION, "kind": self.kind, "files": self.hashes}
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def make_package(source: Path, license_id: str | None = None, name: str | None = None) -> Package:
    """The files of an export, an adapter or a run, whichever ``source`` is.

    Texts lose the folders of this machine, and a base model that is a folder becomes its name. ``license_id`` is the
    license on the card; None keeps that of an existing card, or is ``other``. ``name`` is the repository,
    ``OWNER/NAME``, that a new card names.

    Raises:
        InputError: if ``source`` is none of these, or names files of this machine where that can't be changed.
        RunError: if it is damaged.
    """
    name = name or source.resolve().name
    if is_file(source / EXPORT_MARKER):
        return _export(source, license_id)
    if is_file(source / "adapter_config.json"):
        return _adapter(source, license_id, name)
    if source.resolve().parent.name == "trainings" and is_file(source / "adapter" / "adapter_config.json"):
        return _adapter(source / "adapter", license_id, name)
    if is_dir(source) and is_run(source):
        return _run(source, license_id, name)
    expected = "the folder of `spr export`, RUN/adapter, RUN/trainings/NAME, another adapter in PEFT's format, or RUN"
    got = "a folder of another kind" if is_dir(source) else "no such folder"
    raise InputError(f"{source} can't be pushed", got=got, expected=expected)


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _export(source: Path, license_id: str | None) -> Package:
    try:
        marker = read_json(source / EXPORT_MARKER)
        identity, sizes = dict(marker["identity"]), dict(marker["files"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{source} is a damaged export", got=error, fix="export again") from None
    if identity.get("images") == "path":
        fix = "export again with --images copy, embed or none"
        raise InputError(f"{source} names image files of this machine", got="--images path", fix=fix)
    if is_file(source / CARD):
        sizes.setdefault(CARD, 0)
    found: dict[str, Path | bytes] = {}
    for name, size in {**sizes, EXPORT_MARKER: 0}.items():
        path = source / name
        if not path.is_file() or (name not in (CARD, EXPORT_MARKER) and path.stat().st_size != size):
            raise RunError(f"{source} is a damaged export", got=f"{name} is missing or has changed", fix="export again")
        found[name] = path
    card = read_text(source / CARD)
    if license_id is not None:
        card = with_license(card, license_id)
        found[CARD] = card.encode()
    folders = _private_folders(source)
    for name, content in found.items():
        if Path(name).suffix in _TEXTS and name != EXPORT_MARKER:
            text = content.decode() if isinstance(content, bytes) else read_text(content)
            if folder := next((folder for folder in folders if folder in text), None):
                fix = "export again with --images copy, embed or none; file names of the annotations must be relative"
                raise InputError(f"{source / name} names a folder of this machine", got=folder, fix=fix)
    left = _left_out(source, found)
    return Package("pairs", found, _license_of(card), left)


# ── adapters and runs ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Public:
    """Collects files, and takes the folders of this machine out of texts."""

    folders: list[str]
    files: dict[str, Path | bytes] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, name: str, path: Path) -> None:
        if path.name == "adapter_config.json":
            self.files[name] = self._adapter_config(path)
        elif path.name == "config.yaml":
            self.files[name] = _public_config(path)
        elif path.suffix in _TEXTS:
            self.files[name] = self._text(path)
        else:
            self.files[name] = path

    def _text(self, path: Path) -> bytes:
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".json":
            text = json.dumps(public_values(read_json(path)), indent=1, ensure_ascii=False) + "\n"
        elif path.suffix == ".jsonl":
            text = "".join(_public_line(line) for line in text.splitlines(keepends=True))
        for folder in self.folders:
            text = text.replace(folder, "")
        return text.encode()

    def _adapter_config(self, path: Path) -> bytes:
        content = read_json(path)
        base = str(content.get("base_model_name_or_path"))
        public = public_base(base)
        if public != base and not public.startswith("embedded/"):
            self.warnings.append(
                f"The base model is the folder {base}: the adapter names it only as {public}. Say on the card where "
                "it can be found."
            )
        changed = {**public_values(content), "base_model_name_or_path": public}
        return (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()

    def finish(self, originals: Mapping[str, Path]) -> None:
        """Put the SHA-256 of changed files where other files give that of the original."""
        swaps = {}
        for name, path in originals.items():
            content = self.files[name]
            if path.name == "adapter_config.json" and isinstance(content, bytes):
                swaps[sha256(path)] = _sha(content)
        for name, content in self.files.items():
            if isinstance(content, bytes):
                for old, new in swaps.items():
                    content = content.replace(old.encode(), new.encode())
                self.files[name] = content


def _adapter(source: Path, license_id: str | None, name: str) -> Package:
    run = run_of(source)
    public = _Public(_private_folders(source, run[0] if run else None))
    found = {item: source / item for item in _ADAPTER_FILES if is_file(source / item)}
    if "adapter_model.safetensors" not in found:
        raise InputError(f"{source} has no weights in safetensors", expected="adapter_model.safetensors")
    for item, path in found.items():
        public.add(item, path)
    public.finish(found)
    own = is_file(source / CARD)
    config = public.files["adapter_config.json"]
    base = str(json.loads(config)["base_model_name_or_path"]) if isinstance(config, bytes) else ""
    card = read_text(source / CARD) if own else adapter_card(name, base, run, license_id or "other")
    card = with_license(card, license_id) if own and license_id is not None else card
    public.files[CARD] = card.encode()
    left = _left_out(source, public.files)
    return Package("adapter", public.files, _license_of(card), left, tuple(public.warnings))


def _run(source: Path, license_id: str | None, name: str) -> Package:
    _check_tables(source)
    public = _Public(_private_folders(source, source))
    originals = dict(_run_files(source))
    for item, path in originals.items():
        public.add(item, path)
    public.finish(originals)
    if REVIEWS in originals:
        public.warnings.append(f"{REVIEWS} has the names of the reviewers.")
    own = is_file(source / CARD)
    card = read_text(source / CARD) if own else run_card(name, source, license_id or "other")
    card = with_license(card, license_id) if own and license_id is not None else card
    public.files[CARD] = card.encode()
    left = _left_out(source, public.files)
    return Package("run", public.files, _license_of(card), left, tuple(public.warnings))


def _run_files(run: Path) -> Iterator[tuple[str, Path]]:
    """The files of a run that are uploaded, by their name in it: what SPR wrote, without what can be made again."""
    for name in _RUN_FILES:
        if is_file(run / name):
            yield name, run / name
    for folder in stage_folders(run):
        store = StageStore(folder)
        manifest = store.manifest()
        entries = manifest.shards if manifest else []
        shards = [path for entry in entries for path in (store.part(entry.index), store.drops(entry.index))]
        for path in (folder / "manifest.json", store.source_drops, *shards) if manifest else ():
            if path.is_file():
                yield f"{folder.name}/{path.name}", path
    for top in _RUN_FOLDERS:
        for path in sorted((run / top).rglob("*")):
            parts = path.relative_to(run).parts
            hidden = any(part.startswith(".") or part in _HEAVY for part in parts) or is_temporary(path)
            if path.is_file() and not path.is_symlink() and not hidden:
                yield "/".join(parts), path


def _check_tables(run: Path) -> None:
    """Raise an error for damaged shards, and for tables that name images by absolute paths."""
    for folder in stage_folders(run):
        store = StageStore(folder)
        manifest = store.manifest()
        if manifest is None:
            continue
        if len(store.valid_shards(manifest)) < len(manifest.shards):
            raise RunError(
                f"{folder} is damaged", got="a file is missing or has changed", fix="`spr run` makes it again"
            )
        parts = [store.part(entry.index) for entry in manifest.shards]
        for path in [*parts, *store.dropped_files(manifest)] if folder.name == "objects" else ():
            names = read_table(path, ["file_name"], OBJECTS if path in parts else DROPPED)["file_name"].unique()
            if absolute := next((name for name in names.to_pylist() if name and PureWindowsPath(name).root), None):
                fix = "make the file names of the annotations relative to annotations.images, and run again"
                raise InputError(f"{run} names images of this machine", got=absolute, fix=fix)


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _public_config(path: Path) -> bytes:
    raw = public_values(parse_yaml(read_text(path)))
    if isinstance(raw, dict) and isinstance(raw.get("describer"), dict) and raw["describer"].get("base_url"):
        raw["describer"]["base_url"] = _NO_SERVER
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True).encode()


def _public_line(line: str) -> str:
    try:
        return json.dumps(public_values(json.loads(line)), ensure_ascii=False) + "\n" if line.strip() else line
    except (ValueError, RecursionError):  # a killed process can leave half a line
        return ""


def public_base(base: str) -> str:
    """The name of a base model without its folder; that of an embedded model as `spr` takes it.

    >>> public_base("/data/models/llava-7b"), public_base("Qwen/Qwen2-VL-2B-Instruct")
    ('llava-7b', 'Qwen/Qwen2-VL-2B-Instruct')
    """
    path = Path(base)
    if path.is_absolute() and path.parent == Path(str(package_files("spr"))) / "embedded" / "weights":
        return f"embedded/{path.name}"
    return public_name(base)


def _private_folders(source: Path, run: Path | None = None) -> list[str]:
    """The folders of this machine that may be named in texts, with a slash at their end, the longest first."""
    paths = {source.resolve(), Path.cwd(), Path.home(), Path(sys.prefix), Path(str(package_files("spr")))}
    if run is not None and is_file(run / "config.yaml"):
        annotations = raw_config(run).get("annotations") or {}
        given = [annotations.get(name) for name in ("path", "images")]
        paths |= {Path(os.fspath(value)) for value in given if isinstance(value, str)} | {run.resolve()}
    folders = {f"{folder}/" for path in paths for folder in (path, path.parent) if len(folder.parts) > 1}
    return sorted(folders, key=len, reverse=True)


def _left_out(source: Path, files: Mapping[str, object]) -> tuple[str, ...]:
    """What stays on this machine: names directly in the source of which nothing is uploaded, and heavy folders."""
    tops = {name.partition("/")[0] for name in files}
    names = [path.name + "/" * path.is_dir() for path in sorted(source.iterdir()) if path.name not in tops]
    heavy = [f"{path.relative_to(source)}/" for name in _HEAVY for path in sorted(source.rglob(name)) if path.is_dir()]
    return tuple(name for name in (*names, *heavy) if not name.startswith("."))


def _license_of(card: str) -> str:
    head = card.split("---\n")[1] if card.startswith("---\n") else ""
    try:
        content = parse_yaml(head)
    except ValueError:
        content = None
    return str(content.get("license") or "other") if isinstance(content, dict) else "other"


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pushed_content(data: bytes) -> dict[str, Any] | None:
    """The content of `PUSHED`; None if `spr push` did not write it."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    known = isinstance(content, dict) and content.get("format") == "spr push" and isinstance(content.get("files"), dict)
    return content if known and content.get("kind") in ("run", "adapter", "pairs") else None
