"""`spr push` and `spr pull`: pairs, adapters and runs on the Hugging Face Hub."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub as hub
from huggingface_hub import errors
from huggingface_hub import utils as hub_utils

from spr.core.atomic import sha256
from spr.core.errors import ConfigError, InputError, RunError, SprError
from spr.core.image_names import unsafe_path
from spr.core.outputs import check_output
from spr.core.paths import is_dir
from spr.core.terminal import count_text, size_text
from spr.runs.store import StageStore, stage_folders
from spr.workflows.hub_package import CARD, PUSHED, Package, make_package, pushed_content

TOGETHER = 500
"""Files per commit."""
_SHOWN = 12
_Say = Callable[[str], None]
_utils: Any = hub_utils


def push(
    source: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    license_id: str | None = None,
    dry_run: bool = False,
    say: _Say = lambda _: None,
) -> str | None:
    """Upload an export, an adapter or a run to a repository on the Hub, which is created if it is missing.

    First says what will be uploaded, and how much. Files that are there already are not uploaded again, so a command
    that was interrupted continues where it stopped; files that an earlier `push` uploaded and that are gone now are
    deleted, and a card that was edited on the Hub stays as it is. Nothing about the machine is uploaded
    (`spr.workflows.hub_package`).

    Args:
        source: The folder of `spr export`, ``RUN/adapter``, another adapter in PEFT's format, or ``RUN``.
        repo_id: ``OWNER/NAME``.
        private: Create the repository as a private one.
        revision: A branch, which is created if it is missing; None: ``main``.
        license_id: License on the card; None keeps that of an existing card, or is ``other``.
        dry_run: Only say what would be uploaded.
        say: Called with each line for the user.

    Returns:
        The address of the repository; None with ``dry_run``.

    Raises:
        InputError, RunError: as `make_package`; also if the repository holds what `push` did not upload.
        ConfigError: if the repository's name is not valid.
        SprError: if the Hub refuses, or can't be reached.
    """
    check_repo_id(repo_id)
    package = make_package(source, license_id, repo_id)
    for line in _listing(source, package, repo_id, private):
        say(line)
    if dry_run:
        return None
    api = hub.HfApi()
    at: dict[str, Any] = {"repo_type": package.repo_type, "revision": revision or "main"}
    with _clear_errors(repo_id):
        url = api.create_repo(repo_id, repo_type=package.repo_type, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=package.repo_type, exist_ok=True)
        there = set(api.list_repo_files(repo_id, **at))
        before = _pushed(api, repo_id, at) if PUSHED in there else None
        if before is None and there - {".gitattributes"}:
            got, fix = ", ".join(sorted(there)[:4]), "choose a new repository, or another --revision"
            raise RunError(f"{repo_id} holds something that `spr push` did not upload", got=got, fix=fix)
        files = dict(package.files)
        if before is not None and CARD in there and _edited(api, repo_id, at, before):
            if license_id is not None:
                fix = "change the license on the Hub, and leave --license out"
                raise RunError(f"The card of {repo_id} was edited on the Hub", got=f"--license {license_id}", fix=fix)
            say(f"The card was edited on the Hub, and stays as it is there: {CARD}")
            files.pop(CARD)
        gone = sorted((set(before["files"]) & there) - set(package.files)) if before is not None else []
        # The list first, so that an upload that stops halfway is recognised, as unfinished and as ours.
        items = [(PUSHED, package.marker()), *files.items()]
        for start in range(0, len(items), TOGETHER):
            part = items[start : start + TOGETHER]
            changes: list[Any] = [hub.CommitOperationAdd(name, content) for name, content in part]
            changes += [hub.CommitOperationDelete(name) for name in gone] if start == 0 else []
            api.create_commit(repo_id, changes, commit_message=f"spr push: {package.kind}", **at)
    return str(url)


def pull(
    repo_id: str,
    out: Path,
    *,
    revision: str | None = None,
    repo_type: str | None = None,
    say: _Say = lambda _: None,
) -> str:
    """Download what `push` uploaded into a new or empty folder, and check it; returns its kind.

    Files are downloaded beside ``out``, into ``.NAME.spr-pull``, so that an interrupted download continues. The SHA-256
    of each file must be the one that `push` recorded; only the card may have been edited. Shards of a run must be those
    of its manifests.

    Raises:
        RunError: if ``out`` is not empty, or a file is missing or has changed.
        InputError: if the repository is not one of `push`, or there are two of that name, a model and a dataset.
        SprError: if the Hub refuses, or can't be reached.
    """
    check_repo_id(repo_id)
    check_output(out, "a new folder", folder=True)
    out = out.absolute()
    api, place = hub.HfApi(), out.with_name(f".{out.name}.spr-pull")
    with _clear_errors(repo_id), _quiet():
        found: dict[str, str | None] = {}
        at: dict[str, Any]
        for kind in (repo_type,) if repo_type else ("dataset", "model"):
            at = {"repo_type": kind, "revision": revision or "main"}
            if api.repo_exists(repo_id, repo_type=kind) and api.file_exists(repo_id, PUSHED, **at):
                found[kind] = api.repo_info(repo_id, **at).sha
        if len(found) != 1:
            fix = "give --repo-type model or dataset" if found else "check the name, and log in: hf auth login"
            where = f" in the revision {revision}" if revision else ""
            got = "a model and a dataset of this name" if found else f"no {PUSHED}{where}"
            raise InputError(f"{repo_id} is not what `spr push` uploads", got=got, fix=fix)
        ((kind, commit),) = found.items()
        at = {"repo_type": kind, "revision": commit}
        pushed = _pushed(api, repo_id, at)
        if pushed is None or any(map(unsafe_path, pushed["files"])):
            raise InputError(f"{repo_id} is not what `spr push` uploads", got=f"a {PUSHED} of another kind")
        say(f"{pushed['kind']} from {repo_id} at {str(commit)[:12]}: {count_text(len(pushed['files']), 'files')}")
        try:
            api.snapshot_download(repo_id, local_dir=place, **at)
        except ValueError as error:  # the name of a file leads out of the folder
            raise InputError(f"{repo_id} is not what `spr push` uploads", got=_short(error)) from None
    _check(place, repo_id, pushed["files"])
    shutil.rmtree(place / ".cache", ignore_errors=True)
    for path in [path for path in place.rglob("*") if path.is_file()]:
        if path.relative_to(place).as_posix() not in {*pushed["files"], CARD}:
            path.unlink()
    if pushed["kind"] == "run":
        for folder in stage_folders(place):
            store = StageStore(folder)
            manifest = store.manifest()
            if manifest is not None and len(store.valid_shards(manifest)) < len(manifest.shards):
                raise RunError(f"{folder} of {repo_id} is damaged", got="shards that differ from its manifest")
    if is_dir(out):
        out.rmdir()
    out.parent.mkdir(parents=True, exist_ok=True)
    place.rename(out)
    return str(pushed["kind"])


def check_repo_id(repo_id: str) -> None:
    """Raise `ConfigError` unless this is ``OWNER/NAME``."""
    try:
        _utils.validate_repo_id(repo_id)
        valid = repo_id.count("/") == 1
    except errors.HFValidationError:
        valid = False
    if not valid:
        raise ConfigError("This is not the name of a repository", got=repo_id, expected="OWNER/NAME")


def _listing(source: Path, package: Package, repo_id: str, private: bool) -> Iterator[str]:
    """What will be uploaded, by the first part of its path, with sizes."""
    sizes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for name, size in package.sizes.items():
        top, sign, _ = name.partition("/")
        sizes[top + sign] += size
        numbers[top + sign] += 1
    kind = f"{'private ' if private else ''}{package.repo_type}"
    yield f"{source} → {kind} {repo_id}: {count_text(len(package.files), 'files')}, {size_text(sum(sizes.values()))}"
    for number, (top, size) in enumerate(sizes.most_common()):
        if number == _SHOWN:
            yield f"  {'…':>12}  and {len(sizes) - _SHOWN:,} more"
            break
        yield f"  {size_text(size):>12}  {top}" + (
            f" ({count_text(numbers[top], 'files')})" if top.endswith("/") else ""
        )
    if package.left_out:
        yield f"  not uploaded: {', '.join(package.left_out)}"
    yield f"License on the card: {package.license_id}"
    if package.license_id == "other":
        yield "Warning: the license is not stated. Give --license, such as --license cc-by-4.0, and complete the card."
    yield from (f"Warning: {warning}" for warning in package.warnings)


def _pushed(api: Any, repo_id: str, at: Mapping[str, str]) -> dict[str, Any] | None:
    with _quiet():
        return pushed_content(Path(api.hf_hub_download(repo_id, PUSHED, **at)).read_bytes())


def _edited(api: Any, repo_id: str, at: Mapping[str, str], before: Mapping[str, Any]) -> bool:
    """Whether the card on the Hub is not the one that was uploaded."""
    with _quiet():
        return bool(sha256(Path(api.hf_hub_download(repo_id, CARD, **at))) != before["files"].get(CARD))


def _check(place: Path, repo_id: str, files: Mapping[str, str]) -> None:
    changed = [
        name
        for name, expected in files.items()
        if name != CARD and not ((place / name).is_file() and sha256(place / name) == expected)
    ]
    if changed:
        got = f"{', '.join(changed[:4])} missing or changed" + (f", and {len(changed) - 4:,} more" * (len(changed) > 4))
        fix = f"repeat `spr push` if it was interrupted; to download again, delete {place}"
        raise RunError(f"{repo_id} is not complete", got=got, expected=f"the files of its {PUSHED}", fix=fix)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the Hub's progress bars where stderr is not a terminal."""
    hidden = not sys.stderr.isatty() and not _utils.are_progress_bars_disabled()
    if hidden:
        _utils.disable_progress_bars()
    try:
        yield
    finally:
        if hidden:
            _utils.enable_progress_bars()


@contextmanager
def _clear_errors(repo_id: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one clear error, which never contains the token."""
    log_in = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
    try:
        with _quiet():
            yield
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{repo_id} has no such revision", got=_short(error), fix="correct --revision") from None
    except errors.RepositoryNotFoundError as error:
        fix = f"check the name; {log_in}"
        raise InputError(
            f"There is no repository {repo_id}, or you may not see it", got=_short(error), fix=fix
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        fix = log_in if status in (401, 403) else "try again later: what is uploaded or downloaded stays"
        raise SprError(f"The Hub refuses the request for {repo_id}", got=_short(error), fix=fix) from None
    except Exception as error:
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, errors.HfHubHTTPError):  # of one file
            fix = "repeat the command, which continues where it stopped"
            raise SprError(f"The Hub refuses an upload to {repo_id}", got=_short(error.__cause__), fix=fix) from None
        unreachable = isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled)
        if not unreachable and not type(error).__module__.startswith("httpx"):  # its client's own kinds of errors
            raise
        raise SprError("The Hub can't be reached", got=_short(error), fix="check the network and HF_ENDPOINT") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
