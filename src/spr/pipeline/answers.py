"""Answers of a shard that is not finished, kept in a file: what was once answered is not asked again.

The file is append-only, one JSON object a line, each with the hash of all that decides the answer. Lines that a crash
tore are passed over, and asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from spr.config import DescriberConfig
from spr.core.errors import RunError
from spr.models.protocols import Describer, DescribeRequest, StreamingDescriber

_DECIDING = ("temperature", "top_p", "max_new_tokens", "request_fields")


class KeptAnswers:
    """A `Describer` that writes each answer down as soon as it is there, and gives those that were written before.

    Args:
        describer: The one that is asked.
        file: Where answers are kept; made with the first.
        settings: The describer's section: how it samples is part of an answer's key.

    Raises:
        RunError: if the file can't be read; from `describe`, if it can't be written.
    """

    def __init__(self, describer: Describer, file: Path, settings: DescriberConfig) -> None:
        self.name, self.dialect = describer.name, describer.dialect
        self.describer, self.file = describer, file
        sampling = {name: getattr(settings, name) for name in _DECIDING}
        self._head = json.dumps([self.name, sampling], sort_keys=True).encode()
        self._known, self._whole = _read(file)

    def describe(self, requests: Sequence[DescribeRequest]) -> list[str]:
        """One raw answer a request; only what is not known is asked."""
        keys = self._keys(requests)
        missing = [k for k, key in enumerate(keys) if key not in self._known]
        asked = [requests[k] for k in missing]
        if asked and isinstance(self.describer, StreamingDescriber):
            self.describer.describe_each(asked, lambda number, answer: self._keep([(keys[missing[number]], answer)]))
        elif asked:
            # All in one write: a shard that goes on asks in the same batches as one that was never stopped.
            self._keep(zip((keys[k] for k in missing), self.describer.describe(asked), strict=True))
        return [self._known[key] for key in keys]

    def _keys(self, requests: Sequence[DescribeRequest]) -> list[str]:
        """Hashes of model, sampling, query, prompt, seed and pixels; an image is read once for all its requests."""
        images = {id(request.image): request.image for request in requests}
        pixels = {number: _pixels(image) for number, image in images.items()}
        keys = []
        for request in requests:
            query_id = request.query.query_id if request.query is not None else None
            said = json.dumps([query_id, request.prompt, request.seed]).encode()
            keys.append(hashlib.sha256(b"\0".join((self._head, said, pixels[id(request.image)]))).hexdigest())
        return keys

    def _keep(self, answers: Iterable[tuple[str, str]]) -> None:
        added = dict(answers)
        lines = [json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in added.items()]
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="ascii") as file:
                file.write(("" if self._whole else "\n") + "".join(lines))
        except OSError as error:
            raise RunError(
                f"{self.file} can't be written", got=error, fix="make room, or choose another --out"
            ) from None
        self._whole = True
        self._known.update(added)


def _pixels(image: Image.Image) -> bytes:
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).digest()


def _read(file: Path) -> tuple[dict[str, str], bool]:
    """The answers by their keys, and whether the last line has its end."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return {}, True
    except OSError as error:
        raise RunError(f"{file} can't be read", got=error, fix="delete it: its answers are asked again") from None
    known = {}
    for line in data.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # torn by a crash
        if isinstance(entry, dict) and isinstance(entry.get("key"), str) and isinstance(entry.get("answer"), str):
            known[entry["key"]] = entry["answer"]
    return known, data.endswith(b"\n") or not data
