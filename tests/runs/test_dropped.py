"""What all stages dropped, in one file."""

import pytest

from spr.records.schemas import DROPPED
from spr.runs.dropped import merge_dropped
from spr.runs.store import Manifest, StageOutput, StageStore, dropped_table, read_table, write_table


def write(run, stage, shards, source=()):
    """A stage whose shards dropped images of these ids; returns its store."""
    store, manifest = StageStore(run / stage), Manifest(stage, "f")
    for index, ids in enumerate(shards):
        drops = dropped_table(stage, "image", [(id_, "r") for id_ in ids])
        manifest.shards.append(store.write_shard(index, StageOutput(DROPPED.empty_table(), drops), inputs=len(ids)))
    if source:
        drops = dropped_table(stage, "image", [(id_, "r") for id_ in source])
        manifest.source = {"dropped_sha256": write_table(store.source_drops, drops)}
    store.save(manifest)
    return store


def merged(run):
    return [(row["id"], row["stage"]) for row in read_table(run / "dropped.parquet").to_pylist()]


def test_drops_of_all_stages_are_merged_in_order(tmp_path):
    write(tmp_path, "objects", ["b", "cd"], source="a")
    write(tmp_path, "regions", ["", "z"])
    assert merge_dropped(tmp_path, ["objects", "regions", "candidates"]) == 5
    assert merged(tmp_path) == [*((id_, "objects") for id_ in "abcd"), ("z", "regions")]


@pytest.mark.parametrize("at_once", [1, 3, 4, 100])
def test_the_file_is_the_same_however_the_rows_were_sharded(tmp_path, at_once):
    write(tmp_path / "a", "objects", ["abcdefgh"])
    write(tmp_path / "b", "objects", ["a", "bcd", "", "efgh"])
    write(tmp_path / "c", "objects", ["fgh"], source="abcde")
    files = []
    for name in "abc":
        assert merge_dropped(tmp_path / name, ["objects"], rows_at_once=at_once) == 8
        assert [id_ for id_, _ in merged(tmp_path / name)] == list("abcdefgh")
        files.append((tmp_path / name / "dropped.parquet").read_bytes())
    assert files[0] == files[1] == files[2]


def test_nothing_dropped_is_a_table_without_rows(tmp_path):
    assert merge_dropped(tmp_path, ["objects"]) == 0
    assert read_table(tmp_path / "dropped.parquet").schema == DROPPED


@pytest.mark.parametrize("content", [b"PAR1 nonsense", None])
def test_damaged_drops_are_left_out_until_their_stage_has_computed_them_again(content, tmp_path):
    write(tmp_path, "objects", ["a"])
    store = write(tmp_path, "regions", ["b", "c"])
    store.drops(0).unlink()
    if content is not None:
        store.drops(0).write_bytes(content)
    assert merge_dropped(tmp_path, ["objects", "regions"]) == 2
    assert merged(tmp_path) == [("a", "objects"), ("c", "regions")]
