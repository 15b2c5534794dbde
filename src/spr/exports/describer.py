"""The describer of a run, and how it writes boxes, also before it has described anything."""

from __future__ import annotations

from spr.config import DescriberConfig
from spr.grounding import Dialect
from spr.models.registry import planned_dialect
from spr.runs.reader import Run


def describer_of(run: Run) -> tuple[str, Dialect | None]:
    """The describer's name, ``model@revision``, and its dialect; ``none`` and None if the run has no describer.

    If there are candidates, they say which model wrote them; otherwise, the config says which one will. Of a describer
    of another package, the dialect is then unknown (None) unless the config gives it.

    Raises:
        ModelError: if the model's config or processor can't be read.
    """
    candidates = run.store("candidates").manifest()
    if candidates is not None and candidates.complete and candidates.rows:
        return run.describer
    config = run.config.describer
    if config is None:
        return "none", None
    return _name(config), planned_dialect(config)


def tokenizer_of(run: Run) -> str | None:
    """The folder or Hub name of the tokenizer of the run's describer; None if it is not a model of transformers."""
    config = run.config.describer
    if config is None or config.model is None or config.backend not in ("hf", "vllm"):
        return None
    from spr.models.loading import model_source

    return str(model_source(config.model))


def _name(config: DescriberConfig) -> str:
    if config.backend == "fake":
        return "fake"
    return f"{config.model}@{config.revision}" if config.revision else str(config.model or config.backend)
