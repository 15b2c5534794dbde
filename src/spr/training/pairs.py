"""From a preference pair on disk to what the model reads.

Pairs come from a run (`run_pairs`) or, in TRL's preference format, from elsewhere (`trl_pairs`). `PairEncoder` encodes
them: `plan` before the training starts, `process` in threads ahead of the model, and `finish` with the vision tower.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import msgspec
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from spr.core.errors import ConfigError, InputError, SprError
from spr.core.images import ImageProblem, ImageSource
from spr.core.text_input import TextInput, text_lines
from spr.grounding import Dialect
from spr.grounding.text import Range
from spr.models.chat import Message, render_answer, render_turn, user_turn
from spr.models.families import Family
from spr.models.image_processors import encode
from spr.records import CUT_REASONS, Size
from spr.runs.folder import check_run_version
from spr.runs.store import StageStore
from spr.training.boxes import changed_numbers, token_weights
from spr.training.shared_prefix import EncodedPair
from spr.training.vision_cache import Features, FeatureStore, MemoryFeatures, feature_key


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPair:
    """A pair as its source gives it, by the id of its query or its row number.

    ``load`` returns the image as RGB, and ``digest`` the hex digest of its file and of how it is turned; both raise
    `ImageProblem`. ``size_wh`` is None if the size is not known without opening the image. An answer that is not
    complete was cut when it was generated; it is trained on without an end of turn.
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


def _complete(row: Mapping[str, Any]) -> tuple[bool, bool]:
    chosen, rejected = (str(row.get(f"{side}_finish_reason")) not in CUT_REASONS for side in ("chosen", "rejected"))
    return chosen, rejected


# ── pairs of a run ────────────────────────────────────────────────────────────────────────────────────────────────────


def run_pairs(run: Path, images: ImageSource) -> Iterator[TrainingPair]:
    """The pairs of a run folder, in order, or `RunError` if its `pairs` stage is not finished.

    ``images`` is the config's `AnnotationsConfig.image_source`.
    """
    check_run_version(run)
    store = StageStore(run / "pairs")
    store.finished()

    def pair(row: dict[str, Any]) -> TrainingPair:
        size_wh, prompt = (row["width"], row["height"]), user_turn(row["prompt"])
        image = RunImage(images, row["file_name"], size_wh)
        pair_id = row["query_id"] + ("/boxes" if row.get("kind") == "boxes" else "")
        answers = row["chosen"], row["rejected"]
        return TrainingPair(pair_id, prompt, *answers, image, image.digest, size_wh, *_complete(row))

    return (pair(row) for table in store.tables() for row in table.to_pylist())


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
    means that the answer was cut. The source is a folder of `datasets.Dataset.save_to_disk`, a folder of
    Parquet files, or a .parquet, .jsonl or .json file, the last two as they are or packed with gzip. Images are stored
    in it, or are paths, relative to its folder. They are turned upright, as viewers show them. A path that is absolute
    or leads out of the folder is ``path_outside_images``, unless ``allow_outside_images``.

    Raises:
        InputError: if the source can't be read, lacks a column, or a row is not a pair about one image.
    """
    rows = _open_rows(source)
    files = ImageSource(source if source.is_dir() else source.parent, allow_outside=allow_outside_images)

    def pair(number: int, row: dict[str, Any]) -> TrainingPair:
        where = f"row {number} of {source}"
        images: Sequence[Any] = (row["images"] or ()) if "images" in row else [row.get("image")]
        if len(images) != 1:
            raise InputError(f"{where} is not about one image", got=len(images), expected="`images` with one image")
        image = _DatasetImage(images[0], files, where)
        chosen, rejected = (_answer(row.get(side), where, side) for side in ("chosen", "rejected"))
        prompt = _messages(row.get("prompt"), where)
        return TrainingPair(str(number), prompt, chosen, rejected, image, image.digest, None, *_complete(row))

    return (pair(number, row) for number, row in enumerate(rows))


_SOURCES = "a dataset folder, or a .parquet, .jsonl or .json file"
_IMAGES = "paths or bytes; in `images`, a list with one of them"


def _open_rows(source: Path) -> Iterable[dict[str, Any]]:
    """The rows of any source; the first one is checked for all columns."""
    if not source.exists():
        raise InputError(f"There is nothing at {source}", expected=_SOURCES, fix="check the path given to --pairs")
    suffixes = source.suffixes[-2:] if source.suffix == ".gz" else source.suffixes[-1:]
    if source.is_dir() or suffixes == [".parquet"]:
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
    try:
        if (source / "dataset_info.json").is_file() and (source / "state.json").is_file():
            dataset = datasets.load_from_disk(str(source))
        else:
            files = sorted(map(str, source.rglob("*.parquet"))) if source.is_dir() else [str(source)]
            dataset = datasets.load_dataset("parquet", data_files=files, split="train")
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
    return rows


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

NOT_VISION = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
"""Outputs of processors that are not inputs of the vision tower."""


@dataclass(frozen=True, slots=True, eq=False)
class PlannedPair:
    """A pair that can be trained on, with its prompt as rendered by the chat template.

    The answers' tokens are ``(R,)`` int64, and their weights ``(R,)`` float32, or None if all are 1; ``prompt_tokens``
    counts the prompt's with those of the image; ``key`` is the hex digest of prompt, answers, image and weights.
    """

    pair: TrainingPair
    turn: str
    chosen: Tensor
    rejected: Tensor
    prompt_tokens: int
    key: str
    chosen_weights: Tensor | None = None
    rejected_weights: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens of the prompt and both answers."""
        return self.prompt_tokens + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedPair:
    """A pair's image and prompt after the processor.

    ``prompt`` are ``(P,)`` int64 tokens, ``positions`` ``(axes, P)`` int64. ``vision`` are the inputs of the vision
    tower, empty once the features are kept, under ``key``.
    """

    prompt: Tensor
    positions: Tensor
    vision: dict[str, Tensor]
    key: str


class PairEncoder:
    """Encodes pairs for a transformers model, with its processor from `spr.models.image_processors.load_processor`.

    ``identity`` identifies both in the features' keys. With a `MemoryFeatures` store, processed pairs are kept as well.
    ``box_weight`` is `training.box_token_weight`; other values than 1 need the ``dialect`` of the boxes in the answers.

    Raises:
        ConfigError: if ``box_weight`` is not 1, and the tokenizer does not report which characters a token stands for.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        family: Family,
        store: FeatureStore,
        *,
        identity: str,
        box_weight: float = 1.0,
        dialect: Dialect | None = None,
    ) -> None:
        self.model, self.processor, self.family = model, processor, family
        self.box_weight, self.dialect = box_weight, dialect
        if box_weight != 1 and not processor.tokenizer.is_fast:
            message = "`training.box_token_weight` needs a tokenizer that reports which characters a token stands for"
            fix = "set training.box_token_weight=1, or add a tokenizer.json to the model's folder"
            raise ConfigError(message, got=type(processor.tokenizer).__name__, expected="a fast tokenizer", fix=fix)
        self.store, self.identity = store, identity
        self.pad = processor.tokenizer.pad_token_id
        self._image_token = int(processor.tokenizer.convert_tokens_to_ids(processor.image_token))
        self._kept: dict[str, ProcessedPair] = {}

    def plan(
        self, pairs: Iterable[TrainingPair], max_length: int, *, with_rejected: bool = True
    ) -> tuple[list[PlannedPair], list[tuple[str, str]]]:
        """Tokenize answers, count the tokens of prompts, and drop the pairs that can't be trained on.

        Returns the remaining pairs in order, and ``(pair_id, reason)`` for each dropped one; the reasons are keys of
        `spr.core.reasons.TRAINING_REASONS` and `IMAGE_REASONS`. ``max_length`` is the maximum number of tokens of a
        prompt with one answer.
        """
        planned: list[PlannedPair] = []
        dropped: list[tuple[str, str]] = []
        for pair in pairs:
            try:
                result = self._plan(pair, max_length, with_rejected)
            except ImageProblem as problem:
                result = problem.reason
            if isinstance(result, PlannedPair):
                planned.append(result)
            else:
                dropped.append((pair.pair_id, result))
        return planned, dropped

    def _plan(self, pair: TrainingPair, max_length: int, with_rejected: bool) -> PlannedPair | str:
        if not pair.chosen.strip() or (with_rejected and not pair.rejected.strip()):
            return "empty_answer"
        if with_rejected and pair.chosen == pair.rejected:
            return "answers_equal"
        turn = render_turn(self.processor, self.family, pair.messages)
        numbers = self._changed_numbers(pair)
        (chosen, chosen_weights), (rejected, rejected_weights) = (
            self._answer_ids(turn, pair.messages, *answer)
            for answer in (
                (pair.chosen, pair.chosen_complete, numbers[0]),
                (pair.rejected, pair.rejected_complete, numbers[1]),
            )
        )
        answers = (chosen, rejected) if with_rejected else (chosen,)
        if any((ids == self._image_token).any() for ids in answers):
            return "answer_has_image_token"
        prompt_tokens = self._count_prompt(pair, turn)
        if prompt_tokens + max(map(len, answers)) > max_length:
            return "too_long"
        content: list[Any] = [turn, pair.chosen, pair.rejected, pair.digest()]
        if not (pair.chosen_complete and pair.rejected_complete):
            content.append({"complete": [pair.chosen_complete, pair.rejected_complete]})
        weights = chosen_weights, rejected_weights
        if any((part != 1).any() for part in weights if part is not None):
            content.append({"weights": [part.tolist() for part in weights if part is not None]})
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return PlannedPair(pair, turn, chosen, rejected, prompt_tokens, key, *weights)

    def _changed_numbers(self, pair: TrainingPair) -> tuple[list[Range] | None, list[Range] | None]:
        if self.box_weight == 1 or self.dialect is None:
            return None, None
        size_wh = pair.size_wh or pair.load().size
        texts = (pair.chosen, pair.rejected), (pair.rejected, pair.chosen)
        chosen, rejected = (changed_numbers(*answers, self.dialect, size_wh) for answers in texts)
        return chosen, rejected

    def _answer_ids(
        self, turn: str, messages: Sequence[Message], answer: str, complete: bool, numbers: Sequence[Range] | None
    ) -> tuple[Tensor, Tensor | None]:
        """The answer's tokens after the prompt, and their weights if ``numbers`` are given, which are places in it.

        They are tokenized alone if the prompt's tokens would change otherwise.
        """
        rendered = render_answer(self.processor, self.family, messages, answer)
        start = rendered.index(answer)
        if not complete:
            rendered = rendered[: start + len(answer)]
        tokenizer, texts = self.processor.tokenizer, [turn, turn + rendered, rendered]
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=numbers is not None)
        before, whole, alone = encoded["input_ids"]
        joined = whole[: len(before)] == before
        ids = torch.tensor(whole[len(before) :] if joined else alone)
        if numbers is None:
            return ids, None
        start += len(turn) if joined else 0
        offsets = encoded["offset_mapping"][1][len(before) :] if joined else encoded["offset_mapping"][2]
        ranges = [(start + begin, start + end) for begin, end in numbers]
        return ids, token_weights(offsets, ranges, self.box_weight)

    def _count_prompt(self, pair: TrainingPair, turn: str) -> int:
        if hasattr(self.processor, "_get_num_multimodal_tokens") and not self.family.bidirectional_prompt:
            width, height = pair.size_wh or pair.load().size
            counted = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
            bos = self.processor.tokenizer.bos_token
            special = not (bos and turn.startswith(bos))
            words = len(self.processor.tokenizer(turn, add_special_tokens=special)["input_ids"])
            return words - 1 + int(counted["num_image_tokens"][0])
        return int(encode(self.processor, [turn], [pair.load()])["input_ids"].shape[1])

    def process(self, planned: PlannedPair) -> ProcessedPair:
        """Load the image and run the processor. Bound to the CPU; threads may run it ahead of the model."""
        if (kept := self._kept.get(planned.pair.pair_id)) is not None:
            return kept
        inputs = encode(self.processor, [planned.turn], [planned.pair.load()])
        prompt = inputs["input_ids"][0]
        vision = {name: tensor for name, tensor in inputs.items() if name not in NOT_VISION}
        if len(prompt) != planned.prompt_tokens:
            message = f"The prompt of pair {planned.pair.pair_id} has another number of tokens than counted before"
            fix = "the image has changed since the training began; restore it or start the training again"
            raise SprError(message, got=len(prompt), expected=planned.prompt_tokens, fix=fix)
        # The key covers all vision inputs, because Ferret's features also depend on the regions in the prompt.
        return ProcessedPair(prompt, self._positions(prompt, vision), vision, feature_key(vision, self.identity))

    def _positions(self, prompt: Tensor, vision: dict[str, Tensor]) -> Tensor:
        """The positions of the prompt's tokens, ``(axes, P)``."""
        model, ids = self.model.model, prompt[None]
        if hasattr(model, "get_rope_index"):
            types = (ids == self._image_token).int()
            positions, _ = model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=vision["image_grid_thw"])
            return torch.as_tensor(positions[:, 0])
        if hasattr(model, "prompt_positions"):  # CogVLM: the patches of an image share one position
            return torch.as_tensor(model.prompt_positions(ids))
        return torch.arange(len(prompt))[None] + int(self.family.bidirectional_prompt)

    def finish(
        self, planned: PlannedPair, processed: ProcessedPair, compute: Callable[[dict[str, Tensor]], Features]
    ) -> EncodedPair:
        """Add the image's features, from the store or from ``compute``, which runs the vision tower."""
        features: Features | None = self.store.get(processed.key)
        if features is None:
            features = compute(processed.vision)
            self.store.put(processed.key, features)
        name = planned.pair.pair_id
        # Only if the features are kept too: without its vision inputs they can't be computed again.
        if isinstance(self.store, MemoryFeatures) and self.store.get(processed.key) is not None:
            self._kept[name] = replace(processed, vision={})
        answers = planned.chosen, planned.rejected
        weights = planned.chosen_weights, planned.rejected_weights
        return EncodedPair(name, processed.prompt, processed.positions, *answers, features, *weights)


def plan_digest(planned: Sequence[PlannedPair]) -> str:
    """Hex digest of the pairs' texts and images, in order."""
    return hashlib.sha256("".join(pair.key for pair in planned).encode()).hexdigest()[:16]


def context_length(model: Any, max_length: int | None) -> int:
    """Maximum number of tokens of a prompt with an answer: ``max_length``, but at most the model's context length."""
    limit = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2**31)
    return min(max_length or limit, limit)


def processor_digest(processor: Any, family: Family) -> str:
    """Hex digest of what determines the encoding: tokenizer, image processor and chat template."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    images = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    turn = processor.chat_template or family.turn
    return hashlib.sha256("\0".join([words, images, str(turn), type(processor).__name__]).encode()).hexdigest()[:16]
