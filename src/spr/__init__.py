"""Spatial Preference Rewarding (SPR): teach multimodal LLMs to place what they describe.

The names in `__all__` are the public API. They are imported when they are first used, so that ``import spr`` is fast
and works without PyTorch. ``docs/api.md`` describes them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spr.annotations import convert_annotations, read_coco
    from spr.config import Config, load_config
    from spr.config.annotations import AnnotationsConfig
    from spr.config.describer import DescriberConfig, SamplesConfig
    from spr.config.detector import DetectorConfig
    from spr.config.pairing import PairingConfig
    from spr.config.regions import RegionsConfig
    from spr.config.scorer import ScorerConfig
    from spr.config.scoring import ScoringConfig
    from spr.config.training import TrainingConfig
    from spr.core.errors import SprError
    from spr.core.images import ImageSource
    from spr.evaluation.compare import compare
    from spr.evaluation.result import Result
    from spr.evaluation.task import TASKS, evaluate
    from spr.exports.writing import export
    from spr.grounding import DIALECTS, Dialect, GroundedText, convert, get_dialect, parse, render
    from spr.models.registry import load_describer, load_detector, load_scorer
    from spr.pipeline.describe import describe_regions
    from spr.pipeline.objects import load_objects
    from spr.pipeline.pair import make_pairs
    from spr.pipeline.refine import refine
    from spr.pipeline.regions import make_regions
    from spr.pipeline.runner import run
    from spr.pipeline.score import score_candidates
    from spr.records import (
        Candidate,
        ImageObject,
        ImageObjects,
        PreferencePair,
        RegionObject,
        RegionQuery,
        Scores,
        Span,
    )
    from spr.report.contact_sheet import draw_pair
    from spr.report.page import write_report
    from spr.rewards import REWARDS, Truth, get_reward, read_answer
    from spr.runs.reader import Run
    from spr.runs.trainings import run_config
    from spr.workflows.checking.check import check_data
    from spr.workflows.predict import ImageAnswer, draw_answer, predict
    from spr.workflows.rounds import rounds
    from spr.workflows.sweep import sweep
    from spr.workflows.training import train

__version__ = "0.2.0"

_LOCATIONS = {
    "spr.annotations": "convert_annotations read_coco",
    "spr.config": "Config load_config",
    "spr.config.annotations": "AnnotationsConfig",
    "spr.config.describer": "DescriberConfig SamplesConfig",
    "spr.config.detector": "DetectorConfig",
    "spr.config.pairing": "PairingConfig",
    "spr.config.regions": "RegionsConfig",
    "spr.config.scorer": "ScorerConfig",
    "spr.config.scoring": "ScoringConfig",
    "spr.config.training": "TrainingConfig",
    "spr.core.errors": "SprError",
    "spr.core.images": "ImageSource",
    "spr.evaluation.compare": "compare",
    "spr.evaluation.result": "Result",
    "spr.evaluation.task": "TASKS evaluate",
    "spr.exports.writing": "export",
    "spr.grounding": "DIALECTS Dialect GroundedText convert get_dialect parse render",
    "spr.models.registry": "load_describer load_detector load_scorer",
    "spr.pipeline.describe": "describe_regions",
    "spr.pipeline.objects": "load_objects",
    "spr.pipeline.pair": "make_pairs",
    "spr.pipeline.refine": "refine",
    "spr.pipeline.regions": "make_regions",
    "spr.pipeline.runner": "run",
    "spr.pipeline.score": "score_candidates",
    "spr.records": "Candidate ImageObject ImageObjects PreferencePair RegionObject RegionQuery Scores Span",
    "spr.report.contact_sheet": "draw_pair",
    "spr.report.page": "write_report",
    "spr.rewards": "REWARDS Truth get_reward read_answer",
    "spr.runs.reader": "Run",
    "spr.runs.trainings": "run_config",
    "spr.workflows.checking.check": "check_data",
    "spr.workflows.predict": "ImageAnswer draw_answer predict",
    "spr.workflows.rounds": "rounds",
    "spr.workflows.sweep": "sweep",
    "spr.workflows.training": "train",
}
# Name in `spr` → module and name there; "run:train" is `run` under the name `train`.
_WHERE = {
    name.rpartition(":")[2]: (module, name.partition(":")[0])
    for module, names in _LOCATIONS.items()
    for name in names.split()
}

__all__ = [
    "DIALECTS",
    "REWARDS",
    "TASKS",
    "AnnotationsConfig",
    "Candidate",
    "Config",
    "DescriberConfig",
    "DetectorConfig",
    "Dialect",
    "GroundedText",
    "ImageAnswer",
    "ImageObject",
    "ImageObjects",
    "ImageSource",
    "PairingConfig",
    "PreferencePair",
    "RegionObject",
    "RegionQuery",
    "RegionsConfig",
    "Result",
    "Run",
    "SamplesConfig",
    "ScorerConfig",
    "Scores",
    "ScoringConfig",
    "Span",
    "SprError",
    "TrainingConfig",
    "Truth",
    "check_data",
    "compare",
    "convert",
    "convert_annotations",
    "describe_regions",
    "draw_answer",
    "draw_pair",
    "evaluate",
    "export",
    "get_dialect",
    "get_reward",
    "load_config",
    "load_describer",
    "load_detector",
    "load_objects",
    "load_scorer",
    "make_pairs",
    "make_regions",
    "parse",
    "predict",
    "read_answer",
    "read_coco",
    "refine",
    "render",
    "rounds",
    "run",
    "run_config",
    "score_candidates",
    "sweep",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a name of the public API on first use."""
    if name not in _WHERE:
        raise AttributeError(f"module 'spr' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
