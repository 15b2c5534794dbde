"""Dense losses for a vision tower: each patch predicts the shape, colour and box of the object that it shows.

They train the tower before a language model reads it. Boxes are tensors here, since their overlap needs gradients;
`spr.core.boxes` does the arithmetic without gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that all torch code uses

from spr.embedded.sprites import COLOURS, SHAPES
from tools.embedded.vocabulary import COORDINATES, FIRST_COORDINATE, IDS

_SHAPES, _COLOURS = len(SHAPES), len(COLOURS)
_FIRST_COLOUR, _FIRST_SHAPE = IDS[COLOURS[0]], IDS[SHAPES[0]]


class Objects(NamedTuple):
    """The objects of views: ``kinds`` int64 ``(B, M)``, −1 for padding; ``boxes`` float32 ``(B, M, 4)``, xyxy 0–1."""

    kinds: Tensor
    boxes: Tensor


class DenseHead(nn.Module):
    """Maps patch features ``(B, P, width)`` to logits of shape, colour and objectness, and to box offsets."""

    def __init__(self, width: int) -> None:
        super().__init__()
        outputs = _SHAPES + _COLOURS + 1 + 4
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs))

    def forward(self, features: Tensor) -> Tensor:
        """``(B, P, width)`` → ``(B, P, shapes + colours + 1 + 4)``."""
        outputs: Tensor = self.layers(features)
        return outputs


class WordHead(nn.Module):
    """Predicts what a patch shows in terms of the language model's word embeddings.

    Six linear maps send a patch, as the language model will read it, to the embeddings of its object's colour, shape
    and four coordinates. So the features contain each word ready to be copied into an answer, and the language model
    only has to learn where to attend.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.maps = nn.Linear(width, 6 * width)

    def loss(self, image: Tensor, embeddings: Tensor, objects: Objects, softness: float) -> Tensor:
        """Cross-entropy at the patches that show an object; the targets of coordinates are soft.

        Args:
            image: Patches as the language model reads them, ``(B, P, width)``.
            embeddings: The embeddings of all tokens, ``(V, width)``.
            objects: The objects in the views.
            softness: Standard deviation of a coordinate's target, in steps of 0.01.
        """
        owner = owners(objects, round(image.shape[1] ** 0.5))
        view, patch = (owner >= 0).nonzero(as_tuple=True)
        kinds, boxes = objects.kinds[view, owner[view, patch]], objects.boxes[view, owner[view, patch]]
        slots = self.maps(self.norm(image[view, patch])).unflatten(-1, (6, -1))
        colour = slots[:, 0] @ embeddings[_FIRST_COLOUR : _FIRST_COLOUR + _COLOURS].T
        shape = slots[:, 1] @ embeddings[_FIRST_SHAPE : _FIRST_SHAPE + _SHAPES].T
        places = slots[:, 2:] @ embeddings[FIRST_COORDINATE : FIRST_COORDINATE + len(COORDINATES)].T
        targets = soft_coordinates(100 * boxes, softness)
        named = F.cross_entropy(colour, kinds // _SHAPES) + F.cross_entropy(shape, kinds % _SHAPES)
        return named - (targets * F.log_softmax(places, dim=-1)).sum(dim=-1).mean()


def soft_coordinates(values: Tensor, softness: float) -> Tensor:
    """Soft targets over the coordinate tokens, around values in steps of 0.01: ``(...)`` → ``(..., 101)``.

    >>> soft_coordinates(torch.tensor([3.0]), 0.5)[0, 2:5].mul(100).round().tolist()
    [11.0, 79.0, 11.0]
    """
    steps = torch.arange(len(COORDINATES), device=values.device)
    return torch.softmax(-(((steps - values[..., None]) / softness) ** 2) / 2, dim=-1)


def patch_centres(grid: int, device: torch.device) -> Tensor:
    """Centres ``(x, y)`` of a square grid of patches, 0–1, row by row: ``(grid², 2)``."""
    steps = (torch.arange(grid, device=device) + 0.5) / grid
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)


def owners(objects: Objects, grid: int) -> Tensor:
    """The object that each patch shows, −1 for none: int64 ``(B, grid²)``.

    An object owns the patches whose centres lie in its box, or in the patch-sized square around the box's centre, so
    that an object smaller than a patch also has one. If several objects qualify, the relatively nearest centre wins.
    """
    points = patch_centres(grid, objects.boxes.device)[None, :, None]
    centre = ((objects.boxes[..., :2] + objects.boxes[..., 2:]) / 2)[:, None]
    half = ((objects.boxes[..., 2:] - objects.boxes[..., :2]) / 2).clamp(min=0.5 / grid)[:, None]
    distance = ((points - centre).abs() / half).amax(dim=-1)
    distance = distance.masked_fill((objects.kinds < 0)[:, None], torch.inf)
    nearest, index = distance.min(dim=-1)
    return torch.where(nearest <= 1, index, -1)


def paired_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of paired boxes: ``(..., 4)`` and ``(..., 4)`` → two tensors ``(...)``."""

    def area(boxes: Tensor) -> Tensor:
        return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)

    low, high = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2]), torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = (area(a_xyxy) + area(b_xyxy) - shared).clamp(min=1e-7)
    low, high = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2]), torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = (high - low).clamp(min=0).prod(dim=-1).clamp(min=1e-7)
    return shared / union, shared / union - (hull - union) / hull


def dense_loss(outputs: Tensor, objects: Objects) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a `DenseHead`'s outputs, and figures for the log: mean IoU and the share of correct names.

    Cross-entropy of shape, colour and objectness, ten times the L1 distance of the box, and one minus its generalised
    IoU, each averaged over the patches to which it applies.
    """
    grid = round(outputs.shape[1] ** 0.5)
    owner = owners(objects, grid)
    shown = owner >= 0
    index = owner.clamp(min=0)
    kinds = objects.kinds.gather(1, index)
    boxes = objects.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    shape, colour, thing, offsets = torch.split(outputs, [_SHAPES, _COLOURS, 1, 4], dim=-1)
    # Predictions start from the patch's own square; the factor of 0.1 keeps the first ones near it.
    corners = torch.cat([offsets[..., :2] * 0.1 - 0.5 / grid, offsets[..., 2:] * 0.1 + 0.5 / grid], dim=-1)
    placed = patch_centres(grid, outputs.device).repeat(1, 2) + corners
    iou, giou = paired_iou(placed, boxes)
    weight = shown.float() / shown.sum().clamp(min=1)
    right_shape, right_colour = (kinds % _SHAPES).clamp(min=0), (kinds // _SHAPES).clamp(min=0)
    per_patch = (
        F.cross_entropy(shape.transpose(1, 2), right_shape, reduction="none")
        + F.cross_entropy(colour.transpose(1, 2), right_colour, reduction="none")
        + 10 * (placed - boxes).abs().mean(dim=-1)
        + (1 - giou)
    )
    loss = F.binary_cross_entropy_with_logits(thing[..., 0], shown.float()) + (per_patch * weight).sum()
    named = (shape.argmax(-1) == right_shape) & (colour.argmax(-1) == right_colour)
    metrics = {"dense_iou": (iou * weight).sum().detach(), "dense_names": (named * weight).sum().detach()}
    return loss, metrics
