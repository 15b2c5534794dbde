"""Points of answers in the formats of annotation tools."""

import json
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest

from spr.exports.fiftyone import to_sample
from spr.exports.formats import ExportRow, Labels, Texts
from spr.exports.label_studio import CONFIG, _TaskWriter, to_task
from spr.grounding import get_dialect, parse
from spr.records import PreferencePair

QWEN = get_dialect("qwen3_vl")
LABELS = Labels("made", "made.json", "m@1", QWEN)
CHOSEN = '[{"bbox_2d": [100, 250, 400, 500], "label": "a cup"}, {"point_2d": [500, 250], "label": "a cup"}]'
REJECTED = '[{"point_2d": [0, 1000], "label": "a dog"}]'


def row(chosen=CHOSEN, rejected=REJECTED):
    """A row about an image of 200 × 100 px."""
    sides = [parse(text, QWEN, (200, 100)).spans for text in (chosen, rejected)]
    pair = PreferencePair(
        "1/0", "1", "1.png", 200, 100, (0, 0, 200, 100), "Describe.", chosen, rejected, *sides, "1/0/a", "1/0/b",
        0.5, 0.25, 0.25, (),
    )  # fmt: skip
    return ExportRow(pair, Texts(pair.prompt, chosen, rejected), SimpleNamespace(path="images/1.png"))


def test_label_studio_shows_points_as_keypoints():
    task = to_task(row(), LABELS)
    box, point, text = task["predictions"][0]["result"]
    assert box["from_name"] == "boxes"
    assert (point["from_name"], point["type"], point["to_name"]) == ("points", "keypointlabels", "image")
    # (100, 25) of 200 × 100 px
    assert point["value"] == {"x": 50, "y": 25, "width": 0.5, "keypointlabels": ["point"]}
    assert text["value"] == {"text": ["[a cup](1)"]}


@pytest.mark.parametrize("has_points", [False, True])
def test_the_labelling_config_has_keypoints_if_an_answer_has_points(tmp_path, has_points):
    plain = row(CHOSEN.split(", {")[0] + "]", '[{"bbox_2d": [1, 2, 3, 4], "label": "a dog"}]')
    for split, one in (("train", row() if has_points else plain), ("holdout", plain)):
        writer = _TaskWriter(tmp_path, LABELS, split)
        writer.write([one])
        writer.close()
    config = ET.fromstring((tmp_path / CONFIG).read_text())  # noqa: S314 (our own file)
    assert [node.get("name") for node in config.iter("KeyPointLabels")] == ["points"] * has_points
    assert [label.get("value") for label in config.find("RectangleLabels")] == [str(k) for k in range(1, 12)]
    for path in tmp_path.glob("tasks-*.json"):
        assert len(json.loads(path.read_text())) == 1


def test_fiftyone_has_the_points_of_both_answers():
    sample = to_sample(row(), LABELS)
    assert [one["label"] for one in sample["chosen"]["detections"]] == ["1 a cup"]
    (chosen,), (rejected,) = (sample[f"{side}_points"]["keypoints"] for side in ("chosen", "rejected"))
    assert (chosen["label"], chosen["points"]) == ("a cup", [[0.5, 0.25]])
    assert (rejected["label"], rejected["points"]) == ("a dog", [[0, 1]])
    assert sample["chosen_points"]["_cls"] == "Keypoints"
    boxes_only = row(CHOSEN.split(", {")[0] + "]", '[{"bbox_2d": [1, 2, 3, 4], "label": "a dog"}]')
    assert not any(name.endswith("_points") for name in to_sample(boxes_only, LABELS))
