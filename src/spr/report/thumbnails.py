"""Small pictures beside the report, so that it can be moved and needs no other file; a thread a core makes them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from spr.config import AnnotationsConfig
from spr.core.errors import RunError
from spr.core.images import ImageProblem

SIDE = 640
"""Longer side of a thumbnail in pixels, at most."""
_LOSSLESS = 256
"""Pictures no longer than this are stored as PNG: JPEG would spoil them, and they are small anyway."""
_A_FOLDER = 1000
_AHEAD = 64

T = TypeVar("T")


class Thumbnails:
    """Makes the thumbnail of each image once.

    Args:
        folder: The report's folder; pictures go to ``thumbs/`` in it.
        config: Where the images are, and how they are turned.
    """

    def __init__(self, folder: Path, config: AnnotationsConfig) -> None:
        self._folder, self._config = folder, config
        self._made: dict[str, Future[dict[str, Any]]] = {}
        # Pillow decodes, scales and encodes without holding Python's lock.
        self._pool = ThreadPoolExecutor(max_workers=max(os.cpu_count() or 1, 1))

    def attach(
        self, items: Iterable[T], image_of: Callable[[T], tuple[str, int, int]]
    ) -> Iterator[tuple[T, dict[str, Any]]]:
        """Each item, in order, with ``{"src": …}`` or ``{"problem": …, "detail": …}``; made some items ahead.

        Args:
            items: Whatever has an image.
            image_of: Its file name, and annotated width and height in pixels.

        Raises:
            RunError: if a thumbnail can't be written.
        """
        waiting: deque[tuple[T, Future[dict[str, Any]]]] = deque()
        with self._pool:
            try:
                for item in items:
                    waiting.append((item, self._start(*image_of(item))))
                    if len(waiting) > _AHEAD:
                        ready, made = waiting.popleft()
                        yield ready, made.result()
                for ready, made in waiting:
                    yield ready, made.result()
            finally:
                self._pool.shutdown(cancel_futures=True)

    def _start(self, file_name: str, width: int, height: int) -> Future[dict[str, Any]]:
        if file_name not in self._made:
            number = len(self._made)
            self._made[file_name] = self._pool.submit(self._make, number, file_name, (width, height))
        return self._made[file_name]

    def _make(self, number: int, file_name: str, size_wh: tuple[int, int]) -> dict[str, Any]:
        try:
            picture = self._config.image_source.thumbnail(file_name, size_wh, SIDE)
        except ImageProblem as problem:
            return {"problem": problem.reason, "detail": str(problem)}
        # Numbers, not the images' own names: those may hold anything.
        kind = "png" if max(picture.size) <= _LOSSLESS else "jpg"
        source = f"thumbs/{number // _A_FOLDER:04d}/{number:07d}.{kind}"
        path = self._folder / source
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=75)
        except OSError as error:
            raise RunError(f"{path} can't be written", got=error, fix="make room, or choose another --out") from None
        return {"src": source}
