"""CogVLM-17B: a decoder whose image tokens have their own linear layers, the visual expert (arXiv 2311.03079)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.output_capturing import capture_outputs

from spr.models.errors import ModelError
from spr.models.ported.cogvlm.configuration import CogVLMConfig
from spr.models.ported.cogvlm.decoder import CogVLMAttention, CogVLMDecoderLayer, CogVLMRMSNorm, CogVLMRotaryEmbedding
from spr.models.ported.cogvlm.experts import LANGUAGE, VISION, build_position_ids, image_token_types, route
from spr.models.ported.cogvlm.vision import CogVLMPatchEmbedding, CogVLMVisionModel


class CogVLMPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """The base class of both models below."""

    config_class = CogVLMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["CogVLMDecoderLayer", "CogVLMVisionLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _keys_to_ignore_on_load_missing: ClassVar[list[str]] = [r"rotary_emb\.inv_freq$"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": CogVLMDecoderLayer,
        "attentions": CogVLMAttention,
    }

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CogVLMRotaryEmbedding):
            init.copy_(module.inv_freq, module.compute())
        elif isinstance(module, CogVLMPatchEmbedding):
            init.zeros_(module.cls_embedding)
        elif isinstance(module, CogVLMVisionModel):
            init.zeros_(module.boi)
            init.zeros_(module.eoi)


class CogVLMModel(CogVLMPreTrainedModel):
    """Vision tower and decoder, without the output layer."""

    def __init__(self, config: CogVLMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(CogVLMDecoderLayer(config, k) for k in range(config.num_hidden_layers))
        self.norm = CogVLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.vision = CogVLMVisionModel(config)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def language_model(self) -> CogVLMModel:
        """This module, for callers that run the decoder alone; the published names have no submodule for it."""
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """The text tokens' embeddings."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the text tokens' embeddings."""
        self.embed_tokens = value

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Pixels ``(N, 3, S, S)`` → ``pooler_output``, per image ``(P + 2, D)``: begin token, patches, end token."""
        features = self.vision(pixel_values.to(self.vision.boi.dtype))
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=list(features))

    def get_placeholder_mask(self, token_type_ids: Tensor, image_features: Tensor) -> Tensor:
        """The positions of image features: bool ``(B, L)``.

        Raises:
            ModelError: if the numbers of image tokens and features differ.
        """
        mask = token_type_ids == VISION
        if int(mask.sum()) != len(image_features):
            raise ModelError(
                "The images don't match the prompts",
                got=f"{int(mask.sum())} image tokens for features of {len(image_features)}",
                expected=f"{self.config.image_seq_length} tokens per image",
                fix="give exactly one image for each prompt with an image placeholder",
            )
        return mask

    def prompt_positions(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The positions ``(B, L)`` of the tokens of prompts; an answer continues after the largest."""
        return build_position_ids(self._find_images(input_ids), attention_mask)

    def _find_images(self, input_ids: Tensor) -> Tensor:
        bos, image = self.config.bos_token_id, self.config.pad_token_id
        return image_token_types(input_ids, self.config.image_seq_length, bos=bos, image=image)

    def _embed(self, input_ids: Tensor, token_type_ids: Tensor, features: list[Tensor] | None) -> Tensor:
        embeddings: Tensor = self.embed_tokens(input_ids)
        images = torch.cat(features) if features else embeddings.new_empty(0, embeddings.shape[-1])
        mask = self.get_placeholder_mask(token_type_ids, images)
        return embeddings.masked_scatter(mask[..., None].to(embeddings.device), images.to(embeddings))

    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states for token ids with pixels, or for embeddings of both.

        Args:
            input_ids: ``(B, L)``; image tokens have the id of padding, as in the published code.
            pixel_values: ``(N, 3, S, S)``, one image per row with image tokens, in the order of the rows.
            token_type_ids: ``(B, L)``: 0 for text, 1 for the `config.image_seq_length` tokens of an image. None infers
                them from the ids if there are images, and means text otherwise.
            attention_mask: ``(B, L)``, 0 for padding; or ``(B, 1, L, L_all)``, bool (True attends) or additive, which
                must then include causality.
            position_ids: ``(B, L)``; required with a mask of four dimensions and with a filled cache.
            past_key_values: A cache of transformers.
            inputs_embeds: ``(B, L, D)`` instead of ids and pixels, with the images' features in their positions.
            use_cache: Whether to return a cache; None for the config's setting.
            mm_encoder_outputs: ``{"image": get_image_features(…)}`` instead of pixels.
            **kwargs: Passed to the attention kernel.

        Raises:
            ModelError: if images and image tokens do not match, or positions can't be inferred.
        """
        given: Any = input_ids if inputs_embeds is None else inputs_embeds
        if (input_ids is None) == (inputs_embeds is None):
            raise ModelError(
                "CogVLM takes either `input_ids` or `inputs_embeds`", got="both or neither", expected="one"
            )
        features: Any = (mm_encoder_outputs or {}).get("image")
        if features is None and pixel_values is not None:
            features = self.get_image_features(pixel_values)
        if token_type_ids is None:
            known = input_ids is not None and features is not None
            token_type_ids = self._find_images(given) if known else given.new_full(given.shape[:2], LANGUAGE).long()
        if inputs_embeds is None:
            inputs_embeds = self._embed(given, token_type_ids, None if features is None else features.pooler_output)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            if past or (attention_mask is not None and attention_mask.ndim != 2):
                raise ModelError(
                    "CogVLM can't infer positions here, since the patches of an image share one",
                    got=f"a cache of {past} tokens" if past else "a mask of four dimensions",
                    expected="position_ids",
                )
            position_ids = build_position_ids(token_type_ids, attention_mask)
        if self.config.use_cache if use_cache is None else use_cache:
            past_key_values = DynamicCache(config=self.config) if past_key_values is None else past_key_values
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=None,  # shared positions would be interpreted as packed sequences
        )
        routing, hidden_states = route(token_type_ids), inputs_embeds
        for layer in self.layers:
            hidden_states = layer(hidden_states, routing, position_ids, mask, past_key_values=past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


class CogVLMForCausalLM(CogVLMPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """CogVLM with its output layer; the class has the published name."""

    def __init__(self, config: CogVLMConfig) -> None:
        super().__init__(config)
        self.model = CogVLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The text tokens' embeddings."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the text tokens' embeddings."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer."""
        return self.lm_head

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `CogVLMModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``(B, L, vocabulary)``; see `CogVLMModel` for the other arguments.

        ``labels`` ``(B, L)``, with −100 for ignored positions, give the mean negative log-likelihood as ``loss``.
        ``logits_to_keep`` limits the logits to this many last positions; 0 means all.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            token_type_ids=token_type_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        types = model_kwargs.get("token_type_ids")
        ids = model_kwargs.get("input_ids")
        ids = inputs_tensor if ids is None or ids.shape[1] == 0 else ids
        types = torch.full(ids.shape[:2], LANGUAGE, device=ids.device) if types is None else types
        return build_position_ids(types, model_kwargs.get("attention_mask"))

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], is_encoder_decoder: bool = False, num_new_tokens: int = 1
    ) -> dict[str, Any]:
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )
        # Generated tokens are text, also after a prompt that ends with its image.
        if (types := updated.get("token_type_ids")) is not None:
            types[:, -num_new_tokens:] = LANGUAGE
        return updated
