"""The embedding of image regions by local attention (METHOD §4, S_local), with gradients, for training a scorer."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPModel

from spr.models.scorers.clip import before_last_layer, last_layer


def patches_in(regions_xyxy: Tensor, grid: int) -> Tensor:
    """Which patches of a square grid overlap each region: bool ``(B, grid²)``, row by row.

    Args:
        regions_xyxy: ``(B, 4)``, numbers 0–1 of the square image.
        grid: Patches a side.

    >>> patches_in(torch.tensor([[0.0, 0.0, 0.6, 0.5]]), 2).tolist()
    [[True, True, False, False]]
    """
    low = torch.arange(grid, device=regions_xyxy.device) / grid
    high = low + 1 / grid
    x1, y1, x2, y2 = regions_xyxy[:, :, None].unbind(1)
    across, down = (low < x2) & (high > x1), (low < y2) & (high > y1)
    return (down[:, :, None] & across[:, None, :]).flatten(1)


def local_image_embeddings(model: CLIPModel, pixels: Tensor, patches: Tensor) -> Tensor:
    """Embeddings of regions, not normalised: ``(B, projection_dim)``.

    In the last vision layer the class token attends to itself and to the region's patches only; then come the usual
    norm and projection.

    Args:
        model: The CLIP model.
        pixels: float32 ``(B, 3, S, S)``: the square image that holds the region.
        patches: bool ``(B, patches)``: those that overlap the region.
    """
    attended = torch.cat([torch.ones_like(patches[:, :1]), patches], dim=1)
    every = torch.arange(len(pixels), device=pixels.device)
    return last_layer(model, before_last_layer(model, pixels), every, attended)
