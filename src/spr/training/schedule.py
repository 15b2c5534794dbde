"""The order of a training as pure functions of its seed: which pairs make up a step, and each step's learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from spr.core.randomness import stable_hash

BUCKET = 50
"""Number of batches whose pairs are sorted by length together: little padding, and still a random order."""


def batches_of_epoch(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, members: Sequence[int] | None = None
) -> list[list[int]]:
    """Batches of pairs with similar numbers of tokens, in random order, as indices of pairs.

    Every pair occurs once, or only the ``members``; one batch may be smaller. Each epoch, counted from 0, has another
    order.

    >>> batches_of_epoch([5, 90, 6, 91], 2, seed=0, epoch=0)
    [[0, 2], [1, 3]]
    """
    order = sorted(
        range(len(lengths)) if members is None else members,
        key=lambda k: stable_hash(seed, "train", str(epoch), str(k)),
    )
    batches = []
    for start in range(0, len(order), BUCKET * batch_size):
        bucket = sorted(order[start : start + BUCKET * batch_size], key=lambda k: (lengths[k], k))
        batches += [bucket[first : first + batch_size] for first in range(0, len(bucket), batch_size)]
    batches.sort(key=lambda batch: stable_hash(seed, "train batch", str(epoch), str(batch[0])))
    return batches


def steps_of_training(
    lengths: Sequence[int],
    *,
    batch_size: int,
    batches_per_step: int,
    epochs: int,
    max_steps: int | None,
    seed: int,
    members: Callable[[int], Sequence[int]] | None = None,
) -> list[list[list[int]]]:
    """All optimizer steps of a training, each a list of the batches of `batches_of_epoch`.

    ``batches_per_step`` is the number of processes times the gradient accumulation; the last step of an epoch may have
    fewer batches. ``max_steps`` ends the training early; None takes all epochs. ``members`` returns the pairs of an
    epoch; None for all.
    """
    steps = []
    for epoch in range(epochs):
        batches = batches_of_epoch(lengths, batch_size, seed, epoch, None if members is None else members(epoch))
        steps += [batches[first : first + batches_per_step] for first in range(0, len(batches), batches_per_step)]
        if max_steps is not None and len(steps) >= max_steps:
            return steps[:max_steps]
    return steps


def learning_rate(
    step: int, steps: int, *, peak: float, warmup: float, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """The learning rate of a step.

    It rises linearly over the first ⌈warmup · steps⌉ steps, reaching the peak in the last of them, and then falls to
    zero, which it would reach in the step after the last one. Steps count from 0.

    With 10 steps and a warm-up over two of them: 0.5 and 1.0 of the peak, then the cosine falls from 1 to 0 over eight
    steps, and is half-way at the fourth of them:

    >>> rates = [learning_rate(k, 10, peak=1.0, warmup=0.2, schedule="cosine") for k in (0, 1, 2, 6)]
    >>> tuple(round(rate, 6) for rate in rates)
    (0.5, 1.0, 1.0, 0.5)
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(steps - rising, 1)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak * (1 - done) if schedule == "linear" else peak
