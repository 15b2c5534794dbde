"""Train the scorer: match regions with their descriptions, against other regions' and corrupted descriptions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that all torch code uses
from transformers import CLIPModel

from spr.core import boxes as bx
from spr.embedded.scenes import SIZE
from spr.embedded.sprites import CATEGORIES, COLOURS, SHAPES
from spr.models.scorers.clip import before_last_layer, last_layer, overlapped
from tools.embedded.corpus import Corpus
from tools.embedded.loop import Run, Task, checkpoint_path, load_modules, seed_everything, train
from tools.embedded.models import PATCH, adopt_tower, make_describer, make_scorer
from tools.embedded.texts import listed, with_article
from tools.embedded.train_vision import CROP, Seeing
from tools.embedded.views import ImageBank, padded_window
from tools.embedded.vocabulary import END, IDS, PAD, START, encode

MAX_WORDS = 77
SPOILT = 2
"""Corrupted descriptions per region: with a wrong colour or shape, a missing object or an additional one."""
_SMALL, _LARGE = 15.0, 24.0  # px, geometric mean of the sides
_BAG_WEIGHT = 0.15


@dataclass(frozen=True, slots=True)
class Described:
    """A batch of B regions with one correct description and `SPOILT` corrupted ones each.

    Attributes:
        rows: int64 ``(B,)``, the index of each region's image.
        regions: float64 ``(B, 4)``, pixels.
        ids: int64 ``(B · (1 + SPOILT), L)``: the correct descriptions, then all corrupted ones.
        held: float32 ``(B · (1 + SPOILT), categories)``: 1 for the categories that a description names.
    """

    rows: npt.NDArray[np.int64]
    regions: npt.NDArray[np.float64]
    ids: npt.NDArray[np.int64]
    held: npt.NDArray[np.float32]


def word_ids(texts: list[str]) -> npt.NDArray[np.int64]:
    """Token ids as the scorer's tokenizer gives them: int64 ``(N, L)``, with start and end, cut to 77 and padded."""
    rows = [[IDS[START], *encode(text)[: MAX_WORDS - 2], IDS[END]] for text in texts]
    ids = np.full((len(rows), max(map(len, rows))), IDS[PAD], dtype=np.int64)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = row
    return ids


def vary(kinds: list[int], sides: list[float], rng: np.random.Generator) -> str:
    """A description, without coordinates, of objects of the given categories and sizes (px), in a random wording."""
    order = rng.permutation(len(kinds)) if rng.random() < 0.5 else np.arange(len(kinds))
    with_size, plain = rng.random() < 0.25, rng.random() < 0.15
    phrases = []
    for k in order:
        size = "small " if sides[k] < _SMALL else "large " if sides[k] > _LARGE else ""
        name = (size if with_size else "") + CATEGORIES[kinds[k]]
        phrases.append(name if plain else with_article(name))
    return (", ".join(phrases) if rng.random() < 0.4 else listed(phrases)) + "."


def spoil(kinds: list[int], sides: list[float], rng: np.random.Generator) -> tuple[list[int], list[float]]:
    """The objects of a corrupted description: one or two with another colour or shape, one missing or one added."""
    kinds, sides = list(kinds), list(sides)
    way = rng.random()
    if way < 0.7:
        for k in rng.choice(len(kinds), size=min(len(kinds), int(rng.integers(1, 3))), replace=False):
            colour, shape = divmod(kinds[k], len(SHAPES))
            if rng.random() < 0.5:
                colour = (colour + int(rng.integers(1, len(COLOURS)))) % len(COLOURS)
            else:
                shape = (shape + int(rng.integers(1, len(SHAPES)))) % len(SHAPES)
            kinds[k] = colour * len(SHAPES) + shape
    elif way < 0.85 and len(kinds) > 1:
        gone = int(rng.integers(len(kinds)))
        del kinds[gone], sides[gone]
    else:
        kinds.append(int(rng.integers(len(CATEGORIES))))
        sides.append(float(rng.uniform(10, 34)))
    return kinds, sides


def description_maker(corpus: Corpus, seed: int, batch_size: int) -> Callable[[int], Described]:
    """A function from a step to its batch."""
    usable = np.flatnonzero(corpus.regions[:, 0, 2] > 0)

    def make(step: int) -> Described:
        rng = np.random.default_rng([seed, step])
        rows = rng.choice(usable, size=batch_size)
        texts = [""] * (batch_size * (1 + SPOILT))
        held = np.zeros((len(texts), len(CATEGORIES)), dtype=np.float32)
        regions = np.zeros((batch_size, 4))
        for b, row in enumerate(rows):
            number = int(rng.choice(np.flatnonzero(corpus.regions[row, :, 2] > 0)))
            regions[b] = corpus.regions[row, number]
            inside = np.flatnonzero(corpus.inside[row, number])
            kinds = [int(k) for k in corpus.kinds[row, inside]]
            sides = [float(s) for s in np.sqrt(bx.area(corpus.boxes[row, inside]))]
            for version in range(1 + SPOILT):
                named, sizes = spoil(kinds, sides, rng) if version else (kinds, sides)
                texts[version * batch_size + b] = vary(named, sizes, rng)
                held[version * batch_size + b, named] = 1
        return Described(rows, regions, word_ids(texts), held)

    return make


def region_views(
    bank: ImageBank, rows: npt.NDArray[np.int64], regions_xyxy: npt.NDArray[np.float64]
) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs of both scores: the padded 1.5× crops, the whole scenes, and the patches of the regions."""
    crops = bx.grow(regions_xyxy, CROP, (SIZE, SIZE))
    return bank.views(rows, padded_window(crops), crops), bank.views(rows), region_patches(regions_xyxy).to(bank.device)


def region_patches(regions_xyxy: npt.NDArray[np.float64]) -> Tensor:
    """Which patches of a scene overlap each region: ``(B, 4)`` pixels → bool ``(B, patches)``, row by row."""
    return torch.from_numpy(
        np.stack([overlapped(region, SIZE, SIZE, PATCH).ravel() for region in regions_xyxy.tolist()])
    )


def local_image_embeddings(model: CLIPModel, pixels: Tensor, patches: Tensor) -> Tensor:
    """Embeddings of regions for S_local (paper, Sec. 3.2), with gradients, not normalised: ``(B, projection_dim)``.

    In the last vision layer, the class token attends only to itself and to the region's patches. CLIP's own norm and
    projection follow.

    Args:
        model: The CLIP model.
        pixels: float32 ``(B, 3, S, S)``, the square images that contain the regions.
        patches: bool ``(B, patches)``, the patches that overlap the regions.
    """
    attended = torch.cat([torch.ones_like(patches[:, :1]), patches], dim=1)
    every = torch.arange(len(pixels), device=pixels.device)
    return last_layer(model, before_last_layer(model, pixels), every, attended)


def contrast(images: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's loss with more texts than images, and the share of images that are nearest to their own text.

    Args:
        images: ``(B, D)``, not normalised.
        texts: ``(≥ B, D)``; the first B belong to the images, the others to no image.
        scale: Logarithm of the inverse temperature.
    """
    logits = scale.clamp(max=4.6052).exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    own = torch.arange(len(images), device=images.device)
    right = (logits.argmax(dim=-1) == own).float().mean()
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(images)].T, own)) / 2, right


def train_scorer(run: Run, corpus: Corpus) -> CLIPModel:
    """Train the scorer on both views of a region, starting from the tower in ``vision.pt``; writes ``scorer.pt``."""
    seed_everything(run.seed, run.device)
    seeing = Seeing(make_describer())
    load_modules(checkpoint_path(run.out, "vision"), seeing=seeing)
    model = make_scorer()
    adopt_tower(
        model.vision_model,
        seeing.tower,
        ImageBank(corpus.images, torch.device("cpu")).views(np.arange(min(64, len(corpus)))),
    )
    model.to(run.device)
    # One linear map predicts the categories from a region's embedding and from its description's.
    bag = nn.Linear(model.config.projection_dim, len(CATEGORIES)).to(run.device)
    bank = ImageBank(corpus.images, run.device)

    def loss(batch: Described, _progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        crops, scenes, patches = region_views(bank, batch.rows, batch.regions)
        held = torch.from_numpy(batch.held).to(run.device)
        words = model.text_projection(model.text_model(torch.from_numpy(batch.ids).to(run.device)).pooler_output)
        crop = model.visual_projection(model.vision_model(crops).pooler_output)
        local = local_image_embeddings(model, scenes, patches)
        crop_loss, crop_right = contrast(crop, words, model.logit_scale)
        local_loss, local_right = contrast(local, words, model.logit_scale)
        named = torch.cat([crop, local, words])
        right = torch.cat([held[: len(crop)], held[: len(crop)], held])
        bags = F.binary_cross_entropy_with_logits(bag(named), right, reduction="none").sum(dim=-1)
        bag_loss = bags[: 2 * len(crop)].mean() + bags[2 * len(crop) :].mean()
        figures = {"crop_right": crop_right, "local_right": local_right, "bag": bag_loss.detach()}
        return crop_loss + local_loss + _BAG_WEIGHT * bag_loss, figures

    make = description_maker(corpus, run.seed + 2, run.batch_size)
    train(Task("scorer", {"model": model, "bag": bag}, make, loss, lr=2e-3, muon_lr=0.01), run)
    return model
