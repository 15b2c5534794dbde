"""Train the scorer: match regions with their descriptions, against other regions' and corrupted descriptions.

Training has two phases. The second starts from the weights of the first and is harder: a batch has two regions of each
scene, corrupted descriptions have the errors that describers make, such as an object from outside the region, and the
temperature is the one at which CLIP's training ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that all torch code uses
from transformers import CLIPModel

from spr.core import boxes as bx
from spr.core.errors import InputError
from spr.embedded.scenes import MIN_AREA, SIZE
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
_MAX_SCALE = math.log(100)  # of the inverse temperature, as in CLIP
_EDITS = {"recolour": 0.2, "reshape": 0.25, "remove": 0.15, "exchange": 0.2, "add": 0.2}
_SECOND_EDIT = 0.25
_SMALL, _LARGE = 15.0, 24.0  # px, geometric mean of the sides
_BAG_WEIGHT = 0.15


class Difficulty(NamedTuple):
    """Regions per scene in a batch, corrupted descriptions per region, and whether they are made by `spoil_hard`."""

    per_scene: int
    spoilt: int
    hard: bool


FIRST, SECOND = Difficulty(1, 2, hard=False), Difficulty(2, 4, hard=True)


@dataclass(frozen=True, slots=True)
class Described:
    """A batch of B regions with one correct description and K corrupted ones each.

    Attributes:
        rows: int64 ``(S,)``, the indices of the scenes.
        regions: float64 ``(B, 4)``, pixels; an equal number of each scene, in the scenes' order.
        ids: int64 ``(B · (1 + K), L)``: the correct descriptions, then all corrupted ones.
        counts: float32 ``(B · (1 + K), categories)``: how often a description names each category.
    """

    rows: npt.NDArray[np.int64]
    regions: npt.NDArray[np.float64]
    ids: npt.NDArray[np.int64]
    counts: npt.NDArray[np.float32]


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


def spoil_hard(
    kinds: list[int], sides: list[float], outside: list[int], rng: np.random.Generator
) -> tuple[list[int], list[float]]:
    """The objects of a description with one error, or two, of those that describers make.

    An error is another colour or shape of an object, a missing object, an additional object, or one that is exchanged.
    Additional and exchanged objects are mostly of the categories ``outside`` the region. ``sides`` are sizes in px.
    """
    while True:
        named, sizes = list(kinds), list(sides)
        for _ in range(1 + (rng.random() < _SECOND_EDIT)):
            k = int(rng.integers(len(named)))
            colour, shape = divmod(named[k], len(SHAPES))
            edit = str(rng.choice(list(_EDITS), p=list(_EDITS.values())))
            if edit == "recolour":
                named[k] = (colour + int(rng.integers(1, len(COLOURS)))) % len(COLOURS) * len(SHAPES) + shape
            elif edit == "reshape":
                named[k] = colour * len(SHAPES) + (shape + int(rng.integers(1, len(SHAPES)))) % len(SHAPES)
            elif edit == "remove" and len(named) > 1:
                del named[k], sizes[k]
            elif edit == "exchange":
                named[k] = _other(outside, rng)
            else:
                named.append(named[k] if rng.random() < 0.2 else _other(outside, rng))
                sizes.append(float(rng.uniform(10, 34)))
        if sorted(named) != sorted(kinds):
            return named, sizes


def _other(outside: list[int], rng: np.random.Generator) -> int:
    if outside and rng.random() < 0.75:
        return int(rng.choice(outside))
    return int(rng.integers(len(CATEGORIES)))


def description_maker(corpus: Corpus, seed: int, batch_size: int, difficulty: Difficulty) -> Callable[[int], Described]:
    """A function from a step to its batch.

    Raises:
        InputError: if the batch size is not a multiple of the regions per scene.
    """
    per_scene, spoilt, hard = difficulty
    if batch_size % per_scene:
        expected, fix = f"a multiple of {per_scene}", "give another --batch-size"
        raise InputError("The batch does not divide into scenes", got=batch_size, expected=expected, fix=fix)
    usable = np.flatnonzero(corpus.regions[:, per_scene - 1, 2] > 0)

    def make(step: int) -> Described:
        rng = np.random.default_rng([seed, step])
        rows = rng.choice(usable, size=batch_size // per_scene)
        texts = [""] * (batch_size * (1 + spoilt))
        counts = np.zeros((len(texts), len(CATEGORIES)), dtype=np.float32)
        regions = np.zeros((batch_size, 4))
        numbers: list[int] = []
        for b in range(batch_size):
            row = rows[b // per_scene]
            if not numbers:
                there = np.flatnonzero(corpus.regions[row, :, 2] > 0)
                numbers = rng.permutation(there)[:per_scene].tolist() if hard else [int(rng.choice(there))]
            number = numbers.pop(0)
            regions[b] = corpus.regions[row, number]
            areas = bx.area(corpus.boxes[row])
            inside = np.flatnonzero(corpus.inside[row, number])
            beside = np.flatnonzero((corpus.kinds[row] >= 0) & (areas >= MIN_AREA) & ~corpus.inside[row, number])
            kinds, outside = corpus.kinds[row, inside].tolist(), corpus.kinds[row, beside].tolist()
            sides = np.sqrt(areas[inside]).tolist()
            for version in range(1 + spoilt):
                named, sizes = kinds, sides
                if version:
                    named, sizes = spoil_hard(kinds, sides, outside, rng) if hard else spoil(kinds, sides, rng)
                texts[version * batch_size + b] = vary(named, sizes, rng)
                np.add.at(counts[version * batch_size + b], named, 1)
        return Described(rows, regions, word_ids(texts), counts)

    return make


def region_views(
    bank: ImageBank, rows: npt.NDArray[np.int64], regions_xyxy: npt.NDArray[np.float64]
) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs of both scores: the padded 1.5× crops, the whole scenes, and the patches of the regions.

    ``rows (S,)`` are the scenes, and ``regions_xyxy (B, 4)`` an equal number of regions of each, in the scenes' order.
    """
    crops, scene_of_crop = bx.grow(regions_xyxy, CROP, (SIZE, SIZE)), np.repeat(rows, len(regions_xyxy) // len(rows))
    shown = bank.views(scene_of_crop, padded_window(crops), crops)
    return shown, bank.views(rows), region_patches(regions_xyxy).to(bank.device)


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
        pixels: float32 ``(I, 3, S, S)``, the square images that contain the regions.
        patches: bool ``(B, patches)``, the patches that overlap the regions: an equal number of regions per image.
    """
    attended = torch.cat([torch.ones_like(patches[:, :1]), patches], dim=1)
    image_of_view = torch.arange(len(pixels), device=pixels.device).repeat_interleave(len(patches) // len(pixels))
    return last_layer(model, before_last_layer(model, pixels), image_of_view, attended)


def contrast(images: Tensor, texts: Tensor, scale: Tensor, also_right: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's loss with more texts than images, and the share of images that are nearest to their own text.

    Args:
        images: ``(B, D)``, not normalised.
        texts: ``(≥ B, D)``; the first B belong to the images, the others to no image.
        scale: Logarithm of the inverse temperature.
        also_right: bool ``(B, ≥ B)``, texts that are left out for an image because they say the same as its own.
    """
    logits = scale.clamp(max=_MAX_SCALE).exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    own = torch.arange(len(images), device=images.device)
    others = own[:, None] != torch.arange(len(texts), device=images.device)
    logits = logits.masked_fill(also_right & others, -torch.inf)
    right = (logits.argmax(dim=-1) == own).float().mean()
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(images)].T, own)) / 2, right


def train_scorer(run: Run, corpus: Corpus) -> CLIPModel:
    """Train the scorer on both views of a region; writes ``scorer.pt``.

    The first phase starts from the tower in ``vision.pt``, the second from ``run.start_from``.
    """
    second = run.start_from is not None
    seed_everything(run.seed, run.device)
    seeing = Seeing(make_describer())
    load_modules(checkpoint_path(run.out, "vision"), seeing=seeing)
    model = make_scorer()
    adopt_tower(
        model.vision_model,
        seeing.tower,
        ImageBank(corpus.images, torch.device("cpu")).views(np.arange(min(64, len(corpus)))),
    )
    model.logit_scale.requires_grad_(not second)
    model.to(run.device)
    # One linear map predicts the categories from a region's embedding and from its description's.
    bag = nn.Linear(model.config.projection_dim, len(CATEGORIES)).to(run.device)
    bank = ImageBank(corpus.images, run.device)

    def loss(batch: Described, _progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        if second:
            with torch.no_grad():
                model.logit_scale.fill_(_MAX_SCALE)
        crops, scenes, patches = region_views(bank, batch.rows, batch.regions)
        counts = torch.from_numpy(batch.counts).to(run.device)
        words = model.text_projection(model.text_model(torch.from_numpy(batch.ids).to(run.device)).pooler_output)
        crop = model.visual_projection(model.vision_model(crops).pooler_output)
        local = local_image_embeddings(model, scenes, patches)
        same = torch.cdist(counts[: len(crop)], counts, p=1) == 0
        crop_loss, crop_right = contrast(crop, words, model.logit_scale, same)
        local_loss, local_right = contrast(local, words, model.logit_scale, same)
        figures = {"crop_right": crop_right, "local_right": local_right}
        if second:
            return crop_loss + local_loss, figures
        held = (counts > 0).float()
        named = torch.cat([crop, local, words])
        right = torch.cat([held[: len(crop)], held[: len(crop)], held])
        bags = F.binary_cross_entropy_with_logits(bag(named), right, reduction="none").sum(dim=-1)
        bag_loss = bags[: 2 * len(crop)].mean() + bags[2 * len(crop) :].mean()
        return crop_loss + local_loss + _BAG_WEIGHT * bag_loss, {**figures, "bag": bag_loss.detach()}

    make = description_maker(corpus, run.seed + 2, run.batch_size, SECOND if second else FIRST)
    modules: dict[str, nn.Module] = {"model": model} if second else {"model": model, "bag": bag}
    lr, muon_lr = (6e-4, 3e-3) if second else (2e-3, 0.01)
    train(Task("scorer", modules, make, loss, lr=lr, muon_lr=muon_lr), run)
    return model
