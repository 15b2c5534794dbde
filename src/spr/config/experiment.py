"""The config of an experiment, with all of its sections."""

from __future__ import annotations

from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from spr.config.annotations import AnnotationsConfig
from spr.config.describer import DescriberConfig
from spr.config.detector import DetectorConfig
from spr.config.engine import Engine, EngineConfig
from spr.config.pairing import PairingConfig
from spr.config.prompts import PromptsConfig
from spr.config.regions import RegionsConfig
from spr.config.scorer import ScorerConfig
from spr.config.scoring import ScoringConfig
from spr.config.section import Int, Section
from spr.config.training import TrainingConfig
from spr.core import FORMAT_VERSION


class _File(Section):
    """A config that can be written to a file."""

    def to_yaml(self) -> str:
        """The config as YAML: the format version, then all fields."""
        content: dict[str, Any] = {"format_version": FORMAT_VERSION, **self.model_dump(mode="json")}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


class Config(_File):
    """The config of an experiment. `spr run` writes it to `RUN/config.yaml`, including all defaults and overrides."""

    seed: Int = Field(default=0, ge=0, lt=2**63)
    """Seed of all random choices. Each choice is a hash of the seed and a record's id."""
    annotations: AnnotationsConfig
    regions: RegionsConfig = RegionsConfig()
    describer: DescriberConfig | None = None
    """Null ends the run after the region queries."""
    prompts: PromptsConfig = PromptsConfig()
    scorer: ScorerConfig = ScorerConfig()
    detector: DetectorConfig = DetectorConfig()
    scoring: ScoringConfig = ScoringConfig()
    pairing: PairingConfig = PairingConfig()
    training: TrainingConfig = TrainingConfig()
    shard_rows: Int = Field(default=512, ge=1)
    """Rows per shard. Affects the layout of the files but not the rows."""
    engine: Engine = EngineConfig()

    @model_validator(mode="after")
    def _fits_its_detector(self) -> Self:
        if self.annotations.crowds is None:
            # With neither a detector section nor a describer, the run ends after the region queries, and the default
            # detector is not loaded for them.
            configured = self.describer is not None or "detector" in self.model_fields_set
            crowds = "detect" if configured and self.detector.backend != "none" else "drop"
            object.__setattr__(self, "annotations", self.annotations.model_copy(update={"crowds": crowds}))
        if self.detector.backend == "none":
            fix = "set detector.backend, such as grounding_dino, or"
            if self.annotations.crowds == "detect":
                raise ValueError(f"annotations.crowds: detect needs a detector; {fix} annotations.crowds: drop")
            if self.scoring.ground_truth == "annotations+detections":
                raise ValueError(
                    "scoring.ground_truth: annotations+detections needs a detector; "
                    f"{fix} scoring.ground_truth: annotations"
                )
        return self

    def is_runtime_field(self, key: str) -> bool:
        """Whether a dotted field does not affect any row, so that a run can be resumed after it was changed.

        >>> Config.model_validate({"annotations": {"path": "a", "images": "b"}}).is_runtime_field("scorer.batch_size")
        True
        """
        section, _, field = key.partition(".")
        return field in getattr(getattr(self, section, None), "runtime_fields", ())


class TrainingPart(_File):
    """The part of a config that training on pairs from another source needs."""

    seed: Int = Field(default=0, ge=0, lt=2**63)
    """Seed of all random choices."""
    describer: DescriberConfig | None = None
    """The model to train."""
    training: TrainingConfig = TrainingConfig()
