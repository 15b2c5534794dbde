"""A whole experiment: the config with all of its sections."""

from __future__ import annotations

from typing import Literal

import yaml
from pydantic import Field

from spr.config.annotations import AnnotationsConfig
from spr.config.describer import DescriberConfig
from spr.config.detector import DetectorConfig
from spr.config.pairing import PairingConfig
from spr.config.prompts import PromptsConfig
from spr.config.regions import RegionsConfig
from spr.config.scorer import ScorerConfig
from spr.config.scoring import ScoringConfig
from spr.config.section import Int, Section
from spr.config.training import TrainingConfig


class Config(Section):
    """A whole experiment; `spr run` writes it, resolved, to `RUN/config.yaml`."""

    seed: Int = Field(default=0, ge=0, lt=2**63)
    """Every random choice comes from a hash of this and a record's id."""
    annotations: AnnotationsConfig
    regions: RegionsConfig = RegionsConfig()
    describer: DescriberConfig | None = None
    """Without it, a run ends with its regions."""
    prompts: PromptsConfig = PromptsConfig()
    scorer: ScorerConfig = ScorerConfig()
    detector: DetectorConfig = DetectorConfig()
    scoring: ScoringConfig = ScoringConfig()
    pairing: PairingConfig = PairingConfig()
    training: TrainingConfig = TrainingConfig()
    shard_rows: Int = Field(default=512, ge=1)
    """Rows a shard; changes the files' layout, never the rows."""
    engine: Literal["local"] = "local"
    """What runs the stages: `local`, this machine's processes. Never changes the rows."""

    def is_runtime_field(self, key: str) -> bool:
        """Whether a dotted field decides no row: a run goes on when it changes.

        >>> Config.model_validate({"annotations": {"path": "a", "images": "b"}}).is_runtime_field("scorer.batch_size")
        True
        """
        section, _, field = key.partition(".")
        return field in getattr(getattr(self, section, None), "runtime_fields", ())

    def to_yaml(self) -> str:
        """The resolved config as YAML, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class TrainingPart(Section):
    """What training on anyone's pairs needs of a config: no annotations."""

    seed: Int = Field(default=0, ge=0, lt=2**63)
    describer: DescriberConfig | None = None
    training: TrainingConfig = TrainingConfig()

    def to_yaml(self) -> str:
        """The resolved part as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
