"""Encoded pairs → tensors: one sequence a pair with image and prompt once, or two plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from spr.training.features import Features


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """A pair as the model reads it.

    Attributes:
        pair_id: Whose it is.
        prompt: ``(P,)`` int64, the prompt's tokens, the image's placeholders among them.
        positions: ``(axes, P)`` int64, the prompt's positions; three axes for the Qwen-VL families, else one.
        chosen, rejected: ``(R,)`` int64, the answers' tokens with the end of turn.
        features: What the vision tower makes of the image.
    """

    pair_id: str
    prompt: Tensor
    positions: Tensor
    chosen: Tensor
    rejected: Tensor
    features: Features


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B pairs as tensors; S sequences (B, or 2 B when chosen and rejected stand apart) of T tokens at most.

    Attributes:
        pair_ids: Of the B pairs.
        input_ids: ``(S, T)`` int64, padded on the right.
        positions: ``(axes, S, T)`` int64.
        mask: ``(S, 1, T, T)`` bool, true where a row's token sees a column's; or ``(S, T)`` int64, 1 for tokens and 0
            for padding, for plain causal sequences.
        begin: The first column that predicts an answer's token, in any sequence; the rows of a ``(S, 1, T, T)`` mask
            before it are plain causal.
        token_types: ``(S, T)`` int64, 0 for the prompt and 1 for answers.
        rows, columns: ``(N,)`` int64, where the hidden state is that predicts an answer's token.
        labels: ``(N,)`` int64, that token.
        owners: ``(N,)`` int64, the answer that it belongs to: 0 to B − 1 chosen, B to 2 B − 1 rejected.
        tokens: How many tokens the language model reads, padding not counted.
        features: One a sequence.
    """

    pair_ids: tuple[str, ...]
    input_ids: Tensor
    positions: Tensor
    mask: Tensor
    begin: int
    token_types: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor
    owners: Tensor
    tokens: int
    features: tuple[Features, ...] = field(repr=False)

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        names = ("input_ids", "positions", "mask", "token_types", "rows", "columns", "labels", "owners")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, features=tuple(part.to(device) for part in self.features), **moved)


def collate(pairs: Sequence[EncodedPair], pad: int, *, shared: bool) -> Batch:
    """Pairs → a batch.

    Args:
        pairs: At least one.
        pad: The token that fills up.
        shared: One sequence a pair, [prompt | chosen | rejected]: rejected sees the prompt but not chosen, and both
            begin at the position behind the prompt. Else two: [prompt | chosen] of all pairs, then [prompt | rejected].
    """
    return _shared(pairs, pad) if shared else _separate(pairs, pad)


def _shared(pairs: Sequence[EncodedPair], pad: int) -> Batch:
    count = len(pairs)
    lengths = [(len(pair.prompt), len(pair.chosen), len(pair.rejected)) for pair in pairs]
    width = max(map(sum, lengths))
    input_ids = torch.full((count, width), pad)
    positions = torch.zeros(pairs[0].positions.shape[0], count, width, dtype=torch.int64)
    types = torch.zeros(count, width, dtype=torch.int64)
    mask = torch.ones(width, width, dtype=torch.bool).tril().repeat(count, 1, 1, 1)
    gathered = _Gathered()
    for row, (pair, (prompt, chosen, rejected)) in enumerate(zip(pairs, lengths, strict=True)):
        middle, end = prompt + chosen, prompt + chosen + rejected
        input_ids[row, :end] = torch.cat([pair.prompt, pair.chosen, pair.rejected])
        positions[:, row, :middle] = _continued(pair.positions, chosen)
        positions[:, row, middle:end] = _continued(pair.positions, rejected)[:, prompt:]
        types[row, prompt:end] = 1
        mask[row, 0, middle:, prompt:middle] = False
        # Padding sees itself alone: a row that sees nothing would be NaN.
        mask[row, 0, end:, :end] = False
        mask[row, 0, end:, end:] = torch.eye(width - end, dtype=torch.bool)
        gathered.add(row, prompt - 1, prompt, pair.chosen, row)
        gathered.add(row, prompt - 1, middle, pair.rejected, count + row)
    ids = tuple(pair.pair_id for pair in pairs)
    features = tuple(pair.features for pair in pairs)
    begin, tokens = min(prompt for prompt, _, _ in lengths) - 1, sum(map(sum, lengths))
    return Batch(ids, input_ids, positions, mask, begin, types, *gathered.tensors(), tokens, features)


def _separate(pairs: Sequence[EncodedPair], pad: int) -> Batch:
    count = len(pairs)
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    both = [*pairs, *pairs]
    width = max(len(pair.prompt) + len(answer) for pair, answer in zip(both, answers, strict=True))
    input_ids = torch.full((2 * count, width), pad)
    positions = torch.zeros(pairs[0].positions.shape[0], 2 * count, width, dtype=torch.int64)
    types, mask = torch.zeros(2, 2 * count, width, dtype=torch.int64).unbind()
    gathered = _Gathered()
    for row, (pair, answer) in enumerate(zip(both, answers, strict=True)):
        start, end = len(pair.prompt), len(pair.prompt) + len(answer)
        input_ids[row, :end] = torch.cat([pair.prompt, answer])
        positions[:, row, :end] = _continued(pair.positions, len(answer))
        types[row, start:end] = 1
        mask[row, :end] = 1
        gathered.add(row, start - 1, start, answer, row)
    ids = tuple(pair.pair_id for pair in pairs)
    features = tuple(pair.features for pair in both)
    begin = min(len(pair.prompt) for pair in pairs) - 1
    return Batch(ids, input_ids, positions, mask, begin, types, *gathered.tensors(), int(mask.sum()), features)


def _continued(positions: Tensor, more: int) -> Tensor:
    """The prompt's positions and those of an answer behind it, all axes alike from one behind the greatest."""
    after = positions.max() + 1 + torch.arange(more)
    return torch.cat([positions, after.expand(positions.shape[0], more)], dim=1)


class _Gathered:
    """Where each answer's tokens are predicted."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._columns: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._owners: list[Tensor] = []

    def add(self, row: int, before: int, start: int, answer: Tensor, owner: int) -> None:
        """An answer at ``start``, whose first token the prompt's last one at ``before`` predicts."""
        self._rows.append(torch.full_like(answer, row))
        self._columns.append(torch.cat([torch.tensor([before]), torch.arange(start, start + len(answer) - 1)]))
        self._labels.append(answer)
        self._owners.append(torch.full_like(answer, owner))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows, columns, labels and owners, ``(N,)`` each."""
        return (
            torch.cat(self._rows),
            torch.cat(self._columns),
            torch.cat(self._labels),
            torch.cat(self._owners),
        )
