"""Reading a run folder: its config, its tables, and its pairs joined with what is known about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spr.config import Config, load_config
from spr.core.documents import parse_json
from spr.core.errors import RunError
from spr.core.paths import as_path, is_dir, is_file
from spr.grounding import Dialect, get_dialect
from spr.grounding.matching import Localization, localization_score
from spr.records import PROMPT_KINDS, PreferencePair, QuestionPair, RegionQuery, Span
from spr.records.schemas import DROPPED, from_table
from spr.runs.folder import check_run_version, not_a_run, read_inputs
from spr.runs.store import STAGE_ORDER, Manifest, StageStore, read_table, stage_folders

Side: TypeAlias = Literal["chosen", "rejected"]
SIDES: tuple[Side, ...] = ("chosen", "rejected")
SCORE_NAMES = ("s_crop", "s_local", "semantic", "localization", "score")
"""The columns of the table `scores` that hold one number per candidate."""
_CANDIDATE_COLUMNS = ["candidate_id", "prompt_kind", "plain_text", "dialect"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known about the chosen or the rejected answer of a pair besides its text.

    ``plain_text`` (the words without coordinates) and ``scores`` (by `SCORE_NAMES`) are those of the candidate, before
    refinement. ``localization`` is S_loc of the answer's own boxes without a detector's, after refinement.
    """

    prompt_kind: str
    plain_text: str
    dialect: str
    scores: Mapping[str, float]
    localization: Localization


@dataclass(frozen=True, slots=True)
class JoinedPair:
    """A preference pair with its region query and its two answers."""

    pair: PreferencePair
    query: RegionQuery
    answers: Mapping[Side, Answer]

    def text(self, side: Side) -> str:
        """The chosen or the rejected answer, as it is trained on."""
        return self.pair.chosen if side == "chosen" else self.pair.rejected

    def spans(self, side: Side) -> tuple[Span, ...]:
        """The phrases of the chosen or the rejected answer, with their boxes."""
        return self.pair.chosen_spans if side == "chosen" else self.pair.rejected_spans

    def with_chosen(self, pair: PreferencePair) -> JoinedPair:
        """The same with the pair after its chosen answer was edited, and S_loc of the edited boxes."""
        own = localization_score(self.query.inside, [box for span in pair.chosen_spans for box in span.boxes])
        return replace(
            self, pair=pair, answers={**self.answers, "chosen": replace(self.answers["chosen"], localization=own)}
        )


@dataclass(frozen=True, slots=True)
class JoinedShard:
    """The pairs of one shard in the order of the run, and the scores of all its candidates, in a pair or not.

    ``scores`` is ``(candidates, 5)`` float32 with the columns of `SCORE_NAMES`, and ``kinds`` ``(candidates,)`` int8
    indices into `spr.records.PROMPT_KINDS`.
    """

    pairs: list[JoinedPair]
    scores: npt.NDArray[np.float32]
    kinds: npt.NDArray[np.int8]


class Run:
    """A run folder, for reading.

    ```python
    pairs = Run("runs/mine").table("pairs").to_pandas()
    ```

    Raises:
        RunError: if the folder is not a run, or is one of SPR 0.1.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = as_path(path)
        if not is_file(self.path / "config.yaml"):
            got = "a folder without config.yaml" if is_dir(self.path) else "no such folder"
            fix = f"create one with `spr run CONFIG --out {path}`"
            raise not_a_run(self.path, fix, got=got)
        check_run_version(self.path)

    @cached_property
    def config(self) -> Config:
        """The resolved config of the run."""
        return load_config(self.path / "config.yaml")

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The lines of ``RUN/log.jsonl`` that can be read."""
        return read_json_lines(self.path / "log.jsonl")[0]

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What identifies the annotations: path, size, sha256; empty if ``RUN/inputs.json`` can't be read."""
        return read_inputs(self.path)

    @property
    def stages(self) -> list[str]:
        """Names of the stages that have started, in the order of the data, including those of other packages."""
        started = [str(event.get("stage")) for event in self.events if event.get("event") == "stage started"]
        order = list(dict.fromkeys([*started, *STAGE_ORDER]))
        present = [folder.name for folder in stage_folders(self.path)]
        return sorted(present, key=lambda name: order.index(name) if name in order else len(order))

    def store(self, stage: str) -> StageStore:
        """The folder of a stage."""
        return StageStore(self.path / stage)

    def finished(self, stage: str) -> Manifest:
        """The manifest of a finished stage; a `RunError` if it has not finished."""
        return self.store(stage).finished()

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A whole table, or some of its columns: ``objects``, …, ``pairs``, ``dropped``, or that of a plug-in's stage.

        Raises:
            RunError: if the stage has not finished or a file is damaged.
        """
        if name == "dropped":
            return read_table(self.path / "dropped.parquet", columns, DROPPED)
        store = self.store(name)
        shards = [store.read(shard, columns) for shard in store.finished().shards]
        if not shards:
            raise RunError(
                f"{store.folder} has no shards", fix=f"run `spr run` with another --out and --reuse {self.path}"
            )
        return pa.concat_tables(shards)

    @property
    def pairs_sha256(self) -> str:
        """SHA-256 that identifies the run's pairs."""
        return self.sha256_of("pairs")

    def sha256_of(self, stage: str) -> str:
        """SHA-256 that identifies the rows of a finished stage."""
        shards = [shard.sha256 for shard in self.finished(stage).shards]
        return hashlib.sha256(json.dumps(shards).encode()).hexdigest()

    @cached_property
    def describer(self) -> tuple[str, Dialect]:
        """The model that wrote the candidates, ``name@revision``, and its dialect; a `RunError` without candidates."""
        candidates = self.store("candidates")
        for shard in candidates.finished().shards:
            if shard.rows:
                table = candidates.read(shard, ["model", "dialect"])
                row: dict[str, str] = table.slice(0, 1).to_pylist()[0]
                return row["model"], get_dialect(row["dialect"])
        raise RunError(
            f"{self.path} has no candidates", fix=f"run `spr run` with another --out and --reuse {self.path}"
        )

    def origins(self, shard: int) -> dict[str, tuple[str | None, str | None]]:
        """License and source URL of a shard's images, by image id; empty if the run was made before they were kept.

        Raises:
            RunError: if the shard's table `objects` is missing or damaged.
        """
        path = self.store("objects").part(shard)
        table = read_table(path)
        if "license" not in table.column_names:
            return {}
        columns = (table[name].to_pylist() for name in ("image_id", "license", "source_url"))
        return {image_id: (license_, url) for image_id, license_, url in zip(*columns, strict=True)}

    def questions(self, shard: int) -> list[QuestionPair]:
        """The pairs of the stage `negatives` in one shard; empty if the run has no such stage (`pairing.negatives`).

        Raises:
            RunError: if the stage has not finished, or a file is damaged.
        """
        if not self.config.pairing.negatives:
            return []
        store = self.store("negatives")
        own = [entry for entry in store.finished().shards if entry.index == shard]
        return [pair for entry in own for pair in from_table(store.read(entry), QuestionPair)]

    def shards(self) -> Iterator[JoinedShard]:
        """The pairs of each shard with their queries, answers and scores; one shard is in memory at a time.

        Raises:
            RunError: if a stage up to `pairs` has not finished, a file is damaged, or the tables don't match.
        """
        stores = [self.store(name) for name in ("regions", "candidates", "scores", "pairs")]
        columns = [None, _CANDIDATE_COLUMNS, ["candidate_id", *SCORE_NAMES], None]
        manifests = [store.finished().shards for store in stores]
        fix = f"run `spr run` with another --out and --reuse {self.path}, which takes over what agrees"
        try:
            for entries in zip(*manifests, strict=True):
                parts = zip(stores, entries, columns, strict=True)
                yield _join(*(store.read(entry, names) for store, entry, names in parts))
        except KeyError as error:
            raise RunError(f"{self.path}: the tables don't match", got=f"no row for {error}", fix=fix) from None
        except ValueError as error:
            raise RunError(f"{self.path}: the tables don't match", got=error, fix=fix) from None


def _join(regions: pa.Table, candidates: pa.Table, scores: pa.Table, pairs: pa.Table) -> JoinedShard:
    values = np.column_stack([scores[name].to_numpy() for name in SCORE_NAMES]).astype(np.float32)
    number_of = {name: number for number, name in enumerate(scores["candidate_id"].to_pylist())}
    kinds = dict(zip(candidates["candidate_id"].to_pylist(), candidates["prompt_kind"].to_pylist(), strict=True))
    in_pair = pa.array({*pairs["chosen_candidate"].to_pylist(), *pairs["rejected_candidate"].to_pylist()}, pa.string())
    rows = candidates.filter(pc.is_in(candidates["candidate_id"], in_pair)).to_pylist()
    row_of = {row["candidate_id"]: row for row in rows}
    in_pairs = regions.filter(pc.is_in(regions["query_id"], pairs["query_id"].combine_chunks()))
    queries = {query.query_id: query for query in from_table(in_pairs, RegionQuery)}

    def answer(pair: PreferencePair, side: Side) -> Answer:
        name = pair.chosen_candidate if side == "chosen" else pair.rejected_candidate
        row = row_of[name]
        named = dict(zip(SCORE_NAMES, map(float, values[number_of[name]]), strict=True))
        boxes = [box for span in getattr(pair, f"{side}_spans") for box in span.boxes]
        own = localization_score(queries[pair.query_id].inside, boxes)
        return Answer(row["prompt_kind"], row["plain_text"], row["dialect"], named, own)

    joined = [
        JoinedPair(pair, queries[pair.query_id], {side: answer(pair, side) for side in SIDES})
        for pair in from_table(pairs, PreferencePair)
    ]
    code_of = {kind: code for code, kind in enumerate(PROMPT_KINDS)}
    codes = np.array([code_of[kinds[name]] for name in number_of], dtype=np.int8)
    return JoinedShard(joined, values, codes)


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects in a log file, and the number of lines that are not one.

    A process that is killed can leave half a line, so unreadable lines are counted instead of raising an error. A
    missing file has no lines.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return [], 0
    events, broken = [], 0
    for line in filter(bytes.strip, lines):
        try:
            event = parse_json(line)
        except ValueError:
            event = None
        if isinstance(event, dict):
            events.append(event)
        else:
            broken += 1
    return events, broken
