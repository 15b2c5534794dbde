"""GroundingDINO and MM-GroundingDINO as detectors, with a description as the prompt (paper, Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    MMGroundingDinoForObjectDetection,
)
from transformers.image_transforms import get_size_with_aspect_ratio

from spr.config import DetectorConfig, make_section
from spr.models.batching import Batcher, prepared
from spr.models.detectors.detections import best_first, check_finite, pixel_boxes
from spr.models.loading import Source, load_with_processors
from spr.models.pixels import normalise, resized_bytes
from spr.models.protocols import DetectRequest
from spr.models.text_pieces import Span, split, tokenize
from spr.records import Detection, Size

_CLASSES = {
    "grounding-dino": (GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil),
    "mm-grounding-dino": (MMGroundingDinoForObjectDetection, GroundingDinoImageProcessorPil),
}
_IN_WORDS = "-'’_&"
_FIRST_IDEOGRAPH = "\u2e80"  # scripts from here on don't separate words with spaces


@dataclass(frozen=True, slots=True, eq=False)
class _Query:
    """A piece of a text to find in an image."""

    image: Image.Image
    resized: Future[torch.Tensor]  # the model's input, uint8 (3, H, W)
    text: str  # the whole text
    ids: tuple[int, ...]  # of the piece's tokens
    spans: tuple[Span, ...]  # start and end of these tokens in the text
    words: frozenset[int]  # indices of the tokens that are words or parts of words


class GroundingDinoDetector:
    """A `GroundingDinoForObjectDetection` or `MMGroundingDinoForObjectDetection` as a `Detector`.

    The prompt is the text in lower case with a final dot. Texts above the limit of the text encoder are split at the
    ends of sentences or phrases. A box's score is the maximum over the prompt's tokens of the sigmoid of its logits.
    Its phrase starts at the word with the highest score and extends over whole words above the text threshold, up to
    the next punctuation.

    Only images of the same resized size share a batch: group norms and windows of the vision backbone ignore the
    padding mask, so scores would depend on the rest of the batch. All texts of an image share one backbone pass.

    It is made from the config section, or from a model id or folder and further fields of `DetectorConfig`.
    """

    def __init__(self, config: DetectorConfig | Source, **fields: Any) -> None:
        section = make_section(DetectorConfig, config, **fields)
        self.model, self.processor, self.tokenizer, self.name = load_with_processors(section, _CLASSES)
        self.device = self.model.device
        self.box_threshold, self.text_threshold = section.box_threshold, section.text_threshold
        self.max_tokens: int = self.model.config.max_text_len - 3  # [CLS], the final dot and [SEP]
        self._dot = self.tokenizer.convert_tokens_to_ids(".")
        self._batches: Batcher[_Query, list[Detection]] = Batcher(self._run, section.batch_size)

    def detect(self, requests: Sequence[DetectRequest]) -> list[list[Detection]]:
        """The detections of each request, best first: phrase of the text, box in pixels of the image, score 0..1.

        A text without words has none. An object that several pieces of a text mention is detected several times.
        """
        texts = list(dict.fromkeys(request.text for request in requests))
        tokens = dict(zip(texts, tokenize(self.tokenizer, [_lower(text) for text in texts]), strict=True))
        images = {id(request.image): request.image for request in requests}
        groups: dict[Size, list[tuple[int, _Query]]] = {}
        found: list[list[Detection]] = [[] for _ in requests]
        with prepared(self._resize, list(images.values())) as resized:
            resized_of = dict(zip(images, resized, strict=True))
            for place, request in enumerate(requests):
                ids, spans = tokens[request.text]
                shown = resized_of[id(request.image)]
                group = groups.setdefault(self._resized_wh(request.image.size), [])
                for run in split(request.text, spans, self.max_tokens):
                    own = slice(run.start, run.stop)
                    words = frozenset(k for k, span in enumerate(spans[own]) if _is_word(request.text, span))
                    if words:
                        group.append((place, _Query(request.image, shown, request.text, ids[own], spans[own], words)))
            for group in groups.values():
                answers = self._batches([query for _, query in group])
                for (place, _), detections in zip(group, answers, strict=True):
                    found[place] += detections
        return [best_first(detections) for detections in found]

    def _resize(self, image: Image.Image) -> torch.Tensor:
        # Padded at the bottom and right, with black, so that coordinates stay the same.
        size = _padded(image.size)
        shown = image if size == image.size else image.crop((0, 0, *size))
        return resized_bytes(shown, self._resized_wh(image.size), self.processor)

    def _resized_wh(self, size_wh: Size) -> Size:
        """Width and height of the model's input, by the rule of the checkpoint's processor."""
        size, (width, height) = self.processor.size, _padded(size_wh)
        if not self.processor.do_resize:
            return width, height
        if size["shortest_edge"] and size["longest_edge"]:
            height, width = get_size_with_aspect_ratio((height, width), size["shortest_edge"], size["longest_edge"])
            return width, height
        return size["width"], size["height"]

    @torch.inference_mode()
    def _run(self, queries: Sequence[_Query]) -> list[list[Detection]]:
        resized = {id(query.image): query.resized for query in queries}
        number_of = {image: number for number, image in enumerate(resized)}
        pixels = normalise([each.result() for each in resized.values()], self.processor, self.device)
        ids, mask = self._prompts(queries)
        image_of_query = torch.tensor([number_of[id(query.image)] for query in queries], device=self.device)
        with shared_backbone(self.model.model.backbone, pixels.to(self.model.dtype), image_of_query) as shown:
            outputs = self.model(pixel_values=shown, input_ids=ids, attention_mask=mask)
        check_finite(self.name, outputs.pred_boxes)
        probs = outputs.logits.float().sigmoid().cpu()
        boxes = outputs.pred_boxes.float().cpu()
        return [self._detections(*answer) for answer in zip(queries, probs, boxes, strict=True)]

    def _prompts(self, queries: Sequence[_Query]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, int64 ``(len(queries), longest)``."""
        start, end, pad = (getattr(self.tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad"))
        dots = [[] if query.ids[-1] == self._dot else [self._dot] for query in queries]
        rows = [torch.tensor([start, *query.ids, *dot, end]) for query, dot in zip(queries, dots, strict=True)]
        ids = pad_sequence(rows, batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return ids.to(self.device), mask.to(self.device)

    def _detections(self, query: _Query, probs: torch.Tensor, boxes: torch.Tensor) -> list[Detection]:
        scores = probs.amax(dim=-1)
        kept = scores > self.box_threshold
        placed = pixel_boxes(boxes[kept], _padded(query.image.size), query.image.size)
        # The first token is [CLS]; the added dot and [SEP] come after the text's own tokens.
        own = probs[kept, 1 : 1 + len(query.ids)].tolist()
        return [
            Detection(self._phrase(query, row), box, score)
            for row, box, score in zip(own, placed, scores[kept].tolist(), strict=True)
            if box is not None
        ]

    def _phrase(self, query: _Query, probs: Sequence[float]) -> str:
        words = query.words
        best = max(sorted(words), key=lambda k: probs[k])

        def joins(k: int, neighbour: int) -> bool:
            (_, border), (begin, _) = sorted((query.spans[k], query.spans[neighbour]))
            return border == begin and max(query.text[border - 1], query.text[border]) < _FIRST_IDEOGRAPH

        first = last = best
        while first - 1 in words and (probs[first - 1] > self.text_threshold or joins(first - 1, first)):
            first -= 1
        while last + 1 in words and (probs[last + 1] > self.text_threshold or joins(last + 1, last)):
            last += 1
        return query.text[query.spans[first][0] : query.spans[last][1]]


@contextmanager
def shared_backbone(backbone: Any, pixels: torch.Tensor, image_of_row: torch.Tensor) -> Iterator[torch.Tensor]:
    """Let the backbone compute each image only once and copy its output to all rows of that image.

    ``pixels (images, 3, H, W)`` are the distinct images without padding, ``image_of_row (B,)`` is the image of each
    row, and the result are the ``pixel_values (B, 3, H, W)`` to pass to the model.
    """

    def distinct(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return pixels, args[1][: len(pixels)]

    def spread(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return output[image_of_row]
        return type(output)(spread(_module, _args, part) for part in output)

    handles = [backbone.register_forward_pre_hook(distinct), backbone.register_forward_hook(spread)]
    try:
        yield pixels[:1].expand(len(image_of_row), -1, -1, -1)
    finally:
        for handle in handles:
            handle.remove()


def _lower(text: str) -> str:
    """Convert to lower case without changing the length, so that positions stay valid."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(char.lower() if len(char.lower()) == 1 else char for char in text)


def _is_word(text: str, span: Span) -> bool:
    """Whether a token is a word or a part of one. Punctuation ends phrases and is not detected."""
    return any(char.isalnum() or char in _IN_WORDS for char in text[slice(*span)])


def _padded(size_wh: Size) -> Size:
    """The image's size, padded to 1:16 if it is thinner: it would have too few positions for the model's queries."""
    least = -(-max(size_wh) // 16)
    return max(size_wh[0], least), max(size_wh[1], least)
