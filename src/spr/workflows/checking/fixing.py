"""`spr check --fix` after the check: which dialect the texts are in, and whether the options fit together."""

from __future__ import annotations

from pathlib import Path

from spr.core.errors import ConfigError
from spr.grounding import DIALECTS, Dialect, get_dialect, parse
from spr.workflows.checking.evidence import Candidate
from spr.workflows.checking.fix import FixResult, fix_data
from spr.workflows.checking.readings import Reading
from spr.workflows.checking.result import CheckResult


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
