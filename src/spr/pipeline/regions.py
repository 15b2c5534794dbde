"""Objects → region queries (METHOD §2): regions grown around random objects until enough objects are inside.

All images of a shard grow at once, as arrays padded to the largest number of objects; one image is a batch of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spr.config import Config, RegionsConfig
from spr.core import boxes as bx
from spr.core.randomness import stable_hash
from spr.pipeline.stage import Stage
from spr.records.columns import ObjectColumns, box_array, list_array
from spr.records.schemas import REGIONS
from spr.runs.store import StageOutput, dropped_table

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BATCH = 64
"""Images grown together; sorted by their number of objects, so that padding is short."""
ROWS = 512
"""The most regions grown together, where several starts of an image are tried at once."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What became of a batch of regions.

    Attributes:
        regions_xyxy: float64 ``(B, 4)``.
        inside: bool ``(B, N)``: which objects are inside.
        valid: bool ``(B,)``: enough objects inside, and wide enough.
    """

    regions_xyxy: npt.NDArray[np.float64]
    inside: Bools
    valid: Bools


def grow_regions(boxes_xyxy: npt.ArrayLike, real: npt.ArrayLike, start: npt.ArrayLike, config: RegionsConfig) -> Growth:
    """Grow one region an image from its start object (METHOD §2.1–2.4).

    The region takes in the closest object that is not inside, again and again, by growing to the union with its box;
    it stops when ``min_inside`` objects are inside and its short side over its long side is over ``min_aspect``.

    Args:
        boxes_xyxy: ``(B, N, 4)``, pixels; objects in the order of their ids, which breaks ties of distance.
        real: bool ``(B, N)``: False where a row of boxes is only padding.
        start: int ``(B,)``: index of the start object.
        config: Thresholds and the readings of "closest" and "fails".

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
        over = valid[active] | ~outside.any(axis=1)
        if config.failed_aspect == "next_start":
            over |= enough
        active, region, objects, outside = active[~over], region[~over], objects[~over], outside[~over]
        closest = _closest(region, objects, outside, config)
        regions[active] = bx.union(regions[active], boxes[active, closest])
    return Growth(regions, inside, valid)


class Found(NamedTuple):
    """A valid region: its start object's index, its box ``(4,)`` and which objects are inside ``(N,)``."""

    start: int
    region_xyxy: Floats
    inside: Bools


def _closest(region: Floats, objects: Floats, outside: Bools, config: RegionsConfig) -> npt.NDArray[np.intp]:
    centres = np.where(outside, bx.centre_distance(objects, region), np.inf)
    if config.distance == "centre":
        return np.asarray(centres.argmin(axis=1))
    gaps = np.where(outside, bx.gap_distance(objects, region), np.inf)
    nearest = gaps == gaps.min(axis=1, keepdims=True, initial=np.inf)
    return np.asarray(np.where(nearest, centres, np.inf).argmin(axis=1))


def find_regions(
    boxes_xyxy: npt.NDArray[np.float64], real: Bools, order: Ints, config: RegionsConfig
) -> list[list[Found]]:
    """Up to ``per_image`` different valid regions an image, trying start objects in the given order (METHOD §2.4–2.5).

    Args:
        boxes_xyxy: ``(B, N, 4)``, pixels.
        real: bool ``(B, N)``.
        order: int ``(B, N)``: the objects' indices in the order in which they are tried, padding last.
        config: See `grow_regions`.

    Returns:
        For each image what was found, perhaps nothing.
    """
    found: list[list[Found]] = [[] for _ in boxes_xyxy]
    counts = real.sum(axis=1)
    active = np.flatnonzero(counts >= config.min_inside)
    tried, together = 0, 1
    while len(active):
        # One start first, mostly enough; then twice as many at once each time, since small batches cost most.
        attempts = np.arange(tried, min(tried + together, real.shape[1]))
        rows = np.repeat(active, len(attempts))
        starts = order[active][:, attempts].reshape(-1)
        wanted = np.tile(attempts, len(active)) < counts[rows]
        rows, starts = rows[wanted], starts[wanted]
        grown = grow_regions(boxes_xyxy[rows], real[rows], starts, config)
        for k in np.flatnonzero(grown.valid):
            mine, region = found[rows[k]], grown.regions_xyxy[k]
            known = any(np.array_equal(region, other.region_xyxy) for other in mine)
            if len(mine) < config.per_image and not known:
                mine.append(Found(int(starts[k]), region, grown.inside[k]))
        tried += together
        together = min(2 * together, max(1, ROWS // len(active)))
        unsatisfied = [len(found[row]) < config.per_image and tried < counts[row] for row in active]
        active = active[np.asarray(unsatisfied, dtype=bool)]
    return found


def make_regions(tables: Mapping[str, pa.Table], config: Config) -> StageOutput:
    """The stage: a shard of `spr.records.schemas.OBJECTS` → a shard of `spr.records.schemas.REGIONS`.

    Drops images that yield no region (``too_few_objects``: fewer than ``min_inside``; ``no_valid_region``: every start
    object's region stayed too narrow), and queries over the number that an image can give (``no_further_region``).
    """
    table = tables["objects"]
    columns = ObjectColumns.of(table)
    ids = columns.ids.to_pylist()
    image_ids = table["image_id"].to_pylist()
    keys = _start_keys(image_ids, ids, columns, config.seed)
    found: list[list[Found]] = [[] for _ in image_ids]
    by_count = np.argsort(columns.counts, kind="stable")
    for first in range(0, len(by_count), BATCH):
        batch = by_count[first : first + BATCH]
        boxes, real, order = _padded(columns, keys, batch)
        for row, regions in zip(batch, find_regions(boxes, real, order, config.regions), strict=True):
            found[row] = regions
    return _collect(table, columns, ids, found, config)


def _start_keys(image_ids: list[str], ids: list[str], columns: ObjectColumns, seed: int) -> npt.NDArray[np.uint64]:
    # The order of start objects depends on the seed and the ids alone, not on the order or number of the other objects.
    owners = np.repeat(np.arange(len(image_ids)), columns.counts)
    hashes = [stable_hash(seed, "start", image_ids[row], own) for row, own in zip(owners.tolist(), ids, strict=True)]
    return np.asarray(hashes, dtype=np.uint64)


def _padded(columns: ObjectColumns, keys: npt.NDArray[np.uint64], batch: Ints) -> tuple[Floats, Bools, Ints]:
    real, flat = columns.real(batch), columns.of_rows(batch)
    boxes = np.zeros((*real.shape, 4))
    boxes[real] = columns.boxes_xyxy[flat]
    padded_keys = np.zeros(real.shape, dtype=np.uint64)
    padded_keys[real] = keys[flat]
    # Padding comes last, whatever the hashes; equal hashes keep the order of the ids.
    order = np.lexsort((padded_keys, ~real), axis=1).astype(np.int64)
    return boxes, real, order


def _collect(
    table: pa.Table,
    columns: ObjectColumns,
    ids: list[str],
    found: list[list[Found]],
    config: Config,
) -> StageOutput:
    image_ids, counts = table["image_id"].to_pylist(), columns.counts
    rows: list[int] = []
    query_ids: list[str] = []
    starts: list[str] = []
    regions: list[Floats] = []
    inside: list[Bools] = []
    no_region: list[tuple[str, str]] = []
    no_query: list[tuple[str, str]] = []
    for row, image_id in enumerate(image_ids):
        for number, (start, region, within) in enumerate(found[row]):
            rows.append(row)
            query_ids.append(f"{image_id}/{number}")
            starts.append(ids[columns.offsets[row] + start])
            regions.append(region)
            inside.append(within[: counts[row]])
        if not found[row]:
            few = counts[row] < config.regions.min_inside
            no_region.append((image_id, "too_few_objects" if few else "no_valid_region"))
        else:
            missing = range(len(found[row]), config.regions.per_image)
            no_query += [(f"{image_id}/{number}", "no_further_region") for number in missing]
    taken = np.asarray(rows, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts[taken])]).astype(np.int64)
    objects = columns.structs.take(pa.array(columns.of_rows(taken)))
    kind = REGIONS.field("objects").type.value_type
    marks = pa.array(np.concatenate([*inside, np.zeros(0, dtype=bool)]))
    fields = [marks if f.name == "inside" else objects.field(f.name) for f in kind]
    made = {
        "query_id": pa.array(query_ids, pa.string()),
        **{name: table[name].take(pa.array(rows, pa.int64())) for name in ("image_id", "file_name", "width", "height")},
        "region": box_array(np.asarray(regions).reshape(-1, 4)),
        "start_object": pa.array(starts, pa.string()),
        "objects": list_array(offsets, pa.StructArray.from_arrays(fields, fields=list(kind))),
    }
    dropped = [dropped_table("regions", "image", no_region), dropped_table("regions", "query", no_query)]
    return StageOutput(pa.table(made, schema=REGIONS), pa.concat_tables(dropped))


STAGE = Stage(
    "regions",
    version=1,
    unit="regions",
    sections=("seed", "regions"),
    process=make_regions,
    inputs=("objects",),
)
