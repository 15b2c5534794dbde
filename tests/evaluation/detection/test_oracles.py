"""AP and AR equal those of pycocotools and of LVIS's package, on random images."""

import contextlib
import io
import json
import logging
import sys
import types

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import detection_cases
from spr.evaluation.detection.annotations import read_detection
from spr.evaluation.detection.average_precision import curves, summary
from spr.evaluation.detection.matching import THRESHOLDS, Detections, match


def ours(path, rows):
    data = read_detection(path)
    categories = sorted(entry["id"] for entry in json.loads(path.read_text())["categories"])
    image = np.array([data.image_ids.index(str(int(name))) for name in rows[:, 0]], dtype=np.int64)
    category = np.searchsorted(categories, rows[:, 1])
    boxes = rows[:, 2:6].copy()
    boxes[:, 2:] += boxes[:, :2]
    matches = match(data, Detections(image, category, boxes, rows[:, 6]))
    return matches, summary(data, curves(data, matches))


def in_corners(rows):
    """The detections with the width and height of their corners, which differ from the given ones in the last digit."""
    rows = rows.copy()
    rows[:, 4:6] = (rows[:, 2:4] + rows[:, 4:6]) - rows[:, 2:4]
    return rows


def with_pycocotools(path, rows):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path)
        found = truth.loadRes(in_corners(rows)[:, [0, 2, 3, 4, 5, 6, 1]])
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


# For the file of seed 0, from lvis 0.5.3.
LVIS_FIGURES = {
    "AP": 0.1807966819857379,
    "AP50": 0.3907965445599017,
    "AP75": 0.12215468933568281,
    "APs": 0.19691221591284663,
    "APm": 0.184329272952197,
    "APl": 0.25774932762919167,
    "APr": 0.16367339513130302,
    "APc": 0.18353193298929543,
    "APf": 0.20089248012142694,
    "AR@300": 0.38919716751804045,
    "ARs@300": 0.3724320998550405,
    "ARm@300": 0.4050485092460992,
    "ARl@300": 0.4400474481658692,
}


@pytest.mark.parametrize("scores", ["with ties", "all equal", "all different"])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_figures_of_500_images_equal_those_of_pycocotools(seed, scores, tmp_path):
    content = detection_cases.annotations(seed)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    rows = detection_cases.detections(seed, content)
    if scores != "with ties":
        rows[:, 6] = 1.0 if scores == "all equal" else np.random.default_rng(seed).permutation(len(rows)) / len(rows)
    assert np.bincount(rows[:, 0].astype(int)).max() > 100
    theirs = with_pycocotools(path, rows)
    matches, figures = ours(path, rows)
    assert 0.05 < figures["AP"] < 0.95
    assert list(figures.values()) == pytest.approx(theirs.stats.tolist(), abs=1e-9)
    # Not only the means: how many detections count as true, per category and threshold, over all areas.
    true = matches.found & ~matches.ignored
    true = true[matches.within]
    counts = [np.bincount(matches.category[matches.within], weights=true[:, 0, t], minlength=12) for t in range(10)]
    objects = matches.objects[:, 0]
    recall = np.array(counts) / np.where(objects > 0, objects, np.nan)
    expected = theirs.eval["recall"][:, :, 0, 2]
    np.testing.assert_allclose(np.nan_to_num(recall, nan=-1), expected, atol=1e-12)


def test_the_thresholds_are_those_of_pycocotools():
    assert THRESHOLDS.tolist() == COCOeval(iouType="bbox").params.iouThrs.tolist()


@pytest.fixture
def lvis(monkeypatch):
    """LVIS's package, which draws with packages that are not needed here and uses a name that numpy has removed."""
    monkeypatch.setitem(sys.modules, "lvis.vis", types.SimpleNamespace(LVISVis=None))
    monkeypatch.setattr(np, "float", float, raising=False)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    return pytest.importorskip("lvis", reason="LVIS's package is not installed: pip install --no-deps lvis")


@pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning")
@pytest.mark.parametrize("seed", [0, 1])
def test_all_figures_of_300_images_equal_those_of_lvis(seed, lvis, tmp_path):
    content = detection_cases.annotations(seed, 300, lvis=True)
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(content))
    rows = detection_cases.detections(seed, content)
    names = ("image_id", "category_id", "bbox", "score")
    found = [
        dict(zip(names, (int(row[0]), int(row[1]), row[2:6].tolist(), row[6]), strict=True)) for row in in_corners(rows)
    ]
    evaluation = lvis.LVISEval(str(path), found, "bbox")
    evaluation.run()
    theirs = evaluation.get_results()
    _, figures = ours(path, rows)
    assert figures == pytest.approx(dict(theirs), abs=1e-9)


def test_figures_are_those_that_lvis_gave_where_it_was_installed(tmp_path):
    content = detection_cases.annotations(0, 300, lvis=True)
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(content))
    matches, figures = ours(path, detection_cases.detections(0, content))
    assert figures == pytest.approx(LVIS_FIGURES, abs=1e-9)
    assert not matches.within.all()  # more than 300 detections in an image
