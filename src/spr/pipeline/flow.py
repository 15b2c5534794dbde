"""Runs the stages of a run through an engine: hands out jobs, takes results, and completes stage by stage.

An engine with one set of processes runs the stages one after another. An overlapping one runs all at once: a shard goes
on to the next stage as soon as it is finished. Either way a shard is computed from the shards of its inputs with the
same number, so its bytes are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from spr.core.errors import RunError, StorageError
from spr.core.progress import Progress
from spr.pipeline.engines.engine import Engine
from spr.pipeline.stage_run import StageRun, StageSummary
from spr.runs.store import ShardEntry

Finished = Callable[[StageRun, StageSummary], None]
"""Called when a stage is complete; it may raise an error that ends the run."""


def run_stages(
    engine: Engine, stages: Iterable[Callable[[], StageRun]], say: Callable[[str], None], finished: Finished
) -> None:
    """Run stages to their end; what is finished when an error or Ctrl-C ends the run is in the manifests.

    ``stages`` make the `StageRun` of each stage, in the order of the data. ``say`` is told what is kept.
    """
    with contextlib.closing(engine):
        if engine.overlapping:
            _Flow(engine, [make() for make in stages], {}, say, finished).run()
            return
        before: dict[str, StageRun] = {}
        for make in stages:
            run = make()
            _Flow(engine, [run], before, say, finished).run()
            before[run.stage.name] = run


class _Flow:
    """Stages that run at the same time, and the complete ones ``before`` them."""

    def __init__(
        self,
        engine: Engine,
        runs: Sequence[StageRun],
        before: Mapping[str, StageRun],
        say: Callable[[str], None],
        finished: Finished,
    ) -> None:
        self.engine, self.say, self.finished = engine, say, finished
        self._open = {run.stage.name: run for run in runs}
        self._number = len(runs)
        self._complete = dict(before)
        self._begun: set[str] = set()
        self._bars = contextlib.ExitStack()
        self._bar: Progress | None = None

    def run(self) -> None:
        """Run all stages to their end."""
        try:
            with self._bars:
                known = {**self._complete, **self._open}
                for run, entries in [(run, list(run.done.values())) for run in known.values()]:
                    self._pass_on(run, entries)
                while self._open:
                    for run in list(self._open.values()):
                        self._advance(run)
                    if any(run.running for run in self._open.values()):
                        for job, entry in self.engine.wait():
                            run = self._open[job.stage.name]
                            self._pass_on(run, run.accept(entry))
                        self._show()
        finally:
            self.engine.close()
            for run in self._open.values():
                with contextlib.suppress(RunError, StorageError):  # the error that ended the run says more
                    run.flush()

    def _advance(self, run: StageRun) -> None:
        """Submit the jobs of a stage for which there is room, or complete it."""
        inputs = run.stage.inputs
        if run.expected is None and inputs and all(name in self._complete for name in inputs):
            run.expected = len(self._complete[inputs[-1]].done)
        if not inputs and not run.is_complete:
            self._begin(run)
        while (run.stage.name not in self._begun or self.engine.has_room(run.stage)) and (
            job := run.next_job()
        ) is not None:
            self._begin(run)
            if run.stage.name not in self._begun:
                self._begun.add(run.stage.name)
                self.engine.begin(run.stage, run.config, run.missing(), self._shown(run))
            self.engine.submit(job)
        if run.is_complete:
            self._end(run)

    def _begin(self, run: StageRun) -> None:
        if not run.begun:
            run.begin(self.say, self.engine.workers)
            if not run.stage.inputs:
                self._pass_on(run, list(run.done.values()))

    def _end(self, run: StageRun) -> None:
        if not run.is_untouched:
            self._begin(run)
        if run.stage.name in self._begun:
            self.engine.end(run.stage)
        if self._number == 1:
            self._bars.close()
        summary = run.finish()
        del self._open[run.stage.name]
        self._complete[run.stage.name] = run
        self.finished(run, summary)

    def _pass_on(self, run: StageRun, entries: Iterable[ShardEntry]) -> None:
        """Give finished shards to the stages that read them."""
        for entry in entries:
            for reader in self._open.values():
                if run.stage.name in reader.stage.inputs:
                    kept = reader.add_input(run.stage.name, entry)
                    if kept is not None:
                        self._pass_on(reader, [kept])

    def _shown(self, run: StageRun) -> Progress:
        """The progress that shows a stage: its own if it runs alone, else one for all."""
        if self._bar is None:
            if self._number == 1:
                done, total = run.work()
                self._bar = Progress(run.stage.name, total, run.counted[1], done=done)
            else:
                names = list(self._open)
                self._bar = Progress(f"{names[0]} to {names[-1]}", unit="shards")
            self._bars.enter_context(self._bar)
        return self._bar

    def _show(self) -> None:
        if self._bar is None:
            return
        if self._number == 1:
            for run in self._open.values():
                self._bar.advance(-run.overcounted)
                run.overcounted = 0
            return
        runs = [*self._complete.values(), *self._open.values()]
        self._bar.set(sum(len(run.done) for run in runs))
        most = max((run.expected or len(run.done) for run in runs), default=0)
        self._bar.total = most * len(runs)
        parts = []
        for run in self._open.values():
            done, total = run.work()
            done += self.engine.in_progress(run.stage)
            if run.running and total:
                parts.append(f"{run.stage.name} {100 * done // total} %")
        self._bar.note = ", ".join(parts)
