"""What a training works on: the model with its adapter, the encoder of its pairs, and how its prefix is treated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from spr.config import TrainingConfig
from spr.models.custom_models import custom_options, load_config
from spr.models.families import FAMILIES
from spr.models.image_processors import load_processor
from spr.models.loading import ModelError, load_pretrained, model_source, placement, source_name
from spr.training.encode import PairEncoder, processor_digest
from spr.training.features import open_store
from spr.training.lora import add_adapter, describe_trained
from spr.training.model import PairModel, can_share_prefix


@dataclass(frozen=True, slots=True, eq=False)
class Trainee:
    """A model ready to be trained.

    Attributes:
        name: ``id@revision``.
        base: The model of transformers, its adapter in place.
        model: The module that is wrapped and trained.
        encoder: Encodes pairs for it.
        shared: Whether a pair is one sequence.
        identity: What decides the reference's log-probabilities besides the pairs.
        remarks: What a user wants to know.
    """

    name: str
    base: Any
    model: PairModel
    encoder: PairEncoder
    shared: bool
    identity: dict[str, str]
    remarks: tuple[str, ...]


def load_trainee(
    source: str,
    settings: TrainingConfig,
    device: torch.device,
    *,
    features: Path,
    revision: str | None = None,
    seed: int = 0,
) -> Trainee:
    """Load a model and put a fresh adapter on it.

    Args:
        source: A folder or a hub id.
        settings: The config's section.
        device: Where it goes, unless the settings say otherwise.
        features: The folder of features kept on disk.
        revision: Branch, tag or commit of the hub's repository.
        seed: Decides the adapter's first matrices.

    Raises:
        ModelError: if it can't be loaded, is of a family that can't be trained, or can't share the prefix it must.
        ConfigError: for an adapter's target that is not there.
        SprError: if anything but the language model's adapter would be trained.
    """
    if settings.device not in ("auto", "cpu"):
        device = torch.device(settings.device)
    source = model_source(source)
    config = load_config(source, revision=revision, expected=FAMILIES)
    kind: str = config.model_type
    family = FAMILIES[kind]
    processor = load_processor(source, kind, family=family, revision=revision)
    base = load_pretrained(
        AutoModelForImageTextToText,
        source,
        revision=revision,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        **custom_options(source, config),
        **placement(device, None, settings.load_in_4bit),
    )
    name = source_name(source, revision, base)
    why_not = can_share_prefix(base, family)
    if settings.prefix_sharing == "shared" and why_not:
        raise ModelError("The prefix can't be shared", got=why_not, fix="set training.prefix_sharing=auto")
    shared = settings.prefix_sharing != "separate" and why_not is None
    remarks = [] if shared else [f"Two sequences a pair, image and prompt in both: {why_not or 'the config says so'}."]
    digest = processor_digest(processor, family)
    encoder = PairEncoder(
        base,
        processor,
        family,
        open_store(settings.vision_cache, features),
        made_by=f"{name} {digest} {base.dtype}",
        keep=settings.vision_cache in ("auto", "memory"),
    )
    peft = add_adapter(base, settings.lora, family, seed=seed)
    peft.peft_config["default"].revision = revision
    if settings.gradient_checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    remarks.append(f"{name}: {describe_trained(peft)}")
    identity = {
        "model": name,
        "dtype": str(base.dtype),
        "four_bits": str(settings.load_in_4bit),
        "processor": digest,
    }
    return Trainee(name, base, PairModel(peft, family), encoder, shared, identity, tuple(remarks))
