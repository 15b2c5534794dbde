"""What the pipeline asks of models: three protocols, each batched, each with a fake beside it in `spr.models.fakes`.

An adapter may batch its requests as it likes, and must answer them in their order. An answer depends on its own request
only (to within rounding), so that batch sizes, shards and workers change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from spr.grounding import Dialect
from spr.records import Box, Detection, RegionQuery

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class DescribeRequest:
    """One answer to be sampled.

    Attributes:
        image: RGB, what the model sees: the whole image, or a crop.
        prompt: The user's turn, without the model's chat template.
        seed: Decides the sample, 0 ≤ seed < 2⁶³; greedy models don't heed it.
        query: What is asked about; None for questions about no region. Models don't see it; the fake describer
            perturbs it.
        window: The part of the original image that ``image`` shows, xyxy pixels of the original; None for all of it.
    """

    image: Image.Image
    prompt: str
    seed: int = 0
    query: RegionQuery | None = None
    window: Box | None = None


class Describer(Protocol):
    """A multimodal LLM that answers prompts with grounded text.

    Attributes:
        name: Model and revision, as kept in every candidate.
        dialect: How it writes boxes, relative to the image that it sees.
    """

    name: str
    dialect: Dialect

    def describe(self, requests: Sequence[DescribeRequest]) -> list[str]:
        """One raw answer a request, decoded without the end of turn."""
        ...


@runtime_checkable
class StreamingDescriber(Protocol):
    """A `Describer` that has its answers one by one, so that each can be kept before the others are there."""

    def describe_each(self, requests: Sequence[DescribeRequest], answered: Callable[[int, str], None]) -> list[str]:
        """`Describer.describe` that calls ``answered`` with a request's number and its answer, as it comes."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A square RGB image to be embedded; with ``region`` (xyxy pixels of it) by local attention, else whole."""

    image: Image.Image
    region: Box | None = None


class ImageTextScorer(Protocol):
    """An image-text model like CLIP: cosines of its unit vectors are the semantic score (METHOD §4)."""

    name: str

    def embed_views(self, views: Sequence[View]) -> Vectors:
        """Unit vectors ``(len(views), D)``, float32."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors ``(len(texts), D)``, float32; texts may be longer than the encoder reads, or empty."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class DetectRequest:
    """Where in ``image`` (RGB) is what ``text`` mentions? The text has no coordinates and may be long or empty."""

    image: Image.Image
    text: str


class Detector(Protocol):
    """An open-vocabulary detector like GroundingDINO."""

    name: str

    def detect(self, requests: Sequence[DetectRequest]) -> list[list[Detection]]:
        """For each request what was found, best first: phrase of the text, box in pixels of the image, score 0..1."""
        ...
