"""What a sample's answer should place, as one JSON text that travels with the sample to the reward."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from spr.core import boxes as bx
from spr.core.errors import RecordError, RewardError, SprError, nearest
from spr.grounding import Dialect, get_dialect
from spr.grounding.category_names import CategoryNames
from spr.grounding.geometry import check_size
from spr.grounding.matching import contains_name, spaced_words
from spr.records import Box, ImageObject, RegionQuery, Size
from spr.records.records import check_box
from spr.rewards.answer import Answer, reader_of

FORMAT = "spr_truth"
VERSION = 1
Labels: TypeAlias = Literal["ignore", "name", "synonyms", "phrase"]
"""How the words of a box count when boxes are matched to objects.

``ignore``: not at all. ``name``: they are the object's label; case, articles, punctuation, underscores and a plural s
don't matter (`spr.grounding.category_names.CategoryNames`). ``synonyms``: they are the label or one of its synonyms.
``phrase``: they contain the label, as in a description (`spr.grounding.matching.names_category`).
"""
LABELS: tuple[Labels, ...] = get_args(Labels)
_KEYS = ("width", "height", "dialect", "objects", "labels", "synonyms", "tokenizer")
_EXAMPLE = (
    '{"spr_truth": 1, "width": 640, "height": 480, "dialect": "qwen3_vl", "objects": [{"label": "dog", "box": …}]}'
)


@dataclass(frozen=True, slots=True)
class TruthObject:
    """An object that an answer should place: its label, and its box in xyxy pixels of the original image."""

    label: str
    box: Box


@dataclass(frozen=True)
class Truth:
    """The objects that an answer should place, and how the answer is read.

    Attributes:
        objects: The objects; `ImageObject`s are taken, too. Empty if nothing that the prompt asks for is in the image:
            the right answer then says so and has no box (`spr.rewards.rejects`).
        dialect: How the model writes boxes: the spec of `get_dialect`, with the limits between which the trainer
            resizes images where the numbers depend on them, such as ``qwen2_5_vl:min_pixels=3136,max_pixels=1003520``.
        size_wh: Width and height of the original image in pixels.
        labels: How the words of a box count, see `Labels`.
        synonyms: Further names by label, for ``labels="synonyms"``.
        tokenizer: Folder or name of the tokenizer that decodes the answer's tokens, where a trainer removes the
            special tokens that carry the boxes from its text (docs/rl-trainers.md).

    ``dialect`` and ``size_wh`` may be left out where the answer is already read.

    Raises:
        RecordError: if a box is not valid or is not in the image.
        RewardError: for an unknown value of ``labels``, synonyms of a label that no object has, or ones that
            ``labels`` does not use, or labels that no answer can name (``🐕``; ``C++`` beside ``C#``).
        GroundingError: for an unknown dialect or a wrong image size.

    >>> truth = Truth((TruthObject("dog", (0, 0, 320, 240)),), "ferret", (640, 480))
    >>> truth.read("a dog [0, 0, 500, 500]").boxes
    ((0.0, 0.0, 320.0, 240.0),)
    >>> Truth.from_json(truth.to_json()) == truth
    True
    """

    objects: tuple[TruthObject, ...]
    dialect: str = ""
    size_wh: Size | None = None
    labels: Labels = "ignore"
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        size = check_size(self.size_wh) if self.size_wh is not None else None
        given: Iterable[TruthObject | ImageObject] = self.objects
        objects = tuple(
            TruthObject(
                item.category if isinstance(item, ImageObject) else item.label,
                check_box(item.box, size, where=f"box of object {number}"),
            )
            for number, item in enumerate(given)
        )
        object.__setattr__(self, "objects", objects)
        object.__setattr__(self, "size_wh", size)
        object.__setattr__(self, "synonyms", {label: tuple(names) for label, names in self.synonyms.items()})
        if self.dialect:
            get_dialect(self.dialect)
        if self.labels not in LABELS:
            raise RewardError("`labels` is unknown", got=repr(self.labels), fix=nearest(str(self.labels), LABELS))
        known = {item.label for item in objects}
        if unknown := [label for label in self.synonyms if label not in known]:
            expected = ", ".join(sorted(known)) or "no synonyms, because there are no objects"
            raise RewardError("`synonyms` has a label that no object has", got=unknown[0], expected=expected)
        if self.synonyms and self.labels != "synonyms":
            fix = 'set labels to "synonyms", or leave the synonyms out'
            raise RewardError("`synonyms` are given but not used", got=f'labels "{self.labels}"', fix=fix)
        if self.labels != "ignore":
            self._check_labels()

    def __hash__(self) -> int:
        return hash((self.objects, self.dialect, self.size_wh, self.labels, self.tokenizer))

    @classmethod
    def from_query(
        cls,
        query: RegionQuery,
        dialect: str | Dialect = "",
        *,
        labels: Labels = "ignore",
        tokenizer: str | None = None,
    ) -> Truth:
        """The objects inside the region of a query."""
        spec = dialect.spec if isinstance(dialect, Dialect) else dialect
        objects = tuple(TruthObject(item.category, item.box) for item in query.inside)
        return cls(objects, spec, (query.width, query.height), labels, tokenizer=tokenizer)

    @classmethod
    def from_json(cls, text: str | bytes | Mapping[str, Any], column: str = "truth") -> Truth:
        """Read what `to_json` writes, or the object that it stands for.

        Args:
            text: The JSON text, or the decoded object.
            column: The sample's column, for errors.

        Raises:
            RewardError: if the column holds anything else, naming the column, the key and what was expected.
        """
        return _from_text(text, column) if isinstance(text, str) else _from_object(_decoded(text, column), column)

    def to_json(self) -> str:
        """The truth as JSON in one line. Boxes are pixels of the original image, rounded to 1/1000.

        A box that rounding would leave without area is written as it is.

        Raises:
            RewardError: if the dialect or the size is missing: nobody could read the answer.
        """
        if not self.dialect or self.size_wh is None:
            missing = "dialect" if not self.dialect else "size_wh"
            raise RewardError(f"The truth has no {missing}", fix=f"give `Truth` the argument {missing}")
        width, height = self.size_wh
        content: dict[str, Any] = {FORMAT: VERSION, "width": width, "height": height, "dialect": self.dialect}
        content["labels"] = self.labels
        content["objects"] = [{"label": item.label, "box": _short(item.box)} for item in self.objects]
        if self.synonyms:
            content["synonyms"] = {label: list(names) for label, names in self.synonyms.items()}
        if self.tokenizer is not None:
            content["tokenizer"] = self.tokenizer
        return json.dumps(content, ensure_ascii=False)

    def read(self, generated: str, *, step: int | None = None) -> Answer:
        """The answer in a generated text, read in the truth's dialect (`spr.rewards.read_answer`).

        Args:
            generated: What the model generated, with its special tokens where these carry the boxes.
            step: The trainer's step, for thresholds that depend on it.

        Raises:
            RewardError: if the truth has no dialect or no size.
        """
        if not self.dialect or self.size_wh is None:
            missing = "dialect" if not self.dialect else "size_wh"
            raise RewardError(f"The truth has no {missing}", fix=f"give `Truth` the argument {missing}")
        return Answer(generated, reader_of(self.dialect), self.size_wh, step=step)

    @cached_property
    def boxes(self) -> bx.Array:
        """The boxes of the objects, float64 ``(G, 4)``, xyxy pixels of the original image."""
        return bx.as_boxes([item.box for item in self.objects])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The different labels, in the order of the objects."""
        return tuple(dict.fromkeys(item.label for item in self.objects))

    @cached_property
    def _categories(self) -> CategoryNames:
        return CategoryNames(self.names, self.synonyms)

    def same_label(self, phrases: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether each of the phrases names each of the objects, bool ``(G, P)``; see `Labels`."""
        if self.labels == "ignore":
            return np.ones((len(self.objects), len(phrases)), dtype=bool)
        different = {phrase: column for column, phrase in enumerate(dict.fromkeys(phrases))}
        same = np.zeros((len(self.names), len(different)), dtype=bool)
        for phrase, column in different.items():
            same[:, column] = self._named(phrase)
        rows = {name: row for row, name in enumerate(self.names)}
        wanted = [rows[item.label] for item in self.objects], [different[phrase] for phrase in phrases]
        return same[np.ix_(*wanted)]

    def _check_labels(self) -> None:
        """Each label must name its own object; else not even the label itself could earn anything."""
        for row, name in enumerate(self.names):
            if not self._named(name)[row]:
                what = f'No answer can name an object with labels "{self.labels}"'
                expected = "labels with a letter or digit, no two of them alike but for case and punctuation"
                raise RewardError(
                    what, got=repr(name)[:80], expected=expected, fix='rename it, or set labels to "ignore"'
                )

    def _named(self, phrase: str) -> list[bool]:
        """Which of the names a phrase names."""
        if self.labels == "phrase":
            words = spaced_words(phrase)
            return [contains_name(words, name) for name in self.names]
        found = self._categories.find(phrase)
        return [row == found for row in range(len(self.names))]


@lru_cache(maxsize=4096)
def _from_text(text: str, column: str) -> Truth:
    return _from_object(_decoded(text, column), column)


def _decoded(text: str | bytes | Mapping[str, Any], column: str) -> Mapping[str, Any]:
    content: Any = text
    if isinstance(text, str | bytes):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            got = f"{str(text)[:80]!r} ({error})"
            raise _wrong(column, "is not JSON", got) from None
    if not isinstance(content, Mapping):
        raise _wrong(column, "is not a truth", repr(content)[:80])
    return content


def _from_object(content: Mapping[str, Any], column: str) -> Truth:
    if content.get(FORMAT) != VERSION or isinstance(content[FORMAT], bool):
        what = "has another version" if FORMAT in content else f"has no key `{FORMAT}`"
        raise _wrong(column, what, repr(content.get(FORMAT, dict(content)))[:120])
    if unknown := [key for key in content if key not in (FORMAT, *_KEYS)]:
        raise _wrong(column, f"has an unknown key `{unknown[0]}`", unknown[0], ", ".join(_KEYS))
    for key in _KEYS[:4]:
        if key not in content:
            raise _wrong(column, f"has no key `{key}`", ", ".join(content))
    dialect, tokenizer, synonyms = (content.get(key) for key in ("dialect", "tokenizer", "synonyms"))
    if not isinstance(dialect, str) or not dialect:
        raise _wrong(column, "has no dialect", repr(dialect), "a key of spr.DIALECTS, such as qwen3_vl")
    if not isinstance(tokenizer, str | None) or tokenizer == "":
        raise _wrong(column, "has a wrong `tokenizer`", repr(tokenizer), "a folder or a name on the Hugging Face Hub")
    if not isinstance(synonyms, Mapping | None) or not all(
        isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        for names in (synonyms or {}).values()
    ):
        raise _wrong(column, "has wrong `synonyms`", repr(synonyms)[:80], '{"person": ["man", "woman"]}')
    for key in ("width", "height"):
        if isinstance(content[key], bool):
            raise _wrong(column, f"has a wrong `{key}`", repr(content[key]), "pixels, at least 1")
    found = content["objects"]
    if not isinstance(found, list | tuple):
        raise _wrong(column, "has wrong `objects`", repr(found)[:80], '[{"label": "dog", "box": [x1, y1, x2, y2]}, …]')
    objects = [_object(item, number, column) for number, item in enumerate(found)]
    try:
        return Truth(
            tuple(objects),
            dialect,
            (content["width"], content["height"]),
            content.get("labels") or "ignore",  # null where a table of decoded truths fills it in
            {label: tuple(names) for label, names in (synonyms or {}).items()},
            tokenizer,
        )
    except SprError as error:
        raise RewardError(
            f"Column `{column}`: {error.what}", got=error.got, expected=error.expected, fix=error.fix
        ) from None


def _object(item: object, number: int, column: str) -> TruthObject:
    expected = '{"label": "dog", "box": [x1, y1, x2, y2]}'
    if not isinstance(item, Mapping) or not isinstance(item.get("label"), str) or "box" not in item:
        raise _wrong(column, f"has a wrong object {number}", repr(item)[:80], expected)
    if unknown := [key for key in item if key not in ("label", "box")]:
        raise _wrong(column, f"has an unknown key `{unknown[0]}` in object {number}", repr(item)[:80], expected)
    box = item["box"]
    if isinstance(box, str | bytes) or (
        isinstance(box, Iterable) and any(isinstance(value, str | bytes | bool) for value in box)
    ):
        what = f"Column `{column}`, object {number}: box is not a box"
        raise RewardError(what, got=repr(box)[:80], expected="four numbers x1, y1, x2, y2")
    try:
        return TruthObject(item["label"], check_box(box))
    except RecordError as error:
        what = f"Column `{column}`, object {number}: {error.what}"
        raise RewardError(what, got=error.got, expected=error.expected) from None


def _wrong(column: str, what: str, got: object, expected: str = _EXAMPLE) -> RewardError:
    fix = "`spr export --format grpo-…` and `Truth.to_json` write it"
    return RewardError(f"Column `{column}` {what}", got=got, expected=expected, fix=fix)


def _short(box: Box) -> list[float | int]:
    """A box rounded to 1/1000 pixels, unless it would have no area."""
    rounded = [round(value, 3) for value in box]
    if not (rounded[0] < rounded[2] and rounded[1] < rounded[3]):
        return list(box)
    return [int(value) if value == int(value) else value for value in rounded]
