"""A stage's output: whole or not there, checked when it is used again."""

import dataclasses
import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from spr.core.atomic import sha256, write_atomically
from spr.core.errors import RunError
from spr.records import Candidate, ImageObject, ImageObjects, Span
from spr.records.schemas import from_table, to_table
from spr.runs.store import Manifest, StageOutput, StageStore, count_reasons, dropped_table, read_table, write_table

SHARD = {"index": 0, "inputs": 1, "rows": 1, "source": "", "sha256": "", "dropped_sha256": "", "dropped": {}}


def output(*image_ids, drops=()):
    rows = [ImageObjects(i, f"{i}.jpg", 9, 9, (ImageObject("o", "dog", (0, 0, 1, 1)),)) for i in image_ids]
    return StageOutput(to_table(rows, ImageObjects), dropped_table("objects", "image", drops))


@pytest.fixture
def store(tmp_path):
    store = StageStore(tmp_path / "run" / "objects")
    manifest = Manifest("objects", "f")
    for index, image_id in enumerate("abc"):
        manifest.shards.append(
            store.write_shard(index, output(image_id, drops=[(image_id * 2, "too_few_objects")]), inputs=2)
        )
    manifest.complete = True
    store.save(manifest)
    return store


def test_what_was_written_is_read_back(store):
    assert [table["image_id"].to_pylist() for table in store.tables()] == [["a"], ["b"], ["c"]]
    manifest = store.manifest()
    assert (manifest.rows, manifest.dropped) == (3, {"image: too_few_objects": 3})


def test_columns_that_earlier_versions_did_not_write_are_filled_in(tmp_path):
    store, whole = StageStore(tmp_path / "objects"), output("a", "b").table
    entry = store.write_shard(0, StageOutput(whole.drop_columns(["split", "license"]), output().dropped), inputs=2)
    assert store.read(entry).select(whole.column_names) == whole
    assert store.read(entry, ["split", "image_id"]).to_pydict() == {"split": ["train", "train"], "image_id": ["a", "b"]}
    assert [image.split for image in from_table(read_table(store.part(0)), ImageObjects)] == ["train", "train"]


def test_spans_that_earlier_versions_wrote_are_read_without_points(tmp_path):
    spans = (Span("a cup", 0, 5, ((1, 2, 3, 4),), ((5, 6),)),)
    made = Candidate("1/c", "1", "full", "a cup", "a cup", "a cup", spans, (), None, 0, "m@1", "qwen3_vl")
    new = to_table([made, dataclasses.replace(made, candidate_id="2/c", spans=())], Candidate)
    rows = [
        row | {"spans": [{k: v for k, v in s.items() if k != "points"} for s in row["spans"]]}
        for row in new.to_pylist()
    ]
    kinds = {field.name: field.type for field in new.schema.field("spans").type.value_type if field.name != "points"}
    element = pa.field("element", pa.struct([pa.field(n, t, nullable=False) for n, t in kinds.items()]), nullable=False)
    place = new.schema.get_field_index("spans")
    old = pa.Table.from_pylist(rows, schema=new.schema.set(place, pa.field("spans", pa.list_(element), nullable=False)))
    store = StageStore(tmp_path / "candidates")
    entries = [
        store.write_shard(k, StageOutput(table, output().dropped), inputs=2) for k, table in enumerate((old, new))
    ]
    both = [store.read(entry) for entry in entries]
    assert both[0].schema == both[1].schema == new.schema
    read = from_table(pa.concat_tables(both), Candidate)
    assert [one.spans for one in read] == [(dataclasses.replace(spans[0], points=()),), (), spans, ()]
    assert store.read(entries[0], ["spans"])["spans"].type == new["spans"].type


def test_the_same_rows_give_the_same_bytes_however_they_were_put_together(tmp_path):
    whole = output("a", "b").table
    pieces = pa.concat_tables([output("a").table, output("b").table])
    assert write_table(tmp_path / "1.parquet", whole) == write_table(tmp_path / "2.parquet", pieces)
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_a_damaged_shard_is_not_valid_and_the_others_are(store):
    manifest = store.manifest()
    assert len(store.valid_shards(manifest)) == 3
    data = bytearray(store.part(1).read_bytes())
    data[len(data) // 2] ^= 1
    store.part(1).write_bytes(data)
    assert [shard.index for shard in store.valid_shards(manifest)] == [0, 2]


def test_a_missing_file_of_drops_makes_a_shard_invalid(store):
    store.drops(0).unlink()
    assert [shard.index for shard in store.valid_shards(store.manifest())] == [1, 2]


def test_sweeping_removes_what_no_entry_names_and_nothing_else(store):
    (store.folder / ".part-00007.parquet.99.spr-tmp").write_bytes(b"half")
    store.write_shard(3, output("d"), inputs=1)
    (store.folder / "notes.txt").write_text("mine")
    store.sweep(store.manifest())
    names = sorted(p.name for p in store.folder.iterdir())
    shards = [f"{kind}-0000{k}.parquet" for kind in ("dropped", "part") for k in range(3)]
    assert names == sorted([*shards, "manifest.json", "notes.txt"])


def test_what_is_kept_of_unfinished_shards_stays_until_all_are_finished(store):
    kept = [store.unfinished(index) for index in (1, 7)]
    for path in kept:
        path.write_text("answers")
    store.sweep(store.manifest())  # shard 1 is named, but may be stale and at work again
    assert all(path.is_file() for path in kept)
    store.delete_unfinished()
    assert not any(path.exists() for path in kept)
    assert len(list(store.tables())) == 3


def test_an_unfinished_stage_is_not_read_and_the_message_says_what_makes_it(store):
    manifest = store.manifest()
    manifest.complete = False
    store.save(manifest)
    with pytest.raises(RunError, match=r"spr run CONFIG --out .*run --until objects"):
        list(store.tables())
    with pytest.raises(RunError, match="no manifest"):
        StageStore(store.folder.parent / "regions").finished()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format_version": 2}',
        "\x00",
        '{"format_version": 2, "stage": "s", "fingerprint": "f", "inputs": [], "sections": [], "shards": [], '
        '"source": null, "complete": true}',
        "[" * 99999,
    ],
)
def test_a_damaged_manifest_is_named_with_the_fix(store, content):
    path = store.folder / "manifest.json"
    path.write_text(content)
    with pytest.raises(RunError, match=r"manifest\.json is damaged[\s\S]*delete"):
        store.manifest()


@pytest.mark.parametrize(
    "change",
    [
        {"complete": "yes"},
        {"stage": 3},
        {"fingerprint": None},
        {"inputs": [1]},
        {"sections": None},
        {"source": {"dropped": [1]}},
        {"source": {"counts": {"images": "9"}}},
        {"source": {"dropped_sha256": 5}},
        {"source": {"totals": {"object": None}}},
        {"source": {"totals": 7}},
        {"shards": [1]},
        {"shards": [{"index": 0}]},
        *(
            {"shards": [{**SHARD, name: value}]}
            for name, value in (
                ("index", "0"),
                ("rows", 1.5),
                ("inputs", -1),
                ("sha256", None),
                ("dropped", {"a": "b"}),
                ("notes", 3),
                ("notes", {"a": "b"}),
                ("examples", []),
                ("examples", {"a": 1}),
                ("index", 10**400),
            )
        ),
        {"shards": [SHARD, SHARD]},
    ],
    ids=str,
)
def test_a_manifest_with_values_of_a_wrong_type_is_damaged(change, store):
    path = store.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunError, match=r"manifest\.json is damaged[\s\S]*delete"):
        store.manifest()


def test_a_shard_that_has_changed_or_has_other_columns_is_not_read(store):
    manifest = store.manifest()
    other = pa.table({"image_id": ["a"]})
    write_table(store.part(1), other)
    with pytest.raises(RunError, match=r"part-00001\.parquet can't be read[\s\S]*has changed since it was written"):
        list(store.tables())
    manifest.shards[1] = dataclasses.replace(manifest.shards[1], sha256=sha256(store.part(1)))
    store.save(manifest)
    with pytest.raises(RunError, match=r"part-00001\.parquet can't be read[\s\S]*its columns are image_id"):
        list(store.tables())


def test_a_manifest_of_a_later_version_is_refused(store):
    path = store.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(RunError, match=r"another version of SPR[\s\S]*99"):
        store.manifest()


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(RunError, match=r"x\.parquet can't be read"):
        read_table(path)


def test_reasons_are_counted_by_kind():
    table = pa.concat_tables(
        [
            dropped_table("s", "image", [("1", "b"), ("2", "a"), ("3", "b")]),
            dropped_table("s", "object", [("1", "b")]),
        ]
    )
    assert count_reasons(table) == {"image: a": 1, "image: b": 2, "object: b": 1}
    assert count_reasons(table.slice(0, 0)) == {}


def test_reading_a_table_imports_neither_datasets_nor_pandas(store):
    write_table(path := store.folder / "table.parquet", pa.table({"id": ["a"], "more": [1]}))
    assert read_table(path, ["id"]).column_names == ["id"]
    with pytest.raises(RunError, match="nothing"):
        read_table(path, ["nothing"])
    code = (
        "import sys; from pathlib import Path; from spr.runs.store import read_table; "
        f"read_table(Path({str(path)!r}), ['id']); sys.exit({{'pyarrow.dataset', 'pandas'}} & {{*sys.modules}} or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
