"""Where pairs come from: a run's `pairs` stage, or anyone's file in TRL's preference format."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from spr.config import AnnotationsConfig
from spr.core.errors import InputError
from spr.core.images import ImageProblem
from spr.models.chat import Message, user_turn
from spr.records import Size
from spr.runs.store import StageStore


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPair:
    """A pair before the model's processor has seen it.

    Attributes:
        pair_id: Its query, or the number of its row.
        messages: The prompt as chat templates take it, one image in it.
        chosen, rejected: The answers' texts.
        load: Gives the image as RGB; raises `ImageProblem`.
        digest: Gives the hex digest of the image's file and of how it is turned; raises `ImageProblem`.
        size_wh: Width and height of the image, where they are known without opening it.
    """

    pair_id: str
    messages: Sequence[Message]
    chosen: str
    rejected: str
    load: Callable[[], Image.Image]
    digest: Callable[[], str]
    size_wh: Size | None = None


def run_pairs(run: Path, annotations: AnnotationsConfig) -> Iterator[TrainingPair]:
    """The pairs of a run, in their order.

    Args:
        run: The run folder.
        annotations: Of its config: where the images are and how they are turned.

    Raises:
        RunError: if the run has no finished pairs.
    """
    store = StageStore(run / "pairs")
    store.finished()
    return _run_rows(store, annotations)


def _run_rows(store: StageStore, annotations: AnnotationsConfig) -> Iterator[TrainingPair]:
    for table in store.tables():
        for row in table.to_pylist():
            size_wh, name = (row["width"], row["height"]), row["file_name"]
            load = RunImage(annotations, name, size_wh)
            yield TrainingPair(
                row["query_id"], user_turn(row["prompt"]), row["chosen"], row["rejected"], load, load.digest, size_wh
            )


@dataclass(frozen=True, slots=True)
class RunImage:
    """An image of a run: called, it gives the pixels as RGB, turned as the boxes were drawn."""

    settings: AnnotationsConfig
    file_name: str
    size_wh: Size

    def __call__(self) -> Image.Image:
        """The image; raises `ImageProblem`."""
        return self.settings.image_source.load(self.file_name, self.size_wh)

    def digest(self) -> str:
        """Hex digest of the file, and how it is turned."""
        path = self.settings.image_source.path(self.file_name)
        return _digest_file(path, self.file_name) + self.settings.orientation


def _digest_file(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ImageProblem("image_missing", name, expected=f"the file {path}") from None
    except OSError as error:
        raise ImageProblem("image_unreadable", name, got=error) from None


def trl_pairs(source: Path) -> Iterator[TrainingPair]:
    """Pairs in TRL's preference format: ``images`` (a list of one) or ``image``, ``prompt``, ``chosen``, ``rejected``.

    Prompt and answers may be texts, the prompt then being the user's turn, or lists of messages with one assistant's
    message an answer.

    Args:
        source: A folder of `datasets.Dataset.save_to_disk`, a folder of Parquet files, or a .parquet, .jsonl or .json
            file. Images lie in it or are paths, relative ones from its folder.

    Raises:
        InputError: if it can't be read, lacks a column, or a row is not a pair about one image.
    """
    return _trl_rows(*_open_dataset(source), source)


def _trl_rows(dataset: Any, folder: Path, source: Path) -> Iterator[TrainingPair]:
    for number, row in enumerate(dataset):
        where = f"row {number} of {source}"
        images = row["images"] if "images" in row else [row["image"]]
        if not isinstance(images, list) or len(images) != 1:
            got = len(images) if isinstance(images, list) else type(images).__name__
            raise InputError(f"{where} is not about one image", got=got, expected="`images` with one image")
        image = _DatasetImage(images[0], folder, where)
        messages = _messages(row["prompt"], where)
        chosen, rejected = (_answer(row[side], where, side) for side in ("chosen", "rejected"))
        yield TrainingPair(str(number), messages, chosen, rejected, image, image.digest)


def _open_dataset(source: Path) -> tuple[Any, Path]:
    import datasets

    folder = source if source.is_dir() else source.parent
    kinds = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
    expected = "a dataset's folder, or a .parquet, .jsonl or .json file"
    if not source.exists():
        raise InputError(f"There is nothing at {source}", expected=expected, fix="mend --pairs")
    try:
        if (source / "dataset_info.json").is_file() and (source / "state.json").is_file():
            made = datasets.load_from_disk(str(source))
        elif source.is_dir():
            files = sorted(map(str, source.rglob("*.parquet")))
            made = datasets.Dataset.from_parquet(files, keep_in_memory=False)
        elif source.suffix in kinds:
            made = datasets.load_dataset(kinds[source.suffix], data_files=str(source), split="train")
        else:
            raise InputError(f"{source} can't be read as pairs", got=source.suffix or "no suffix", expected=expected)
        columns = set(made.column_names)
        for name in ("images", "image"):
            if name in columns:
                made = made.cast_column(name, _undecoded(made.features[name]))
    except InputError:
        raise
    except Exception as error:  # whatever Arrow and datasets raise about a file that a user brings
        got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{source} can't be read as pairs", got=got, expected=expected) from error
    missing = [name for name in ("prompt", "chosen", "rejected") if name not in columns]
    missing += [] if columns & {"images", "image"} else ["images"]
    if missing:
        got = f"columns {', '.join(sorted(columns))}"
        raise InputError(f"{source} lacks {' and '.join(missing)}", got=got, fix="see docs/training.md for the format")
    return made, folder


def _undecoded(feature: Any) -> Any:
    """The feature with images left as bytes and paths."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    inner = getattr(feature, "feature", None)
    return datasets.List(datasets.Image(decode=False)) if isinstance(inner, datasets.Image) else feature


@dataclass(frozen=True, slots=True)
class _DatasetImage:
    value: Any
    folder: Path
    where: str

    def __call__(self) -> Image.Image:
        try:
            with Image.open(io.BytesIO(self._bytes())) as image:
                return image.convert("RGB")
        except ImageProblem:
            raise
        except Exception as error:  # Pillow's decoders raise almost anything
            raise ImageProblem("image_unreadable", self.where, got=f"{type(error).__name__}: {error}") from error

    def digest(self) -> str:
        return hashlib.sha256(self._bytes()).hexdigest()

    def _bytes(self) -> bytes:
        value = self.value
        data = value.get("bytes") if isinstance(value, Mapping) else None
        if data:
            return bytes(data)
        name = value.get("path") if isinstance(value, Mapping) else value
        if not isinstance(name, str) or not name:
            raise ImageProblem("image_unreadable", self.where, got=repr(value)[:80], expected="bytes or a path")
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise ImageProblem("image_missing", name, expected=f"the file {self.folder / name}") from None
        except OSError as error:
            raise ImageProblem("image_unreadable", name, got=error) from None


def _messages(prompt: Any, where: str) -> list[Message]:
    if isinstance(prompt, str):
        return user_turn(prompt)
    if not isinstance(prompt, list) or not prompt or not all(isinstance(turn, Mapping) for turn in prompt):
        raise InputError(
            f"The prompt of {where} is none", got=repr(prompt)[:80], expected="a text or a list of messages"
        )
    messages: list[Message] = []
    for turn in prompt:
        content = turn.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
        messages.append({"role": str(turn.get("role")), "content": [_part(part) for part in parts]})
    images = sum(part["type"] == "image" for message in messages for part in message["content"])
    if not images:
        first = next((message for message in messages if message["role"] == "user"), messages[-1])
        first["content"].insert(0, {"type": "image"})
    elif images > 1:
        raise InputError(f"The prompt of {where} places several images", got=images, expected="one")
    return messages


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    # Arrow fills the fields that a part lacks with None.
    return {"type": "image"} if part.get("type") == "image" else {"type": "text", "text": str(part.get("text") or "")}


def _answer(answer: Any, where: str, side: str) -> str:
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], Mapping):
        answer = answer[0].get("content")
        if isinstance(answer, list):
            answer = "".join(str(part.get("text") or "") for part in answer)
    if not isinstance(answer, str):
        raise InputError(f"`{side}` of {where} is no answer", got=repr(answer)[:80], expected="a text or one message")
    return answer
