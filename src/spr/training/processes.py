"""What the processes of one training tell each other, and where a training is followed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType, gather_object

from spr.core.errors import ConfigError


def in_any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether the flag is set in one process at least; all processes ask together."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum")
    return bool(total.item() > 0)


def of_all_processes(items: list[Any], accelerator: Accelerator) -> list[Any]:
    """The items of every process, in the processes' order; all ask together."""
    return list(gather_object(items)) if accelerator.num_processes > 1 else items


def check_trackers(names: Sequence[str]) -> None:
    """Make sure that each of ``training.report_to`` can be used; Accelerate itself would leave it out without a word.

    Raises:
        ConfigError: for a tracker that Accelerate does not know, or whose package is not installed.
    """
    known = sorted(LOGGER_TYPE_TO_CLASS)
    own = {str(tracker.value) for tracker in LoggerType}  # others are classes that a program has registered
    missing = own - {str(tracker.value) for tracker in get_available_trackers()}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean `{near[0]}`?" if near else None
            raise ConfigError(
                "Config field `training.report_to` names no tracker", got=name, expected=", ".join(known), fix=fix
            )
        if name in missing:
            fix = f"pip install {name.replace('_', '-')}, or leave it out: training/log.jsonl is always written"
            raise ConfigError(f"The tracker {name} of `training.report_to` is not installed", fix=fix)
