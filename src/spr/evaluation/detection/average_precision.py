"""Average precision and recall of COCO and LVIS, from the matches of all detections.

The definitions are those of pycocotools (`cocoeval.py`) and of LVIS's package (`lvis/eval.py`): precision at 101 levels
of recall, each the highest precision at this recall or above, averaged over levels, categories with objects, and IoU
thresholds from 0.5 to 0.95.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spr.evaluation.detection.annotations import DetectionData
from spr.evaluation.detection.matching import AREAS, COCO_LIMIT, LVIS_LIMIT, THRESHOLDS, Matches
from spr.evaluation.metrics import Bools, Floats, Ints

LEVELS: Floats = np.linspace(0.0, 1.0, 101)
"""The levels of recall."""
_SIZES = ("", "s", "m", "l")  # of AREAS
_FREQUENCIES = ("r", "c", "f")


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Precision and recall of the categories, NaN for those without objects.

    ``precision`` is float64 ``(K, A, T, 101)``, at each of `LEVELS`; ``recall`` ``(limits, K, A, T)``, of the first 1,
    10 and 100 detections of an image and category, or of all (LVIS).
    """

    precision: Floats
    recall: Floats


def curves(data: DetectionData, matches: Matches) -> Curves:
    """Precision and recall of each category, range of areas and IoU threshold."""
    total = len(data.categories)
    shape = total, len(AREAS), len(THRESHOLDS)
    limits = (None,) if data.federated else (1, 10, COCO_LIMIT)
    objects = np.where(matches.objects > 0, matches.objects, np.nan)
    hits = matches.found & ~matches.ignored
    recall = np.empty((len(limits), *shape))
    for number, limit in enumerate(limits):
        chosen = matches.within if limit is None else matches.rank < limit
        recall[number] = _sums(hits[chosen], matches.category[chosen], total) / objects[:, :, None]
    kept = np.flatnonzero(matches.within)
    # Equal scores keep the order of the images, and within an image that of the answer.
    order = kept[np.lexsort((kept, -matches.scores[kept], matches.category[kept]))]
    cuts = np.searchsorted(matches.category[order], np.arange(total + 1))
    precision = np.zeros((*shape, len(LEVELS)))
    precision[np.isnan(objects)] = np.nan
    for category in range(total):
        rows = order[cuts[category] : cuts[category + 1]]
        found = hits[rows]
        if found.any():
            false = ~matches.found[rows] & ~matches.ignored[rows]
            own = _interpolated(found, false, objects[category])
            precision[category] = np.where(np.isnan(objects[category])[:, None, None], np.nan, own)
    return Curves(precision, recall)


def _sums(values: Bools, category: Ints, total: int) -> Floats:
    """Sums of the values ``(D, A, T)`` of each category, ``(K, A, T)``."""
    order = np.argsort(category, kind="stable")
    cuts = np.searchsorted(category[order], np.arange(total + 1))
    running = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values[order], axis=0, dtype=np.float64)])
    return np.asarray(running[cuts[1:]] - running[cuts[:-1]])


def _interpolated(found: Bools, false: Bools, objects: Floats) -> Floats:
    """The precision ``(A, T, 101)`` at each level, from detections ``(n, A, T)`` by falling score, objects ``(A,)``."""
    true = np.cumsum(found, axis=0, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        recall = true / objects[:, None]
        precision = true / (np.cumsum(false, axis=0, dtype=np.float64) + true + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    count, areas, thresholds = found.shape
    at_levels = np.zeros((areas, thresholds, len(LEVELS)))
    for a in range(areas):
        for t in range(thresholds):
            if true[-1, a, t]:
                place = np.searchsorted(recall[:, a, t], LEVELS)
                reached = place < count
                at_levels[a, t, reached] = best[place[reached], a, t]
    return at_levels


def summary(data: DetectionData, own: Curves) -> dict[str, float | None]:
    """COCO's twelve figures, or LVIS's thirteen, by their usual names; None without an object that counts."""
    precision, recall = own.precision, own.recall
    figures = {
        "AP": _mean(precision[:, 0]),
        "AP50": _mean(precision[:, 0, 0]),
        "AP75": _mean(precision[:, 0, 5]),
        **{f"AP{size}": _mean(precision[:, a]) for a, size in enumerate(_SIZES) if size},
    }
    if data.federated:
        frequencies = np.array(data.frequencies)
        figures |= {f"AP{letter}": _mean(precision[frequencies == letter, 0]) for letter in _FREQUENCIES}
        figures[f"AR@{LVIS_LIMIT}"] = _mean(recall[0, :, 0])
        figures |= {f"AR{size}@{LVIS_LIMIT}": _mean(recall[0, :, a]) for a, size in enumerate(_SIZES) if size}
        return figures
    figures |= {f"AR@{limit}": _mean(recall[number, :, 0]) for number, limit in enumerate((1, 10, COCO_LIMIT))}
    figures |= {f"AR{size}@{COCO_LIMIT}": _mean(recall[-1, :, a]) for a, size in enumerate(_SIZES) if size}
    return figures


def by_category(own: Curves) -> dict[str, float | None]:
    """Precision, recall and F1 of the categories' means, as Rex-Omni reports them for COCO and LVIS.

    From `evaluation/metrics/coco_lvis_metric.py` and `fastevaluate/cocoeval.cpp` of IDEA-Research/Rex-Omni: a
    category's precision is that of its curve at the highest level of recall that it reaches, its recall that of all
    detections. Means leave out categories whose value is 0. F1 is computed from the two means: at an IoU of 0.5, of
    0.95, and from the means over the ten thresholds (``@mIoU``).
    """
    at_levels = np.nan_to_num(own.precision[:, 0])
    reached = len(LEVELS) - 1 - (at_levels[..., ::-1] > 0).argmax(axis=-1)
    precision = np.take_along_axis(at_levels, reached[..., None], axis=-1)[..., 0]  # (K, T)
    recall = np.nan_to_num(own.recall[-1, :, 0])
    figures: dict[str, float | None] = {}
    for name, chosen in (("0.5", slice(0, 1)), ("0.95", slice(9, 10)), ("mIoU", slice(None))):
        p, r = (_positive_mean(values[:, chosen].mean(axis=1)) for values in (precision, recall))
        figures[f"f1_by_category@{name}"] = 2 * p * r / (p + r) if p + r else 0.0
        if name == "mIoU":
            figures |= {"precision_by_category@mIoU": p, "recall_by_category@mIoU": r}
    return figures


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _positive_mean(values: Floats) -> float:
    known = values[values > 0]
    return float(known.mean()) if known.size else 0.0
