"""Train the detector, which gets names and returns the boxes of the named objects."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that all torch code uses
from transformers import OwlViTForObjectDetection

from spr.embedded.sprites import CATEGORIES
from tools.embedded.corpus import Corpus
from tools.embedded.dense import Objects, owners, paired_iou
from tools.embedded.loop import Run, Task, checkpoint_path, load_modules, seed_everything, train
from tools.embedded.models import adopt_tower, make_describer, make_detector
from tools.embedded.texts import with_article
from tools.embedded.train_vision import Seeing, Views, view_maker
from tools.embedded.views import ImageBank
from tools.embedded.vocabulary import END, IDS, PAD, START, encode

QUERY_LENGTH = 8
_FOCAL_ALPHA, _FOCAL_GAMMA = 0.25, 2.0
_BOX_WEIGHT, _GIOU_WEIGHT, _LOGIT_WEIGHT = 5.0, 2.0, 2.0


def query_ids(names: list[str]) -> Tensor:
    """Token ids as the detector's tokenizer gives them: int64 ``(N, QUERY_LENGTH)``, with start and end, padded.

    >>> query_ids(["red circle"]).shape
    torch.Size([1, 8])
    """
    ids = torch.full((len(names), QUERY_LENGTH), IDS[PAD])
    for row, name in zip(ids, names, strict=True):
        words = torch.tensor([IDS[START], *encode(name), IDS[END]])
        row[: len(words)] = words
    return ids


def wordings(step: int, seed: int) -> list[str]:
    """All categories as queries, each in a wording drawn for the step: with or without article, size and full stop."""
    rng = np.random.default_rng([seed, step, 1])
    queries = []
    for name in CATEGORIES:
        way = rng.random()
        text = name if way < 0.5 else with_article(name) if way < 0.8 else f"the {name}"
        if rng.random() < 0.15:
            text = f"a {'small' if rng.random() < 0.5 else 'large'} {name}"
        queries.append(text + ("." if rng.random() < 0.2 else ""))
    return queries


def corners(boxes_cxcywh: Tensor) -> Tensor:
    """Convert boxes from centre and size to corners: ``(..., 4)`` → ``(..., 4)``.

    >>> corners(torch.tensor([0.5, 0.5, 0.5, 0.25])).tolist()
    [0.25, 0.375, 0.75, 0.625]
    """
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def named_patches(objects: Objects, grid: int) -> Tensor:
    """Targets of each category: 1 at the patch that contains an object's centre; ``(B, grid², categories)``."""
    centre = (objects.boxes[..., :2] + objects.boxes[..., 2:]) / 2
    cell = (centre * grid).long().clamp(0, grid - 1)
    targets = torch.zeros(len(centre), grid * grid, len(CATEGORIES), device=centre.device)
    image, item = (objects.kinds >= 0).nonzero(as_tuple=True)
    targets[image, cell[image, item, 1] * grid + cell[image, item, 0], objects.kinds[image, item]] = 1
    return targets


def detection_loss(
    logits: Tensor, boxes: Tensor, objects: Objects, logit_weight: float = _LOGIT_WEIGHT
) -> tuple[Tensor, dict[str, Tensor]]:
    """Focal loss of the names, and L1 and generalised-IoU losses of the boxes of all patches that show an object.

    Args:
        logits: ``(B, P, categories)``.
        boxes: ``(B, P, 4)``, centre and size, 0–1.
        objects: The objects in the views.
        logit_weight: Weight of the boxes' loss before the sigmoid.
    """
    grid = round(logits.shape[1] ** 0.5)
    targets = named_patches(objects, grid)
    wrong = torch.where(targets > 0, 1 - logits.sigmoid(), logits.sigmoid())
    alpha = torch.where(targets > 0, 1 - _FOCAL_ALPHA, _FOCAL_ALPHA)
    focal = alpha * wrong**_FOCAL_GAMMA * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    owner = owners(objects, grid)
    image, patch = (owner >= 0).nonzero(as_tuple=True)
    placed, right = corners(boxes[image, patch]), objects.boxes[image, owner[image, patch]]
    iou, giou = paired_iou(placed, right)
    box = _BOX_WEIGHT * (placed - right).abs().sum(dim=-1).mean() + _GIOU_WEIGHT * (1 - giou).mean()
    # In OWL-ViT, the patches of the last row and column start with a centre at 1, where the sigmoid is flat. Without a
    # loss before the sigmoid these patches, a quarter of all here, hardly learn to place a box.
    target = torch.logit(torch.cat([(right[:, :2] + right[:, 2:]) / 2, right[:, 2:] - right[:, :2]], dim=-1), eps=0.01)
    box = box + logit_weight * F.smooth_l1_loss(torch.logit(boxes[image, patch], eps=1e-6), target)
    names = focal.sum() / targets.sum().clamp(min=1)
    return names + box, {"names": names.detach(), "iou": iou.mean().detach()}


def train_detector(run: Run, corpus: Corpus) -> OwlViTForObjectDetection:
    """Train the detector on whole scenes and crops, from the tower in ``vision.pt``; writes ``detector.pt``."""
    seed_everything(run.seed, run.device)
    seeing = Seeing(make_describer())
    load_modules(checkpoint_path(run.out, "vision"), seeing=seeing)
    model = make_detector()
    sample = ImageBank(corpus.images, torch.device("cpu")).views(np.arange(min(64, len(corpus))))
    adopt_tower(model.owlvit.vision_model, seeing.tower, sample)
    model.to(run.device)
    bank = ImageBank(corpus.images, run.device)
    # The shipped weights were trained with the loss before the sigmoid in the second phase only.
    logit_weight = 0.0 if run.start_from is None else _LOGIT_WEIGHT
    views = view_maker(corpus, run.seed + 3, run.batch_size)

    def make(step: int) -> tuple[Views, Tensor]:
        return views(step), query_ids(wordings(step, run.seed))

    def loss(batch: tuple[Views, Tensor], _progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        shown, queries = batch
        features, grid = image_features(model, bank.views(shown.rows, shown.windows))
        names = model.owlvit.text_projection(model.owlvit.text_model(queries.to(run.device)).pooler_output)
        logits, _ = model.class_predictor(features, names.expand(len(features), -1, -1))
        boxes = model.box_predictor(features, grid)
        return detection_loss(logits, boxes, shown.objects(run.device), logit_weight)

    train(Task("detector", {"model": model}, make, loss, lr=2e-3, muon_lr=0.01), run)
    return model


def image_features(model: OwlViTForObjectDetection, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The detector's patch features ``(B, P, WIDTH)``, and the same as a grid ``(B, side, side, WIDTH)``."""
    grid, _ = model.image_embedder(pixels)
    return grid.flatten(1, 2), grid
