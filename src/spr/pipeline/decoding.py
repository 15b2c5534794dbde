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
from spr.records import RegionQuery

AHEAD = 16
"""Maximum number of images that are decoded, or being decoded, before they are needed."""
PIXELS_AT_ONCE = 100_000_000
"""Maximum number of pixels (about 0.3 GB) decoded ahead or handed to a model together; a single item may exceed it."""

Item = TypeVar("Item")


def decode_ahead(
    queries: Iterable[RegionQuery], images: ImageSource
) -> Iterator[tuple[list[RegionQuery], Image.Image | ImageProblem]]:
    """Yield the queries of each image with the decoded image, or with the reason why it can't be used.

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

    return ordered_map(
        load,
        by_image.values(),
        ahead=AHEAD,
        budget=PIXELS_AT_ONCE,
        cost=lambda group: group[0].width * group[0].height,
    )


def in_groups(items: Iterable[Item], size: int, pixels: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield consecutive items in groups of at most ``size``; a group also ends once it holds `PIXELS_AT_ONCE`.

    Args:
        items: Taken one by one.
        size: At least 1.
        pixels: The number of pixels that an item holds.
    """
    group: list[Item] = []
    held = 0
    for item in items:
        group.append(item)
        held += pixels(item)
        if len(group) >= size or held >= PIXELS_AT_ONCE:
            yield group
            group, held = [], 0
    if group:
        yield group
