"""How many processes load the models of a stage, and which GPU and how many threads each of them has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from spr.config import Config, DescriberConfig, DetectorConfig, ScorerConfig
from spr.config.backends import DESCRIBERS, DETECTORS, SCORERS
from spr.models.registry import WITHOUT_GPU
from spr.pipeline.stage import Stage

_GPUS = "CUDA_VISIBLE_DEVICES"
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a stage's models need.

    Attributes:
        processes: The number of processes that the config asks for; None for one on each GPU, or share of a GPU.
        gpus: GPUs of each process; 0 if the models use none.
        assigned: Whether each process is given its GPU: not if the config names a device.
    """

    processes: int | None
    gpus: float
    assigned: bool

    def processes_on(self, gpus: int) -> int:
        """The number of processes on a machine or cluster with so many GPUs; at least 1."""
        if self.processes is not None:
            return self.processes
        if not self.gpus or not self.assigned:
            return 1
        each = int(1 / self.gpus) if self.gpus < 1 else 0
        return max(1, gpus * each if each else gpus // int(self.gpus))


def needs_of(stage: Stage, config: Config) -> Needs | None:
    """What the models of a stage need; None if it loads none."""
    sections: list[DescriberConfig | ScorerConfig | DetectorConfig] = [
        section for name in stage.models_for(config) if (section := getattr(config, name)) is not None
    ]
    sections = [section for section in sections if section.backend != "none"]
    if not sections:
        return None
    numbers = [section.num_processes for section in sections if section.num_processes != "auto"]
    own = [s for s in sections if s.backend not in WITHOUT_GPU and not s.device.startswith("cpu")]
    gpus = sum(section.num_gpus for section in own)
    if gpus > 1:
        gpus = float(-(-gpus // 1))  # Ray and CUDA give fractions of one GPU only
    # A device map without a number of GPUs spreads the model over all of them.
    spread = any(getattr(s, "device_map", None) is not None and s.num_gpus <= 1 for s in own)
    assigned = bool(own) and not spread and all(section.device == "auto" for section in own)
    return Needs(min(numbers) if numbers else None, gpus, assigned)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them; imports PyTorch."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(_GPUS, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def environments(needs: Needs, processes: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """The environment variables of each process: its GPUs, and its share of the threads.

    ``OMP_NUM_THREADS`` is left as it is if it is set.

    >>> environments(Needs(None, 0.5, True), 3, ["0", "1"])[2]["CUDA_VISIBLE_DEVICES"]
    '1'
    """
    own: list[dict[str, str]] = []
    for number in range(processes):
        variables = {} if _THREADS in os.environ else {_THREADS: str(threads_each(processes))}
        if gpus and needs.gpus and needs.assigned:
            each, sharing = max(1, int(needs.gpus)), max(1, int(1 / needs.gpus))
            first = number // sharing * each
            variables[_GPUS] = ",".join(gpus[(first + k) % len(gpus)] for k in range(min(each, len(gpus))))
        own.append(variables)
    return own


def threads_each(processes: int) -> int:
    """The threads of each of several processes that share this machine's cores; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def backend_modules(config: Config) -> list[str]:
    """The modules of the config's backends that belong to this package, for processes that import them ahead of work.

    >>> backend_modules(Config.model_validate({"annotations": {"path": "a.json", "images": "."}}))
    ['spr.models.scorers.clip', 'spr.models.detectors.grounding_dino']
    """
    sections = (DESCRIBERS, config.describer), (SCORERS, config.scorer), (DETECTORS, config.detector)
    modules = [registry.module_of(section.backend) for registry, section in sections if section is not None]
    return [module for module in modules if module is not None]
