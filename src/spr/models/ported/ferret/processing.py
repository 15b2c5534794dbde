"""Ferret's processor: images, prompts and regions as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BatchFeature,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    ProcessorMixin,
)
from transformers.image_utils import make_flat_list_of_images

from spr.core.errors import InputError
from spr.core.terminal import count_text
from spr.models.families import FERRET_SYSTEM
from spr.models.loading import Source, clear_errors
from spr.models.ported.ferret.configuration import FerretConfig
from spr.models.ported.ferret.published import is_published, local_folder, nested_config
from spr.models.ported.ferret.regions import REGION_TOKEN, Region, RegionError, draw_points, prompt_regions, region_mask
from spr.models.ported.ferret.tokenizer import IMAGE_TOKEN, make_tokenizer

CHAT_TEMPLATE = (
    "{{ '" + FERRET_SYSTEM + "' }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ ' ' }}{% else %}{{ 'ASSISTANT: ' }}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{{ '</s>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The conversation template ``ferret_v1`` as a chat template."""


class FerretProcessor(ProcessorMixin):  # type: ignore[misc]
    """Prepares texts with ``<image>`` and ``<region_fea>``, images and regions for Ferret.

    An image is resized to the vision tower's square without padding; coordinates are thousandths of its own sides.

    Args:
        image_processor: CLIP's, without centre crop.
        tokenizer: A tokenizer with ``<image>`` and ``<region_fea>``.
        patch_size: Patch size of the vision tower in pixels.
        region_points: Points sampled per region.
        chat_template: Jinja template; None for `CHAT_TEMPLATE`.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 14,
        region_points: int = 512,
        chat_template: str | None = None,
    ) -> None:
        self.patch_size, self.region_points = patch_size, region_points
        self.image_token, self.region_token = IMAGE_TOKEN, REGION_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.region_token_id = tokenizer.convert_tokens_to_ids(REGION_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def from_pretrained(cls, source: Source, **kwargs: Any) -> Any:
        """The processor of a folder of `FerretForConditionalGeneration`, or of one in the authors' layout.

        Raises:
            ModelError: if a part is missing or belongs to another model.
        """
        revision = kwargs.get("revision") or "main"
        with clear_errors(source, kwargs.get("revision")):
            config, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
            if is_published(config):
                folder = local_folder(source, kwargs.get("revision"))
                return cls.for_config(FerretConfig.from_dict(nested_config(config, folder)), folder)
            settings, _ = cls.get_processor_dict(source, revision=revision)
            images = AutoImageProcessor.from_pretrained(source, revision=revision, backend="pil")
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            return cls.from_args_and_dict([images, tokenizer], settings)

    @classmethod
    def for_config(cls, config: FerretConfig, folder: Path) -> FerretProcessor:
        """The processor of a model with this config; the tokenizer files are read from a published folder."""
        vision = config.vision_config
        size = {"height": vision.image_size, "width": vision.image_size}
        images = CLIPImageProcessorPil(size=size, do_center_crop=False)
        tokenizer = make_tokenizer(folder, config.image_token_index, config.region_token_index)
        return cls(images, tokenizer, patch_size=vision.patch_size, region_points=config.region_points)

    @property
    def image_tokens(self) -> int:
        """Tokens per image: one per patch."""
        size = self.image_processor.size
        return int(size["height"] // self.patch_size) * int(size["width"] // self.patch_size)

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        """The text that replaces an ``<image>`` (called by transformers)."""
        del image_inputs, image_idx
        return self.image_token * self.image_tokens

    def _get_num_multimodal_tokens(self, image_sizes: Sequence[Any] = (), **_: Any) -> dict[str, list[int]]:
        return {"num_image_tokens": [self.image_tokens] * len(image_sizes)}

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | None = None,
        text: str | Sequence[str] | None = None,
        regions: Sequence[Sequence[Region] | None] | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: RGB; one for each text with ``<image>``, in the same order, or a list of one.
            text: Prompts in the chat template, with at most one ``<image>`` each.
            regions: For each text a list of regions in pixels of its image, one per ``<region_fea>``. None, for one
                text or for all, reads them from the prompt, from the coordinates right before each token.
            generator: Random generator of the points; None samples the same points from the same region each time.
            **options: Options of the tokenizer (``padding``, ``return_tensors``, …).

        Returns:
            ``input_ids`` and ``attention_mask`` ``(B, L)``; with images also ``pixel_values`` ``(I, 3, side, side)``;
            with regions also ``region_points`` ``(I, R, points, 2)``, integer pixels, −1 for padding, and
            ``region_sizes`` ``(I, 2)``, widths and heights.

        Raises:
            InputError: if the numbers of images and ``<image>`` differ.
            RegionError: if the numbers of regions and ``<region_fea>`` differ, or a region is not within its image.
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        pictures = make_flat_list_of_images(images) if images else []
        owners = self._owners(texts, pictures)
        if regions is not None and len(regions) != len(texts):
            expected = f"{len(texts)}: one list (or None) per text"
            raise RegionError("`regions` and texts differ in number", got=len(regions), expected=expected)
        drawn = []
        for k, prompt in enumerate(texts):
            size_wh = owners[k].size if k in owners else None
            masks = self._masks(prompt, size_wh, regions[k] if regions is not None else None)
            if k in owners:
                drawn.append([draw_points(mask, self.region_points, generator) for mask in masks])
        inputs = super().__call__(images=pictures or None, text=texts, **options)
        most = max(map(len, drawn), default=0)
        if most:
            empty = torch.full((self.region_points, 2), -1, dtype=torch.int32)
            inputs["region_points"] = torch.stack([torch.stack(row + [empty] * (most - len(row))) for row in drawn])
            inputs["region_sizes"] = torch.tensor([picture.size for picture in pictures])
        return inputs

    def _owners(self, texts: Sequence[str], pictures: Sequence[Image.Image]) -> dict[int, Image.Image]:
        """The image of each text that has one."""
        counts = [prompt.count(self.image_token) for prompt in texts]
        if sum(counts) != len(pictures) or max(counts, default=0) > 1:
            raise InputError(
                "The images don't match the prompts",
                got=f"{count_text(len(pictures), 'images')} for prompts with {counts} {self.image_token}",
                expected=f"at most one {self.image_token} per prompt, and one image for each",
                fix="apply the chat template to one image and one question at a time",
            )
        return dict(zip([k for k, count in enumerate(counts) if count], pictures, strict=True))

    def _masks(self, prompt: str, size_wh: tuple[int, int] | None, given: Sequence[Region] | None) -> list[Any]:
        """The regions of one prompt as masks, one per token."""
        tokens = prompt.count(self.region_token)
        if given is not None and len(given) != tokens:
            fix = f"write {self.region_token} once for each region"
            kind = "more" if len(given) > tokens else "fewer"
            raise RegionError(
                f"There are {kind} regions than {self.region_token} in the prompt",
                got=f"{count_text(len(given), 'regions')}, {tokens} {self.region_token}",
                expected="equal numbers",
                fix=fix,
            )
        if not tokens:
            return []
        if size_wh is None:
            got = f"{tokens} {self.region_token}, no {self.image_token}"
            raise RegionError("A prompt has regions but no image", got=got, fix=f"put {self.image_token} before them")
        if prompt.index(self.region_token) < prompt.index(self.image_token):
            expected = f"{self.image_token} first, as the model was trained"
            raise RegionError("A region comes before the image in a prompt", got=prompt[:120], expected=expected)
        if given is None:
            return prompt_regions(prompt, size_wh)
        return [region_mask(region, size_wh) for region in given]


def load_ferret_processor(source: Source, config: Any = None, *, revision: str | None = None) -> FerretProcessor:
    """The processor with left padding, in the form that `spr.models.custom_models` needs."""
    del config
    processor: FerretProcessor = FerretProcessor.from_pretrained(source, revision=revision)
    processor.tokenizer.padding_side = "left"
    return processor
