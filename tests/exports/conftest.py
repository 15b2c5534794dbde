"""Runs with pairs, created with the fakes, for the tests of exports."""

import pytest

from spr.config import make_config
from spr.pipeline.runner import run
from spr.records import PreferencePair
from spr.records.schemas import from_table
from spr.runs.store import StageStore

# What the embedded describer was trained on, so that one of TRL's steps on it sees words that it knows.
PROMPTS = {"full": "Describe the region {region} and locate its objects."}
FAKES = {"describer": {"backend": "fake"}, "scorer": {"backend": "fake"}, "detector": {"backend": "none"}}


@pytest.fixture(scope="session")
def make_run():
    """A dataset (its files may still change) and config sections → its run folder."""

    def make(dataset, **sections):
        dataset.write()
        folder = dataset.folder / "run"
        run(make_config(dataset.config(**{**FAKES, "prompts": PROMPTS, **sections})), folder)
        return folder

    return make


@pytest.fixture(scope="session")
def small_run(make_dataset, make_run, tmp_path_factory):
    """The run of eight images, which no test changes."""
    return make_run(make_dataset(tmp_path_factory.mktemp("small"), images=8), shard_rows=3)


@pytest.fixture(scope="session")
def held_out_run(make_dataset, make_run, tmp_path_factory):
    """The run of eight images, two of them held out: 47 and 50."""
    return make_run(make_dataset(tmp_path_factory.mktemp("held-out"), images=8, ids=range(44, 52)), shard_rows=3)


@pytest.fixture(scope="session")
def pairs_of():
    """A run folder → its pairs."""

    def read(folder):
        return [pair for table in StageStore(folder / "pairs").tables() for pair in from_table(table, PreferencePair)]

    return read
