"""Measure the detector's average precision, on scenes that training never used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import AutoProcessor, OwlViTForObjectDetection

from spr.core import boxes as bx
from spr.embedded.scenes import MIN_AREA, SIZE, Scene, make_scene
from spr.embedded.sprites import CATEGORIES
from spr.evaluation.metrics import LEAST_CLUSTERS, percentile_interval, resampled
from tools.embedded.figures import Figure

Floats = npt.NDArray[np.float64]
_BATCH = 32
_FLOOR = 0.02  # detections below this score are dropped
_NMS = 0.5
_RESAMPLES = 100


def match_scene(scene: Scene, boxes: Floats, scores: Floats, labels: npt.NDArray[np.int64], iou: float) -> Floats:
    """Rows ``(category, score, correct)`` of a scene's detections, best first, without those of specks.

    A detection is correct if its IoU with an unmatched object of its category is at least ``iou``. Members of a crowd
    count as objects; objects below the area filter are ignored.
    """
    kinds = scene.kinds
    speck = scene.areas < MIN_AREA
    taken = np.zeros(len(scene), dtype=bool)
    rows = []
    for k in np.argsort(-scores, kind="stable"):
        overlaps = np.where((kinds == labels[k]) & ~taken, bx.iou(scene.boxes_xyxy, boxes[k]), 0.0)
        best = int(overlaps.argmax())
        right = overlaps[best] >= iou
        if right:
            taken[best] = True
        if not (right and speck[best]):
            rows.append((float(labels[k]), float(scores[k]), float(right)))
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def average_precision(scores: Floats, right: Floats, weights: Floats, objects: float) -> float:
    """Area under the precision–recall curve, with non-increasing precision at COCO's 101 recall points.

    Args:
        scores: ``(D,)``.
        right: ``(D,)``, 0 or 1.
        weights: ``(D,)``, how often each detection counts.
        objects: The number of objects.

    >>> one, none = np.ones(2), np.zeros(2)
    >>> average_precision(np.array([0.9, 0.8]), one, one, 2.0), average_precision(np.array([0.9, 0.8]), none, one, 2.0)
    (1.0, 0.0)
    """
    order = np.argsort(-scores, kind="stable")
    found, said = np.cumsum((right * weights)[order]), np.cumsum(weights[order])
    recall, precision = found / objects, found / np.maximum(said, 1e-9)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    index = np.searchsorted(recall, np.linspace(0, 1, 101) - 1e-9)
    return float(np.where(index < len(envelope), envelope[np.minimum(index, len(envelope) - 1)], 0.0).mean())


def mean_precision(
    rows: Floats, owners: npt.NDArray[np.int64], counts: Floats, weights: npt.NDArray[np.int64]
) -> float:
    """Mean average precision over the categories that occur; each scene counts ``weights`` ``(scenes,)`` times."""
    objects = weights @ counts
    made = []
    for kind in np.flatnonzero(objects):
        mine = rows[:, 0] == kind
        if not mine.any():
            made.append(0.0)
            continue
        often = weights[owners[mine]].astype(np.float64)
        made.append(average_precision(rows[mine, 1], rows[mine, 2], often, float(objects[kind])))
    return float(np.mean(made))


@torch.no_grad()
def detect(folder: Path, scenes: list[Scene]) -> list[tuple[Floats, Floats, npt.NDArray[np.int64]]]:
    """Boxes ``(D, 4)`` in pixels, scores and categories of each scene, with all category names as queries."""
    model, processor = OwlViTForObjectDetection.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    made = []
    for first in range(0, len(scenes), _BATCH):
        part = scenes[first : first + _BATCH]
        images = [Image.fromarray(scene.image) for scene in part]
        inputs = processor(text=[list(CATEGORIES)] * len(part), images=images, padding=True, return_tensors="pt")
        results = processor.post_process_grounded_object_detection(
            model(**inputs), threshold=_FLOOR, target_sizes=[(SIZE, SIZE)] * len(part)
        )
        for result in results:
            boxes, scores = result["boxes"].double().numpy(), result["scores"].double().numpy()
            labels = result["labels"].numpy().astype(np.int64)
            kept = bx.non_maximum_suppression(boxes, scores, _NMS)
            made.append((boxes[kept], scores[kept], labels[kept]))
    return made


def evaluate_detector(folder: Path, n: int, seed: int) -> dict[str, Figure]:
    """Average precision over the 64 categories."""
    scenes = [make_scene(seed, index) for index in range(n)]
    detections = detect(folder, scenes)
    counts = np.zeros((n, len(CATEGORIES)))
    for index, scene in enumerate(scenes):
        kinds = scene.kinds[scene.areas >= MIN_AREA]
        np.add.at(counts[index], kinds, 1)
    figures = {}
    for iou, asked in ((0.5, 0.80), (0.75, None)):
        tables = [match_scene(scene, *found, iou) for scene, found in zip(scenes, detections, strict=True)]
        rows, owners = np.concatenate(tables), np.repeat(np.arange(n), [len(t) for t in tables])
        value = mean_precision(rows, owners, counts, np.ones(n, dtype=np.int64))
        weights = (row for some in resampled(n, _RESAMPLES) for row in some)
        draws = np.array([mean_precision(rows, owners, counts, row.astype(np.int64)) for row in weights])
        known = n >= LEAST_CLUSTERS and np.ptp(draws) > 0
        figures[f"AP at IoU {iou}"] = Figure(value, percentile_interval(draws, n) if known else None, asked)
    return figures
