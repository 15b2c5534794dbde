"""Less work on the prompt of a pair: one sequence [prompt | chosen | rejected], with image and prompt only once.

Most of a sequence is prompt. `Batch.begin` is the number of leading rows (tokens) that are plain causal and predict no
answer token. `PrefixShortcuts` saves work on them for one forward pass, without changing the result:

- Attention: a kernel with a mask computes every block, while a causal kernel skips the blocks above the diagonal. So
  the leading rows run without a mask (`attend`). `flash_pieces` and `block_masks` do without a dense mask for all rows.
- Last layer: nothing reads the output of the leading rows, so they need keys and values only. Their queries,
  attention, output projection and MLP are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spr.models.families import Family

KERNEL = "spr_shared_prefix"
"""Name in the attention kernels of transformers for the one in use."""
Attention = Literal["sdpa", "eager", "flash_attention_2", "flex_attention"]
"""How attention is computed where the prefix is shared."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    last_attention: nn.Module | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention whose leading rows are causal and need no mask.

    It has the signature of an attention kernel of transformers: query ``(S, heads, T, D)``, key and value
    ``(S, key heads, T, D)``. The mask ``(S, 1, M, T)`` is that of the last M rows; the rows before them are causal, and
    are skipped if the module is ``last_attention``. Returns ``(S, T, heads, D)``, zero in skipped rows, and None in
    place of the attention weights.
    """
    leading = 0 if attention_mask is None else query.shape[2] - attention_mask.shape[2]
    if not leading:
        return _sdpa(module, query, key, value, attention_mask, **options), None
    # Not slices, whose gradients would be zeros of the whole size each.
    first, last = torch.split(query, [leading, query.shape[2] - leading], dim=2)
    end = _sdpa(module, last, key, value, attention_mask, **options)
    if module is last_attention:
        return nn.functional.pad(end, (0, 0, 0, 0, leading, 0)), None
    begin = _sdpa(module, first, *(part[:, :, :leading] for part in (key, value)), None, **options)
    return torch.cat([begin, end], dim=1), None


def _sdpa(module: nn.Module, *parts: Tensor | None, **options: Any) -> Tensor:
    output: Tensor = sdpa_attention_forward(module, *parts, **options)[0]
    return output


class PrefixShortcuts:
    """Context in which a language model saves work on the leading rows of its sequences.

    On exit, the model's hooks and its attention kernel are as they were before. The context can be entered again:
    gradient checkpointing recomputes activations in the backward pass under the context of their forward pass. The
    attention is computed by ``kernel``, with the signature of `attend`, or by the model's own if it is None.
    """

    def __init__(self, model: Any, family: Family, begin: int, *, kernel: Callable[..., Any] | None = None) -> None:
        self._language_model = language_model(model, family)
        self._begin, self._own_kernel = begin, kernel
        last = self._language_model.layers[-1]
        projections = [getattr(last.self_attn, name) for name in family.row_projections]
        self._last_attention: nn.Module | None = last.self_attn if projections and begin else None
        self._row_wise: list[Any] = [*projections, last.mlp] if projections and begin else []
        self._hooks: list[RemovableHandle] = []
        self._kernel: str | None = None

    def __enter__(self) -> Self:
        for part in self._row_wise:
            self._hooks.append(part.register_forward_pre_hook(self._skip_rows, prepend=True))
            self._hooks.append(part.register_forward_hook(self._fill_rows))
        if self._own_kernel is not None:
            kernel = partial(self._own_kernel, last_attention=self._last_attention)
            ALL_ATTENTION_FUNCTIONS.register(KERNEL, kernel)
            # The model is given its mask; transformers only asks that a kernel has a function to make one.
            ALL_MASK_ATTENTION_FUNCTIONS.register(KERNEL, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
            config = self._language_model.config
            self._kernel, config._attn_implementation = config._attn_implementation, {"": KERNEL}
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._own_kernel is not None:
            self._language_model.config._attn_implementation = {"": self._kernel}

    def _skip_rows(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Contiguous: layers with experts change its shape with `view`.
        return (inputs[0][:, self._begin :].contiguous(), *inputs[1:])

    def _fill_rows(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return nn.functional.pad(output, (0, 0, self._begin, 0))


def language_model(model: Any, family: Family) -> Any:
    """The module of a transformers model that holds the language model's ``layers``."""
    return model.get_submodule(family.decoder)


def why_not_shared(config: Any, family: Family, attention: str = "sdpa") -> str | None:
    """The reason why a model can't compute image and prompt once per pair with an attention, or None if it can.

    ``config`` is the model's.
    """
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if "linear_attention" in kinds:
        return "linear attention carries one state through all tokens, so that the second answer would see the first"
    if not family.shared_prefix:
        return f"no test shows that it gives the same result for {config.model_type}"
    if attention not in get_args(Attention):
        return f"attention implementation {attention} does not support custom masks"
    if kinds - {"full_attention"} and family.layer_masks is None:
        return f"its layers are of types {', '.join(sorted(kinds))}"
    if attention == "flash_attention_2":
        if family.layer_masks is not None:
            return "its layers have masks that FlashAttention can't compute; attn_implementation flex_attention can"
        if family.bidirectional_image:
            return "its image tokens see each other in both directions; attn_implementation flex_attention can do that"
    return None
