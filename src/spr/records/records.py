"""The records that the stages exchange, validated at construction.

Every record has a table (`spr.records.schemas`) with columns of the same names. Boxes are ``(x1, y1, x2, y2)`` tuples
of floats in pixels of the original image; ids are strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any, ClassVar, Literal, Self, TypeAlias

from spr.core.boxes import Box, Point, Size
from spr.core.errors import RecordError

Source: TypeAlias = Literal["annotation", "detector"]
EditKind: TypeAlias = Literal["replaced", "kept", "box_removed", "phrase_removed"]
PromptKind: TypeAlias = Literal["full", "crop", "crop_objects"]
PairKind: TypeAlias = Literal["answers", "boxes"]
QuestionKind: TypeAlias = Literal["absent", "present"]
Split: TypeAlias = Literal["train", "holdout"]
"""What an image may be used for: training, or only evaluation (`annotations.holdout`)."""

PROMPT_KINDS: tuple[PromptKind, ...] = ("full", "crop", "crop_objects")
TRUNCATED = "length"
"""The ``finish_reason`` of an answer that was cut at the token limit (`spr.models.protocols.Answer`)."""
CUT_REASONS = frozenset({TRUNCATED, "max_tokens", "content_filter", "abort", "error"})
"""Each ``finish_reason`` of a server's answer that is not complete: it was cut at a limit, filtered or given up."""


class Row:
    """The base of all records, which are frozen dataclasses."""

    __match_args__: ClassVar[tuple[str, ...]]  # the names of the fields, set by @dataclass

    def to_row(self) -> dict[str, Any]:
        """The record as nested dicts, tuples and numbers, for `pyarrow.Table.from_pylist`."""
        # Faster than dataclasses.asdict, which copies deeply; a run converts millions of rows.
        return {name: _plain(getattr(self, name)) for name in self.__match_args__}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Construct and validate the record of a table row. Additional columns are ignored."""
        return cls(**{name: row[name] for name in cls.__match_args__ if name in row})


def _plain(value: Any) -> Any:
    # Either all items of a tuple are records or none is.
    if isinstance(value, tuple) and value and isinstance(value[0], Row):
        return tuple([item.to_row() for item in value])
    return value.to_row() if isinstance(value, Row) else value


def make_nested(record: Row, **kinds: type[Row]) -> None:
    """In ``__post_init__``: convert the named fields from lists of rows or records to tuples of records."""
    for name, kind in kinds.items():
        items = getattr(record, name)
        converted = tuple(item if isinstance(item, kind) else kind.from_row(item) for item in items)
        object.__setattr__(record, name, converted)


def check_box(box: object, size_wh: Size | None = None, *, where: str = "box") -> Box:
    """Four finite numbers x1 < x2, y1 < y2 in pixels, within the image if its size is given, as a tuple of floats.

    Raises:
        RecordError: if the box is not valid; ``where`` names it.
    """
    try:
        x1, y1, x2, y2 = (float(v) for v in box)  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        raise RecordError(f"{where} is not a box", got=repr(box), expected="four numbers x1, y1, x2, y2") from None
    got = x1, y1, x2, y2
    if not all(map(isfinite, got)):
        raise RecordError(f"{where} is not finite", got=got, expected="four finite numbers")
    if not (x1 < x2 and y1 < y2):
        raise RecordError(f"{where} has no area", got=got, expected="x1 < x2 and y1 < y2 (xyxy pixels)")
    if size_wh is not None and not (x1 >= 0 and y1 >= 0 and x2 <= size_wh[0] and y2 <= size_wh[1]):
        raise RecordError(f"{where} extends beyond its image", got=got, expected=f"within (0, 0) and {size_wh}")
    return got


def _check_id(value: object, where: str) -> None:
    if not isinstance(value, str) or not value:
        raise RecordError(f"{where} is not an id", got=repr(value), expected="a string that is not empty")


def _check_image(record: ImageObjects | RegionQuery | PreferencePair | QuestionPair) -> None:
    _check_id(record.image_id, "image_id")
    _check_id(record.file_name, f"file_name of image {record.image_id}")
    if record.width < 1 or record.height < 1:
        got = (record.width, record.height)
        raise RecordError(f"size of image {record.image_id} is not valid", got=got, expected="width and height ≥ 1 px")
    if record.split not in ("train", "holdout"):
        raise RecordError(f"split of image {record.image_id} is unknown", got=record.split, expected="train, holdout")


def _check_score(value: float | None, where: str, low: float = 0.0, high: float = 1.0) -> None:
    if value is not None and not low - 1e-6 <= value <= high + 1e-6:
        raise RecordError(f"{where} is out of range", got=value, expected=f"{low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class ImageObject(Row):
    """An object of an image.

    Attributes:
        id: The annotation's id; for a detection that replaces a crowd, ``<crowd id>#<n>``.
        category: The category's name.
        box: xyxy pixels of the original image, clipped to it.
        source: ``annotation``, or ``detector`` for a detection that replaces a crowd (supplement, Sec. 1).
        score: The detector's score, 0..1; None for annotations.
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
            where = f"source of object {self.id} is unknown"
            raise RecordError(where, got=self.source, expected="annotation or detector")
        _check_score(self.score, f"score of object {self.id}")


@dataclass(frozen=True, slots=True)
class RegionObject(ImageObject):
    """An object of a query's image; ``inside`` if at least half of its area lies in the region (supplement, Sec. 1)."""

    inside: bool = False


@dataclass(frozen=True, slots=True)
class AskableCategories(Row):
    """Categories that an image can be asked about (`pairing.negatives`), by their names in the annotations.

    Attributes:
        random, popular, adversarial: Categories that are not in the image, at most eight, in the order in which they
            are asked about by `pairing.negatives_from`.
        single: Categories with exactly one annotated object, of which nothing was dropped.
    """

    random: tuple[str, ...]
    popular: tuple[str, ...]
    adversarial: tuple[str, ...]
    single: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.__match_args__:
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True, slots=True)
class ImageObjects(Row):
    """An image with its objects: a row of the table ``objects``.

    ``license`` and ``source_url`` are what the annotations say about the image, if anything. ``split`` says whether the
    image is held out from training. ``askable`` is None in runs of earlier versions.

    Raises:
        RecordError: if an id is empty or not unique, or a box is not valid or extends beyond the image.
    """

    image_id: str
    file_name: str
    width: int
    height: int
    objects: tuple[ImageObject, ...]
    license: str | None = None
    source_url: str | None = None
    split: Split = "train"
    askable: AskableCategories | None = None

    def __post_init__(self) -> None:
        _check_image(self)
        make_nested(self, objects=ImageObject)
        row: Any = self.askable
        if isinstance(row, Mapping):
            object.__setattr__(self, "askable", AskableCategories.from_row(row))
        _check_objects(self.objects, (self.width, self.height), self.image_id)


@dataclass(frozen=True, slots=True)
class RegionQuery(Row):
    """A region to describe, with all objects of its image (paper, Sec. 3.1).

    Attributes:
        query_id: ``<image_id>/<n>``; n counts the image's regions from 0.
        region: The union of the boxes of the objects that were added to it.
        start_object: Id of the object whose box it started from.
        objects: All objects of the image; those with ``inside`` are the ground truth of the region.
        split: Whether the image is held out from training.
    """

    query_id: str
    image_id: str
    file_name: str
    width: int
    height: int
    region: Box
    start_object: str
    objects: tuple[RegionObject, ...]
    split: Split = "train"

    def __post_init__(self) -> None:
        _check_image(self)
        _check_id(self.query_id, "query_id")
        size = (self.width, self.height)
        object.__setattr__(self, "region", check_box(self.region, size, where=f"region of query {self.query_id}"))
        make_nested(self, objects=RegionObject)
        _check_objects(self.objects, size, self.image_id)
        if self.start_object not in {o.id for o in self.objects}:
            where = f"start_object of query {self.query_id} is not an object of its image"
            raise RecordError(where, got=self.start_object)

    @property
    def inside(self) -> tuple[RegionObject, ...]:
        """The objects inside the region: its ground truth."""
        return tuple(o for o in self.objects if o.inside)


def _check_objects(objects: tuple[ImageObject, ...], size_wh: Size, image_id: str) -> None:
    for item in objects:
        check_box(item.box, size_wh, where=f"box of object {item.id} of image {image_id}")
    ids = [item.id for item in objects]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise RecordError(f"image {image_id} has two objects with the same id", got=twice, expected="unique ids")


@dataclass(frozen=True, slots=True)
class Span(Row):
    """A phrase of a text with the boxes and points that ground it.

    Attributes:
        phrase: ``text[start:end]``.
        start, end: Character offsets in the plain text.
        boxes: Zero or more boxes, xyxy pixels of the original image. They come from a model, so they may extend beyond
            the image or have no area.
        points: Zero or more points, xy pixels of the original image; also from a model.
    """

    phrase: str
    start: int
    end: int
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end or self.end - self.start != len(self.phrase):
            got, expected = (self.start, self.end, self.phrase), "0 ≤ start, end = start + len(phrase)"
            raise RecordError("the offsets of a span do not match its phrase", got=got, expected=expected)
        try:
            # Written for speed: a run constructs millions of spans.
            boxes = tuple([(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in self.boxes])
        except (TypeError, ValueError):
            boxes = ((nan,) * 4,)
        for x1, y1, x2, y2 in boxes:
            if not (isfinite(x1) and isfinite(y1) and isfinite(x2) and isfinite(y2)):
                raise RecordError("a span has a non-finite box", got=self.boxes, expected="four finite numbers per box")
        object.__setattr__(self, "boxes", boxes)
        if self.points != ():
            object.__setattr__(self, "points", _checked_points(self.points))


def _checked_points(values: object) -> tuple[Point, ...]:
    try:
        points = tuple([(float(x), float(y)) for x, y in values])  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        points = ((nan, nan),)
    if not all(isfinite(x) and isfinite(y) for x, y in points):
        raise RecordError("a span has a non-finite point", got=values, expected="two finite numbers per point")
    return points


@dataclass(frozen=True, slots=True)
class Candidate(Row):
    """One description of a region (paper, Sec. 3.2): as generated, and as an answer to the training prompt.

    ``finish_reason`` is why its generation ended, see `spr.models.protocols.Answer`; None if it is not known.
    """

    candidate_id: str
    query_id: str
    prompt_kind: PromptKind
    raw_text: str
    text: str
    plain_text: str
    spans: tuple[Span, ...]
    problems: tuple[str, ...]
    finish_reason: str | None
    seed: int
    model: str
    dialect: str

    def __post_init__(self) -> None:
        _check_id(self.candidate_id, "candidate_id")
        _check_id(self.query_id, f"query_id of candidate {self.candidate_id}")
        if self.prompt_kind not in PROMPT_KINDS:
            where = f"prompt_kind of candidate {self.candidate_id} is unknown"
            raise RecordError(where, got=self.prompt_kind, expected=", ".join(PROMPT_KINDS))
        make_nested(self, spans=Span)
        object.__setattr__(self, "problems", tuple(self.problems))
        _check_spans(self.spans, self.plain_text, self.candidate_id)


def _check_spans(spans: tuple[Span, ...], plain_text: str, owner: str) -> None:
    for span in spans:
        if (got := plain_text[span.start : span.end]) != span.phrase:
            raise RecordError(f"a span of {owner} does not match its text", got=repr(got), expected=repr(span.phrase))


@dataclass(frozen=True, slots=True)
class Detection(Row):
    """A box that the detector returned for a phrase: xyxy pixels of the original image, with a score of 0..1."""

    phrase: str
    box: Box
    score: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", check_box(self.box, where=f"detection of {self.phrase!r}"))
        _check_score(self.score, f"score of the detection of {self.phrase!r}")


@dataclass(frozen=True, slots=True)
class Match(Row):
    """The best prediction for one object inside the region: its IoU (0..1) and its source."""

    object_id: str
    iou: float
    source: str

    def __post_init__(self) -> None:
        _check_score(self.iou, f"IoU of object {self.object_id}")


@dataclass(frozen=True, slots=True)
class Scores(Row):
    """The scores of a candidate (paper, Sec. 3.2): cosines -1..1, localization 0..1, and the boxes behind them."""

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
    """What refinement did with one box (paper, Sec. 3.3); ``box_after`` is None if the box was removed."""

    phrase: str
    box_before: Box
    box_after: Box | None
    edit: EditKind

    def __post_init__(self) -> None:
        object.__setattr__(self, "box_before", tuple(self.box_before))
        object.__setattr__(self, "box_after", None if self.box_after is None else tuple(self.box_after))
        if (self.box_after is None) != (self.edit in ("box_removed", "phrase_removed")):
            where = f"box edit of {self.phrase!r} does not match its box_after"
            raise RecordError(where, got=(self.edit, self.box_after))


@dataclass(frozen=True, slots=True)
class PreferencePair(Row):
    """A chosen and a rejected answer to one prompt (paper, Sec. 3.3), with their candidates, scores and box edits.

    The answers are those of two candidates (kind ``answers``), or differ only in some boxes (``boxes``); then both
    scores are the mean IoU of these boxes with their objects. An answer with the finish reason `TRUNCATED` was cut: an
    end of turn does not belong after it. A pair of ``split`` ``holdout`` is not trained on.
    """

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
    chosen_finish_reason: str | None = None
    rejected_finish_reason: str | None = None
    kind: PairKind = "answers"
    split: Split = "train"

    @property
    def pair_id(self) -> str:
        """The query's id, with the kind unless it is ``answers``; unique among all pairs of a run."""
        return self.query_id if self.kind == "answers" else f"{self.query_id}/{self.kind}"

    @property
    def truncated(self) -> bool:
        """Whether one of the answers was cut (`CUT_REASONS`)."""
        return not CUT_REASONS.isdisjoint((self.chosen_finish_reason, self.rejected_finish_reason))

    def __post_init__(self) -> None:
        _check_image(self)
        where = f"region of query {self.query_id}"
        object.__setattr__(self, "region", check_box(self.region, (self.width, self.height), where=where))
        make_nested(self, chosen_spans=Span, rejected_spans=Span, box_edits=BoxEdit)
        if self.kind not in ("answers", "boxes"):
            raise RecordError(
                f"kind of query {self.query_id}'s pair is unknown", got=self.kind, expected="answers, boxes"
            )
        if self.chosen == self.rejected:
            raise RecordError(f"chosen equals rejected in query {self.query_id}", got=repr(self.chosen))


@dataclass(frozen=True, slots=True)
class QuestionPair(Row):
    """A pair about one object of an image, made from the annotations without a model (`pairing.negatives`).

    It has no region, no candidates and no scores.

    Attributes:
        query_id: ``<image_id>/absent-<n>`` or ``<image_id>/present-<n>``; n counts from 0.
        category: What the question is about, as the annotations name it.
        expression: The same as the prompt names it, such as ``the dog``.
        chosen, rejected: If it is ``absent``, chosen says that it is not there, and rejected gives the box of another
            object. If it is ``present``, chosen gives its box, and rejected says that it is not there.
        split: Whether the image is held out from training.
    """

    query_id: str
    image_id: str
    file_name: str
    width: int
    height: int
    category: str
    expression: str
    prompt: str
    chosen: str
    rejected: str
    chosen_spans: tuple[Span, ...]
    rejected_spans: tuple[Span, ...]
    kind: QuestionKind
    split: Split = "train"

    @property
    def pair_id(self) -> str:
        """The question's id, unique among all pairs of a run."""
        return self.query_id

    @property
    def truncated(self) -> bool:
        """Whether one of the answers was cut: never."""
        return False

    def __post_init__(self) -> None:
        _check_image(self)
        make_nested(self, chosen_spans=Span, rejected_spans=Span)
        if self.kind not in ("absent", "present"):
            where = f"kind of question {self.query_id} is unknown"
            raise RecordError(where, got=self.kind, expected="absent, present")
        if self.chosen == self.rejected:
            raise RecordError(f"chosen equals rejected in question {self.query_id}", got=repr(self.chosen))
