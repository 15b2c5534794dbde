"""Metrics per item from the result files of several runs, for the tables of `bench_effect.py` and `bench_grpo.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from spr.evaluation.metrics import Share, cluster_numbers
from spr.evaluation.result import read_items

Shares: TypeAlias = dict[tuple[str, str], tuple[Share, Any]]
"""By task and metric, the values of all items, and the numbers of the items' images."""


def read_shares(folder: Path, shown: Sequence[tuple[str, str]]) -> Shares:
    """Those of the metrics ``shown``, given as task and name, that the results in a folder have."""
    found: Shares = {}
    for task in dict(shown):
        _, images, shares = read_items(folder / f"{task}.items.parquet")
        clusters = cluster_numbers(images)
        found |= {(task, name): (shares[name], clusters) for of, name in shown if of == task and name in shares}
    return found


def averaged(runs: Sequence[Shares]) -> Shares:
    """Each item's mean over the runs."""

    def mean(key: tuple[str, str], part: str) -> Any:
        return np.mean([getattr(run[key][0], part) for run in runs], axis=0)

    return {key: (Share(mean(key, "parts"), mean(key, "wholes")), runs[0][key][1]) for key in runs[0]}
