"""Registries of the backends that a config can name: describers, scorers, detectors and losses.

Entries are imported only when they are used, so that a config is validated without importing PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import AfterValidator

from spr.core.errors import nearest
from spr.core.registry import Registry

DESCRIBERS: Registry[Callable[..., Any]] = Registry(
    "describer backend",
    "spr.describers",
    {
        "hf": "spr.models.describers.hf:HfDescriber",
        "openai": "spr.models.describers.openai:OpenAiDescriber",
        "vllm": "spr.models.describers.vllm:VllmDescriber",
        "fake": "spr.models.fakes:FakeDescriber",
    },
)
"""Values of `describer.backend`: callables from a `DescriberConfig` to a `spr.models.protocols.Describer`."""

SCORERS: Registry[Callable[..., Any]] = Registry(
    "scorer backend",
    "spr.scorers",
    {"clip": "spr.models.scorers.clip:ClipScorer", "fake": "spr.models.fakes:FakeScorer"},
)
"""Values of `scorer.backend`: callables from a `ScorerConfig` to a `spr.models.protocols.ImageTextScorer`."""

DETECTORS: Registry[Callable[..., Any]] = Registry(
    "detector backend",
    "spr.detectors",
    {
        "grounding_dino": "spr.models.detectors.grounding_dino:GroundingDinoDetector",
        "owlv2": "spr.models.detectors.owl:OwlDetector",
        "fake": "spr.models.fakes:FakeDetector",
    },
)
"""Values of `detector.backend`: callables from a `DetectorConfig` to a `spr.models.protocols.Detector`."""

LOSSES: Registry[Callable[..., Any]] = Registry(
    "loss",
    "spr.losses",
    {name: f"spr.training.loss:{name}" for name in ("dpo", "ipo", "bco_pair", "sft")},
)
"""Values of `training.loss_type`: functions like those of `spr.training.loss`."""

MIXTURES = {"mpo": {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}}
"""Values of `training.loss_type` that stand for a weighted sum of losses. MPO: Wang et al., 2024 (arXiv 2411.10442)."""


def name_in(registry: Registry[Callable[..., Any]], *more: str) -> AfterValidator:
    """A validator for a field that names an entry of the registry, or one of ``more``."""

    def check(value: str) -> str:
        names = [*registry, *more]
        if value not in names:
            raise ValueError(f"there is no {registry.kind} `{value}`; {nearest(value, names)}")
        return value

    return AfterValidator(check)
