"""A stage in a run folder: which of its shards are there, which jobs are missing, and its manifest."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from spr.config import Config
from spr.core.atomic import has_sha256
from spr.core.errors import RunError
from spr.core.progress import MEGABYTE, Progress
from spr.core.reasons import FIXES, NOTEWORTHY, explain
from spr.core.terminal import count_text
from spr.models.registry import local_weights
from spr.pipeline.jobs import Job, to_ipc
from spr.pipeline.reuse import changed_weights
from spr.pipeline.stage import STAGES, Plan, Stage
from spr.runs.folder import append_log
from spr.runs.store import (
    Manifest,
    ShardEntry,
    StageStore,
    count_reasons,
    dropped_columns,
    read_table,
    write_table,
)

_SAVING = 0.05
"""Share of the time that may go into writing the manifest while shards finish; with thousands of shards it is long."""


@dataclass(frozen=True, slots=True)
class StageSummary:
    """The result of a stage; ``seconds`` is how long it ran this time, 0 if it was ``done_before``."""

    name: str
    unit: str  # what its rows are, in the plural
    rows: int
    dropped: dict[str, int]  # by "<kind>: <reason>"
    counts: dict[str, int]  # what a first stage has read, and notes
    examples: dict[str, str]  # a case of a note or of a drop reason
    seconds: float
    done_before: bool
    totals: dict[str, int] = field(default_factory=dict)  # how many items of a kind there were before the drops
    hint: str | None = None  # what to check, if it ran this time
    reuse: str | None = None  # whether it was taken over from another run, or why not

    @property
    def advice(self) -> str | None:
        """What to change, if more than half of the items were dropped for one reason.

        For objects that is any reason, otherwise one of `spr.core.reasons.NOTEWORTHY`.
        """
        notes = []
        for name, count in self.dropped.items():
            kind, _, reason = name.partition(": ")
            same_kind = sum(number for other, number in self.dropped.items() if other.startswith(f"{kind}: "))
            total = self.totals.get(kind, self.rows + same_kind)
            is_object = kind == "object" and not reason.startswith("detection_")
            if 2 * count > total and (is_object or reason in NOTEWORTHY):
                units = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
                note = f"{count:,} of {total:,} {units} were dropped as {reason} ({explain(self.name, reason)})"
                notes.append(f"{note}: {FIXES[reason]}" if reason in FIXES else note)
        return "; ".join(notes) or None


class StageRun:
    """A stage that computes each shard from the shards of its inputs with the same number.

    ``out`` is the run folder, which is locked; ``fingerprint`` is a hash of everything that determines the rows.

    Raises:
        RunError: if the folder has rows with another fingerprint.
    """

    def __init__(self, stage: Stage, config: Config, out: Path, fingerprint: str) -> None:
        self.stage, self.config, self.out, self.store = stage, config, out, StageStore(out / stage.name)
        empty = Manifest(stage.name, fingerprint, inputs=stage.inputs, sections=stage.depends_on(config))
        self.manifest = self.store.manifest() or empty
        if self.manifest.fingerprint != fingerprint:
            fix = f"choose another --out with --reuse {out}, which keeps what agrees, or delete {self.store.folder}"
            what = f"{self.store.folder} was made by another version of SPR or from other rows"
            raise RunError(what, fix=fix)
        self.store.sweep(self.manifest)
        with Progress(f"{stage.name}: checking", len(self.manifest.shards), "shards"):
            self._kept = {shard.index: shard for shard in self.store.valid_shards(self.manifest)}
        self._was_complete = self.manifest.complete
        self._listed = len(self.manifest.shards)
        self._started = time.monotonic()
        self.begun = False
        """Whether `begin` was called."""
        self._saved, self._cost = -float("inf"), 0.0
        self._unsaved: list[ShardEntry] = []
        self._entries: dict[int, dict[str, ShardEntry]] = {}
        self._ready: list[int] = []
        self._inputs = self._inputs_done = 0  # rows
        self.expected: int | None = None
        """The number of shards; None until all inputs are complete."""
        self.done: dict[int, ShardEntry] = {}
        """The finished shards by number, computed before or now."""
        self.running = 0
        """The number of submitted jobs."""
        self.overcounted = 0
        """How much more the progress has counted than it should; whoever shows the progress takes it back."""

    @property
    def counted(self) -> tuple[int, str]:
        """What progress counts per input row, and what it is."""
        return self.stage.work(self.config) if self.stage.work is not None else (1, STAGES[self.stage.inputs[-1]].unit)

    def add_input(self, name: str, entry: ShardEntry) -> ShardEntry | None:
        """Take note of a finished shard of an input; returns the shard computed from it, if that is kept."""
        own = self._entries.setdefault(entry.index, {})
        own[name] = entry
        if name == self.stage.inputs[-1]:
            self._inputs += entry.rows
        if len(own) < len(self.stage.inputs):
            return None
        kept = self._kept.get(entry.index)
        if kept is not None and kept.source == self._source(entry.index):
            self._finish_shard(kept)
            return kept
        heapq.heappush(self._ready, entry.index)
        return None

    def missing(self) -> int | None:
        """The number of jobs to come, including those that are running; None if it is not known yet."""
        return None if self.expected is None else self.expected - len(self.done)

    @property
    def is_complete(self) -> bool:
        """Whether all shards are finished."""
        return self.expected is not None and len(self.done) == self.expected

    @property
    def is_untouched(self) -> bool:
        """Whether everything was there before, in a complete stage."""
        return self._was_complete and not self.begun and len(self.done) == self._listed

    def work(self) -> tuple[int, int]:
        """How much of the work that is known is done, and how much there is, in what `counted` counts."""
        per_row = self.counted[0]
        return self._inputs_done * per_row, self._inputs * per_row

    def begin(self, say: Callable[[str], None], workers: int | None) -> None:
        """Prepare the manifest for new shards; ``say`` is told what is kept.

        Raises:
            RunError: if shards are kept that other weights made.
        """
        weights = local_weights(self.config, self.stage.models_for(self.config))
        kept, manifest, folder = self._may_keep(), self.manifest, self.store.folder
        if kept and manifest.weights and (changed := changed_weights(manifest, weights)) is not None:
            fix = f"restore the weights, or choose another --out with --reuse {self.out}, or delete {folder}"
            raise RunError(f"{folder} was begun with other weights", got=changed, fix=fix)
        self.begun, self._started = True, time.monotonic()
        manifest.shards, manifest.complete, manifest.weights = kept, False, weights
        append_log(self.out, "stage started", stage=self.stage.name, shards_kept=len(kept), workers=workers)
        if kept:
            of = f" of {self.expected:,}" if self.expected is not None else ""
            say(f"{self.stage.name}: keeps {len(kept):,}{of} shards, {count_text(manifest.rows, self.stage.unit)}")

    def _may_keep(self) -> list[ShardEntry]:
        """The shards that are there and may be right; those whose inputs are not finished yet are among them."""
        for index in list(self._kept):
            known = len(self._entries.get(index, ())) == len(self.stage.inputs)
            if (known and index not in self.done) or (self.expected is not None and index >= self.expected):
                del self._kept[index]
        return [self._kept[index] for index in sorted(self._kept)]

    def next_job(self) -> Job | None:
        """The next job to submit, or None if there is none at present."""
        if not self._ready:
            return None
        index = heapq.heappop(self._ready)
        self.running += 1
        entries = self._entries[index]
        rows = entries[self.stage.inputs[-1]].rows
        sources = {name: StageStore(self.out / name).part(index) for name in self.stage.inputs}
        work = self.counted[0] * rows
        return Job(self.stage, self.config, self.store.folder, index, sources, rows, work, self._source(index))

    def _source(self, index: int) -> str:
        return "+".join(self._entries[index][name].sha256 for name in self.stage.inputs)

    def accept(self, entry: ShardEntry) -> list[ShardEntry]:
        """Take the result of a job; returns the shards that are finished because of it."""
        self.running -= 1
        self._keep(entry)
        return [entry]

    def _finish_shard(self, entry: ShardEntry) -> None:
        self.done[entry.index] = entry
        self._inputs_done += entry.inputs

    def _keep(self, entry: ShardEntry) -> None:
        self._finish_shard(entry)
        self._kept[entry.index] = entry
        self._unsaved.append(entry)
        now = time.monotonic()
        if now - self._saved >= self._cost / _SAVING:
            self.flush()
            self._saved = time.monotonic()
            self._cost = self._saved - now

    def flush(self) -> None:
        """Write the manifest, if shards have finished since it was written."""
        if self._unsaved:
            self.manifest.shards = self._may_keep()
            self.store.save(self.manifest)
            for entry in self._unsaved:
                self.store.unfinished(entry.index).unlink(missing_ok=True)
            self._unsaved.clear()

    def finish(self) -> StageSummary:
        """Complete the manifest and return the summary; nothing is written if everything was there before."""
        if self.is_untouched:
            return self._summary(0.0, done_before=True)
        manifest = self.manifest
        manifest.shards = self._may_keep()
        self.store.sweep(manifest)
        self.store.delete_unfinished()
        manifest.complete = True
        self.store.save(manifest)
        self._unsaved.clear()
        summary = self._summary(time.monotonic() - self._started)
        if self.stage.hint is not None:
            summary = replace(summary, hint=self.stage.hint(self.store, manifest.shards))
        details = {"rows": summary.rows, "dropped": summary.dropped, "seconds": summary.seconds}
        append_log(self.out, "stage finished", stage=self.stage.name, **details)
        return summary

    def _summary(self, seconds: float, *, done_before: bool = False) -> StageSummary:
        manifest = self.manifest
        counts = {**manifest.source.get("counts", {}), **manifest.notes}
        told = manifest.rows, manifest.dropped, counts, manifest.examples
        totals = manifest.source.get("totals", {})
        return StageSummary(self.stage.name, self.stage.unit, *told, seconds, done_before, totals)


class FirstStageRun(StageRun):
    """A stage that reads the annotations: its shards are made in order until there are enough rows."""

    def __init__(self, stage: Stage, config: Config, out: Path, fingerprint: str) -> None:
        super().__init__(stage, config, out, fingerprint)
        self._plan: Plan | None = None
        self._limit = self._start = self._used = self._rows = 0
        self._results: dict[int, ShardEntry] = {}
        self._last: Job | None = None
        self._closing = self._ended = False
        if self._was_complete and len(self._kept) == self._listed and self._source_drops_valid():
            self.done, self.expected = dict(self._kept), self._listed

    def _source_drops_valid(self) -> bool:
        expected = self.manifest.source.get("dropped_sha256")
        return expected is None or has_sha256(self.store.source_drops, expected)

    @property
    def counted(self) -> tuple[int, str]:
        """Progress counts input rows, and takes back those that were dropped."""
        return 1, self.stage.unit

    def _may_keep(self) -> list[ShardEntry]:
        return [self._kept[index] for index in sorted(self._kept)]

    def begin(self, say: Callable[[str], None], workers: int | None) -> None:
        """Read the annotations and keep the shards up to the first that is missing."""
        super().begin(say, workers)
        if self.stage.plan is None:
            raise ValueError(f"stage {self.stage.name} reads no annotations")
        path = self.config.annotations.json_path
        with Progress(f"{self.stage.name}: reading {path.name}", path.stat().st_size // MEGABYTE, "MB") as progress:
            self._plan = plan = self.stage.plan(self.config, progress)
        # Which rows of a shard count depends on the shards before it, so those after a gap are computed again.
        self.done = {number: shard for number, shard in enumerate(self.manifest.shards) if shard.index == number}
        self._kept = dict(self.done)
        self.manifest.shards = list(self.done.values())
        total, size = len(plan.ids), self.config.shard_rows
        self._used, self._rows = sum(shard.inputs for shard in self.done.values()), self.manifest.rows
        self._limit = total if plan.limit is None else min(plan.limit, total)
        self._start = len(self.done) * size
        # A shortened shard is always the last one, also if the run was killed right after it.
        if self._rows >= self._limit or self._used % size != 0 or self._used >= total:
            self._end()

    def work(self) -> tuple[int, int]:
        """The number of rows, and of rows that are wanted."""
        return self._rows, self._limit

    def next_job(self) -> Job | None:
        """The next job: the shortened last shard, or the next rows."""
        job, self._last = self._last, None
        if job is None:
            if self._plan is None or self._ended or self._closing or self._start >= len(self._plan.ids):
                return None
            job = self._job(self._start, min(self.config.shard_rows, len(self._plan.ids) - self._start))
            self._start += self.config.shard_rows
        self.running += 1
        return job

    def missing(self) -> int | None:
        """The most jobs that may come; fewer if there are enough rows before."""
        if self._plan is None or self._ended:
            return super().missing()
        return self.running + -(-max(0, len(self._plan.ids) - self._start) // self.config.shard_rows)

    def _job(self, start: int, inputs: int) -> Job:
        if self._plan is None:
            raise ValueError("the plan is made first")
        rows = {"source": to_ipc(self._plan.rows(start, start + inputs))}
        index = start // self.config.shard_rows
        return Job(self.stage, self.config, self.store.folder, index, rows, inputs, inputs)

    def accept(self, entry: ShardEntry) -> list[ShardEntry]:
        """Take the result of a job; returns the shards that are finished because of it, in order."""
        self.running -= 1
        self._results[entry.index] = entry
        finished = []
        while not self._ended and (due := self._results.pop(len(self.done), None)) is not None:
            if (inputs := self._enough(due)) < due.inputs:
                # The shard is made again from the inputs up to the one that gave the last of the missing rows.
                self._last, self._closing = self._job(self._used, inputs), True
                self.overcounted += due.inputs
                break
            self.overcounted += due.inputs - due.rows  # dropped rows don't count towards the limit
            self._used += due.inputs
            self._rows += due.rows
            self._keep(due)
            finished.append(due)
            if self._plan is None or self._rows >= self._limit or self._used >= len(self._plan.ids):
                self._end()
        return finished

    def _enough(self, entry: ShardEntry) -> int:
        """The number of a shard's inputs that are needed to reach the limit, or all."""
        missing = self._limit - self._rows
        if self._plan is None or entry.rows < missing:
            return entry.inputs
        last = read_table(self.store.part(entry.index), ["image_id"])["image_id"][missing - 1]
        return int(pc.index(self._plan.ids.slice(self._used), last).as_py()) + 1

    def _end(self) -> None:
        self._ended, self.expected = True, len(self.done)

    def finish(self) -> StageSummary:
        """Write what was dropped before sharding, complete the manifest and return the summary."""
        if self._plan is not None:
            plan, used = self._plan, self._used
            names = plan.file_names.slice(used)
            not_sampled = dropped_columns(self.stage.name, "image", plan.ids.slice(used), "not_sampled", names)
            dropped = pa.concat_tables([plan.dropped, not_sampled])
            self.manifest.source = {
                "counts": plan.counts,
                "totals": plan.totals,
                "dropped": count_reasons(dropped),
                "dropped_sha256": write_table(self.store.source_drops, dropped),
            }
            self._plan = None  # its memory is needed by the next stages
        return super().finish()
