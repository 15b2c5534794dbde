"""Decodes the images of a shard once each, ahead of the model that needs them.

What is in memory at a time is bounded by number and, because some photographs are a hundred times larger than others,
by pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from PIL import Image

from spr.core.images import ImageProblem, ImageSource
from spr.core.ordered_map import ordered_map
from spr.pipeline.stage import OnDrop
from spr.records import RegionQuery

AHEAD = 16
"""Maximum number of images that are decoded, or being decoded, before they are needed."""
QUERIES_AT_ONCE = 32
"""Queries handed to a model together: enough to fill its batches. Fewer where images are large, more where all of them
are small: the ends of their batches, which are not full, cost less then."""
SMALL_QUERIES_AT_ONCE = 128
"""Maximum number of queries handed to a model together as long as they hold less than `SMALL_PIXELS`."""
SMALL_PIXELS = 8_000_000
"""Number of pixels (24 MB) up to which more than `QUERIES_AT_ONCE` queries are handed to a model together."""
PIXELS_AT_ONCE = 100_000_000
"""Maximum number of pixels (about 0.3 GB) decoded ahead or handed to a model together; a single item may exceed it."""

Item = TypeVar("Item")


def decode_ahead(
    queries: Iterable[RegionQuery], images: ImageSource, on_drop: OnDrop, *, most_pixels: int = PIXELS_AT_ONCE
) -> Iterator[tuple[RegionQuery, Image.Image]]:
    """Yield each query with its decoded image; ``on_drop`` is called for each image that can't be used.

    Images come in the order in which the queries first name them.
    """
    by_image: dict[str, list[RegionQuery]] = {}
    for query in queries:
        by_image.setdefault(query.image_id, []).append(query)

    def load(group: list[RegionQuery]) -> Image.Image | ImageProblem:
        try:
            return images.load(group[0].file_name, (group[0].width, group[0].height))
        except ImageProblem as problem:
            return problem

    def pixels(group: list[RegionQuery]) -> int:
        return group[0].width * group[0].height

    for group, image in ordered_map(load, by_image.values(), ahead=AHEAD, budget=most_pixels, cost=pixels):
        if isinstance(image, ImageProblem):
            on_drop("image", group[0].image_id, image.reason)
        else:
            yield from ((query, image) for query in group)


def in_groups(
    items: Iterable[Item],
    pixels: Callable[[Item], int],
    *,
    most_items: int = QUERIES_AT_ONCE,
    most_pixels: int = PIXELS_AT_ONCE,
    most_small_items: int = SMALL_QUERIES_AT_ONCE,
    small_pixels: int = SMALL_PIXELS,
) -> Iterator[list[Item]]:
    """Yield consecutive items in groups, which end once their items hold ``most_pixels``, or at ``most_items``.

    Groups of small items, which hold less than ``small_pixels``, end at ``most_small_items`` instead.
    """
    group: list[Item] = []
    held = 0
    for item in items:
        group.append(item)
        held += pixels(item)
        most = most_items if held >= small_pixels else max(most_items, most_small_items)
        if len(group) >= most or held >= most_pixels:
            yield group
            group, held = [], 0
    if group:
        yield group
