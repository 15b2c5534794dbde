"""`spr check DATA`: reads the data once and judges which reading its numbers fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spr.core.boxes import Array
from spr.core.errors import ConfigError, InputError
from spr.core.progress import Progress
from spr.grounding import DIALECTS, Dialect, get_dialect, parse
from spr.grounding.geometry import Resized
from spr.workflows.checking.boxes import BoxChecks
from spr.workflows.checking.evidence import Candidate, Evidence, chosen_candidate
from spr.workflows.checking.findings import MESSAGES, Finding, Tally
from spr.workflows.checking.fix import FixResult, fix_data
from spr.workflows.checking.reading import DataFile
from spr.workflows.checking.readings import Reading
from spr.workflows.checking.reference import Reference
from spr.workflows.checking.rows import Batch, DataRow, RowProblem, Stated
from spr.workflows.checking.target import Target, find_target
from spr.workflows.checking.text_boxes import find_boxes

_FACTOR = 28
_SAMPLES = 50
_ENOUGH = 20_000
"""Boxes after which the likely readings are chosen, under which boxes are then checked."""
_LIKELY = 4


@dataclass(slots=True)
class Group:
    """Boxes that are written in the same way: in texts, or in a field with a scale of its own.

    Attributes:
        stated: The scale that the field states; None for boxes in texts.
        first: The first box, for people.
        given: The reading that the dialect or the field asks for; None if neither does.
        evidence: What was counted.
        forms: How many boxes are written in each of `spr.workflows.checking.rows.FORMS`.
        candidates: All readings, the most plausible first.
        chosen: The reading under which boxes are counted and drawn; None if none fits.
        checks: What is wrong with the boxes under the likely readings.
        held: Batches that are not yet checked.
    """

    stated: Stated | None
    first: str
    given: Reading | None
    evidence: Evidence
    forms: Counter[str] = field(default_factory=Counter)
    candidates: list[Candidate] = field(default_factory=list)
    chosen: Candidate | None = None
    checks: BoxChecks | None = None
    held: list[Batch] = field(default_factory=list)

    def add(self, batch: Batch, reference: list[Array] | None) -> None:
        """Count the boxes of a batch; batches are held until it is known which readings are likely."""
        self.evidence.add(batch, reference)
        self.forms.update(form for row in batch.rows for form in row.forms)
        if self.checks is not None:
            self.checks.add(batch)
            return
        self.held.append(batch)
        if self.given is not None or self.evidence.boxes >= _ENOUGH:
            self._start()

    def _start(self) -> None:
        self.candidates = self.evidence.candidates()
        likely = [one.reading for one in self.likely]
        self.checks = BoxChecks([self.given] if self.given is not None else likely[:_LIKELY])
        for batch in self.held:
            self.checks.add(batch)
        self.held = []

    @property
    def name(self) -> str:
        """What the boxes are, for people."""
        return "boxes in texts" if self.stated is None else f"boxes in fields ({self.stated.replace('_', ' ')})"

    def judge(self) -> None:
        """Compare the readings by what was counted so far."""
        if self.checks is None:
            self._start()
        self.candidates = self.evidence.candidates()
        self.chosen = chosen_candidate(self.candidates if self.given is not None else self.likely, self.given)

    def findings(self) -> list[Finding]:
        """What is wrong with the boxes under the chosen reading; without one, what needs no reading."""
        if self.checks is None:
            return []
        reading = None if self.chosen is None else self.chosen.reading
        return self.checks.findings(reading if reading in self.checks.readings else None)

    @property
    def dialects(self) -> frozenset[str]:
        """The dialects that write boxes in one of the forms of the texts."""
        forms = self.forms.keys() - {"field"}
        return frozenset(key for key in DIALECTS if forms & set(find_boxes([DIALECTS[key].example]).forms))

    @property
    def likely(self) -> list[Candidate]:
        """The readings that are not refuted, without those in an order or a scale that no dialect writes in this form.

        If all others are refuted, these are kept.
        """
        left = [one for one in self.candidates if one.verdict in ("fits", "less likely")]
        return [one for one in left if one.reading == self.given or self._is_usual(one.reading)] or left

    def _is_usual(self, reading: Reading) -> bool:
        orders = {Reading.of_dialect(key).order for key in self.dialects} or {"xyxy"}
        scale = reading.scale
        common = scale.coding.units in (None, 1, 1000) or not self.dialects.isdisjoint(scale.dialects)
        return reading.order in orders and common

    @property
    def fitting(self) -> list[Candidate]:
        """Those of the likely readings that fit."""
        return [one for one in self.likely if one.verdict == "fits"]


@dataclass(slots=True)
class CheckResult:
    """What `check_data` found.

    Attributes:
        data: The data file, with its layout.
        target: The model that the data are for.
        rows, boxes: How many there are.
        groups: The boxes in texts, and those in fields, with the readings that fit.
        findings: What else was noticed.
        samples: The first rows with boxes in their texts.
        refuted: Why the data can't be what was given, with the row that shows it; empty if they can.
    """

    data: DataFile
    target: Target
    rows: int = 0
    boxes: int = 0
    groups: list[Group] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    refuted: list[str] = field(default_factory=list)
    samples: list[DataRow] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 if a reading is refuted, else 0."""
        return 1 if self.refuted else 0

    def to_json(self) -> dict[str, Any]:
        """The result as values of JSON."""
        dialect = self.target.dialect
        return {
            "spr_check": 1,
            "data": str(self.data.path),
            "layout": self.data.layout.name,
            "dialect": None if dialect is None else dialect.spec,
            "model": self.target.model,
            "rows": self.rows,
            "boxes": self.boxes,
            "refuted": self.refuted,
            "readings": [
                {
                    "boxes": group.name,
                    "forms": dict(group.forms),
                    "given": None if group.given is None else group.given.name,
                    "chosen": None if group.chosen is None else group.chosen.reading.name,
                    "candidates": [one.to_json() for one in group.candidates],
                }
                for group in self.groups
            ],
            "findings": [finding.to_json() for finding in self.findings],
        }


def check_data(
    path: Path | str,
    *,
    layout: str | None = None,
    dialect: str | Dialect | None = None,
    model: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    images: Path | str | None = None,
    reference: Path | str | None = None,
) -> CheckResult:
    """Check grounding data: which readings the numbers of its boxes fit, and what is wrong with rows and boxes.

    Nothing is changed, loaded or fetched: the data are read once, and of images only the headers.

    Args:
        path: COCO JSON, LLaVA or ShareGPT JSON, ms-swift JSON lines, LLaMA-Factory sharegpt, TRL rows (JSON lines or
            Parquet), MDETR or RefCOCO JSON, or Qwen-VL JSON.
        layout: The layout, one of `spr.workflows.checking.layouts.NAMES`; None recognises it.
        dialect: The dialect that the boxes in texts should be in.
        model: The model that is trained: a folder, an id of the Hub, or the name of a family.
        min_pixels: The trainer's resize setting.
        max_pixels: The trainer's resize setting.
        images: A folder or tar file with the images, for sizes that rows don't state; the data file's folder if None.
        reference: COCO JSON with the true boxes of the same images.

    Raises:
        ConfigError: for options that contradict each other or are unknown.
        InputError: if a file can't be read, or the layout is not known.
    """
    target = find_target(dialect, model, min_pixels, max_pixels)
    data = DataFile(Path(path), layout, None if images is None else Path(images))
    truth = None if reference is None else Reference(Path(reference))
    run = _Check(data, target, truth)
    with Progress(f"checking {data.path.name}", unit="rows") as progress:
        for batch in data.batches():
            run.add(batch)
            progress.advance(len(batch.rows))
    return run.finish()


def check_options(*, fix: bool, to: str | None, out: Path | None) -> None:
    """Raise `ConfigError` unless ``--fix``, ``--to`` and ``--out`` fit together and ``--to`` is a dialect."""
    if fix and (to is None or out is None):
        given = " ".join(("--fix", *(f"--to {to}" for _ in (1,) if to), *(f"--out {out}" for _ in (1,) if out)))
        raise ConfigError("--fix needs a dialect and a new file", got=given, expected="--fix --to DIALECT --out FILE")
    if not fix and to is not None:
        raise ConfigError("--to belongs to --fix", got=f"--to {to}", fix="add --fix, or leave out --to")
    if to is not None:
        get_dialect(to)


def fix_checked(result: CheckResult, to: str | Dialect, out: Path | str) -> FixResult:
    """Write checked data with the boxes of its texts in another dialect; see `spr.workflows.checking.fix.fix_data`.

    They are read in the dialect that was given, even if it is refuted; without one, in the only dialect that fits.

    Raises:
        ConfigError: if no dialect was given and none, or several, fit.
    """
    target, source = get_dialect(to), result.target.dialect
    limits = {"min_pixels": result.target.min_pixels, "max_pixels": result.target.max_pixels}
    if source is None:
        source = _only_dialect(result)
        target = target.with_options(**{name: limits[name] for name in limits if name in target.options})
    return fix_data(result.data, source, target, Path(out))


def _only_dialect(result: CheckResult) -> Dialect:
    """The dialect whose form and reading the texts have, if all readings that fit place the boxes alike."""
    group = next((group for group in result.groups if group.stated is None), None)
    fitting = [] if group is None else group.fitting
    chosen = next((key for key in DIALECTS if any(_writes(key, one) for one in fitting) and _reads(key, result)), None)
    one = next((one for one in fitting if chosen is not None and _writes(chosen, one)), None)
    names = {one.reading.name, *one.same_as} if one is not None else set()
    others = [other.reading.name for other in fitting if other.reading.name not in names]
    if chosen is None or others:
        got = (
            f"readings that fit: {'; '.join(one.reading.name for one in fitting)}"
            if fitting
            else "no reading that fits"
        )
        fix = "give the dialect that the data are in with --dialect"
        raise ConfigError("--fix does not know what the numbers mean", got=got, expected="one reading", fix=fix)
    return get_dialect(chosen)


def _writes(key: str, candidate: Candidate) -> bool:
    """Whether a candidate is the reading of a dialect."""
    if key not in candidate.reading.scale.dialects:
        return False
    return Reading.of_dialect(key).order == candidate.reading.order


def _reads(key: str, result: CheckResult) -> bool:
    """Whether a dialect reads all boxes of the first rows."""
    for row in result.samples:
        found = parse(row.answer, key, row.size_wh or (1000, 1000))
        if len(found.boxes) != len(row.numbers) - row.prompt_boxes or found.problems:
            return False
    return True


class _Check:
    def __init__(self, data: DataFile, target: Target, reference: Reference | None) -> None:
        self.result = CheckResult(data, target)
        self._reference = reference
        self._groups: dict[Stated | None, Group] = {}
        self._tallies: dict[str, Tally] = {}
        self._given = None if target.dialect is None else _reading_of(target.dialect)
        self._known_forms = None if target.dialect is None else set(find_boxes([target.dialect.example]).forms)
        geometry = None if target.dialect is None else target.dialect.geometry
        self._resizes = _resizes(target, geometry.factor if isinstance(geometry, Resized) else _FACTOR)
        self._other_forms = 0

    def add(self, batch: Batch) -> None:
        result = self.result
        result.rows += len(batch.rows)
        result.boxes += len(batch.boxes)
        for problem in batch.problems:
            self._note(problem)
        self._note_rows(batch.rows)
        for stated, part in _by_stated(batch):
            group = self._groups.get(stated)
            if group is None:
                given = self._given if stated is None else Reading.of_stated(stated)
                group = self._groups[stated] = Group(stated, _first(part), given, Evidence(given, self._resizes))
            group.add(part, None if self._reference is None else self._reference.of(part))

    def _note(self, problem: RowProblem) -> None:
        text = f"{problem.place}: {problem.detail}" if problem.detail else problem.place
        self._tallies.setdefault(problem.kind, Tally()).add([text])

    def _note_rows(self, rows: list[DataRow]) -> None:
        for row in rows:
            if not row.numbers:
                self._tallies.setdefault("no_boxes", Tally()).add([row.place])
                continue
            if row.size_wh is None:
                kind = "no_image" if row.image is None else "no_size"
                self._tallies.setdefault(kind, Tally()).add([row.place])
            if row.stated is None and len(self.result.samples) < _SAMPLES:
                self.result.samples.append(row)
            if row.stated is None and self._known_forms is not None and not self._known_forms.issuperset(row.forms):
                odd = [form for form in row.forms if form not in self._known_forms]
                self._other_forms += len(odd)
                self._tallies.setdefault("unknown_form", Tally()).add([f"{row.place}: {odd[0]}"])

    def finish(self) -> CheckResult:
        result = self.result
        problems = sum(tally.count for kind, tally in self._tallies.items() if kind in _UNUSABLE)
        if not result.rows and not problems:
            raise InputError(f"Data file {result.data.path} has no rows", got=result.data.layout.title)
        if self._reference is not None and result.boxes:
            self._reference.check()
        result.groups = list(self._groups.values())
        for group in result.groups:
            group.judge()
        of = result.rows + problems
        result.findings = [
            tally.finding(kind, MESSAGES[kind], of)
            for kind in MESSAGES
            if (tally := self._tallies.get(kind)) is not None
        ]
        result.refuted = list(self._refutations())
        return result

    def _refutations(self) -> Iterator[str]:
        dialect = self.result.target.dialect
        in_texts = self._groups.get(None)
        if dialect is not None and in_texts is not None and self._other_forms == in_texts.evidence.boxes:
            first = self._tallies["unknown_form"].places[0]
            yield f"{dialect.key} writes boxes as {dialect.example}, and no box of the data is in this form ({first})"
        for group in self.result.groups:
            best = group.chosen if group.given is not None else next(iter(group.candidates), None)
            if (
                best is None
                or not best.refuted
                or (group.given is None and any(not one.refuted for one in group.candidates))
            ):
                continue
            reasons = "; ".join(best.reasons)
            shown = f" ({best.first or group.first})"
            which = "" if group.given is not None else "no reading fits; the nearest: "
            yield f"{group.name}: {which}{best.reading.name}: {reasons}{shown}"


_UNUSABLE = ("not_json", "not_object", "other_layout", "wrong_image")


def _first(batch: Batch) -> str:
    row = next(row for row in batch.rows if row.numbers)
    return f"{row.place}: [{', '.join(f'{number:.10g}' for number in row.numbers[0])}]"


def _by_stated(batch: Batch) -> Iterator[tuple[Stated | None, Batch]]:
    """The batch by the scale that rows state; rows without boxes are left out if rows differ."""
    kinds = {row.stated for row in batch.rows if row.numbers}
    if len(kinds) <= 1:
        yield from ((kind, batch) for kind in kinds)
        return
    for kind in kinds:
        yield kind, Batch([row for row in batch.rows if row.numbers and row.stated == kind])


def _reading_of(dialect: Dialect) -> Reading:
    try:
        return Reading.of_dialect(dialect)
    except ValueError as error:
        fix = "give a dialect with boxes"
        raise InputError(f"The data can't be checked in dialect {dialect.key}", got=error, fix=fix) from None


def _resizes(target: Target, factor: int) -> list[Resized]:
    if target.min_pixels is None and target.max_pixels is None:
        return []
    usual = Resized(factor)
    return [Resized(factor, target.min_pixels or usual.min_pixels, target.max_pixels or usual.max_pixels)]
