"""Small copies of the images in the report's folder, so that the report can be moved and needs no other file."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from spr.core.images import ImageSource
from spr.core.ordered_map import ordered_map
from spr.core.processes import available_cores, can_start_processes, process_map
from spr.core.remote import RemotePath
from spr.records import Size
from spr.report import thumbnail_files
from spr.report.thumbnail_files import NumberedImage, Written, thumbnail_name, write_thumbnails
from spr.runs.reader import JoinedPair

LEFT_OUT = {"problem": "left_out", "detail": "The report was written with --no-images."}
"""In place of a thumbnail."""
MOST_WORKERS = 8
"""More worker processes would wait for this one, which writes the gallery's data meanwhile."""
_BATCH = 16
"""Images that a worker process is given at a time."""
_AHEAD = 4096
"""Images that may be done before their pairs are. The pairs of a shard are read all at once, which takes seconds."""
_FEW = 1000
"""For fewer images, worker processes take longer to start than they save."""


def with_thumbnails(
    pairs: Iterable[JoinedPair],
    images: Iterable[tuple[str, Size]],
    source: ImageSource,
    folder: Path,
    *,
    workers: int | None = None,
) -> Generator[tuple[JoinedPair, dict[str, Any]]]:
    """Each pair in order, with ``{"src": …}`` or ``{"problem": …, "detail": …}``.

    Each image has one thumbnail, in ``thumbs/`` of the report's folder. Workers write those of the next pairs.

    Args:
        pairs: The pairs.
        images: The file name of each pair's image and its size in pixels, in the same order; read some pairs ahead.
        source: Where the images are.
        folder: The report's folder.
        workers: The number of worker processes for many images in a local folder, None for one per core; 1 uses none.
            A few images and those in object storage are read in threads.
    """
    numbers: dict[str, int] = {}
    written: list[Written] = []

    def distinct() -> Iterator[NumberedImage]:
        for file_name, size_wh in images:
            if file_name not in numbers:
                numbers[file_name] = len(numbers)
                yield NumberedImage(numbers[file_name], file_name, size_wh)

    with contextlib.closing(_write_all(distinct(), source, folder, workers)) as done:
        for item in pairs:
            while (number := numbers.get(item.pair.file_name, len(written))) >= len(written):
                written += next(done)
            found = written[number]
            yield item, {"src": thumbnail_name(number, found)} if isinstance(found, str) else found


def _write_all(
    images: Iterator[NumberedImage], source: ImageSource, folder: Path, workers: int | None
) -> Generator[list[Written]]:
    """Write all thumbnails, and yield what became of them, in order, for some images at a time."""
    work = partial(write_thumbnails, source, folder)
    first = list(itertools.islice(images, _FEW + 1))
    images = itertools.chain(first, images)
    workers = min(available_cores(), MOST_WORKERS) if workers is None else workers
    few = len(first) <= _FEW or workers == 1 or isinstance(source.folder, RemotePath) or not can_start_processes()
    if few:
        # Pillow decodes, scales and encodes without holding Python's interpreter lock.
        one_by_one = ([image] for image in images)
        for _, written in ordered_map(work, one_by_one, threads=available_cores(), ahead=64):
            yield written
    else:
        fix = "free some memory, and run the same command again"
        options: dict[str, Any] = {"preload": [thumbnail_files.__name__], "fix": fix}
        batches = iter(lambda: list(itertools.islice(images, _BATCH)), [])
        yield from process_map(work, batches, workers=workers, ahead=_AHEAD // _BATCH, **options)
