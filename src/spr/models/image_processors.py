"""Processors for images and text without torchvision, which give the same pixels on every machine.

The video processors of several families need torchvision. Here the family's own processor class runs without one, with
the PIL version of its image processor. Token ids and pixels are the same as with the complete processor.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from functools import cache
from pkgutil import resolve_name
from typing import Any

import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from spr.models.custom_models import custom_models, load_config
from spr.models.errors import ModelError
from spr.models.families import Family
from spr.models.loading import Source, clear_errors, load_part

_OTHER_PARTS = ("video_processor", "feature_extractor")
_UNCHECKED = {"check_argument_for_proper_class": lambda *_: None}


def load_processor(
    source: Source, model_type: str, *, family: Family | None = None, revision: str | None = None
) -> Any:
    """Load a model's processor for images and text; it pads on the left, or on the right for an encoder.

    It is an instance of (a subclass of) the processor class that the folder names, as with `AutoProcessor`, or else of
    the model type's, with the ``chat_template`` of the processor or of the tokenizer, or None. The family decides
    whether images are padded to a square.
    """
    if (custom := custom_models().get(model_type)) is not None:
        load = resolve_name(custom.load_processor)
        return load(source, load_config(source, revision=revision), revision=revision)
    named = family.processor_class if family is not None else None
    name = named or PROCESSOR_MAPPING_NAMES.get(model_type)
    if name is None or not hasattr(transformers, name):
        what = "transformers has no processor for this kind of model"
        fix = "choose a multimodal LLM, or update transformers"
        raise ModelError(what, got=f"model_type {model_type}", fix=fix)
    if family is not None and family.image_processor is not None:
        image_processor = resolve_name(family.image_processor)(source, revision=revision)
    else:
        image_processor = load_part(AutoImageProcessor, source, revision=revision, backend="pil")
    if family is not None and family.pads_square:
        image_processor = pad_to_square(image_processor)
    tokenizer = load_part(AutoTokenizer, source, revision=revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # A decoder's answer follows its prompt; an encoder counts positions from the start.
    tokenizer.padding_side = "right" if family is not None and family.encoder_decoder else "left"
    with clear_errors(source, revision):
        settings, _ = ProcessorMixin.get_processor_dict(source, revision=revision or "main")
        own_class = getattr(transformers, settings.get("processor_class", ""), getattr(transformers, name))
        processor = _make(own_class, {"image_processor": image_processor, "tokenizer": tokenizer}, settings)
    processor.chat_template = processor.chat_template or tokenizer.chat_template
    return processor


def encode(
    processor: Any, texts: Sequence[str], images: Sequence[Image.Image], *, without: Collection[str] = ()
) -> dict[str, Tensor]:
    """Convert the output of `spr.models.chat.render_turn` and one RGB image per text to padded inputs on the CPU.

    ``without`` names inputs that are left out; they don't become tensors.
    """
    bos = processor.tokenizer.bos_token
    # Chat templates that add the beginning-of-text token must not get a second one.
    special = not (bos and texts[0].startswith(bos))
    per_text = [[image] for image in images]  # Gemma's processors take a plain list as the images of one text
    inputs = processor(images=per_text, text=list(texts), padding=True, add_special_tokens=special)
    for name in ("labels", *without):  # PaliGemma adds labels for training
        inputs.pop(name, None)
    return dict(inputs.convert_to_tensors("pt"))


def count_image_tokens(processor: Any, family: Family, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """The number of tokens for images of these heights and widths. ``counts_image_tokens`` of the family is true."""
    if family.count_function is not None:
        count = resolve_name(family.count_function)
        return [int(count(processor, height, width)) for height, width in sizes]
    counted = processor._get_num_multimodal_tokens(image_sizes=[list(size) for size in sizes])
    return [int(number) for number in counted["num_image_tokens"]]


class _NoVideo(dict[str, Any]):
    """What constructors of processors read of the video processor. As a dict, it can be logged as JSON."""

    slice_mode, downsample_mode = False, "16x"


def _make(processor_class: Any, parts: dict[str, Any], settings: dict[str, Any]) -> Any:
    """A processor of the class from `without_video`, even if the constructor asks for other parts."""
    parts = {"video_processor": _NoVideo(), **parts}
    names = list(inspect.signature(processor_class.__init__).parameters)[1:]
    taken = 1 + max(k for k, name in enumerate(names) if name in (*parts, *_OTHER_PARTS))
    unchecked: Any = type(processor_class.__name__, (processor_class,), _UNCHECKED)
    processor: Any = unchecked.from_args_and_dict([parts.get(name) for name in names[:taken]], settings)
    processor.__class__ = without_video(processor_class)
    for name in _OTHER_PARTS:
        vars(processor).pop(name, None)
    return processor


@cache
def without_video(processor_class: Any) -> Any:
    """The processor class without its ``video_processor`` and its ``feature_extractor`` for sound.

    The class itself if it has neither.

    >>> without_video(transformers.Gemma4Processor).get_attributes()
    ['image_processor', 'tokenizer']
    """
    parts = processor_class.get_attributes()
    kept = [part for part in parts if part not in _OTHER_PARTS]
    if kept == parts:
        return processor_class
    return type(processor_class.__name__, (processor_class,), {"get_attributes": classmethod(lambda _: list(kept))})


def pad_to_square(image_processor: Any) -> Any:
    """LLaVA-1.5's image processor as in training: images are padded to a square in the mean colour.

    Checkpoints converted for transformers have CLIP's processor instead, which crops the longer side.
    """
    if type(image_processor) is transformers.CLIPImageProcessorPil:
        settings = {key: value for key, value in image_processor.to_dict().items() if key != "image_processor_type"}
        return transformers.LlavaImageProcessorPil(**{**settings, "do_pad": True})
    if isinstance(image_processor, transformers.LlavaImageProcessorPil):
        image_processor.do_pad = True
    return image_processor
