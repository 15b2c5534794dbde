"""Read folders in the authors' layout: a flat Llama config, their tensor names, and a separate vision tower.

Source: github.com/apple/ml-ferret, ``ferret/model/ferret_arch.py`` (names), ``model/apply_delta.py`` (contents of a
delta), ``train/ferret_trainer.py`` (the folder ``vision_tower``) and ``experiments/ferret_7b_train.sh`` (settings).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig

from spr.core.paths import is_dir
from spr.models.errors import ModelError
from spr.models.loading import clear_errors
from spr.models.ported.tensor_files import Shards

CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
"""Sizes of CLIP ViT-L/14-336, the vision tower of both published models."""

_NAMES = (
    (re.compile(r"model\.(?=embed_tokens\.|layers\.|norm\.)"), "model.language_model."),
    (re.compile(r"model\.mm_projector\."), "model.multi_modal_projector."),
    (re.compile(r"model\.region_geo_sampler\."), "model.region_sampler."),
    (re.compile(r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?"), "model.vision_tower."),
)
_BUFFER = re.compile(r".*\.(?:rotary_emb\.inv_freq|embeddings\.position_ids)")
_BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")
"""The tensors with one row per token."""


class Published(NamedTuple):
    """The contents of a published folder: the fields of `FerretConfig`, and the tensors under this package's names."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def is_published(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` comes from the published code (``FERRETLlamaForCausalLM``)."""
    return config.get("model_type") == "ferret" and "text_config" not in config and "mm_vision_tower" in config


def our_name(name: str) -> str | None:
    """This package's name of a published tensor; None for buffers that old versions of transformers saved.

    >>> our_name("model.layers.3.mlp.up_proj.weight")
    'model.language_model.layers.3.mlp.up_proj.weight'
    >>> our_name("model.vision_tower.vision_tower.vision_model.embeddings.class_embedding")
    'model.vision_tower.embeddings.class_embedding'
    """
    if _BUFFER.fullmatch(name):
        return None
    for pattern, ours in _NAMES:
        if pattern.match(name):
            return pattern.sub(ours, name, count=1)
    return name


def nested_config(
    config: Mapping[str, Any], source: str | os.PathLike[str] | None = None, tower: Path | None = None
) -> dict[str, Any]:
    """The fields of `FerretConfig` for a published config.

    Args:
        config: The published ``config.json``.
        source: Its folder. The size of the vision tower is read from ``vision_tower/config.json`` in it, else from the
            folder that ``mm_vision_tower`` names; without either it is that of CLIP ViT-L/14-336.
        tower: The vision tower's folder, if known.

    Raises:
        ModelError: for variants of the published code that no published model uses: image start and end tokens,
            features with the class token, regions without the spatial-aware sampler.
    """
    required = {
        "mm_use_im_start_end": (False, None),
        "mm_use_im_patch_token": (False, None),
        "mm_vision_select_feature": ("patch", None),
        "region_geo_sampler": (True,),
    }
    odd = [f"{key}: {config.get(key)}" for key, values in required.items() if config.get(key) not in values]
    if odd:
        expected = "the settings of Ferret-7B and 13B"
        raise ModelError("This variant of Ferret is not supported", got=", ".join(odd), expected=expected)
    vocabulary = int(config["vocab_size"])
    known = LlamaConfig().to_dict().keys() | {"rope_theta", "rope_scaling"}
    text = {key: value for key, value in config.items() if key in known and not key.startswith("_")}
    text |= {"model_type": "llama", "vocab_size": vocabulary + 1}
    vision = {**CLIP_L_336, "model_type": "clip_vision_model"}
    tower = tower or _tower_folder(config, source)
    if tower is not None and (tower / "config.json").is_file():
        found, _ = PreTrainedConfig.get_config_dict(tower)
        vision = {**found.get("vision_config", found), "model_type": "clip_vision_model"}
    kept = {key: config[key] for key in ("name_or_path", "dtype", "torch_dtype") if key in config}
    return kept | {
        "model_type": "ferret",
        "architectures": ["FerretForConditionalGeneration"],
        "text_config": {key: value for key, value in text.items() if key != "architectures"},
        "vision_config": vision,
        "image_token_index": vocabulary,
        "region_token_index": int(config["im_region_fea_token"]),
        "vision_feature_layer": int(config.get("mm_vision_select_layer", -2)),
        "region_pooling": config.get("sampler_pooler_mode", "mean"),
        "bos_token_id": config.get("bos_token_id", 1),
        "eos_token_id": config.get("eos_token_id", 2),
        "pad_token_id": 0,
    }


def _tower_folder(config: Mapping[str, Any], source: str | os.PathLike[str] | None) -> Path | None:
    beside = Path(source) / "vision_tower" if source is not None else None
    if beside is not None and is_dir(beside):
        return beside
    named = Path(str(config["mm_vision_tower"]))
    return named if is_dir(named) else None


def vision_shards(config: Mapping[str, Any], source: Path, vision: str | os.PathLike[str] | None = None) -> Shards:
    """The weights of the vision tower: from ``vision``, else the published folder, else the model that it names.

    Args:
        config: The published config.
        source: The published folder.
        vision: A folder or hub id of a CLIP model, or of its vision tower.

    Raises:
        ModelError: if there are no weights.
    """
    if vision is None:
        vision = _tower_folder(config, source) or str(config["mm_vision_tower"])
    return Shards(local_folder(vision))


def vision_name(name: str) -> str | None:
    """This package's name of a tensor of a CLIP model; None for its text tower, projections and buffers."""
    if _BUFFER.fullmatch(f"x.{name}") or name.startswith(("text_model.", "text_projection.", "visual_projection.")):
        return None
    return None if name == "logit_scale" else "model.vision_tower." + name.removeprefix("vision_model.")


def local_folder(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """A folder, or the local copy of a hub model's config and weights.

    Raises:
        ModelError: if it is neither a folder nor a model that can be downloaded.
    """
    with clear_errors(source, revision):
        if is_dir(source):
            return Path(source)
        names = ["*.json", "*.model", "model*.safetensors", "vision_tower/*"]
        folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=names))
        if not any(folder.glob("model*.safetensors")):
            snapshot_download(str(source), revision=revision, allow_patterns=["pytorch_model*.bin"])
        return folder


def with_image_row(name: str, tensor: Tensor) -> Tensor:
    """Append a row of zeros for the image token to the embedding or the head; other tensors are unchanged."""
    if name not in _BY_TOKEN:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(1, tensor.shape[1])])


def is_by_token(name: str) -> bool:
    """Whether a published tensor has one row per token of the vocabulary."""
    return name in _BY_TOKEN


def read_published(source: str | os.PathLike[str], options: Mapping[str, Any]) -> Published | None:
    """The contents of a published folder, for ``from_pretrained``; None if ``source`` is not one.

    Args:
        source: A folder or a hub id.
        options: Options of ``from_pretrained``: ``revision``, and ``use_safetensors``, which refuses pickles.

    Raises:
        ModelError: if the folder is incomplete, or pickled while ``use_safetensors`` is set.
    """
    revision = options.get("revision")
    with clear_errors(source, revision):
        config, _ = PreTrainedConfig.get_config_dict(source, revision=revision or "main")
    if not is_published(config):
        return None
    folder = local_folder(source, revision)
    shards = Shards(folder)
    if shards.pickled and options.get("use_safetensors"):
        fix = f"convert it: spr convert ferret --checkpoint {source} --out DIR, then use DIR"
        raise ModelError(
            f"The weights of {source} are pickled", got="pytorch_model*.bin", expected="safetensors", fix=fix
        )
    tensors = {}
    for name in shards:
        ours = our_name(name)
        if ours is not None:
            tensors[ours] = with_image_row(name, shards[name])
    if not any(name.startswith("model.vision_tower.") for name in tensors):
        tower = vision_shards(config, folder)
        named = {name: vision_name(name) for name in tower}
        tensors |= {ours: tower[name] for name, ours in named.items() if ours is not None}
    return Published(nested_config(config, folder), tensors)
