"""Images of a shard, each opened and decoded once, ahead of the model that needs them.

What is in memory together is bounded by count and, since photographs may be a hundred times as large as others, by
pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from PIL import Image

from spr.config import AnnotationsConfig
from spr.core.images import ImageProblem
from spr.records import RegionQuery

AHEAD = 16
"""Images decoded, or being decoded, before they are asked for."""
THREADS = 4
PIXELS_AT_ONCE = 100_000_000
"""About 0.3 GB. Of what is decoded ahead and of what is handed to a model together; an item may pass it alone."""

Item = TypeVar("Item")


class Decoded(NamedTuple):
    """An image of one or several queries, or why it can't be used."""

    image: Image.Image | ImageProblem
    queries: tuple[RegionQuery, ...]


def decode_ahead(queries: Iterable[RegionQuery], settings: AnnotationsConfig) -> Iterator[Decoded]:
    """Each image with its queries, in the order in which the images first come; at most `AHEAD` are in memory."""
    by_image: dict[str, list[RegionQuery]] = {}
    for query in queries:
        by_image.setdefault(query.image_id, []).append(query)
    waiting: deque[tuple[Future[Image.Image | ImageProblem], tuple[RegionQuery, ...]]] = deque()
    pixels = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="decode") as pool:
        for group in by_image.values():
            waiting.append((pool.submit(_load, group[0], settings), tuple(group)))
            pixels += group[0].width * group[0].height
            while len(waiting) >= AHEAD or (waiting and pixels > PIXELS_AT_ONCE):
                pixels -= waiting[0][1][0].width * waiting[0][1][0].height
                yield _next(waiting)
        while waiting:
            yield _next(waiting)


def in_groups(items: Iterable[Item], most: int, pixels: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Runs of items of at most ``most``; a run also ends with the item that takes it to `PIXELS_AT_ONCE`.

    Args:
        items: Taken one by one.
        most: At least 1.
        pixels: How many an item holds.
    """
    group: list[Item] = []
    held = 0
    for item in items:
        group.append(item)
        held += pixels(item)
        if len(group) >= most or held >= PIXELS_AT_ONCE:
            yield group
            group, held = [], 0
    if group:
        yield group


def _next(waiting: deque[tuple[Future[Image.Image | ImageProblem], tuple[RegionQuery, ...]]]) -> Decoded:
    future, group = waiting.popleft()
    return Decoded(future.result(), group)


def _load(query: RegionQuery, settings: AnnotationsConfig) -> Image.Image | ImageProblem:
    try:
        return settings.image_source.load(query.file_name, (query.width, query.height))
    except ImageProblem as problem:
        return problem
