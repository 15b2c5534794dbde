"""Decisions of reviewers about a run's pairs: ``RUN/reviews.jsonl``, and what training and exports make of them.

Every decision is a line, written to disk before it counts as saved; nothing is ever rewritten. A decision names the
content of its pair by a hash, so one about a pair that was computed again with other answers does not apply to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

from spr.core.documents import has_surrogates
from spr.core.errors import ConfigError, RunError, nearest
from spr.core.locks import try_lock
from spr.core.terminal import count_text
from spr.records import PreferencePair, Span
from spr.records.schemas import from_table
from spr.runs.reader import Run, read_json_lines

FILE = "reviews.jsonl"
Action: TypeAlias = Literal["accept", "reject", "edit", "clear"]
"""``edit`` accepts the pair with another chosen answer; ``clear`` takes the reviewer's decision back."""
State: TypeAlias = Literal["undecided", "accepted", "edited", "rejected", "conflict"]
STATES: tuple[State, ...] = get_args(State)
ReviewMode: TypeAlias = Literal["use", "require", "ignore"]
"""What training and exports make of decisions.

- ``use``: rejected pairs are left out, edited ones have the edited answer, and all others stay as they are.
- ``require``: as ``use``, but only accepted and edited pairs remain.
- ``ignore``: as if there were no reviews.
"""
REVIEW_MODES: tuple[ReviewMode, ...] = get_args(ReviewMode)
LONGEST_NAME = 80


@dataclass(frozen=True, slots=True)
class Decision:
    """A line of ``reviews.jsonl``; with ``edit``, the new chosen answer and its phrases with boxes in pixels."""

    reviewer: str
    pair: str
    pair_sha256: str
    action: Action
    chosen: str | None = None
    chosen_spans: tuple[Span, ...] = ()
    time: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        texts = (self.reviewer, self.pair, self.pair_sha256, self.time, self.chosen or "")
        if not all(isinstance(text, str) and not has_surrogates(text) for text in texts):
            raise ValueError("a decision's names and texts are not text")
        if not self.reviewer.strip() or len(self.reviewer) > LONGEST_NAME:
            raise ValueError(f"a reviewer's name has 1 to {LONGEST_NAME} characters")
        if self.action not in get_args(Action) or (self.action == "edit") != (self.chosen is not None):
            raise ValueError(f"not a decision: {self.action}")

    def to_json(self) -> dict[str, Any]:
        """The decision as JSON values."""
        names = ("time", "reviewer", "pair", "pair_sha256", "action")
        line: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.action == "edit":
            line |= {"chosen": self.chosen, "chosen_spans": [span.to_row() for span in self.chosen_spans]}
        return line

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        """The decision of a line; a ValueError (also as `RecordError`), LookupError or TypeError if it is not one."""
        spans = tuple([Span.from_row(row) for row in line.get("chosen_spans", ())])
        known = {name: line[name] for name in ("reviewer", "pair", "pair_sha256", "action")}
        return cls(**known, chosen=line.get("chosen"), chosen_spans=spans, time=line.get("time", ""))


def decision(reviewer: str, pair: PreferencePair, action: Action, edited: PreferencePair | None = None) -> Decision:
    """A decision about a pair, made now; ``edited`` is the pair with the new answer, for ``edit``."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    chosen, spans = (None, ()) if edited is None else (edited.chosen, edited.chosen_spans)
    return Decision(reviewer, pair.pair_id, pair_sha256(pair), action, chosen, spans, now)


def pair_sha256(pair: PreferencePair) -> str:
    """SHA-256 of what a reviewer sees of a pair: image, region, prompt, and both answers with their boxes."""
    boxes = [[span.boxes for span in spans] for spans in (pair.chosen_spans, pair.rejected_spans)]
    content = [pair.pair_id, pair.file_name, pair.region, pair.prompt, pair.chosen, pair.rejected, *boxes]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the reviewers of a pair have decided together; ``edit`` is the decision with the answer to use."""

    state: State
    edit: Decision | None = None


def resolve(decisions: Iterable[Decision]) -> Outcome:
    """The outcome of the latest decision of each reviewer of a pair (our choice).

    The majority decides between keeping the pair (accepted or edited) and rejecting it, then among those who keep it
    between the answers. A tie in either is a ``conflict``, which counts as undecided until somebody settles it.

    >>> resolve([Decision("ana", "1/0", "ab", "accept"), Decision("ben", "1/0", "ab", "reject")]).state
    'conflict'
    """
    votes = [vote for vote in decisions if vote.action != "clear"]
    if not votes:
        return Outcome("undecided")
    kept = [vote for vote in votes if vote.action != "reject"]
    if 2 * len(kept) == len(votes):
        return Outcome("conflict")
    if 2 * len(kept) < len(votes):
        return Outcome("rejected")
    answers = Counter((vote.chosen, vote.chosen_spans) for vote in kept).most_common(2)
    if len(answers) > 1 and answers[0][1] == answers[1][1]:
        return Outcome("conflict")
    first = next(vote for vote in kept if (vote.chosen, vote.chosen_spans) == answers[0][0])
    return Outcome("accepted") if first.action == "accept" else Outcome("edited", first)


class Reviews:
    """The decisions about the pairs of a run.

    ``unreadable`` counts the lines of the file that are not decisions, such as one that a crash has cut.
    """

    def __init__(self, decisions: Iterable[Decision] = (), unreadable: int = 0) -> None:
        self.unreadable = unreadable
        self._latest: dict[str, dict[str, dict[str, Decision]]] = {}  # by pair, its content, and reviewer
        for made in decisions:
            self.add(made)

    @classmethod
    def read(cls, run: Path) -> Reviews:
        """The decisions of ``RUN/reviews.jsonl``; none if there is no such file."""
        lines, unreadable = read_json_lines(run / FILE)
        reviews = cls((), unreadable)
        for line in lines:
            try:
                reviews.add(Decision.from_json(line))
            except (ValueError, LookupError, TypeError):
                reviews.unreadable += 1
        return reviews

    def add(self, made: Decision) -> None:
        """Add a decision; it replaces the reviewer's earlier one about the same pair."""
        found = self._latest.setdefault(made.pair, {}).setdefault(made.pair_sha256, {})
        found.pop(made.reviewer, None)
        if made.action != "clear":
            found[made.reviewer] = made

    def of(self, pair: PreferencePair) -> Mapping[str, Decision]:
        """The latest decision of each reviewer about a pair as it is."""
        return self.about(pair.pair_id, pair_sha256(pair)) if pair.pair_id in self._latest else {}

    def about(self, pair_id: str, sha256: str) -> Mapping[str, Decision]:
        """`of`, for the id and the `pair_sha256` of a pair."""
        return self._latest.get(pair_id, {}).get(sha256, {})

    def mentions(self, pair_id: str) -> bool:
        """Whether there is a decision about a pair of this id, of whatever content."""
        return any(self._latest.get(pair_id, {}).values())

    def apply(self, pair: PreferencePair, mode: ReviewMode) -> PreferencePair | str:
        """The pair to train on or to export, or the reason why it is left out (`REVIEW_REASONS`)."""
        if mode == "ignore":
            return pair
        outcome = resolve(self.of(pair).values())
        if outcome.state == "rejected":
            return "rejected_in_review"
        if outcome.edit is not None:
            return replace(pair, chosen=outcome.edit.chosen or "", chosen_spans=outcome.edit.chosen_spans)
        return "not_accepted_in_review" if mode == "require" and outcome.state != "accepted" else pair

    def identity(self, mode: ReviewMode) -> str:
        """What identifies the effect of the decisions: the mode, with a hash of the decisions if there are any.

        Without decisions, and with ``ignore``, it is "use".
        """
        found = [
            [line for _, line in sorted((name, d.to_json() | {"time": ""}) for name, d in made.items())]
            for _, contents in sorted(self._latest.items())
            for _, made in sorted(contents.items())
            if made
        ]
        if mode == "ignore" or not found:
            return "use" if mode == "ignore" else mode
        return f"{mode} {hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]}"


def check_mode(mode: str) -> ReviewMode:
    """The mode of that name; a `ConfigError` names the option."""
    for known in REVIEW_MODES:
        if mode == known:
            return known
    what = "--reviews has no such value"
    raise ConfigError(what, got=mode, expected=" | ".join(REVIEW_MODES), fix=nearest(mode, REVIEW_MODES))


def check_reviewer(name: str | None) -> None:
    """Raise a `ConfigError` for a name that no reviewer can have."""
    if name is not None and not (name.strip() == name and 0 < len(name) <= LONGEST_NAME and name.isprintable()):
        expected = f"1 to {LONGEST_NAME} printable characters, without spaces around them"
        raise ConfigError("--reviewer is not a name", got=repr(name[:LONGEST_NAME]), expected=expected)


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class ReviewFile:
    """``RUN/reviews.jsonl``, open for appending by this process alone until `close`.

    It has its own lock, not the run's, so that pairs can be reviewed while a training reads them.

    Raises:
        RunError: if another process has it open, or it can't be written.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / FILE
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise self._problem(error) from None
        if not try_lock(self._file):
            self._file.close()
            fix = "close the other `spr review`, or use its page: it takes several reviewers"
            raise RunError(f"{self.path} is in use by another review", fix=fix)
        with self.path.open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - 1, 0))
            self._torn = file.read(1) not in (b"", b"\n")  # a crash has cut the last line
        self._sync_folder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, made: Decision) -> None:
        """Write a decision to disk; when this returns, no crash can lose it.

        Raises:
            RunError: if it can't be written, or the file was moved or deleted.
        """
        line = (json.dumps(made.to_json()) + "\n").encode()
        try:
            if not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                raise RunError(f"{self.path} was replaced while it was open", fix="start `spr review` again")
            written = self._file.write(b"\n" + line if self._torn else line)
            self._torn = True
            if written is not None and written < len(line):
                raise OSError("the disk is full")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._problem(error) from None
        self._torn = False

    def _sync_folder(self) -> None:
        with contextlib.suppress(OSError):
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _problem(self, error: object) -> RunError:
        fix = "free some disk space or check the permissions"
        return RunError(f"{self.path} can't be written", got=error, fix=fix)


# ── figures ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far reviewers agree on the pairs that all of them have decided.

    ``percent`` is the share (0..100) of equal decisions among all pairs of reviewers, ``kappa`` the same beyond chance:
    Cohen's for two reviewers (Cohen, 1960), Fleiss' for more (Fleiss, 1971); None if chance alone explains all.
    ``keep_percent`` and ``keep_kappa`` only distinguish keeping from rejecting; the others accept, edit and reject.
    """

    reviewers: tuple[str, ...]
    pairs: int
    percent: float
    kappa: float | None
    keep_percent: float
    keep_kappa: float | None


def agreement(ratings: Sequence[Mapping[str, str]]) -> list[Agreement]:
    """The agreement of each two reviewers, then, if there are more than two, of all together.

    Args:
        ratings: For each pair, the action of each of its reviewers: ``accept``, ``edit`` or ``reject``.

    Returns:
        An `Agreement` for each group of reviewers that have a pair in common.
    """
    names = sorted({name for rated in ratings for name in rated})
    groups = [*combinations(names, 2), *([tuple(names)] if len(names) > 2 else [])]
    found = []
    for group in groups:
        rows = [[rated[name] for name in group] for rated in ratings if all(name in rated for name in group)]
        if rows:
            keep = [["keep" if action != "reject" else "reject" for action in row] for row in rows]
            kappa = cohen_kappa if len(group) == 2 else fleiss_kappa
            (percent, value), (keep_percent, keep_value) = kappa(rows), kappa(keep)
            found.append(Agreement(group, len(rows), percent, value, keep_percent, keep_value))
    return found


def cohen_kappa(rows: Sequence[Sequence[str]]) -> tuple[float, float | None]:
    """Percent agreement and Cohen's κ of two raters; a row has both ratings of an item."""
    observed = sum(a == b for a, b in rows) / len(rows)
    first, second = (Counter(row[k] for row in rows) for k in (0, 1))
    expected = sum(first[name] * second[name] for name in first) / len(rows) ** 2
    return 100 * observed, None if expected == 1 else (observed - expected) / (1 - expected)


def fleiss_kappa(rows: Sequence[Sequence[str]]) -> tuple[float, float | None]:
    """Percent agreement and Fleiss' κ; a row has the ratings of an item by equally many raters."""
    raters = len(rows[0])
    counts = [Counter(row) for row in rows]
    agreeing = sum(n * (n - 1) for count in counts for n in count.values())
    observed = agreeing / (len(rows) * raters * (raters - 1))
    total = sum(counts, Counter[str]())
    expected = sum((n / (len(rows) * raters)) ** 2 for n in total.values())
    return 100 * observed, None if expected == 1 else (observed - expected) / (1 - expected)


@dataclass(frozen=True, slots=True)
class ReviewSummary:
    """The state of a review.

    Attributes:
        states: The number of pairs by `State`.
        reviewers: For each reviewer, the number of decisions by action.
        conflicts: For each pair in conflict, the action of each reviewer.
        agreement: See `agreement`.
        stale: The number of pairs with decisions about other answers than they have now.
        unreadable: The number of lines that are not decisions.
    """

    states: Mapping[State, int]
    reviewers: Mapping[str, Mapping[str, int]]
    conflicts: Mapping[str, Mapping[str, str]]
    agreement: Sequence[Agreement]
    stale: int
    unreadable: int

    @property
    def decided(self) -> int:
        """The number of pairs that are accepted, edited or rejected."""
        return sum(self.states[state] for state in ("accepted", "edited", "rejected"))

    def lines(self) -> Iterator[str]:
        """The summary for people."""
        total = sum(self.states.values())
        yield f"reviewed: {self.decided:,} of {total:,} pairs"
        yield from (f"  {count:>12,}  {state}" for state, count in self.states.items() if count)
        for name, counts in self.reviewers.items():
            yield f"  {name}: " + ", ".join(f"{action} {count:,}" for action, count in counts.items())
        for found in self.agreement:
            pairs = count_text(found.pairs, "pairs")
            yield (
                f"  {' and '.join(found.reviewers)} on {pairs}: {found.percent:.0f} % agree, "
                f"kappa {number(found.kappa)}; keep or reject: {found.keep_percent:.0f} %, {number(found.keep_kappa)}"
            )
        for pair, actions in list(self.conflicts.items())[:20]:
            yield f"  conflict {pair}: " + ", ".join(f"{name} {action}" for name, action in actions.items())
        if len(self.conflicts) > 20:
            yield f"  … and {count_text(len(self.conflicts) - 20, 'more conflicts')}"
        if self.stale:
            pairs = count_text(self.stale, "pairs")
            yield f"  {pairs} computed again with other answers, to which earlier decisions don't apply"
        if self.unreadable:
            yield f"  {count_text(self.unreadable, 'lines')} of {FILE} can't be read and did not count"


def read_summary(run: Path, reviews: Reviews | None = None) -> ReviewSummary:
    """The state of the review of a run; a `RunError` if its pairs have not finished, or a file is damaged."""
    tables = Run(run).store("pairs").tables()
    pairs = (pair for table in tables for pair in from_table(table, PreferencePair))
    return summarize(pairs, Reviews.read(run) if reviews is None else reviews)


def effect(run: Path, mode: ReviewMode) -> str | None:
    """What a mode makes of a run's decisions, as a line for people; None if there are no decisions to speak of.

    Raises:
        RunError: as `read_summary`.
    """
    reviews = Reviews.read(run)
    if mode == "ignore" or reviews.identity(mode) == "use":
        return None
    states = read_summary(run, reviews).states
    others = states["undecided"] + states["conflict"]
    rest = "left out" if mode == "require" else "used as they are"
    counts = (
        f"{states['accepted']:,} accepted, {states['edited']:,} edited, {states['rejected']:,} rejected and left out"
    )
    return f"Reviews (--reviews {mode}): {counts}, {others:,} undecided and {rest}"


def number(kappa: float | None) -> str:
    """A kappa for people; a dash if it is not defined."""
    return "–" if kappa is None else f"{kappa:.2f}".replace("-", "−")


def summarize(pairs: Iterable[PreferencePair], reviews: Reviews) -> ReviewSummary:
    """The state of the review of a run's pairs."""
    states: Counter[State] = Counter()
    reviewers: dict[str, Counter[str]] = {}
    conflicts, ratings, stale = {}, [], 0
    for pair in pairs:
        made = reviews.of(pair)
        state = resolve(made.values()).state
        states[state] += 1
        stale += not made and reviews.mentions(pair.pair_id)
        actions = {name: d.action for name, d in sorted(made.items())}
        ratings.append(actions)
        for name, action in actions.items():
            reviewers.setdefault(name, Counter())[action] += 1
        if state == "conflict":
            conflicts[pair.pair_id] = actions
    counts = {state: states[state] for state in STATES}
    return ReviewSummary(
        counts, dict(sorted(reviewers.items())), conflicts, agreement(ratings), stale, reviews.unreadable
    )
