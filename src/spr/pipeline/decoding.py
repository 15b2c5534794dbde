"""Images of a shard, each opened and decoded once, ahead of the model that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from spr.images import ImageProblem, load_image
from spr.records import RegionQuery
from spr.sections import AnnotationsConfig

AHEAD = 16
"""Images decoded, or being decoded, before they are asked for."""
THREADS = 4


class Decoded(NamedTuple):
    """An image of one or several queries, or why it can't be used."""

    image: Image.Image | ImageProblem
    queries: tuple[RegionQuery, ...]


def decode_ahead(queries: Iterable[RegionQuery], settings: AnnotationsConfig) -> Iterator[Decoded]:
    """Each image with its queries, in the order in which the images first come; a few are in memory at a time."""
    by_image: dict[str, list[RegionQuery]] = {}
    for query in queries:
        by_image.setdefault(query.image_id, []).append(query)
    waiting: deque[tuple[Future[Image.Image | ImageProblem], tuple[RegionQuery, ...]]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="decode") as pool:
        for group in by_image.values():
            waiting.append((pool.submit(_load, group[0], settings), tuple(group)))
            if len(waiting) >= AHEAD:
                yield _next(waiting)
        while waiting:
            yield _next(waiting)


def _next(waiting: deque[tuple[Future[Image.Image | ImageProblem], tuple[RegionQuery, ...]]]) -> Decoded:
    future, group = waiting.popleft()
    return Decoded(future.result(), group)


def _load(query: RegionQuery, settings: AnnotationsConfig) -> Image.Image | ImageProblem:
    try:
        return load_image(
            settings.images,
            query.file_name,
            (query.width, query.height),
            orientation=settings.orientation,
            max_pixels=settings.max_pixels,
        )
    except ImageProblem as problem:
        return problem
