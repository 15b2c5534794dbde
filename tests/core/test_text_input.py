"""Every text input is opened by one function: byte order marks, gzip, UTF-16, line ends, and errors that say where."""

import ast
import bz2
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spr.annotations import read_coco
from spr.config import load_config
from spr.core.errors import ConfigError, InputError, RecordError, SprError
from spr.core.text_input import TextInput, read_text, text_lines
from spr.evaluation.answer_fields import Item
from spr.evaluation.lines import read_lines
from spr.evaluation.predictions import read_predictions
from spr.evaluation.task import TASKS
from spr.training.pairs import trl_pairs

SOURCE = Path(__file__).parents[2] / "src" / "spr"

WRITTEN: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "gzip": lambda text: gzip.compress(text.encode(), mtime=0),
    "gzip in parts, with a mark": lambda text: (
        gzip.compress(b"\xef\xbb\xbf" + text.encode()[:9]) + gzip.compress(text.encode()[9:])
    ),
    "windows line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "old line ends": lambda text: text.replace("\n", "\r").encode(),
    "utf-16": lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
    "utf-16, big endian, gzip": lambda text: gzip.compress(b"\xfe\xff" + text.encode("utf-16-be")),
    "utf-32": lambda text: text.encode("utf-32"),
}

COCO = {
    "images": [{"id": 1, "file_name": "é 😀.jpg", "width": 8, "height": 9}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    "categories": [{"id": 1, "name": "dog"}],
}


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_questions(path: Path) -> object:
    return TASKS["pope"]().load(path)


def read_pairs(path: Path) -> object:
    return [(pair.pair_id, pair.chosen, pair.rejected) for pair in trl_pairs(path)]


def read_annotations(path: Path) -> object:
    found = read_coco(path)
    return found.file_names, found.boxes_xyxy.tolist(), found.categories


def read_regions(path: Path) -> object:
    return TASKS["description"]().load(path).queries


PAIR = {"images": ["a.png"], "prompt": "é?", "chosen": "ja 😀", "rejected": "no"}
REGION = {
    "query_id": "1/0",
    "image_id": "1",
    "file_name": "é.jpg",
    "width": 9,
    "height": 9,
    "region": [0, 0, 5, 5],
    "start_object": "1",
    "objects": [
        {"id": "1", "category": "é", "box": [1, 1, 4, 4], "inside": True, "source": "annotation", "score": 1.0}
    ],
}
READERS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "annotations": (read_annotations, "a.json", json.dumps(COCO, ensure_ascii=False, indent=1)),
    "predictions": (
        lambda path: read_predictions(path, [Item("1"), Item("2")]).texts,
        "p.jsonl",
        lines({"id": 1, "answer": "ja é"}, {"id": 2, "answer": "😀"}),
    ),
    "questions": (
        read_questions,
        "q.json",
        lines(*({"question_id": n, "image": "é.jpg", "text": "A dog?", "label": "yes"} for n in (1, 2))),
    ),
    "regions": (read_regions, "r.jsonl", lines(REGION, {**REGION, "query_id": "1/1"})),
    "pairs": (read_pairs, "p.jsonl", lines(PAIR, {**PAIR, "chosen": "zwei"})),
    "pairs as a list": (read_pairs, "p.json", json.dumps([PAIR, PAIR], ensure_ascii=False, indent=1)),
    "config": (
        lambda path: load_config(path).model_dump(),
        "c.yaml",
        "annotations:\n  path: é.json\n  images: images\ndescriber: null\n",
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", [form for form in WRITTEN if form != "plain"])
def test_every_reader_reads_every_form_alike(tmp_path: Path, reader: str, form: str) -> None:
    read, name, text = READERS[reader]
    path = tmp_path / name
    path.write_bytes(WRITTEN["plain"](text))
    expected = read(path)
    path.write_bytes(WRITTEN[form](text))
    assert read(path) == expected


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 a zip", "a zip archive"),
        (bz2.compress(b"text"), "a bzip2 archive"),
        (b"\x1f\x8b\x08", "end-of-stream"),
        (gzip.compress(b" " * 99, mtime=0)[:-9], "end-of-stream"),
        (b"\xff\xfe{", "truncated data"),
        ("{}".encode("utf-16-be"), "without a byte order mark"),
    ],
)
def test_every_reader_refuses_what_it_can_not_read(tmp_path: Path, reader: str, content: bytes, message: str) -> None:
    read, name, _ = READERS[reader]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SprError, match=message):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(SprError):
        read(path)


def test_values_of_any_type_do_not_crash_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for reason in ([], {}, 5):
        path.write_text(lines({"id": "1", "answer": "a", "finish_reason": reason}))
        assert read_predictions(path, [Item("1")]).problems == {}
    path.write_text(lines({**REGION, "region": [0, 0, 5, 10**400]}))
    with pytest.raises(RecordError, match="region of query 1/0"):
        read_regions(path)
    for part in (
        {"prompt": [{"role": "user", "content": 5}]},
        {"prompt": [{"role": "user", "content": ["a"]}]},
        {"chosen": [{"role": "assistant", "content": [5]}]},
        {"images": "a.png"},
        {"images": [5]},
        {"images": [{"path": 5}]},
        {"chosen": 5},
    ):
        path.write_text(lines({**PAIR, **part}))
        with pytest.raises(InputError):
            read_pairs(path)
    path.write_text(lines({**PAIR, "chosen_finish_reason": ["length"]}))
    assert read_pairs(path) == [("0", "ja 😀", "no")]
    path.write_text("[" * 100_000)
    for reader in ("predictions", "questions", "regions", "pairs", "config"):
        with pytest.raises(SprError):
            READERS[reader][0](path)


@pytest.mark.parametrize("reader", sorted(READERS.keys() - {"annotations", "predictions"}))
def test_invalid_utf8_is_an_error_with_its_place(tmp_path: Path, reader: str) -> None:
    # annotations accept it in fields that are not used, and predictions drop only the line: see their tests
    read, name, text = READERS[reader]
    path = tmp_path / name
    data = ("\n" + text).encode("latin-1", "replace")
    at = data.index(b"\xe9") if b"\xe9" in data else len(data)
    path.write_bytes(data if at < len(data) else data + b"\xe9")
    line = data.count(b"\n", 0, at) + 1
    with pytest.raises(SprError, match=rf"is not UTF-8(.|\n)*byte 0xe9 at byte {at}, line {line}\b(.|\n)*iconv"):
        read(path)


def test_the_place_counts_the_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo \xff\n")
    for read in (read_text, lambda path: list(text_lines(TextInput(path)))):
        with pytest.raises(InputError, match="byte 0xff at byte 12, line 2"):
            read(path)


def test_lines_are_streamed_without_their_ends() -> None:
    def read(data: bytes, **options: bool) -> list[str]:
        return list(text_lines(TextInput(io.BytesIO(data)), **options))

    assert read(b"a\r\n\nb\rc\nd") == ["a", "", "b\rc", "d"]
    assert read(b"a\rb\r") == ["a", "b"]
    assert read(b"") == []
    assert read(b"a\xff\n\xef\xbb\xbfb", replace=True) == ["a\ufffd", "\ufeffb"]  # a mark only counts at the start
    receiver, sender = os.pipe()
    os.write(sender, "é\n".encode())
    with os.fdopen(receiver, "rb") as pipe:
        stream = text_lines(TextInput(pipe))
        assert next(stream) == "é"  # before the second line is written
        os.write(sender, b"2\n")
        assert next(stream) == "2"
        os.close(sender)
        assert list(stream) == []


def test_a_device_is_refused() -> None:
    for path in ("/dev/zero", "/dev/null"):
        with pytest.raises(InputError, match="a device"):
            read_text(Path(path))


def test_the_error_has_the_wanted_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_text(tmp_path / "c.yaml", error=ConfigError)
    (tmp_path / "l.jsonl").write_bytes(b"\xef\xbb\xbf{}\r\n{]\r\n")
    with pytest.raises(InputError, match="Line 2 of"):
        read_lines(tmp_path / "l.jsonl", dict, "rows")


@pytest.mark.parametrize("form", ["plain", "mark", "gzip", "windows line ends", "utf-16"])
def test_the_text_command_reads_every_form(form: str) -> None:
    command = [sys.executable, "-m", "spr", "text", "--from", "ferret", "--to", "ferret", "--size", "100x100"]
    text = "é dog [0, 0, 500, 500]\na cat [1, 1, 9, 9]\n"
    done = subprocess.run(command, input=WRITTEN[form](text), capture_output=True, check=True)
    assert done.stdout.decode() == text


# Files that only SPR writes, or that belong to a model or to the system.
OWN_FILES = {
    "core/documents.py": "files of a run folder",
    "report/page.py": "templates",
    "workflows/checking/page.py": "templates",
    "models/ported/ferret/tokenizer.py": "a model's folder",
    "models/ported/tensor_files.py": "a model's folder",
    "training/vision_cache.py": "the system's memory limits",
    "training/log.py": "logs",
    "core/terminal.py": "the answer to a question on the terminal",
    "exports/label_studio.py": "the labels of an earlier export",
    "workflows/hub_package.py": "files of a run or an adapter",
    "runs/folder.py": "RUN/inputs.json",
    "core/processes.py": "the script that is running",
}


def test_no_other_module_reads_text_files() -> None:
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".read_text"))
        or (isinstance(node, ast.Attribute) and node.attr == "stdin")
    }
    assert found - {"commands/text.py"} == OWN_FILES.keys()
