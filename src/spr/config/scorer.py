"""The config section `scorer`: the image-text model of the semantic score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from spr.config.backends import SCORERS, name_in
from spr.config.section import BatchSize, DType, Float, Processes, Section


class ScorerConfig(Section):
    """The image-text model of the semantic score (paper, Sec. 3.2)."""

    runtime_fields = frozenset({"batch_size", "device", "num_processes", "num_gpus"})

    backend: Annotated[str, name_in(SCORERS)] = "clip"
    """`clip`: a CLIP model (paper); `fake`: reproducible, meaningless scores to try the pipeline without weights."""
    model: str = "openai/clip-vit-large-patch14-336"
    """Model id or folder (supplement, Sec. 1)."""
    revision: str | None = None
    """Revision of the model on the Hugging Face Hub."""
    long_text: Literal["pieces", "truncate"] = "pieces"
    """How to embed texts of more than CLIP's 77 tokens: average the embeddings of pieces, or truncate (our choice)."""
    class_token_sees_itself: bool = True
    """Whether, in the local attention for S_local, the class token attends to itself besides the region's patches (our
    choice)."""
    batch_size: BatchSize = 64
    """Images or texts per batch; halved if the device runs out of memory. `auto` begins with 64 and doubles while the
    memory of a GPU allows it; on a CPU it stays 64."""
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
