"""OWL-ViT and OWLv2 as detectors, with the phrases of a description as queries (paper, Sec. 3.2)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
)

from spr.config import DetectorConfig, make_section
from spr.core.errors import ConfigError
from spr.models.batching import Batcher
from spr.models.detectors.detections import best_first, check_finite, pixel_boxes
from spr.models.loading import Source, load_with_processors
from spr.models.pixels import normalise, resized_bytes, shrink_to_square, standardise, to_bytes
from spr.models.protocols import DetectRequest
from spr.models.text_pieces import token_parts
from spr.records import Detection

_CLASSES = {
    "owlv2": (Owlv2ForObjectDetection, Owlv2ImageProcessorPil),
    "owlvit": (OwlViTForObjectDetection, OwlViTImageProcessorPil),
}

_Ids: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Query:
    """An image, and the phrases of each of its requests with their vectors ``(phrases, D)``."""

    image: Image.Image
    phrases: list[list[str]]
    vectors: list[torch.Tensor]


class OwlDetector:
    """An `Owlv2ForObjectDetection` or `OwlViTForObjectDetection` as a `Detector`.

    The queries are the phrases of a request; those of more than 14 tokens are split. Each position of the image gives
    one box, with the phrase of the highest logit and the sigmoid of that logit as its score.

    It is made from the config section, or from a model id or folder and further fields of `DetectorConfig`. OWL models
    need a lower `box_threshold` than the section's default: transformers' own is 0.1. ``prompt: text`` is a
    `ConfigError`: a query is a phrase.
    """

    def __init__(self, config: DetectorConfig | Source, **fields: Any) -> None:
        section = make_section(DetectorConfig, config, **fields)
        if section.prompt != "phrases":
            raise ConfigError("OWL models are asked for phrases", got=f"prompt: {section.prompt}", expected="phrases")
        self.model, self.processor, self.tokenizer, self.name = load_with_processors(section, _CLASSES)
        self.device, self.box_threshold = self.model.device, section.box_threshold
        model_config = self.model.config
        self.pads_image = model_config.model_type == "owlv2"  # to a square; OWL-ViT stretches it
        self.max_tokens: int = model_config.text_config.max_position_embeddings - 2
        self.image_size: int = model_config.vision_config.image_size
        self._image_batches: Batcher[_Query, list[list[Detection]]] = Batcher.of(self._run, section, self.device)
        self._text_batches: Batcher[_Ids, torch.Tensor] = Batcher.of(
            self._embed, section, self.device, factor=8, length=len
        )

    def detect(self, requests: Sequence[DetectRequest]) -> list[list[Detection]]:
        """The detections of each request, best first: one of its phrases, box in pixels of the image, score 0..1.

        Equal phrases, and images of several requests, are embedded once.
        """
        queries = self._queries(list(dict.fromkeys(request.phrases for request in requests)))
        needed = list(dict.fromkeys(itertools.chain(*queries.values())))
        vector_of = dict(zip(needed, self._text_batches(needed), strict=True))
        places: dict[int, list[int]] = {}
        image_queries: dict[int, _Query] = {}
        for place, request in enumerate(requests):
            if query := queries[request.phrases]:
                key = id(request.image)
                places.setdefault(key, []).append(place)
                asked = image_queries.setdefault(key, _Query(request.image, [], []))
                asked.phrases.append(list(query.values()))
                asked.vectors.append(torch.stack([vector_of[ids] for ids in query]))
        found: list[list[Detection]] = [[] for _ in requests]
        answers = itertools.chain.from_iterable(self._image_batches(list(image_queries.values())))
        for place, detections in zip(itertools.chain(*places.values()), answers, strict=True):
            found[place] = best_first(detections)
        return found

    def _queries(self, asked: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], dict[_Ids, str]]:
        """The distinct token ids of each request's phrases, with the first phrase that has these ids."""
        distinct = list(dict.fromkeys(itertools.chain(*asked)))
        parts_of = dict(zip(distinct, token_parts(self.tokenizer, distinct, self.max_tokens), strict=True))
        queries: dict[tuple[str, ...], dict[_Ids, str]] = {phrases: {} for phrases in asked}
        for phrases, own in queries.items():
            for phrase in phrases:
                for ids, (start, end) in parts_of[phrase]:
                    own.setdefault(ids, phrase[start:end])
        return queries

    @torch.inference_mode()
    def _embed(self, queries: Sequence[_Ids]) -> list[torch.Tensor]:
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        # OWL reads the vector at the highest id, which is the end token, so padding after it has no effect.
        rows = pad_sequence([torch.tensor([start, *ids, end]) for ids in queries], batch_first=True)
        features = self.model.base_model.get_text_features(input_ids=rows.to(self.device))
        return list(F.normalize(features.pooler_output, dim=-1))

    @torch.inference_mode()
    def _run(self, queries: Sequence[_Query]) -> list[list[list[Detection]]]:
        """The detections of each request for each image."""
        features = self.model.image_embedder(self._pixels([query.image for query in queries]))[0]
        flat = features.flatten(1, 2)
        boxes = self.model.box_predictor(flat, features)
        check_finite(self.name, boxes)
        answers = []
        for query, own, placed in zip(queries, flat, boxes, strict=True):
            logits = [self.model.class_predictor(own[None], vectors[None])[0][0] for vectors in query.vectors]
            pairs = zip(logits, query.phrases, strict=True)
            answers.append([self._detections(query.image, each, phrases, placed) for each, phrases in pairs])
        return answers

    def _pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        side = self.image_size
        if not self.pads_image:
            values = [resized_bytes(image, (side, side), self.processor) for image in images]
            return normalise(values, self.processor, self.device).to(self.model.dtype)
        shown = [to_bytes(image).to(self.device).float() * self.processor.rescale_factor for image in images]
        squares = [shrink_to_square(pixels, side) for pixels in shown]
        return standardise(torch.stack(squares), self.processor).to(self.model.dtype)

    def _detections(
        self, image: Image.Image, logits: torch.Tensor, phrases: Sequence[str], boxes: torch.Tensor
    ) -> list[Detection]:
        """The boxes ``(positions, 4)`` whose best logit of ``(positions, phrases)`` is above the threshold."""
        best, labels = logits.float().max(dim=-1)
        scores = best.sigmoid()
        kept = scores > self.box_threshold
        canvas = (max(image.size), max(image.size)) if self.pads_image else image.size
        placed = pixel_boxes(boxes[kept], canvas, image.size)
        return [
            Detection(phrases[label], box, score)
            for label, box, score in zip(labels[kept].tolist(), placed, scores[kept].tolist(), strict=True)
            if box is not None
        ]
