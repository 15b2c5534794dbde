"""The model that is trained, as one module: a batch of pairs → the log-probabilities of their answers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from spr.models.families import Family
from spr.training.attention import use_causal_beginning
from spr.training.collate import Batch
from spr.training.features import compute_features, image_outputs
from spr.training.head import token_logps
from spr.training.last_layer import LastLayer


class PairModel(nn.Module):
    """A multimodal LLM with its adapter, whose forward is the pairs' log-probabilities.

    Wrapped as a whole by DDP, FSDP or DeepSpeed: all that a step computes happens in its forward. The model given
    serves this alone from then on: its last layer computes what a batch needs.

    Args:
        model: A `peft.PeftModel` around a model of transformers, or such a model alone.
        family: What is known of its family.

    Attributes:
        peft: The model given.
    """

    def __init__(self, model: nn.Module, family: Family) -> None:
        super().__init__()
        self.peft: Any = model
        self.family = family
        self._causal_beginning = use_causal_beginning(self.base, family)
        self._last_layer = LastLayer(self.base, family)
        for module in self.peft.modules():
            if isinstance(module, BaseTunerLayer):
                # PEFT casts what comes to the adapter to float32; autocast casts the adapter's weights instead.
                module.cast_input_dtype_enabled = not self._bfloat16

    @property
    def _bfloat16(self) -> bool:
        return bool(self.base.dtype == torch.bfloat16)

    @property
    def base(self) -> Any:
        """The model of transformers, the adapter's layers in their places."""
        unwrap: Any = getattr(self.peft, "get_base_model", None)
        return self.peft if unwrap is None else unwrap()

    def train(self, mode: bool = True) -> Self:
        """Training mode for the language model alone: what is frozen computes as it always does."""
        super().train(mode)
        for name, part in self.base.model.named_children():
            if not self.family.language_model.endswith(f".{name}"):
                part.eval()
        return self

    def forward(self, batch: Batch | None = None, vision: dict[str, Tensor] | None = None) -> Any:
        """A batch's log-probabilities, or an image's features.

        Args:
            batch: On the model's device.
            vision: What the processor made of an image.

        Returns:
            The fields of `spr.training.loss.PairLogps`, or of `spr.training.features.Features`, as a tuple: those who
            wrap a module look for tensors in tuples.
        """
        if vision is not None:
            return compute_features(self.base, vision)
        return self._logps(batch) if batch is not None else None

    def _autocast(self) -> AbstractContextManager[Any]:
        """Products with the adapter's float32 weights in bfloat16, where the frozen weights are.

        Not in float16: unscaled gradients of a young adapter are below its range.
        """
        return torch.autocast(self.base.device.type, torch.bfloat16) if self._bfloat16 else nullcontext()

    def _logps(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        base = self.base
        positions = batch.positions[0] if batch.positions.shape[0] == 1 else batch.positions
        extra = {"token_type_ids": batch.token_types} if self.family.bidirectional_prompt else {}
        self._last_layer.begin = batch.begin
        with self._autocast():
            hidden = base.model(
                input_ids=batch.input_ids,
                attention_mask=self._mask(batch),
                position_ids=positions,
                mm_encoder_outputs={"image": image_outputs(batch.features, joined=self.family.joined_features)},
                use_cache=False,
                **extra,
            ).last_hidden_state
        if not torch.is_grad_enabled():
            self._last_layer.begin = 0
        softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
        # On a GPU autocast leaves a LayerNorm's output in float32.
        read = hidden[batch.rows, batch.columns].to(base.lm_head.weight.dtype)
        logps = token_logps(read, batch.labels, base.lm_head, softcap=softcap)
        count = len(batch.pair_ids)
        sums = logps.new_zeros(2 * count).index_add(0, batch.owners, logps)
        tokens = torch.bincount(batch.owners, minlength=2 * count)
        return sums[:count], sums[count:], tokens[:count], tokens[count:]

    def _mask(self, batch: Batch) -> Tensor:
        mask = batch.mask
        if mask.dim() == 4 and self._causal_beginning:
            return mask[:, :, batch.begin :]
        if mask.dim() == 4 and self.base.config._attn_implementation == "eager":
            # Eager attention adds its mask to the scores.
            dtype = self.base.dtype
            return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        return mask


def can_share_prefix(model: Any, family: Family) -> str | None:
    """Why image and prompt can't be computed once a pair with this model; None where they can.

    Args:
        model: The model of transformers.
        family: What is known of its family.
    """
    if not family.shared_prefix:
        return f"it is not proven for {model.config.model_type}"
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return f"attention kernel {model.config._attn_implementation} takes no mask of its own"
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if kinds - {"full_attention"}:
        return f"its layers are of the kinds {', '.join(sorted(kinds))}"
    return None
