"""The describer's processor: images and text in one call, without the video half that needs torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase

from spr.core.errors import InputError
from spr.embedded.vocabulary import IMAGE
from tools.embedded.models import IMAGE_TOKENS


class SceneProcessor:
    """Images of any size and prompts with ``<image>`` → what the describer takes; one image a prompt.

    An image is resized to the model's square input, so coordinates are relative to the unpadded image.
    """

    def __init__(self, image_processor: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> SceneProcessor:
        """The processor of a folder that holds a tokenizer and an image processor."""
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        return cls(image_processor, AutoTokenizer.from_pretrained(folder))

    def prompt(self, text: str) -> str:
        """A question about an image, in the chat template, up to where the answer starts."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        rendered: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return rendered

    def __call__(self, images: Sequence[Image.Image], text: Sequence[str]) -> BatchFeature:
        """Tensors of a batch: ``input_ids``, ``attention_mask``, ``pixel_values`` and ``image_sizes``.

        Raises:
            InputError: unless there is one image and one ``<image>`` for each text.
        """
        if len(images) != len(text) or any(prompt.count(IMAGE) != 1 for prompt in text):
            got = f"{len(images)} images, {[prompt.count(IMAGE) for prompt in text]} marks"
            raise InputError("The describer reads one image a prompt", got=got, expected=f"one {IMAGE} in each text")
        expanded = [prompt.replace(IMAGE, IMAGE * IMAGE_TOKENS) for prompt in text]
        tokens = self.tokenizer(expanded, padding=True, return_tensors="pt", return_token_type_ids=False)
        pixels = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        sizes = torch.tensor([[image.height, image.width] for image in images])
        return BatchFeature({**tokens, "pixel_values": pixels, "image_sizes": sizes})

    def answers(self, generated: torch.Tensor, prompt_length: int) -> list[str]:
        """The texts that a batch's generated ids hold after the prompts ``(B, L)``."""
        decoded: list[str] = self.tokenizer.batch_decode(generated[:, prompt_length:], skip_special_tokens=True)
        return decoded
