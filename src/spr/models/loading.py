"""Loads models from disk or the Hugging Face Hub: completely and from safetensors only, or with one clear error.

Code from the model's repository never runs. transformers initializes missing tensors randomly, which gives wrong
results without an error; here a missing, unexpected or misshapen tensor is an error.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedConfig
from transformers.utils import logging

from spr.core.errors import ConfigError, SprError
from spr.models.batching import DeviceMemoryError

Source: TypeAlias = str | os.PathLike[str]
"""A folder in the format of ``save_pretrained``, or a model id of the Hub."""

DType: TypeAlias = torch.dtype | str
"""``torch.float32`` or ``"float32"``; ``"auto"`` is the dtype of the weights on disk."""

_SHOWN = 8  # tensors named in an error
_FEWEST_TOKENS = 16  # a vocabulary of only special tokens has about five

EMBEDDED = "embedded/"
"""`embedded/describer`, `embedded/scorer` and `embedded/detector` are the small models that ship with the package."""


class ModelError(SprError):
    """A model can't be loaded: it is missing, unreachable, incomplete or of the wrong kind."""


def model_source(model: str) -> str:
    """A folder or a model id of the Hub; `embedded/…` gives the folder inside the package.

    Raises:
        ConfigError: if there is no embedded model of this name.
    """
    if not model.startswith(EMBEDDED):
        return model
    folder = files("spr") / "embedded" / "weights" / model.removeprefix(EMBEDDED)
    if not folder.is_dir():
        expected = "embedded/describer, embedded/scorer or embedded/detector"
        raise ConfigError("There is no such embedded model", got=model, expected=expected)
    return str(folder)


def load_pretrained(
    model_class: Any,
    source: Source,
    *,
    revision: str | None = None,
    dtype: DType = torch.float32,
    device: str | torch.device | None = None,
    **kwargs: Any,
) -> Any:
    """Load a model with all of its weights, in eval mode and without gradients.

    Args:
        model_class: A class of transformers with ``from_pretrained``: ``CLIPModel``, ``AutoModelForImageTextToText``, …
        source: A folder or a hub id.
        revision: Branch, tag or commit of the hub's repository.
        dtype: Data type of the loaded weights.
        device: Device of the model; None leaves it where ``from_pretrained`` puts it (``device_map``, or the CPU).
        **kwargs: For ``from_pretrained`` (``device_map``, ``attn_implementation``, ``quantization_config``, …).

    Raises:
        ModelError: if the model is missing or unreachable, has no safetensors, needs a package that is not
            installed, or has missing, unexpected or misshapen tensors (all are listed).
        DeviceMemoryError: if it does not fit into the device's memory.
    """
    with clear_errors(source, revision), quiet_unless_terminal(source):
        model, found = model_class.from_pretrained(
            source,
            revision=revision or "main",
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            # Don't raise at the first misshapen tensor: check_complete lists all problems together.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **kwargs,
        )
        check_complete(source, type(model).__name__, found)
        if device is not None:
            model = model.to(device)
    return model.eval().requires_grad_(False)


def load_part(part_class: Any, source: Source, *, revision: str | None = None, **kwargs: Any) -> Any:
    """Load a tokenizer, image processor or config from a model's folder or repository.

    Raises:
        ModelError: as `load_pretrained`.
    """
    with clear_errors(source, revision):
        return part_class.from_pretrained(source, revision=revision or "main", trust_remote_code=False, **kwargs)


def read_model_type(source: Source, expected: Collection[str], *, revision: str | None = None) -> str:
    """Read the ``model_type`` of a model's config and check it.

    Raises:
        ModelError: if it is not an expected one, or there is no config.
    """
    with clear_errors(source, revision):
        config, _ = PreTrainedConfig.get_config_dict(source, revision=revision or "main")
        kind = config.get("model_type")
    if kind not in expected:
        fix = "choose a model of an expected type, or the backend for this one"
        raise ModelError(f"{source} is another kind of model", got=kind, expected=" or ".join(expected), fix=fix)
    return str(kind)


def load_tokenizer(source: Source, size: int, *, revision: str | None = None) -> Any:
    """Load a model's tokenizer and check it with `check_vocabulary`.

    Args:
        source: A folder or a hub id.
        size: The model's vocabulary size (``vocab_size`` of its config).
        revision: Branch, tag or commit of the hub's repository.

    Raises:
        ModelError: as `load_pretrained`, and if it does not belong to this model.
    """
    tokenizer = load_part(AutoTokenizer, source, revision=revision)
    check_vocabulary(source, tokenizer, size)
    return tokenizer


def check_vocabulary(source: Source, tokenizer: Any, size: int) -> None:
    """Raise `ModelError` if a tokenizer can't belong to a model with a vocabulary of ``size`` tokens.

    Either it has more tokens, or it has only special tokens, which is what transformers returns if the vocabulary file
    is missing.
    """
    if not _FEWEST_TOKENS <= len(tokenizer) <= size:
        raise ModelError(
            f"The tokenizer of {source} is not this model's",
            got=f"{len(tokenizer)} tokens",
            expected=f"{_FEWEST_TOKENS} to {size}, the model's vocabulary size",
            fix="copy the model's own tokenizer.json and tokenizer_config.json into the folder",
        )


def source_name(source: Source, revision: str | None = None, model: Any = None) -> str:
    """``id@revision``, as stored in candidates: the same name means the same weights.

    For a Hub model, the revision is the loaded commit. For a folder, the id is its name, and the revision is the first
    12 hex digits of the SHA-256 of its config and weights.

    Args:
        source: A folder or a hub id.
        revision: The requested revision, used if the commit is unknown.
        model: The loaded model, whose config contains the commit.
    """
    folder = Path(source)
    if folder.is_dir():
        return f"{folder.resolve().name}@{_digest(folder)}"
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    return f"{source}@{commit or revision or 'main'}"


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(name: str) -> torch.device:
    """The device that a config names; ``auto`` is `default_device`."""
    return default_device() if name == "auto" else torch.device(name)


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
def quiet_unless_terminal(source: Source) -> Iterator[None]:
    """Hide the weight-loading progress bar of a local folder when stderr is not a terminal."""
    if sys.stderr.isatty() or not Path(source).is_dir() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextmanager
def clear_errors(source: Source, revision: str | None = None) -> Iterator[None]:
    """Turn any exception of a call that loads something from ``source`` into one clear `ModelError`."""
    path = os.fspath(source)
    if not Path(path).is_dir() and (Path(path).is_absolute() or path.startswith(".") or path.count("/") > 1):
        raise ModelError("There is no such model folder", got=path, fix="check the path, or give a Hub id: owner/name")
    try:
        yield
    except SprError:
        raise
    except torch.OutOfMemoryError as error:
        fix = "use a smaller model, dtype bfloat16 or 4-bit weights"
        raise DeviceMemoryError(f"{source} does not fit into the device's memory", got=error, fix=fix) from error
    except Exception as error:  # users' files can cause any exception in other libraries
        raise _explain(path, revision, error) from error


def _explain(path: str, revision: str | None, error: BaseException) -> ModelError:
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__

    def was(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    got = " ".join(f"{type(error).__name__}: {error}".split())[:400]
    if Path(path).is_dir():
        fix = "use a folder from save_pretrained: config, model.safetensors, tokenizer and preprocessor files"
        return ModelError(f"{path} is not a complete model", got=got, fix=fix)
    if was(GatedRepoError):
        return ModelError(f"The Hub model {path} is gated", got=got, fix="accept its terms, and log in: hf auth login")
    if was(RevisionNotFoundError):
        return ModelError(f"The Hub model {path} has no such revision", got=revision, fix="correct the revision")
    if was(RepositoryNotFoundError):
        fix = "correct the id (owner/name), give a folder, or log in if it is private: hf auth login"
        return ModelError(f"There is no model {path}, neither as a folder nor on the Hub", got=got, fix=fix)
    if was(LocalEntryNotFoundError, ConnectionError):
        fix = f"connect to the network, download it first (hf download {path}), or give a folder"
        return ModelError(f"The Hub is unreachable, and {path} is neither cached nor a folder", got=got, fix=fix)
    return ModelError(f"The model {path} can't be loaded", got=got)


def check_complete(source: Source, class_name: str, found: dict[str, Any]) -> None:
    """Raise `ModelError` with a list of all problems unless exactly the model's tensors were loaded.

    Args:
        source: The folder or hub id that was loaded.
        class_name: Name of the model's class.
        found: The ``missing_keys``, ``unexpected_keys``, ``mismatched_keys`` (name, shape on disk, shape of the model)
            and ``error_msgs`` of ``from_pretrained(…, output_loading_info=True)``.
    """
    misshapen = [f"{name} {tuple(disk)} for {tuple(model)}" for name, disk, model in found["mismatched_keys"]]
    problems = {
        "missing": sorted(found["missing_keys"]),
        "unexpected": sorted(found["unexpected_keys"]),
        "misshapen": sorted(misshapen),
        "unreadable": sorted(found["error_msgs"]),
    }
    lines = [f"{len(names)} {kind}: {_few(names)}" for kind, names in problems.items() if names]
    if lines:
        raise ModelError(
            f"The weights of {source} don't fit {class_name}",
            got="; ".join(lines),
            expected="exactly the tensors of the model, in their shapes",
            fix="use weights and config of the same model, and the backend for its kind",
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(
        [*folder.glob("config.json"), *folder.glob("adapter_config.json"), *folder.glob("*.safetensors")]
    ):
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:12]
