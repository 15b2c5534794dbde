"""`spr doctor CONFIG`: whether this machine has what a config needs. Loads no model and uses no network."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from spr.annotations.datasets import parse_name
from spr.config import AnnotationsConfig, Config, DescriberConfig
from spr.core.errors import SprError
from spr.core.paths import exists, is_dir
from spr.core.terminal import count_text
from spr.models.hub_cache import Found, command_for, find_model
from spr.report.doctor import cuda_devices
from spr.workflows import model_sizes
from spr.workflows.model_sizes import Shape

Status = Literal["ok", "MISSING", "note", "LOW"]
Line = tuple[Status, str, str]
"""A status, what it is about (a config field or a resource), and the finding."""


def check(config: Config) -> Iterator[Line]:
    """What a config needs, and whether it is here: inputs, packages, models, and estimates of memory and disk space.

    ``MISSING`` is what stops a run, or what it would download first; ``LOW`` is an estimate that exceeds what is free.
    """
    yield from _inputs(config)
    yield from _packages(config)
    shape, weights = None, None
    trained = config.describer.model if config.describer is not None else None
    if config.describer is not None:
        if config.describer.backend == "openai":
            url = config.describer.base_url
            yield "note", "describer.base_url", f"descriptions come from {url}, which is not contacted here"
            yield "note", "describer.model", "is trained under this name, if it is also a folder or a model of the Hub"
        elif trained is None:
            yield "note", "describer.model", "none: the fake describer needs no model, and there is none to train"
        else:
            found = find_model(trained, config.describer.revision)
            shape = model_sizes.SHAPES.get(trained) or Shape.from_config(found.config or {})
            weights = found.weights or None
            size = shape.weights("auto") if shape is not None and shape.parameters else None
            yield _model("describer", trained, found, size)
            yield from _family(config.describer, found)
        adapter = config.describer.peft_adapter
        if adapter is not None:
            found_adapter = is_dir(adapter)
            text = adapter if found_adapter else f"{adapter} is not a folder"
            yield ("ok" if found_adapter else "MISSING"), "describer.peft_adapter", text
    for role, section in (("scorer", config.scorer), ("detector", config.detector)):
        if config.describer is not None and section.backend not in ("fake", "none"):
            found = find_model(section.model, section.revision)
            yield _model(role, section.model, found, model_sizes.model_bytes(section))
    init = config.training.init_adapter
    if init is not None:
        found_init = is_dir(init)
        text = str(init) if found_init else f"{init} is not a folder"
        yield ("ok" if found_init else "MISSING"), "training.init_adapter", text
    mix = config.training.mix.path
    if mix is not None:
        yield ("ok" if exists(mix) else "MISSING"), "training.mix.path", _shown(mix)
    if config.describer is not None and shape is not None:
        yield from _resources(config, config.describer, shape, weights)


def _inputs(config: Config) -> Iterator[Line]:
    section = config.annotations
    found, about = _images(section)
    if section.is_dataset:
        path = parse_name(str(section.path)).folder
        if path is None:
            yield "note", "annotations.path", f"{section.path}, which is not looked for here"
        about = "" if found else ", into which the first command writes the dataset's images"
    else:
        path = Path(section.path)
    if path is not None:
        yield ("ok" if exists(path) else "MISSING"), "annotations.path", _shown(path)
    status: Status = "ok" if found else "note" if section.is_dataset else "MISSING"
    yield status, "annotations.images", f"{section.images}{about}"


def _images(section: AnnotationsConfig) -> tuple[bool, str]:
    """Whether there are images, as far as can be seen without opening any, and what else to say about the place."""
    if not exists(section.images):
        return False, " is neither a folder nor a tar file"
    try:
        tars = section.image_source.only_tars()
    except SprError as error:
        return False, f": {error.what}; {error.fix}"
    return True, "" if tars is None else f", {tars}"


def _shown(path: Path) -> str:
    if not exists(path):
        return f"{path} does not exist"
    return f"{path}, {gigabytes(path.stat().st_size)}" if path.is_file() else str(path)


def _packages(config: Config) -> Iterator[Line]:
    backends = {section.backend for section in (config.describer, config.scorer, config.detector) if section}
    four_bits = config.training.load_in_4bit or (config.describer is not None and config.describer.load_in_4bit)
    needs = {"torch": "models"} if backends - {"fake", "none", "openai"} else {}
    if "vllm" in backends:
        needs = {"vllm": "vllm"}  # brings its own version of torch, with which the extra `models` can't be installed
    needs |= {"httpx": "openai"} if "openai" in backends else {}
    for package, extra in needs.items():
        if importlib.util.find_spec(package) is None:
            fix = f"pip install 'spatial-preference-rewarding[{extra}]'"
            yield "MISSING", f"extra `{extra}`", f"{package} is not installed: {fix}"
    if four_bits and importlib.util.find_spec("bitsandbytes") is None:
        yield "MISSING", "load_in_4bit", "bitsandbytes is not installed: pip install bitsandbytes"


def _model(role: str, model: str, found: Found, size: int | None) -> Line:
    if found.lacking is None:
        return "ok", f"{role}.model", f"{model}, {gigabytes(found.weights)} of weights, in {found.folder}"
    about = "" if size is None else f" (about {gigabytes(size)})"
    if model.startswith("checkpoints/ferret-"):
        return (
            "MISSING",
            f"{role}.model",
            f"there is no folder {model}{about}; make it: {command_for(model)}",
        )
    is_id = not is_dir(model) and model.count("/") == 1 and not model.startswith((".", "embedded/"))
    get = f"; get it: {command_for(model)}{about}" if is_id else ""
    return "MISSING", f"{role}.model", f"{model}: {found.lacking}{get}"


def _family(describer: DescriberConfig, found: Found) -> Iterator[Line]:
    """What is wrong with the model's family, if its config is here: it is not known, or can only describe."""
    if found.folder is None or found.config is None or importlib.util.find_spec("transformers") is None:
        return
    from spr.models.custom_models import check_multimodal, load_config, load_trainable_config
    from spr.models.model_dialect import choose_dialect

    try:
        model_type = load_config(str(found.folder)).model_type
        if describer.backend != "fake":
            check_multimodal(str(found.folder), model_type)
            choose_dialect(describer.dialect, model_type, None)
    except SprError as error:
        near = str(error.expected).partition(";")[0]  # without the list of all families
        yield "MISSING", "describer.model", f"{error.what}: {error.got}; expected: {near}; {error.fix}"
        return
    try:
        load_trainable_config(str(found.folder))
    except SprError as error:
        yield "note", "describer.model", f"{error.what}: {error.got}"


def _resources(config: Config, describer: DescriberConfig, shape: Shape, weights: int | None) -> Iterator[Line]:
    training = config.training
    if describer.backend == "hf":
        own = _as_stored(weights, describer.dtype, describer.load_in_4bit)
        needed = model_sizes.describing_memory(shape, describer, own)
        lower = "a batch that does not fit is halved; describer.load_in_4bit needs less"
        yield _memory("describing", needed, describer.device, lower, spread=describer.device_map is not None)
    if describer.backend == "vllm":
        yield _vllm_memory(describer)
    own = _as_stored(weights, training.dtype, training.load_in_4bit)
    lower = (
        "lower training.per_device_train_batch_size, or set training.gradient_checkpointing or training.load_in_4bit"
    )
    yield _memory("training", model_sizes.training_memory(shape, training, own), training.device, lower)
    images = config.annotations.max_images
    pairs = None if images is None else round(images * (1 - config.annotations.holdout)) * config.regions.per_image
    disk = model_sizes.checkpoint_bytes(shape, training)
    if pairs is not None and training.vision_cache != "none":
        cache = model_sizes.vision_cache_bytes(shape, training, pairs)
        where = {
            "disk": "on disk",
            "memory": "in memory",
            "auto": "of which up to a quarter of the free memory is used",
        }
        yield (
            "note",
            "vision cache",
            f"{gigabytes(cache)} for at most {count_text(pairs, 'pairs')}, {where[training.vision_cache]} (estimate)",
        )
        disk += cache if training.vision_cache == "disk" else 0
    free = shutil.disk_usage(".").free
    text = f"adapter and checkpoints {gigabytes(disk)}; {gigabytes(free)} free in this folder (estimate)"
    yield ("ok" if disk < free else "LOW"), "disk", text


def _vllm_memory(describer: DescriberConfig) -> Line:
    found = cuda_devices()
    if not found:
        return "MISSING", "memory, describing", "vLLM needs a GPU, and there is none here"
    given = describer.gpu_memory_utilization
    share = "its own share" if given is None else f"{given:.0%}"
    text = f"vLLM takes {share} of a GPU at its start; the smallest has {gigabytes(min(found.values()))}"
    return "note", "memory, describing", text


def _as_stored(weights: int | None, dtype: str, four_bits: bool) -> int | None:
    return weights if dtype == "auto" and not four_bits else None


def _memory(what: str, needed: int, device: str, lower: str, *, spread: bool = False) -> Line:
    found = {} if device == "cpu" else cuda_devices()
    name, size = "this machine", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if spread and found:
        name, size = "all GPUs together", sum(found.values())
    elif found:
        name = device if device in found else max(found, key=lambda key: found[key])
        size = found[name]
    text = f"{gigabytes(needed)} for a batch; {name} has {gigabytes(size)} (estimate)"
    return ("ok", f"memory, {what}", text) if needed <= size else ("LOW", f"memory, {what}", f"{text}; {lower}")


def gigabytes(size: float) -> str:
    """A size in GB (10⁹ bytes), or in MB below one.

    >>> gigabytes(16_584_333_312), gigabytes(1_234_567), gigabytes(12)
    ('16.6 GB', '1.2 MB', '0.0 MB')
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
