"""Preference pairs on disk: those of a run (`run_pairs`), or from elsewhere in TRL's format (`trl_pairs`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import msgspec
import pyarrow as pa
from PIL import Image

from spr.core.errors import InputError
from spr.core.images import ImageProblem, ImageSource
from spr.core.paths import exists, is_dir
from spr.core.text_input import TextInput, text_lines
from spr.models.chat import Message, user_turn
from spr.records import CUT_REASONS, PreferencePair, Size
from spr.runs.folder import check_run_version, is_run
from spr.runs.reviews import ReviewMode, Reviews
from spr.runs.store import StageStore


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPair:
    """A pair as its source gives it, by the id of its query or its row number.

    ``load`` returns the image as RGB, and ``digest`` the hex digest of its file and of how it is turned; both raise
    `ImageProblem`. ``size_wh`` is None if the size is not known without opening the image. An answer that is not
    complete was cut when it was generated; it is trained on without an end of turn. A pair of another ``split`` than
    ``train`` is never trained on, nor is one with a ``left_out``, the reason why reviewers left it out. ``file_name``
    is that of a run's image.
    """

    pair_id: str
    messages: Sequence[Message]
    chosen: str
    rejected: str
    load: Callable[[], Image.Image]
    digest: Callable[[], str]
    size_wh: Size | None = None
    chosen_complete: bool = True
    rejected_complete: bool = True
    split: str = "train"
    left_out: str | None = None
    file_name: str | None = None

    @property
    def excluded(self) -> str | None:
        """Why the pair must not be trained on (`spr.core.reasons.TRAINING_REASONS`); None if it may."""
        return self.left_out if self.split == "train" else "held_out"


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the answers are complete, and the split, as far as a row says so."""
    chosen, rejected = (str(row.get(f"{side}_finish_reason")) not in CUT_REASONS for side in ("chosen", "rejected"))
    split = next((value for name, value in row.items() if name.lower() == "split" and value not in (None, "")), "train")
    return {"chosen_complete": chosen, "rejected_complete": rejected, "split": str(split)}


# ── pairs of a run ────────────────────────────────────────────────────────────────────────────────────────────────────


def run_pairs(
    run: Path, images: ImageSource, reviews: ReviewMode = "use", *, negatives: bool = False
) -> Iterator[TrainingPair]:
    """The pairs of a run folder, in order, or `RunError` if its stage `pairs` is not finished.

    Pairs of held-out images and those that reviewers left out are among them; `spr.training.trainer.train` drops them.
    ``images`` is the config's `AnnotationsConfig.image_source`; ``reviews`` says what becomes of reviewers' decisions.
    With ``negatives``, those of the stage `negatives` follow; it has to be finished, too. Reviewers don't see them, so
    ``require`` leaves them out.
    """
    check_run_version(run)
    store, questions = StageStore(run / "pairs"), StageStore(run / "negatives")
    store.finished()
    if negatives:
        questions.finished()
    made = Reviews.read(run)

    def pair(row: dict[str, Any]) -> TrainingPair:
        size_wh, prompt = (row["width"], row["height"]), user_turn(row["prompt"])
        image = RunImage(images, row["file_name"], size_wh)
        pair_id = row["query_id"] + ("/boxes" if row.get("kind") == "boxes" else "")
        answers, left_out = (row["chosen"], row["rejected"]), None
        if reviews == "require" or (reviews == "use" and made.mentions(pair_id)):
            reviewed = made.apply(PreferencePair.from_row(row), reviews)
            if isinstance(reviewed, str):
                left_out = reviewed
            else:
                answers = reviewed.chosen, reviewed.rejected
        known = {**_known(row), "left_out": left_out, "file_name": row["file_name"]}
        return TrainingPair(pair_id, prompt, *answers, image, image.digest, size_wh, **known)

    def question(row: dict[str, Any]) -> TrainingPair:
        size_wh, left_out = (row["width"], row["height"]), "not_accepted_in_review" if reviews == "require" else None
        image = RunImage(images, row["file_name"], size_wh)
        known = {"split": row["split"], "left_out": left_out, "file_name": row["file_name"]}
        texts = user_turn(row["prompt"]), row["chosen"], row["rejected"]
        return TrainingPair(row["query_id"], *texts, image, image.digest, size_wh, **known)

    described = (pair(row) for table in store.tables() for row in table.to_pylist())
    if not negatives:
        return described
    return chain(described, (question(row) for table in questions.tables() for row in table.to_pylist()))


@dataclass(frozen=True, slots=True)
class RunImage:
    """An image of a run; calling it returns the pixels as RGB in the orientation of the boxes."""

    images: ImageSource
    file_name: str
    size_wh: Size

    def __call__(self) -> Image.Image:
        """Load the image; raises `ImageProblem`."""
        return self.images.load(self.file_name, self.size_wh)

    def digest(self) -> str:
        """Hex digest of the file, followed by the orientation option."""
        return hashlib.sha256(self.images.read_bytes(self.file_name)).hexdigest() + self.images.orientation


# ── pairs in TRL's format ─────────────────────────────────────────────────────────────────────────────────────────────


def trl_pairs(source: Path, *, allow_outside_images: bool = False) -> Iterator[TrainingPair]:
    """Pairs in TRL's preference format: ``images`` (a list of one) or ``image``, ``prompt``, ``chosen``, ``rejected``.

    Prompt and answers are texts, or lists of messages with one assistant message per answer. A text prompt becomes the
    user's turn. The columns ``chosen_finish_reason`` and ``rejected_finish_reason`` are optional: one of `CUT_REASONS`
    means that the answer was cut. So is ``split``: rows whose split is not ``train`` are never trained on, nor are
    those of files with ``test``, ``val`` and the like in their names in a folder. The source is a folder of
    `datasets.Dataset.save_to_disk`, a folder of Parquet files, or a .parquet, .jsonl or .json file, the last two as
    they are or packed with gzip. Images are stored in it, or are paths, relative to its folder. They are turned
    upright, as viewers show them. A path that is absolute or leads out of the folder is ``path_outside_images``, unless
    ``allow_outside_images``.

    Raises:
        InputError: if the source can't be read, lacks a column, or a row is not a pair about one image.
    """
    rows = _open_rows(source)
    files = ImageSource(source if is_dir(source) else source.parent, allow_outside=allow_outside_images)

    def pair(number: int, row: dict[str, Any]) -> TrainingPair:
        where = f"row {number} of {source}"
        images: Sequence[Any] = (row["images"] or ()) if "images" in row else [row.get("image")]
        if len(images) != 1:
            raise InputError(f"{where} is not about one image", got=len(images), expected="`images` with one image")
        image = _DatasetImage(images[0], files, where)
        chosen, rejected = (_answer(row.get(side), where, side) for side in ("chosen", "rejected"))
        prompt = _messages(row.get("prompt"), where)
        return TrainingPair(str(number), prompt, chosen, rejected, image, image.digest, **_known(row))

    return (pair(number, row) for number, row in enumerate(rows))


_HELD_OUT_FILE = re.compile(
    r"(?<![a-z])(test(ing|[ab])?|val(id(ation)?)?|dev|eval(uation)?|h[eo]ld[-_]?out)(?![a-z])", re.IGNORECASE
)
"""A word in the name of a file or folder of a dataset that is not for training, as on the Hugging Face Hub."""
_TRAIN_FILE = re.compile(r"(?<![a-z])train(ing)?(?![a-z])", re.IGNORECASE)
_SOURCES = "a dataset folder, or a .parquet, .jsonl or .json file"
_IMAGES = "paths or bytes; in `images`, a list with one of them"


def _open_rows(source: Path) -> Iterable[dict[str, Any]]:
    """The rows of any source; the first one is checked for all columns."""
    if not exists(source):
        raise InputError(f"There is nothing at {source}", expected=_SOURCES, fix="check the path given to --pairs")
    suffixes = source.suffixes[-2:] if source.suffix == ".gz" else source.suffixes[-1:]
    if is_dir(source) or suffixes == [".parquet"]:
        return _open_dataset(source)
    if suffixes[:1] not in ([".jsonl"], [".json"]):
        raise InputError(f"{source} can't be read as pairs", got=source.suffix or "no suffix", expected=_SOURCES)
    rows = _json_rows(source)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{source} can't be read as pairs", got="no rows", expected=_SOURCES)
    _image_column(set(first), source)
    return chain([first], rows)


def _image_column(columns: set[str], source: Path) -> str:
    column = "image" if "image" in columns and "images" not in columns else "images"
    missing = [name for name in ("prompt", "chosen", "rejected", column) if name not in columns]
    if missing:
        got = f"columns {', '.join(sorted(columns))}"
        raise InputError(f"{source} lacks {' and '.join(missing)}", got=got, fix="see docs/training.md for the format")
    return column


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
                    yield _with_images(row, source)
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


def _open_dataset(source: Path) -> Iterable[dict[str, Any]]:
    """The rows of a dataset folder or a Parquet file; those of a folder's held-out files come last."""
    if not is_dir(source) or ((source / "dataset_info.json").is_file() and (source / "state.json").is_file()):
        return _dataset_rows(source, None if is_dir(source) else [source])
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
        return _dataset_rows(source, files)
    rows = _dataset_rows(source, [path for path in files if path not in held_out]) if len(held_out) < len(files) else ()
    return chain(rows, ({**row, "split": "test"} for row in _dataset_rows(source, held_out)))


def _is_held_out(name: str) -> bool:
    return _HELD_OUT_FILE.search(name) is not None and _TRAIN_FILE.search(name) is None


def _dataset_rows(source: Path, files: Sequence[Path] | None) -> Iterable[dict[str, Any]]:
    try:
        if files is None:
            dataset = datasets.load_from_disk(str(source))
        else:
            dataset = datasets.load_dataset("parquet", data_files=list(map(str, files)), split="train")
    except Exception as error:  # Arrow and datasets raise many kinds of errors for a broken file
        got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{source} can't be read as pairs", got=got, expected=_SOURCES) from error
    column = _image_column(set(dataset.column_names), source)
    image = datasets.Image(decode=False)
    try:
        rows: Iterable[dict[str, Any]] = dataset.cast_column(
            column, image if column == "image" else datasets.List(image)
        )
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
class _DatasetImage:
    value: Mapping[str, Any] | None
    files: ImageSource
    where: str

    def __call__(self) -> Image.Image:
        name, data = self._file()
        return self.files.load(name, data=data)

    def digest(self) -> str:
        name, data = self._file()
        return hashlib.sha256(self.files.read_bytes(name) if data is None else data).hexdigest()

    def _file(self) -> tuple[str, bytes | None]:
        value = self.value or {}
        if data := value.get("bytes"):
            return self.where, bytes(data)
        if not (name := value.get("path")):
            raise ImageProblem("image_unreadable", self.where, got=repr(self.value)[:80], expected="bytes or a path")
        return name, None


def _messages(prompt: Any, where: str) -> list[Message]:
    if isinstance(prompt, str):
        return user_turn(prompt)
    if not isinstance(prompt, list) or not prompt or not all(isinstance(turn, Mapping) for turn in prompt):
        got, expected = repr(prompt)[:80], "a text or a list of messages"
        raise InputError(f"The prompt of {where} can't be read", got=got, expected=expected)
    messages: list[Message] = [
        {"role": str(turn.get("role")), "content": _parts(turn.get("content"), where)} for turn in prompt
    ]
    images = sum(part["type"] == "image" for message in messages for part in message["content"])
    if not images:
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


def _answer(answer: Any, where: str, side: str) -> str:
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], Mapping):
        answer = answer[0].get("content")
        if isinstance(answer, list):
            answer = "".join(part.get("text", "") for part in _parts(answer, where))
    if not isinstance(answer, str):
        got, expected = repr(answer)[:80], "a text or one message"
        raise InputError(f"`{side}` of {where} is not an answer", got=got, expected=expected)
    return answer


# ── encoding ──────────────────────────────────────────────────────────────────────────────────────────────────────────
