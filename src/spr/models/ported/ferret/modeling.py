"""Ferret's forward pass: the features of patches and regions replace their placeholder tokens in Vicuna's input.

It follows LLaVA in transformers, so that what works with LLaVA also works here: generation with a cache, left padding,
gradient checkpointing, attention kernels, PEFT, and training of the language model alone.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaModelOutputWithPast,
    LlavaPreTrainedModel,
)

from spr.core.errors import InputError
from spr.models.loading import check_complete
from spr.models.ported.ferret.configuration import FerretConfig
from spr.models.ported.ferret.published import read_published
from spr.models.ported.ferret.sampler import RegionSampler


class FerretPreTrainedModel(LlavaPreTrainedModel):  # type: ignore[misc]
    """The base class of both models below."""

    config: FerretConfig
    config_class = FerretConfig
    base_model_prefix = "model"


class FerretModel(FerretPreTrainedModel):
    """Vision tower, projector, region sampler and language model, without the language model's head."""

    def __init__(self, config: FerretConfig) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_tower = AutoModel.from_config(vision)
        self.multi_modal_projector = nn.Linear(vision.hidden_size, text.hidden_size)
        self.region_sampler = RegionSampler(
            vision.hidden_size,
            text.hidden_size,
            config.region_stages,
            config.region_neighbors,
            config.region_pooling,
        )
        self.language_model = AutoModel.from_config(text)
        self.post_init()

    def get_image_features(
        self,
        pixel_values: Tensor,
        region_points: Tensor | None = None,
        region_sizes: Tensor | None = None,
        region_generator: torch.Generator | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """The language model's inputs for images ``(B, 3, side, side)`` and their regions.

        Args:
            pixel_values: The images.
            region_points: Points for `RegionSampler`, one row per image.
            region_sizes: Width and height of the images in pixels, ``(B, 2)``.
            region_generator: Random generator for `RegionSampler`.

        Returns:
            ``last_hidden_state`` is the feature map ``(B, P, C)`` from which regions are read, ``pooler_output`` a list
            of B tensors ``(P + R, D)``: an image's patches, then its R regions.

        Raises:
            InputError: if the numbers of points, sizes and images differ.
        """
        seen = self.vision_tower(pixel_values, output_hidden_states=True, return_dict=True)
        features = seen.hidden_states[self.config.vision_feature_layer][:, 1:]
        rows = list(self.multi_modal_projector(features))
        if region_points is not None and region_points.shape[1]:
            if region_sizes is None or not len(region_points) == len(region_sizes) == len(rows):
                got = f"points of {len(region_points)}, sizes of {0 if region_sizes is None else len(region_sizes)}"
                raise InputError(
                    "`region_points` and `region_sizes` do not match the images", got=got, expected=len(rows)
                )
            found = self.region_sampler(features, region_points, region_sizes, region_generator)
            counts = (region_points[..., 0, 0] >= 0).sum(-1).tolist()
            rows = [torch.cat(parts) for parts in zip(rows, found.split(counts), strict=True)]
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=rows)

    def get_placeholder_mask(self, input_ids: Tensor, token: int) -> Tensor:
        """Where a placeholder token is: bool ``(B, L)``."""
        return input_ids == token

    def embed_inputs(self, input_ids: Tensor, rows: list[Tensor]) -> Tensor:
        """The language model's input ``(B, L, D)``, with the features of patches and regions at their tokens.

        The first ``<region_fea>`` tokens of a prompt belong to its regions. Further ones, in an answer, keep their word
        embedding.

        Args:
            input_ids: ``(B, L)``, with one image token per patch.
            rows: The ``pooler_output`` of `get_image_features`, in the order of the prompts with an image.

        Raises:
            InputError: if the number of image tokens differs from that of patches, or there are fewer region tokens
                than regions.
        """
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        vision = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        image_mask = self.get_placeholder_mask(input_ids, self.config.image_token_index)
        found = image_mask.sum(-1)
        if not (found[found > 0] == patches).all() or int((found > 0).sum()) != len(rows):
            raise InputError(
                "The image tokens of the prompts don't match the images",
                got=f"{found.tolist()} tokens",
                expected=f"{len(rows)} prompts with {patches} image tokens, one per patch, and none in the others",
                fix="create the inputs with FerretProcessor, from texts with one <image> per image",
            )
        seen = torch.cat([row[:patches] for row in rows]).to(embeds.device, embeds.dtype)
        embeds = embeds.masked_scatter(image_mask.unsqueeze(-1), seen)
        counts = torch.zeros_like(found)
        counts[found > 0] = torch.tensor([len(row) - patches for row in rows], device=counts.device)
        tokens = self.get_placeholder_mask(input_ids, self.config.region_token_index)
        if bool((tokens.sum(-1) < counts).any()):
            raise InputError(
                "Some prompts have more regions than <region_fea>",
                got=f"{counts.tolist()} regions for {tokens.sum(-1).tolist()} tokens",
                expected="one token per region",
            )
        first = tokens & (tokens.cumsum(-1) <= counts.unsqueeze(-1))
        regions = torch.cat([row[patches:] for row in rows]).to(embeds.device, embeds.dtype)
        return embeds.masked_scatter(first.unsqueeze(-1), regions)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        region_points: Tensor | None = None,
        region_sizes: Tensor | None = None,
        region_generator: torch.Generator | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        """Hidden states ``(B, L, D)``.

        Images are given as ``pixel_values`` with their regions, or as ``mm_encoder_outputs["image"]``, an output of
        `get_image_features`. Both need ``input_ids``.
        """
        seen = (mm_encoder_outputs or {}).get("image")
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError(
                "The model takes either `input_ids` or `inputs_embeds`", got="both or neither", expected="one"
            )
        if (pixel_values is not None) + (seen is not None) + (inputs_embeds is not None) > 1:
            got = "two of pixel_values, mm_encoder_outputs and inputs_embeds"
            raise InputError("Images are given twice", got=got, expected="one of them")
        if seen is None and pixel_values is not None:
            seen = self.get_image_features(pixel_values, region_points, region_sizes, region_generator)
        if input_ids is not None:
            embed = self.get_input_embeddings()
            inputs_embeds = embed(input_ids) if seen is None else self.embed_inputs(input_ids, list(seen.pooler_output))
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return LlavaModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=None if seen is None else seen.pooler_output,
        )


class FerretForConditionalGeneration(FerretPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Ferret with its language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: FerretConfig) -> None:
        super().__init__(config)
        self.model = FerretModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str] | None, *args: Any, **kwargs: Any) -> Any:
        """Load a folder of this class or in the authors' layout (see `read_published`), and check that it is complete.

        Raises:
            ModelError: if tensors are missing, unexpected or have a wrong shape, or those of a published folder are
                pickled while ``use_safetensors`` is true.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        published = read_published(source, kwargs) if source is not None and not kwargs.get("state_dict") else None
        if published is None:
            model, found = super().from_pretrained(source, *args, **kwargs)
        else:
            config = kwargs.pop("config", None) or FerretConfig.from_dict(published.config)
            for name in ("revision", "use_safetensors", "trust_remote_code"):
                kwargs.pop(name, None)
            model, found = super().from_pretrained(None, *args, config=config, state_dict=published.tensors, **kwargs)
        check_complete(source or "the given tensors", cls.__name__, found)
        return (model, found) if wants_info else model

    def _expand_multimodal_outputs(
        self, _: Any, mm_encoder_output: dict[str, Any], expand_size: int = 1, **__: Any
    ) -> dict[str, Any]:
        """Repeat features for several answers per prompt; transformers' method counts image tokens only."""
        seen = mm_encoder_output.get("image")
        if seen is not None:
            seen.pooler_output = [row for row in seen.pooler_output for _ in range(expand_size)]
        return mm_encoder_output

    def get_output_embeddings(self) -> nn.Module:
        """The language-model head."""
        return self.lm_head

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `FerretModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        region_points: Tensor | None = None,
        region_sizes: Tensor | None = None,
        region_generator: torch.Generator | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """Logits ``(B, L, V)`` of the last ``logits_to_keep`` positions (0 for all), and the loss for labels."""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            region_points=region_points,
            region_sizes=region_sizes,
            region_generator=region_generator,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return LlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )
