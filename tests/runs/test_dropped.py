"""What all stages dropped, in one file."""

import dataclasses

import pyarrow as pa
import pytest

from spr.records.schemas import DROPPED
from spr.report.show import show
from spr.runs.dropped import dropped_by, merge_dropped
from spr.runs.reader import Run
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


def with_drops(run, stage, shards, inputs=("objects",)):
    """A stage whose shards dropped ``(kind, id)``; returns its manifest."""
    store, manifest = StageStore(run / stage), Manifest(stage, "f", inputs=inputs)
    for index, drops in enumerate(shards):
        tables = [dropped_table(stage, kind, [(id_, "r")]) for kind, id_ in drops]
        output = StageOutput(DROPPED.empty_table(), pa.concat_tables(tables))
        manifest.shards.append(store.write_shard(index, output, inputs=1))
    store.save(manifest)
    return manifest


def with_images(run, shards):
    """The stage `objects` with ids and file names only."""
    store, manifest = StageStore(run / "objects"), Manifest("objects", "f")
    for index, images in enumerate(shards):
        table = pa.table({"image_id": list(images), "file_name": list(images.values())})
        drops = dropped_table("objects", "image", [(f"gone{index}", "r")], [f"gone/{index}.jpg"])
        manifest.shards.append(store.write_shard(index, StageOutput(table, drops), inputs=1))
    store.save(manifest)


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_later_stages_get_the_file_names_of_the_images_in_their_ids(tmp_path, at_once):
    with_images(tmp_path, [{"1": "a/1.jpg", "x/y": "tea.jpg", "x": "x.jpg"}, {"2": "b/2.jpg"}])
    first = [
        ("image", "1"),
        ("query", "1/0"),
        ("candidate", "1/0/full0"),
        ("pair", "1/0"),
        ("pair", "1/0/boxes"),
        ("image", "x/y"),
        ("query", "x/y/3"),
        ("candidate", "x/y/3/crop1"),
        ("query", "x/3"),
        ("object", "1"),
        ("word", "1"),
        ("query", "9/0"),
    ]
    with_drops(tmp_path, "regions", [first, [("image", "2"), ("query", "1/0")]])
    assert merge_dropped(tmp_path, ["objects", "regions"], rows_at_once=at_once) == 16
    table = read_table(tmp_path / "dropped.parquet")
    assert table.schema == DROPPED
    assert table["file_name"].to_pylist() == [
        *("gone/0.jpg", "gone/1.jpg"),
        *["a/1.jpg"] * 5,
        *["tea.jpg"] * 3,
        "x.jpg",
        *[None] * 3,  # ids of other kinds don't name an image, and there is no image 9
        *("b/2.jpg", None),  # image 1 is in another shard
    ]


def test_ids_of_a_stage_that_reads_no_other_are_not_looked_up(tmp_path):
    with_images(tmp_path, [{"1": "1.jpg"}])
    manifest = with_drops(tmp_path, "own", [[("image", "1")]], inputs=())
    (batch,) = dropped_by(tmp_path, manifest)
    assert batch["file_name"].to_pylist() == [None]


def test_drops_of_a_folder_made_before_file_names_were_kept_have_those_that_can_be_looked_up(tmp_path):
    with_images(tmp_path, [{"1": "1.jpg"}])
    with_drops(tmp_path, "regions", [[("image", "1")]])
    for stage in ("objects", "regions"):
        store = StageStore(tmp_path / stage)
        manifest = store.manifest()
        old = read_table(store.drops(0), ["id", "kind", "stage", "reason"])
        manifest.shards[0] = dataclasses.replace(manifest.shards[0], dropped_sha256=write_table(store.drops(0), old))
        store.save(manifest)
    assert merge_dropped(tmp_path, ["objects", "regions"]) == 2
    assert read_table(tmp_path / "dropped.parquet")["file_name"].to_pylist() == [None, "1.jpg"]
    assert "file_name: 1.jpg" in list(show(tmp_path / "dropped.parquet"))


def test_the_merged_table_of_an_older_folder_is_read_with_file_names_that_are_null(tmp_path):
    (tmp_path / "config.yaml").write_text("format_version: 2")
    table = dropped_table("objects", "image", [("1", "r")]).drop_columns(["file_name"])
    write_table(tmp_path / "dropped.parquet", table)
    assert Run(tmp_path).table("dropped").schema == DROPPED
    assert Run(tmp_path).table("dropped", ["id", "file_name"]).to_pylist() == [{"id": "1", "file_name": None}]
