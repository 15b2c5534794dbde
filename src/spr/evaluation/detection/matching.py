"""Which detections find an object, by the rules of COCO's and LVIS's evaluators, for all images at once.

Within an image and a category, detections are taken from the highest score to the lowest. Each takes the object with
the highest IoU that is left and reaches the threshold; only if there is none, one that is ignored. A crowd region can
be taken any number of times, and the IoU with it is the share of the detection that lies inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spr.evaluation.detection.annotations import DetectionData
from spr.evaluation.metrics import Bools, Floats, Ints

THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
"""The IoU thresholds, as pycocotools has them: those of the AP, and of the mean F1."""
AREAS: Floats = np.array([(0, 1e5**2), (0, 32**2), (32**2, 96**2), (96**2, 1e5**2)], dtype=np.float64)
"""The ranges of areas in px²: all, small, medium, large; both bounds are included."""
COCO_LIMIT = 100
"""With COCO's rules, the first detections of an image and category that count for AP and AR."""
LVIS_LIMIT = 300
"""With LVIS's rules, the detections of an image that count, the most confident ones of all categories."""
_PAIRS = 2**21  # pairs of a detection and an object whose IoU is computed at once: about 200 MB


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """D boxes with a category, in the order of the answers.

    ``image`` and ``category`` are indices into a `DetectionData`, int64 ``(D,)``; ``boxes_xyxy`` is float64 ``(D, 4)``,
    pixels; ``scores`` float64 ``(D,)``, higher for more confident.
    """

    image: Ints
    category: Ints
    boxes_xyxy: Floats
    scores: Floats

    def take(self, chosen: Bools | Ints) -> Detections:
        """Some of the detections, given as a mask or as positions."""
        return Detections(self.image[chosen], self.category[chosen], self.boxes_xyxy[chosen], self.scores[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """How D detections matched, sorted by image, category and falling score; equal scores keep the answer's order.

    A is the number of `AREAS`, T that of `THRESHOLDS`.

    Attributes:
        order: The position of each among the detections that were given, int64 ``(D,)``.
        image: The index of its image, ``(D,)``; likewise ``category`` and ``scores``.
        rank: Its place among the detections of its image and category, from 0, int64 ``(D,)``.
        within: Whether it is within the number of detections that count for AP and AR, bool ``(D,)``.
        found: Whether it found an object, bool ``(D, A, T)``.
        ignored: Whether it counts neither as true nor as false, bool ``(D, A, T)``.
        objects: The number of objects that count, by category and range of areas, int64 ``(K, A)``.
    """

    order: Ints
    image: Ints
    category: Ints
    scores: Floats
    rank: Ints
    within: Bools
    found: Bools
    ignored: Bools
    objects: Ints


def match(data: DetectionData, detections: Detections) -> Matches:
    """Match detections to the annotated objects.

    With LVIS's rules, detections of a category of which an image says nothing are left out, and ones that find nothing
    are ignored where not every object of the category is annotated.
    """
    order = np.arange(len(detections.image), dtype=np.int64)
    if data.federated:
        among_image = _ranks(detections.image, detections.scores)
        order = order[_among(data.pairs(detections.image, detections.category), data.checked)]
    pair = data.pairs(detections.image, detections.category)[order]
    order = order[np.lexsort((-detections.scores[order], pair))]
    own = detections.take(order)
    pair = data.pairs(own.image, own.category)
    boxes = own.boxes_xyxy.copy()
    boxes[:, 2:] -= boxes[:, :2]
    outside = _outside(boxes[:, 2] * boxes[:, 3])
    of_object = _outside(data.areas) | data.ignored[:, None]
    found, ignored = _match(data, boxes, pair, of_object)
    unmatched = outside[:, :, None]
    if data.federated:
        unmatched = unmatched | _among(pair, data.inexhaustive)[:, None, None]
    ignored |= ~found & unmatched
    objects = np.stack(
        [np.bincount(data.category[~of_object[:, a]], minlength=len(data.categories)) for a in range(len(AREAS))],
        axis=1,
    )
    rank = _places(pair)
    within = among_image[order] < LVIS_LIMIT if data.federated else rank < COCO_LIMIT
    return Matches(order, own.image, own.category, own.scores, rank, within, found, ignored, objects)


def _places(sorted_keys: Ints) -> Ints:
    """The place of each row among those with the same key, from 0."""
    starts = np.flatnonzero(np.diff(sorted_keys, prepend=-1))
    return np.arange(len(sorted_keys)) - np.repeat(starts, np.diff(starts, append=len(sorted_keys)))


def _ranks(keys: Ints, scores: Floats) -> Ints:
    """The place of each row among those with the same key, by falling score; equal scores keep their order."""
    by = np.lexsort((-scores, keys))
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[by] = _places(keys[by])
    return ranks


def _among(pairs: Ints, sorted_pairs: Ints) -> Bools:
    if not len(sorted_pairs):
        return np.zeros(len(pairs), dtype=bool)
    places = np.minimum(np.searchsorted(sorted_pairs, pairs), len(sorted_pairs) - 1)
    return np.asarray(sorted_pairs[places] == pairs)


def _outside(areas: Floats) -> Bools:
    """Whether areas ``(N,)`` lie outside of each range of `AREAS`, ``(N, A)``."""
    return np.asarray((areas[:, None] < AREAS[:, 0]) | (areas[:, None] > AREAS[:, 1]))


def _match(data: DetectionData, boxes_xywh: Floats, pair: Ints, of_object: Bools) -> tuple[Bools, Bools]:
    """Whether each detection, sorted by pair and falling score, finds an object, and an ignored one, ``(D, A, T)``."""
    shape = len(pair), len(AREAS), len(THRESHOLDS)
    found, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    detection, item, overlap = _candidates(data, boxes_xywh, pair)
    if not len(detection):
        return found, ignored
    taken = np.zeros((len(data.image), *shape[1:]), dtype=bool)
    # A step takes the next detection with candidates of each image and category.
    first = np.flatnonzero(np.diff(detection, prepend=-1))
    count = np.diff(first, append=len(detection))
    own_pair = pair[detection[first]]
    step = _places(own_pair)
    width = 2 ** np.ceil(np.log2(count)).astype(np.int64)  # of detections that are taken together
    by = np.lexsort((width, step))
    cuts = np.flatnonzero((np.diff(step[by], prepend=-1) != 0) | (np.diff(width[by], prepend=-1) != 0))
    for rows in np.split(by, cuts[1:]):
        columns = np.arange(width[rows[0]])
        there = columns < count[rows, None]
        place = first[rows, None] + np.minimum(columns, count[rows, None] - 1)
        near, iou = item[place], np.where(there, overlap[place], -1.0)
        free = ~taken[near] | data.crowd[near][:, :, None, None]  # (R, C, A, T)
        usable = free & (iou[:, :, None, None] >= THRESHOLDS)
        own_ignored = of_object[near][:, :, :, None]
        if len(columns) == 1:
            hit, chosen, took_ignored = usable[:, 0], near, (usable & own_ignored)[:, 0]
            taken[near[:, 0]] |= hit
        else:
            counted = usable & ~own_ignored
            usable = np.where(counted.any(axis=1, keepdims=True), counted, usable)
            # The last of equal ones, as in COCO's loop.
            value = np.where(usable, iou[:, :, None, None], -1.0)[:, ::-1]
            chosen = len(columns) - 1 - value.argmax(axis=1)
            hit = usable.any(axis=1)
            r, a, t = np.nonzero(hit)
            best = chosen[r, a, t]
            taken[near[r, best], a, t] = True
            took_ignored = np.zeros_like(hit)
            took_ignored[r, a, t] = of_object[near[r, best], a]
        own = detection[first[rows]]
        found[own], ignored[own] = hit, took_ignored
    return found, ignored


def _candidates(data: DetectionData, boxes_xywh: Floats, pair: Ints) -> tuple[Ints, Ints, Floats]:
    """The pairs of a detection and an object of the same image and category with an IoU of at least 0.5, and the IoU.

    Sorted by detection and then by object.
    """
    of_object = data.pairs(data.image, data.category)
    by_pair = np.argsort(of_object, kind="stable")
    of_object = of_object[by_pair]
    low, high = (np.searchsorted(of_object, pair, side) for side in ("left", "right"))
    counts = high - low
    ends = np.cumsum(counts)
    found: list[tuple[Ints, Ints, Floats]] = []
    start = 0
    while start < len(pair):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS, "right")))
        own = counts[start:stop]
        detection = np.repeat(np.arange(start, stop), own)
        offset = np.arange(len(detection)) - np.repeat(np.cumsum(own) - own, own)
        item = by_pair[low[detection] + offset]
        overlap = _iou(boxes_xywh[detection], data.boxes_xywh[item], data.crowd[item])
        near = np.flatnonzero(overlap >= THRESHOLDS[0])
        found.append((detection[near], item[near], overlap[near]))
        start = stop
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    detection, item, overlap = (np.concatenate(column) for column in zip(*found, strict=True))
    return detection, item, overlap


def _iou(one_xywh: Floats, other_xywh: Floats, crowd: Bools) -> Floats:
    """IoU ``(P,)`` in the arithmetic of pycocotools; where ``crowd``, the share of the first box inside the other."""
    (x, y, w, h), (ox, oy, ow, oh) = one_xywh.T, other_xywh.T
    width = np.minimum(x + w, ox + ow) - np.maximum(x, ox)
    height = np.minimum(y + h, oy + oh) - np.maximum(y, oy)
    shared = np.where((width > 0) & (height > 0), width * height, 0.0)
    whole = np.where(crowd, w * h, w * h + ow * oh - shared)
    return np.asarray(np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0))
