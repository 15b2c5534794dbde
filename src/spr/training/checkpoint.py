"""Checkpoints: the adapter, the optimiser and the random states after a step; enough to go on to the same losses."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from spr.config import changed_fields
from spr.core.atomic import atomic_file, write_atomically
from spr.core.errors import RunError

KEPT = 2
"""Checkpoints that stay; older ones are deleted once a newer one is whole."""
_META = "checkpoint.json"
_OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


def save_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    step: int,
    settings: Mapping[str, Any],
    values: Mapping[str, float],
) -> Path:
    """Write ``folder/step-000123``; its `checkpoint.json`, written last, says that it is whole.

    Args:
        folder: Of all checkpoints.
        accelerator: Of the training; all processes call this.
        model: As prepared.
        optimizer: As prepared.
        step: How many steps have been taken.
        settings: What decides the training; held against the config when it is resumed.
        values: Of the step, for who goes on behind the last one.
    """
    made = folder / f"step-{step:06d}"
    if accelerator.is_main_process:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
    accelerator.wait_for_everyone()
    rng = gather_object([_random_states()])
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.save_state(str(made / "engine"), exclude_frozen_parameters=True)
        state: dict[str, Any] = {"rng": rng}
    else:
        parameters, moments = get_state_dict(model, optimizer_of(optimizer), options=_OPTIONS)
        state = {"parameters": parameters, "optimizer": moments, "rng": rng}
    if accelerator.is_main_process:
        with atomic_file(made / "state.pt") as file:
            torch.save(state, file)
        meta = {"step": step, "settings": settings, "values": values}
        write_atomically(made / _META, json.dumps(meta, indent=1).encode())
        kept = _whole(folder)[-KEPT:]
        for old in folder.glob("step-*"):
            if old not in kept:
                # Its marker goes first: a deletion that is cut short must not leave what looks whole.
                (old / _META).unlink(missing_ok=True)
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return made


def newest_checkpoint(folder: Path, settings: Mapping[str, Any]) -> Path | None:
    """The newest whole checkpoint, or None.

    Raises:
        RunError: if it was made with other settings, naming the fields, or is damaged.
    """
    whole = _whole(folder)
    if not whole:
        return None
    check_settings(_read_meta(whole[-1])["settings"], settings, folder.parent)
    return whole[-1]


def read_finished(path: Path, adapter: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `save_finished` wrote of a training that is done and whose adapter is there, else None.

    Raises:
        RunError: if it was made with other settings, naming the fields, or is damaged.
    """
    if not path.is_file() or not (adapter / "adapter_model.safetensors").is_file():
        return None
    try:
        finished: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        before = finished["settings"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        fix = f"delete it; the training goes on from the newest checkpoint in {path.parent}"
        raise RunError(f"{path} is damaged", got=error, fix=fix) from None
    check_settings(before, settings, path.parent)
    return finished


def save_finished(path: Path, settings: Mapping[str, Any], **details: Any) -> None:
    """Note that a training is done; written last, once the adapter is there."""
    write_atomically(path, json.dumps({"settings": settings, **details}, indent=1).encode())


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Hold what a training was begun with against what it would go on with.

    Raises:
        RunError: naming the fields that differ.
    """
    # As they come out of a file: tuples are lists there.
    changed = changed_fields(before, json.loads(json.dumps(now)))
    if changed:
        lines = "; ".join(f"{name}: {old} → {new}" for name, (old, new) in changed.items())
        fix = f"use the old values, or another --out, or delete {folder}"
        raise RunError(f"{folder} was made under another config", got=lines, expected="no change", fix=fix)


def load_checkpoint(
    made: Path, accelerator: Accelerator, model: nn.Module, optimizer: Any
) -> tuple[int, dict[str, float]]:
    """Put adapter, optimiser and random states back; returns how many steps had been taken, and the last one's values.

    Raises:
        RunError: if it is damaged.
    """
    meta = _read_meta(made)
    try:
        state = torch.load(made / "state.pt", map_location="cpu", weights_only=True)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise _damaged(made, error) from None
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.load_state(str(made / "engine"), load_module_strict=False)
    else:
        options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)
        set_state_dict(
            model,
            optimizer_of(optimizer),
            model_state_dict=state["parameters"],
            optim_state_dict=state["optimizer"],
            options=options,
        )
    states = state["rng"]
    _set_random_states(states[accelerator.process_index % len(states)])
    return int(meta["step"]), dict(meta["values"])


def save_adapter(folder: Path, accelerator: Accelerator, model: nn.Module) -> None:
    """The adapter as PEFT saves it, in float32; all processes call this.

    It appears whole or not at all: written beside its place first.
    """
    peft: PeftModel = accelerator.unwrap_model(model).peft
    state = accelerator.get_state_dict(model) if accelerator.distributed_type == DistributedType.DEEPSPEED else None
    if state is None:
        state = get_state_dict(model, (), options=_OPTIONS)[0]
    if accelerator.is_main_process:
        adapter = get_peft_model_state_dict(peft, {name.removeprefix("peft."): t for name, t in state.items()})
        beside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        kind = type(peft.get_base_model())
        # As PEFT notes it, too: `AutoPeftModel` finds the class, and `spr merge` tells models of equal shapes apart.
        made_on = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
        peft.peft_config["default"].save_pretrained(str(beside), auto_mapping_dict=made_on)
        tensors = {name: tensor.contiguous() for name, tensor in adapter.items()}
        save_file(tensors, beside / "adapter_model.safetensors", metadata={"format": "pt"})
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    accelerator.wait_for_everyone()


def optimizer_of(optimizer: Any) -> Any:
    """The optimiser inside of Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _whole(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"step-*/{_META}"))


def _read_meta(made: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads((made / _META).read_text(encoding="utf-8"))
        if not {"step", "settings", "values"} <= set(meta):
            raise ValueError(f"{_META} lacks a field")
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(made, error) from None
    return meta


def _damaged(made: Path, error: Exception) -> RunError:
    fix = f"delete {made}; the training goes on from the checkpoint before it"
    got = " ".join(str(error).split())[:200]
    return RunError(f"The checkpoint {made} is damaged", got=got, fix=fix)


def _random_states() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
