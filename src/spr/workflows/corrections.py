"""Corrections of pairs that were made in other tools, read back as decisions of reviewers.

Boxes and words are those that ``spr export --format label-studio`` or ``fiftyone`` wrote, edited. An answer that did
not change is an acceptance, any other an edit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from spr.core import boxes as bx
from spr.core.documents import parse_json
from spr.core.errors import GroundingError, InputError
from spr.core.terminal import count_text
from spr.core.text_input import read_bytes
from spr.exports.fiftyone import CHOSEN as FIELD
from spr.exports.label_studio import BOXES, DECISION, TEXT
from spr.grounding import Dialect, get_dialect
from spr.records import Box, PreferencePair, Size
from spr.runs.edits import SNAP, edited_pair, without_boxes
from spr.runs.reader import Run
from spr.runs.reviews import Decision, ReviewFile, Reviews, decision, pair_sha256

_SAME_SHAPE = 0.02
"""Ratio of sides by which the tool's image may differ from the annotated one; more means a rotated image."""
_LISTED = 20
_MOST_BOXES = 10_000


class Correction(NamedTuple):
    """An answer as a person left it: by whom, about which pair, and its words and boxes.

    ``boxes`` maps the numbers of the boxes that are left to xyxy pixels; ``exported`` are the boxes before.
    """

    where: str
    reviewer: str
    pair: str
    pair_sha256: str
    rejected: bool
    text: str
    boxes: Mapping[int, Sequence[float]]
    exported: Sequence[Sequence[float]]


@dataclass(slots=True)
class ImportSummary:
    """What was read: the number of decisions by action, of those that were there before, and what was not used."""

    actions: Counter[str] = field(default_factory=Counter)
    known: int = 0
    earlier: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The summary for people."""
        yield f"imported: {count_text(self.actions.total(), 'decisions')}"
        yield from (f"  {count:>12,}  {action}" for action, count in self.actions.items())
        for count, what in (
            (self.known, "were there before"),
            (self.earlier, "earlier ones about the same pair by the same reviewer"),
            (self.skipped, "not annotated, or skipped there"),
        ):
            if count:
                yield f"  {count:>12,}  {what}"
        if self.problems:
            yield f"  {len(self.problems):>12,}  not used:"
        yield from (f"    {problem}" for problem in self.problems[:_LISTED])
        if len(self.problems) > _LISTED:
            yield f"    … and {len(self.problems) - _LISTED:,} more"


def import_corrections(run: Path, path: Path, reviewer: str | None = None) -> ImportSummary:
    """Append the corrections of a file to ``RUN/reviews.jsonl``; importing it again changes nothing.

    Args:
        run: The run whose pairs were exported.
        path: Label Studio's export as JSON, or the ``samples.json`` of a FiftyOne dataset.
        reviewer: Whose decisions they are; None: the annotators that the file names.

    Raises:
        InputError: if the file can't be read, or is something else.
        RunError: if the run has no pairs or is being reviewed.
    """
    expected = "Label Studio's export as JSON (a list of tasks with `data`), or FiftyOne's samples.json"
    try:
        content = parse_json(read_bytes(path, expected=expected))
    except ValueError as error:
        raise InputError(f"{path} is not JSON", got=error, expected=expected) from None
    summary = ImportSummary()
    samples = content.get("samples") if isinstance(content, dict) else None
    rows, key = (content, "data") if samples is None else (samples, "filepath")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and key in row for row in rows):
        fix = "export the project as JSON, not as JSON-MIN or CSV"
        raise InputError(f"{path} holds no corrections", got=_short(content), expected=expected, fix=fix)
    read = _label_studio if samples is None else _fiftyone
    pairs = {item.pair.pair_id: item for shard in Run(run).shards() for item in shard.pairs}
    found = read(rows, lambda name: _size(pairs[name].pair) if name in pairs else None, summary)
    with ReviewFile(run) as file:
        reviews = Reviews.read(run)
        latest: dict[tuple[str, str], Decision] = {}
        for one in found:
            item = pairs.get(one.pair)
            if item is None or pair_sha256(item.pair) != one.pair_sha256:
                what = "is not in this run" if item is None else "was computed again with other answers"
                summary.problems.append(f"{one.where}: pair {one.pair} {what}")
                continue
            try:
                made = _decision(one, item.pair, get_dialect(item.answers["chosen"].dialect), reviewer)
            except (GroundingError, ValueError) as error:
                summary.problems.append(f"{one.where}: {' '.join(str(error).split())[:300]}")
                continue
            summary.earlier += (made.reviewer, made.pair) in latest
            latest[made.reviewer, made.pair] = made
        for made in latest.values():
            if reviews.of(pairs[made.pair].pair).get(made.reviewer) == made:
                summary.known += 1
                continue
            file.append(made)
            reviews.add(made)
            summary.actions[made.action] += 1
    return summary


def _decision(one: Correction, pair: PreferencePair, dialect: Dialect, reviewer: str | None) -> Decision:
    if one.rejected:
        return decision(reviewer or one.reviewer, pair, "reject")
    size_wh = _size(pair)
    count = max((len(one.exported), *one.boxes))
    boxes: list[Sequence[float] | None] = []
    for number in range(1, count + 1):
        box = one.boxes.get(number)
        if box is not None and number <= len(one.exported):
            exact = one.exported[number - 1]
            # What the tool shows is clipped to the image and perhaps rounded.
            box = exact if _near(box, _clipped(exact, size_wh)) else box
        boxes.append(box)
    deleted = {number for number, box in enumerate(boxes, start=1) if box is None}
    text = without_boxes(one.text, deleted, prose=dialect.keeps_prose)
    edited = edited_pair(pair, text, boxes, dialect)
    same = edited.chosen == pair.chosen and _boxes(edited) == _boxes(pair)
    return decision(reviewer or one.reviewer, pair, "accept" if same else "edit", None if same else edited)


def _boxes(pair: PreferencePair) -> list[Box]:
    return [box for span in pair.chosen_spans for box in span.boxes]


def _clipped(box: Sequence[float], size_wh: Size) -> Box:
    x1, y1, x2, y2 = (round(float(v), 3) for v in bx.clip(bx.as_boxes([box]), size_wh)[0])
    return x1, y1, x2, y2


def _near(box: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) <= SNAP for a, b in zip(box, other, strict=True))


def _size(pair: PreferencePair) -> Size:
    return pair.width, pair.height


def _short(value: Any) -> str:
    return f"{type(value).__name__}: {str(value)[:80]}"


# ── Label Studio ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _label_studio(
    tasks: Sequence[Mapping[str, Any]], size_of: Callable[[str], Size | None], summary: ImportSummary
) -> Iterator[Correction]:
    """The corrections in Label Studio's tasks; annotations that were cancelled are skipped."""
    for k, task in enumerate(tasks):
        where = f"task {task.get('id', k)}"
        annotations = task.get("annotations")
        used = [a for a in annotations if isinstance(a, dict)] if isinstance(annotations, list) else []
        used = [annotation for annotation in used if not annotation.get("was_cancelled")]
        used.sort(key=lambda annotation: str(annotation.get("updated_at") or ""))  # the latest of a person counts
        summary.skipped += not used
        for annotation in used:
            try:
                yield _annotation(where, task["data"], annotation, size_of)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                summary.problems.append(f"{where}: {problem[:300]}")


def _annotation(
    where: str, data: Mapping[str, Any], annotation: Mapping[str, Any], size_of: Callable[[str], Size | None]
) -> Correction:
    name, size_wh = str(data["pair"]), size_of(str(data["pair"])) or (1, 1)
    boxes: dict[int, Sequence[float]] = {}
    text, rejected = str(data["chosen"]), False
    for result in annotation["result"]:
        value = result.get("value", {})
        if result.get("from_name") == TEXT:
            text = "\n".join(value["text"]) if isinstance(value["text"], list) else str(value["text"])
        elif result.get("from_name") == DECISION:
            rejected = "reject" in value["choices"]
        elif result.get("from_name") == BOXES:
            labels = value.get("rectanglelabels") or []
            if len(labels) != 1 or not str(labels[0]).isdecimal():
                raise ValueError(f"a box has the label {labels} instead of one number")
            if int(labels[0]) in boxes:
                raise ValueError(f"two boxes have the number {labels[0]}")
            if int(labels[0]) > _MOST_BOXES:
                raise ValueError(f"{labels[0]} is not the number of a box")
            boxes[int(labels[0])] = _from_percent(result, value, size_wh)
    by = annotation.get("completed_by")
    person = by.get("email") or by.get("id") if isinstance(by, dict) else by
    reviewer = f"label-studio {person if person is not None else 'annotator'}"[:80]
    return Correction(where, reviewer, name, str(data["pair_sha256"]), rejected, text, boxes, data["boxes"])


def _from_percent(result: Mapping[str, Any], value: Mapping[str, Any], size_wh: Size) -> Box:
    """A rectangle in pixels; a rotated one gives the upright box around it.

    Label Studio turns a rectangle clockwise around its upper left corner.
    """
    if result.get("image_rotation"):
        raise ValueError("the image was rotated in Label Studio, so its boxes can't be placed; rotate it back")
    width, height = size_wh
    shape = float(result.get("original_width", width)) / float(result.get("original_height", height))
    if abs(shape * height / width - 1) > _SAME_SHAPE and size_wh != (1, 1):
        got = f"{result.get('original_width')} × {result.get('original_height')}"
        raise ValueError(f"the image in Label Studio is {got}, not {width} × {height}: it is another one, or turned")
    x, w = (float(value[name]) * width / 100 for name in ("x", "width"))
    y, h = (float(value[name]) * height / 100 for name in ("y", "height"))
    angle = math.radians(float(value.get("rotation") or 0))
    cos, sin = math.cos(angle), math.sin(angle)
    corners = [(x, y), (x + w * cos, y + w * sin), (x - h * sin, y + h * cos)]
    corners.append((corners[1][0] + corners[2][0] - x, corners[1][1] + corners[2][1] - y))
    xs, ys = zip(*corners, strict=True)
    return _clipped((min(xs), min(ys), max(xs), max(ys)), size_wh)


# ── FiftyOne ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fiftyone(
    samples: Sequence[Mapping[str, Any]], size_of: Callable[[str], Size | None], summary: ImportSummary
) -> Iterator[Correction]:
    """The corrections in FiftyOne's samples; without a change and without the tag accept or reject, it is skipped."""
    for k, sample in enumerate(samples):
        where = f"sample {k}"
        try:
            found = _sample(where, sample, size_of)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            summary.problems.append(f"{where}: {problem[:300]}")
            continue
        summary.skipped += found is None
        if found is not None:
            yield found


def _sample(where: str, sample: Mapping[str, Any], size_of: Callable[[str], Size | None]) -> Correction | None:
    name, tags = str(sample["pair"]), set(sample.get("tags") or ())
    size_wh, exported = size_of(name) or (1, 1), parse_json(str(sample["boxes"]))
    boxes: dict[int, Sequence[float]] = {}
    for detection in (sample[FIELD] or {}).get("detections", []):
        number = str(detection.get("label")).partition(" ")[0]
        if not number.isdecimal() or int(number) > _MOST_BOXES:
            raise ValueError(f"a box has the label {detection.get('label')!r}, which does not begin with its number")
        if int(number) in boxes:
            raise ValueError(f"two boxes have the number {number}")
        x, y, w, h = (float(value) for value in detection["bounding_box"])
        width, height = size_wh
        boxes[int(number)] = _clipped((x * width, y * height, (x + w) * width, (y + h) * height), size_wh)
    before = {k: _clipped(box, size_wh) for k, box in enumerate(exported, start=1)}
    moved = boxes.keys() != before.keys() or any(not _near(boxes[k], before[k]) for k in boxes)
    changed = moved or sample["chosen_text"] != sample["exported_text"]
    if not changed and not tags & {"accept", "reject"}:
        return None
    text = str(sample["chosen_text"])
    return Correction(where, "fiftyone", name, str(sample["pair_sha256"]), "reject" in tags, text, boxes, exported)
