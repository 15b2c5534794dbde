"""Convert published weights to a folder that ``from_pretrained`` loads: safetensors, config, tokenizer and processor.

The source is either Vicuna with the published delta or a full checkpoint. The delta is added as in
``ferret/model/apply_delta.py``: in float16, for Vicuna's rows of the vocabulary only; tensors that Vicuna does not have
are copied from the delta. Shards are processed one at a time, so that the model need not fit in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig

from spr.core.atomic import atomic_dir
from spr.core.outputs import made_before, write_marker
from spr.core.progress import Progress
from spr.models.errors import ModelError
from spr.models.loading import check_complete, clear_errors, clear_write_errors
from spr.models.ported.ferret.configuration import FerretConfig
from spr.models.ported.ferret.modeling import FerretForConditionalGeneration
from spr.models.ported.ferret.processing import FerretProcessor
from spr.models.ported.ferret.published import (
    is_by_token,
    is_published,
    local_folder,
    nested_config,
    our_name,
    vision_name,
    vision_shards,
    with_image_row,
)
from spr.models.ported.tensor_files import Shards

SHARD_BYTES = 4 * 2**30
"""Maximum size of a written file, and approximately the memory needed to write it."""

_COMMAND, _WHAT = "spr convert ferret", "a converted model"
_ADDED = ("model.mm_projector.", "model.region_geo_sampler.")
"""Prefixes of the tensors that the base does not have; they are copied from the delta."""


class _Planned(NamedTuple):
    """A tensor to write: its shape, its size in bytes, and a function that computes it."""

    shape: tuple[int, ...]
    size: int
    make: Callable[[], Tensor]


Plan = dict[str, _Planned]


def convert_delta(
    base: str | os.PathLike[str],
    delta: str | os.PathLike[str],
    out: Path,
    *,
    vision: str | os.PathLike[str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Add the published delta to Vicuna and write the result.

    Args:
        base: Folder or hub id of Vicuna v1.3, in the size of the delta (7B or 13B).
        delta: Folder or hub id of the published delta.
        out: Output folder; must not exist or be empty.
        vision: Folder or hub id of CLIP ViT-L/14-336; None for the one named by the delta (``openai/…`` on the hub).
        shard_bytes: Maximum size of a written file.

    Returns:
        ``out``.

    Raises:
        ModelError: if a part is missing, a pickle contains more than tensors, or the delta does not match the base.
        RunError: if ``out`` holds anything else than this same model, or can't be written.
    """
    made_from = {"base": str(base), "delta": str(delta), "vision": vision and str(vision)}
    if made_before(out, _COMMAND, _WHAT, made_from):
        return out
    folder = local_folder(delta)
    config = _published(folder)
    differences, originals = Shards(folder), Shards(local_folder(base))
    _check_fit(folder, originals, differences)
    plan: Plan = {}
    for name in differences:
        ours = our_name(name)
        if ours is None:
            continue
        added = name in originals
        make = _adder(name, originals, differences) if added else _taker(name, differences, torch.float16)
        plan[ours] = _planned(name, differences, make, 2)
    return _write(config, folder, plan, out, vision, shard_bytes, torch.float16, made_from)


def convert_checkpoint(
    checkpoint: str | os.PathLike[str],
    out: Path,
    *,
    vision: str | os.PathLike[str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a full checkpoint of the published code (pickles or safetensors) in this package's layout.

    Args:
        checkpoint: Its folder or hub id.
        out: Output folder; must not exist or be empty.
        vision: See `convert_delta`.
        shard_bytes: Maximum size of a written file.

    Returns:
        ``out``. Tensors keep their dtypes; a separate vision tower gets the dtype of the head.

    Raises:
        ModelError: if a part is missing, or a pickle contains more than tensors.
        RunError: if ``out`` holds anything else than this same model, or can't be written.
    """
    made_from = {"checkpoint": str(checkpoint), "vision": vision and str(vision)}
    if made_before(out, _COMMAND, _WHAT, made_from):
        return out
    folder = local_folder(checkpoint)
    config = _published(folder)
    shards = Shards(folder)
    plan: Plan = {}
    for name in shards:
        ours = our_name(name)
        if ours is not None:
            plan[ours] = _planned(name, shards, _taker(name, shards), shards[name].element_size())
    dtype = shards["lm_head.weight"].dtype if "lm_head.weight" in shards else torch.float16
    return _write(config, folder, plan, out, vision, shard_bytes, dtype, made_from)


def _published(folder: Path) -> dict[str, Any]:
    with clear_errors(folder):
        config, _ = PreTrainedConfig.get_config_dict(folder)
    if not is_published(config):
        got = f"model_type {config.get('model_type')}, {config.get('architectures')}"
        expected = "the config.json of FERRETLlamaForCausalLM"
        raise ModelError(f"{folder} does not have the layout of Ferret's authors", got=got, expected=expected)
    return dict(config)


def _check_fit(folder: Path, base: Shards, delta: Shards) -> None:
    """Raise unless the delta has all tensors of the base with their shapes, and else only Ferret's own parts."""
    misshapen = []
    for name in (name for name in base if name in delta and our_name(name) is not None):
        small, large = base.shape(name), delta.shape(name)
        fits = small[0] <= large[0] and small[1:] == large[1:] if is_by_token(name) else small == large
        if not fits:
            misshapen.append((name, large, small))
    new = [name for name in delta if name not in base and our_name(name) is not None]
    found = {
        "missing_keys": [name for name in base if name not in delta and our_name(name) is not None],
        "unexpected_keys": [name for name in new if not name.startswith((*_ADDED, "model.vision_tower."))],
        "mismatched_keys": misshapen,
        "error_msgs": [],
    }
    check_complete(folder, f"the base model in {base.folder}", found)


def _planned(name: str, shards: Shards, make: Callable[[], Tensor], width: int) -> _Planned:
    shape = shards.shape(name)
    if is_by_token(name):
        shape = (shape[0] + 1, *shape[1:])
    count = width
    for side in shape:
        count *= side
    return _Planned(shape, count, make)


def _taker(name: str, shards: Shards, dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
    return lambda: with_image_row(name, shards[name].to(dtype or shards[name].dtype))


def _adder(name: str, base: Shards, delta: Shards) -> Callable[[], Tensor]:
    def make() -> Tensor:
        total = delta[name].to(torch.float16, copy=True)
        original = base[name].to(torch.float16)
        total[: len(original)] += original
        return with_image_row(name, total)

    return make


def _write(
    published: dict[str, Any],
    folder: Path,
    plan: Plan,
    out: Path,
    vision: Any,
    shard_bytes: int,
    dtype: torch.dtype,
    made_from: Mapping[str, Any],
) -> Path:
    """Check the plan against the config, then write the folder."""
    seen = None
    if vision is not None or not any(name.startswith("model.vision_tower.") for name in plan):
        tower = vision_shards(published, folder, vision)
        plan = {name: item for name, item in plan.items() if not name.startswith("model.vision_tower.")}
        for name in tower:
            ours = vision_name(name)
            if ours is not None:
                plan[ours] = _planned(name, tower, _taker(name, tower, dtype), dtype.itemsize)
        seen = tower.folder
    config = FerretConfig.from_dict(nested_config(published, folder, seen))
    _check_plan(folder, config, plan)
    with atomic_dir(out, replace=False) as partial, clear_write_errors(out):
        _write_tensors(plan, partial, shard_bytes)
        config.dtype = dtype
        config.save_pretrained(partial)
        FerretProcessor.for_config(config, folder).save_pretrained(partial)
        GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0).save_pretrained(partial)
        write_marker(partial, _COMMAND, made_from)
    return out


def expected_shapes(config: FerretConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a model with this config, without allocating them.

    >>> shapes = expected_shapes(FerretConfig())
    >>> len(shapes), shapes["model.language_model.layers.31.mlp.up_proj.weight"]
    (700, (11008, 4096))
    """
    with torch.device("meta"):
        model = FerretForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _check_plan(folder: Path, config: FerretConfig, plan: Mapping[str, _Planned]) -> None:
    expected = expected_shapes(config)
    found = {
        "missing_keys": expected.keys() - plan.keys(),
        "unexpected_keys": plan.keys() - expected.keys(),
        "mismatched_keys": [
            (name, item.shape, expected[name])
            for name, item in plan.items()
            if name in expected and item.shape != expected[name]
        ],
        "error_msgs": [],
    }
    check_complete(folder, "FerretForConditionalGeneration", found)


def _write_tensors(plan: Plan, folder: Path, shard_bytes: int) -> None:
    """Write the tensors in files of at most ``shard_bytes`` (or one tensor), and the index."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, item in plan.items():
        if groups[-1] and filled + item.size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += item.size
    index: dict[str, str] = {}
    with Progress("converting", len(plan), "tensors") as progress:
        for number, names in enumerate(groups, start=1):
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            tensors = {}
            for name in names:
                tensors[name] = plan[name].make().contiguous()
                progress.advance()
            save_file(tensors, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(names, file)
    total = {"total_size": sum(item.size for item in plan.values())}
    text = json.dumps({"metadata": total, "weight_map": index}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
