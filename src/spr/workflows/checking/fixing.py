"""`spr check --fix` after the check: which dialect the texts are in, and whether the options fit together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spr.core.errors import ConfigError
from spr.core.terminal import count_text
from spr.grounding import DIALECTS, Dialect, get_dialect, parse
from spr.grounding.coding import Numbers
from spr.workflows.checking.evidence import Candidate
from spr.workflows.checking.fix import FixResult, fix_data
from spr.workflows.checking.readings import Reading
from spr.workflows.checking.result import CheckResult
from spr.workflows.checking.target import dialect_option
from spr.workflows.checking.text_boxes import forms_of


def check_options(*, fix: bool, to: str | None, out: Path | None) -> None:
    """Raise `ConfigError` unless ``--fix``, ``--to`` and ``--out`` fit together and ``--to`` is a dialect."""
    if fix and (to is None or out is None):
        given = " ".join(("--fix", *(f"--to {to}" for _ in (1,) if to), *(f"--out {out}" for _ in (1,) if out)))
        raise ConfigError("--fix needs a dialect and a new file", got=given, expected="--fix --to DIALECT --out FILE")
    if not fix and to is not None:
        raise ConfigError("--to belongs to --fix", got=f"--to {to}", fix="add --fix, or leave out --to")
    if to is not None:
        dialect_option(to)


def fix_checked(result: CheckResult, to: str | Dialect, out: Path | str) -> FixResult:
    """Write checked data with the boxes of its texts in another dialect; see `spr.workflows.checking.fix.fix_data`.

    They are read in the dialect that was given, even if it is refuted; without one, in the only reading that fits.
    The resize settings that were given are also those of the new dialect, if it depends on them.

    Raises:
        ConfigError: if no dialect was given and none, or several, fit.
    """
    target, source = get_dialect(to), result.target.dialect
    limits = {"min_pixels": result.target.min_pixels, "max_pixels": result.target.max_pixels}
    if source is None:
        source = _dialect_of_texts(result)
    target = target.with_options(**{name: limits[name] for name in limits if name in target.options})
    return fix_data(result.data, source, target, Path(out))


def _dialect_of_texts(result: CheckResult) -> Dialect:
    """The form of the texts with the reading that fits, if all readings that do place the boxes alike."""
    group = next((group for group in result.groups if group.stated is None), None)
    fitting = [] if group is None else group.fitting
    if group is not None and group.given is not None and group.chosen is not None:
        fitting = [group.chosen]
    elif group is not None and group.unjudged:
        unknown = f"{count_text(group.evidence.without_size, 'boxes')} in images of unknown size"
        got = f"{unknown}, which may be {group.unjudged[0].name}"
        fix = "give the images with --images, or the dialect that the data are in with --dialect"
        raise ConfigError("--fix does not know what the numbers mean", got=got, expected="one reading", fix=fix)
    chosen = next(filter(None, (_source(one, result) for one in fitting)), None)
    others = [
        one.reading.name for one in fitting if one.reading.name not in {fitting[0].reading.name, *fitting[0].same_as}
    ]
    if chosen is None or others:
        got = (
            f"readings that fit: {'; '.join(one.reading.name for one in fitting)}"
            if fitting
            else "no reading that fits"
        )
        fix = "give the dialect that the data are in with --dialect (pixels: those of the original image)"
        raise ConfigError("--fix does not know what the numbers mean", got=got, expected="one reading", fix=fix)
    return chosen


def _source(candidate: Candidate, result: CheckResult) -> Dialect | None:
    """A dialect with this reading that reads the texts: a known one, or another one's form with this scale."""
    reading = candidate.reading
    forms = {form for group in result.groups for form in group.forms if form != "field"}
    known = [one for one in DIALECTS.values() if _order(one) == reading.order and forms <= forms_of(one)]
    same = [dialect for dialect in known if dialect.key in reading.scale.dialects]
    made = [replace(one, coding=reading.scale.coding, geometry=reading.scale.geometry, options=()) for one in known]
    return next((dialect for dialect in (*same, *made) if _reads(dialect, result)), None)


def _order(dialect: Dialect) -> str | None:
    """The order of the four numbers; None for dialects that have no four numbers."""
    is_plain = dialect.writes_boxes and isinstance(dialect.coding, Numbers)
    return Reading.of_dialect(dialect).order if is_plain else None


def _reads(dialect: Dialect, result: CheckResult) -> bool:
    """Whether a dialect reads all boxes of the first rows."""
    for row in result.samples:
        found = parse(row.answer, dialect, row.size_wh or (1000, 1000))
        if len(found.boxes) != len(row.numbers) - row.prompt_boxes or found.problems:
            return False
    return True
