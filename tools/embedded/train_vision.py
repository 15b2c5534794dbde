"""Train the vision tower that all embedded models start from, with dense losses on whole scenes and crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration

from spr.core import boxes as bx
from spr.embedded.scenes import SIZE
from tools.embedded.corpus import Corpus
from tools.embedded.dense import DenseHead, Objects, WordHead, dense_loss
from tools.embedded.loop import Run, Task, seed_everything, train
from tools.embedded.models import WIDTH, make_describer
from tools.embedded.views import WHOLE, ImageBank, boxes_in_view

CROP = 1.5
"""A crop is the region with both sides multiplied by this factor (paper, Sec. 3.2)."""
SOFTNESS = 0.8
"""Standard deviation of a coordinate's soft target, in steps of 0.01."""
WORD_WEIGHT = 0.5
_CROP_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Views:
    """A batch of B views and the objects in them.

    Attributes:
        rows: int64 ``(B,)``, the index of each view's image.
        windows: float64 ``(B, 4)``, the view's window in pixels of the image.
        kinds: int64 ``(B, M)``, indices of the objects' categories, −1 for padding.
        boxes: float32 ``(B, M, 4)``, xyxy in 0–1 of the view.
    """

    rows: npt.NDArray[np.int64]
    windows: npt.NDArray[np.float64]
    kinds: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]

    def objects(self, device: torch.device) -> Objects:
        """The objects as tensors, for the dense losses."""
        return Objects(torch.from_numpy(self.kinds).to(device), torch.from_numpy(self.boxes).to(device))


def gather_views(corpus: Corpus, rows: npt.NDArray[np.int64], windows: npt.NDArray[np.float64]) -> Views:
    """Views with the objects that are visible in them."""
    kinds = np.full((len(rows), corpus.kinds.shape[1]), -1, dtype=np.int64)
    boxes = np.zeros((*kinds.shape, 4), dtype=np.float32)
    for b, row in enumerate(rows):
        relative, seen = boxes_in_view(corpus.boxes[row].astype(np.float64), windows[b])
        boxes[b] = relative
        kinds[b] = np.where(seen, corpus.kinds[row], -1)
    return Views(rows, windows, kinds, boxes)


def view_maker(corpus: Corpus, seed: int, batch_size: int) -> Callable[[int], Views]:
    """A function from a step to its batch."""

    def make(step: int) -> Views:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(corpus), size=batch_size)
        windows = np.tile(WHOLE, (batch_size, 1))
        cropped = (corpus.regions[rows, 0, 2] > 0) & (rng.random(batch_size) < _CROP_SHARE)
        windows[cropped] = bx.grow(corpus.regions[rows[cropped], 0], CROP, (SIZE, SIZE))
        return gather_views(corpus, rows, windows)

    return make


class Seeing(nn.Module):
    """The describer's modules before its language model, with the heads through which they are trained."""

    def __init__(self, model: LlavaOnevisionForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.embeddings = model.get_input_embeddings()
        self.head = DenseHead(WIDTH)
        self.words = WordHead(WIDTH)

    def loss(self, features: Tensor, image: Tensor, objects: Objects) -> tuple[Tensor, dict[str, Tensor]]:
        """Both dense losses of features ``(B, P, WIDTH)`` and their projections ``(B, P, WIDTH)``."""
        dense, figures = dense_loss(self.head(features), objects)
        words = self.words.loss(image, self.embeddings.weight, objects, SOFTNESS)
        return dense + WORD_WEIGHT * words, {**figures, "words_loss": words.detach()}


def tower_features(tower: nn.Module, pixels: Tensor) -> Tensor:
    """The states of a SigLIP tower before its last norm, which LLaVA-OneVision reads: ``(B, P, WIDTH)``."""
    inputs = tower.get_submodule("embeddings")(pixels)
    features: Tensor = tower.get_submodule("encoder")(inputs_embeds=inputs).last_hidden_state
    return features


def train_vision(run: Run, corpus: Corpus) -> None:
    """Train the vision tower from scratch to recognise what each patch shows; writes ``vision.pt``."""
    seed_everything(run.seed, run.device)
    seeing = Seeing(make_describer()).to(run.device)
    bank = ImageBank(corpus.images, run.device)

    def loss(batch: Views, _progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        features = tower_features(seeing.tower, bank.views(batch.rows, batch.windows))
        return seeing.loss(features, seeing.projector(features), batch.objects(run.device))

    train(Task("vision", {"seeing": seeing}, view_maker(corpus, run.seed, run.batch_size), loss), run)
