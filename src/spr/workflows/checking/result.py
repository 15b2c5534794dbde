"""The result of `spr check`: the boxes in texts and in fields, the readings that fit, and what else was noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spr.core.boxes import Array
from spr.grounding import DIALECTS
from spr.workflows.checking.boxes import BoxChecks
from spr.workflows.checking.evidence import Candidate, Evidence, chosen_candidate
from spr.workflows.checking.findings import Finding
from spr.workflows.checking.gallery import Shown
from spr.workflows.checking.reading import DataFile
from spr.workflows.checking.readings import EXCHANGED, Order, Reading
from spr.workflows.checking.rows import Batch, DataRow, Stated
from spr.workflows.checking.target import Target
from spr.workflows.checking.text_boxes import forms_of

_ENOUGH = 20_000
"""Boxes after which the likely readings are chosen, under which boxes are then checked."""
_LIKELY = 4
_TOKENS = frozenset({"loc", "loc_", "bins", "patch"})


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
        self.candidates = self.evidence.candidates(self._is_usual)
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
        found = self.evidence.candidates(self._is_usual)
        self.candidates = found
        likely = self.likely
        self.candidates = [*likely, *(one for one in found if one not in likely)]
        self.chosen = chosen_candidate(self.candidates if self.given is not None else self.likely, self.given)

    def findings(self) -> list[Finding]:
        """What is wrong with the boxes under the chosen reading; without one, what needs no reading."""
        return [] if self.checks is None else self.checks.findings(self._counted())

    def examples(self) -> Mapping[str, Sequence[DataRow]]:
        """The first rows of each of these findings."""
        return {} if self.checks is None else self.checks.examples(self._counted())

    def _counted(self) -> Reading | None:
        """The chosen reading, if boxes were checked under it."""
        known = self.checks.readings if self.checks is not None else []
        return self.chosen.reading if self.chosen is not None and self.chosen.reading in known else None

    @property
    def dialects(self) -> frozenset[str]:
        """The dialects that write boxes in one of the forms of the texts."""
        forms = self.forms.keys() - {"field"}
        return frozenset(key for key in DIALECTS if forms & forms_of(DIALECTS[key]))

    @property
    def likely(self) -> list[Candidate]:
        """The readings that are not refuted, without those in an order or a scale that no dialect writes in this form.

        If all others are refuted, these are kept.
        """
        left = [one for one in self.candidates if one.verdict in ("fits", "less likely")]
        return [one for one in left if self._is_usual(one.reading)] or left

    def _is_usual(self, reading: Reading) -> bool:
        """Whether a reading is the given one, or one that data in this form may have."""
        if reading == self.given:
            return True
        orders = {Reading.of_dialect(key).order for key in self.dialects} or {"xyxy"}
        scale = reading.scale
        common = scale.coding.units in (None, 1, 1000) or not self.dialects.isdisjoint(scale.dialects)
        return common and (reading.order in orders or self._is_exchanged(reading, orders))

    def _is_exchanged(self, reading: Reading, orders: set[Order]) -> bool:
        """Whether boxes show that x and y are exchanged: a reading that dialects don't write in this form."""
        other = EXCHANGED.get(reading.order)
        return other in orders and self.evidence.is_exchanged(reading)

    @property
    def unjudged(self) -> list[Reading]:
        """The readings in corners that the numbers may have, too, and that can't be judged: no image's size is known.

        Numbers in tokens of the dialect, such as ``<loc0001>``, are not in pixels.
        """
        if self.forms.keys() <= _TOKENS:
            return []
        return [
            one.reading
            for one in self.candidates
            if one.verdict == "no sizes"
            and self._is_usual(one.reading)
            and one.reading.scale.is_fine == self.evidence.is_within_one
        ]

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
        notes: What was counted and how, as sentences.
        shown: The images for the page.
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
    notes: list[str] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)

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
            "notes": self.notes,
            "findings": [finding.to_json() for finding in self.findings],
        }
