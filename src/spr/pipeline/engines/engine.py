"""What an engine does: it runs jobs, in any order, in whatever processes it has."""

from __future__ import annotations

from typing import Protocol

from spr.config import Config
from spr.core.progress import Progress
from spr.pipeline.jobs import Job
from spr.pipeline.stage import Stage
from spr.runs.store import ShardEntry


class Engine(Protocol):
    """Runs jobs of stages that were begun. What a job computes does not depend on where and when it runs.

    Attributes:
        overlapping: Whether several stages run at the same time, so that a finished shard goes on to the next stage.
        workers: The number of processes for stages without models, as it was asked for, for the log.
    """

    overlapping: bool
    workers: int | None

    def begin(self, stage: Stage, config: Config, at_most: int | None, progress: Progress) -> None:
        """Prepare for the jobs of a stage, ``at_most`` so many if that is known; ``progress`` shows them."""

    def has_room(self, stage: Stage) -> bool:
        """Whether another job of the stage may be submitted now."""

    def submit(self, job: Job) -> None:
        """Take a job on."""

    def wait(self) -> list[tuple[Job, ShardEntry]]:
        """Wait until jobs have finished, and return them with their results; none after some time without any.

        Raises:
            RunError: if the processes for a job died. Errors of the job itself are raised as they are.
        """

    def in_progress(self, stage: Stage) -> int:
        """What the running jobs of a stage have counted, if the engine overlaps stages; else 0."""

    def end(self, stage: Stage) -> None:
        """Drop the jobs of a stage that have not finished, wait for those that run, and free what it used."""

    def close(self) -> None:
        """Stop all work at once; shards that are not finished are not written."""
