"""Objects → region queries: regions grown around random objects until enough objects are inside (paper, Sec. 3.1).

All images of a shard grow together, as arrays padded to the largest number of objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spr.config import Config, RegionsConfig
from spr.core import boxes as bx
from spr.core.progress import advance
from spr.core.randomness import stable_hashes
from spr.core.reasons import DROP_REASONS
from spr.pipeline.stage import Drops, Stage
from spr.records import ImageObjects, RegionQuery
from spr.records.columns import ObjectColumns, box_array, list_array
from spr.records.schemas import REGIONS, from_table, to_table
from spr.runs.store import StageOutput

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NAME = "regions"
BATCH = 64
"""Images per batch; they are sorted by their number of objects, so that little padding is needed."""
ROWS = 512
"""Maximum number of regions per batch when several start objects of an image are tried at once."""


@dataclass(frozen=True, slots=True)
class Growth:
    """A batch of grown regions: boxes in pixels, float64 ``(B, 4)``, and which objects are inside, bool ``(B, N)``.

    ``valid``, bool ``(B,)``: whether enough objects are inside and the region is wide enough.
    """

    regions_xyxy: Floats
    inside: Bools
    valid: Bools


class FoundRegion(NamedTuple):
    """A valid region: index of its start object, box ``(4,)`` in pixels, and which objects are inside, ``(N,)``."""

    start: int
    region_xyxy: Floats
    inside: Bools


def make_regions(
    images: Iterable[ImageObjects], config: RegionsConfig | None = None, *, seed: int = 0
) -> list[RegionQuery]:
    """Make the region queries of images (paper, Sec. 3.1).

    Start objects are tried in an order that depends on the seed and the ids. Images without a valid region give none.

    Args:
        images: Images with their objects.
        config: Number of regions and thresholds; None uses the defaults.
        seed: Seed of the order in which start objects are tried.
    """
    table = to_table(images, ImageObjects)
    return from_table(regions_table(table, config or RegionsConfig(), seed).table, RegionQuery)


def grow_regions(boxes_xyxy: npt.ArrayLike, real: npt.ArrayLike, start: npt.ArrayLike, config: RegionsConfig) -> Growth:
    """Grow one region per image from its start object (paper, Sec. 3.1; supplement, Sec. 1).

    A region grows to the union with the box of the closest object outside, until ``min_inside`` objects are inside and
    its short side divided by its long side is over ``min_aspect``.

    Args:
        boxes_xyxy: ``(B, N, 4)``, pixels; objects sorted by id, which decides between equal distances.
        real: bool ``(B, N)``: False for padding.
        start: int ``(B,)``: index of the start object.
        config: Thresholds, the measure of distance, and what to do with a region that is too narrow.

    >>> row = [[10 * i, 0, 10 * i + 8, 30] for i in range(6)]
    >>> grown = grow_regions([row], [[True] * 6], [0], RegionsConfig(min_inside=3))
    >>> grown.regions_xyxy.tolist(), grown.inside.sum().item(), grown.valid.tolist()
    ([[0.0, 0.0, 28.0, 30.0]], 3, [True])
    """
    boxes = bx.as_boxes(boxes_xyxy)
    real = np.asarray(real, dtype=bool)
    rows = np.arange(len(boxes))
    regions = boxes[rows, np.asarray(start, dtype=np.int64)]
    inside = np.zeros(real.shape, dtype=bool)
    valid = np.zeros(len(boxes), dtype=bool)
    active = rows
    while len(active):
        region, objects = regions[active, None, :], boxes[active]
        inside[active] = bx.at_least(bx.fraction_inside(objects, region), config.inside_fraction) & real[active]
        outside = real[active] & ~inside[active]
        enough = inside[active].sum(axis=1) >= config.min_inside
        wide = bx.over(bx.aspect(regions[active]), config.min_aspect)
        valid[active] = enough & wide
        finished = valid[active] | ~outside.any(axis=1)
        if config.failed_aspect == "next_start":
            finished |= enough
        grows = ~finished
        active, region, objects, outside = active[grows], region[grows], objects[grows], outside[grows]
        closest = _closest(region, objects, outside, config)
        regions[active] = bx.union(regions[active], boxes[active, closest])
    return Growth(regions, inside, valid)


def _closest(region: Floats, objects: Floats, outside: Bools, config: RegionsConfig) -> npt.NDArray[np.intp]:
    centres = np.where(outside, bx.centre_distance(objects, region), np.inf)
    if config.distance == "centre":
        return np.asarray(centres.argmin(axis=1))
    gaps = np.where(outside, bx.gap_distance(objects, region), np.inf)
    nearest = gaps == gaps.min(axis=1, keepdims=True, initial=np.inf)
    return np.asarray(np.where(nearest, centres, np.inf).argmin(axis=1))


def find_regions(boxes_xyxy: Floats, real: Bools, order: Ints, config: RegionsConfig) -> list[list[FoundRegion]]:
    """Find up to ``per_image`` different valid regions per image, possibly none.

    ``order``, ``(B, N)``, has the indices of the objects in the order in which they are tried, padding last. See
    `grow_regions` for the other arguments.
    """
    found: list[list[FoundRegion]] = [[] for _ in boxes_xyxy]
    counts = real.sum(axis=1)
    active = np.flatnonzero(counts >= config.min_inside)
    tried, together = 0, 1
    while len(active):
        # One start object is usually enough. The number is doubled each time, because small batches cost most.
        attempts = np.arange(tried, min(tried + together, real.shape[1]))
        rows = np.repeat(active, len(attempts))
        starts = order[active][:, attempts].reshape(-1)
        wanted = np.tile(attempts, len(active)) < counts[rows]
        rows, starts = rows[wanted], starts[wanted]
        grown = grow_regions(boxes_xyxy[rows], real[rows], starts, config)
        for k in np.flatnonzero(grown.valid):
            own, region = found[rows[k]], grown.regions_xyxy[k]
            known = any(np.array_equal(region, other.region_xyxy) for other in own)
            if len(own) < config.per_image and not known:
                own.append(FoundRegion(int(starts[k]), region, grown.inside[k]))
        tried += together
        together = min(2 * together, max(1, ROWS // len(active)))
        unsatisfied = [len(found[row]) < config.per_image and tried < counts[row] for row in active]
        active = active[np.asarray(unsatisfied, dtype=bool)]
    return found


def regions_table(objects: pa.Table, config: RegionsConfig, seed: int) -> StageOutput:
    """Compute a shard of `spr.records.schemas.REGIONS` from a shard of `spr.records.schemas.OBJECTS`."""
    columns = ObjectColumns.of(objects)
    ids, image_ids = columns.ids.to_pylist(), objects["image_id"].to_pylist()
    # The order of start objects depends on the seed and the ids alone, not on the other objects.
    edges = columns.offsets.tolist()
    hashes = [
        stable_hashes(seed, "start", image_id, last=ids[start:end])
        for image_id, start, end in zip(image_ids, edges, edges[1:], strict=False)
    ]
    keys = np.concatenate([np.empty(0, np.uint64), *hashes])
    found: list[list[FoundRegion]] = [[] for _ in image_ids]
    by_count = np.argsort(columns.counts, kind="stable")
    for first in range(0, len(by_count), BATCH):
        batch = by_count[first : first + BATCH]
        for row, regions in zip(batch, find_regions(*_padded(columns, keys, batch), config), strict=True):
            found[row] = regions
        advance(len(batch))
    drops = Drops()
    for image_id, count, regions in zip(image_ids, columns.counts, found, strict=True):
        if not regions:
            drops.add("image", image_id, "too_few_objects" if count < config.min_inside else "no_valid_region")
            continue
        for number in range(len(regions), config.per_image):
            drops.add("query", f"{image_id}/{number}", "no_further_region")
    return StageOutput(_queries(objects, columns, ids, found), drops.table(NAME, "image", "query"))


def _padded(columns: ObjectColumns, keys: npt.NDArray[np.uint64], batch: Ints) -> tuple[Floats, Bools, Ints]:
    real, flat = columns.real(batch), columns.of_rows(batch)
    boxes = np.zeros((*real.shape, 4))
    boxes[real] = columns.boxes_xyxy[flat]
    padded_keys = np.zeros(real.shape, dtype=np.uint64)
    padded_keys[real] = keys[flat]
    # Padding comes last; equal hashes keep the order of the ids.
    return boxes, real, np.lexsort((padded_keys, ~real), axis=1).astype(np.int64)


def _queries(objects: pa.Table, columns: ObjectColumns, ids: list[str], found: list[list[FoundRegion]]) -> pa.Table:
    image_ids, counts = objects["image_id"].to_pylist(), columns.counts
    numbered = [(row, number, region) for row, own in enumerate(found) for number, region in enumerate(own)]
    rows = np.asarray([row for row, _, _ in numbered], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts[rows])]).astype(np.int64)
    taken = columns.structs.take(pa.array(columns.of_rows(rows)))
    inside = [region.inside[: counts[row]] for row, _, region in numbered]  # without the padding
    kind = REGIONS.field("objects").type.value_type
    marks = pa.array(np.concatenate([*inside, np.zeros(0, dtype=bool)]))
    fields = [marks if f.name == "inside" else taken.field(f.name) for f in kind]
    content = {
        "query_id": pa.array([f"{image_ids[row]}/{number}" for row, number, _ in numbered], pa.string()),
        **{name: objects[name].take(pa.array(rows)) for name in ("image_id", "file_name", "width", "height", "split")},
        "region": box_array(np.asarray([region.region_xyxy for _, _, region in numbered]).reshape(-1, 4)),
        "start_object": pa.array([ids[columns.offsets[row] + r.start] for row, _, r in numbered], pa.string()),
        "objects": list_array(offsets, pa.StructArray.from_arrays(fields, fields=list(kind))),
    }
    return pa.table(content, schema=REGIONS)


def process(tables: Mapping[str, pa.Table], config: Config) -> StageOutput:
    """`regions_table` on a shard of the table `objects`."""
    return regions_table(tables["objects"], config.regions, config.seed)


STAGE = Stage(
    NAME,
    version=2,
    unit="regions",
    kind="image",
    schema=REGIONS,
    process=process,
    reasons=DROP_REASONS[NAME],
    inputs=("objects",),
    sections=("seed", "regions"),
)
