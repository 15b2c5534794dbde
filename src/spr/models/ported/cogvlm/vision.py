"""CogVLM's vision tower, EVA2-CLIP-E, and its projector to the language model (Wang et al. 2023, Sec. 2.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from spr.models.ported.cogvlm.configuration import CogVLMConfig, CogVLMVisionConfig


class CogVLMPatchEmbedding(nn.Module):
    """Embeds pixels ``(N, 3, S, S)`` as a class token and the patches, row by row: ``(N, 1 + P, D)``."""

    def __init__(self, config: CogVLMVisionConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, kernel_size=side, stride=side)
        self.cls_embedding = nn.Parameter(torch.zeros(1, config.hidden_size))
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``(N, 3, S, S)`` → ``(N, 1 + P, D)``."""
        patches = self.proj(pixel_values).flatten(2).transpose(1, 2)
        first = self.cls_embedding.expand(len(patches), 1, -1)
        tokens: Tensor = torch.cat([first, patches], dim=1) + self.position_embedding.weight
        return tokens


class CogVLMVisionAttention(nn.Module):
    """Bidirectional self-attention."""

    def __init__(self, config: CogVLMVisionConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout_prob
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(N, L, D)`` → ``(N, L, D)``."""
        rows, length, _ = hidden_states.shape
        mixed = self.query_key_value(hidden_states).view(rows, length, 3, self.num_heads, -1)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        context = functional.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.dense(context.transpose(1, 2).reshape(rows, length, -1))
        return functional.dropout(output, self.dropout, self.training)


class CogVLMVisionMLP(nn.Module):
    """An MLP of two linear layers."""

    def __init__(self, config: CogVLMVisionConfig) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(N, L, D)`` → ``(N, L, D)``."""
        output: Tensor = self.fc2(self.activation_fn(self.fc1(hidden_states)))
        return output


class CogVLMVisionLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Attention and MLP with post-norms: each output is normalised before it is added."""

    def __init__(self, config: CogVLMVisionConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = CogVLMVisionAttention(config)
        self.mlp = CogVLMVisionMLP(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(N, L, D)`` → ``(N, L, D)``."""
        hidden_states = hidden_states + self.input_layernorm(self.attention(hidden_states))
        output: Tensor = hidden_states + self.post_attention_layernorm(self.mlp(hidden_states))
        return output


class CogVLMVisionTransformer(nn.Module):
    """All layers, without a final norm."""

    def __init__(self, config: CogVLMVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CogVLMVisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(N, L, D)`` → ``(N, L, D)``."""
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


class CogVLMAdapter(nn.Module):
    """Projects vision features to the language model's width with a gated linear unit."""

    def __init__(self, config: CogVLMConfig) -> None:
        super().__init__()
        vision: Any = config.vision_config
        self.linear_proj = nn.Linear(vision.hidden_size, config.hidden_size, bias=False)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """``(N, P, D_vision)`` → ``(N, P, D)``."""
        features = functional.gelu(self.norm1(self.linear_proj(features)))
        output: Tensor = self.dense_4h_to_h(functional.silu(self.gate_proj(features)) * self.dense_h_to_4h(features))
        return output


class CogVLMVisionModel(nn.Module):
    """Computes the embeddings of an image's tokens."""

    def __init__(self, config: CogVLMConfig) -> None:
        super().__init__()
        vision: Any = config.vision_config
        self.patch_embedding = CogVLMPatchEmbedding(vision)
        self.transformer = CogVLMVisionTransformer(vision)
        self.linear_proj = CogVLMAdapter(config)
        self.boi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.eoi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels ``(N, 3, S, S)`` → begin token, patches and end token, ``(N, P + 2, D)``."""
        features = self.transformer(self.patch_embedding(pixel_values))[:, 1:]
        rows = len(features)
        marked = (self.boi.expand(rows, -1, -1), self.linear_proj(features), self.eoi.expand(rows, -1, -1))
        return torch.cat(marked, dim=1)
