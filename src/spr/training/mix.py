"""`training.mix`: rows of other instruction data that are mixed into the training, so that less is forgotten.

A row is in one of TRL's formats, as texts or as lists of messages:

- preference: ``prompt``, ``chosen``, ``rejected``: trained on like the run's own pairs;
- prompt-completion: ``prompt``, ``completion``, or a conversation: ``messages``, whose last one is the assistant's.
  These are supervised: the loss is the per-token negative log-likelihood of the answer.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spr.config.training import MixSection
from spr.core.errors import InputError
from spr.core.images import ImageProblem, ImageSource
from spr.core.paths import is_dir
from spr.core.progress import advance
from spr.core.randomness import stable_hash
from spr.training.pairs import TrainingPair, known_of
from spr.training.trl_rows import LINE, DatasetImage, open_rows, read_answer, read_messages

_FORMATS = "`prompt`, `chosen`, `rejected`; or `prompt`, `completion`; or `messages`"
_PLACEHOLDER = "<image>"


def rows_per_epoch(pairs: int, share: float) -> int:
    """The number of rows that make up this share of an epoch with so many pairs; at least 1.

    >>> rows_per_epoch(900, 0.1)  # 100 of 1,000
    100
    """
    return max(round(pairs * share / (1 - share)), 1)


def read_mix(
    mix: MixSection, most: int, seed: int, *, without_image: bool = True
) -> tuple[list[TrainingPair], list[tuple[str, str]]]:
    """At most ``most`` rows of the file, in the order of a hash of the seed and their number; and those that can't be.

    The second list has the ids and reasons of rows with several images and, unless the model's family can be trained on
    prompts ``without_image``, of rows without one. All rows are checked, but only those that are returned are kept in
    memory. Rows of a ``split`` other than ``train`` are left out.

    Raises:
        InputError: if the file can't be read or is in another format, or for a row that can't be read, naming its line.
    """
    source = _path(mix)
    files = ImageSource(mix.images or (source if is_dir(source) else source.parent))
    chosen: list[tuple[int, int, TrainingPair]] = []  # a heap, the row with the largest hash first
    dropped: list[tuple[str, str]] = []
    trainable = 0
    for number, row in enumerate(open_rows(source, _check_columns, "training.mix.path")):
        advance()
        pair = _pair(number, row, source, files)
        if pair.split != "train":
            continue
        trainable += 1
        reason = pair.left_out or (None if without_image or pair.has_image else "no_image")
        if reason is not None:
            dropped.append((pair.pair_id, reason))
            continue
        entry = (-stable_hash(seed, "mix", str(number)), -number, pair)
        if len(chosen) < most:
            heapq.heappush(chosen, entry)
        elif entry > chosen[0]:
            heapq.heapreplace(chosen, entry)
    if not trainable:
        got, fix = "only rows of another `split` than train", "give the file with the training split"
        raise InputError(f"{source} has no row to train on", got=got, fix=fix)
    return [pair for *_, pair in sorted(chosen, key=lambda entry: entry[:2], reverse=True)], dropped


def rows_of_epoch(epoch: int, rows: int, per_epoch: int) -> list[int]:
    """The numbers of the rows that are trained on in an epoch: the next ones in order, starting again at the end.

    >>> tuple(rows_of_epoch(epoch, 5, 2) for epoch in range(3))
    ([0, 1], [2, 3], [4, 0])
    """
    count = min(rows, per_epoch)
    return [(epoch * count + k) % rows for k in range(count)]


def _path(mix: MixSection) -> Path:
    if mix.path is None:
        raise ValueError("training.mix has no path")
    return mix.path


def check_mix(mix: MixSection) -> None:
    """Raise `InputError` if the file is missing, empty or in another format, from its first row."""
    open_rows(_path(mix), _check_columns, "training.mix.path")


def _check_columns(columns: set[str], source: Path) -> None:
    if "messages" in columns or (
        "prompt" in columns and ({"chosen", "rejected"} <= columns or "completion" in columns)
    ):
        return
    got, fix = f"columns {', '.join(sorted(columns))}", "see docs/training.md for the formats"
    if "conversations" in columns:
        fix = "rename `conversations` to `messages`, and `from` and `value` to `role` and `content` (user, assistant)"
    raise InputError(f"{source} is in none of TRL's formats", got=got, expected=_FORMATS, fix=fix)


def _pair(number: int, row: Mapping[str, Any], source: Path, files: ImageSource) -> TrainingPair:
    where = f"line {row[LINE]} of {source}" if LINE in row else f"row {number} of {source}"
    given = [row["image"]] if row.get("image") else []
    images: Sequence[Any] = (row["images"] or ()) if "images" in row else given
    images = [image for image in images if not isinstance(image, Mapping) or image.get("path") or image.get("bytes")]
    image = DatasetImage(images[0], files, where) if images else None
    options: dict[str, Any] = {"mixed": True, "has_image": image is not None, **known_of(row)}
    if len(images) > 1:
        options["left_out"] = "several_images"
        image = None
    prompt, chosen, rejected = row.get("prompt"), row.get("chosen"), row.get("rejected")
    name = "chosen"
    if row.get("messages") is not None:
        name, options["supervised"] = "messages", True
        prompt, chosen = _conversation(row["messages"], where)
        rejected = ""
    elif row.get("completion") is not None:
        name, options["supervised"] = "completion", True
        chosen, rejected = row["completion"], ""
    if prompt is None or chosen is None or rejected is None:
        got = ", ".join(sorted(name for name, value in row.items() if value is not None and name != LINE)) or "nothing"
        raise InputError(f"{where} is in none of TRL's formats", got=got, expected=_FORMATS)
    messages = [] if len(images) > 1 else read_messages(_cleaned(prompt), where, image=image is not None)
    answers = read_answer(chosen, where, name), read_answer(rejected, where, "rejected")
    load = image if image is not None else _no_image(where)
    return TrainingPair(f"mix/{number}", messages, *answers, load, image.digest if image else _nothing, **options)


def _conversation(messages: Any, where: str) -> tuple[list[Any], Any]:
    """The prompt and the answer of a conversation."""
    last = messages[-1] if isinstance(messages, list) and len(messages) > 1 else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        got = repr(messages if last is None else last)[:80]
        expected = "at least two messages, with `role` and `content`, the last one of the assistant"
        raise InputError(f"`messages` of {where} is not a conversation with an answer", got=got, expected=expected)
    return messages[:-1], [last]


def _cleaned(prompt: Any) -> Any:
    """The prompt without the placeholder ``<image>``, which other trainers put into texts; the row has the image."""
    if isinstance(prompt, str):
        return prompt.replace(f"{_PLACEHOLDER}\n", "").replace(_PLACEHOLDER, "")
    if isinstance(prompt, list):
        return [
            {**turn, "content": _cleaned(turn["content"])}
            if isinstance(turn, Mapping) and isinstance(turn.get("content"), str)
            else turn
            for turn in prompt
        ]
    return prompt


def _nothing() -> str:
    return "no image"


def _no_image(where: str) -> Any:
    def load() -> Any:
        raise ImageProblem("image_missing", where, got="a row without image", expected="an image")

    return load


def at_share(pairs: int, rows: int, share: float) -> str | None:
    """A line for the user if the file has too few rows for the share.

    >>> at_share(900, 50, 0.1)
    'training.mix: only 50 of its rows can be used, 5.3 % of an epoch instead of 10.0 %'
    >>> at_share(900, 100, 0.1)
    """
    if rows >= rows_per_epoch(pairs, share):
        return None
    reached = f"{100 * rows / (rows + pairs):.1f} % of an epoch instead of {100 * share:.1f} %"
    return f"training.mix: only {rows:,} of its rows can be used, {reached}"
