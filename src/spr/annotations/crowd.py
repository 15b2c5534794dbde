"""Crowds: annotations whose one box holds many objects, which a detector annotates again (supplement, Sec. 1)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from spr.core.boxes import area, as_boxes, clip, fraction_inside, iou_matrix, non_maximum_suppression
from spr.core.errors import RecordError
from spr.core.terminal import count_text
from spr.records import Box, Detection, ImageObject, ImageObjects, Size


@dataclass(frozen=True, slots=True)
class CrowdQuery:
    """A crowd whose objects the detector is to locate.

    ``file_name`` is relative to the image folder, and ``box`` is the crowd's box, xyxy pixels of the image.
    """

    image_id: str
    file_name: str
    size_wh: Size
    category: str
    box: Box


CrowdDetector: TypeAlias = Callable[[Sequence[CrowdQuery]], Sequence[Sequence[Detection]]]
"""The detections in each crowd, in the order of the queries; it applies its own thresholds."""


def replace_crowds(
    images: Sequence[ImageObjects],
    crowd_ids: Sequence[Collection[str]],
    detector: CrowdDetector | None,
    *,
    nms_iou: float = 0.5,
    duplicate_iou: float = 0.5,
    min_inside: float = 0.5,
) -> tuple[list[ImageObjects], list[tuple[str, str]]]:
    """Replace each crowd with the objects that a detector locates in it, or drop it (supplement, Sec. 1).

    Detections are clipped to the image and numbered by descending score (ties by box); detection ``n`` gets the id
    ``<crowd id>#<n>``. Those that are not dropped become objects of the crowd's category with ``source="detector"`` and
    their score, after the other objects of the image. The crowds of an image are replaced in the order of their ids;
    the new objects of one crowd count as existing objects for the next.

    Args:
        images: Images with all their objects, including crowds.
        crowd_ids: For each image, the ids of its crowds.
        detector: Called once, with all crowds. None drops every crowd.
        nms_iou: A detection whose IoU with a better one of the same crowd is over this value is dropped. The paper does
            not give these thresholds; they are our choice.
        duplicate_iou: A detection whose IoU with an object of the same category is over this value is dropped.
        min_inside: A detection with a smaller share of its area in the crowd's box is dropped.

    Returns:
        The images without crowds, in the same order, and ``(id, reason)`` of each dropped crowd and detection; reasons:
        `spr.core.reasons.OBJECT_REASONS`.

    Raises:
        RecordError: if the detector does not answer each query.
    """
    crowds = [
        sorted((item for item in image.objects if item.id in ids), key=lambda crowd: crowd.id)
        for image, ids in zip(images, crowd_ids, strict=True)
    ]
    queries = [
        CrowdQuery(image.image_id, image.file_name, (image.width, image.height), crowd.category, crowd.box)
        for image, own_crowds in zip(images, crowds, strict=True)
        for crowd in own_crowds
    ]
    answers = detector(queries) if detector is not None and queries else ()
    if detector is not None and len(answers) != len(queries):
        expected = count_text(len(queries), "answers")
        raise RecordError("The crowd detector did not answer each query once", got=len(answers), expected=expected)
    detections = iter(answers)
    replaced: list[ImageObjects] = []
    drops: list[tuple[str, str]] = []
    for image, own_crowds in zip(images, crowds, strict=True):
        objects = [item for item in image.objects if item not in own_crowds]
        for crowd in own_crowds:
            if detector is None:
                drops.append((crowd.id, "crowd_without_detector"))
                continue
            existing = [item.box for item in objects if item.category == crowd.category]
            size_wh = image.width, image.height
            thresholds = nms_iou, duplicate_iou, min_inside
            added, dropped = _objects_in(crowd, next(detections), size_wh, existing, *thresholds)
            objects += added
            drops += dropped
        replaced.append(replace(image, objects=tuple(objects)) if own_crowds else image)
    return replaced, drops


def _objects_in(
    crowd: ImageObject,
    detections: Sequence[Detection],
    size_wh: Size,
    existing: Sequence[Box],
    nms_iou: float,
    duplicate_iou: float,
    min_inside: float,
) -> tuple[list[ImageObject], list[tuple[str, str]]]:
    """The crowd's new objects, and ``(id, reason)`` of what is dropped: detections, and a crowd without new objects."""
    # Tables hold float32, so the boxes are compared in the precision in which they are saved.
    boxes = clip(as_boxes([found.box for found in detections]), size_wh).astype(np.float32).astype(np.float64)
    scores = np.array([found.score for found in detections], dtype=np.float64)
    order = np.lexsort((*boxes.T[::-1], -scores))
    boxes, scores = boxes[order], scores[order]
    reasons = np.full(len(boxes), "", dtype=object)
    outside = (fraction_inside(boxes, crowd.box) < min_inside) | (area(boxes) == 0)
    reasons[outside] = "detection_outside_crowd"
    inside = np.flatnonzero(~outside)
    kept = inside[non_maximum_suppression(boxes[inside], scores[inside], nms_iou)]
    reasons[np.setdiff1d(inside, kept)] = "detection_suppressed"
    is_duplicate = (iou_matrix(boxes[kept], existing) > duplicate_iou).any(axis=1)
    reasons[kept[is_duplicate]] = "detection_duplicate"
    objects: list[ImageObject] = []
    drops: list[tuple[str, str]] = []
    for number, (box, score, reason) in enumerate(zip(boxes.tolist(), scores.tolist(), reasons, strict=True), start=1):
        if reason:
            drops.append((f"{crowd.id}#{number}", reason))
        else:
            objects.append(ImageObject(f"{crowd.id}#{number}", crowd.category, box, source="detector", score=score))
    if not objects:
        drops.append((crowd.id, "crowd_nothing_new" if "detection_duplicate" in reasons else "crowd_nothing_found"))
    return objects, drops
