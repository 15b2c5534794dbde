"""The three protocols between the pipeline and models. `spr.models.fakes` has a fake of each.

An implementation may batch its requests in any way, and returns the answers in the order of the requests. Up to
rounding, an answer depends on its own request only, so that batch sizes, shards and workers do not change results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from spr.core.errors import SprError
from spr.grounding import Dialect
from spr.records import CUT_REASONS, Box, Detection, RegionQuery

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class DescribeRequest:
    """A request for one answer.

    Attributes:
        image: RGB image that the model sees: the whole image, or a crop.
        prompt: The user's text, without the model's chat template.
        seed: Random seed of the sample, 0 ≤ seed < 2⁶³; ignored in greedy decoding.
        query: The region in question, if any. Models don't see it; the fake describer makes its answers from it.
        window: The part of the original image that ``image`` shows, in xyxy pixels of the original; None for all of it.
    """

    image: Image.Image
    prompt: str
    seed: int = 0
    query: RegionQuery | None = None
    window: Box | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a describer.

    Attributes:
        text: The raw answer, decoded without the end-of-turn token.
        finish_reason: Why its generation ended. ``stop``: the model ended its turn; ``length``: the token limit cut
            the answer; ``stop_string``: a stop string, which the text lacks; or another word of the server. An
            answer with one of `spr.records.CUT_REASONS`, such as ``content_filter``, was cut. None if it is not known:
            such an answer counts as complete.
    """

    text: str
    finish_reason: str | None = None

    @property
    def truncated(self) -> bool:
        """Whether the answer was cut (`spr.records.CUT_REASONS`): at the token limit, or by the server."""
        return self.finish_reason in CUT_REASONS


class Describer(Protocol):
    """A multimodal LLM that answers prompts with grounded text.

    Attributes:
        name: Model and revision, stored with every candidate.
        dialect: How it writes boxes, which are relative to the image that it sees.
    """

    name: str
    dialect: Dialect

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Answer]:
        """One answer per request. Anything but an `Answer`, such as a plain text, is an error (`check_answer`)."""


@runtime_checkable
class StreamingDescriber(Protocol):
    """A `Describer` that delivers answers one by one, so that each can be saved before the others are finished."""

    def describe_each(
        self, requests: Sequence[DescribeRequest], answered: Callable[[int, Answer], None]
    ) -> list[Answer]:
        """Like `Describer.describe`; calls ``answered`` with a request's index and answer as soon as it is there."""


def check_answer(answer: object, describer: Describer) -> Answer:
    """Return an answer of the describer, or raise `SprError` if it is not an `Answer`."""
    if not isinstance(answer, Answer):
        what, fix = (
            f"Describer {describer.name} returned an answer of another type",
            ("return spr.models.protocols.Answer(text, finish_reason), or Answer(text) if the reason is not known"),
        )
        raise SprError(what, got=f"{type(answer).__name__} {answer!r:.60}", expected="an Answer", fix=fix)
    return answer


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A square RGB image to embed: by local attention to ``region`` (xyxy pixels), or as a whole if it is None."""

    image: Image.Image
    region: Box | None = None


class ImageTextScorer(Protocol):
    """An image-text model such as CLIP. Cosines of its unit vectors are the semantic score (paper, Sec. 3.2)."""

    name: str

    def embed_views(self, views: Sequence[View]) -> Vectors:
        """Unit vectors ``(len(views), D)``, float32."""

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors ``(len(texts), D)``, float32; texts may be empty, or longer than the encoder's limit."""


@dataclass(frozen=True, slots=True, eq=False)
class DetectRequest:
    """A request to find what a text mentions.

    Attributes:
        image: RGB image.
        text: A description without coordinates, which may be empty, or the name of a category.
        phrases: What to find: the noun phrases of the text, each once (`spr.grounding.noun_phrases.phrases_to_detect`),
            or the name of the category.
    """

    image: Image.Image
    text: str
    phrases: tuple[str, ...]


class Detector(Protocol):
    """An open-vocabulary detector such as GroundingDINO."""

    name: str

    def detect(self, requests: Sequence[DetectRequest]) -> list[list[Detection]]:
        """The detections of each request, best first: phrase of the text, box in pixels of the image, score 0..1.

        Two phrases may have the same box: detections are not compared with each other.
        """
