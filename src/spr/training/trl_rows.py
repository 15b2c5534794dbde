"""Rows of other people's files: TRL's preference, prompt-completion and conversation formats, and their images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from PIL import Image

from spr.core.errors import InputError
from spr.core.images import ImageProblem, ImageSource
from spr.core.paths import exists, is_dir
from spr.core.text_input import TextInput, text_lines
from spr.models.chat import Message, user_turn
from spr.runs.folder import is_run

CheckColumns = Callable[[set[str], Path], None]
"""Raises `InputError` for columns that are not those of a format; of JSON, the columns are those of the first row."""
_HELD_OUT_FILE = re.compile(
    r"(?<![a-z])(test(ing|[ab])?|val(id(ation)?)?|dev|eval(uation)?|h[eo]ld[-_]?out)(?![a-z])", re.IGNORECASE
)
"""A word in the name of a file or folder of a dataset that is not for training, as on the Hugging Face Hub."""
_TRAIN_FILE = re.compile(r"(?<![a-z])train(ing)?(?![a-z])", re.IGNORECASE)
LINE = "line number"
_SOURCES = "a dataset folder, or a .parquet, .jsonl or .json file"
_IMAGES = "paths or bytes; in `images`, a list with one of them"


def open_rows(source: Path, check: CheckColumns, option: str = "--pairs") -> Iterable[dict[str, Any]]:
    """The rows of any source, as `spr.training.pairs.trl_pairs` describes them; the first one is checked.

    Images are as `datasets.Image` gives them, not decoded. Rows of JSON have their line number under `LINE`. ``option``
    is the option that names the source, for errors.

    Raises:
        InputError: if the source can't be read, or its columns are refused.
    """
    if not exists(source):
        raise InputError(f"There is nothing at {source}", expected=_SOURCES, fix=f"check the path given to {option}")
    suffixes = source.suffixes[-2:] if source.suffix == ".gz" else source.suffixes[-1:]
    if is_dir(source) or suffixes == [".parquet"]:
        return _open_dataset(source, check)
    if suffixes[:1] not in ([".jsonl"], [".json"]):
        raise InputError(f"{source} can't be read as pairs", got=source.suffix or "no suffix", expected=_SOURCES)
    rows = _json_rows(source)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{source} can't be read as pairs", got="no rows", expected=_SOURCES)
    check(set(first) - {LINE}, source)
    return chain([first], rows)


def check_preferences(columns: set[str], source: Path) -> None:
    """Raise `InputError` unless the columns are those of TRL's preference format, with images."""
    missing = [name for name in ("prompt", "chosen", "rejected", _image_column(columns)) if name not in columns]
    if missing:
        got = f"columns {', '.join(sorted(columns))}"
        raise InputError(f"{source} lacks {' and '.join(missing)}", got=got, fix="see docs/training.md for the format")


def _image_column(columns: set[str]) -> str:
    return "image" if "image" in columns and "images" not in columns else "images"


def _json_rows(source: Path) -> Iterator[dict[str, Any]]:
    """The rows of JSON lines, one at a time, or of a JSON list; images as `datasets.Image` gives them."""
    with TextInput(source, str(source), expected=_SOURCES) as file:
        lines, number = text_lines(file), 0
        try:
            for line in lines:
                number += 1
                if line.lstrip().startswith("["):
                    rows = msgspec.json.decode("\n".join([line, *lines]), type=list[dict[str, Any]])
                else:
                    rows = [msgspec.json.decode(line, type=dict[str, Any])] if line.strip() else []
                for row in rows:
                    yield {**_with_images(row, source), LINE: number}
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            got = f"line {number}: {error}"
            raise InputError(f"{source} can't be read as pairs", got=got, expected=_SOURCES) from None


def _with_images(row: dict[str, Any], source: Path) -> dict[str, Any]:
    column = "images" if "images" in row else "image"
    if column not in row:
        return row
    given = row.get(column)
    values = [given] if column == "image" else [] if given is None else given
    paths = [v.get("path") if isinstance(v, dict) else v for v in values] if isinstance(values, list) else [...]
    if not all(isinstance(path, str | None) for path in paths):
        got = f"{type(given).__name__}: {str(given)[:80]}"
        raise InputError(f"Column `{column}` of {source} does not hold images", got=got, expected=_IMAGES)
    images = [{"path": path} for path in paths]
    return {**row, column: images if column == "images" else images[0]}


def _open_dataset(source: Path, check: CheckColumns) -> Iterable[dict[str, Any]]:
    """The rows of a dataset folder or a Parquet file; those of a folder's held-out files come last."""
    if not is_dir(source) or ((source / "dataset_info.json").is_file() and (source / "state.json").is_file()):
        return _dataset_rows(source, None if is_dir(source) else [source], check)
    if is_run(source):
        fix = f"export its pairs, and give the new folder: spr export {source} --format trl --out FOLDER"
        raise InputError(f"{source} is a run, not a file of pairs", expected=_SOURCES, fix=fix)
    if (source / "dataset_dict.json").is_file():
        fix = f"give one of its splits, such as {source / 'train'}"
        raise InputError(f"{source} is a `DatasetDict`", expected=_SOURCES, fix=fix)
    files = sorted(source.rglob("*.parquet"))
    if not files:
        raise InputError(f"{source} can't be read as pairs", got="a folder without Parquet files", expected=_SOURCES)
    held_out = [path for path in files if any(map(_is_held_out, path.relative_to(source).parts))]
    if not held_out:
        return _dataset_rows(source, files, check)
    others = [path for path in files if path not in held_out]
    rows = _dataset_rows(source, others, check) if others else ()
    return chain(rows, ({**row, "split": "test"} for row in _dataset_rows(source, held_out, check)))


def _is_held_out(name: str) -> bool:
    return _HELD_OUT_FILE.search(name) is not None and _TRAIN_FILE.search(name) is None


def _dataset_rows(source: Path, files: Sequence[Path] | None, check: CheckColumns) -> Iterable[dict[str, Any]]:
    import datasets  # with pandas, which takes half a second

    try:
        if files is None:
            dataset = datasets.load_from_disk(str(source))
        else:
            dataset = datasets.load_dataset("parquet", data_files=list(map(str, files)), split="train")
    except Exception as error:  # Arrow and datasets raise many kinds of errors for a broken file
        got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{source} can't be read as pairs", got=got, expected=_SOURCES) from error
    check(set(dataset.column_names), source)
    column = _image_column(set(dataset.column_names))
    image = datasets.Image(decode=False)
    rows: Iterable[dict[str, Any]] = dataset
    try:
        if column in dataset.column_names:
            rows = dataset.cast_column(column, image if column == "image" else datasets.List(image))
    except (TypeError, ValueError, pa.ArrowException):
        got = dataset.features[column]
        raise InputError(f"Column `{column}` of {source} does not hold images", got=got, expected=_IMAGES) from None
    names = {name: kind.names for name, kind in dataset.features.items() if isinstance(kind, datasets.ClassLabel)}
    if names:  # such as those of splits, of which the rows have numbers
        return ({**row, **{name: _label(row[name], given) for name, given in names.items()}} for row in rows)
    return rows


def _label(number: int | None, names: Sequence[str]) -> str | None:
    return None if number is None or number < 0 else names[number]


@dataclass(frozen=True, slots=True)
class DatasetImage:
    """An image of a row; calling it returns the pixels as RGB. ``where`` names the row."""

    value: Mapping[str, Any] | None
    files: ImageSource
    where: str

    def __call__(self) -> Image.Image:
        """Load the image; raises `ImageProblem`."""
        name, data = self._file()
        return self.files.load(name, data=data)

    def digest(self) -> str:
        """Hex digest of the file."""
        name, data = self._file()
        return hashlib.sha256(self.files.read_bytes(name) if data is None else data).hexdigest()

    def _file(self) -> tuple[str, bytes | None]:
        value = self.value or {}
        if data := value.get("bytes"):
            return self.where, bytes(data)
        if not (name := value.get("path")):
            raise ImageProblem("image_unreadable", self.where, got=repr(self.value)[:80], expected="bytes or a path")
        return name, None


def read_messages(prompt: Any, where: str, *, image: bool = True) -> list[Message]:
    """The messages of a prompt, a text or a list of messages, with one place for the image if there is one.

    Raises:
        InputError: if it is neither, or places another number of images; ``where`` names the row.
    """
    if isinstance(prompt, str):
        turn = user_turn(prompt)
        return turn if image else [{**turn[0], "content": turn[0]["content"][1:]}]
    if not isinstance(prompt, list) or not prompt or not all(isinstance(turn, Mapping) for turn in prompt):
        got, expected = repr(prompt)[:80], "a text or a list of messages"
        raise InputError(f"The prompt of {where} can't be read", got=got, expected=expected)
    messages: list[Message] = [
        {"role": str(turn.get("role")), "content": _parts(turn.get("content"), where)} for turn in prompt
    ]
    images = sum(part["type"] == "image" for message in messages for part in message["content"])
    if images and not image:
        raise InputError(f"The prompt of {where} places an image", got="a row without one", expected="`images`")
    if image and not images:
        first = next((message for message in messages if message["role"] == "user"), messages[-1])
        first["content"].insert(0, {"type": "image"})
    elif images > 1:
        raise InputError(f"The prompt of {where} places several images", got=images, expected="one")
    return messages


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if content is not None and not (isinstance(content, list) and all(isinstance(part, Mapping) for part in content)):
        got, expected = repr(content)[:80], "a text or a list of parts, each with a `type`"
        raise InputError(f"A message of {where} can't be read", got=got, expected=expected)
    # Arrow fills fields that a part lacks with None.
    return [
        {"type": "image"} if part.get("type") == "image" else {"type": "text", "text": str(part.get("text") or "")}
        for part in content or ()
    ]


def read_answer(answer: Any, where: str, side: str) -> str:
    """The text of an answer, a text or one message; an `InputError` if it is neither. ``side`` is its column."""
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], Mapping):
        answer = answer[0].get("content")
        if isinstance(answer, list):
            answer = "".join(part.get("text", "") for part in _parts(answer, where))
    if not isinstance(answer, str):
        got, expected = repr(answer)[:80], "a text or one message"
        raise InputError(f"`{side}` of {where} is not an answer", got=got, expected=expected)
    return answer
