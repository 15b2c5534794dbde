"""`spr check DATA`: reads the data once and judges which reading its numbers fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from spr.core.errors import ConfigError, InputError
from spr.core.progress import Progress
from spr.core.terminal import count_text
from spr.grounding import Dialect
from spr.grounding.geometry import Resized
from spr.workflows.checking.evidence import Evidence
from spr.workflows.checking.findings import MESSAGES, Tally
from spr.workflows.checking.gallery import Gallery
from spr.workflows.checking.reading import DataFile
from spr.workflows.checking.readings import Reading
from spr.workflows.checking.reference import Reference
from spr.workflows.checking.result import CheckResult, Group
from spr.workflows.checking.rows import Batch, DataRow, RowProblem, Stated
from spr.workflows.checking.target import Target, find_target
from spr.workflows.checking.text_boxes import forms_of
from spr.workflows.checking.tokens import TokenChecks, open_token_checks

_FACTOR = 28
_SAMPLES = 50


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
    tokenizer: Path | str | None = None,
    max_length: int | None = None,
    context: int | None = None,
) -> CheckResult:
    """Check grounding data: which readings the numbers of its boxes fit, and what is wrong with rows and boxes.

    Nothing is changed or fetched, and no model is loaded: the data are read once, and of images only the headers. A
    model's image processor is loaded if only it knows the number of image tokens.

    Args:
        path: COCO JSON, LLaVA or ShareGPT JSON, ms-swift JSON lines, LLaMA-Factory sharegpt, TRL rows (JSON lines or
            Parquet), MDETR or RefCOCO JSON, or Qwen-VL JSON.
        layout: The layout, one of `spr.workflows.checking.layouts.NAMES`; None recognises it.
        dialect: The dialect that the boxes in texts should be in, or ``pixels`` for x1, y1, x2, y2 in pixels of the
            original image.
        model: The model that is trained: a folder, an id of the Hub, or the name of a family.
        min_pixels: The trainer's resize setting.
        max_pixels: The trainer's resize setting.
        images: A folder or tar file with the images, for sizes that rows don't state; the data file's folder if None.
        reference: COCO JSON with the true boxes of the same images.
        tokenizer: A folder with ``tokenizer.json``, or an id of the Hub in its cache; that of the model if None.
        max_length: The trainer's limit of tokens per row.
        context: The model's context length in tokens; that of its config.json if None.

    Raises:
        ConfigError: for options that contradict each other or are unknown.
        InputError: if a file can't be read, or the layout is not known.
    """
    target = find_target(dialect, model, min_pixels, max_pixels)
    data = DataFile(Path(path), layout, None if images is None else Path(images))
    truth = None if reference is None else Reference(Path(reference))
    tokens = _open_tokens(target, tokenizer, max_length, context)
    run = _Check(data, target, truth, tokens)
    with Progress(f"checking {data.path.name}", unit="rows") as progress:
        for batch in data.batches():
            run.add(batch)
            progress.advance(len(batch.rows))
    return run.finish()


def _open_tokens(
    target: Target, tokenizer: Path | str | None, max_length: int | None, context: int | None
) -> TokenChecks | None:
    tokens = open_token_checks(
        tokenizer=tokenizer,
        model=target.model,
        folder=target.folder,
        family=target.family,
        dialect=target.dialect,
        max_length=max_length,
        min_pixels=target.min_pixels,
        max_pixels=target.max_pixels,
    )
    if context is not None:
        if tokens is None:
            fix = "give --tokenizer, or a --model that is on this machine"
            raise ConfigError("--context needs a tokenizer", got="none", expected="tokenizer.json", fix=fix)
        tokens.context = context
    return tokens


class _Check:
    def __init__(self, data: DataFile, target: Target, reference: Reference | None, tokens: TokenChecks | None) -> None:
        self.result = CheckResult(data, target)
        self._reference, self._tokens, self._gallery = reference, tokens, Gallery()
        self._groups: dict[Stated | None, Group] = {}
        self._tallies: dict[str, Tally] = {}
        self._given = Reading.of_stated("xyxy_pixels") if target.is_pixels else _reading_of(target.dialect)
        self._known_forms = None if target.dialect is None else forms_of(target.dialect)
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
        self._gallery.add(batch)
        if self._tokens is not None:
            self._tokens.add(batch)
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
        result.findings += [finding for group in result.groups for finding in group.findings()]
        examples: dict[str, list[DataRow]] = {}
        for group in result.groups:
            for kind, rows in group.examples().items():
                examples.setdefault(kind, []).extend(rows)
        if self._tokens is not None:
            result.findings += self._tokens.findings()
            result.notes += self._tokens.notes()
            examples["too_long"] = [row for row in self._tokens.examples() if row.numbers]
        sizes = result.data.sizes
        if sizes.missing:
            missing = f"{count_text(sizes.missing, 'images')} can't be read; the first: {sizes.first_missing}"
            result.notes.append(f"{missing}.")
        result.shown = self._gallery.choose(examples)
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


def _reading_of(dialect: Dialect | None) -> Reading | None:
    if dialect is None:
        return None
    try:
        return Reading.of_dialect(dialect)
    except ValueError as error:
        fix = "give a dialect with boxes"
        raise ConfigError(f"The data can't be checked in dialect {dialect.key}", got=error, fix=fix) from None


def _resizes(target: Target, factor: int) -> list[Resized]:
    if target.min_pixels is None and target.max_pixels is None:
        return []
    usual = Resized(factor)
    return [Resized(factor, target.min_pixels or usual.min_pixels, target.max_pixels or usual.max_pixels)]
