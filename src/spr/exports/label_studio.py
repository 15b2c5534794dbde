"""Label Studio: tasks with the chosen answers as pre-annotations, to be corrected there.

`spr review RUN --import FILE` reads the corrections back; `spr.workflows.corrections` explains how.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from spr.core import boxes as bx
from spr.exports.formats import DroppedItem, ExportRow, ExportSplit, Format, Labels, Writer
from spr.exports.json_lines import JsonWriter
from spr.runs.edits import numbered_answer, to_numbered
from spr.runs.reviews import pair_sha256

CONFIG, TASKS, DROPPED = "config.xml", "tasks-{split}.json", "dropped.json"
BOXES, TEXT, DECISION, POINTS = "boxes", "text", "decision", "points"
"""Names of the controls in the labelling config."""
_NUMBERED_LABEL = re.compile(r'<Label value="[0-9]+"')
_SPARE = 10  # numbers for boxes that annotators add

_CONFIG = """<View>
  <Header value="$prompt"/>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <RectangleLabels name="{boxes}" toName="image" canRotate="false">
{labels}
  </RectangleLabels>
{points}  <Header value="Chosen answer: [words](1) are the words of box 1"/>
  <TextArea name="{text}" toName="image" editable="true" maxSubmissions="1" rows="4"/>
  <Choices name="{decision}" toName="image" choice="single">
    <Choice value="accept"/>
    <Choice value="reject"/>
  </Choices>
  <Header value="Rejected answer"/>
  <Text name="rejected" value="$rejected"/>
</View>
"""


_POINTS = """  <KeyPointLabels name="points" toName="image" strokeWidth="4">
    <Label value="point" background="orange"/>
  </KeyPointLabels>
"""


def to_task(row: ExportRow, labels: Labels) -> dict[str, Any]:
    """A task: what the annotator sees, and a prediction with the numbered boxes and words of the chosen answer.

    ``data.boxes`` are the exact boxes in pixels; Label Studio's own are in per cent of the image, clipped to it. Points
    are shown as keypoints; changes to them are not read back.
    """
    pair = row.described
    answer = numbered_answer(pair, labels.dialect)
    text, size = to_numbered(answer), {"original_width": pair.width, "original_height": pair.height}
    on_image: dict[str, Any] = {"to_name": "image", **size, "image_rotation": 0}
    result: list[dict[str, Any]] = [
        {
            "id": f"box{number}",
            "from_name": BOXES,
            "type": "rectanglelabels",
            **on_image,
            "value": {**to_percent(box, (pair.width, pair.height)), "rotation": 0, "rectanglelabels": [str(number)]},
        }
        for number, box in enumerate(answer.boxes, start=1)
    ]
    for number, (x, y) in enumerate(answer.points, start=1):
        place = to_percent((x, y, x, y), (pair.width, pair.height))
        value = {"x": place["x"], "y": place["y"], "width": 0.5, "keypointlabels": ["point"]}
        about = {"id": f"point{number}", "from_name": POINTS, "type": "keypointlabels"}
        result.append({**about, **on_image, "value": value})
    result.append({"id": "text", "from_name": TEXT, "type": "textarea", **on_image, "value": {"text": [text]}})
    seen = row.described if row.original is None else row.original
    data = {
        "image": _address(row.image.path),
        "pair": pair.pair_id,
        "pair_sha256": pair_sha256(seen),
        "prompt": row.texts.prompt,
        "chosen": text,
        "rejected": row.texts.rejected,
        "boxes": [list(box) for box in answer.boxes],
        "margin": pair.margin,
        "license": row.license,
        "source_url": row.source_url,
    }
    return {"data": data, "predictions": [{"model_version": labels.describer, "score": pair.margin, "result": result}]}


def _address(path: str) -> str:
    """Label Studio's address of a file below its document root."""
    return f"/data/local-files/?d={quote(path.removeprefix('/'))}"


def to_percent(box: Sequence[float], size_wh: tuple[int, int]) -> dict[str, float]:
    """A box as Label Studio has it: left, top, width and height in per cent of the image.

    >>> to_percent((20, 20, 40, 40), (200, 100))
    {'x': 10.0, 'y': 20.0, 'width': 10.0, 'height': 20.0}
    """
    x1, y1, x2, y2 = bx.clip(bx.as_boxes([box]), size_wh)[0].tolist()
    width, height = size_wh
    return {
        "x": 100 * x1 / width,
        "y": 100 * y1 / height,
        "width": 100 * (x2 - x1) / width,
        "height": 100 * (y2 - y1) / height,
    }


class _TaskWriter(JsonWriter[ExportRow]):
    """Writes the tasks, and at the end the labelling config with as many numbers as the answers need."""

    def __init__(self, folder: Path, labels: Labels, split: ExportSplit) -> None:
        self._folder, self._most, self._has_points = folder, 0, False
        super().__init__(folder / TASKS.replace("{split}", split), lambda row: self._task(row, labels), "list")

    def _task(self, row: ExportRow, labels: Labels) -> dict[str, Any]:
        task = to_task(row, labels)
        self._most = max(self._most, len(task["data"]["boxes"]))
        self._has_points |= any(one["from_name"] == POINTS for one in task["predictions"][0]["result"])
        return task

    def close(self) -> None:
        """Complete the tasks, and write the config, which has what the tasks of both splits need."""
        super().close()
        path = self._folder / CONFIG
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        count = max(len(_NUMBERED_LABEL.findall(before)), self._most + _SPARE)
        has_points = self._has_points or _POINTS in before
        names = "\n".join(f'    <Label value="{number}"/>' for number in range(1, count + 1))
        controls = {"boxes": BOXES, "text": TEXT, "decision": DECISION}
        config = _CONFIG.format(**controls, labels=names, points=_POINTS * has_points)
        path.write_text(config, encoding="utf-8")


def _write_drops(folder: Path, items: Sequence[DroppedItem]) -> None:
    """Write tasks about what was dropped, with its region as a box, in the same labelling config."""
    tasks = []
    for item in items:
        about = f"{item.stage} dropped {item.kind} {item.id}: {item.explanation}"
        names = {name: getattr(item, name) for name in ("kind", "id", "stage", "reason")}
        data = {"image": _address(item.path), "prompt": about, "rejected": "", "dropped": names}
        result = []
        if item.region is not None:
            size = {"original_width": item.width, "original_height": item.height, "image_rotation": 0}
            value = {**to_percent(item.region, item.size_wh), "rotation": 0, "rectanglelabels": ["1"]}
            names = {"id": "region", "from_name": BOXES, "to_name": "image", "type": "rectanglelabels"}
            result.append({**names, **size, "value": value})
        tasks.append({"data": data, "predictions": [{"model_version": "spr", "result": result}]})
    text = json.dumps(tasks, indent=1, ensure_ascii=False)
    (folder / DROPPED).write_text(text + "\n", encoding="utf-8")


def _open(folder: Path, labels: Labels, split: ExportSplit) -> Writer[ExportRow]:
    return _TaskWriter(folder, labels, split)


FORMAT = Format(
    reader="Label Studio",
    images=("copy", "path"),
    placeholders=(),
    data_files=TASKS,
    questions=False,
    columns={
        "data": "`image`: its address in Label Studio; `pair`, `pair_sha256`: which pair it is; `prompt`, `chosen`, "
        "`rejected`: the texts, the chosen one with the numbers of its `boxes`, xyxy in pixels; `margin`; `license`, "
        "`source_url`: of the image",
        "predictions": "the boxes and the text of the chosen answer, as pre-annotations",
    },
    usage="""```sh
export LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="$PWD/{out}"
label-studio start
```

Create a project with the labelling config `config.xml`, add a local storage for each folder `images` in `{out}`, and
import `tasks-train.json` (`tasks-test.json` has the held-out images). Turn on "Use predictions to prelabel tasks".
Afterwards, export the annotations as JSON, and read them back with `spr review RUN --import FILE`. With
`--images path`, the document root is `/`. `dropped.json` has tasks about what the run dropped, with the reasons, for a
project of its own.""",
    open=_open,
    converts=False,
    write_drops=_write_drops,
)
