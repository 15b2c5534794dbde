"""Annotations → objects: filters of objects and images, and the sample of images (supplement, Sec. 1).

Images are processed in the order of a hash of their ids, and the first ``max_images`` that pass all filters are the
sample. It depends on the seed and the ids only, and an image that can't be read makes room for the next one. Another
hash of the id alone holds out a share of the images from training (`annotations.holdout`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spr.annotations import Annotations, CrowdDetector, CrowdQuery, prepare_annotations, read_coco, replace_crowds
from spr.config import AnnotationsConfig, Config
from spr.core import boxes as bx
from spr.core.errors import ConfigError
from spr.core.images import ImageProblem, ImageSource
from spr.core.progress import MEGABYTE, Progress, advance, counted
from spr.core.randomness import stable_hashes
from spr.core.reasons import DROP_REASONS
from spr.core.views import crop_window, cut, unshift
from spr.grounding.names import category_name
from spr.models.protocols import Detector, DetectRequest
from spr.models.registry import load_detector
from spr.pipeline.askable import Askable
from spr.pipeline.holdout import Splits
from spr.pipeline.stage import Drops, OnDrop, Plan, Stage
from spr.records import Detection, ImageObject, ImageObjects, Size
from spr.records.columns import box_array, list_array
from spr.records.schemas import DROPPED, OBJECTS, from_table, to_table
from spr.runs.store import ShardEntry, StageOutput, StageStore, dropped_columns

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NAME = "objects"
AT_ONCE = 2**16
"""Objects per step, so that intermediate arrays stay in the processor's cache."""
CROWDS = pa.field("crowds", OBJECTS.field("objects").type, nullable=False)
"""A column of the stage's input besides those of `OBJECTS`: the crowds, which a detector annotates again."""


TURNED = "images whose boxes leave them, but fit with width and height exchanged (annotations.orientation?)"
"""A note: the boxes were probably drawn on the image in another orientation than it is used in."""


HELD_OUT = "images held out from training (annotations.holdout)"
"""A note: the images of split ``holdout``."""

QUALIFYING = "images that may qualify"
"""A count: the images from which the sample is taken; files that can't be used are found once they are opened."""

FEW_HELD_OUT = 20
"""Fewer held-out images than this are too few to tell a better model from a worse one."""

RESPELLED = "images found under another spelling of their file name"
"""A note: the annotations name the file with other slashes, escapes, accents or another case of the suffix."""


def load_objects(
    annotations: AnnotationsConfig, *, seed: int = 0, detector: Detector | None = None
) -> list[ImageObjects]:
    """Read annotations and return the sampled images with their objects (supplement, Sec. 1).

    Args:
        annotations: The file, the image folder, the filters and the sample's size.
        seed: Seed of the sample.
        detector: Detects the objects in crowds. ``annotations.crowds: detect`` needs it, and is the default with it.

    Raises:
        InputError: if the annotations or the image folder can't be read.
        ConfigError: if crowds are to be replaced without a detector.
    """
    if annotations.crowds is None:
        crowds = "drop" if detector is None else "detect"
        annotations = annotations.model_copy(update={"crowds": crowds})
    rows_at_once = 512
    prepare_annotations(annotations)
    with Progress(f"reading {annotations.json_path.name}", unit="MB") as progress:
        plan = plan_objects(annotations, seed, progress)
    limit = plan.limit or len(plan.ids)
    images: list[ImageObjects] = []
    for start in range(0, len(plan.ids), rows_at_once):
        if len(images) < limit:
            source = plan.rows(start, start + rows_at_once)
            output = make_objects(source, annotations, crowd_detector(annotations, detector))
            images += from_table(output.table, ImageObjects)
    return images[:limit]


def plan_objects(settings: AnnotationsConfig, seed: int, progress: Progress) -> Plan:
    """Read the annotations and put the images that may qualify in the order in which they are processed.

    What can't qualify, whatever its file or its crowds contain, is dropped here: small objects, crowds without a
    detector, images with too few objects. An `InputError` names a missing file or image folder.
    """
    if settings.check_images:
        settings.image_source.prepare()
    parsed = read_coco(
        settings.json_path,
        allow_outside_images=settings.allow_outside_images,
        clip_to_square=_may_turn(settings),
        progress=lambda done, _: progress.set(done // MEGABYTE),
    )
    count = len(parsed.image_ids)
    small = _smaller(parsed, settings.min_area)
    kept = ~parsed.crowd & ~small
    qualifies = _counts(parsed, kept) >= settings.min_objects
    crowds = parsed.crowd if settings.crowds == "detect" else np.zeros_like(parsed.crowd)
    qualifies |= _counts(parsed, crowds) > 0
    image_ids, file_names = _strings(parsed.image_ids), pa.array(parsed.file_names, pa.string())
    candidates = np.flatnonzero(qualifies)
    ids = image_ids.take(pa.array(candidates)).to_pylist()
    # Rows are sorted by id, so a stable sort orders equal hashes by id.
    order = candidates[np.argsort(stable_hashes(seed, "sample", last=ids), kind="stable")]
    splits = Splits(image_ids, file_names, settings.holdout)
    askable = Askable(parsed, image_ids, kept, order, seed)
    skipped = min(settings.skip_images or 0, len(order))
    order = order[skipped:]

    def rows(start: int, stop: int) -> pa.Table:
        images = order[start:stop]
        columns = [
            image_ids.take(pa.array(images)),
            file_names.take(pa.array(images)),
            pa.array(parsed.sizes_wh[images, 0]),
            pa.array(parsed.sizes_wh[images, 1]),
            _objects_of(parsed, images, kept),
            pa.array([parsed.licenses[image] for image in images], pa.string()),
            pa.array([parsed.source_urls[image] for image in images], pa.string()),
            splits.of(images),
            askable.of(images),
            _objects_of(parsed, images, crowds),
        ]
        return pa.table(columns, schema=OBJECTS.append(CROWDS))

    read = parsed.dropped
    columns = (read.ids, read.kinds, [NAME] * len(read), read.reasons, read.file_names)

    def objects(which: Bools, reason: str) -> pa.Table:
        rows = np.flatnonzero(which)
        names = file_names.take(pa.array(np.searchsorted(parsed.offsets, rows, side="right") - 1))
        return dropped_columns(NAME, "object", _strings(parsed.object_ids[rows]), reason, names)

    few = pa.array(~qualifies)
    dropped = [
        pa.table([pa.array(column, pa.string()) for column in columns], DROPPED),
        objects(small, "area_under_minimum"),
        dropped_columns(NAME, "image", image_ids.filter(few), "too_few_objects", file_names.filter(few)),
        objects(parsed.crowd & ~crowds, "crowd_without_detector"),
    ]
    return Plan(
        ids=image_ids.take(pa.array(order)),
        file_names=file_names.take(pa.array(order)),
        rows=rows,
        limit=settings.max_images,
        dropped=pa.concat_tables(dropped),
        counts={
            "images with a valid entry": count,
            "objects with a valid entry": len(parsed.object_ids),
            "of these, crowds": int(parsed.crowd.sum()),
            "of these, boxes clipped to their image": parsed.clipped,
            **({"ids missing or not unique: annotations are numbered": parsed.numbered} if parsed.numbered else {}),
            **({"images left out at the beginning (annotations.skip_images)": skipped} if skipped else {}),
            QUALIFYING: len(order),
            # If an annotated size may be that before the rotation, this is known once the image is opened.
            **({TURNED: parsed.turned} if parsed.turned and not _may_turn(settings) else {}),
        },
        totals={
            "category": len(parsed.categories) + read.kinds.count("category"),
            "image": count + read.kinds.count("image"),
            "object": len(parsed.object_ids) + read.kinds.count("object"),
        },
    )


def _may_turn(settings: AnnotationsConfig) -> bool:
    """Whether the annotated size of an image may be that before the rotation by EXIF, see `Orientation`."""
    return settings.orientation == "apply" and settings.check_images


def _smaller(parsed: Annotations, min_area: float) -> Bools:
    """Which objects have an area under the minimum; crowds have none."""
    small = np.empty(len(parsed.crowd), dtype=np.bool_)
    for start in range(0, len(small), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        small[rows] = ~bx.at_least(bx.area(parsed.boxes_xyxy[rows]), min_area)
    return small & ~parsed.crowd


def _counts(parsed: Annotations, which: Bools) -> Ints:
    """The number of these objects per image."""
    before = np.zeros(len(which) + 1, dtype=np.int32)
    np.cumsum(which, out=before[1:])
    return np.diff(before[parsed.offsets])


def _objects_of(parsed: Annotations, images: Ints, wanted: Bools) -> pa.Array:
    first, counts = parsed.offsets[images], np.diff(parsed.offsets)[images]
    ends = np.cumsum(counts)
    all_rows = np.arange(counts.sum()) + np.repeat(first - ends + counts, counts)
    chosen = wanted[all_rows]
    flat = all_rows[chosen]
    kept = np.concatenate([[0], np.cumsum(chosen)])
    structs = pa.StructArray.from_arrays(
        [
            _strings(parsed.object_ids[flat]),
            pa.array(parsed.categories, pa.string()).take(pa.array(parsed.category[flat])),
            box_array(parsed.boxes_xyxy[flat]),
            pa.repeat(pa.scalar("annotation"), len(flat)),
            pa.nulls(len(flat), pa.float32()),
        ],
        fields=list(OBJECTS.field("objects").type.value_type),
    )
    return list_array(kept[np.concatenate([[0], ends])], structs)


def _strings(ids: npt.NDArray[np.int64] | npt.NDArray[np.object_]) -> pa.Array:
    return pa.array(ids, pa.string()) if ids.dtype == object else pa.array(ids).cast(pa.string())


def make_objects(source: pa.Table, settings: AnnotationsConfig, detector: CrowdDetector | None = None) -> StageOutput:
    """Check the image files of a shard, replace crowds with the detector's detections, and apply the filters.

    ``source`` has the columns of `OBJECTS` and `CROWDS`, as `Plan.rows` returns them.
    """
    drops, notes, examples = Drops(), Counter[str](), dict[str, str]()
    usable, sizes_wh = [], []
    crowds = pc.list_value_length(source["crowds"]).to_pylist()
    for row, waits in zip(source.drop_columns(["objects", "crowds"]).to_pylist(), crowds, strict=True):
        try:
            if settings.check_images:
                name, files = row["file_name"], settings.image_source
                sizes_wh.append(files.check(name, (row["width"], row["height"])))
                if (found := files.spelled_alike(name)) != name:
                    notes[RESPELLED] += 1
                    examples.setdefault(RESPELLED, f"{found!r} for {name!r}")
            usable.append(True)
        except ImageProblem as problem:
            usable.append(False)
            drops.add("image", row["image_id"], problem.reason, row["file_name"])
            examples.setdefault(f"image: {problem.reason}", " ".join(str(problem).split()))
        if detector is None or not waits:
            advance()
    table = source.filter(pa.array(usable, pa.bool_()))
    if _may_turn(settings):
        table = _turned(table, sizes_wh, settings, drops, notes)
    crowded = pc.greater(pc.list_value_length(table["crowds"]), 0)
    if detector is None or not pc.any(crowded).as_py():
        table = table.drop_columns(["crowds"])
    else:
        table = to_table(_replace_crowds(table, settings, detector, drops), ImageObjects)
    if settings.holdout:
        notes[HELD_OUT] = pc.sum(pc.equal(table["split"], "holdout"), min_count=0).as_py()
    return StageOutput(table, drops.table(NAME, "image", "object"), dict(notes), examples)


def _turned(
    table: pa.Table, sizes_wh: Sequence[Size], settings: AnnotationsConfig, drops: Drops, notes: Counter[str]
) -> pa.Table:
    """Give the images their sizes after the rotation, clip the boxes to them, and apply the filters again."""
    rows = table.to_pylist()
    kept = []
    for row, size_wh in zip(rows, sizes_wh, strict=True):
        boxes = np.array([item["box"] for item in (*row["objects"], *row["crowds"])], np.float32)
        if bx.leave(boxes, size_wh).any() and not bx.leave(boxes, size_wh[::-1]).any():
            notes[TURNED] += 1
        row["width"], row["height"] = size_wh
        drop = partial(drops.add, file_name=row["file_name"])
        for name, least in (("objects", settings.min_area), ("crowds", 0.0)):
            row[name] = [item for item in row[name] if not _drop_clipped(item, size_wh, least, drop)]
        if len(row["objects"]) < settings.min_objects and not row["crowds"]:
            drop("image", row["image_id"], "too_few_objects")
        else:
            kept.append(row)
    return pa.Table.from_pylist(kept, table.schema)


def _drop_clipped(item: dict[str, Any], size_wh: Size, min_area: float, drop: OnDrop) -> bool:
    """Clip an object's box to its image; drops the object if what is left is too small."""
    x1, y1, x2, y2 = item["box"]
    item["box"] = [min(x1, size_wh[0]), min(y1, size_wh[1]), min(x2, size_wh[0]), min(y2, size_wh[1])]
    if x1 >= size_wh[0] or y1 >= size_wh[1]:
        drop("object", item["id"], "box_outside_image")
    elif not bx.at_least(bx.area(np.array([item["box"]], np.float32)), min_area)[0]:
        drop("object", item["id"], "area_under_minimum")
    else:
        return False
    return True


def _replace_crowds(
    table: pa.Table, settings: AnnotationsConfig, detector: CrowdDetector, drops: Drops
) -> list[ImageObjects]:
    crowds = [tuple(ImageObject.from_row(row) for row in rows) for rows in table["crowds"].to_pylist()]
    images = [
        replace(image, objects=(*image.objects, *own))
        for image, own in zip(from_table(table, ImageObjects), crowds, strict=True)
    ]
    crowd_ids = [{crowd.id for crowd in own} for own in crowds]
    replaced, crowd_drops = replace_crowds(
        images,
        crowd_ids,
        detector,
        nms_iou=settings.crowd_nms_iou,
        duplicate_iou=settings.crowd_duplicate_iou,
        min_inside=settings.crowd_min_inside,
    )
    names = {id_: image.file_name for image, own in zip(images, crowd_ids, strict=True) for id_ in own}
    for id_, reason in crowd_drops:  # crowds, and detections in them, whose ids are `<crowd id>#<n>`
        drops.add("object", id_, reason, names.get(id_) or names.get(id_.rpartition("#")[0]))
    kept: list[ImageObjects] = []
    for image in replaced:
        drop = partial(drops.add, file_name=image.file_name)
        large = tuple(item for item in image.objects if bx.at_least(bx.area(item.box), settings.min_area))
        for item in image.objects:
            if item not in large:
                drop("object", item.id, "area_under_minimum")
        if len(large) < settings.min_objects:
            drop("image", image.image_id, "too_few_objects")
        else:
            kept.append(replace(image, objects=large))
    return kept


def crowd_detector(settings: AnnotationsConfig, detector: Detector | None) -> CrowdDetector | None:
    """The function that detects the objects in crowds; None if crowds are dropped. A missing detector is an error."""
    if settings.crowds != "detect":
        return None
    if detector is None:
        fix = "set detector.backend, or annotations.crowds: drop"
        raise ConfigError("annotations.crowds: detect needs a detector", got="none", fix=fix)
    return partial(detect_in_crowds, detector=detector, images=settings.image_source)


def detect_in_crowds(
    queries: Sequence[CrowdQuery], *, detector: Detector, images: ImageSource
) -> list[list[Detection]]:
    """Detect the objects in crowds: for each crowd its category, in the crop of its box (supplement, Sec. 1).

    The crop is the crowd's box with its edges moved outwards to whole pixels, so detections may leave the box by a
    pixel. Only the detector's own thresholds apply here. The detector gets the readable name without its qualifier:
    "car" for ``car_(automobile)``. An image that can't be read gives no detections.
    """
    answers: list[list[Detection]] = []
    # Queries come image by image: each image is decoded once, and one is in memory at a time.
    for file_name, group in groupby(queries, key=lambda query: query.file_name):
        crowds = list(group)
        try:
            image = images.load(file_name, crowds[0].size_wh)
        except ImageProblem:
            answers += [[] for _ in crowds]
            advance()
            continue
        windows = [crop_window(crowd.box, image.size, 1.0) for crowd in crowds]
        names = [category_name(crowd.category).words for crowd in crowds]
        requests = [
            DetectRequest(cut(image, window), name, (name,)) for name, window in zip(names, windows, strict=True)
        ]
        with counted(1):
            found_in = detector.detect(requests)
        for detections, window in zip(found_in, windows, strict=True):
            answers.append([replace(found, box=unshift(found.box, window)) for found in detections])
    return answers


def process(tables: Mapping[str, pa.Table], config: Config) -> StageOutput:
    """`make_objects` on a shard of the plan's rows, with the config's detector if crowds are replaced.

    The detector is loaded even if no image has a crowd: a wrong model fails here, before anything is described.
    """
    detector = load_detector(config.detector) if config.annotations.crowds == "detect" else None
    return make_objects(tables["source"], config.annotations, crowd_detector(config.annotations, detector))


def holdout_hint(_: StageStore, shards: Sequence[ShardEntry]) -> str | None:
    """A warning if some, but fewer than `FEW_HELD_OUT` images are to be held out."""
    found, total = sum(shard.notes.get(HELD_OUT, 0) for shard in shards), sum(shard.rows for shard in shards)
    if found >= FEW_HELD_OUT or not any(HELD_OUT in shard.notes for shard in shards):
        return None
    what = f"only {found} of {total:,} images" if found else f"none of the {total:,} images"
    few = "is held out, too few to measure a model" if found == 1 else "are held out, too few to measure a model"
    fix = "use more images, raise annotations.holdout, or evaluate on other data"
    return f"{what} {few if found else 'is held out, so none is left for evaluation'}; {fix}"


def _plan(config: Config, progress: Progress) -> Plan:
    return plan_objects(config.annotations, config.seed, progress)


def _models(config: Config) -> tuple[str, ...]:
    return ("detector",) if config.annotations.crowds == "detect" else ()


STAGE = Stage(
    NAME,
    version=4,
    unit="images",
    kind="image",
    schema=OBJECTS,
    process=process,
    reasons=DROP_REASONS[NAME],
    sections=("seed", "shard_rows", "annotations"),
    models=_models,
    plan=_plan,
    hint=holdout_hint,
)
