"""The backends that a config can name: describers, scorers, detectors and losses.

They are known here by name only, so that a config is checked without importing PyTorch. An entry of the first three is
a callable from its config section to a model; a loss is a function as `spr.training.loss` describes it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from spr.core.registry import Registry

DESCRIBERS: Registry[Callable[..., Any]] = Registry(
    "describer backend",
    "spr.describers",
    {
        "hf": "spr.models.describers.hf:HfDescriber",
        "openai": "spr.models.describers.openai:OpenAiDescriber",
        "fake": "spr.models.fakes:FakeDescriber",
    },
)
"""`describer.backend`: callables from a `DescriberConfig` to a `spr.models.protocols.Describer`."""

SCORERS: Registry[Callable[..., Any]] = Registry(
    "scorer backend",
    "spr.scorers",
    {"clip": "spr.models.scorers.clip:ClipScorer", "fake": "spr.models.fakes:FakeScorer"},
)
"""`scorer.backend`: callables from a `ScorerConfig` to a `spr.models.protocols.ImageTextScorer`."""

DETECTORS: Registry[Callable[..., Any]] = Registry(
    "detector backend",
    "spr.detectors",
    {
        "grounding_dino": "spr.models.detectors.grounding_dino:GroundingDinoDetector",
        "owlv2": "spr.models.detectors.owl:OwlDetector",
        "fake": "spr.models.fakes:FakeDetector",
    },
)
"""`detector.backend`: callables from a `DetectorConfig` to a `spr.models.protocols.Detector`."""

LOSSES: Registry[Callable[..., Any]] = Registry(
    "loss",
    "spr.losses",
    {"dpo": "spr.training.loss:dpo", "ipo": "spr.training.loss:ipo", "sft": "spr.training.loss:sft"},
)
"""`training.loss_type`: the losses of `spr.training.loss`."""


def check_backend(value: str, registry: Registry[Callable[..., Any]], *more: str) -> str:
    """Return the name of a backend, or raise `ValueError` for pydantic to report if the registry lacks it.

    Args:
        value: The name.
        registry: One of the registries above.
        *more: Other names that are allowed, for the message.
    """
    if value not in registry:
        names = [*registry, *more]
        near = difflib.get_close_matches(value, names, n=1)
        raise ValueError(
            f"there is no {registry.kind} `{value}`"
            + (f"; did you mean `{near[0]}`?" if near else f"; use one of: {', '.join(names)}")
        )
    return value
