"""The run that is exported: its pairs shard by shard, with their scores, and what it says of itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spr.config import Config, load_config
from spr.core.errors import InputError, RunError
from spr.grounding import Dialect, get_dialect
from spr.records import Box, PreferencePair
from spr.records.schemas import from_table
from spr.runs.folder import check_run_version
from spr.runs.store import Manifest, StageStore, read_table

_STAGES = ("objects", "regions", "candidates", "scores", "pairs")


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard's pairs, with what the tables beside them say.

    Attributes:
        pairs: The pairs.
        semantic, localization: S_sem and S_loc of all its candidates, float32 ``(candidates,)``.
        located: S_loc by candidate id.
        inside: The boxes of the objects inside each query's region, by query id.
    """

    pairs: list[PreferencePair]
    semantic: npt.NDArray[np.float32]
    localization: npt.NDArray[np.float32]
    located: Mapping[str, float]
    inside: Mapping[str, list[Box]]


class RunSource:
    """A run folder with finished pairs.

    Args:
        run: The folder.

    Raises:
        InputError: if it is no run.
        RunError: if its pairs have not finished, or a file is damaged.
    """

    def __init__(self, run: Path) -> None:
        if not (run / "config.yaml").is_file():
            got = "no such folder" if not run.is_dir() else "a folder without config.yaml"
            raise InputError(f"{run} is no run", got=got, fix="give a folder that `spr run` has made")
        check_run_version(run)
        self.run = run
        self.config: Config = load_config(run / "config.yaml")
        self.manifests: dict[str, Manifest] = {name: StageStore(run / name).finished() for name in _STAGES}
        if not self.manifests["pairs"].rows:
            raise RunError(f"{run} has no pairs", fix=f"spr show {run} says what they were dropped for")
        self.describer, self.dialect = self._describer()

    @property
    def total(self) -> int:
        """How many pairs there are."""
        return self.manifests["pairs"].rows

    @property
    def pairs_hash(self) -> str:
        """Sha256 of what identifies the pairs."""
        shards = [shard.sha256 for shard in self.manifests["pairs"].shards]
        return hashlib.sha256(json.dumps(shards).encode()).hexdigest()

    @property
    def annotations_hash(self) -> str | None:
        """Sha256 of the annotations, as the run noted it."""
        try:
            known = json.loads((self.run / "inputs.json").read_text(encoding="utf-8"))
            return str(known["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def shards(self) -> Iterator[Shard]:
        """The shards in order, one in memory at a time."""
        for entry in self.manifests["pairs"].shards:
            tables = {
                name: read_table(StageStore(self.run / name).part(entry.index))
                for name in ("regions", "scores", "pairs")
            }
            scores = tables["scores"]
            localization = scores["localization"].to_numpy()
            ids = scores["candidate_id"].to_pylist()
            regions = tables["regions"].select(["query_id", "objects"]).to_pylist()
            yield Shard(
                from_table(tables["pairs"], PreferencePair),
                scores["semantic"].to_numpy(),
                localization,
                dict(zip(ids, localization.tolist(), strict=True)),
                {row["query_id"]: [tuple(o["box"]) for o in row["objects"] if o["inside"]] for row in regions},
            )

    def _describer(self) -> tuple[str, Dialect]:
        """The model that wrote the candidates, and its dialect."""
        for shard in self.manifests["candidates"].shards:
            if shard.rows:
                row: dict[str, Any] = (
                    read_table(StageStore(self.run / "candidates").part(shard.index))
                    .select(["model", "dialect"])
                    .slice(0, 1)
                    .to_pylist()[0]
                )
                return row["model"], get_dialect(row["dialect"])
        raise RunError(f"{self.run} has pairs but no candidates", fix="delete pairs/ and run it again")


def public_name(value: str) -> str:
    """A path without its folders, for what is published: whose machine it was is nobody's business.

    So each part of a model with an adapter, ``model@revision+adapter@revision``.

    >>> public_name("/home/me/ferret-7b@ab12+/runs/mine/adapter@cd34"), public_name("Qwen/Qwen2.5-VL-7B-Instruct")
    ('ferret-7b@ab12+adapter@cd34', 'Qwen/Qwen2.5-VL-7B-Instruct')
    """
    return re.sub(r"(?:^|(?<=\+))/(?:[^@+]*/)?(?=[^/@+])", "", value)
