"""A whole experiment: the config with all of its sections."""

from __future__ import annotations

from typing import Any, Literal

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
from spr.core import FORMAT_VERSION


class _File(Section):
    """What can be written as a config file."""

    def to_yaml(self) -> str:
        """The resolved config as YAML, with the format version first and the fields in their order."""
        content: dict[str, Any] = {"format_version": FORMAT_VERSION, **self.model_dump(mode="json")}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


class Config(_File):
    """A whole experiment. `spr run` writes it, resolved, to `RUN/config.yaml`."""

    seed: Int = Field(default=0, ge=0, lt=2**63)
    """Seed of all random choices, each of which is a hash of the seed and a record's id."""
    annotations: AnnotationsConfig
    regions: RegionsConfig = RegionsConfig()
    describer: DescriberConfig | None = None
    """Without a describer, a run ends with the region queries."""
    prompts: PromptsConfig = PromptsConfig()
    scorer: ScorerConfig = ScorerConfig()
    detector: DetectorConfig = DetectorConfig()
    scoring: ScoringConfig = ScoringConfig()
    pairing: PairingConfig = PairingConfig()
    training: TrainingConfig = TrainingConfig()
    shard_rows: Int = Field(default=512, ge=1)
    """Rows per shard. Changes the layout of the files, never the rows."""
    engine: Literal["local"] = "local"
    """What runs the stages: `local` uses processes of this machine. Never changes the rows."""

    def is_runtime_field(self, key: str) -> bool:
        """Whether a dotted field affects no row, so that a run can be resumed after it has changed.

        >>> Config.model_validate({"annotations": {"path": "a", "images": "b"}}).is_runtime_field("scorer.batch_size")
        True
        """
        section, _, field = key.partition(".")
        return field in getattr(getattr(self, section, None), "runtime_fields", ())


class TrainingPart(_File):
    """The part of a config that training on pairs from elsewhere needs: no annotations."""

    seed: Int = Field(default=0, ge=0, lt=2**63)
    describer: DescriberConfig | None = None
    training: TrainingConfig = TrainingConfig()
