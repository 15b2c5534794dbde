"""How a file holds its rows is seen from its content, and rows that can't be decoded don't stop the others."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spr.core.errors import InputError
from spr.workflows.checking import source
from spr.workflows.checking.source import kind_of, raw_rows


def rows_of(path):
    return [row for block in raw_rows(path, kind_of(path)) for row in block]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('[{"a": 1}]', "list"),
        ("\n [\n", "list"),
        ('{"a": 1}\n{"a": 2}\n', "lines"),
        ('{"a": 1}', "lines"),
        ('{"images": [], "annotations": []}', "object"),
        ('{\n "images": [],\n "annotations": []\n}', "object"),
        ('{"images": [], "annotations": []}\n{"images": [], "annotations": []}', "lines"),
        ('{"a": 1,}\n{"a": 2}\n', "lines"),
        ("hello\nworld", "lines"),
        ('{"info": {"x": "' + "y" * 70_000 + '"}, "images": [], "annotations": []}', "object"),
        ('{"messages": ["' + "y" * 70_000 + '"]}\n{"messages": []}', "lines"),
    ],
)
def test_the_content_says_how_rows_are_held(tmp_path, text, kind):
    path = tmp_path / "data.json"
    path.write_text(text)
    assert kind_of(path) == kind
    path.write_bytes(gzip.compress(text.encode()))
    assert kind_of(path) == kind


@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_lines_are_numbered_and_broken_ones_are_reported(tmp_path, monkeypatch, block):
    monkeypatch.setattr(source, "_BLOCK", block)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": 2\r\n{"a": NaN}\n{"a": "\xff"}\n  \n[3]')
    found = rows_of(path)
    assert [row.number for row in found] == [1, 3, 4, 5, 7]
    assert [row.problem == "" for row in found] == [True, False, True, True, True]
    assert found[1].value is None
    assert found[2].value["a"] != found[2].value["a"]
    assert found[4].value == [3]


def test_a_list_is_read_in_blocks_with_numbers(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"number": number, "text": "},{" * 50} for number in range(1, 5001)]))
    found = rows_of(path)
    assert [row.number for row in found] == [row.value["number"] for row in found] == list(range(1, 5001))


def test_a_truncated_list_names_the_last_whole_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"a": number} for number in range(100_000)])[:-20])
    with pytest.raises(InputError, match="truncated") as caught:
        rows_of(path)
    assert "after:    row" in "".join(caught.value.__notes__)


def test_more_text_after_a_list_is_an_error(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}] [')
    with pytest.raises(InputError, match="not valid JSON") as caught:
        rows_of(path)
    assert "after the end of the list" in str(caught.value)


def test_parquet_rows_are_numbered(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": list(range(600))}), path)
    found = rows_of(path)
    assert kind_of(path) == "parquet"
    assert [(row.number, row.value) for row in found] == [(k + 1, {"a": k}) for k in range(600)]


def test_damaged_parquet_is_an_error(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        rows_of(path)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda _: None, "no such file"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: path.write_bytes(b""), "no rows"),
        (lambda path: path.write_bytes(b" \n\t"), "no rows"),
        (lambda path: path.write_bytes(b"PK\x03\x04zip"), "a zip archive"),
        (lambda path: path.write_bytes(b"\x1f\x8bnot gzip"), "Unknown compression method"),
    ],
)
def test_files_that_are_not_data_are_errors(tmp_path, make, got):
    path = tmp_path / "data"
    make(path)
    with pytest.raises(InputError) as caught:
        kind_of(path)
    assert got in str(caught.value)
    assert str(path) in str(caught.value)
