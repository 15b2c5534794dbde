"""Images that several prompts are about: processed once, and read once by the vision tower.

A region has two prompts about its crop, and a benchmark has several questions about one image. The processor and the
model get what they would get without this, apart from pixels: in their place, the model gets the image features.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from spr.models.family import Family
from spr.models.image_features import Features, compute_features, image_outputs, vision_names
from spr.models.image_processors import encode

LARGEST_STORE = 256 * 2**20
"""Bytes of features that are kept for later prompts, in main memory."""

_SMALL = 64  # numbers; larger outputs of an image processor are pixels or as many as pixels


class SharedImages:
    """The inputs of prompts of which some are about the same image.

    Args:
        model: The model. It takes ``mm_encoder_outputs`` in place of pixels, as all families do that can be trained.
        processor: Its processor for images and text.
        family: Its family.
        uses: The number of times that a prompt about each image is read, by the image's key.
    """

    def __init__(self, model: Any, processor: Any, family: Family, uses: Mapping[Hashable, int]) -> None:
        self._model, self._family = model, family
        self._uses = Counter(dict(uses))
        self._images = _ImagesOnce(processor.image_processor)
        self._processor = copy.copy(processor)
        self._processor.image_processor = self._images
        try:  # Gemma 3's processor writes other tokens in place of its `image_token`
            self._image_token = int(model.config.image_token_id)
        except AttributeError:
            self._image_token = int(processor.tokenizer.convert_tokens_to_ids(processor.image_token))
        self._names = vision_names(model)
        self._features: dict[Hashable, Features] = {}
        self._needs_pixels = False

    def inputs(
        self, texts: Sequence[str], images: Sequence[Image.Image], keys: Sequence[Hashable]
    ) -> dict[str, Any] | None:
        """The model's inputs for prompts, one image each, on the CPU but for the features; None if they need pixels.

        ``keys`` are equal for equal images. After a batch that needs pixels, none is read without.
        """
        inputs = None if self._needs_pixels else self._without_pixels(texts, images, keys)
        if inputs is None and not self._needs_pixels:
            self._needs_pixels = True
            self._features = {}
            self._images.forget(())
        return inputs

    def _without_pixels(
        self, texts: Sequence[str], images: Sequence[Image.Image], keys: Sequence[Hashable]
    ) -> dict[str, Any] | None:
        self._images.begin(keys, known=self._features)
        inputs = encode(self._processor, texts, images, without=self._images.pixels)
        new = self._images.new
        if new is None or any(name in self._names and name not in self._images.names for name in inputs):
            return None  # features that also depend on the prompt (Ferret's regions)
        # Without padding: CogVLM pads with the token that stands for a part of an image.
        tokens = (inputs["input_ids"] == self._image_token) & (inputs["attention_mask"] == 1)
        counts = tokens.sum(1).tolist()
        found = dict(self._features)
        if new:
            outputs = {name: value for name, value in self._images.outputs.items() if name in self._names}
            vision = BatchFeature(outputs).convert_to_tensors("pt")
            features = compute_features(self._model, vision, deep=self._family.deep_features)
            lengths = [counts[keys.index(key)] for key in new]
            if sum(lengths) != len(features.tokens):
                return None
            found.update(zip(new, features.split(lengths), strict=True))
        self._keep(found, keys)
        device = self._model.device
        each = [found[key].to(device) for key in keys]
        return inputs | {"mm_encoder_outputs": {"image": image_outputs(each, joined=self._family.joined_features)}}

    def _keep(self, found: Mapping[Hashable, Features], used: Sequence[Hashable]) -> None:
        """Keep the features that later prompts need, as far as there is room."""
        self._uses.subtract(used)
        kept, size = {}, 0
        for key, features in found.items():
            size += features.nbytes if self._uses[key] > 0 else 0
            if self._uses[key] > 0 and size <= LARGEST_STORE:
                # A copy of its own: a part of a batch's features would keep the others in memory.
                known = key in self._features
                kept[key] = features if known else features.copied()
        self._features = kept
        self._images.forget(set(kept))


class _ImagesOnce:
    """An image processor that processes equal images once.

    Of large outputs, which are pixels, it returns only the shapes, or no rows where no other output says how many are
    an image's: the processor needs no more for its text.

    Attributes:
        new: The keys of the images that were processed; None if the processor asked for other images.
        outputs: What the image processor returned for them.
        names: The names of all outputs.
        pixels: The names of those of which only shapes are returned.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._parts: dict[Hashable, dict[str, Any]] = {}  # of each image, what is returned of each output
        self.names: set[str] = set()
        self.pixels: set[str] = set()
        self.begin((), known=())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":  # while an object is copied, it has no attributes yet
            raise AttributeError(name)
        return getattr(self._inner, name)

    def begin(self, keys: Sequence[Hashable], *, known: Collection[Hashable]) -> None:
        """Expect one image for each key; images with a known key aren't processed again."""
        self._keys, self._known = list(keys), known
        self.new: list[Hashable] | None = None
        self.outputs: dict[str, Any] = {}

    def forget(self, kept: Collection[Hashable]) -> None:
        """Free what is kept of images with other keys."""
        self._parts = {key: part for key, part in self._parts.items() if key in kept}
        self.outputs = {}

    def __call__(self, images: Sequence[Any], **settings: Any) -> BatchFeature:
        """The outputs for images, one or a list of one each."""
        if len(images) != len(self._keys):
            return self._inner(images, **settings)
        self.new = list(dict.fromkeys(key for key in self._keys if key not in self._known))
        if self.new:
            self.outputs = dict(self._inner([images[self._keys.index(key)] for key in self.new], **settings))
            self.names = set(self.outputs)
            self._parts |= {key: {} for key in self.new}
            for name in self.outputs:
                for key, part in zip(self.new, self._split(name), strict=True):
                    self._parts[key][name] = part
        return BatchFeature(
            {
                name: _join([self._parts[key][name] for key in self._keys], pixels=name in self.pixels)
                for name in self.names
            }
        )

    def _split(self, name: str) -> list[Any]:
        """Each image's rows of an output."""
        value, count = self.outputs[name], len(self.new or ())
        if isinstance(value[0], np.ndarray | Tensor) and np.prod(value[0].shape) > _SMALL:
            self.pixels.add(name)
        counts = [1] * count if len(value) == count else self._counts(len(value))
        if counts is None:
            self.pixels.add(name)
            counts = [0] * count
        ends = np.cumsum([0, *counts])
        rows = [value[start:end] for start, end in itertools.pairwise(ends)]
        return [_shape_of(part) for part in rows] if name in self.pixels else rows

    def _counts(self, total: int) -> list[int] | None:
        """The output that says how many of ``total`` rows belong to each image; None if there is none."""
        for value in self.outputs.values():
            if len(value) == len(self.new or ()) and all(np.ndim(number) == 0 for number in value):
                counts = [int(number) for number in value]
                if sum(counts) == total:
                    return counts
        return None


def _shape_of(part: Any) -> Any:
    """An array or tensor of the same shape, of one zero in memory, or a list of such."""
    return [_zeros(row, row.shape) for row in part] if isinstance(part, list) else _zeros(part, part.shape)


def _zeros(like: Any, shape: Sequence[int]) -> Any:
    if isinstance(like, Tensor):
        return like.new_zeros(()).expand(*shape)
    return np.broadcast_to(np.zeros((), like.dtype), shape)


def _join(parts: Sequence[Any], *, pixels: bool) -> Any:
    """The rows of several images; of ``pixels``, only their number and the shape of the first."""
    first = parts[0]
    if isinstance(first, list):
        return list(itertools.chain(*parts))
    if pixels:
        return _zeros(first, (sum(map(len, parts)), *first.shape[1:]))
    return torch.cat(list(parts)) if isinstance(first, Tensor) else np.concatenate(parts)
