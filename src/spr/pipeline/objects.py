"""Annotations → objects (METHOD §1): crowds, small objects, images with too few objects, and the sample of the rest.

Images are looked at in the order of a hash of their ids, and the first ``max_images`` that pass everything are the
sample. So it depends on the seed and the ids only, and an image that can't be read makes room for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spr.annotations import Annotations, CrowdDetector, CrowdFinds, CrowdQuery, read_coco, replace_crowds
from spr.config import AnnotationsConfig, Config
from spr.core import boxes as bx
from spr.core.errors import ConfigError, InputError
from spr.core.images import ImageProblem
from spr.core.progress import MEGABYTE, Progress
from spr.core.randomness import stable_hash
from spr.core.views import crop_window, cut, unshift
from spr.models.protocols import Detector, DetectRequest
from spr.models.registry import load_detector
from spr.pipeline.stage import Plan, Stage
from spr.records import ImageObject, ImageObjects
from spr.records.columns import box_array, list_array
from spr.records.schemas import DROPPED, OBJECTS, from_table, to_table
from spr.runs.store import StageOutput, dropped_columns, dropped_table

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NAME = "objects"
CROWDS = pa.field("crowds", OBJECTS.field("objects").type, nullable=False)
"""The column that the stage's input has besides `OBJECTS`: the crowds, which a detector annotates again."""


def plan_objects(config: Config, progress: Progress) -> Plan:
    """Read the annotations and put the images that may qualify in the order in which they are looked at.

    What can't qualify whatever its file or its crowds hold is dropped here: objects under ``min_area``
    (``area_under_minimum``), crowds without a detector, images with too few objects (``too_few_objects``).

    Raises:
        InputError: if the annotations or the images' folder can't be read.
    """
    settings = config.annotations
    with_detector = settings.crowds == "detect"
    if settings.check_images and not settings.images.is_dir():
        got = "a file" if settings.images.exists() else "nothing there"
        raise InputError(
            f"There is no images folder {settings.images}", got=got, fix="set annotations.images to the folder"
        )
    found = read_coco(settings.path, progress=lambda done, _: progress.advance(done // MEGABYTE - progress.done))
    owner = np.repeat(np.arange(len(found.image_ids)), np.diff(found.offsets))
    small = ~found.crowd & ~bx.at_least(bx.area(found.boxes_xyxy), settings.min_area)
    kept = ~found.crowd & ~small
    counts = np.bincount(owner[kept], minlength=len(found.image_ids))
    qualifies = counts >= settings.min_objects
    if with_detector:
        qualifies |= np.bincount(owner[found.crowd], minlength=len(found.image_ids)) > 0
    image_ids = _texts(found.image_ids)
    order = _sample_order(image_ids, np.flatnonzero(qualifies), config.seed)
    dropped = [
        _dropped_while_reading(found),
        dropped_columns(NAME, "object", _texts(found.object_ids[small]), "area_under_minimum"),
        dropped_columns(NAME, "image", image_ids.filter(pa.array(~qualifies)), "too_few_objects"),
    ]
    if not with_detector:
        crowds = _texts(found.object_ids[found.crowd])
        dropped.append(dropped_columns(NAME, "object", crowds, "crowd_without_detector"))
    return Plan(
        ids=image_ids.take(pa.array(order)),
        rows=_table_maker(found, image_ids, order, kept, found.crowd if with_detector else np.zeros_like(found.crowd)),
        limit=settings.max_images,
        dropped=pa.concat_tables(dropped),
        counts={
            "images with a valid entry": len(found.image_ids),
            "objects with a valid entry": len(found.object_ids),
            "of these, crowds": int(found.crowd.sum()),
            "of these, boxes clipped to their image": found.clipped,
            "images that may qualify": len(order),
        },
    )


def make_objects(
    tables: Mapping[str, pa.Table], config: Config, *, detector: CrowdDetector | None = None
) -> StageOutput:
    """The stage's work on a shard: check the image files, replace crowds by what the detector finds, apply the filters.

    Args:
        tables: ``source``: `OBJECTS` and `CROWDS`.
        config: See `AnnotationsConfig`.
        detector: Only asked where there are crowds.

    Drops images with the reasons of `spr.core.images`, crowds and finds with those of `spr.annotations.replace_crowds`,
    finds with ``area_under_minimum``, and images with ``too_few_objects``.
    """
    settings, table = config.annotations, tables["source"]
    problems = [_problem_of(row, settings) for row in table.drop_columns(["objects", "crowds"]).to_pylist()]
    good = pa.array([problem is None for problem in problems], pa.bool_())
    drops = [(i, p) for i, p in zip(table["image_id"].to_pylist(), problems, strict=True) if p is not None]
    dropped = dropped_table(NAME, "image", drops)
    table = table.filter(good)
    crowded = pc.greater(pc.list_value_length(table["crowds"]), 0)
    if detector is None or not pc.any(crowded).as_py():
        return StageOutput(table.drop_columns(["crowds"]), dropped)
    output = _with_finds(table, settings, detector)
    return StageOutput(output.table, pa.concat_tables([dropped, output.dropped]))


def _with_finds(table: pa.Table, settings: AnnotationsConfig, detector: CrowdDetector) -> StageOutput:
    images = from_table(table, ImageObjects)
    crowds = [tuple(ImageObject.from_row(row) for row in rows) for rows in table["crowds"].to_pylist()]
    whole = [
        ImageObjects(image.image_id, image.file_name, image.width, image.height, (*image.objects, *extra))
        for image, extra in zip(images, crowds, strict=True)
    ]
    replaced, crowd_drops = replace_crowds(
        whole,
        [{crowd.id for crowd in extra} for extra in crowds],
        detector,
        nms_iou=settings.crowd_nms_iou,
        duplicate_iou=settings.crowd_duplicate_iou,
    )
    object_drops = [(drop.id, drop.reason) for drop in crowd_drops]
    image_drops: list[tuple[str, str]] = []
    kept: list[ImageObjects] = []
    for image in replaced:
        large = tuple(item for item in image.objects if bx.at_least(bx.area(item.box), settings.min_area))
        object_drops += [(item.id, "area_under_minimum") for item in image.objects if item not in large]
        if len(large) < settings.min_objects:
            image_drops.append((image.image_id, "too_few_objects"))
        else:
            kept.append(ImageObjects(image.image_id, image.file_name, image.width, image.height, large))
    drops = [dropped_table(NAME, "image", image_drops), dropped_table(NAME, "object", object_drops)]
    return StageOutput(to_table(kept, ImageObjects), pa.concat_tables(drops))


def _problem_of(row: dict[str, str | int], settings: AnnotationsConfig) -> str | None:
    if not settings.check_images:
        return None
    try:
        settings.image_source.check(str(row["file_name"]), (int(row["width"]), int(row["height"])))
    except ImageProblem as problem:
        return problem.reason
    return None


def _sample_order(image_ids: pa.Array, rows: Ints, seed: int) -> Ints:
    ids = image_ids.take(pa.array(rows)).to_pylist()
    keys = np.asarray([stable_hash(seed, "sample", image_id) for image_id in ids], dtype=np.uint64)
    # Rows come in the order of the ids, which decides between equal hashes.
    return rows[np.argsort(keys, kind="stable")].astype(np.int64)


def _table_maker(
    found: Annotations, image_ids: pa.Array, order: Ints, kept: Bools, crowds: Bools
) -> Callable[[int, int], pa.Table]:
    file_names = pa.array(found.file_names, pa.string())
    categories = pa.array(found.categories, pa.string())

    def rows(start: int, stop: int) -> pa.Table:
        images = order[start:stop]
        taken = pa.array(images)
        columns = [
            image_ids.take(taken),
            file_names.take(taken),
            pa.array(found.sizes_wh[images, 0]),
            pa.array(found.sizes_wh[images, 1]),
            _objects_of(found, categories, images, kept),
            _objects_of(found, categories, images, crowds),
        ]
        return pa.table(columns, schema=OBJECTS.append(CROWDS))

    return rows


def _objects_of(found: Annotations, categories: pa.Array, images: Ints, wanted: Bools) -> pa.Array:
    starts, stops = found.offsets[images], found.offsets[images + 1]
    ranges = [np.arange(start, stop)[wanted[start:stop]] for start, stop in zip(starts, stops, strict=True)]
    flat = np.concatenate([*ranges, np.zeros(0, dtype=np.int64)]).astype(np.int64)
    fields = OBJECTS.field("objects").type.value_type
    structs = pa.StructArray.from_arrays(
        [
            _texts(found.object_ids[flat]),
            categories.take(pa.array(found.category[flat])),
            box_array(found.boxes_xyxy[flat]),
            pa.repeat(pa.scalar("annotation"), len(flat)),
            pa.nulls(len(flat), pa.float32()),
        ],
        fields=list(fields),
    )
    return list_array(np.cumsum([0, *map(len, ranges)]).astype(np.int64), structs)


def _dropped_while_reading(found: Annotations) -> pa.Table:
    columns = [found.dropped.ids, found.dropped.kinds, [NAME] * len(found.dropped), found.dropped.reasons]
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=DROPPED)


def _texts(ids: npt.NDArray[np.int64] | npt.NDArray[np.object_]) -> pa.Array:
    return pa.array(ids, pa.string()) if ids.dtype == object else pa.array(ids).cast(pa.string())


def process(tables: Mapping[str, pa.Table], config: Config) -> StageOutput:
    """`make_objects` with the config's detector, where crowds are to be annotated again."""
    if config.annotations.crowds == "drop":
        return make_objects(tables, config)
    detector = load_detector(config.detector)
    if detector is None:
        fix = "set detector.backend, or annotations.crowds: drop"
        raise ConfigError("Crowds can't be annotated again", got="detector.backend: none", fix=fix)
    return make_objects(
        tables, config, detector=partial(look_in_crowds, detector=detector, settings=config.annotations)
    )


def look_in_crowds(
    queries: Sequence[CrowdQuery], *, detector: Detector, settings: AnnotationsConfig
) -> list[CrowdFinds]:
    """Detect the objects in crowds: for each crowd its category, in the crop of its box (supplement, Sec. 1).

    The crop is the crowd's box with its edges moved outwards to whole pixels, so detections may leave the box by a
    pixel. Only the detector's own thresholds apply here. Underscores of category names ("baseball_bat") become spaces.
    An image that can't be read gives no detections.
    """
    answers: list[CrowdFinds] = []
    # Queries come image by image: each is decoded once, and few are in memory at a time.
    for file_name, group in groupby(queries, key=lambda query: query.file_name):
        crowds = list(group)
        try:
            image = settings.image_source.load(file_name, crowds[0].size_wh)
        except ImageProblem:
            answers += [CrowdFinds([], []) for _ in crowds]
            continue
        windows = [crop_window(crowd.box, image.size, 1.0) for crowd in crowds]
        requests = [
            DetectRequest(cut(image, window), crowd.category.replace("_", " "))
            for crowd, window in zip(crowds, windows, strict=True)
        ]
        for detections, window in zip(detector.detect(requests), windows, strict=True):
            boxes = np.array([unshift(detection.box, window) for detection in detections], np.float64).reshape(-1, 4)
            answers.append(CrowdFinds(boxes, [detection.score for detection in detections]))
    return answers


def _models(config: Config) -> tuple[str, ...]:
    return ("detector",) if config.annotations.crowds == "detect" else ()


STAGE = Stage(
    NAME,
    version=1,
    unit="images",
    sections=("seed", "shard_rows", "annotations"),
    process=process,
    plan=plan_objects,
    model_sections=_models,
)
