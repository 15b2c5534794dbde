"""Loads models and PEFT adapters: completely, or with one clear error.

Code from the model's repository never runs: weights are safetensors, or pickles of tensors only. transformers
initializes missing tensors randomly; here they are an error.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import errors as hub
from safetensors import SafetensorError
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedConfig
from transformers.utils import logging

from spr.config import DetectorConfig, ScorerConfig
from spr.core.atomic import sha256
from spr.core.documents import read_json
from spr.core.errors import ConfigError, RunError, SprError
from spr.core.outputs import MARKER, file_hashes, read_marker
from spr.core.paths import is_dir
from spr.core.progress import MEGABYTE, Progress, advance
from spr.models.batching import DeviceMemoryError
from spr.models.hub_cache import command_for
from spr.models.weight_files import cached, has_only_pickles, without_conversion

Source: TypeAlias = str | os.PathLike[str]
"""A folder in the format of ``save_pretrained``, or a model id of the Hub."""

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_OTHER_MODEL = "use the model that the adapter was trained on: base_model_name_or_path in its adapter_config.json"
_SHOWN = 8  # tensors named in an error


class ModelError(SprError):
    """A model can't be loaded: it is missing, unreachable, incomplete or of the wrong kind."""


class UnreachableError(ModelError):
    """A model is neither cached nor a folder, and the Hub can't be reached."""


def unreachable(model: Source, got: object = None) -> UnreachableError:
    """The error for a model that could only be downloaded."""
    fix = f"connect to the network, download it first ({command_for(str(model))}), or give a folder"
    return UnreachableError(f"The Hub is unreachable, and {model} is neither cached nor a folder", got=got, fix=fix)


def model_source(model: str) -> str:
    """A folder or a model id of the Hub; for `embedded/…`, the folder of a model that ships with the package."""
    if not model.startswith("embedded/"):
        return model
    folder = files("spr") / "embedded" / "weights" / model.removeprefix("embedded/")
    if not folder.is_dir():
        expected = "embedded/describer, embedded/scorer or embedded/detector"
        raise ConfigError("There is no such embedded model", got=model, expected=expected)
    return str(folder)


def load_pretrained(
    model_class: Any,
    source: Source,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device | None = None,
    **kwargs: Any,
) -> Any:
    """Load a model with all of its weights, in eval mode and without gradients.

    With the dtype ``"auto"``, the weights keep their dtype on disk. Without a device, they stay where
    ``from_pretrained``, which gets all further arguments, puts them (``device_map``, or the CPU). Pickles are read if
    there are no safetensors, and refused if they contain anything but tensors.

    Raises:
        ModelError: if the model is missing or unreachable, has no weights, needs a package that is not
            installed, or has missing, unexpected or misshapen tensors (all are listed).
        DeviceMemoryError: if it does not fit into the device's memory.
    """

    def load(use_safetensors: bool) -> Any:
        return model_class.from_pretrained(
            source,
            revision=revision or "main",
            dtype=dtype,
            use_safetensors=use_safetensors,
            weights_only=True,
            trust_remote_code=False,
            # Don't raise at the first misshapen tensor: check_complete lists all problems together.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **kwargs,
        )

    with clear_errors(source, revision), _shown(source), without_conversion():
        try:
            model, found = load(use_safetensors=True)
        except OSError:
            if not has_only_pickles(source, revision):
                raise
            model, found = load(use_safetensors=False)
        check_complete(source, type(model).__name__, found)
        if device is not None:
            model = model.to(device)
    return model.eval().requires_grad_(False)


def load_part(part_class: Any, source: Source, *, revision: str | None = None, **kwargs: Any) -> Any:
    """Load a tokenizer, image processor or config from a model's folder or repository, or raise `ModelError`."""
    with clear_errors(source, revision):
        return part_class.from_pretrained(source, revision=revision or "main", trust_remote_code=False, **kwargs)


def load_with_processors(
    section: ScorerConfig | DetectorConfig, classes: Mapping[str, tuple[Any, Any]]
) -> tuple[Any, Any, Any, str]:
    """Load the model that a config section names: the model, its image processor, its tokenizer and its name.

    ``classes`` are the classes of the model and of its image processor, by ``model_type``. Another type, or a tokenizer
    that is not the model's own, is a `ModelError`.
    """
    source, revision = model_source(section.model), section.revision
    model_class, processor_class = classes[read_model_type(source, classes, revision=revision)]
    device = device_of(section.device)
    model = load_pretrained(model_class, source, revision=revision, dtype=section.dtype, device=device)
    processor = load_part(processor_class, source, revision=revision)
    tokenizer = load_part(AutoTokenizer, source, revision=revision)
    check_vocabulary(source, tokenizer, model.config.text_config.vocab_size)
    return model, processor, tokenizer, source_name(source, revision, model)


def read_model_type(
    source: Source,
    expected: Collection[str] | None = None,
    *,
    revision: str | None = None,
    by_architecture: Mapping[str, str] | None = None,
) -> str:
    """Read the ``model_type`` of a model's config; without one, look up the first of its ``architectures``.

    A type that is not among the ``expected``, if these are given, is a `ModelError`.
    """
    with clear_errors(source, revision):
        config, _ = PreTrainedConfig.get_config_dict(source, revision=revision or "main")
        named = (config.get("architectures") or [None])[0]
        model_type = config.get("model_type") or (by_architecture or {}).get(named)
    if expected is not None and model_type not in expected:
        fix = "choose a model of an expected type, or the backend for this one"
        raise ModelError(f"{source} is another kind of model", got=model_type, expected=" or ".join(expected), fix=fix)
    return str(model_type)


def load_adapter(model: Any, adapter: Source, *, merge: bool = True) -> Any:
    """Load a folder from PEFT's ``save_pretrained`` onto the model that it was trained on, in eval mode and frozen.

    With ``merge``, it becomes a part of the weights, which makes inference faster; not possible for quantized weights.
    A folder without an adapter in safetensors, or with tensors that don't match this model, is a `ModelError`.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    folder = Path(adapter)
    check_adapter(folder)
    with clear_errors(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses deprecated names of transformers
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted = get_peft_model(model, config)
        found = set_peft_model_state_dict(adapted, load_file(folder / _ADAPTER_FILES[1]))
    missing = sorted(key for key in found.missing_keys if "lora_" in key or "modules_to_save" in key)
    wrong = [f"missing: {name}" for name in missing] + [f"unexpected: {name}" for name in found.unexpected_keys]
    if wrong:
        what, expected = f"The adapter {folder} was not trained on this model", "exactly the tensors of the adapter"
        raise ModelError(what, got=_few(wrong), expected=expected, fix=_OTHER_MODEL)
    return (adapted.merge_and_unload() if merge else adapted).eval().requires_grad_(False)


def check_adapter(adapter: Source, model_class: str | None = None) -> None:
    """Check what can be checked of an adapter without its model, which is of ``model_class``, if that is known.

    Raises:
        ModelError: if the folder has no PEFT adapter in safetensors, SPR wrote it and it is damaged, or it was trained
            on another class of model.
    """
    folder = Path(adapter)
    lacking = [name for name in _ADAPTER_FILES if not (folder / name).is_file()]
    if lacking:
        got = f"no {' and no '.join(lacking)}" if is_dir(folder) else "no such folder"
        fix = "give the folder of an adapter, such as RUN/adapter of a trained run"
        raise ModelError(f"{folder} has no PEFT adapter", got=got, expected=" and ".join(_ADAPTER_FILES), fix=fix)
    check_adapter_files(folder)
    try:
        named = (read_json(folder / _ADAPTER_FILES[0]).get("auto_mapping") or {}).get("base_model_class")
    except (OSError, ValueError, AttributeError):
        return  # PEFT says what is wrong
    if None not in (named, model_class) and named != model_class:
        what = f"The adapter {folder} was not trained on this model"
        raise ModelError(what, got=model_class, expected=named, fix=_OTHER_MODEL)


def check_vocabulary(source: Source, tokenizer: Any, size: int) -> None:
    """Raise `ModelError` if a tokenizer has more than ``size`` tokens, the model's vocabulary, or too few.

    If the vocabulary file is missing, transformers returns a tokenizer with only about five special tokens.
    """
    least, got = 16, len(tokenizer)
    if not least <= got <= size:
        what, expected = (
            f"The tokenizer of {source} is not this model's",
            f"{least} to {size}, the model's vocabulary size",
        )
        fix = "copy the model's own tokenizer.json and tokenizer_config.json into the folder"
        raise ModelError(what, got=f"{got} tokens", expected=expected, fix=fix)


def source_name(source: Source, revision: str | None = None, model: Any = None) -> str:
    """``id@revision``, as stored in candidates: the same name means the same weights.

    For a Hub model, the revision is the commit of the snapshot in the Hub's cache, or that in the config of the loaded
    ``model`` (or a config in its place), else the requested ``revision``. For a folder, the id is its name, and the
    revision is the first 12 hex digits of the SHA-256 of its config and weights.
    """
    folder = Path(source)
    if is_dir(folder):
        weights = "pytorch_model*.bin" if has_only_pickles(folder) else "*.safetensors"
        patterns = ("config.json", "adapter_config.json", weights)
        paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
        states = tuple((path, (state := path.stat()).st_size, state.st_mtime_ns) for path in paths)
        return f"{folder.resolve().name}@{_digest(short_name(folder), states)[:12]}"
    commit = getattr(getattr(model, "config", model), "_commit_hash", None)
    if commit is None and (config := cached(os.fspath(source), "config.json", revision)) is not None:
        commit = config.parent.name  # …/snapshots/COMMIT/config.json
    return f"{source}@{commit or revision or 'main'}"


@lru_cache(maxsize=16)
def _digest(label: str, files: tuple[tuple[Path, int, int], ...]) -> str:
    """The SHA-256 of files, computed again only if the size or the time of one has changed."""
    total, before = hashlib.sha256(), 0
    with Progress(f"hashing {label}", sum(size for _, size, _ in files) // MEGABYTE, "MB") as progress:
        for path, size, _ in files:
            digest = sha256(path, lambda done: progress.set((before + done) // MEGABYTE))  # noqa: B023
            total.update(path.name.encode() + bytes.fromhex(digest))
            before += size
    return total.hexdigest()


def device_of(name: str) -> torch.device:
    """The device that a config names; ``auto`` is the GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def placement(device: torch.device, device_map: str | None, load_in_4bit: bool) -> dict[str, Any]:
    """Arguments of `load_pretrained`: where the weights go, and in how many bits. A device map replaces the device."""
    if not load_in_4bit:
        return {"device_map": device_map} if device_map is not None else {"device": device}
    if importlib.util.find_spec("bitsandbytes") is None:
        fix = "pip install bitsandbytes, or leave load_in_4bit out"
        raise SprError("4-bit weights need bitsandbytes", got="it is not installed", fix=fix)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    # Quantised weights can't be moved once they are loaded.
    return {"device_map": device_map or {"": device}, "quantization_config": config}


@contextmanager
def hidden_bars() -> Iterator[None]:
    """Hide transformers' own progress bars, beside which ours could not be shown."""
    before = logging.set_tqdm_hook(lambda _, args, kwargs: logging.EmptyTqdm(*args, **kwargs))
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


@contextmanager
def _shown(source: Source) -> Iterator[None]:
    """Show the progress of loading weights in our own way; transformers' bar is hidden.

    The Hub's bars of a download stay where there is a terminal.
    """
    with Progress(f"loading {short_name(source)}") as progress:

        def count(_factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if kwargs.get("desc") == "Loading weights":
                items = args[0] if args else kwargs["iterable"]
                progress.total, progress.unit = len(items), "tensors"
            return _Counting(*args, **kwargs)

        before = logging.set_tqdm_hook(count)
        try:
            yield
        finally:
            logging.set_tqdm_hook(before)


class _Counting(logging.EmptyTqdm):  # type: ignore[misc]
    """A bar of transformers that shows nothing, and counts its items in the current `Progress`."""

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            yield item
            advance()


def short_name(source: Source) -> str:
    """A model as people call it: its id on the Hub, or the name of its folder."""
    return Path(source).resolve().name if is_dir(source) else os.fspath(source)


def check_adapter_files(adapter: Path) -> None:
    """Raise `ModelError` if the weights of an adapter are not those that `spr train` wrote, by its marker, if any."""
    marker = read_marker(adapter, "spr train")
    weights = "adapter_model.safetensors"
    if marker and marker["files"].get(weights) != file_hashes(adapter, [weights]).get(weights):
        fix = (
            "repeat the `spr train` command that wrote it, which writes it again from the last checkpoint; if another "
            f"program changed it on purpose, delete {adapter / MARKER}"
        )
        raise ModelError(f"The adapter {adapter} is damaged", got=f"{weights} is missing or has changed", fix=fix)


@contextmanager
def clear_write_errors(path: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise if a disk is full, which is no OSError, into a `RunError`."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        got = " ".join(str(error).split())[:200]
        raise RunError(
            f"{path} can't be written", got=got, fix="free some disk space, or choose another path"
        ) from None


@contextmanager
def clear_errors(source: Source, revision: str | None = None) -> Iterator[None]:
    """Turn any exception of a call that loads something from ``source`` into one clear `ModelError`."""
    check_folder(source)
    try:
        yield
    except SprError:
        raise
    except torch.OutOfMemoryError as error:
        fix = "use a smaller model, dtype bfloat16 or 4-bit weights"
        raise DeviceMemoryError(f"{source} does not fit into the device's memory", got=error, fix=fix) from error
    except Exception as error:  # users' files can cause any exception in other libraries
        raise _explain(os.fspath(source), revision, error) from error


def check_folder(source: Source) -> None:
    """Raise `ModelError` if a model is neither a folder nor named like one on the Hub."""
    path = os.fspath(source)
    if not is_dir(path) and (Path(path).is_absolute() or path.startswith(".") or path.count("/") > 1):
        raise ModelError("There is no such model folder", got=path, fix="check the path, or give a Hub id: owner/name")


def _explain(path: str, revision: str | None, error: BaseException) -> ModelError:
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__

    def was(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    got = " ".join(f"{type(error).__name__}: {error}".split())[:400]
    if is_dir(path):
        fix = "use a folder from save_pretrained: config, model.safetensors, tokenizer and preprocessor files"
        return ModelError(f"{path} is not a complete model", got=got, fix=fix)
    if was(hub.GatedRepoError):
        return ModelError(f"The Hub model {path} is gated", got=got, fix="accept its terms, and log in: hf auth login")
    if was(hub.RevisionNotFoundError):
        return ModelError(f"The Hub model {path} has no such revision", got=revision, fix="correct the revision")
    if was(hub.RepositoryNotFoundError):
        fix = "correct the id (owner/name), give a folder, or log in if it is private: hf auth login"
        return ModelError(f"There is no model {path}, neither as a folder nor on the Hub", got=got, fix=fix)
    if was(hub.LocalEntryNotFoundError, ConnectionError):
        return unreachable(path, got)
    return ModelError(f"The model {path} can't be loaded", got=got)


def check_complete(source: Source, class_name: str, found: dict[str, Any]) -> None:
    """Raise `ModelError` with a list of all problems unless exactly the model's tensors were loaded.

    ``found`` is what ``from_pretrained(…, output_loading_info=True)`` returns, with mismatched keys as name, shape on
    disk and shape in the model.
    """
    problems = {
        "missing": found["missing_keys"],
        "unexpected": found["unexpected_keys"],
        "misshapen": [f"{name} {tuple(disk)} for {tuple(model)}" for name, disk, model in found["mismatched_keys"]],
        "unreadable": found["error_msgs"],
    }
    lines = [f"{len(names)} {kind}: {_few(sorted(names))}" for kind, names in problems.items() if names]
    if lines:
        expected = "exactly the tensors of the model, in their shapes"
        fix = "use weights and config of the same model, and the backend for its kind"
        what = f"The weights of {source} don't fit {class_name}"
        raise ModelError(what, got="; ".join(lines), expected=expected, fix=fix)


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
