"""CLIP as image-text scorer: whole views, local attention to regions, and texts of any length (paper, Sec. 3.2)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPImageProcessorPil, CLIPModel

from spr.config import ScorerConfig, make_section
from spr.core.errors import RecordError
from spr.models.batching import Batcher, prepared
from spr.models.loading import Source, load_with_processors
from spr.models.pixels import normalise, resized_bytes
from spr.models.protocols import Vectors, View
from spr.models.text_pieces import split, tokenize
from spr.records import Box

Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


class _Prepared(NamedTuple):
    values: torch.Tensor  # the resized image, uint8 (3, S, S)
    attended: Mask  # the tokens that each view attends to, (V, 1 + patches)


class ClipScorer:
    """Any `CLIPModel` as an `ImageTextScorer`.

    A view with a region is embedded by local attention: in the last vision layer, the class token attends only to
    itself and to the patches that overlap the region (paper, Sec. 3.2; that it attends to itself is our choice,
    `scorer.class_token_sees_itself`). So the last layer is computed for the class token only, and views of the same
    image share all earlier layers.

    It is made from the config section, or from a model id or folder and further fields of `ScorerConfig`.
    """

    def __init__(self, config: ScorerConfig | Source, **fields: Any) -> None:
        section = make_section(ScorerConfig, config, **fields)
        classes = {"clip": (CLIPModel, CLIPImageProcessorPil)}
        self.model, self.processor, self.tokenizer, self.name = load_with_processors(section, classes)
        self.device, self.long_text = self.model.device, section.long_text
        self.class_token_sees_itself = section.class_token_sees_itself
        text, vision = self.model.config.text_config, self.model.config.vision_config
        self.image_size, self.patch_size = vision.image_size, vision.patch_size
        self.max_tokens = min(75, text.max_position_embeddings - 2)  # besides the start and end tokens
        self._image_batches = Batcher.of(self._embed_images, section, self.device)
        self._text_batches = Batcher.of(self._embed_pieces, section, self.device, length=len)

    def embed_views(self, views: Sequence[View]) -> Vectors:
        """Unit vectors ``(len(views), D)``, float32.

        A view that is not square, or whose region lies outside of it, is a `RecordError`.
        """
        # All views of an image are one item: they share all layers but the last.
        places: dict[int, list[int]] = {}
        for place, view in enumerate(views):
            _check_view(view)
            places.setdefault(id(view.image), []).append(place)
        items = [(views[own[0]].image, [views[place].region for place in own]) for own in places.values()]
        with prepared(self._prepare, items) as prepared_items:
            rows = itertools.chain.from_iterable(self._image_batches(prepared_items))
            vector_of = dict(zip(itertools.chain(*places.values()), rows, strict=True))
        return self._stack([vector_of[place] for place in range(len(views))])

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors ``(len(texts), D)``, float32. Equal texts and pieces are embedded once.

        An empty text is embedded as in CLIP: as the start and end tokens only.
        """
        distinct = list(dict.fromkeys(texts))
        pieces = {
            text: [tokens.ids[run.start : run.stop] for run in self._runs(text, tokens.spans)]
            for text, tokens in zip(distinct, tokenize(self.tokenizer, distinct), strict=True)
        }
        needed = list(dict.fromkeys(itertools.chain(*pieces.values())))
        vector_of = dict(zip(needed, self._text_batches(needed), strict=True))
        result: dict[str, torch.Tensor] = {}
        for text, own in pieces.items():
            weights = torch.tensor([float(max(1, len(piece))) for piece in own])
            vectors = torch.stack([vector_of[piece] for piece in own])
            result[text] = vectors[0] if len(own) == 1 else F.normalize(weights @ vectors, dim=0)
        return self._stack([result[text] for text in texts])

    def _runs(self, text: str, spans: Sequence[tuple[int, int]]) -> list[range]:
        if self.long_text == "truncate":
            return [range(min(len(spans), self.max_tokens))]
        return split(text, spans, self.max_tokens)

    def _stack(self, vectors: list[torch.Tensor]) -> Vectors:
        if not vectors:
            return np.zeros((0, self.model.config.projection_dim), dtype=np.float32)
        return np.asarray(torch.stack(vectors).numpy(), dtype=np.float32)

    @torch.inference_mode()
    def _embed_pieces(self, pieces: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        # Attention is causal and the vector is read at the first end token, so padding has no effect. It must only
        # differ from the end token, which also is the highest id in old checkpoints.
        rows = [torch.tensor([start, *piece, end]) for piece in pieces]
        ids = pad_sequence(rows, batch_first=True, padding_value=int(end == 0)).to(self.device)
        features = self.model.get_text_features(input_ids=ids).pooler_output
        return list(F.normalize(features.float(), dim=-1).cpu())

    def _prepare(self, item: tuple[Image.Image, Sequence[Box | None]]) -> _Prepared:
        image, regions = item
        side = image.width
        values = resized_bytes(image, (self.image_size, self.image_size), self.processor)
        boxes = [(0, 0, side, side) if region is None else region for region in regions]
        patches = np.stack([overlapped(box, side, self.image_size, self.patch_size).ravel() for box in boxes])
        class_token = np.array([[region is None or self.class_token_sees_itself] for region in regions])
        return _Prepared(values, np.concatenate([class_token, patches], axis=1))

    @torch.inference_mode()
    def _embed_images(self, items: Sequence[Future[_Prepared]]) -> list[torch.Tensor]:
        """The unit vectors of each image's views, ``(views, D)``."""
        images = [item.result() for item in items]
        pixels = normalise([image.values for image in images], self.processor, self.device)
        hidden = before_last_layer(self.model, pixels)
        counts = [len(image.attended) for image in images]
        image_of_view = torch.arange(len(images)).repeat_interleave(torch.tensor(counts)).to(self.device)
        attended = np.concatenate([image.attended for image in images])
        features = last_layer(self.model, hidden, image_of_view, torch.from_numpy(attended).to(self.device))
        return list(torch.split(F.normalize(features.float(), dim=-1).cpu(), counts))


def overlapped(region: Box, side: float, image_size: int, patch_size: int) -> Mask:
    """The patches that overlap a region of a square view, bool ``(rows, columns)``.

    The region and ``side`` are in pixels of the view, ``image_size`` and ``patch_size`` in pixels of the resized view.

    >>> overlapped((0, 0, 50, 50.5), side=100, image_size=4, patch_size=1).astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    """
    # Multiplying by image_size instead of dividing keeps edges exact that coincide with those of patches.
    edges = np.arange(image_size // patch_size + 1) * (patch_size * side)
    x1, y1, x2, y2 = (v * image_size for v in region)
    columns = (edges[:-1] < x2) & (edges[1:] > x1) & (x1 < x2)
    rows = (edges[:-1] < y2) & (edges[1:] > y1) & (y1 < y2)
    return np.asarray(rows[:, None] & columns[None, :])


def before_last_layer(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The input of a `CLIPModel`'s last vision layer: ``(N, 3, S, S)`` → ``(N, 1 + patches, C)``, class token first."""
    vision = model.vision_model
    hidden: torch.Tensor = vision.pre_layrnorm(vision.embeddings(pixels))
    for layer in vision.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    return hidden


def last_layer(model: Any, hidden: torch.Tensor, image_of_view: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Apply a `CLIPModel`'s last vision layer, for the class token only, and its projection.

    From the layer's input ``hidden (N, 1 + patches, C)``, the row of it for each view ``image_of_view (V,)``, and the
    tokens that each view's class token attends to ``attended (V, 1 + patches)``, bool: features ``(V, D)``, not
    normalized.
    """
    layer, views = model.vision_model.encoder.layers[-1], len(image_of_view)
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)

    def heads(values: torch.Tensor) -> torch.Tensor:
        return values.view(len(values), values.shape[1], -1, attention.head_dim).transpose(1, 2)[image_of_view]

    mixed = F.scaled_dot_product_attention(
        heads(attention.q_proj(normed[:, :1])),
        heads(attention.k_proj(normed)),
        heads(attention.v_proj(normed)),
        attn_mask=attended[:, None, None, :],
        scale=attention.scale,
    )
    token = hidden[image_of_view, 0] + attention.out_proj(mixed.transpose(1, 2).reshape(views, -1))
    token = token + layer.mlp(layer.layer_norm2(token))
    features: torch.Tensor = model.visual_projection(model.vision_model.post_layernorm(token))
    return features


def _check_view(view: View) -> None:
    width, height = view.image.size
    if width != height:
        raise RecordError("A view is not square", got=(width, height), expected="equal width and height")
    if view.region is not None:
        x1, y1, x2, y2 = view.region
        if not (max(x1, 0) < min(x2, width) and max(y1, 0) < min(y2, height)):
            raise RecordError("A view's region lies outside of it", got=view.region, expected=f"0 to {width} pixels")
