"""Crowds: annotations whose one box holds many objects are annotated again by a detector (METHOD §1.2).

The detector is a function to pass in; its own thresholds (0.35 for boxes, 0.25 for text by default) belong to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from spr.core.boxes import Array, area, as_boxes, clip, fraction_inside, iou_matrix, non_maximum_suppression
from spr.core.errors import RecordError
from spr.records import Box, ImageObject, ImageObjects, Size


@dataclass(frozen=True, slots=True)
class CrowdQuery:
    """What the detector is asked: where, within a crowd's box, are the objects of its category?

    Attributes:
        image_id: The image's id.
        file_name: The image's file, relative to the images' folder.
        size_wh: The image's width and height in pixels.
        category: The name to look for.
        box: The crowd's box, xyxy pixels of the image.
    """

    image_id: str
    file_name: str
    size_wh: Size
    category: str
    box: Box


@dataclass(frozen=True, slots=True)
class CrowdFinds:
    """What a detector found: ``boxes_xyxy`` (M, 4), pixels of the whole image, and ``scores`` (M,), 0..1."""

    boxes_xyxy: npt.ArrayLike
    scores: npt.ArrayLike


CrowdDetector: TypeAlias = Callable[[Sequence[CrowdQuery]], Sequence[CrowdFinds]]
"""Answers queries, of one or several images, in their order. It may batch them as it likes."""


@dataclass(frozen=True, slots=True)
class CrowdDrop:
    """A crowd or a find that fell out.

    Attributes:
        id: The crowd's id, or ``<crowd id>#<n>`` for a find.
        image_id: Its image.
        reason: A key of `spr.core.reasons.OBJECT_REASONS`.
    """

    id: str
    image_id: str
    reason: str


def replace_crowds(
    images: Sequence[ImageObjects],
    crowd_ids: Sequence[Collection[str]],
    detector: CrowdDetector | None,
    *,
    nms_iou: float = 0.5,
    duplicate_iou: float = 0.5,
    min_inside: float = 0.5,
) -> tuple[list[ImageObjects], list[CrowdDrop]]:
    """Replace crowds by what a detector finds in them (METHOD §1.2), or drop them.

    Finds are clipped to the image and numbered from the best score on (ties by box), which gives them the id
    ``<crowd id>#<n>``. They become objects of the crowd's category with ``source="detector"`` and their score, after
    the image's other objects, unless one of `spr.core.reasons.OBJECT_REASONS` applies. Crowds of an image are taken by id, and the
    finds of one count as existing objects for the next.

    Args:
        images: Images with their objects, crowds included.
        crowd_ids: For each image, which of its objects are crowds.
        detector: Asked once, about all crowds; None drops every crowd.
        nms_iou: A find whose IoU with a better find of the same crowd is over this falls out [ours].
        duplicate_iou: A find whose IoU with an object of its category is over this falls out [ours].
        min_inside: A find with a smaller share of its area within the crowd's box falls out [ours: half, as `inside`
            in METHOD §0].

    Returns:
        The images without crowds, in the order given, and what fell out.

    Raises:
        RecordError: if the detector returns something other than finite boxes and scores for each query.
    """
    crowds = [
        sorted((o for o in image.objects if o.id in ids), key=lambda o: o.id)
        for image, ids in zip(images, crowd_ids, strict=True)
    ]
    queries = [_query(image, crowd) for image, found in zip(images, crowds, strict=True) for crowd in found]
    answers = iter(_ask(detector, queries) if detector is not None and queries else ())
    made: list[ImageObjects] = []
    drops: list[CrowdDrop] = []
    for image, found in zip(images, crowds, strict=True):
        gone = {crowd.id for crowd in found}
        objects = [o for o in image.objects if o.id not in gone]
        for crowd in found:
            if detector is None:
                drops.append(CrowdDrop(crowd.id, image.image_id, "crowd_without_detector"))
                continue
            boxes, scores = _finds(crowd, next(answers), (image.width, image.height))
            known = [o.box for o in objects if o.category == crowd.category]
            fates = _fates(boxes, scores, crowd.box, known, nms_iou, duplicate_iou, min_inside)
            for number, fate in enumerate(fates, start=1):
                id_ = f"{crowd.id}#{number}"
                if fate:
                    drops.append(CrowdDrop(id_, image.image_id, fate))
                else:
                    box, score = boxes[number - 1].tolist(), float(scores[number - 1])
                    objects.append(ImageObject(id_, crowd.category, box, source="detector", score=score))
            if all(fates):
                reason = "crowd_nothing_new" if "detection_duplicate" in fates else "crowd_nothing_found"
                drops.append(CrowdDrop(crowd.id, image.image_id, reason))
        made.append(replace(image, objects=tuple(objects)) if found else image)
    return made, drops


def _query(image: ImageObjects, crowd: ImageObject) -> CrowdQuery:
    return CrowdQuery(image.image_id, image.file_name, (image.width, image.height), crowd.category, crowd.box)


def _ask(detector: CrowdDetector, queries: Sequence[CrowdQuery]) -> Sequence[CrowdFinds]:
    answers = detector(queries)
    if len(answers) != len(queries):
        raise RecordError("the crowd detector left queries unanswered", got=len(answers), expected=len(queries))
    return answers


def _finds(crowd: ImageObject, answer: CrowdFinds, size_wh: Size) -> tuple[Array, Array]:
    """The finds' boxes (M, 4), clipped to the image, and scores (M,), best first."""
    scores = np.asarray(answer.scores, dtype=np.float64)
    try:
        boxes = as_boxes(answer.boxes_xyxy)
    except ValueError as error:
        raise RecordError(f"the detector's boxes for crowd {crowd.id} are none", got=str(error)) from None
    finite = np.isfinite(boxes).all() and np.isfinite(scores).all()
    if boxes.ndim != 2 or scores.shape != boxes.shape[:1] or not finite:
        raise RecordError(
            f"the detector's finds for crowd {crowd.id} are malformed",
            got=f"boxes_xyxy {boxes.shape}, scores {scores.shape}, {'all' if finite else 'not all'} finite",
            expected="boxes_xyxy (M, 4) and scores (M,), all finite",
        )
    # Tables hold float32: what is compared here must be what is kept.
    boxes = clip(boxes, size_wh).astype(np.float32).astype(np.float64)
    order = np.lexsort((*boxes.T[::-1], -scores))
    return boxes[order], scores[order]


def _fates(
    boxes: Array,
    scores: Array,
    crowd_box: Box,
    known: Sequence[Box],
    nms_iou: float,
    duplicate_iou: float,
    min_inside: float,
) -> list[str]:
    """Why each find falls out; empty for those that stay."""
    fates = np.full(len(boxes), "", dtype=object)
    fates[(fraction_inside(boxes, crowd_box) < min_inside) | (area(boxes) == 0)] = "detection_outside_crowd"
    inside = np.flatnonzero(fates == "")
    kept = inside[non_maximum_suppression(boxes[inside], scores[inside], nms_iou)]
    fates[np.setdiff1d(inside, kept)] = "detection_suppressed"
    fates[kept[(iou_matrix(boxes[kept], known) > duplicate_iou).any(axis=1)]] = "detection_duplicate"
    return [str(fate) for fate in fates]
