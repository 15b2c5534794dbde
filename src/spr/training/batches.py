"""From encoded preference pairs to the tensors of a batch: one sequence per pair, or two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from spr.models.image_features import Features


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """A pair as the model reads it.

    Attributes:
        prompt: ``(P,)`` int64, the prompt's tokens including the image placeholders.
        positions: ``(axes, P)`` int64, the positions of the prompt's tokens; three axes for the Qwen-VL families, else
            one.
        chosen, rejected: ``(R,)`` int64, the answers' tokens including the end of turn, unless the answer was cut.
        features: Those of the image; None if the prompt has no image.
        chosen_weights, rejected_weights: ``(R,)`` float32, the weights of the tokens; None if all are 1.
        image_tokens: ``(P,)`` bool, true for the prompt's tokens that attend to each other in both directions; None if
            all are causal.
    """

    pair_id: str
    prompt: Tensor
    positions: Tensor
    chosen: Tensor
    rejected: Tensor
    features: Features | None
    chosen_weights: Tensor | None = None
    rejected_weights: Tensor | None = None
    image_tokens: Tensor | None = None


class PairSpan(NamedTuple):
    """Where a pair is in a batch with a shared prefix: columns ``start`` to ``end`` of the sequence ``row``.

    The prompt is ``start:chosen``, the chosen answer ``chosen:rejected``, the rejected one ``rejected:end``.
    """

    row: int
    start: int
    chosen: int
    rejected: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B pairs as S sequences of at most T tokens; S is B if the prefix is shared, else 2 B.

    Attributes:
        input_ids: ``(S, T)`` int64, padded on the right.
        positions: ``(axes, S, T)`` int64.
        mask: If the prefix is shared, ``(S, 1, T, T)`` bool, true where the row's token attends to the column's; None
            if it was not asked for. Else ``(S, T)`` int64, 1 for tokens and 0 for padding.
        begin: Number of leading rows before the first one that predicts an answer token, over all sequences. The mask
            is plain causal there, unless there are ``image_tokens``.
        token_types: ``(S, T)`` int64, 0 for the prompt and 1 for the answers.
        rows, columns: ``(N,)`` int64, sequence and token index of the hidden states that predict the answer tokens.
        labels: ``(N,)`` int64, the predicted answer tokens.
        owners: ``(N,)`` int64, the answer that each belongs to: chosen answers are 0 to B − 1, rejected B to 2 B − 1.
        tokens: Number of tokens in all sequences, without padding.
        features: Image features, one per sequence whose prompt has an image.
        weights: ``(N,)`` float32, the weights of the answer tokens; None if all are 1.
        image_tokens: ``(S, T)`` bool, true for tokens that attend to each other in both directions; None if all are
            causal. A mask of shape ``(S, 1, T, T)`` allows for them.
        spans: The places of the pairs; empty if the prefix is not shared.
    """

    pair_ids: tuple[str, ...]
    input_ids: Tensor
    positions: Tensor
    mask: Tensor | None
    begin: int
    token_types: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor
    owners: Tensor
    tokens: int
    features: tuple[Features, ...] = field(repr=False)
    weights: Tensor | None = None
    image_tokens: Tensor | None = None
    spans: tuple[PairSpan, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        names = ("input_ids", "positions", "token_types", "rows", "columns", "labels", "owners")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        for name in ("mask", "weights", "image_tokens"):
            tensor = getattr(self, name)
            moved[name] = None if tensor is None else tensor.to(device, non_blocking=True)
        return replace(self, features=tuple(part.to(device) for part in self.features), **moved)


def collate(pairs: Sequence[EncodedPair], pad: int, *, shared: bool, dense: bool = True) -> Batch:
    """Lay out pairs as tensors, with the token id ``pad`` for padding.

    If ``shared``, a pair is one sequence, [prompt | chosen | rejected]: the rejected answer attends to the prompt but
    not to the chosen answer, and both answers start at the position after the prompt. Else a pair is two sequences:
    first [prompt | chosen] of all pairs, then [prompt | rejected]. Without ``dense``, the mask of a shared prefix is
    None, for kernels that need only the pairs' places.
    """
    count = len(pairs)
    chosen = [(owner, pair.chosen, pair.chosen_weights) for owner, pair in enumerate(pairs)]
    rejected = [(count + owner, pair.rejected, pair.rejected_weights) for owner, pair in enumerate(pairs)]
    if shared:
        sequences = [(pair, answers) for pair, *answers in zip(pairs, chosen, rejected, strict=True)]
    else:
        sequences = [(pair, [answer]) for pair, answer in zip([*pairs, *pairs], chosen + rejected, strict=True)]
    lengths = [len(pair.prompt) + sum(len(ids) for _, ids, _ in answers) for pair, answers in sequences]
    size = len(sequences), max(lengths)
    input_ids = torch.full(size, pad)
    positions = torch.zeros(len(pairs[0].positions), *size, dtype=torch.int64)
    token_types = torch.zeros(size, dtype=torch.int64)
    image_tokens = torch.zeros(size, dtype=torch.bool)
    mask = None if shared else torch.zeros(size, dtype=torch.int64)
    spans: list[PairSpan] = []
    rows, columns, labels, owners, weights = [], [], [], [], []
    for row, (pair, answers) in enumerate(sequences):
        prompt = end = len(pair.prompt)
        input_ids[row, :prompt], positions[:, row, :prompt] = pair.prompt, pair.positions
        if pair.image_tokens is not None:
            image_tokens[row, :prompt] = pair.image_tokens
        starts: list[int] = []
        for owner, answer, weight in answers:
            start, end = end, end + len(answer)
            starts.append(start)
            input_ids[row, start:end] = answer
            positions[:, row, start:end] = pair.positions.max() + 1 + torch.arange(len(answer))
            rows.append(torch.full_like(answer, row))
            # The prompt's last token predicts the first token of every answer.
            columns.append(torch.cat([torch.tensor([prompt - 1]), torch.arange(start, end - 1)]))
            labels.append(answer)
            owners.append(torch.full_like(answer, owner))
            weights += [] if weight is None else [weight]
        token_types[row, prompt:end] = 1
        if shared:
            spans.append(PairSpan(row, 0, starts[0], starts[1], end))
        if mask is not None:
            mask[row, :end] = 1
    if shared and dense:
        mask = shared_mask(spans, *size)
        mask |= (image_tokens[:, :, None] & image_tokens[:, None])[:, None]
    return Batch(
        pair_ids=tuple(pair.pair_id for pair in pairs),
        input_ids=input_ids,
        positions=positions,
        mask=mask,
        begin=min(len(pair.prompt) for pair in pairs) - 1,
        token_types=token_types,
        rows=torch.cat(rows),
        columns=torch.cat(columns),
        labels=torch.cat(labels),
        owners=torch.cat(owners),
        tokens=sum(lengths),
        features=tuple(pair.features for pair, _ in sequences if pair.features is not None),
        weights=torch.cat(weights) if weights else None,
        image_tokens=image_tokens if pairs[0].image_tokens is not None else None,
        spans=tuple(spans),
    )


def shared_mask(spans: Iterable[PairSpan], sequences: int, width: int) -> Tensor:
    """The mask of causal layers, ``(S, 1, T, T)`` bool: a rejected answer attends to its prompt, not to the chosen one.

    Padding attends to itself only: a row without any column would be NaN.
    """
    mask = torch.eye(width, dtype=torch.bool).repeat(sequences, 1, 1, 1)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    for row, start, chosen, rejected, end in spans:
        mask[row, 0, start:end, start:end] = causal[: end - start, : end - start]
        mask[row, 0, rejected:end, chosen:rejected] = False
    return mask
