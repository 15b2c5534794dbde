"""The order of a training as functions of its seed: which pairs make a step, and how fast it learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from spr.core.randomness import stable_hash

BUCKET = 50
"""Batches whose pairs are sorted by length together: little padding, and still a random order."""


def batches_of_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of pairs of like length, in random order; each pair once.

    Args:
        lengths: Tokens of each pair.
        batch_size: Pairs a batch; one batch may be smaller.
        seed: The experiment's.
        epoch: From 0; each has another order.

    >>> batches_of_epoch([5, 90, 6, 91], 2, seed=0, epoch=0)
    [[0, 2], [1, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda k: stable_hash(seed, "train", str(epoch), str(k)))
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
    batches_a_step: int,
    epochs: int,
    max_steps: int | None,
    seed: int,
) -> list[list[list[int]]]:
    """The training as steps, each a list of batches, each a list of pairs' numbers.

    Args:
        lengths: Tokens of each pair.
        batch_size: Pairs a batch.
        batches_a_step: Processes times gradient accumulation; an epoch's last step may have fewer.
        epochs: How often each pair is seen.
        max_steps: The most steps.
        seed: The experiment's.
    """
    steps = []
    for epoch in range(epochs):
        batches = batches_of_epoch(lengths, batch_size, seed, epoch)
        steps += [batches[first : first + batches_a_step] for first in range(0, len(batches), batches_a_step)]
        if max_steps is not None and len(steps) >= max_steps:
            return steps[:max_steps]
    return steps


def learning_rate(
    step: int, steps: int, *, peak: float, warmup: float, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """The learning rate of a step.

    Over the first ⌈warmup · steps⌉ steps it rises in equal parts to the peak, so that no step is taken at zero; then it
    falls to zero, which the step behind the last one would have.

    Args:
        step: From 0.
        steps: Of the whole training.
        peak: The greatest learning rate.
        warmup: Share of the steps that rise.
        schedule: How it falls.

    With 10 steps, two of them rising: 0.5 and 1.0 of the peak, then cos from 1 to 0 over eight steps, half-way at the
    fourth of them:

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
