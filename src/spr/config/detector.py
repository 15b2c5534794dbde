"""The config section `detector`: the open-vocabulary detector for the localization score and for crowds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from spr.config.backends import DETECTORS, name_in
from spr.config.section import BatchSize, DType, Float, Processes, Section

TEXT_THRESHOLD = 0.25


class DetectorConfig(Section):
    """The open-vocabulary detector for the localization score and for crowds (paper, Sec. 3.2; supplement, Sec. 1)."""

    runtime_fields = frozenset({"batch_size", "device", "num_processes", "num_gpus"})

    backend: Annotated[str, name_in(DETECTORS, "none")] = "grounding_dino"
    """`grounding_dino` (paper), `owlv2` (OWLv2 and OWL-ViT), `fake`, or `none`, which measures the localization score
    with the boxes of the descriptions alone and can't replace crowds."""
    model: str = "IDEA-Research/grounding-dino-base"
    """Model id or folder (the paper does not give the size: our choice)."""
    revision: str | None = None
    """Revision of the model on the Hugging Face Hub."""
    box_threshold: Float = Field(default=0.35, ge=0, le=1)
    """Minimum score of a detection, 0..1 (our choice). OWL models have lower scores and need about 0.1."""
    prompt: Literal["phrases", "text"] = "phrases"
    """What `grounding_dino` is asked for (our choice): `phrases`: the noun phrases of the description, each once, as in
    its training: `a dog . a red cup .`; `text`: the description. `owlv2` is always asked for phrases."""
    text_threshold: Float = Field(default=TEXT_THRESHOLD, ge=0, le=1)
    """With `prompt: text`, the minimum score, 0..1, of the tokens that form a detection's phrase (our choice). With
    `phrases`, a detection belongs to a whole phrase, so another value is an error."""
    batch_size: BatchSize = 16
    """Pairs of image and text per batch; halved if the device runs out of memory. `auto` begins with 16 and doubles
    while the memory of a GPU allows it; on a CPU it stays 16."""
    dtype: DType = "auto"
    """Data type of the weights; `auto` keeps that of the checkpoint."""
    device: str = "auto"
    """Device of the model, such as `cpu` or `cuda:1`; `auto` uses a GPU if there is one."""
    num_processes: Processes = "auto"
    """Processes that load the model; each takes whole shards. `auto`: as many as `num_gpus` allows on the GPUs of the
    machine or cluster, and one where there is no GPU. On CPUs, processes share the threads. Scorer and
    detector share their processes: the smaller number counts."""
    num_gpus: Float = Field(default=0.5, gt=0, le=1)
    """GPUs of each process, 0 < x ≤ 1: processes share a GPU. A process that loads scorer and detector takes both
    shares."""

    @model_validator(mode="after")
    def _has_no_ignored_option(self) -> Self:
        if self.backend == "owlv2" and self.prompt == "text":
            raise ValueError("detector.prompt: text is for grounding_dino: owlv2 is always asked for phrases")
        own = self.backend in ("grounding_dino", "owlv2")  # a detector of another package may use it
        if own and self.prompt == "phrases" and self.text_threshold != TEXT_THRESHOLD:
            raise ValueError("detector.text_threshold has no effect with prompt: phrases; remove it")
        return self
