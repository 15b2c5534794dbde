"""Spatial rewards: how well the boxes or points of an answer fit the annotated objects, as a number from 0 to 1.

A reward is a function ``reward(answer, truth) -> float`` that needs neither PyTorch nor a GPU. `Truth` says what a
sample's answer should place and how it is read; it travels with the sample as JSON. `REWARDS` has the rewards by name,
`get_reward` also reads thresholds and weighted sums. Each trainer has a thin adapter, such as `spr.rewards.trl`.
"""

from __future__ import annotations

from spr.rewards.answer import Answer, read_answer
from spr.rewards.combine import REWARDS, Named, Schedule, WeightedSum, get_reward
from spr.rewards.matching import Assignment, assign
from spr.rewards.rewards import Measures, Reward, measure, rejects
from spr.rewards.truth import LABELS, Labels, Truth, TruthObject

__all__ = [
    "LABELS",
    "REWARDS",
    "Answer",
    "Assignment",
    "Labels",
    "Measures",
    "Named",
    "Reward",
    "Schedule",
    "Truth",
    "TruthObject",
    "WeightedSum",
    "assign",
    "get_reward",
    "measure",
    "read_answer",
    "rejects",
]
