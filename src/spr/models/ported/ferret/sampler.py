"""The spatial-aware visual sampler: one embedding for a region of any shape (Ferret, arXiv 2310.07704, Sec. 3.2).

Points are sampled from the region and get features from the image's feature map. Each of two rounds keeps some points
by farthest-point sampling, and pools the features of each kept point's nearest neighbours. The result is flattened and
projected to the width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
"""Seed without a generator: each region then gets the same random choices in any batch."""


class _Aggregate(nn.Module):
    """A point-wise projection, ReLU and LayerNorm: ``(B, C, N)`` → ``(B, D, N)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(inputs, outputs, kernel_size=1), nn.ReLU())
        self.norm = nn.LayerNorm(outputs)

    def forward(self, points: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.net(points).transpose(1, 2))
        return normed.transpose(1, 2)


class RegionSampler(nn.Module):
    """Maps the points of each region to one embedding.

    Parameters have the names of the published implementation.

    Args:
        inputs: Width C of the feature map.
        outputs: Width D of the language model.
        stages: Points kept by each round.
        neighbors: Neighbours gathered in each round, including the point itself.
        pooling: ``"max"`` or ``"mean"`` over the neighbours.
    """

    def __init__(
        self, inputs: int, outputs: int, stages: Sequence[int], neighbors: Sequence[int], pooling: str = "max"
    ) -> None:
        super().__init__()
        self.stages, self.neighbors, self.pooling = tuple(stages), tuple(neighbors), pooling
        wide = inputs + 2  # a feature and its position
        self.diff_projector_list = nn.ModuleList(nn.Linear(wide, wide) for _ in stages)
        self.agg_projector_list = nn.ModuleList(_Aggregate(2 * wide, inputs) for _ in stages)
        self.flatten_projector = nn.Linear(inputs * self.stages[-1], inputs)
        self.dim_projector = nn.Linear(inputs, outputs)

    def forward(self, maps: Tensor, points: Tensor, sizes_wh: Tensor, generator: torch.Generator | None = None) -> Any:
        """The embeddings of all regions of a batch, image by image.

        Args:
            maps: Feature maps ``(B, P, C)``, P a square number of patches, row by row.
            points: Integer pixels x, y ``(B, R, N, 2)`` from `spr.models.ported.ferret.regions.draw_points`; −1 for
                padding, in images with fewer than R regions.
            sizes_wh: Width and height ``(B, 2)`` of the images in pixels.
            generator: Chooses the start of farthest-point sampling with one draw per round for all regions, as in the
                published code. None makes the same choice for each region.

        Returns:
            Embeddings ``(number of regions, D)``.
        """
        used = points[..., 0, 0] >= 0
        if not bool(used.any()):
            return maps.new_zeros(0, self.dim_projector.out_features)
        owner = used.nonzero()[:, 0]
        # Points are chosen on the CPU, so that the choice does not depend on the model's device.
        places = points[used].cpu().float() / sizes_wh[owner].cpu().unsqueeze(1)
        features = _features_at(maps[owner.to(maps.device)], places.to(maps.device)).to(maps.dtype)
        for kept, near, difference, aggregate in zip(
            self.stages, self.neighbors, self.diff_projector_list, self.agg_projector_list, strict=True
        ):
            chosen = _farthest(places, kept, generator)
            anchors = _take(places, chosen)
            group = _nearest(anchors, places, near)
            # Distances are computed in float32, projections in the dtype of the weights.
            placed = torch.cat([features, places.to(features)], dim=-1)
            own = _take(placed, chosen.to(features.device)).unsqueeze(2)
            others = _take(placed, group.to(features.device))
            gathered = torch.cat([difference(others - own), own.expand_as(others)], dim=-1)
            pooled = aggregate(gathered.flatten(0, 1).transpose(1, 2))
            pooled = pooled.amax(dim=-1) if self.pooling == "max" else pooled.mean(dim=-1)
            places, features = anchors, pooled.reshape(len(anchors), kept, -1)
        return self.dim_projector(self.flatten_projector(features.flatten(1)))


def _features_at(maps: Tensor, places: Tensor) -> Tensor:
    """Bilinear features ``(T, N, C)`` of maps ``(T, P, C)`` at places x, y in 0..1 ``(T, N, 2)``, in float32.

    The published code reads the feature of a point (x, y) at column y and row x of the map, since its masks are indexed
    x first. The weights were trained this way, so the same is done here.
    """
    side = round(maps.shape[1] ** 0.5)
    grid = maps.float().reshape(len(maps), side, side, -1).permute(0, 3, 1, 2)
    swapped = 2 * places.flip(-1).unsqueeze(2) - 1
    features: Tensor = functional.grid_sample(grid, swapped, mode="bilinear", align_corners=True)
    return features.squeeze(3).transpose(1, 2)


def _farthest(places: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Farthest-point sampling from points ``(T, N, 2)`` with a random start: indices ``(T, count)``."""
    regions, points = places.shape[:2]
    if generator is None:
        seeded = torch.Generator().manual_seed(SEED)
        start = torch.randint(points, (1,), generator=seeded).expand(regions)
    else:
        start = torch.randint(points, (regions,), generator=generator, device=generator.device)
    latest = start.cpu()
    chosen = []
    gaps = torch.full((regions, points), 1e10)
    rows = torch.arange(regions)
    for _ in range(count):
        chosen.append(latest)
        gaps = torch.minimum(gaps, _squared(places - places[rows, latest].unsqueeze(1)))
        latest = gaps.argmax(-1)
    return torch.stack(chosen, dim=1)


def _nearest(anchors: Tensor, places: Tensor, count: int) -> Tensor:
    """Indices ``(T, S, count)`` of the points nearest to each anchor.

    Pixels lie on a grid, so many distances are equal and rounding decides between them. They are therefore rounded as
    in the published code: |a|² + |p|² − 2 a·p, where the second product of a·p is added without rounding, like
    the fused instructions of CPUs and GPUs.
    """
    first, second = (anchors[..., k].unsqueeze(2) for k in (0, 1))
    dot = ((first * places[..., 0].unsqueeze(1)).double() + second.double() * places[..., 1].unsqueeze(1)).float()
    gaps = -2 * dot + _squared(anchors).unsqueeze(2) + _squared(places).unsqueeze(1)
    return gaps.topk(count, dim=-1, largest=False, sorted=False).indices


def _squared(places: Tensor) -> Tensor:
    """Squared lengths ``(…)`` of vectors ``(…, 2)``."""
    return places[..., 0] ** 2 + places[..., 1] ** 2


def _take(values: Tensor, index: Tensor) -> Tensor:
    """``values[t, index[t, …]]`` for each t: ``(T, N, C)`` and ``(T, …)`` → ``(T, …, C)``."""
    rows = torch.arange(len(values), device=values.device).view(-1, *[1] * (index.dim() - 1))
    return values[rows, index]
