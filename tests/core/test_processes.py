"""`process_map`: results in order, errors where they are due, and workers that end."""

import functools
import itertools
import os
import time
from pathlib import Path

import pytest

from spr.core.errors import ConfigError, RunError
from spr.core.processes import process_map


def place(folder: Path, number: int) -> tuple[int, str, str | None]:
    """The number and where the worker is; the first of three takes the longest."""
    time.sleep(0.05 * (number % 3 == 0))
    (folder / f"{number}-{os.getpid()}").touch()
    return number, str(Path.cwd()), os.environ.get("SPR_TEST_PLACE")


def fail_at_two(number: int) -> int:
    """An error that has its own way to be sent."""
    if number == 2:
        raise ConfigError("two is too many", got=number, expected="0 or 1")
    return number


def die(_: int) -> int:
    """End the process as the system does when memory runs out."""
    os._exit(137)


def test_results_come_in_order_from_processes_with_this_folder_and_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPR_TEST_PLACE", "here")
    (tmp_path / "seen").mkdir()
    found = list(process_map(functools.partial(place, tmp_path / "seen"), range(12), workers=2, ahead=5))
    assert found == [(number, str(tmp_path), "here") for number in range(12)]
    numbers, pids = zip(*(path.name.split("-") for path in (tmp_path / "seen").iterdir()), strict=True)
    assert sorted(map(int, numbers)) == list(range(12))
    assert str(os.getpid()) not in pids


def test_no_more_items_are_taken_than_may_be_ahead():
    taken = []
    items = (taken.append(number) or number for number in itertools.count())
    results = process_map(fail_at_two, items, workers=1, ahead=2)
    assert next(results) == 0
    assert taken == [0, 1]
    results.close()


def test_an_error_is_raised_when_its_item_is_due():
    results = process_map(fail_at_two, range(5), workers=2, ahead=5)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ConfigError, match="two is too many") as caught:
        next(results)
    assert caught.value.expected == "0 or 1"


def test_a_worker_that_dies_is_an_error_with_advice():
    with pytest.raises(RunError, match="worker process died") as caught:
        list(process_map(die, [2], workers=1, ahead=1, fix="free some memory"))
    assert caught.value.fix == "free some memory"
