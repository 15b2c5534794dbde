"""What a training writes: checkpoints to resume from, the adapter, and the adapter merged into its model.

A checkpoint holds the adapter, the optimizer and the random states, which is enough to resume to the same losses.
Folders are written atomically: they appear complete or not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from spr.config import changed_fields
from spr.core import FORMAT_VERSION
from spr.core.atomic import atomic_dir, is_temporary, recover, write_atomically
from spr.core.documents import read_json
from spr.core.errors import InputError, RunError
from spr.core.outputs import MARKER, check_output, file_hashes, made_before, write_marker
from spr.core.paths import is_dir
from spr.core.progress import Progress
from spr.models.custom_models import class_name, load_mllm, load_trainable_config
from spr.models.families import FAMILIES
from spr.models.image_processors import load_processor
from spr.models.loading import check_adapter_files, clear_write_errors, hidden_bars, model_source, source_name
from spr.training.trainee import renamed_properties

KEPT = 2
"""Number of checkpoints that are kept; older ones are deleted once a newer one is complete."""
_META = "checkpoint.json"
_STATE = "state.pt"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_TRAIN, _MERGE = "spr train", "spr merge"
_STEP = re.compile(r"step-\d{6,}")
_OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, eq=False)
class TrainingState:
    """The objects whose state a checkpoint holds: an accelerator, and model and optimizer as it prepared them."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: Any

    @property
    def _plain_optimizer(self) -> Any:  # without the wrapper of Accelerate
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def _deepspeed(self) -> bool:
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    def save(self, folder: Path, step: int, fingerprint: Mapping[str, Any], values: Mapping[str, float]) -> Path:
        """Write the checkpoint ``folder/step-000123``; all processes call this together.

        The fingerprint determines the training, and is checked when it is resumed. ``values`` are the metrics of the
        last step, for a run that resumes after it.
        """
        path, main = folder / f"step-{step:06d}", self.accelerator.is_main_process
        with atomic_dir(path) if main else nullcontext() as temporary:
            (shared,) = broadcast_object_list([temporary])
            cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
            state: dict[str, Any] = {"rng": gather_object([{"cpu": torch.get_rng_state(), "cuda": cuda}])}
            if self._deepspeed:
                self.accelerator.save_state(str(shared / "engine"), exclude_frozen_parameters=True)
            else:
                parameters, moments = get_state_dict(self.model, self._plain_optimizer, options=_OPTIONS)
                state |= {"parameters": parameters, "optimizer": moments}
            if main:
                with clear_write_errors(path):
                    torch.save(state, shared / _STATE)
                meta = {"format_version": FORMAT_VERSION, "step": step, "fingerprint": fingerprint, "values": values}
                meta["files"] = file_hashes(shared, [_STATE])
                (shared / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        if main:
            ours = {path for path in folder.iterdir() if _STEP.fullmatch(path.name) or is_temporary(path)}
            for old in ours - set(_complete(folder)[-KEPT:]):
                # The metadata first: a deletion that is cut short must not leave a folder that looks complete.
                (old / _META).unlink(missing_ok=True)
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        return path

    def load(self, folder: Path, fingerprint: Mapping[str, Any]) -> tuple[Path, int, dict[str, float]] | None:
        """Restore adapter, optimizer and random states from the newest complete checkpoint in a folder.

        Returns the checkpoint, the number of steps taken, and the metrics of the last one; None without a checkpoint.
        Raises `RunError` if it belongs to another training, was written by another version, or is damaged.
        """
        if (newest := check_checkpoint(folder, fingerprint)) is None:
            return None
        path, meta = newest
        what = f"The checkpoint {path}"
        if "files" in meta and meta["files"] != file_hashes(path, [_STATE]):
            raise _damaged(what, path, ValueError(f"{_STATE} is missing or has changed"))
        try:
            self._restore(path)
            return path, int(meta["step"]), {str(name): float(value) for name, value in meta["values"].items()}
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # damaged files can cause any exception in other libraries
            raise _damaged(what, path, error) from None

    def _restore(self, path: Path) -> None:
        state = torch.load(path / _STATE, map_location="cpu", weights_only=True)
        if self._deepspeed:
            self.accelerator.load_state(str(path / "engine"), load_module_strict=False)
        else:
            options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)
            states = {"model_state_dict": state["parameters"], "optim_state_dict": state["optimizer"]}
            set_state_dict(self.model, self._plain_optimizer, **states, options=options)
        own = state["rng"][self.accelerator.process_index % len(state["rng"])]
        torch.set_rng_state(own["cpu"])
        if own["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"])

    def save_adapter(self, folder: Path) -> dict[str, str]:
        """Write the adapter as PEFT does, in float32; all processes call this together.

        The folder is replaced atomically: if writing fails, an adapter that was there before is still there. Returns
        the SHA-256 of its files by name, for `save_finished`; nothing except on the main process.
        """
        files: dict[str, str] = {}
        peft: PeftModel = self.accelerator.unwrap_model(self.model).peft
        if self._deepspeed:
            state = self.accelerator.get_state_dict(self.model)
        else:
            state = get_state_dict(self.model, (), options=_OPTIONS)[0]
        if self.accelerator.is_main_process:
            adapter = get_peft_model_state_dict(peft, {name.removeprefix("peft."): t for name, t in state.items()})
            model_class = type(peft.get_base_model())
            # PEFT's own fields: `AutoPeftModel` finds the class by them, and `merge_adapter` checks it.
            mapping = {"base_model_class": model_class.__name__, "parent_library": model_class.__module__}
            with atomic_dir(folder) as temporary, clear_write_errors(folder):
                peft.peft_config["default"].save_pretrained(str(temporary), auto_mapping_dict=mapping)
                tensors = {name: tensor.contiguous() for name, tensor in adapter.items()}
                save_file(tensors, temporary / _ADAPTER_FILES[1], metadata={"format": "pt"})
                files = write_marker(temporary, _TRAIN)
        self.accelerator.wait_for_everyone()
        return files


def check_checkpoint(folder: Path, fingerprint: Mapping[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The newest complete checkpoint in a folder and its metadata, or None.

    Raises `RunError` if it belongs to another training, or was written by another version.
    """
    if not (complete := _complete(folder)):
        return None
    path, names = complete[-1], {"step", "fingerprint", "values"}
    meta = _read_json(path / _META, names, f"The checkpoint {path}", delete=path, training=folder.parent)
    check_fingerprint(meta["fingerprint"], fingerprint, folder.parent)
    return path, meta


def _complete(folder: Path) -> list[Path]:
    found = [path.parent for path in folder.glob(f"step-*/{_META}") if _STEP.fullmatch(path.parent.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


_TYPES = {"step": int, "steps": int, "seconds": int | float, "fingerprint": dict, "values": dict, "last": dict}


def _read_json(path: Path, fields: set[str], what: str, *, delete: Path, training: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path.name} is not a JSON object")
        otherwise = f"add --name NAME to train beside it, or delete {training} to train again"
        check_version(content.get("format_version"), path, otherwise)
        if not fields <= set(content):
            raise ValueError(f"{path.name} lacks a field")
        wrong = [name for name in fields & set(_TYPES) if not isinstance(content[name], _TYPES[name])]
        if wrong:
            raise ValueError(f"{path.name} has a wrong value of {', '.join(wrong)}")
    except (OSError, ValueError) as error:
        raise _damaged(what, delete, error) from None
    return content


def _damaged(what: str, delete: Path, error: Exception) -> RunError:
    fix = f"delete {delete}; training then resumes from the newest checkpoint that is left"
    return RunError(f"{what} is damaged", got=" ".join(str(error).split())[:200], fix=fix)


def check_version(version: object, path: Path, otherwise: str) -> None:
    """Raise `RunError` if a file names another format version, or none; ``otherwise`` is what the user can do then."""
    if version != FORMAT_VERSION:
        got, fix = version or "1 (none is given)", f"use the SPR version that wrote it, or {otherwise}"
        raise RunError(f"{path} was written by another version of SPR", got=got, expected=FORMAT_VERSION, fix=fix)


def check_fingerprint(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise `RunError` if a training has changed since it was started, naming the fields that differ."""
    # Through JSON, because tuples come back from a file as lists.
    changed = changed_fields(before, json.loads(json.dumps(now)))
    if changed:
        lines = "; ".join(f"{name}: {old} → {new}" for name, (old, new) in changed.items())
        fix = "use the old values, or add --name NAME (in a sweep: another `name`), which trains beside it and keeps it"
        if "pairs" in changed:
            fix = f"if pairs were reviewed since, `spr train --reviews ignore` takes them as they were; or {fix}"
        raise RunError(f"{folder} was made under another config", got=lines, expected="no change", fix=fix)


def check_adapter_folder(adapter: Path, training: Path) -> None:
    """Raise `RunError` if there is an adapter that no training wrote, which must not be replaced."""
    recover(adapter)

    def is_ours(folder: Path) -> bool:
        # A training of an earlier version, which wrote no marker, has left its checkpoints or its end.
        begun = (training / "finished.json").is_file() or bool(_complete(training / "checkpoints"))
        return (folder / MARKER).is_file() or (begun and (folder / _ADAPTER_FILES[1]).is_file())

    check_output(adapter, "an adapter that `spr train` wrote", is_ours, folder=True)


def read_finished(
    path: Path, adapter: Path, fingerprint: Mapping[str, Any], tell: Callable[[str], None] = lambda _: None
) -> dict[str, Any] | None:
    """The details that `save_finished` wrote; None if the training is not finished or its adapter is incomplete.

    ``tell`` is called with a line for the user if the adapter is not the one that was trained, so that it has to be
    written again, from the last checkpoint. Raises `RunError` if the file belongs to another training, was written by
    another version, or is damaged.
    """
    if not path.is_file():
        return None
    details = ("steps", "seconds", "last")
    finished = _read_json(path, {"fingerprint", *details}, str(path), delete=path, training=path.parent)
    check_fingerprint(finished["fingerprint"], fingerprint, path.parent)
    found, expected = file_hashes(adapter, _ADAPTER_FILES), finished.get("adapter")
    if len(found) == len(_ADAPTER_FILES) and expected in (None, found):  # no hashes: written by an earlier version
        return {name: finished[name] for name in details}
    changed = [
        name for name in _ADAPTER_FILES if not isinstance(expected, dict) or found.get(name) != expected.get(name)
    ]
    tell(f"{adapter} is written again: {' and '.join(changed)} missing or changed since the training.")
    return None


def save_finished(
    path: Path,
    fingerprint: Mapping[str, Any],
    *,
    steps: int,
    seconds: float,
    last: Mapping[str, float],
    adapter: Mapping[str, str],
) -> None:
    """Record that a training is finished; written last, after the adapter, whose files have these SHA-256."""
    details = {"steps": steps, "seconds": seconds, "last": last, "adapter": adapter}
    content = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint, **details}
    write_atomically(path, json.dumps(content, indent=1).encode())


# ── merging ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def merge_adapter(adapter: Path, out: Path, *, model: str | None = None, revision: str | None = None) -> None:
    """Merge an adapter in PEFT's format into its model: ``W + (alpha / r) B A`` in each adapted layer.

    The result, in a new or empty folder, loads without PEFT. The model is a folder or a model id of the Hub; by default
    the one that the adapter names, with its revision. If ``out`` already holds this result, nothing is done.

    Raises:
        InputError: if ``adapter`` is not an adapter or does not fit the model.
        RunError: if ``out`` holds anything else, or can't be written.
        ModelError: if the model can't be loaded.
    """
    if not (adapter / "adapter_config.json").is_file():
        expected = "a run with an adapter, or a folder with adapter_config.json"
        raise InputError(f"{adapter} holds no adapter", expected=expected, fix="make one with `spr train`")
    try:
        config = PeftConfig.from_pretrained(os.fspath(adapter))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{adapter / 'adapter_config.json'} can't be read", got=error) from None
    source = model or model_source(str(config.base_model_name_or_path))
    revision = revision if model is not None or revision is not None else config.revision
    check_adapter_files(adapter)
    identity = {"adapter": source_name(adapter).partition("@")[2], "model": source, "revision": revision}
    if made_before(out, _MERGE, "a merged model", identity):
        return
    model_config = load_trainable_config(source, revision=revision)
    kind = model_config.model_type
    trained_class, model_class = (config.auto_mapping or {}).get("base_model_class"), class_name(kind)
    fix = "give the model that the adapter was trained on with --model"
    if trained_class not in (None, model_class):
        raise InputError(f"{adapter} does not fit {source}", got=model_class, expected=trained_class, fix=fix)
    processor = load_processor(source, kind, family=FAMILIES[kind], revision=revision)
    base = load_mllm(source, model_config, revision=revision, dtype="auto")
    try:
        with renamed_properties(), warnings.catch_warnings():
            # For layers whose tensors are missing, PEFT only warns and leaves them as they were.
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            merged: Any = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, OSError, SafetensorError, UserWarning) as error:
        got = " ".join(str(error).split())[:300]
        raise InputError(f"{adapter} does not fit {source}", got=got, fix=fix) from error
    saving = Progress(f"writing {out.name}")
    with saving, atomic_dir(out, replace=False) as temporary, clear_write_errors(out):
        with hidden_bars():
            merged.save_pretrained(temporary)
        if not is_dir(source):
            for part in (processor.tokenizer, processor.image_processor, processor):
                part.save_pretrained(temporary)
        else:
            # The publisher's own files: the loaded processor has been changed to run without torchvision.
            for path in Path(source).iterdir():
                weights = path.suffix in {".safetensors", ".bin", ".pt"} or path.name.endswith(".index.json")
                known = weights or path.name in ("README.md", MARKER) or (temporary / path.name).exists()
                if path.is_file() and not known:
                    shutil.copyfile(path, temporary / path.name)
        write_marker(temporary, _MERGE, identity)
