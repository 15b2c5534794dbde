"""Deterministic stand-ins for the three protocols: the pipeline on any annotated images, without weights or a GPU.

They know nothing of what is in an image. The describer says what the annotations say, spoilt by seed; the scorer
compares words with the names of colours in the picture; the detector finds nothing or guesses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from spr.config import DescriberConfig, DetectorConfig, ScorerConfig
from spr.core import boxes as bx
from spr.core.randomness import stable_hash
from spr.core.views import shift
from spr.grounding import GroundedText, get_dialect, render
from spr.models.protocols import DescribeRequest, DetectRequest, Vectors, View
from spr.records import Box, Detection, ImageObject, Span


class FakeDescriber:
    """Describes the objects inside the region, spoilt: some are left out, boxes are moved, wrong ones are added.

    A question about no region is answered with a box somewhere in the image.

    Args:
        config: The config section, of which only `dialect` has an effect; LLaVA-OneVision's is the default.
        drop: Chance that an object is left out, 0..1.
        jitter: Standard deviation of each edge, as a share of the object's side.
        invent: Chance that a thing is added that is not there, 0..1.
    """

    name = "fake"

    def __init__(
        self, config: DescriberConfig | None = None, *, drop: float = 0.25, jitter: float = 0.08, invent: float = 0.3
    ) -> None:
        dialect = config.dialect if config is not None else None
        self.dialect = get_dialect(dialect or "llava_onevision")
        self.drop, self.jitter, self.invent = drop, jitter, invent

    def describe(self, requests: Sequence[DescribeRequest]) -> list[str]:
        """One answer a request, decided by its seed and its query's annotations."""
        return [self._describe(request) for request in requests]

    def _describe(self, request: DescribeRequest) -> str:
        if request.query is None:
            return self._guess(request)
        rng = np.random.default_rng(stable_hash(request.seed, "fake", request.query.query_id))
        said = [
            (_with_article(item.category), self._moved(item, rng))
            for item in request.query.inside
            if rng.random() >= self.drop
        ]
        if not said or rng.random() < self.invent:
            x1, y1, x2, y2 = request.query.region
            corner = rng.uniform((x1, y1), (x2, y2))
            said.append(("a shadow", (corner[0], corner[1], x2 + 1.0, y2 + 1.0)))
        size_wh = request.image.size
        text, spans = "There is ", []
        for number, (phrase, box) in enumerate(said):
            text += "" if number == 0 else " and " if number == len(said) - 1 else ", "
            seen = box if request.window is None else shift(box, request.window)
            inside = bx.clip(seen, size_wh).tolist()
            spans.append(Span(phrase, len(text), len(text) + len(phrase), (tuple(inside),)))
            text += phrase
        return render(GroundedText(text + ".", tuple(spans)), self.dialect, size_wh)

    def _guess(self, request: DescribeRequest) -> str:
        """A box somewhere in the image: the answer to a question about no region."""
        rng = np.random.default_rng(stable_hash(request.seed, "fake", request.prompt))
        width, height = request.image.size
        x1, y1 = rng.uniform(0, 0.5, 2) * (width, height)
        box = (float(x1), float(y1), float(x1 + width / 2), float(y1 + height / 2))
        return render(GroundedText("it.", (Span("it", 0, 2, (box,)),)), self.dialect, request.image.size)

    def _moved(self, item: ImageObject, rng: np.random.Generator) -> Box:
        x1, y1, x2, y2 = item.box
        scale = np.array([x2 - x1, y2 - y1] * 2) * self.jitter
        moved = np.array(item.box) + rng.normal(size=4) * scale
        low, high = np.minimum(moved[:2], moved[2:]), np.maximum(moved[:2], moved[2:])
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _with_article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


class FakeScorer:
    """Vectors from hashes of words, and of the pixels' coarse colours: cosines that are stable and mean nothing."""

    name = "fake"
    width = 64

    def __init__(self, config: ScorerConfig | None = None) -> None:
        """Take the config section, no field of which has an effect."""

    def embed_views(self, views: Sequence[View]) -> Vectors:
        """Unit vectors ``(len(views), 64)``, float32."""
        return np.stack([self._embed_view(view) for view in views]) if views else np.zeros((0, self.width), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors ``(len(texts), 64)``, float32."""
        words = [re.findall(r"\w+", text.lower()) or [""] for text in texts]
        rows = [np.sum([_hashed("word", word, self.width) for word in found], axis=0) for found in words]
        return _unit(np.asarray(rows, dtype=np.float64).reshape(-1, self.width))

    def _embed_view(self, view: View) -> Vectors:
        image = view.image if view.region is None else view.image.crop(view.region)
        coarse = np.asarray(image.resize((4, 4)), dtype=np.int64) // 64
        colours = [_hashed("colour", str(colour), self.width) for colour in coarse.reshape(-1, 3).tolist()]
        return np.asarray(_unit(np.sum(colours, axis=0)[None])[0])


class FakeDetector:
    """Finds each longer word of the text once, at a place decided by the word and the image's size."""

    name = "fake"

    def __init__(self, config: DetectorConfig | None = None) -> None:
        """Take the config section, no field of which has an effect."""

    def detect(self, requests: Sequence[DetectRequest]) -> list[list[Detection]]:
        """For each request at most three finds, best first."""
        return [self._detect(request) for request in requests]

    def _detect(self, request: DetectRequest) -> list[Detection]:
        width, height = request.image.size
        found = []
        for word in dict.fromkeys(re.findall(r"\w{4,}", request.text)):
            rng = np.random.default_rng(stable_hash(0, "detect", word, f"{width}x{height}"))
            x, y = rng.uniform(0, 0.7, 2) * (width, height)
            box = (float(x), float(y), float(x + 0.3 * width), float(y + 0.3 * height))
            found.append(Detection(word, box, float(rng.uniform(0.35, 1.0))))
        return sorted(found, key=lambda find: -find.score)[:3]


@lru_cache(maxsize=4096)
def _hashed(kind: str, text: str, width: int) -> Vectors:
    rng = np.random.default_rng(stable_hash(0, kind, text))
    made = np.asarray(rng.normal(size=width), dtype=np.float32)
    made.flags.writeable = False
    return made


def _unit(rows: npt.NDArray[np.floating]) -> Vectors:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)
