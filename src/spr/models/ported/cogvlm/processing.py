"""CogVLM's processor: prompts and images as tensors, with token types that mark the image."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import AutoTokenizer, BatchFeature, CLIPImageProcessorPil, ProcessorMixin
from transformers.image_utils import make_flat_list_of_images
from transformers.utils.hub import cached_file

from spr.core.terminal import count_text
from spr.models.loading import ModelError, Source, clear_errors, load_part
from spr.models.ported.cogvlm.configuration import CogVLMConfig
from spr.models.ported.cogvlm.experts import LANGUAGE, VISION

TOKENIZER = "lmsys/vicuna-7b-v1.5"
"""The tokenizer that the model cards name; the published folders do not contain one."""

_ANSWERS = {"chat": "Answer:", "vqa": "Short answer:"}


def make_template(version: str, image_token: str) -> str:
    """A chat template: the user's text alone (``base``), or "Question: … Answer:" (``chat``, ``vqa``).

    Among the published models, the grounding and base models use ``base``; cogvlm-chat uses ``chat``, or ``vqa`` for
    short answers. An answer follows after a space, so that it has the same tokens as alone.
    """
    image = "{% if message['content'] is not string %}{% for part in message['content'] %}"
    image += "{% if part['type'] == 'image' %}" + image_token + "{% endif %}{% endfor %}{% endif %}"
    text = "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    text += "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    answer = _ANSWERS.get(version)
    user = image + (text if answer is None else f"Question: {text} {answer}")
    said = " " + text + "{% if loop.last %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}"
    turn = "{% if message['role'] == 'assistant' %}" + said + "{% else %}" + user + "{% endif %}"
    return "{% for message in messages %}" + turn + "{% endfor %}"


class CogVLMProcessor(ProcessorMixin):  # type: ignore[misc]
    """Prepares texts and images for `CogVLMForCausalLM`.

    A text with an image begins with the placeholder. As in the published code, the ids are the start token, the
    placeholder ``num_image_tokens`` times (of type 1), then the tokens of the text.

    Args:
        image_processor: Resizes to ``(S, S)`` by bicubic interpolation, with CLIP's mean and standard deviation.
        tokenizer: Vicuna's tokenizer.
        num_image_tokens: Tokens per image: its patches, and a begin and an end token.
        image_token: The image's placeholder, a token; None for the padding token as in the published code, which is
            Vicuna's ``<unk>``.
        chat_template: Jinja template; `make_template` gives the published ones.

    Attributes:
        image_token_id: The id of the placeholder.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int = 1227,
        image_token: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.num_image_tokens, self.image_token = num_image_tokens, image_token or tokenizer.pad_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | None = None,
        text: str | Sequence[str] = "",
        *,
        padding: bool | str = True,
        return_tensors: str | None = "pt",
        **_: Any,
    ) -> BatchFeature:
        """``input_ids``, ``token_type_ids``, ``attention_mask`` ``(B, L)``, and ``pixel_values`` ``(N, 3, S, S)``.

        Args:
            images: One for each text that begins with the placeholder, in the same order, or a list of one.
            text: Prompts; the start token is added unless it is there.
            padding: Whether to pad rows to the longest, on the tokenizer's padding side.
            return_tensors: ``"pt"``, ``"np"``, or None for lists.

        Raises:
            ModelError: if the numbers of images and placeholders differ, or a placeholder is not at the start.
        """
        texts = [text] if isinstance(text, str) else list(text)
        pictures = make_flat_list_of_images(images) if images else []
        rows = [self._encode(text) for text in texts]
        placed = sum(VISION in types for _, types in rows)
        if placed != len(pictures):
            fix = f"start each prompt about an image with {self.image_token}, and give as many images"
            raise ModelError(
                "The images don't match the prompts",
                got=f"{count_text(len(pictures), 'images')}, {count_text(placed, 'prompts')} with {self.image_token}",
                expected="equal numbers",
                fix=fix,
            )
        width = max((len(ids) for ids, _ in rows), default=0) if padding else 0
        pad = self.tokenizer.pad_token_id or 0
        data: dict[str, Any] = {"input_ids": [], "token_type_ids": [], "attention_mask": []}
        for ids, types in rows:
            gap = [0] * max(width - len(ids), 0)
            for name, row, fill in (
                ("input_ids", ids, pad),
                ("token_type_ids", types, LANGUAGE),
                ("attention_mask", [1] * len(ids), 0),
            ):
                padded = [fill for _ in gap]
                data[name].append(padded + row if self.tokenizer.padding_side == "left" else row + padded)
        if pictures:
            data["pixel_values"] = self.image_processor(pictures, return_tensors=return_tensors)["pixel_values"]
        return BatchFeature(data, tensor_type=return_tensors)

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        tokenizer = self.tokenizer
        text = text.removeprefix(tokenizer.bos_token)
        before, image, after = text.partition(self.image_token)
        if image and (before.strip() or self.image_token in after):
            raise ModelError(
                "CogVLM takes one image, before the text",
                got=text if len(text) < 80 else text[:77] + "…",
                expected=f"{self.image_token} once, at the beginning",
                fix="correct the prompt or chat_template.jinja",
            )
        count = self.num_image_tokens if image else 0
        words = tokenizer(after if image else text, add_special_tokens=False)["input_ids"]
        ids = [tokenizer.bos_token_id, *[self.image_token_id] * count, *words]
        return ids, [LANGUAGE, *[VISION] * count, *[LANGUAGE] * len(words)]


def load_cogvlm_processor(source: Source, config: CogVLMConfig, *, revision: str | None = None) -> CogVLMProcessor:
    """The processor of a published or saved CogVLM, with left padding.

    Sizes come from the model's config, the chat template from the folder's chat_template.jinja or else from the
    config's ``template_version``, and the tokenizer from the folder or else from `TOKENIZER`.

    Raises:
        ModelError: if the tokenizer can't be loaded.
    """
    vision: Any = config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    pictures = CLIPImageProcessorPil(size=size, resample=Image.Resampling.BICUBIC, do_center_crop=False)
    tokenizer = _tokenizer(source, revision)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    with clear_errors(source, revision):
        settings, _ = CogVLMProcessor.get_processor_dict(source, revision=revision or "main")
    image = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    template = settings.get("chat_template") or make_template(config.template_version, image)
    count = config.image_seq_length
    return CogVLMProcessor(pictures, tokenizer, num_image_tokens=count, image_token=image, chat_template=template)


def _tokenizer(source: Source, revision: str | None) -> Any:
    own = _has(source, revision, "tokenizer.json") or _has(source, revision, "tokenizer.model")
    where, version = (source, revision) if own else (TOKENIZER, None)
    try:
        tokenizer = load_part(AutoTokenizer, where, revision=version)
    except ModelError as error:
        fix = f"put {TOKENIZER}'s tokenizer files beside the weights: tokenizer.model and tokenizer_config.json"
        if not _has_protobuf():
            fix += "; a tokenizer.model needs: pip install protobuf"
        got = " ".join(str(error.got or error.what).split())[:200]
        raise ModelError(f"The tokenizer of {source} can't be loaded", got=f"{where}: {got}", fix=fix) from error
    return tokenizer


def _has_protobuf() -> bool:
    return importlib.util.find_spec("google") is not None and importlib.util.find_spec("google.protobuf") is not None


def _has(source: Source, revision: str | None, name: str) -> bool:
    with clear_errors(source, revision):
        found = cached_file(source, name, revision=revision or "main", _raise_exceptions_for_missing_entries=False)
    return found is not None
