"""The page of `spr check`: one HTML file with the readings, the findings, and images with their boxes drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np

from spr.core.atomic import write_atomically
from spr.core.boxes import Size
from spr.core.image_metadata import forget_metadata
from spr.core.images import ImageProblem, ImageSource
from spr.core.ordered_map import ordered_map
from spr.core.terminal import count_text, one_line
from spr.report.page import TEMPLATES as REPORT
from spr.workflows.checking.boxes import MESSAGES, READ_KINDS, box_masks
from spr.workflows.checking.counts import BatchColumns
from spr.workflows.checking.findings import Finding
from spr.workflows.checking.gallery import Shown
from spr.workflows.checking.readings import Reading
from spr.workflows.checking.rows import Batch, DataRow, Stated
from spr.workflows.checking.verdicts import Candidate

SIDE = 560
"""The longer side of an image on the page, in pixels at most."""
TEMPLATES = Path(__file__).parents[1] / "templates"
_LISTED = 5
_BOXES = 60
_LEGEND = 8
_COLOURS = 8
_MARGIN = 0.2
_DRAWN = 360
_UNKNOWN: Size = (1000, 1000)
_SHORT = {
    "duplicate_box": "box twice",
    "repeated_row": "row twice",
    "beyond": "beyond the image",
    "inverted": "inverted",
    "no_area": "no area",
    "tiny": "tiny",
    "whole_image": "whole image",
    "too_long": "too long",
}


@dataclass(frozen=True, slots=True)
class PagePart:
    """Boxes with one reading: those in texts, or those in fields that state their scale.

    Attributes:
        name: What they are, for people.
        stated: The scale that their rows state.
        candidates: The readings, the most plausible first.
        given: The reading that was given; None if none was.
        boxes: How many there are.
    """

    name: str
    stated: Stated | None
    candidates: Sequence[Candidate]
    given: Reading | None
    boxes: int

    @property
    def chosen(self) -> Candidate | None:
        """The candidate under which boxes are drawn: the given reading, else the most plausible one."""
        if self.given is not None:
            return next((one for one in self.candidates if one.reading == self.given), None)
        return self.best

    @property
    def best(self) -> Candidate | None:
        """The most plausible reading."""
        return self.candidates[0] if self.candidates and self.candidates[0].boxes else None

    @property
    def compared(self) -> bool:
        """Whether boxes were compared with a reference."""
        return any(one.iou is not None for one in self.candidates)

    @property
    def others(self) -> list[str]:
        """Names of further readings that fit and place boxes elsewhere than the most plausible one."""
        if self.best is None:
            return []
        same = {self.best.reading.name, *self.best.same_as}
        return [one.reading.name for one in self.candidates if one.verdict == "fits" and one.reading.name not in same]


@dataclass(slots=True)
class PageContent:
    """What the page shows.

    Attributes:
        title: The name of the data.
        facts: Pairs of a name and a value: layout, rows, model.
        parts: The boxes by how they are written.
        findings: What else was noticed.
        notes: Sentences below the findings.
        refuted: Why the data can't be what was given; empty if they can.
        shown: The images.
        images: Where the images are; None leaves them out.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    parts: Sequence[PagePart]
    findings: Sequence[Finding] = ()
    notes: Sequence[str] = ()
    refuted: Sequence[str] = ()
    shown: Sequence[Shown] = ()
    images: ImageSource | None = None


@dataclass(slots=True)
class _Mark:
    number: int
    x: float
    y: float
    width: float
    height: float
    colour: int
    wrong: bool


@dataclass(slots=True)
class _Panel:
    title: str
    view: str
    marks: list[_Mark]
    outside: int
    """Boxes no part of which is in the view."""
    more: int
    """Boxes that are left out as there are too many."""


@dataclass(slots=True)
class _Card:
    number: int
    image: str
    place: str
    size: str
    width: int
    height: int
    source: str | None
    problem: str
    kinds: list[str]
    note: str
    unit: float
    panels: list[_Panel] = field(default_factory=list)
    legend: list[tuple[int, int, str, str, str]] = field(default_factory=list)


def write_page(content: PageContent, out: Path) -> Path:
    """Write the page into the file ``out``, which holds all it needs: no script, and no other file.

    Images that can't be opened are shown as boxes on an empty canvas, with the reason.

    Raises:
        OSError: if the file can't be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["count_text"] = count_text
    css = (REPORT / "report.css").read_text(encoding="utf-8") + (TEMPLATES / "check.css").read_text(encoding="utf-8")
    tables = [(part, *_tables(part)) for part in content.parts]
    text = environment.get_template("check.html").render(
        css=css, content=content, tables=tables, cards=list(_cards(content)), colours=_COLOURS
    )
    # A name may contain lone surrogates, which UTF-8 can't encode.
    write_atomically(out, text.encode("utf-8", errors="replace"))
    return out


def _tables(part: PagePart) -> tuple[list[Candidate], list[Candidate]]:
    """The candidates that are listed at once, with the given one, and those behind a fold."""
    first: list[Candidate] = []
    for one in part.candidates:
        known = {name for other in first for name in (other.reading.name, *other.same_as)}
        if len(first) < _LISTED and one.verdict in ("fits", "less likely") and one.reading.name not in known:
            first.append(one)
    first = first or list(part.candidates[:3])
    if part.chosen is not None and part.chosen not in first:
        first.append(part.chosen)
    return first, [one for one in part.candidates if one not in first]


def _cards(content: PageContent) -> Iterable[_Card]:
    source = content.images

    def picture(shown: Shown) -> tuple[str | None, str, Size | None]:
        return _picture(source, shown)

    for number, (shown, found) in enumerate(ordered_map(picture, content.shown)):
        yield _card(content, number, shown, *found)


def _picture(source: ImageSource | None, shown: Shown) -> tuple[str | None, str, Size | None]:
    """The image as a data URI, or why there is none; and its size, if it could be opened."""
    if source is None or shown.image is None:
        return None, "no image" if shown.image is None else "images were left out", None
    size = _stated_size(shown)
    try:
        if size is None:
            size = source.load(shown.image).size
        small = forget_metadata(source.thumbnail(shown.image, size, SIDE))
    except ImageProblem as problem:
        return None, problem.reason.replace("_", " "), None
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=78)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode("ascii"), "", size


def _stated_size(shown: Shown) -> Size | None:
    return next((row.size_wh for row in shown.rows if row.size_wh is not None and min(row.size_wh) > 0), None)


def _card(
    content: PageContent, number: int, shown: Shown, source: str | None, problem: str, size: Size | None
) -> _Card:
    size = _stated_size(shown) or size
    known = size is not None
    width, height = size or _UNKNOWN
    first, last = shown.rows[0], shown.rows[-1]
    place = first.place if first is last else f"{first.place} … {last.place}"
    text = f"{width:,} × {height:,}" if known else "size unknown: drawn on a square"
    kinds = [_SHORT.get(kind, kind.replace("_", " ")) for kind in shown.kinds]
    note = "" if shown.whole else "only the boxes of these rows"
    image = "no image named" if shown.image is None else one_line(shown.image)
    unit = max(width, height) / _DRAWN
    card = _Card(number, image, one_line(place), text, width, height, source, problem, kinds, note, unit)
    for k in range(2):
        panel = _panel(content, shown.rows, (width, height), card, best=k == 1)
        if panel is not None:
            card.panels.append(panel)
    return card


def _panel(content: PageContent, rows: Sequence[DataRow], size: Size, card: _Card, *, best: bool) -> _Panel | None:
    """The boxes under the chosen readings, or under the best ones; None if these are the same."""
    marks: list[_Mark] = []
    names: dict[str, None] = {}
    differs = not best
    outside = more = number = 0
    low, high = np.array([-_MARGIN, -_MARGIN]) * size, np.array([1 + _MARGIN, 1 + _MARGIN]) * size
    for row in rows:
        part = next((one for one in content.parts if one.stated == row.stated), None)
        candidate = None if part is None else part.best if best else part.chosen
        if part is None or candidate is None:
            continue
        differs = differs or (part.chosen is not None and candidate.reading != part.chosen.reading)
        names[candidate.reading.name] = None
        wrong = _wrong(candidate.reading, row)
        sizes = np.tile(np.array(size, dtype=np.float64), (len(row.numbers), 1))
        boxes = candidate.reading.decode(row.numbers, sizes)
        for box, numbers, label, kinds in zip(boxes, row.numbers, row.labels, wrong, strict=False):
            number += 1
            if not best and len(card.legend) < _BOXES:
                written = ", ".join(f"{value:.6g}" for value in numbers)
                card.legend.append((number, (number - 1) % _COLOURS, one_line(label), written, ", ".join(kinds)))
            x1, y1, x2, y2 = np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])]).tolist()
            if x2 < low[0] or y2 < low[1] or x1 > high[0] or y1 > high[1] or not np.isfinite(box).all():
                outside += 1
            elif len(marks) < _BOXES:
                (x1, y1), (x2, y2) = np.clip([x1, y1], low, high).tolist(), np.clip([x2, y2], low, high).tolist()
                marks.append(_Mark(number, x1, y1, x2 - x1, y2 - y1, (number - 1) % _COLOURS, bool(kinds)))
            else:
                more += 1
    if not differs or not names:
        return None
    start = [min([0.0, *(mark.x for mark in marks)]), min([0.0, *(mark.y for mark in marks)])]
    end = [
        max([float(size[0]), *(mark.x + mark.width for mark in marks)]),
        max([float(size[1]), *(mark.y + mark.height for mark in marks)]),
    ]
    view = " ".join(f"{value:.6g}" for value in (*start, end[0] - start[0], end[1] - start[1]))
    return _Panel("; ".join(names), view, marks, outside, more)


def _wrong(reading: Reading, row: DataRow) -> list[list[str]]:
    """What is wrong with each box of a row, in short."""
    batch = Batch([row])
    columns = BatchColumns.of(batch)
    with np.errstate(all="ignore"):
        masks = box_masks(reading, columns, reading.scale.factors(columns.sizes))
    kinds = [kind for kind in READ_KINDS if kind in MESSAGES]
    return [[_SHORT[kind] for kind in kinds if masks[kind][k]] for k in range(len(row.numbers))]


def _percent(share: float) -> str:
    """A share in percent: two significant digits, but no small number becomes 0 or 100.

    >>> _percent(0.0), _percent(0.00004), _percent(0.0312), _percent(0.5), _percent(0.99999), _percent(1.0)
    ('0 %', '< 0.1 %', '3.1 %', '50 %', '> 99.9 %', '100 %')
    """
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    if share < 0.001:
        return "< 0.1 %"
    if share > 0.999:
        return "> 99.9 %"
    digits = 1 if share < 0.1 or share > 0.9 else 0
    return f"{100 * share:.{digits}f} %"
