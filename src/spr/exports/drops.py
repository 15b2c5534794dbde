"""What a run dropped, with its image and region, so that annotation tools can show it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from spr.core.images import ImageSource
from spr.core.paths import is_file
from spr.core.reasons import explain
from spr.exports.formats import DroppedItem, ImageMode
from spr.exports.images import export_images
from spr.runs.reader import Run
from spr.runs.store import read_table

LISTED = 200
"""Items per stage, kind and reason; ``RUN/dropped.parquet`` lists all."""


def dropped_items(run: Run, source: ImageSource, mode: ImageMode, folder: Path) -> list[DroppedItem]:
    """The first `LISTED` items of each reason whose image is in the table of objects, with images that can be used.

    Images and objects that the first stage dropped are not in that table; ``RUN/dropped.parquet`` lists them.
    """
    items = list(_with_place(run, list(_first_of_each(run))))
    images = export_images(items, source, mode, folder)
    usable = zip(items, images, strict=True)
    return [item._replace(path=image.path) for item, image in usable if not isinstance(image, str)]


def _first_of_each(run: Run) -> Iterator[dict[str, str]]:
    path = run.path / "dropped.parquet"
    if not is_file(path):
        return
    table = read_table(path)
    table = table.filter(pc.not_equal(table["kind"], "object"))  # their ids don't say in which image they are
    for group in table.group_by(["kind", "stage", "reason"]).aggregate([]).to_pylist():
        mask = pa.chunked_array([pa.repeat(pa.scalar(True), len(table))])
        for name, value in group.items():
            mask = pc.and_(mask, pc.equal(table[name], value))
        yield from table.filter(mask).slice(0, LISTED).to_pylist()


def _with_place(run: Run, rows: list[dict[str, str]]) -> Iterator[DroppedItem]:
    places = ["file_name", "width", "height"]
    wanted = {row["id"] for row in rows} | {row["id"].rpartition("/")[0] for row in rows}
    wanted |= {name.rpartition("/")[0] for name in wanted}
    ids = pa.array(sorted(wanted), pa.string())

    def known(stage: str, key: str, columns: list[str]) -> dict[str, dict[str, Any]]:
        manifest = run.store(stage).manifest()
        if manifest is None or not manifest.complete:
            return {}
        table = run.table(stage, [key, *columns])
        return {row[key]: row for row in table.filter(pc.is_in(table[key], ids)).to_pylist()}

    images, queries = known("objects", "image_id", places), known("regions", "query_id", [*places, "region"])
    for row in rows:
        name, place = row["id"], None
        while place is None and name:  # a candidate's id begins with its query's, a query's with its image's
            place = queries.get(name) or images.get(name)
            name = name.rpartition("/")[0]
        if place is not None:
            file_name, width, height, region = (place.get(key) for key in (*places, "region"))
            about = (row["kind"], row["id"], row["stage"], row["reason"], explain(row["stage"], row["reason"]))
            yield DroppedItem(*about, file_name, width, height, region and tuple(region))
