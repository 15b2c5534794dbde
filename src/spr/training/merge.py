"""The adapter merged into its model: whole weights that load without PEFT."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText

from spr.core.errors import InputError, RunError
from spr.models.custom_models import custom_options, load_config
from spr.models.families import FAMILIES
from spr.models.image_processors import load_processor
from spr.models.loading import load_pretrained
from spr.training.lora import renamed_properties


def merge_adapter(adapter: Path, out: Path, *, model: str | None = None, revision: str | None = None) -> None:
    """Write ``W + (alpha / rank) B A`` for each adapted layer, and all else as it is, with the processor's files.

    Args:
        adapter: A folder in PEFT's format.
        out: A new folder.
        model: A folder or hub id; None for the one that the adapter names, in the revision that it names.
        revision: Branch, tag or commit of the hub's repository.

    Raises:
        InputError: if the adapter is none or does not fit the model.
        RunError: if ``out`` is there already.
        ModelError: if the model can't be loaded.
    """
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} holds something already", fix="choose a new folder for --out")
    if not (adapter / "adapter_config.json").is_file():
        expected = "a run with an adapter, or a folder with adapter_config.json"
        raise InputError(f"{adapter} holds no adapter", expected=expected, fix="make it with `spr train`")
    try:
        made = PeftConfig.from_pretrained(str(adapter))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{adapter / 'adapter_config.json'} can't be read", got=error) from None
    source = model or str(made.base_model_name_or_path)
    revision = revision if model is not None or revision is not None else made.revision
    config = load_config(source, revision=revision, expected=FAMILIES)
    kind: str = config.model_type
    base = load_pretrained(
        AutoModelForImageTextToText, source, revision=revision, dtype="auto", **custom_options(source, config)
    )
    of, kind_of = (made.auto_mapping or {}).get("base_model_class"), type(base).__name__
    if of not in (None, kind_of):
        raise InputError(
            f"{adapter} does not fit {source}", got=kind_of, expected=of, fix="give its own model, --model"
        )
    try:
        with renamed_properties(), warnings.catch_warnings():
            # PEFT would leave layers whose tensors are missing as they were, and warn.
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            merged: Any = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, OSError, SafetensorError, UserWarning) as error:
        got = " ".join(str(error).split())[:300]
        raise InputError(f"{adapter} does not fit {source}", got=got, fix="give its own model with --model") from error
    beside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    merged.save_pretrained(beside)
    processor = load_processor(source, kind, family=FAMILIES[kind], revision=revision)
    _save_processor(processor, source, beside)
    if out.exists():
        out.rmdir()
    beside.rename(out)


def _save_processor(processor: Any, source: str, folder: Path) -> None:
    if Path(source).is_dir():
        # As the publisher wrote them: what was loaded from there has been adapted to run without torchvision.
        for path in Path(source).iterdir():
            weights = path.suffix in {".safetensors", ".bin", ".pt"} or path.name.endswith(".index.json")
            if path.is_file() and not weights and not (folder / path.name).exists() and path.name != "README.md":
                shutil.copy2(path, folder / path.name)
        return
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    processor.save_pretrained(folder)
