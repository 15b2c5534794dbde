"""The embedded models: small configurations of transformers' classes with initial weights."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    OwlViTConfig,
    OwlViTForObjectDetection,
    Qwen2Config,
    SiglipVisionConfig,
)

from spr.embedded.scenes import SIZE
from tools.embedded.vocabulary import COORDINATES, END, FIRST_COORDINATE, IDS, IMAGE, PAD, START, TOKENS, USER, VIDEO

PATCH, WIDTH = 14, 128
IMAGE_TOKENS = (SIZE // PATCH) ** 2 + 1
"""Tokens per image in the describer's input: its patches and the newline token."""


def weights_folder(name: str) -> Path:
    """The folder of a model in the package: ``describer``, ``scorer`` or ``detector``."""
    return Path(str(files("spr.embedded") / "weights" / name))


def make_describer() -> LlavaOnevisionForConditionalGeneration:
    """A LLaVA-OneVision of 1.6 million parameters with initial weights; it reads the base image without tiles.

    The embeddings of coordinates start as sinusoids of their values, so that neighbours are similar from the start.
    """
    vision = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=IDS[USER],
        eos_token_id=IDS[END],
        pad_token_id=IDS[PAD],
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IDS[IMAGE],
        video_token_id=IDS[VIDEO],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[0, 0]],  # no tiles, only the base image
        tie_word_embeddings=True,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings.normal_(0, 0.05)
        embeddings[FIRST_COORDINATE : FIRST_COORDINATE + len(COORDINATES)] = 0.07 * _sinusoids(embeddings.shape[1])
        position_embeddings(model.model.vision_tower).normal_(0, 0.1)
    model.generation_config.update(
        bos_token_id=IDS[USER], eos_token_id=IDS[END], pad_token_id=IDS[PAD], max_new_tokens=256
    )
    return model


def position_embeddings(tower: nn.Module) -> Tensor:
    """The weight of a vision tower's position embedding."""
    found = [p for name, p in tower.named_parameters() if name.endswith("position_embedding.weight")]
    return found[0]


def _sinusoids(width: int) -> Tensor:
    values = torch.arange(len(COORDINATES))[:, None] / 100
    frequencies = 2 * math.pi * torch.exp(torch.linspace(math.log(0.5), math.log(25), width // 2))
    return torch.cat([torch.sin(values * frequencies), torch.cos(values * frequencies)], dim=1)


_TEXT: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 4,
    "bos_token_id": IDS[START],
    "eos_token_id": IDS[END],
    "pad_token_id": IDS[PAD],
}
_VISION: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 3 * WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": SIZE,
    "patch_size": PATCH,
    "hidden_act": "gelu",
}


def make_scorer() -> CLIPModel:
    """A CLIP of 1.2 million parameters with initial weights."""
    text = {**_TEXT, "num_hidden_layers": 3, "max_position_embeddings": 77}
    return CLIPModel(CLIPConfig(vision_config=_VISION, text_config=text, projection_dim=WIDTH))


def make_detector() -> OwlViTForObjectDetection:
    """An OWL-ViT of 1.2 million parameters with initial weights."""
    text = {**_TEXT, "num_hidden_layers": 2, "max_position_embeddings": 16}
    config = OwlViTConfig(vision_config=_VISION, text_config=text, projection_dim=WIDTH)
    model = OwlViTForObjectDetection(config)
    with torch.no_grad():  # torch's default initial weights are far too large at this width
        for layer in (model.box_head.dense0, model.box_head.dense1, model.class_head.dense0):
            nn.init.xavier_uniform_(layer.weight)
            layer.bias.zero_()
        for layer in (model.box_head.dense2, model.class_head.logit_shift, model.class_head.logit_scale):
            layer.weight.zero_()
            layer.bias.zero_()
        model.class_head.logit_shift.bias.fill_(-0.5)  # few patches show the object of a query
        model.class_head.logit_scale.bias.fill_(6.0)
    return model


@torch.no_grad()
def adopt_tower(vision: Any, tower: Any, pixels: Tensor) -> None:
    """Copy a trained SigLIP tower into a CLIP or OWL-ViT vision model of the same shape, keeping its function.

    The layers are the same. SigLIP has a bias in the patch embedding, which is added to the position embeddings, and no
    norm before the first layer. That norm is turned into nearly an identity: a large constant in one direction is added
    to every patch, so that the norm divides all patches by nearly the same number, and its bias removes the constant.
    This loses the direction of least variance, and the mean, which the norm of each layer removes anyway.

    Args:
        vision: The model to fill.
        tower: The trained tower.
        pixels: Some views ``(B, 3, S, S)``, from which the direction is computed.
    """
    norm = vision.pre_layrnorm if hasattr(vision, "pre_layrnorm") else vision.pre_layernorm
    vision.encoder.load_state_dict(tower.encoder.state_dict())
    vision.embeddings.patch_embedding.weight.copy_(tower.embeddings.patch_embedding.weight)
    inputs = tower.embeddings(pixels).flatten(0, 1)
    centred = inputs - inputs.mean(dim=-1, keepdim=True)
    constant = torch.linalg.eigh(centred.T @ centred)[1][:, 1]  # [:, 0] is the mean's direction, of no variance
    constant = (constant - constant.mean()) * 30 * centred.norm(dim=-1).mean()
    entering = tower.embeddings.position_embedding.weight + tower.embeddings.patch_embedding.bias
    vision.embeddings.position_embedding.weight[1:] = entering + constant
    vision.embeddings.position_embedding.weight[0] = constant
    vision.embeddings.class_embedding.normal_(0, 0.02)
    norm.weight.fill_(constant.std(unbiased=False).item())
    norm.bias.copy_(-constant)
