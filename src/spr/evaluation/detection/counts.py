"""Precision, recall and F1 from the numbers of boxes in each image: of all boxes together, and averaged over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spr.evaluation.detection.annotations import DetectionData
from spr.evaluation.detection.matching import THRESHOLDS, Matches
from spr.evaluation.metrics import Bools, Floats, Ints, Share

_NAMES = tuple(f"{threshold:.2f}".rstrip("0") for threshold in THRESHOLDS)  # 0.5, 0.55, …
_SHOWN = ("0.5", "0.75", "0.95")  # for precision and recall
SHARES = (
    *("f1", "precision", "recall"),
    *(f"f1@{name}" for name in _NAMES),
    *(f"{metric}@{name}" for metric in ("precision", "recall") for name in _SHOWN),
    *(f"{metric}_by_image{at}" for metric in ("recall", "precision") for at in ("@0.5", "@0.95", "@mIoU")),
)
"""The metrics that are ratios of sums over images."""


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Numbers of the I images: float64 ``objects`` ``(I,)``, ``true`` and ``false`` boxes ``(I, T)``.

    Ignored objects and boxes are not counted.
    """

    objects: Floats
    true: Floats
    false: Floats

    def take(self, chosen: Bools) -> Counts:
        """Those of some images, ``(I,)``."""
        return Counts(self.objects[chosen], self.true[chosen], self.false[chosen])


def box_counts(data: DetectionData, matches: Matches, unnamed: Ints) -> Counts:
    """Count the objects, and the boxes that find one or don't, at each of `THRESHOLDS`.

    Args:
        data: The annotations.
        matches: The matches of all detections.
        unnamed: The number of boxes of each image without a category, ``(I,)``. They are false; with LVIS's rules they
            are not counted, since an image doesn't say what else is in it.
    """
    total = len(data.image_ids)
    objects = np.bincount(data.image[~data.ignored], minlength=total).astype(np.float64)
    counted = ~matches.ignored[:, 0]
    # Detections are sorted by image.
    cuts = np.searchsorted(matches.image, np.arange(total + 1))

    def sums(values: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Floats:
        running = np.concatenate([np.zeros((1, len(THRESHOLDS))), np.cumsum(values, axis=0, dtype=np.float64)])
        return np.asarray(running[cuts[1:]] - running[cuts[:-1]])

    true, false = sums(matches.found[:, 0] & counted), sums(~matches.found[:, 0] & counted)
    if not data.federated:
        false += unnamed[:, None]
    return Counts(objects, true, false)


def by_image(counts: Counts, unanswered: Bools) -> tuple[dict[str, Share], dict[str, float | None]]:
    """The metrics `SHARES`, and ``f1_by_image``, which has no interval.

    Together: ``f1@t`` is 2 true / (boxes + objects); ``f1``, ``precision`` and ``recall`` sum over the ten thresholds,
    which equals their mean unless boxes on crowd regions are ignored. By image, as `evaluation/metrics/other_metric.py`
    of IDEA-Research/Rex-Omni: an image without objects counts as 1 without a box and as 0 with one; F1 is that of the
    mean precision and the mean recall at each threshold, and ``f1_by_image@mIoU`` its mean over the thresholds. An
    image of which a question has no answer (``unanswered``, ``(I,)``) is not right for having no box.
    """
    objects, true, false = counts.objects, counts.true, counts.false
    boxes, count = true + false, len(THRESHOLDS)
    wholes = boxes + objects[:, None]
    shares = {
        "f1": Share(2 * true.sum(axis=1), wholes.sum(axis=1)),
        "precision": Share(true.sum(axis=1), boxes.sum(axis=1)),
        "recall": Share(true.sum(axis=1), count * objects),
    }
    shares |= {f"f1@{name}": Share(2 * true[:, t], wholes[:, t]) for t, name in enumerate(_NAMES)}
    places = {name: _NAMES.index(name) for name in _SHOWN}
    shares |= {f"precision@{name}": Share(true[:, t], boxes[:, t]) for name, t in places.items()}
    shares |= {f"recall@{name}": Share(true[:, t], objects) for name, t in places.items()}
    right = ((boxes == 0) & ~unanswered[:, None]).astype(np.float64)
    some = objects > 0
    recall, precision = (
        np.where(some[:, None], np.divide(true, whole, out=np.zeros_like(true), where=whole > 0), right)
        for whole in (np.broadcast_to(objects[:, None], true.shape), boxes)
    )
    for name, values in (("recall_by_image", recall), ("precision_by_image", precision)):
        shares[f"{name}@0.5"], shares[f"{name}@0.95"] = Share.mean(values[:, 0]), Share.mean(values[:, -1])
        shares[f"{name}@mIoU"] = Share.mean(values.mean(axis=1))
    p, r = (values.mean(axis=0) for values in (precision, recall))
    f1 = np.divide(2 * p * r, p + r, out=np.zeros_like(p), where=p + r > 0)
    figures = {"f1_by_image@0.5": float(f1[0]), "f1_by_image@0.95": float(f1[-1]), "f1_by_image@mIoU": float(f1.mean())}
    return shares, dict(figures)
