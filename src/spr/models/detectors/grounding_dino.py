"""GroundingDINO and MM-GroundingDINO as detectors, asked for what a description mentions (paper, Sec. 3.2)."""

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
from spr.models.detectors.prompts import Prompt, phrase_prompts, text_prompts
from spr.models.loading import Source, load_with_processors
from spr.models.pixels import normalise, resized_bytes
from spr.models.protocols import DetectRequest
from spr.records import Detection, Size

_CLASSES = {
    "grounding-dino": (GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil),
    "mm-grounding-dino": (MMGroundingDinoForObjectDetection, GroundingDinoImageProcessorPil),
}


@dataclass(frozen=True, slots=True, eq=False)
class _Query:
    """An image and what to find in it."""

    image: Image.Image
    resized: Future[torch.Tensor]  # the model's input, uint8 (3, H, W)
    prompt: Prompt


class GroundingDinoDetector:
    """A `GroundingDinoForObjectDetection` or `MMGroundingDinoForObjectDetection` as a `Detector`.

    With ``prompt: phrases``, the prompt joins the phrases of the request as in the model's training:
    ``a dog . a red cup .`` A box belongs to the phrase with the highest token score, the sigmoid of the logit, and has
    that score. With ``prompt: text``, the prompt is the text with a final dot; a box's score is the maximum over all
    tokens, and its phrase the words around the best one that are above the text threshold. Prompts are in lower case.
    What exceeds the limit of the text encoder is split between phrases, or at the ends of sentences, into several
    prompts.

    Each of the model's boxes gives at most one detection. Two boxes may show the same object, as in the original
    post-processing, which has no non-maximum suppression: S_loc counts the best box of each object only, and
    `spr.annotations.replace_crowds` suppresses duplicates itself.

    Only images of the same resized size share a batch: group norms and windows of the vision backbone ignore the
    padding mask, so scores would depend on the rest of the batch. All prompts for an image share one backbone pass.

    It is made from the config section, or from a model id or folder and further fields of `DetectorConfig`.
    """

    def __init__(self, config: DetectorConfig | Source, **fields: Any) -> None:
        section = make_section(DetectorConfig, config, **fields)
        self.model, self.processor, self.tokenizer, self.name = load_with_processors(section, _CLASSES)
        self.device = self.model.device
        self.prompt = section.prompt
        self.box_threshold, self.text_threshold = section.box_threshold, section.text_threshold
        self.max_tokens: int = self.model.config.max_text_len - 2  # besides [CLS] and [SEP]
        self._batches: Batcher[_Query, list[Detection]] = Batcher.of(self._run, section, self.device)

    def detect(self, requests: Sequence[DetectRequest]) -> list[list[Detection]]:
        """The detections of each request, best first: phrase of the text, box in pixels of the image, score 0..1.

        A request without phrases, or with a text without words, has none.
        """
        prompts = self._prompts_of(requests)
        images = {id(request.image): request.image for request in requests}
        groups: dict[Size, list[tuple[int, _Query]]] = {}
        found: list[list[Detection]] = [[] for _ in requests]
        with prepared(self._resize, list(images.values())) as resized:
            resized_of = dict(zip(images, resized, strict=True))
            for place, (request, own) in enumerate(zip(requests, prompts, strict=True)):
                shown = resized_of[id(request.image)]
                group = groups.setdefault(self._resized_wh(request.image.size), [])
                group += [(place, _Query(request.image, shown, prompt)) for prompt in own]
            for group in groups.values():
                answers = self._batches([query for _, query in group])
                for (place, _), detections in zip(group, answers, strict=True):
                    found[place] += detections
        return [best_first(detections) for detections in found]

    def _prompts_of(self, requests: Sequence[DetectRequest]) -> Sequence[Sequence[Prompt]]:
        """The prompts of each request."""
        if self.prompt == "phrases":
            return phrase_prompts(self.tokenizer, [request.phrases for request in requests], self.max_tokens)
        texts = [request.text for request in requests]
        return text_prompts(self.tokenizer, texts, self.max_tokens, self.text_threshold)

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
        rows = [torch.tensor([start, *query.prompt.ids, end]) for query in queries]
        ids = pad_sequence(rows, batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return ids.to(self.device), mask.to(self.device)

    def _detections(self, query: _Query, probs: torch.Tensor, boxes: torch.Tensor) -> list[Detection]:
        prompt = query.prompt
        scores = prompt.scores(probs)
        kept = scores > self.box_threshold
        placed = pixel_boxes(boxes[kept], _padded(query.image.size), query.image.size)
        own = probs[kept, 1 : 1 + len(prompt.ids)].tolist()  # the first token is [CLS]
        return [
            Detection(prompt.phrase(row), box, score)
            for row, box, score in zip(own, placed, scores[kept].tolist(), strict=True)
            if box is not None
        ]


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


def _padded(size_wh: Size) -> Size:
    """The image's size, padded to 1:16 if it is thinner: it would have too few positions for the model's queries."""
    least = -(-max(size_wh) // 16)
    return max(size_wh[0], least), max(size_wh[1], least)
