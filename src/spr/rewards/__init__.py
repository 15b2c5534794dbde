"""Spatial rewards: how well the boxes or points of an answer fit the annotated objects, as a number from 0 to 1.

A reward is a function ``reward(answer, truth) -> float`` that needs neither PyTorch nor a GPU. `read_answer` reads the
answer from what a model generated, and `REWARDS` holds the rewards by name. Other packages add theirs through the
entry-point group ``spr.rewards``.
"""

from __future__ import annotations

from spr.core.registry import Registry
from spr.rewards.reward import (
    Assignment,
    Reward,
    Truth,
    assign,
    f1,
    iou,
    points,
    precision,
    read_answer,
    recall,
    s_loc,
)

REWARDS: Registry[Reward] = Registry(
    "reward",
    "spr.rewards",
    {"s_loc": s_loc, "recall": recall, "precision": precision, "f1": f1, "iou": iou, "points": points},
)
"""The rewards by name."""

__all__ = [
    "REWARDS",
    "Assignment",
    "Reward",
    "Truth",
    "assign",
    "f1",
    "iou",
    "points",
    "precision",
    "read_answer",
    "recall",
    "s_loc",
]
