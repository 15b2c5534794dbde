"""A journal of the answers of an unfinished shard, so that an interrupted run does not ask for them again.

The file is append-only, one JSON object per line, each with a hash of everything that determines the answer. Lines that
a crash cut off are ignored, and their answers are asked for again. In object storage, the file is put again as a whole,
at most every `PAUSE` seconds: a crash loses the answers since then.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from spr.config import DescriberConfig
from spr.core.documents import parse_json
from spr.core.errors import RunError
from spr.core.progress import advance
from spr.core.remote import RemotePath
from spr.models.protocols import Answer, Describer, DescribeRequest, StreamingDescriber, check_answer

PAUSE = 30.0
"""Seconds between two uploads of a journal."""
_SAMPLING = ("temperature", "top_p", "max_new_tokens", "request_fields")


class AnswerJournal:
    """A `Describer` that appends each answer to a file as soon as it arrives, and reuses the answers in the file.

    Args:
        describer: The model.
        file: Created with the first answer.
        settings: The describer's config section; the sampling options are part of an answer's key.

    Raises:
        RunError: if the file can't be read; from `describe`, if it can't be written.
    """

    def __init__(self, describer: Describer, file: Path, settings: DescriberConfig) -> None:
        self.name, self.dialect = describer.name, describer.dialect
        self.describer, self.file = describer, file
        sampling = {name: getattr(settings, name) for name in _SAMPLING}
        self._head = json.dumps([self.name, sampling], sort_keys=True).encode()
        self._known, self._text = _read(file)
        self._ends_with_newline = not self._text or self._text.endswith(b"\n")
        self._put_at = time.monotonic()

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Answer]:
        """One answer per request; the model is asked only for those that the journal lacks."""
        keys = self._keys(requests)
        missing = [k for k, key in enumerate(keys) if key not in self._known]
        new = [requests[k] for k in missing]
        advance(len(requests) - len(new))
        if new and isinstance(self.describer, StreamingDescriber):
            self.describer.describe_each(new, lambda number, answer: self._append([(keys[missing[number]], answer)]))
        elif new:
            # In one write: a resumed shard must ask in the same batches as one that was never interrupted.
            self._append(zip((keys[k] for k in missing), self.describer.describe(new), strict=True))
        return [self._known[key] for key in keys]

    def _keys(self, requests: Sequence[DescribeRequest]) -> list[str]:
        """Hashes of model, sampling, query, prompt, seed and pixels; an image is hashed once for all its requests."""
        images = {id(request.image): request.image for request in requests}
        pixels = {number: _pixels(image) for number, image in images.items()}
        keys = []
        for request in requests:
            question = json.dumps([request.query and request.query.query_id, request.prompt, request.seed]).encode()
            keys.append(hashlib.sha256(b"\0".join((self._head, question, pixels[id(request.image)]))).hexdigest())
        return keys

    def _append(self, answers: Iterable[tuple[str, Answer]]) -> None:
        added = {key: check_answer(answer, self.describer) for key, answer in answers}
        entries = [
            {"key": key, "answer": answer.text, "finish_reason": answer.finish_reason} for key, answer in added.items()
        ]
        lines = [json.dumps(entry) + "\n" for entry in entries]
        self._known.update(added)
        if isinstance(self.file, RemotePath):
            self._text += ("" if self._ends_with_newline else "\n").encode() + "".join(lines).encode()
            self._ends_with_newline = True
            if time.monotonic() - self._put_at >= PAUSE:
                self.file.put(self._text)
                self._put_at = time.monotonic()
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="ascii") as file:
                file.write(("" if self._ends_with_newline else "\n") + "".join(lines))
        except OSError as error:
            fix = "free some disk space, or choose another --out"
            raise RunError(f"{self.file} can't be written", got=error, fix=fix) from None
        self._ends_with_newline = True


def _pixels(image: Image.Image) -> bytes:
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).digest()


def _read(file: Path) -> tuple[dict[str, Answer], bytes]:
    """The answers by key, and the file's content. Lines without a finish reason are ignored."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return {}, b""
    except OSError as error:
        raise RunError(
            f"{file} can't be read", got=error, fix="check the permissions, or delete it and compute its answers again"
        ) from None
    known = {}
    for line in data.splitlines():
        try:
            entry = parse_json(line)
        except ValueError:
            continue  # cut off by a crash
        match entry:
            case {"key": str(key), "answer": str(text), "finish_reason": str() | None as reason}:
                known[key] = Answer(text, reason)
    return known, data
