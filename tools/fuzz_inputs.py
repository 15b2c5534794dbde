"""Fuzz the readers of strangers' files: every input must be read, or refused with one clear error, in linear time.

    python -m tools.fuzz_inputs [READER …] [--count 100000] [--seed 0] [--keep FOLDER]

Inputs are valid files with a few mutations each: truncation, changed bytes, wrong types, deep nesting, huge numbers,
NaN, repeated keys, control characters, lone surrogates, byte order marks, other encodings, gzip. An input fails if it
raises anything but an `SprError`, if the error's message is not short and printable, or if it takes more than one
second of CPU time per 100 kB. With ``--keep``, failing inputs are written into a folder. The tests run 1,000 inputs per
reader.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from spr.annotations import read_coco
from spr.core.errors import SprError
from spr.core.terminal import printable
from spr.evaluation.answer_fields import Item
from spr.evaluation.predictions import read_predictions
from spr.evaluation.task import TASKS
from spr.evaluation.tasks.phrase_grounding import PhraseGrounding
from spr.grounding import DIALECTS, convert, parse
from spr.workflows.checking import summary
from spr.workflows.checking.check import check_data
from spr.workflows.checking.fix import fix_data
from spr.workflows.checking.reading import DataFile

SECONDS_PER_100_KB = 1.0
LONGEST_MESSAGE = 4000

_TOKEN = re.compile(rb'"[^"]*"|-?\d+(?:\.\d+)?|true|false|null')
_NASTY = [
    *(b"null true false -1 0 0.5 1e999 -1e999 1e-320 NaN Infinity -Infinity {} [] 01 1. .5 - + 0x1F".split()),
    *(b"1" * 400, b"9" * 5000, b"1." + b"3" * 5000, b"18446744073709551616", b"9223372036854775807", b"2147483648"),
    *(
        b'""',
        b'"\\ud800"',
        b'"\\u0000"',
        b'"\x1b[31m\\u009b\\u202e"',
        b'"../../etc/passwd"',
        b'"/dev/zero"',
        b'"\xf0\x9f',
    ),
    *(
        b'"\xff"',
        b'"a\nb"',
        b'"' + b"x" * 20_000 + b'"',
        b'"' + b"\\" * 20_000 + b'"',
        b"'a'",
        b"\x00",
        b"\xef\xbb\xbf",
    ),
    *(b'{"id": 1, "id": 2}', b'[{"type": "image"}]', b'{"path": 5}', b"[[1, 2], [3]]", b"\r", b"\xe2\x80\xa8", b"\x1a"),
]


@dataclass
class Findings:
    """How many inputs were read and refused; ``failures`` are a description and the input of each one that failed."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0  # seconds per 100 kB, of at least 100 kB
    failures: list[tuple[str, bytes]] = field(default_factory=list)


def _lines(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


_IDS = ["1", "2", "3"]
_COCO = {
    "info": {"description": 'a "quoted", {text}'},
    "images": [{"id": n, "file_name": f"é{n}.jpg", "width": 640, "height": 480} for n in (1, 2)],
    "annotations": [
        {"id": n, "image_id": 1 + n % 2, "category_id": 1, "bbox": [1, 2.5, 30, 40], "iscrowd": 0} for n in range(4)
    ],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cup"}],
}
_ANSWERS = [{"id": n, "answer": "a dog [1, 2, 3, 4]", "dialect": "ferret", "finish_reason": "stop"} for n in _IDS]
_TURNS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
_PAIRS = [
    {"image": "a.png", "prompt": "Where?", "chosen": "a dog [1, 2, 3, 4]", "rejected": "a dog"},
    {"images": ["a.png"], "prompt": _TURNS, "chosen": [{"role": "assistant", "content": "here"}], "rejected": "there"},
]
_OBJECT = {"id": "1", "category": "dog", "box": [1, 1, 4, 4], "inside": True, "source": "annotation", "score": None}
_REGION = {"query_id": "1/0", "image_id": "1", "file_name": "a.jpg", "width": 9, "height": 9, "region": [0, 0, 5, 5]}
_SENTENCE = {
    "original_img_id": 1,
    "sentence_id": 0,
    "file_name": "1.jpg",
    "width": 9,
    "height": 9,
    "caption": "A man, alone waits .",
    "tokens_positive_eval": [[[0, 12]]],
}
_XML = (
    b"<annotation><object><name>5</name>"
    b"<bndbox><xmin>2</xmin><ymin>1</ymin><xmax>8</xmax><ymax>5</ymax></bndbox></object></annotation>"
)
_WORDS = b"[/EN#5/people/other A man, alone] waits .\n[/EN#5/people A man] in [/EN#13/clothing a hat] .\n"
_EXPRESSION = {"id": 7, "file_name": "a.jpg", "caption": "a dog", "width": 9, "height": 9, "dataset_name": "refcoco"}
_QUESTIONS = {
    "phrase-grounding": json.dumps({"images": [_SENTENCE]}).encode(),
    "referring": _lines(
        {"image_path": "a.jpg", "width": 9, "height": 9, "bbox_norm": [0, 0, 0.5, 0.5], "name": "a", "neg_class": "b"}
    ),
    "rec, MDETR": json.dumps(
        {"images": [_EXPRESSION], "annotations": [{"image_id": 7, "bbox": [1, 2, 3, 4]}]}
    ).encode(),
    "pope": _lines(*({"question_id": n, "image": "a.jpg", "text": "A dog?", "label": "yes"} for n in (1, 2))),
    "rec": _lines({"id": "1", "image": "a", "sentence": "a dog", "box": [1, 2, 3, 4], "width": 9, "height": 9}),
    "multi-rec": _lines(
        {"id": "1", "image": "a", "sentence": "dogs", "boxes": [[1, 2, 3, 4]], "width": 9, "height": 9}
    ),
    "detection": json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9, "neg_category_ids": [2]}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 5.5, "iscrowd": 0}],
            "categories": [{"id": 1, "name": "dog", "frequency": "r"}, {"id": 2, "name": "cat"}],
        }
    ).encode(),
    "description": _lines({**_REGION, "start_object": "1", "objects": [_OBJECT]}),
}


def _read_pairs(data: bytes, path: Path) -> None:
    from spr.training.pairs import trl_pairs

    path.write_bytes(data)
    for _ in trl_pairs(path):
        pass


def _read_annotations(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    read_coco(path, block_size=64 if len(data) % 2 else 4096)


def _read_predictions(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    read_predictions(path, [Item(name) for name in _IDS])


def _entities(folder: Path) -> PhraseGrounding:
    """The task with files for the one image of `_SENTENCE`."""
    for name, data in (("Annotations/1.xml", _XML), ("Sentences/1.txt", _WORDS)):
        path = folder / "entities" / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return PhraseGrounding(entities=folder / "entities")


def _read_questions(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    errors = []
    tasks = [
        _entities(path.parent),
        *(TASKS[name]() for name in ("referring", "rec", "multi-rec", "detection", "pope", "description")),
    ]
    for task in tasks:
        try:
            task.load(path)
        except SprError as error:
            check_message(error, path)
            errors.append(error)
    if len(errors) == len(tasks):
        raise errors[0]


def _read_entities(data: bytes, path: Path) -> None:
    task = _entities(path.parent)
    own = task.entities / ("Annotations/1.xml" if data[:1] == b"<" else "Sentences/1.txt")
    before = own.read_bytes()
    path.write_bytes(_QUESTIONS["phrase-grounding"])
    try:
        own.write_bytes(data)
        task.load(path)
    finally:
        own.write_bytes(before)


def check_message(error: SprError, path: Path) -> None:
    """Raise ValueError unless an error's message is short and printable."""
    message = str(error).replace(str(path), "FILE")
    if len(message) > LONGEST_MESSAGE or message != printable(message):
        raise ValueError(f"unclear message of {len(message)} characters: {message[:300]}")


def _read_dialects(data: bytes, _: Path) -> None:
    text, keys = data.decode("utf-8", "surrogateescape"), list(DIALECTS)
    first, second = (keys[(len(data) + step) % len(keys)] for step in (0, 7))
    for key in (first, second):
        parse(text, key, (640, 480))
    convert(text, first, second, (640, 480))


_BOX = "a dog [100, 200, 300, 400]"
_DATA: dict[str, list[dict[str, object]]] = {
    "llava": [
        {"image": "a.jpg", "conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": _BOX}]}
    ],
    "ms_swift": [
        {
            "messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "<bbox>"}],
            "images": ["a.jpg"],
            "objects": {"ref": ["dog"], "bbox": [[1, 2, 3, 4]], "bbox_type": "real"},
        }
    ],
    "llamafactory": [
        {"messages": [{"role": "assistant", "content": _BOX}], "images": ["a.jpg"], "width": 9, "height": 9}
    ],
    "trl": [{"prompt": _TURNS, "completion": [{"role": "assistant", "content": _BOX}], "images": ["a.jpg"]}],
    "qwen_vl": [{"conversations": [{"from": "user", "value": "<img>a</img>"}, {"from": "assistant", "value": _BOX}]}],
}


def _read_data(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    if len(data) % 16 == 0:  # what follows the reading takes most of the time, and less of it depends on the file
        json.dumps([*summary.lines(check_data(path)), check_data(path, dialect="ferret").to_json()])
    if len(data) % 4:
        for _ in DataFile(path).batches():
            pass
        return
    out = path.with_name("fixed")
    try:
        fix_data(DataFile(path), DIALECTS["ferret"], DIALECTS["qwen2_vl"], out)
    finally:
        for written in path.parent.glob("fixed*"):
            written.unlink()


@dataclass(frozen=True)
class Reader:
    """A reader, valid inputs for it, and the suffix of their files."""

    read: Callable[[bytes, Path], None]
    seeds: tuple[bytes, ...]
    suffix: str = ".jsonl"


READERS = {
    "annotations": Reader(
        _read_annotations, (json.dumps(_COCO).encode(), json.dumps(_COCO, indent=1).encode()), ".json"
    ),
    "predictions": Reader(_read_predictions, (_lines(*_ANSWERS), _lines({"question_id": 1, "text": "yes"}))),
    "questions": Reader(_read_questions, tuple(_QUESTIONS.values())),
    "entities": Reader(_read_entities, (_XML, _WORDS)),
    "pairs": Reader(_read_pairs, (_lines(*_PAIRS), json.dumps(_PAIRS).encode(), _lines(_PAIRS[0], _PAIRS[0]))),
    "data": Reader(
        _read_data,
        (
            *(_lines(*rows, *rows) for rows in _DATA.values()),
            *(json.dumps(rows).encode() for rows in _DATA.values()),
            json.dumps(_COCO, indent=1).encode(),
        ),
    ),
    "dialects": Reader(_read_dialects, tuple(f"There is {DIALECTS[key].example} here.".encode() for key in DIALECTS)),
}


def mutate(data: bytes, draw: random.Random) -> bytes:
    """An input with one to four mutations."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = draw.choice(_MUTATIONS)(data, draw)
    return data


def _truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(min(len(changed), draw.choice((1, 2, 8)))):
        changed[draw.randrange(len(changed))] = draw.choice((draw.randrange(256), *b'"\\{}[],:\n<>()|'))
    return bytes(changed)


def _insert(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(_NASTY) + data[at:]


def _copy(data: bytes, draw: random.Random) -> bytes:
    start, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    times = draw.choice((0, 2, 3, 200)) if end - start < 200 else draw.choice((0, 2))
    return data[:start] + data[start:end] * times + data[end:]


def _replace(data: bytes, draw: random.Random) -> bytes:
    tokens = list(_TOKEN.finditer(data[:20_000]))
    if not tokens:
        return data
    token = draw.choice(tokens)
    return data[: token.start()] + draw.choice(_NASTY) + data[token.end() :]


def _nest(data: bytes, draw: random.Random) -> bytes:
    tokens = list(_TOKEN.finditer(data[:20_000]))
    at = draw.choice(tokens).start() if tokens else 0
    depth, (opening, closing) = (
        draw.choice((3, 60, 1100, 20_000)),
        draw.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"<p>", b""))),
    )
    return data[:at] + opening * depth + b"1" + closing * depth + b"," + data[at:]


def _encode(data: bytes, draw: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    return draw.choice(
        (
            b"\xef\xbb\xbf" + data,
            b"\xff\xfe" + text.encode("utf-16-le"),
            text.encode("utf-16"),
            text.encode("utf-32"),
            text.encode("utf-16-be"),
            text.encode("latin-1", "replace"),
            data.replace(b"\n", draw.choice((b"\r\n", b"\r", b"\n\n", b"\x85"))),
            gzip.compress(data, 1),
        )
    )


_MUTATIONS = (_truncate, _flip, _flip, _insert, _insert, _copy, _replace, _replace, _replace, _nest, _encode)


def fuzz(reader: Reader, count: int, seed: int, folder: Path) -> Findings:
    """Give a reader this many mutated inputs; the same seed gives the same inputs."""
    draw, found = random.Random(seed), Findings()
    path = folder / f"input{reader.suffix}"
    reader.read(reader.seeds[0], path)  # valid; what is loaded only once does not count
    for _ in range(count):
        data = mutate(draw.choice(reader.seeds), draw)
        started = time.process_time()
        try:
            reader.read(data, path)
            found.read += 1
        except SprError as error:
            found.refused += 1
            try:
                check_message(error, path)
            except ValueError as unclear:
                found.failures.append((str(unclear), data))
        except Exception:
            found.failures.append((traceback.format_exc(limit=-3), data))
        seconds = (time.process_time() - started) / max(len(data) / 1e5, 1)
        found.slowest = max(found.slowest, seconds)
        if seconds > SECONDS_PER_100_KB:
            found.failures.append((f"{seconds:.2f} s per 100 kB", data))
    return found


def main() -> None:
    """Fuzz the readers that are named, or all."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of strangers' files.")
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"{', '.join(READERS)} [default: all]")
    parser.add_argument("--count", type=int, default=100_000, help="inputs per reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the inputs that fail")
    arguments = parser.parse_args()
    failed = False
    for name in arguments.readers or READERS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = fuzz(READERS[name], arguments.count, arguments.seed, Path(folder))
        failed |= bool(found.failures)
        print(
            f"{name}: {found.read:,} read, {found.refused:,} refused, {len(found.failures):,} failed, "
            f"slowest {found.slowest:.2f} s per 100 kB, {time.monotonic() - started:.0f} s in all"
        )
        for number, (problem, data) in enumerate(found.failures[:20]):
            print(f"  {problem}\n  input: {data[:200]!r}")
            if arguments.keep is not None:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                (arguments.keep / f"{name}-{number}").write_bytes(data)
    sys.exit(failed)


if __name__ == "__main__":
    main()
