"""The model in training: log-probabilities of both answers of each pair in a batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from spr.models.families import Family
from spr.models.image_features import compute_features, image_outputs
from spr.training.batches import Batch
from spr.training.loss import token_logps
from spr.training.prefix_attention import masks_and_kernel
from spr.training.shared_prefix import Attention, PrefixShortcuts, language_model


class PairModel(nn.Module):
    """A multimodal LLM with its adapter; its forward pass returns the log-probabilities of pairs.

    DDP, FSDP or DeepSpeed wrap it as a whole, because everything that a training step computes happens in its forward
    pass. It takes a `peft.PeftModel` around a transformers model, or a transformers model, and keeps it as ``peft``,
    which can be used as usual between two forward passes. Where the prefix is shared, ``attention`` computes the
    language model's attention; by default, the implementation that the model was loaded with.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        *,
        gradient_checkpointing: bool = False,
        attention: Attention | None = None,
    ) -> None:
        super().__init__()
        self.peft: Any = model
        self.family = family
        self.attention: str = attention or language_model(self.base, family).config._attn_implementation
        self._shortcuts: AbstractContextManager[Any] = nullcontext()
        for module in self.peft.modules():
            if isinstance(module, BaseTunerLayer):
                # PEFT casts the adapter's inputs to float32; autocast casts the adapter's weights instead.
                module.cast_input_dtype_enabled = self.base.dtype != torch.bfloat16
        if gradient_checkpointing:
            options = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), self._shortcuts)}
            self.base.activation_checkpointing_enable(options)

    @property
    def base(self) -> Any:
        """The transformers model, with the adapter's layers in place."""
        unwrap: Any = getattr(self.peft, "get_base_model", None)
        return self.peft if unwrap is None else unwrap()

    @property
    def dense_masks(self) -> bool:
        """True if batches with a shared prefix need their ``mask``."""
        return self.attention in ("sdpa", "eager")

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of the language model; the frozen parts stay in evaluation mode."""
        super().train(mode)
        for name, part in self.base.model.named_children():
            if not self.family.language_model.endswith(f".{name}"):
                part.eval()
        return self

    def forward(self, batch: Batch | None = None, vision: dict[str, Tensor] | None = None) -> Any:
        """The fields of `PairLogps` for a batch, or of `Features` for one image's vision inputs from the processor.

        They are tuples, because modules that wrap this one look for tensors in tuples.
        """
        if vision is not None:
            features = compute_features(self.base, vision, deep=self.family.deep_features)
            return features.tokens, features.deep
        return self._logps(batch) if batch is not None else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the model computes."""
        # Casts the adapter's float32 weights to bfloat16 if the frozen weights are bfloat16. There is no cast to
        # float16, where the unscaled gradients of an untrained adapter would underflow.
        bfloat16 = self.base.dtype == torch.bfloat16
        return torch.autocast(self.base.device.type, torch.bfloat16) if bfloat16 else nullcontext()

    def _logps(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        base = self.base
        positions = batch.positions[0] if batch.positions.shape[0] == 1 else batch.positions
        extra: dict[str, Any] = {"token_type_ids": batch.token_types} if self.family.bidirectional_prompt else {}
        rules = self.family.layer_masks
        if rules is not None and not batch.spans:  # the model makes its masks
            extra[rules.token_types] = (batch.input_ids == base.config.image_token_id).int()
        elif batch.image_tokens is not None:
            extra["mm_token_type_ids"] = batch.image_tokens.int()
        masks, kernel = masks_and_kernel(self.attention, batch, self.family, base)
        self._shortcuts = nullcontext()
        if batch.begin > 0 or kernel is not None:
            self._shortcuts = PrefixShortcuts(base, self.family, batch.begin, kernel=kernel)
        if batch.features:
            extra["mm_encoder_outputs"] = {"image": image_outputs(batch.features, joined=self.family.joined_features)}
        with self.autocast(), self._shortcuts:
            hidden = base.model(
                input_ids=batch.input_ids,
                attention_mask=masks.get("", masks),
                position_ids=positions,
                use_cache=False,
                **extra,
            ).last_hidden_state
        softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
        # On a GPU, autocast leaves the output of a LayerNorm in float32.
        predicting = hidden[batch.rows, batch.columns].to(base.lm_head.weight.dtype)
        logps = token_logps(predicting, batch.labels, base.lm_head, softcap=softcap)
        count = len(batch.pair_ids)
        if batch.weights is None:
            tokens = torch.bincount(batch.owners, minlength=2 * count)
        else:
            logps = logps * batch.weights
            tokens = batch.weights.new_zeros(2 * count).index_add(0, batch.owners, batch.weights)
        sums = logps.new_zeros(2 * count).index_add(0, batch.owners, logps)
        return sums[:count], sums[count:], tokens[:count], tokens[count:]
