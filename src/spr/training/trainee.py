"""The model that is trained: a frozen multimodal LLM with a LoRA adapter on its language model (supplement, Sec. 2)."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForImageTextToText

from spr.config import LoraSection, TrainingConfig
from spr.core.errors import ConfigError, SprError, closest
from spr.models.chat import check_chat_template, check_image_token
from spr.models.custom_models import load_mllm, load_trainable_config
from spr.models.dialect_check import check_dialect
from spr.models.errors import ModelError
from spr.models.families import FAMILIES, Family
from spr.models.image_processors import load_processor
from spr.models.loading import model_source, placement, source_name
from spr.models.model_dialect import choose_dialect
from spr.training.block_masks import allow_compilations
from spr.training.encoding import PairEncoder, processor_digest
from spr.training.flash_pieces import check_kernel
from spr.training.init_adapter import InitAdapter
from spr.training.pair_model import PairModel
from spr.training.prefix_attention import loaded_with
from spr.training.shared_prefix import Attention, why_not_shared
from spr.training.vision_cache import MemoryFeatures, open_store


@dataclass(frozen=True, slots=True, eq=False)
class Trainee:
    """A model that is ready to be trained, ``id@revision``.

    ``shared``: a pair is one sequence. ``identity`` is what determines the reference's log-probabilities besides the
    pairs; ``remarks`` are lines for the user, such as the number of trained parameters.
    """

    name: str
    model: PairModel
    encoder: PairEncoder
    shared: bool
    identity: dict[str, str]
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ModelFiles:
    """A model to train without its weights: enough to plan the pairs and to know whether they were trained on before.

    ``planner`` encodes texts, and has no model. ``name`` is ``id@revision``, and ``digest`` that of the processor.
    ``init`` is the adapter that the training starts from, if it is not a new one.
    """

    source: str
    config: Any
    family: Family
    processor: Any
    name: str
    digest: str
    planner: PairEncoder
    init: InitAdapter | None = None


def open_model(
    source: str, settings: TrainingConfig, *, revision: str | None = None, dialect: str | None = None
) -> ModelFiles:
    """Read a model's config and processor, which is quick.

    Raises:
        ModelError: if they can't be loaded, the model's family can't be trained, or the tokenizer or the chat template
            loses what the dialect writes (`spr.models.dialect_check`).
        ConfigError: if `training.lora.target_modules` names no layer of the language model, if
            `training.init_adapter` is unlike `training.lora` (`spr.training.init_adapter`), or if
            `training.box_token_weight` is not 1 and the tokenizer is too simple for it.
    """
    source = model_source(source)
    config = load_trainable_config(source, revision=revision)
    family = FAMILIES[config.model_type]
    init = None if settings.init_adapter is None else InitAdapter.open(settings.init_adapter, settings.lora)
    processor = load_processor(source, config.model_type, family=family, revision=revision)
    if settings.lora.target_modules or init is not None:
        with torch.device("meta"):  # the layers without their weights
            model = AutoModelForImageTextToText.from_config(config)
        _check_targets(model, settings.lora.target_modules or (), family)
        if init is not None:
            init.check_layers(_adapted(model, settings.lora, family))
    written = choose_dialect(dialect, config.model_type, processor.image_processor)
    check_image_token(source, processor, config)
    check_chat_template(source, processor, family)
    check_dialect(source, processor, family, written, trains=True)
    weight = settings.box_token_weight
    own = written if weight != 1 else None
    planner = PairEncoder(None, processor, family, MemoryFeatures(0), identity="", box_weight=weight, dialect=own)
    name = source_name(source, revision, config)
    return ModelFiles(source, config, family, processor, name, processor_digest(processor, family), planner, init)


def load_trainee(
    source: str,
    settings: TrainingConfig,
    device: torch.device,
    *,
    features: Path,
    revision: str | None = None,
    seed: int = 0,
    dialect: str | None = None,
    files: ModelFiles | None = None,
) -> Trainee:
    """Load a model and add a new adapter, whose initial weights the seed determines, or `training.init_adapter`.

    The source is a folder, a model id of the Hub, or an embedded model (``embedded/describer``). The device is used
    unless the settings name one, and the folder ``features`` if `training.vision_cache` is ``disk``. The dialect is
    that of the boxes in the answers, by default the family's. ``files`` are the model's from `open_model`.

    Raises:
        ModelError: if the model can't be loaded, its family can't be trained, or `training.prefix_sharing` is
            ``shared`` and the model can't share the prefix.
        ConfigError: if `training.lora.target_modules` names no layer of the language model, or if
            `training.box_token_weight` is not 1 and the tokenizer is too simple for it.
        SprError: if anything but the language model's adapter would be trained.
    """
    if settings.device not in ("auto", "cpu"):
        device = torch.device(settings.device)
    files = files or open_model(source, settings, revision=revision, dialect=dialect)
    config, family, processor, name, digest = files.config, files.family, files.processor, files.name, files.digest
    reason = why_not_shared(config, family, settings.attn_implementation)
    if settings.prefix_sharing == "shared" and reason:
        raise ModelError("The prefix can't be shared", got=reason, fix="set training.prefix_sharing=auto")
    shared = settings.prefix_sharing != "separate" and reason is None
    options = placement(device, None, settings.load_in_4bit)
    options |= {"dtype": settings.dtype, "attn_implementation": loaded_with(settings, device, shared, reason)}
    base = load_mllm(files.source, config, revision=revision, **options)
    store = open_store(settings.vision_cache, features)
    encoder = PairEncoder(
        base,
        processor,
        family,
        store,
        identity=f"{name} {digest} {base.dtype}",
        box_weight=settings.box_token_weight,
        dialect=files.planner.dialect,
    )
    peft = add_adapter(base, settings.lora, family, seed=seed)
    if files.init is not None:
        files.init.load_into(peft)
    peft.peft_config["default"].revision = revision
    own: Attention | None = None  # the one that the model was loaded with, which may not be what was asked for
    if shared and settings.attn_implementation in ("flash_attention_2", "flex_attention"):
        own = settings.attn_implementation
    if own == "flash_attention_2":
        check_kernel(base.device, base.dtype)
    elif own == "flex_attention":
        allow_compilations()
    model = PairModel(peft, family, gradient_checkpointing=settings.gradient_checkpointing, attention=own)
    start = "" if files.init is None else f", continued from {files.init.folder}"
    remarks = [f"{name}: {describe_trained(peft)}{start}"]
    if not shared:
        reason = reason or "training.prefix_sharing is `separate`"
        remarks.insert(0, f"Image and prompt are computed once per answer, not once per pair: {reason}.")
    identity = {"model": name, "dtype": str(base.dtype), "four_bits": str(settings.load_in_4bit), "processor": digest}
    if files.init is not None:
        identity["init_adapter"] = files.init.name
    return Trainee(name, model, encoder, shared, identity, tuple(remarks))


def add_adapter(model: Any, settings: LoraSection, family: Family, *, seed: int = 0) -> PeftModel:
    """Add a new adapter to a frozen model. Its B matrices are zero, so the model's output does not change.

    Without ``target_modules``, those of the family's layers that the model has get adapters: those of the attention
    alone if its MLPs are mixtures of experts (InternVL3.5 30B-A3B). The seed is that of the A matrices.

    Raises:
        ConfigError: if ``target_modules`` names no linear layer of the language model.
        SprError: if anything else would be trained.
    """
    targets = _targets(model, settings, family)
    _check_targets(model, targets or family.target_modules, family)
    pattern = rf"{re.escape(family.language_model)}\..*\.({'|'.join(map(re.escape, targets))})"
    config = LoraConfig(**settings.model_dump() | {"target_modules": pattern}, bias="none")
    # `torch.manual_seed` seeds GPUs too, so their random state is restored as well.
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        with renamed_properties():
            adapted = get_peft_model(model, config)
    check_trained(adapted, family)
    return adapted


def _targets(model: Any, settings: LoraSection, family: Family) -> tuple[str, ...]:
    """The names of the layers that get adapters."""
    return settings.target_modules or tuple(name for name in family.target_modules if _has(model, name, family))


def _adapted(model: Any, settings: LoraSection, family: Family) -> dict[str, tuple[int, int]]:
    """The layers that get adapters by their names in the model, each with the sizes of its input and its output."""
    endings = tuple(f".{target}" for target in _targets(model, settings, family))
    return {
        f"{family.language_model}.{name}": (module.in_features, module.out_features)
        for name, module in model.get_submodule(family.language_model).named_modules()
        if isinstance(module, nn.Linear) and name.endswith(endings)
    }


def _linear(model: Any, family: Family) -> set[str]:
    """The names of the language model's linear layers."""
    part = model.get_submodule(family.language_model)
    return {name for name, module in part.named_modules() if isinstance(module, nn.Linear)}


def _has(model: Any, target: str, family: Family) -> bool:
    return any(f".{name}".endswith(f".{target}") for name in _linear(model, family))


def _check_targets(model: Any, targets: Iterable[str], family: Family) -> None:
    for target in targets:
        if not _has(model, target, family):
            last = sorted({name.rsplit(".", 1)[-1] for name in _linear(model, family)})
            near = closest(target, last)
            message = "Config field `training.lora.target_modules` names no linear layer of the language model"
            fix = f"did you mean `{near}`?" if near else None
            raise ConfigError(message, got=target, expected=", ".join(last), fix=fix)


@contextmanager
def renamed_properties() -> Iterator[None]:
    """Suppress the warning about a renamed transformers property that PEFT reads under its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def check_trained(model: PeftModel, family: Family) -> None:
    """Raise `SprError` if a parameter outside of the language model's adapter would be trained, or none at all."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    prefix = f"base_model.model.{family.decoder}.layers."
    wrong = [name for name in trained if not (name.startswith(prefix) and ".lora_" in name)]
    if wrong:
        got = ", ".join(wrong[:4]) + (f", and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        expected = f"only LoRA matrices below {family.decoder}.layers"
        fix = "freeze the model before add_adapter, and check training.lora.target_modules"
        message = "Parameters outside of the language model's adapter would be trained"
        raise SprError(message, got=got, expected=expected, fix=fix)
    if not trained:
        fix = "check training.lora.target_modules"
        raise SprError("No parameter would be trained", expected="LoRA matrices", fix=fix)


def describe_trained(model: PeftModel) -> str:
    """One line about what is trained: ``trains 161,480,704 parameters; …: LoRA of rank 128 on 28 × q_proj, …``."""
    parameters = dict(model.named_parameters())
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    frozen = sum(p.numel() for p in parameters.values()) - trained
    layers = Counter(name.split(".lora_A.")[0].rsplit(".", 1)[-1] for name in parameters if ".lora_A." in name)
    if len(counts := set(layers.values())) == 1:
        where = f"{counts.pop()} × {', '.join(layers)}"
    else:
        where = ", ".join(f"{count} × {name}" for name, count in layers.items())
    rank = model.peft_config["default"].r
    return f"trains {trained:,} parameters; {frozen:,} are frozen: LoRA of rank {rank} on {where}"
