"""What a training writes: checkpoints to resume from, the adapter, and the adapter merged into its model.

A checkpoint holds the adapter, the optimizer and the random states, which is enough to resume to the same losses.
Folders are written atomically: they appear complete or not at all.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
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
from spr.core.atomic import atomic_dir, is_temporary, write_atomically
from spr.core.errors import InputError, RunError
from spr.models.custom_models import load_config, load_mllm
from spr.models.families import FAMILIES
from spr.models.image_processors import load_processor
from spr.training.trainee import renamed_properties

KEPT = 2
"""Number of checkpoints that are kept; older ones are deleted once a newer one is complete."""
_META = "checkpoint.json"
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
                torch.save(state, shared / "state.pt")
                meta = {"format_version": FORMAT_VERSION, "step": step, "fingerprint": fingerprint, "values": values}
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
        if not (complete := _complete(folder)):
            return None
        path = complete[-1]
        names = {"step", "fingerprint", "values"}
        meta = _read_json(path / _META, names, f"The checkpoint {path}", delete=path, training=folder.parent)
        check_fingerprint(meta["fingerprint"], fingerprint, folder.parent)
        try:
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise _damaged(f"The checkpoint {path}", path, error) from None
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
        return path, int(meta["step"]), dict(meta["values"])

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as PEFT does, in float32; all processes call this together.

        The folder is replaced atomically: if writing fails, an adapter that was there before is still there.
        """
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
            with atomic_dir(folder) as temporary:
                peft.peft_config["default"].save_pretrained(str(temporary), auto_mapping_dict=mapping)
                tensors = {name: tensor.contiguous() for name, tensor in adapter.items()}
                save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        self.accelerator.wait_for_everyone()


def _complete(folder: Path) -> list[Path]:
    found = [path.parent for path in folder.glob(f"step-*/{_META}") if _STEP.fullmatch(path.parent.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _read_json(path: Path, fields: set[str], what: str, *, delete: Path, training: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{path.name} is not a JSON object")
        check_version(content.get("format_version"), path, f"delete {training} to train again")
        if not fields <= set(content):
            raise ValueError(f"{path.name} lacks a field")
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
        fix = f"use the old values, or another --out, or delete {folder}"
        raise RunError(f"{folder} was made under another config", got=lines, expected="no change", fix=fix)


def read_finished(path: Path, adapter: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The details that `save_finished` wrote; None if the training is not finished or its adapter is missing.

    Raises `RunError` if the file belongs to another training, was written by another version, or is damaged.
    """
    if not path.is_file() or not (adapter / "adapter_model.safetensors").is_file():
        return None
    details = ("steps", "seconds", "last")
    finished = _read_json(path, {"fingerprint", *details}, str(path), delete=path, training=path.parent)
    check_fingerprint(finished["fingerprint"], fingerprint, path.parent)
    return {name: finished[name] for name in details}


def save_finished(
    path: Path, fingerprint: Mapping[str, Any], *, steps: int, seconds: float, last: Mapping[str, float]
) -> None:
    """Record that a training is finished; written last, after the adapter."""
    details = {"steps": steps, "seconds": seconds, "last": last}
    content = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint, **details}
    write_atomically(path, json.dumps(content, indent=1).encode())


# ── merging ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def merge_adapter(adapter: Path, out: Path, *, model: str | None = None, revision: str | None = None) -> None:
    """Merge an adapter in PEFT's format into its model: ``W + (alpha / r) B A`` in each adapted layer.

    The result, in a new or empty folder, loads without PEFT. The model is a folder or a model id of the Hub; by default
    the one that the adapter names, with its revision.

    Raises:
        InputError: if ``adapter`` is not an adapter or does not fit the model.
        RunError: if ``out`` is not empty.
        ModelError: if the model can't be loaded.
    """
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty", fix="choose a new folder for --out")
    if not (adapter / "adapter_config.json").is_file():
        expected = "a run with an adapter, or a folder with adapter_config.json"
        raise InputError(f"{adapter} holds no adapter", expected=expected, fix="make one with `spr train`")
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{adapter / 'adapter_config.json'} can't be read", got=error) from None
    source = model or str(config.base_model_name_or_path)
    revision = revision if model is not None or revision is not None else config.revision
    model_config = load_config(source, revision=revision, expected=FAMILIES)
    base = load_mllm(source, model_config, revision=revision, dtype="auto")
    trained_class, model_class = (config.auto_mapping or {}).get("base_model_class"), type(base).__name__
    fix = "give the model that the adapter was trained on with --model"
    if trained_class not in (None, model_class):
        raise InputError(f"{adapter} does not fit {source}", got=model_class, expected=trained_class, fix=fix)
    try:
        with renamed_properties(), warnings.catch_warnings():
            # For layers whose tensors are missing, PEFT only warns and leaves them as they were.
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            merged: Any = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, OSError, SafetensorError, UserWarning) as error:
        got = " ".join(str(error).split())[:300]
        raise InputError(f"{adapter} does not fit {source}", got=got, fix=fix) from error
    kind = model_config.model_type
    processor = load_processor(source, kind, family=FAMILIES[kind], revision=revision)
    with atomic_dir(out) as temporary:
        merged.save_pretrained(temporary)
        if not Path(source).is_dir():
            for part in (processor.tokenizer, processor.image_processor, processor):
                part.save_pretrained(temporary)
            return
        # The publisher's own files: the loaded processor has been changed to run without torchvision.
        for path in Path(source).iterdir():
            weights = path.suffix in {".safetensors", ".bin", ".pt"} or path.name.endswith(".index.json")
            if path.is_file() and not weights and not (temporary / path.name).exists() and path.name != "README.md":
                shutil.copy2(path, temporary / path.name)
