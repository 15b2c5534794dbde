"""Measure how often the scorer prefers a region's own description, on scenes that training never used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that all torch code uses
from transformers import AutoProcessor, CLIPModel

from spr.core.views import crop_window, pad_to_square
from spr.embedded.scenes import SIZE, make_scene
from spr.embedded.sprites import CATEGORIES
from tools.embedded.corpus import scene_regions, sorted_scene
from tools.embedded.evaluate_describer import view
from tools.embedded.figures import Figure, ratio
from tools.embedded.texts import description
from tools.embedded.train_scorer import local_image_embeddings, region_patches, spoil
from tools.embedded.train_vision import CROP

CHOICES = 16
_GREY = (128, 128, 128)  # the mean colour of the scorer's image processor
_BATCH = 64


@torch.no_grad()
def evaluate_scorer(folder: Path, n: int, seed: int) -> dict[str, Figure]:
    """Accuracy of picking a region's own description among 15 of other scenes' regions, or 15 corrupted versions."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    crops, whole, regions, kinds = [], [], [], []
    for index in range(n):
        scene = sorted_scene(make_scene(seed, index))
        found = scene_regions(scene, np.random.default_rng([seed, index, 2]), 1)
        if found:
            region, inside = found[0]
            window = crop_window(tuple(region.tolist()), (SIZE, SIZE), CROP)
            crops.append(pad_to_square(view(scene, window), fill=_GREY))
            whole.append(Image.fromarray(scene.image))
            regions.append(region)
            kinds.append([int(scene.kinds[i]) for i in inside])
    places = region_patches(np.stack(regions))
    views: dict[str, list[Tensor]] = {"S_crop": [], "S_local": []}
    for first in range(0, len(crops), _BATCH):
        part = slice(first, first + _BATCH)
        pixels = processor(images=crops[part], return_tensors="pt")["pixel_values"]
        views["S_crop"].append(model.visual_projection(model.vision_model(pixels).pooler_output))
        pixels = processor(images=whole[part], return_tensors="pt")["pixel_values"]
        views["S_local"].append(local_image_embeddings(model, pixels, places[part]))
    images = {name: F.normalize(torch.cat(parts), dim=-1) for name, parts in views.items()}
    rng = np.random.default_rng([seed, n])

    def texts(of: list[list[int]]) -> Tensor:
        sentences = [description([CATEGORIES[k] for k in row]).capitalize() for row in of]
        inputs = processor.tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        made = model.text_projection(model.text_model(inputs["input_ids"], inputs["attention_mask"]).pooler_output)
        return F.normalize(made, dim=-1)

    own = texts(kinds)
    others = np.stack([rng.choice(np.delete(np.arange(len(kinds)), k), CHOICES - 1, False) for k in range(len(kinds))])
    spoilt = texts([spoil(row, [20.0] * len(row), rng)[0] for row in kinds for _ in range(CHOICES - 1)])
    spoilt = spoilt.view(len(kinds), CHOICES - 1, -1)
    figures: dict[str, Figure] = {}
    for name, asked in (("S_crop", 0.80), ("S_local", 0.70)):
        figures[f"{name}: own among 16 regions' descriptions"] = _picked(images[name], own, own[others], asked)
        figures[f"{name}: own among 15 spoilt versions of it"] = _picked(images[name], own, spoilt, None)
        figures[f"{name}: own over one spoilt version of it"] = _picked(images[name], own, spoilt[:, :1], None)
    return figures


def _picked(images: Tensor, own: Tensor, others: Tensor, asked: float | None) -> Figure:
    right = (images * own).sum(dim=-1)
    wrong = torch.einsum("nd,nkd->nk", images, others).amax(dim=-1)
    won: npt.NDArray[np.float64] = (right > wrong).double().numpy()
    return ratio(won, np.ones(len(won)), asked)
