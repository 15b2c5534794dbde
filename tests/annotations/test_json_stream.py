"""Streaming JSON: exact cuts, and the same result for every block size, even for damaged files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spr.annotations import Annotations, read_coco
from spr.annotations.json_stream import JsonStream, Scanner, guess_cut
from spr.core.errors import InputError

_values = st.recursive(
    st.none() | st.integers(-5, 5) | st.text(alphabet='a"\\{}[], :', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a"\\}{,', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(elements=st.lists(_values, min_size=1, max_size=6), indent=st.sampled_from([None, 1]), rest=st.text(max_size=9))
def test_the_scan_finds_the_end_or_the_last_comma(elements: list[Any], indent: int | None, rest: str) -> None:
    inside = json.dumps(elements, indent=indent)[1:-1].encode()
    size = 1 + len(rest)
    assert scan(inside + b"]" + rest.encode(), size)[1] == len(inside)
    last = len(json.dumps(elements[-1], indent=indent).encode())
    cut, end = scan(inside.rstrip()[: -min(last, 1)], size)
    assert end == -1
    assert json.loads(b"[" + inside[: max(cut, 0)] + b"]") == elements[:-1]


def scan(data: bytes, size: int) -> tuple[int, int]:
    """The last comma and the closing bracket, found in pieces of the given size."""
    scanner, cut = Scanner(), -1
    for start in range(0, len(data), size):
        _, last, end = scanner.feed(data[start : start + size])
        cut = start + last if last >= 0 else cut
        if end >= 0:
            return cut, start + end
    return cut, -1


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        (b'{"a": 1}, {"b"', 8),
        (b'{"a": 1} \n ,\r\n\t {"b"', 11),
        (b'{"a": {"b": 1}, "c": 2}, {"d": {', 23),
        (b'{"a": 1', -1),
        (b'{"a": 1}, ', -1),
        (b"[1, 2], [3", -1),
        (b"", -1),
    ],
)
def test_a_cut_is_guessed_between_two_objects(text: bytes, cut: int) -> None:
    assert guess_cut(bytearray(text), 0, len(text)) == cut


def blocks_of(path: Path, key: str, block_size: int) -> list[list[Any]]:
    def fast(block: memoryview) -> list[Any] | None:
        try:
            return list(msgspec.json.decode(block))
        except msgspec.DecodeError:
            return None

    with JsonStream(path, block_size=block_size) as stream:
        found = []
        for member in stream.members():
            if member == key:
                found.extend(stream.blocks(fast, lambda items: items))
    return found


@settings(deadline=None)
@given(elements=st.lists(_values, max_size=9), others=_values, block_size=st.integers(64, 300))
def test_elements_of_any_type_are_read_whole_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, elements: list[Any], others: Any, block_size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps({"before": others, "list": elements, "after": others}, indent=block_size % 3))
    blocks = blocks_of(path, "list", block_size)
    assert [element for block in blocks for element in block] == elements
    assert all(blocks)


def test_blocks_have_about_the_requested_size(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"list": [{"id": n} for n in range(1000)]}))
    sizes = [len(block) for block in blocks_of(path, "list", 1000)]
    assert sum(sizes) == 1000
    # the list is 10 × 11 + 90 × 12 + 900 × 13 = 12,890 bytes; a first block may hold two reads
    assert max(sizes) <= 2000 / 11
    assert 10 <= len(sizes) <= 14


def outcome(path: Path, block_size: int) -> tuple[object, ...]:
    try:
        found = read_coco(path, block_size=block_size)
    except InputError as error:
        return ("stopped", error.what)
    assert isinstance(found, Annotations)
    return (
        found.image_ids.tolist(),
        found.file_names,
        found.object_ids.tolist(),
        found.boxes_xyxy.tolist(),
        found.dropped,
    )


def test_a_damaged_file_has_the_same_result_for_every_block_size(tmp_path: Path) -> None:
    content = {
        "info": {"x": ["}", 1.5e3, None]},
        "images": [{"id": n, "file_name": f"é{n}.jpg", "width": 9, "height": 9} for n in range(4)],
        "annotations": [
            {"id": n, "image_id": n % 4, "category_id": 1, "bbox": [1, 2, 3.5, 4], "note": 'a"\\{'} for n in range(12)
        ],
        "categories": [{"id": 1, "name": "dog"}],
    }
    original = json.dumps(content, ensure_ascii=False).encode()
    rng = random.Random(0)
    path = tmp_path / "damaged.json"
    stopped = 0
    for _ in range(400):
        data = bytearray(original)
        for _ in range(rng.choice([1, 1, 2, 5])):
            place = rng.randrange(len(data))
            data[place : place + rng.choice([0, 1, 1, 4])] = rng.choice(
                [b"", b'"', b"\\", b"}", b"]", b",", b"\xff", b"0", b"[", b"{"]
            )
        path.write_bytes(data)
        whole = outcome(path, 2**16)
        stopped += whole[0] == "stopped"
        small = outcome(path, 64)
        assert small == whole or (small[0] == whole[0] == "stopped")
    assert 100 < stopped < 400


END = b', "images": [{"id": 1, "file_name": "a", "width": 9, "height": 9}], "annotations": [], "categories": []}'
HEAVY = {
    "backslashes": b'{"info": "' + b"\\" * 5_000_000 + b'"' + END,
    "quotes": b'{"info": [' + b'"",' * 3_000_000 + b'""]' + END,
    "a long string": b'{"info": "' + b"x" * 5_000_000 + b'"' + END,
    "a long number": b'{"info": ' + b"9" * 5_000_000 + END,
    "deep nesting": b'{"info": ' + b"[" * 2_500_000 + b"]" * 2_500_000 + END,
    "many keys": b'{"info": 1' + b"".join(b', "k%d": {}' % n for n in range(900)) + END,
    "too many keys": b'{"info": 1' + b"".join(b', "k%d": {}' % n for n in range(200_000)) + END,
    "a long key": b'{"' + b"k" * 5_000_000 + b'": 1' + END,
    "a long element": b'{"annotations": [{"a": "' + b"\\" * 18_000_000 + b'"}]' + END,
    "an element of lists": b'{"annotations": [['
    + b"[]," * 300_000
    + b"[]]]"
    + END.replace(b', "annotations": []', b""),
    "spaces": b'{"info": 1' + b" " * 5_000_000 + END,
}


PROGRAM = """
import sys, time
from pathlib import Path
from spr.annotations import read_coco
from spr.core.errors import InputError

def peak():  # not getrusage, which gives the parent's peak if that is larger
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

before = peak()
for path in sys.argv[1:]:
    started, what = time.process_time(), "read"
    try:
        read_coco(path)
    except InputError as error:
        what = error.what.replace(path, "")
    print(path, time.process_time() - started, peak() - before, what, sep="|")
"""


def test_time_is_linear_and_memory_bounded(tmp_path: Path) -> None:
    files = {str(tmp_path / name): content for name, content in HEAVY.items()}
    for path, content in files.items():
        Path(path).write_bytes(content)
    done = subprocess.run([sys.executable, "-c", PROGRAM, *files], capture_output=True, text=True, check=True)
    outcomes = {}
    for line in done.stdout.splitlines():
        path, seconds, megabytes, outcomes[Path(path).name] = line.split("|")
        assert float(seconds) < 1 + 0.1 * len(files[path]) / 1e6, line
        assert float(megabytes) < 100, line
    refused = {
        "too many keys": "more than 1,000 keys at its top level",
        "a long key": "a key of more than 65,536 bytes at byte 1",
        "a long element": "an element of more than 16,777,216 bytes at byte 17",
    }
    for name, outcome in outcomes.items():
        assert refused.get(name, "read") in outcome
