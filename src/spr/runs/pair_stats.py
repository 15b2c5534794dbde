"""Statistics of a set of pairs: lengths, boxes, S_loc and scores of chosen and rejected answers, margins, box edits.

The last lines of `spr run`, the report and the dataset card all show these. `spr.runs.cues` measures what the model may
learn from the pairs instead of placing boxes.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spr.core import boxes as bx
from spr.core.errors import RunError
from spr.core.progress import Progress, advance
from spr.grounding.matching import THRESHOLD
from spr.records import PROMPT_KINDS
from spr.runs.cues import TokenCounter, boxes_of_spans, offsets_and_values, pair_cues
from spr.runs.kept import kept
from spr.runs.reader import SCORE_NAMES, SIDES, JoinedPair, JoinedShard, Run, Side

LENGTHS = {"phrases": "phrases with boxes", "boxes": "boxes", "words": "words"}
"""Measures of an answer's length, with their names for people."""
OWN_LOCALIZATION = "own_localization"
"""S_loc of an answer's own boxes, without a detector's; of the chosen answer, after refinement."""


@dataclass(slots=True)
class CategoryCount:
    """How many objects of a category lie inside regions, and how many each answer localizes (IoU over 0.5)."""

    inside: int = 0
    chosen: int = 0
    rejected: int = 0


class PairStats:
    """Statistics of pairs, added one by one.

    ``margins`` are the scores of the chosen minus those of the rejected candidates; ``box_edits`` counts what
    refinement did with the boxes of chosen answers; ``prompt_kinds`` counts the answers of each side by kind of prompt;
    ``held_out`` counts the pairs of held-out images, which are not trained on.
    """

    def __init__(self) -> None:
        self.margins = array("d")
        self.held_out = 0
        self.box_edits: Counter[str] = Counter()
        self.prompt_kinds: dict[Side, Counter[str]] = {side: Counter() for side in SIDES}
        self.categories: dict[str, CategoryCount] = {}
        names = (*SCORE_NAMES, *LENGTHS, OWN_LOCALIZATION)
        self._values = {(name, side): array("d") for name in names for side in SIDES}
        self._scores: list[npt.NDArray[np.float32]] = []
        self._kinds: list[npt.NDArray[np.int8]] = []

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return len(self.margins)

    def watch(self, shards: Iterable[JoinedShard]) -> Iterator[JoinedPair]:
        """Add shards, and yield their pairs one by one."""
        for shard in shards:
            self.add_candidates(shard)
            for item in shard.pairs:
                self.add(item)
                yield item

    def add_candidates(self, shard: JoinedShard) -> None:
        """Add the scores of a shard's candidates."""
        self._scores.append(shard.scores)
        self._kinds.append(shard.kinds)

    def add(self, item: JoinedPair, texts: tuple[str, str] | None = None) -> None:
        """Add a pair. ``texts``: the chosen and rejected text whose words are counted, if not the pair's own."""
        self.margins.append(item.pair.margin)
        self.held_out += item.pair.split == "holdout"
        self.box_edits.update(edit.edit for edit in item.pair.box_edits)
        counts = [self.categories.setdefault(thing.category, CategoryCount()) for thing in item.query.inside]
        for count in counts:
            count.inside += 1
        for side, text in zip(SIDES, texts or (item.pair.chosen, item.pair.rejected), strict=True):
            answer, spans = item.answers[side], item.spans(side)
            self.prompt_kinds[side][answer.prompt_kind] += 1
            values = {
                **answer.scores,
                OWN_LOCALIZATION: answer.localization.score,
                "phrases": sum(bool(span.boxes) for span in spans),
                "boxes": sum(len(span.boxes) for span in spans),
                "words": len(text.split()),
            }
            for name, value in values.items():
                self._values[name, side].append(value)
            overlaps = np.array([match.iou for match in answer.localization.matches])
            for count, hit in zip(counts, bx.over(overlaps, THRESHOLD).tolist(), strict=True):
                setattr(count, side, getattr(count, side) + hit)

    def of(self, name: str, side: Side) -> npt.NDArray[np.float64]:
        """A measure of one side, ``(pairs,)``: a name of `SCORE_NAMES` or `LENGTHS`, or `OWN_LOCALIZATION`."""
        return np.frombuffer(self._values[name, side])

    @property
    def candidates(self) -> int:
        """Number of scored candidates."""
        return sum(map(len, self._scores))

    def candidate_scores(self) -> dict[str, npt.NDArray[np.float32]]:
        """The scores of all candidates by name, each ``(candidates,)``."""
        if len(self._scores) != 1:
            nothing = np.empty((0, len(SCORE_NAMES)), np.float32)
            self._scores = [np.concatenate([nothing, *self._scores])]  # in place of the parts
        [table] = self._scores
        return {name: table[:, k] for k, name in enumerate(SCORE_NAMES)}

    def candidate_means(self) -> dict[str, tuple[int, dict[str, float]]]:
        """By kind of prompt: the number of candidates, and their mean scores by name."""
        columns = self.candidate_scores()
        codes = np.concatenate(self._kinds) if self._kinds else np.empty(0, np.int8)
        means: dict[str, tuple[int, dict[str, float]]] = {}
        for code, kind in enumerate(PROMPT_KINDS):
            mask = codes == code
            if mask.any():
                means[kind] = int(mask.sum()), {name: float(values[mask].mean()) for name, values in columns.items()}
        return means

    def length_warning(self) -> str | None:
        """A warning if chosen answers have less than 0.8 or more than 1.25 times as many words as rejected ones."""
        if not self.pairs:
            return None
        ratio = float(self.of("words", "chosen").mean()) / max(float(self.of("words", "rejected").mean()), 1e-9)
        if 0.8 <= ratio <= 1.25:
            return None
        return f"Chosen answers have {ratio:.2f} times as many words as rejected ones; training may learn the length."


def pair_summary(
    run: Path, tokenizer: Path | None = None, load: Callable[[Path], TokenCounter | None] = lambda _: None
) -> list[str]:
    """The statistics of a run's pairs and their cues as lines of text; none if there are no pairs.

    They are kept in ``RUN/summary.json``. ``load`` makes what counts tokens from the ``tokenizer``, which can take
    long, only if there is something to count.

    Raises:
        RunError: if the pairs have not finished, or a file is damaged.
    """

    def compute() -> list[str]:
        with Progress("statistics of the pairs", 2 * Run(run).finished("pairs").rows, "pairs"):
            return list(_summarize(run, None if tokenizer is None else load(tokenizer)))

    lines = kept(run, "summary.json", tokenizer and str(tokenizer), compute)
    return [str(line) for line in lines] if isinstance(lines, list) else compute()


def _summarize(run: Path, count_tokens: TokenCounter | None) -> Iterator[str]:
    source, edits = Run(run), Counter[str]()
    pairs, regions = source.store("pairs"), source.store("regions")
    of_shard = {entry.index: entry for entry in regions.finished().shards}
    values: dict[tuple[str, Side], array[float]] = {}
    for entry in source.finished("pairs").shards:
        columns = ["query_id", *SIDES, *(f"{side}_spans" for side in SIDES), "box_edits"]
        table = pairs.read(entry, columns)
        advance(len(table))
        if not len(table):
            continue
        edits.update(pc.struct_field(pc.list_flatten(table["box_edits"]), "edit").to_pylist())
        queries = regions.read(of_shard[entry.index], ["query_id", "objects"]) if entry.index in of_shard else None
        found = None if queries is None else pc.index_in(table["query_id"], queries["query_id"].combine_chunks())
        if queries is None or found is None or found.null_count:
            fix = f"run `spr run` with another --out and --reuse {run}, which takes over what agrees"
            raise RunError(f"{run}: the tables don't match", got="a pair without its region", fix=fix)
        objects = queries["objects"].take(found)
        for side in SIDES:
            for name, column in _measure(table[side].to_pylist(), table[f"{side}_spans"], objects).items():
                values.setdefault((name, side), array("d")).frombytes(column.astype(np.float64).tobytes())
    if not values:
        return
    yield f"  {'':<22}{'chosen':>22}{'rejected':>22}   mean (5–95 %)"
    rows = {**{name: (label, 1) for name, label in LENGTHS.items()}, OWN_LOCALIZATION: ("S_loc, own boxes", 3)}
    for name, (label, digits) in rows.items():
        yield f"  {label:<22}" + "".join(f"{spread(np.frombuffer(values[name, side]), digits):>22}" for side in SIDES)
    counts = ", ".join(f"{count:,} {edit.replace('_', ' ')}" for edit, count in edits.most_common())
    yield f"  boxes of the chosen: {counts}"
    yield from pair_cues(run, count_tokens).table()


def _measure(texts: list[str], spans: pa.ChunkedArray, objects: pa.ChunkedArray) -> dict[str, npt.NDArray[np.float64]]:
    """The lengths and S_loc of the own boxes of all answers of a side, ``(answers,)`` each."""
    starts, boxes = boxes_of_spans(spans)
    spans_of, flat = offsets_and_values(pa.concat_arrays(spans.chunks))
    with_boxes = np.concatenate([[0], np.cumsum(pc.list_value_length(flat.field("boxes")).to_numpy() > 0)])
    return {
        "phrases": np.diff(with_boxes[spans_of]),
        "boxes": np.diff(starts),
        "words": np.array([len(text.split()) for text in texts]),
        OWN_LOCALIZATION: _own_localization(objects, starts, boxes),
    }


def _own_localization(
    objects: pa.ChunkedArray, starts: npt.NDArray[np.int64], boxes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """`spr.grounding.matching.localization_score` of many answers at a time, without loops over them."""
    objects_of, flat = offsets_and_values(pa.concat_arrays(objects.chunks))
    inside = flat.field("inside").to_numpy(zero_copy_only=False)
    truth = flat.field("box").flatten().to_numpy().reshape(-1, 4)[inside]
    answer = np.repeat(np.arange(len(starts) - 1), np.diff(objects_of))[inside]  # (objects,): whose truth it is
    counts = np.diff(starts)[answer]
    first = np.concatenate([[0], np.cumsum(counts)])  # (objects + 1,): the first of an object's comparisons
    which = np.repeat(np.arange(len(truth)), counts)
    overlaps = bx.iou(truth[which], boxes[np.arange(first[-1]) - first[which] + starts[answer][which]])
    best = np.zeros(len(truth))
    compared = counts > 0
    if compared.any():
        best[compared] = np.maximum.reduceat(overlaps, first[:-1][compared])
    best[~bx.over(best, THRESHOLD)] = 0.0
    totals = np.bincount(answer, weights=best, minlength=len(starts) - 1)
    return np.asarray(totals / np.maximum(np.bincount(answer, minlength=len(starts) - 1), 1))


def spread(values: Sequence[float] | npt.NDArray[np.floating], digits: int) -> str:
    """The mean with the 5th and the 95th percentile.

    >>> spread([1.0, 1.0, 1.0], 2)
    '1.00 (1.00–1.00)'
    """
    low, high = np.percentile(values, [5, 95])
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
