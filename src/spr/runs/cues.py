"""Cues: properties by which chosen and rejected answers differ although they say nothing about the boxes' accuracy.

Preference training learns whatever separates chosen from rejected answers. If one of them lists its objects in reading
order and the other does not, or one is always longer, the model may learn that instead of placing boxes. The end of
`spr run`, the report and `spr train` show the cues of a run's pairs; docs/pairs.md explains them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spr.core.errors import RunError
from spr.core.progress import advance
from spr.core.terminal import count_text
from spr.grounding import parse
from spr.records import CUT_REASONS, PROMPT_KINDS
from spr.runs.kept import kept
from spr.runs.reader import SIDES, Run, Side

WARN_ACCURACY = 0.65
"""A cue gets a warning if it alone identifies the chosen answer in at least this share of the pairs (our choice).

0.5 is chance. 0.65 means a difference of 30 percentage points for a yes-or-no property such as reading order, and about
half a standard deviation for a length. Order alone reached 0.81 in the pairs that made us look for cues (21 % of chosen
and 83 % of rejected answers in reading order); training on them lost accuracy.
"""
WARN_LENGTH_RATIO = 1.25
"""Lengths also get a warning if the means of chosen and rejected differ by more than this factor (our choice)."""

TokenCounter: TypeAlias = Callable[[Sequence[str]], Iterable[int]]
"""Texts → the number of tokens of each."""
Values: TypeAlias = npt.NDArray[np.float64]
"""A property of all answers of one side, ``(pairs,)``; NaN where an answer does not have it."""

_PAIR_COLUMNS = [f"{side}{name}" for side in SIDES for name in ("", "_spans", "_candidate")]
_CANDIDATE_COLUMNS = ["candidate_id", "prompt_kind", "problems", "dialect", "finish_reason"]


class _Property(NamedTuple):
    """How a cue is shown; ``text`` is filled with the means of both sides."""

    group: str
    label: str
    unit: Literal["share", "number"]
    text: str


_ANSWERS = "{chosen} of chosen and {rejected} of rejected answers "
_MEANS = "On average {chosen} %s per chosen and {rejected} per rejected answer"
_NEIGHBOURS = "{chosen} of neighbouring boxes in chosen and {rejected} in rejected answers are in reading order"
_PROPERTIES = {
    **{
        f"kind_{kind}": _Property("kind", f"prompt kind {kind}", "share", f"{_ANSWERS}come from `{kind}` prompts")
        for kind in PROMPT_KINDS
    },
    "reading_order": _Property("order", "in reading order", "share", f"{_ANSWERS}list their boxes in reading order"),
    "neighbours_in_order": _Property("order", "neighbours in order", "share", _NEIGHBOURS),
    **{name: _Property("length", name, "number", _MEANS % name) for name in ("words", "characters", "tokens")},
    "boxes": _Property("boxes", "boxes", "number", _MEANS % "boxes"),
    "problems": _Property("problems", "format problems", "number", _MEANS % "format problems"),
    "cut": _Property("cut", "cut at the limit", "share", f"{_ANSWERS}were cut"),
}
_ADVICE = {
    "kind": "Partly intended, because crop prompts give better answers; check order and length, in which the kinds may "
    "differ too. `describer.samples` sets the number of answers of each kind.",
    "order": "Partly intended, because misplaced boxes break the order. `describer.object_order: reading`, the "
    "default, lists the objects of `crop_objects` prompts in reading order.",
    "length": "`pairing.max_length_ratio` drops pairs whose lengths differ too much.",
    "boxes": "Partly intended, because S_loc rewards naming more objects.",
    "problems": "Partly intended, because rejected answers keep their malformed boxes. A lower "
    "`describer.temperature` makes them rarer.",
    "cut": "`describer.truncated: drop` drops such answers; `describer.max_new_tokens` is the limit.",
}


@dataclass(frozen=True, slots=True)
class Cue:
    """One property of chosen against rejected answers.

    Attributes:
        name: ``kind_full``, ``kind_crop``, ``kind_crop_objects``, ``reading_order``, ``neighbours_in_order``,
            ``words``, ``characters``, ``tokens``, ``boxes``, ``problems`` or ``cut``.
        chosen: The mean of the chosen answers; for kinds, order and cut answers a share, 0..1.
        rejected: The mean of the rejected answers.
        accuracy: The share of pairs in which this property alone identifies the chosen answer, 0.5..1: that with the
            higher value, or that with the lower one, whichever is right more often. Equal values count half.
        pairs: The number of pairs whose answers both have the property; order needs two boxes.
    """

    name: str
    chosen: float
    rejected: float
    accuracy: float
    pairs: int

    @property
    def group(self) -> str:
        """What it is about: ``kind``, ``order``, ``length``, ``boxes``, ``problems`` or ``cut``."""
        return _PROPERTIES[self.name].group

    @property
    def label(self) -> str:
        """The name for people."""
        return _PROPERTIES[self.name].label

    @property
    def means(self) -> dict[str, str]:
        """The means of both sides, as they are shown.

        >>> measure_cue("words", [4, 6], [5, 5]).means, measure_cue("cut", [0, 1, 0], [1, 1, 1]).means
        ({'chosen': '5.0', 'rejected': '5.0'}, {'chosen': '33 %', 'rejected': '100 %'})
        """
        if _PROPERTIES[self.name].unit == "share":
            return {"chosen": f"{100 * self.chosen:.0f} %", "rejected": f"{100 * self.rejected:.0f} %"}
        digits = 2 if self.name == "problems" else 1
        return {"chosen": f"{self.chosen:,.{digits}f}", "rejected": f"{self.rejected:,.{digits}f}"}

    @property
    def warning(self) -> str | None:
        """What differs, by how much, and what to do about it; None below `WARN_ACCURACY` and `WARN_LENGTH_RATIO`.

        With few pairs, the accuracy must also be two standard errors over chance, ``0.5 + 1 / sqrt(pairs)``.
        """
        shorter, longer = sorted((self.chosen, self.rejected))
        lengths_differ = self.group == "length" and longer > WARN_LENGTH_RATIO * shorter
        if self.accuracy < max(WARN_ACCURACY, 0.5 + self.pairs**-0.5) and not lengths_differ:
            return None
        advice = _ADVICE[self.group]
        if self.group in ("length", "boxes") and self.chosen < self.rejected:
            advice += " If `pairing.unmatched` removes boxes from chosen answers, `keep_box` keeps them."
        return (
            f"{_PROPERTIES[self.name].text.format_map(self.means)}. This alone identifies the chosen answer in "
            f"{100 * self.accuracy:.0f} % of pairs; training may learn it instead of the boxes. {advice}"
        )


@dataclass(frozen=True, slots=True)
class PairCues:
    """The cues of a run's pairs.

    ``dialect`` is that of the answers. ``removed_entries`` counts the boxes that refinement removed if the dialect only
    lists objects, so that words without a box can't be written; otherwise it is 0.
    """

    pairs: int
    cues: tuple[Cue, ...]
    dialect: str | None = None
    removed_entries: int = 0

    @property
    def warnings(self) -> list[str]:
        """A warning per group of cues, that of its strongest one, and one if refinement shortened lists."""
        strongest: dict[str, Cue] = {}
        for cue in self.cues:
            if cue.warning and (cue.group not in strongest or cue.accuracy > strongest[cue.group].accuracy):
                strongest[cue.group] = cue
        lines = [str(cue.warning) for cue in strongest.values()]
        if self.removed_entries:
            removed = count_text(self.removed_entries, "boxes")
            lines.append(
                f"Refinement removed {removed} from chosen answers. The dialect `{self.dialect}` "
                "lists objects, so their words are gone too. `pairing.unmatched: keep_box`, the default in such "
                "dialects, keeps them."
            )
        return lines

    def table(self) -> Iterator[str]:
        """Lines of text for people: the cues, then the warnings."""
        yield f"  {'':<26}{'chosen':>12}{'rejected':>12}{'accuracy':>12}   of guessing the chosen answer (0.50: chance)"
        for cue in self.cues:
            values = "".join(f"{value:>12}" for value in (*cue.means.values(), f"{cue.accuracy:.2f}"))
            yield f"  {cue.label:<26}{values}{'   !' if cue.warning else ''}"
        for warning in self.warnings:
            yield f"  Warning: {warning}"

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values, the cues by name."""
        return {**asdict(self), "cues": {cue.name: asdict(cue) for cue in self.cues}, "warnings": self.warnings}


@dataclass(slots=True)
class _Comparison:
    """Sums over the pairs of both of whose answers have a property; `add` takes any number of pairs at a time."""

    pairs: int = 0
    chosen: float = 0.0
    rejected: float = 0.0
    more: float = 0.0  # chosen answers with the higher value; equal values count half

    def add(self, chosen: Sequence[float] | Values, rejected: Sequence[float] | Values) -> None:
        values = np.column_stack([chosen, rejected]).astype(np.float64)
        first, second = values[~np.isnan(values).any(axis=1)].T
        self.pairs += len(first)
        self.chosen, self.rejected = self.chosen + float(first.sum()), self.rejected + float(second.sum())
        self.more += float(np.sum((first > second) + 0.5 * (first == second)))

    def cue(self, name: str) -> Cue:
        more = self.more / self.pairs
        return Cue(name, self.chosen / self.pairs, self.rejected / self.pairs, max(more, 1 - more), self.pairs)


def measure_cue(name: str, chosen: Sequence[float] | Values, rejected: Sequence[float] | Values) -> Cue:
    """Compare a property, by its name in `Cue`, of the answers of the same pairs, ``(pairs,)`` each.

    Pairs in which either value is NaN are left out; at least one must remain.

    >>> measure_cue("words", [10, 12, 9, 8], [7, 7, 9, 9])  # more words in two pairs, as many in one, fewer in one
    Cue(name='words', chosen=9.75, rejected=8.0, accuracy=0.625, pairs=4)
    """
    comparison = _Comparison()
    comparison.add(chosen, rejected)
    return comparison.cue(name)


def kept_cues(run: Path) -> PairCues:
    """`pair_cues`, kept in ``RUN/cues.json`` so that they are measured once."""
    found = kept(run, "cues.json", None, lambda: pair_cues(run).to_json())
    try:
        cues = tuple(Cue(**cue) for cue in found["cues"].values())
        return PairCues(found["pairs"], cues, found["dialect"], found["removed_entries"])
    except (TypeError, KeyError, AttributeError):  # somebody has changed the file
        return pair_cues(run)


def pair_cues(run: Path | str, count_tokens: TokenCounter | None = None) -> PairCues:
    """Measure the properties that separate chosen from rejected answers, whether their boxes are accurate or not.

    Lengths are those of the texts that are trained on, with coordinates, in every dialect. An answer is in reading
    order if its boxes are sorted by ``(x1, y1)``: left to right, then top to bottom. Format problems are the malformed
    pieces that `spr.grounding.parse` reports. Prompt kinds, format problems and cut answers are left out if the run
    does not hold its candidates.

    Args:
        run: A run folder with finished pairs.
        count_tokens: Counts the tokens of texts, as from `spr.models.token_counts.token_counter`; None leaves them out.

    Raises:
        RunError: if ``run`` is not a run folder, has no finished pairs, or a file is damaged.
    """
    source = Run(run)
    pairs, candidates = source.store("pairs"), source.store("candidates")
    manifest = candidates.manifest()
    dialect = source.describer[1] if manifest is not None and manifest.complete and manifest.rows else None
    of_shard = {entry.index: entry for entry in manifest.shards} if manifest is not None else {}
    found: dict[str, _Comparison] = {}
    total = removed = 0
    for entry in source.finished("pairs").shards:
        table = pairs.read(entry, [*_PAIR_COLUMNS, "width", "height", "box_edits"])
        if not len(table):
            continue
        total += len(table)
        advance(len(table))
        edits = pc.list_flatten(table["box_edits"])
        removed += pc.sum(pc.equal(pc.struct_field(edits, "edit"), "box_removed"), min_count=0).as_py()
        if dialect is not None and entry.index not in of_shard:
            what = f"{run} has pairs of shard {entry.index}, but no candidates of it"
            raise RunError(what, fix="run `spr run` again, or restore the missing files")
        rows = candidates.read(of_shard[entry.index], _CANDIDATE_COLUMNS) if dialect is not None else None
        sides: list[dict[str, Values]] = []
        for side in SIDES:
            values = {**_of_texts(table[side].to_pylist(), count_tokens), **_of_boxes(table[f"{side}_spans"])}
            sides.append(values | (_of_candidates(table, side, rows) if rows is not None else {}))
        for name, chosen in sides[0].items():
            found.setdefault(name, _Comparison()).add(chosen, sides[1][name])
    cues = tuple(_compare(found))
    if dialect is None:
        return PairCues(total, cues)
    return PairCues(total, cues, dialect.key, 0 if dialect.keeps_prose else removed)


def _compare(found: dict[str, _Comparison]) -> Iterator[Cue]:
    """The cues in the order of `_PROPERTIES`, without those that no pair has."""
    for name in _PROPERTIES:
        if name in found and found[name].pairs:
            cue = found[name].cue(name)
            if cue.group != "kind" or cue.chosen or cue.rejected:
                yield cue


def _of_texts(texts: list[str], count_tokens: TokenCounter | None) -> dict[str, Values]:
    values = {"words": [len(text.split()) for text in texts], "characters": [len(text) for text in texts]}
    if count_tokens is not None:
        values["tokens"] = list(count_tokens(texts))
    return {name: np.array(column, dtype=np.float64) for name, column in values.items()}


def _of_boxes(spans: pa.ChunkedArray) -> dict[str, Values]:
    """Number and order of the boxes of a column of spans."""
    starts, boxes = boxes_of_spans(spans)
    corners, counts = boxes[:, :2], np.diff(starts)
    (x, y), (next_x, next_y) = corners[:-1].T, corners[1:].T
    ordered = (x < next_x) | ((x == next_x) & (y <= next_y))
    # How many of the first k neighbours are in order; the last box of an answer and the first of the next don't count.
    before = np.concatenate([[0], np.cumsum(ordered)])
    several = counts >= 2
    first, last = starts[:-1][several], starts[1:][several] - 1
    share = np.full(len(counts), np.nan)
    share[several] = (before[last] - before[first]) / (counts[several] - 1)
    in_order = np.where(several, share == 1, np.nan)
    return {"boxes": counts.astype(np.float64), "reading_order": in_order, "neighbours_in_order": share}


def boxes_of_spans(spans: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], Values]:
    """The first box of each answer, ``(answers + 1,)``, in all boxes of a column of spans, ``(boxes, 4)`` xyxy."""
    spans_of, flat = offsets_and_values(pa.concat_arrays(spans.chunks))
    boxes_of, flat = offsets_and_values(flat.field("boxes"))
    return boxes_of[spans_of], flat.flatten().to_numpy().reshape(-1, 4)


def offsets_and_values(lists: pa.ListArray) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """The offsets of the lists into their values, from 0, ``(lists + 1,)``, and all values."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], lists.flatten()


def _of_candidates(pairs: pa.Table, side: Side, candidates: pa.Table) -> dict[str, Values]:
    """What the candidates of one side say: prompt kind, format problems, whether the answer was cut."""
    rows = candidates.take(pc.index_in(pairs[f"{side}_candidate"], candidates["candidate_id"].combine_chunks()))
    values = {f"kind_{kind}": _numbers(pc.equal(rows["prompt_kind"], kind)) for kind in PROMPT_KINDS}
    values["problems"] = _numbers(pc.list_value_length(rows["problems"]))
    for k in np.flatnonzero(values["problems"] > 0).tolist():
        # Refinement may have removed or corrected what was malformed.
        text, dialect, width, height = (
            table[name][k].as_py()
            for table, name in ((pairs, side), (rows, "dialect"), (pairs, "width"), (pairs, "height"))
        )
        values["problems"][k] = len(parse(text, dialect, (width, height)).problems)
    reasons = rows["finish_reason"]
    cut = pc.is_in(reasons, pa.array(sorted(CUT_REASONS)))
    values["cut"] = _numbers(pc.if_else(pc.is_valid(reasons), cut, pa.scalar(None, pa.bool_())))
    return values


def _numbers(column: pa.ChunkedArray) -> Values:
    """A column as numbers, NaN for null."""
    return np.array(pc.cast(column, pa.float64()).to_numpy(), dtype=np.float64)
