"""CogVLM's decoder layers, in which each token uses the linear layers of its expert (Wang et al. 2023, Sec. 2.1).

Modules have the names of the published weights. Attention is causal, also for image tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spr.models.ported.cogvlm.configuration import CogVLMConfig
from spr.models.ported.cogvlm.experts import Routing, by_expert


class CogVLMRMSNorm(nn.Module):
    """RMS norm that multiplies by its weight in float32, as in the published code."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(…, D)`` → ``(…, D)``."""
        wide = hidden_states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * wide).to(hidden_states.dtype)


class CogVLMRotaryEmbedding(nn.Module):
    """Rotary embedding, computed in the model's dtype as in the published code.

    The weights were trained this way in bfloat16, which rounds positions above 256. The published weights contain
    ``inv_freq``; it is computed if a file does not have it.
    """

    def __init__(self, config: CogVLMConfig) -> None:
        super().__init__()
        self.dim, self.base = config.hidden_size // config.num_attention_heads, config.rope_theta
        self.register_buffer("inv_freq", self.compute())

    def compute(self) -> Tensor:
        """``(head_dim / 2,)`` float32: base^(−2k / head_dim)."""
        return 1.0 / self.base ** (torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Positions ``(B, L)`` → cosines and sines, ``(B, 1, L, head_dim / 2)``."""
        angles = position_ids[:, None, :, None].to(dtype) * torch.as_tensor(self.inv_freq, dtype=dtype)
        return angles.cos(), angles.sin()


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to ``(B, H, L, head_dim)``; feature k is paired with feature k + head_dim / 2."""
    left, right = states.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention with explicit weights and float32 softmax; returns ``(B, L, H, head_dim)`` and the weights."""
    del module
    scores = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class CogVLMAttention(nn.Module):
    """Attention in which the query, key and value of each token come from its expert."""

    def __init__(self, config: CogVLMConfig, layer_idx: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        self.num_heads, self.head_dim = config.num_attention_heads, size // config.num_attention_heads
        self.rotary_emb = CogVLMRotaryEmbedding(config)
        self.vision_expert_query_key_value = nn.Linear(size, 3 * size, bias=False)
        self.vision_expert_dense = nn.Linear(size, size, bias=False)
        self.language_expert_query_key_value = nn.Linear(size, 3 * size, bias=False)
        self.language_expert_dense = nn.Linear(size, size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        routing: Routing | None,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, L, D)`` → ``(B, L, D)``, and the attention weights if the eager kernel is used."""
        mixed = by_expert(
            hidden_states, routing, self.vision_expert_query_key_value, self.language_expert_query_key_value
        )
        query, key, value = mixed.view(*mixed.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        angles = self.rotary_emb(position_ids, query.dtype)
        query, key = rotate(query, *angles), rotate(key, *angles)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        kernel: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        # Without position_ids, since kernels would interpret the patches' shared position as packed sequences.
        context, weights = kernel(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.head_dim**-0.5, **kwargs
        )
        context = context.reshape(hidden_states.shape)
        return by_expert(context, routing, self.vision_expert_dense, self.language_expert_dense), weights


class CogVLMMLP(nn.Module):
    """Vicuna's gated MLP."""

    def __init__(self, config: CogVLMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(…, D)`` → ``(…, D)``."""
        output: Tensor = self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        return output


class CogVLMExpertMLP(nn.Module):
    """One MLP for text, one for images."""

    def __init__(self, config: CogVLMConfig) -> None:
        super().__init__()
        self.language_mlp = CogVLMMLP(config)
        self.vision_mlp = CogVLMMLP(config)

    def forward(self, hidden_states: Tensor, routing: Routing | None) -> Tensor:
        """``(B, L, D)`` → ``(B, L, D)``."""
        return by_expert(hidden_states, routing, self.vision_mlp, self.language_mlp)


class CogVLMDecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Attention and MLP, each after a norm that both experts share."""

    def __init__(self, config: CogVLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = CogVLMAttention(config, layer_idx)
        self.mlp = CogVLMExpertMLP(config)
        self.input_layernorm = CogVLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = CogVLMRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        routing: Routing | None,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """``(B, L, D)`` → ``(B, L, D)``."""
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(normed, routing, position_ids, attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + attended
        output: Tensor = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states), routing)
        return output
