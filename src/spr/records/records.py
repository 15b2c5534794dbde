"""The one vocabulary of SPR: what flows from stage to stage, checked when it is made.

Every record has a table (`schemas.py`) whose columns bear the same names. Boxes are ``(x1, y1, x2, y2)`` tuples of
floats, in pixels of the original image; ids are strings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeAlias

from spr.core.boxes import Box, Size
from spr.core.errors import RecordError
from spr.records.row import Row, make_nested

Source: TypeAlias = Literal["annotation", "detector"]
EditKind: TypeAlias = Literal["replaced", "kept", "box_removed", "phrase_removed"]
PromptKind: TypeAlias = Literal["full", "crop", "crop_objects"]

PROMPT_KINDS: tuple[PromptKind, ...] = ("full", "crop", "crop_objects")


def check_box(box: object, size_wh: Size | None = None, *, where: str = "box") -> Box:
    """Return ``box`` as a tuple of four floats, or raise.

    Args:
        box: Four finite numbers x1, y1, x2, y2 in pixels, with x1 < x2 and y1 < y2.
        size_wh: Where given, the box must also lie within this image.
        where: What the error calls the box.

    Raises:
        RecordError: naming what is wrong with the box.
    """
    try:
        x1, y1, x2, y2 = (float(v) for v in box)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise RecordError(f"{where} is not a box", got=repr(box), expected="four numbers x1, y1, x2, y2") from None
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise RecordError(f"{where} is not finite", got=(x1, y1, x2, y2), expected="four finite numbers")
    if not (x1 < x2 and y1 < y2):
        raise RecordError(f"{where} has no area", got=(x1, y1, x2, y2), expected="x1 < x2 and y1 < y2 (xyxy pixels)")
    if size_wh is not None and not (x1 >= 0 and y1 >= 0 and x2 <= size_wh[0] and y2 <= size_wh[1]):
        raise RecordError(f"{where} leaves its image", got=(x1, y1, x2, y2), expected=f"within 0, 0, {size_wh}")
    return x1, y1, x2, y2


def _check_id(value: object, where: str) -> None:
    if not isinstance(value, str) or not value:
        raise RecordError(f"{where} is not an id", got=repr(value), expected="a text that is not empty")


def _check_image(record: ImageObjects | RegionQuery | PreferencePair) -> None:
    _check_id(record.image_id, "image_id")
    _check_id(record.file_name, f"file_name of image {record.image_id}")
    if record.width < 1 or record.height < 1:
        got = (record.width, record.height)
        raise RecordError(f"size of image {record.image_id} is wrong", got=got, expected="width and height ≥ 1 px")


def _check_score(value: float | None, where: str, low: float = 0.0, high: float = 1.0) -> None:
    if value is not None and not low - 1e-6 <= value <= high + 1e-6:
        raise RecordError(f"{where} is out of range", got=value, expected=f"{low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class ImageObject(Row):
    """An object of an image.

    Attributes:
        id: The annotation's id, or the crowd's id and a number for a detector's find.
        category: The category's name.
        box: xyxy pixels of the original image, clipped to it.
        source: ``annotation``, or ``detector`` for what replaces a crowd (METHOD §1.2).
        score: The detector's confidence, 0..1; None for annotations.
    """

    id: str
    category: str
    box: Box
    source: Source = "annotation"
    score: float | None = None

    def __post_init__(self) -> None:
        _check_id(self.id, "object id")
        object.__setattr__(self, "box", check_box(self.box, where=f"box of object {self.id}"))
        if self.source not in ("annotation", "detector"):
            raise RecordError(f"source of object {self.id}", got=self.source, expected="annotation or detector")
        _check_score(self.score, f"score of object {self.id}")


@dataclass(frozen=True, slots=True)
class RegionObject(ImageObject):
    """An object of a region query's image; ``inside``: at least half of its area lies in the region (METHOD §0)."""

    inside: bool = False


@dataclass(frozen=True, slots=True)
class ImageObjects(Row):
    """An image with its objects: the output of `annotations` (METHOD §1).

    Raises:
        RecordError: for an empty id, an object with a wrong box or outside the image, or an id used twice.
    """

    image_id: str
    file_name: str
    width: int
    height: int
    objects: tuple[ImageObject, ...]

    def __post_init__(self) -> None:
        _check_image(self)
        make_nested(self, objects=ImageObject)
        _check_objects(self.objects, (self.width, self.height), self.image_id)


@dataclass(frozen=True, slots=True)
class RegionQuery(Row):
    """A region to be described, with all objects of its image (METHOD §2).

    Attributes:
        query_id: ``<image_id>/<n>``, n counting the image's regions from 0.
        region: The union of the objects' boxes that it grew over.
        start_object: Id of the object that it grew from.
        objects: All objects of the image; ``inside`` marks the ground truth of the region.
    """

    query_id: str
    image_id: str
    file_name: str
    width: int
    height: int
    region: Box
    start_object: str
    objects: tuple[RegionObject, ...]

    def __post_init__(self) -> None:
        _check_image(self)
        _check_id(self.query_id, "query_id")
        size = (self.width, self.height)
        object.__setattr__(self, "region", check_box(self.region, size, where=f"region of query {self.query_id}"))
        make_nested(self, objects=RegionObject)
        _check_objects(self.objects, size, self.image_id)
        if self.start_object not in {o.id for o in self.objects}:
            raise RecordError(
                f"start_object of query {self.query_id} is not an object of its image", got=self.start_object
            )

    @property
    def inside(self) -> tuple[RegionObject, ...]:
        """The objects inside the region: the ground truth G of METHOD §4."""
        return tuple(o for o in self.objects if o.inside)


def _check_objects(objects: tuple[ImageObject, ...], size_wh: Size, image_id: str) -> None:
    for item in objects:
        check_box(item.box, size_wh, where=f"box of object {item.id} of image {image_id}")
    ids = [item.id for item in objects]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise RecordError(f"image {image_id} has two objects of one id", got=twice, expected="ids that differ")


@dataclass(frozen=True, slots=True)
class Span(Row):
    """A phrase of a text with the boxes that ground it.

    Attributes:
        phrase: ``text[start:end]``.
        start, end: Character offsets in the plain text.
        boxes: Zero or more boxes, xyxy pixels of the original image. They may leave the image or have no area:
            they are what a model said.
    """

    phrase: str
    start: int
    end: int
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end or self.end - self.start != len(self.phrase):
            got = (self.start, self.end, self.phrase)
            raise RecordError("span does not fit its phrase", got=got, expected="0 ≤ start, end = start + len(phrase)")
        try:
            # Without loops: spans are made by the million.
            made = tuple([(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in self.boxes])
        except (TypeError, ValueError):
            made = ((math.nan,) * 4,)
        for x1, y1, x2, y2 in made:
            if not (isfinite(x1) and isfinite(y1) and isfinite(x2) and isfinite(y2)):
                raise RecordError("span has a box that is none", got=self.boxes, expected="four finite numbers a box")
        object.__setattr__(self, "boxes", made)


@dataclass(frozen=True, slots=True)
class Candidate(Row):
    """One description of a region (METHOD §3): as generated, and as an answer to the training prompt."""

    candidate_id: str
    query_id: str
    prompt_kind: PromptKind
    raw_text: str
    text: str
    plain_text: str
    spans: tuple[Span, ...]
    problems: tuple[str, ...]
    seed: int
    model: str
    dialect: str

    def __post_init__(self) -> None:
        _check_id(self.candidate_id, "candidate_id")
        _check_id(self.query_id, f"query_id of candidate {self.candidate_id}")
        if self.prompt_kind not in PROMPT_KINDS:
            where = f"prompt_kind of candidate {self.candidate_id}"
            raise RecordError(where, got=self.prompt_kind, expected=", ".join(PROMPT_KINDS))
        make_nested(self, spans=Span)
        object.__setattr__(self, "problems", tuple(self.problems))
        _check_spans(self.spans, self.plain_text, self.candidate_id)


def _check_spans(spans: tuple[Span, ...], plain_text: str, owner: str) -> None:
    for span in spans:
        if plain_text[span.start : span.end] != span.phrase:
            got = plain_text[span.start : span.end]
            raise RecordError(f"a span of {owner} does not match its text", got=repr(got), expected=repr(span.phrase))


@dataclass(frozen=True, slots=True)
class Detection(Row):
    """A box that the detector found for a phrase; xyxy pixels of the original image, score 0..1."""

    phrase: str
    box: Box
    score: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", check_box(self.box, where=f"detection of {self.phrase!r}"))
        _check_score(self.score, f"score of the detection of {self.phrase!r}")


@dataclass(frozen=True, slots=True)
class Match(Row):
    """The best prediction for one object inside the region: its IoU (0..1) and where it came from."""

    object_id: str
    iou: float
    source: str

    def __post_init__(self) -> None:
        _check_score(self.iou, f"IoU of object {self.object_id}")


@dataclass(frozen=True, slots=True)
class Scores(Row):
    """The scores of a candidate (METHOD §4): cosines -1..1, localization 0..1, and what they came from."""

    candidate_id: str
    query_id: str
    s_crop: float
    s_local: float
    semantic: float
    localization: float
    score: float
    detections: tuple[Detection, ...]
    matches: tuple[Match, ...]

    def __post_init__(self) -> None:
        _check_id(self.candidate_id, "candidate_id")
        for name in ("s_crop", "s_local", "semantic", "score"):
            _check_score(getattr(self, name), f"{name} of candidate {self.candidate_id}", -1.0)
        _check_score(self.localization, f"localization of candidate {self.candidate_id}")
        make_nested(self, detections=Detection, matches=Match)


@dataclass(frozen=True, slots=True)
class BoxEdit(Row):
    """What refinement did to one box (METHOD §5.1); ``box_after`` is None when the box went."""

    phrase: str
    box_before: Box
    box_after: Box | None
    edit: EditKind

    def __post_init__(self) -> None:
        object.__setattr__(self, "box_before", tuple(self.box_before))
        object.__setattr__(self, "box_after", None if self.box_after is None else tuple(self.box_after))
        if (self.box_after is None) != (self.edit in ("box_removed", "phrase_removed")):
            raise RecordError(f"edit of a box of {self.phrase!r}", got=(self.edit, self.box_after))


@dataclass(frozen=True, slots=True)
class PreferencePair(Row):
    """A chosen and a rejected answer to one prompt (METHOD §5), with where each came from."""

    query_id: str
    image_id: str
    file_name: str
    width: int
    height: int
    region: Box
    prompt: str
    chosen: str
    rejected: str
    chosen_spans: tuple[Span, ...]
    rejected_spans: tuple[Span, ...]
    chosen_candidate: str
    rejected_candidate: str
    chosen_score: float
    rejected_score: float
    margin: float
    box_edits: tuple[BoxEdit, ...]

    def __post_init__(self) -> None:
        _check_image(self)
        where = f"region of query {self.query_id}"
        object.__setattr__(self, "region", check_box(self.region, (self.width, self.height), where=where))
        make_nested(self, chosen_spans=Span, rejected_spans=Span, box_edits=BoxEdit)
        if self.chosen == self.rejected:
            raise RecordError(f"chosen equals rejected in query {self.query_id}", got=repr(self.chosen))
