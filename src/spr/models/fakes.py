"""Deterministic fakes of the three protocols, for running the pipeline without weights or a GPU.

They do not look at what an image shows. The describer repeats the annotations with random errors, the scorer embeds
hashes of words and colours, and the detector returns random boxes for the phrases of the text.
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
from spr.grounding.names import readable_names
from spr.models.protocols import Answer, DescribeRequest, DetectRequest, Vectors, View
from spr.records import Box, Detection, ImageObject, Span


class FakeDescriber:
    """Describes the objects inside the region with random errors: objects left out or added, and moved boxes.

    The answer to a question that is not about a region is a random box.

    Args:
        config: The config section, of which only `dialect` has an effect; LLaVA-OneVision's is the default.
        drop: Probability of leaving out an object, 0..1.
        jitter: Standard deviation of the error of each edge, relative to the object's side.
        invent: Probability of adding an object that is not there, 0..1.
    """

    name = "fake"

    def __init__(
        self, config: DescriberConfig | None = None, *, drop: float = 0.25, jitter: float = 0.08, invent: float = 0.3
    ) -> None:
        dialect = config.dialect if config is not None else None
        self.dialect = get_dialect(dialect or "llava_onevision")
        self.drop, self.jitter, self.invent = drop, jitter, invent

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Answer]:
        """One answer per request, a function of its seed and of the annotations of its query; none is truncated."""
        return [Answer(self._describe(request), "stop") for request in requests]

    def _describe(self, request: DescribeRequest) -> str:
        if request.query is None:
            return self._guess(request)
        rng = np.random.default_rng(stable_hash(request.seed, "fake", request.query.query_id))
        objects = []
        names = readable_names([item.category for item in request.query.inside])
        for item, name in zip(request.query.inside, names, strict=True):
            if rng.random() >= self.drop:
                article = "an" if name[:1].lower() in "aeiou" else "a"
                objects.append((f"{article} {name}", self._moved(item, rng)))
        if not objects or rng.random() < self.invent:
            x1, y1, x2, y2 = request.query.region
            corner = rng.uniform((x1, y1), (x2, y2))
            objects.append(("a shadow", (corner[0], corner[1], x2 + 1.0, y2 + 1.0)))
        size_wh = request.image.size
        text, spans = "There is ", []
        for number, (phrase, box) in enumerate(objects):
            text += "" if number == 0 else " and " if number == len(objects) - 1 else ", "
            seen = box if request.window is None else shift(box, request.window)
            inside = bx.clip(seen, size_wh).tolist()
            spans.append(Span(phrase, len(text), len(text) + len(phrase), (tuple(inside),)))
            text += phrase
        return render(GroundedText(text + ".", tuple(spans)), self.dialect, size_wh)

    def _guess(self, request: DescribeRequest) -> str:
        """A random box: the answer to a question that is not about a region."""
        rng = np.random.default_rng(stable_hash(request.seed, "fake", request.prompt))
        width, height = request.image.size
        x1, y1 = rng.uniform(0, 0.5, 2) * (width, height)
        box = (float(x1), float(y1), float(x1 + width / 2), float(y1 + height / 2))
        return render(GroundedText("it.", (Span("it", 0, 2, (box,)),)), self.dialect, request.image.size)

    def _moved(self, item: ImageObject, rng: np.random.Generator) -> Box:
        x1, y1, x2, y2 = item.box
        scale = np.array([x2 - x1, y2 - y1] * 2) * self.jitter
        corners = (np.array(item.box) + rng.normal(size=4) * scale).reshape(2, 2)
        x1, y1, x2, y2 = np.sort(corners, axis=0).ravel().tolist()
        return x1, y1, x2, y2


class FakeScorer:
    """Vectors from hashes of words and of coarse colours. Their cosines are reproducible and have no meaning."""

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
    """Detects each phrase once, in a box that depends on the phrase and the image's size."""

    name = "fake"

    def __init__(self, config: DetectorConfig | None = None) -> None:
        """Take the config section, no field of which has an effect."""

    def detect(self, requests: Sequence[DetectRequest]) -> list[list[Detection]]:
        """At most three detections per request, best first."""
        return [self._detect(request) for request in requests]

    def _detect(self, request: DetectRequest) -> list[Detection]:
        width, height = request.image.size
        found = []
        for phrase in request.phrases:
            rng = np.random.default_rng(stable_hash(0, "detect", phrase, f"{width}x{height}"))
            x, y = rng.uniform(0, 0.7, 2) * (width, height)
            box = (float(x), float(y), float(x + 0.3 * width), float(y + 0.3 * height))
            found.append(Detection(phrase, box, float(rng.uniform(0.35, 1.0))))
        return sorted(found, key=lambda detection: -detection.score)[:3]


@lru_cache(maxsize=4096)
def _hashed(kind: str, text: str, width: int) -> Vectors:
    rng = np.random.default_rng(stable_hash(0, kind, text))
    vector = np.asarray(rng.normal(size=width), dtype=np.float32)
    vector.flags.writeable = False
    return vector


def _unit(rows: npt.NDArray[np.floating]) -> Vectors:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)
