"""The config of an experiment, with one module per section, and the presets that ship with SPR."""

from spr.config.annotations import AnnotationsConfig
from spr.config.describer import DescriberConfig, SamplesConfig
from spr.config.detector import DetectorConfig
from spr.config.engine import EngineConfig
from spr.config.experiment import Config, TrainingPart
from spr.config.loading import (
    PRESETS,
    apply_overrides,
    changed_fields,
    find_config,
    load_config,
    load_training,
    make_config,
    make_section,
    presets,
    read_section,
)
from spr.config.pairing import PairingConfig
from spr.config.prompts import PromptsConfig
from spr.config.regions import RegionsConfig
from spr.config.scorer import ScorerConfig
from spr.config.scoring import ScoringConfig
from spr.config.section import DType, Float, Int, Section
from spr.config.training import LoraSection, TrainingConfig

__all__ = [
    "PRESETS",
    "AnnotationsConfig",
    "Config",
    "DType",
    "DescriberConfig",
    "DetectorConfig",
    "EngineConfig",
    "Float",
    "Int",
    "LoraSection",
    "PairingConfig",
    "PromptsConfig",
    "RegionsConfig",
    "SamplesConfig",
    "ScorerConfig",
    "ScoringConfig",
    "Section",
    "TrainingConfig",
    "TrainingPart",
    "apply_overrides",
    "changed_fields",
    "find_config",
    "load_config",
    "load_training",
    "make_config",
    "make_section",
    "presets",
    "read_section",
]
