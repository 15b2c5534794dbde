"""FiftyOne: samples with the boxes of both answers, to be looked at, filtered and corrected there.

Each split's folder has the layout of a FiftyOne dataset on disk: ``samples.json`` and ``metadata.json``. The fields are
inferred from the samples, so the files depend on no version of FiftyOne.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spr.exports.formats import DroppedItem, ExportRow, ExportSplit, Format, Labels, Writer
from spr.exports.json_lines import JsonWriter
from spr.exports.label_studio import to_percent
from spr.grounding import GroundedText
from spr.records import Box, Size
from spr.runs.edits import numbered_answer, to_numbered, with_pixels
from spr.runs.reviews import pair_sha256

SAMPLES, METADATA, DROPPED = "samples.json", "metadata.json", "dropped"
_METADATA = '{"media_type": "image"}\n'
CHOSEN = "chosen"
"""The field with the boxes that may be corrected; the label of a box begins with its number."""


def to_sample(row: ExportRow, labels: Labels) -> dict[str, Any]:
    """A sample with boxes and points of both answers, the objects' region, the texts and what identifies the pair."""
    pair, size_wh = row.described, (row.described.width, row.described.height)
    chosen = numbered_answer(pair, labels.dialect)
    rejected = with_pixels(pair.rejected, pair.rejected_spans, labels.dialect, size_wh)
    points = {"chosen_points": chosen, "rejected_points": rejected} if chosen.points or rejected.points else {}
    return {
        "filepath": _file_path(row.image.path),
        "tags": [],
        CHOSEN: _detections(chosen, size_wh),
        "rejected": _detections(rejected, size_wh),
        **{name: _keypoints(answer, size_wh) for name, answer in points.items()},
        "region": {"_cls": "Detections", "detections": [_detection("region", pair.region, size_wh)]},
        "prompt": row.texts.prompt,
        "chosen_text": to_numbered(chosen),
        "exported_text": to_numbered(chosen),
        "rejected_text": row.texts.rejected,
        "margin": pair.margin,
        "pair": pair.pair_id,
        "pair_sha256": pair_sha256(pair if row.original is None else row.original),
        "boxes": json.dumps([list(box) for box in chosen.boxes]),
        "license": row.license,
        "source_url": row.source_url,
    }


def _file_path(path: str) -> str:
    """An image's path relative to the folder of `SAMPLES`, which is in the export's."""
    return path if path.startswith("/") else f"../{path}"


def _detections(answer: GroundedText, size_wh: Size) -> dict[str, Any]:
    phrases = [(span.phrase, box) for span in answer.spans for box in span.boxes]
    found = [_detection(f"{k} {phrase}".rstrip(), box, size_wh) for k, (phrase, box) in enumerate(phrases, start=1)]
    return {"_cls": "Detections", "detections": found}


def _detection(label: str, box: Box, size_wh: Size) -> dict[str, Any]:
    """A box as FiftyOne has it: left, top, width and height as shares of the image, 0..1."""
    shares = [value / 100 for value in to_percent(box, size_wh).values()]
    return {"_cls": "Detection", "label": label, "bounding_box": shares, "attributes": {}, "tags": []}


def _keypoints(answer: GroundedText, size_wh: Size) -> dict[str, Any]:
    """The points of each phrase as FiftyOne has them: shares of the image, 0..1."""
    found = [
        {
            "_cls": "Keypoint",
            "label": span.phrase,
            "points": [[x / size_wh[0], y / size_wh[1]] for x, y in span.points],
            "attributes": {},
            "tags": [],
        }
        for span in answer.spans
        if span.points
    ]
    return {"_cls": "Keypoints", "keypoints": found}


class _SampleWriter(JsonWriter[ExportRow]):
    """Writes ``{"samples": […]}``, and ``metadata.json``, which says that the samples are images."""

    def __init__(self, folder: Path, labels: Labels) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        super().__init__(folder / SAMPLES, lambda row: to_sample(row, labels), "list")
        self._file.write('{"samples": ')

    def close(self) -> None:
        """Complete the files."""
        with self._file as file:
            file.write("[]}\n" if self._before != self._between else "\n]}\n")
            file.flush()
            os.fsync(file.fileno())
        (self._folder / METADATA).write_text(_METADATA, encoding="utf-8")


def _write_drops(folder: Path, items: Sequence[DroppedItem]) -> None:
    """Write a second dataset with what was dropped; its samples are tagged with the reasons."""
    samples = []
    for item in items:
        region = [] if item.region is None else [_detection(item.reason, item.region, item.size_wh)]
        samples.append(
            {
                "filepath": _file_path(item.path),
                "tags": ["dropped", item.reason],
                "region": {"_cls": "Detections", "detections": region},
                **{name: getattr(item, name) for name in ("kind", "stage", "reason", "explanation")},
                "dropped_id": item.id,
            }
        )
    dropped = folder / DROPPED
    dropped.mkdir(exist_ok=True)
    text = json.dumps({"samples": samples}, indent=1, ensure_ascii=False)
    (dropped / SAMPLES).write_text(text + "\n", encoding="utf-8")
    (dropped / METADATA).write_text(_METADATA, encoding="utf-8")


def _open(folder: Path, labels: Labels, split: ExportSplit) -> Writer[ExportRow]:
    return _SampleWriter(folder / split, labels)


FORMAT = Format(
    reader="FiftyOne",
    images=("copy", "path"),
    placeholders=(),
    data_files=f"{{split}}/{SAMPLES}",
    questions=False,
    columns={
        "samples": "one per pair, with the fields `chosen`, `rejected` and `region` (boxes), `chosen_text` with the "
        "numbers of its boxes, `rejected_text`, `prompt`, `margin`, `pair`, `pair_sha256`, `boxes` (xyxy in pixels), "
        "`license`, `source_url`"
    },
    usage="""```python
import fiftyone as fo

dataset = fo.Dataset.from_dir("{out}/train", dataset_type=fo.types.FiftyOneDataset)
session = fo.launch_app(dataset)
# … correct the boxes of `chosen`; tag samples `accept` or `reject` …
dataset.export("corrected", dataset_type=fo.types.FiftyOneDataset, export_media=False)
```

`spr review RUN --import corrected/samples.json` reads boxes, `chosen_text` and tags back. Samples
without a change and without a tag stay undecided. The folder `test` is the dataset of held-out images, and
`dropped` one of what the run dropped, tagged with the reasons.""",
    open=_open,
    converts=False,
    write_drops=_write_drops,
)
