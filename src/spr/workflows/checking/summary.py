"""The result of `spr check` as lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from spr.core.terminal import count_text, one_line
from spr.workflows.checking.evidence import Candidate
from spr.workflows.checking.fix import FixResult
from spr.workflows.checking.readings import Reading
from spr.workflows.checking.result import CheckResult, Group
from spr.workflows.checking.source import WORDS

_SHOWN = 4


def lines(result: CheckResult) -> Iterator[str]:
    """What was read, the readings that fit, and the findings with the first row of each."""
    data, target = result.data, result.target
    rows = count_text(result.rows, f"{WORDS[data.kind] or 'image'}s")
    yield f"{data.path.name}: {data.layout.title}, {rows}, {count_text(result.boxes, 'boxes')}"
    if target.dialect is not None:
        of = f" {target.model}," if target.model is not None else ""
        yield f"dialect:{of} {target.dialect.spec} ({target.note})"
    elif target.is_pixels:
        yield f"dialect: pixels ({target.note})"
    for group in result.groups:
        yield ""
        yield from _readings(group)
    if result.findings:
        yield ""
        yield "findings"
        for finding in result.findings:
            share = f" ({finding.share:.1%})" if 0 < finding.share < 1 else ""
            yield f"  {finding.count:>12,}  {finding.things} {finding.message}{share}"
            if finding.places:
                yield f"{'':14}  first: {one_line(finding.places[0])}"
    if result.notes:
        yield ""
    for note in result.notes:
        yield one_line(note)
    for reason in result.refuted:
        yield ""
        yield f"REFUTED  {one_line(reason)}"
    if not result.boxes:
        yield ""
        yield "There are no boxes to check."


def _readings(group: Group) -> Iterator[str]:
    forms = ", ".join(f"{count:,} × {form}" for form, count in group.forms.most_common() if form != "field")
    yield f"{group.name}: {count_text(group.evidence.boxes, 'boxes')}{': ' + forms if forms else ''}"
    if group.evidence.without_size:
        yield f"  {count_text(group.evidence.without_size, 'boxes')} in images of unknown size: --images gives sizes"
    given = group.chosen if group.given is not None else None
    listed: set[str] = set()
    shown: list[Candidate] = [given] if given is not None else []
    for one in (*shown, *group.likely):
        if one is not given and one.reading.name not in listed:
            shown.append(one)
        listed |= {one.reading.name, *one.same_as}
    alike = {one.reading.name: one for one in group.candidates}
    for one in shown[:_SHOWN]:
        dialects = [key for name in (one.reading.name, *one.same_as) for key in alike[name].reading.scale.dialects]
        order = one.reading.order
        known = group.dialects
        written = [key for key in dict.fromkeys(dialects) if key in known and Reading.of_dialect(key).order == order]
        yield from _reading(one, written, is_given=one is given)
    if len(shown) > _SHOWN:
        yield f"  and {len(shown) - _SHOWN} more that are less likely"
    refuted = sum(candidate.refuted for candidate in group.candidates) - (given is not None and given.refuted)
    if refuted:
        yield f"  {count_text(refuted, 'other readings')} refuted"
    if given is not None and given.verdict == "less likely" and group.fitting:
        yield f"  The given reading is not refuted, but {group.fitting[0].reading.name} explains the numbers better."
    if group.unjudged and given is None:
        names = list(dict.fromkeys(one.name for one in group.unjudged))
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"  Not judged, since they need the sizes of the images: {names[0]}{more}"
    if len(group.fitting) > 1 and given is None and len({*group.fitting[0].same_as}) + 1 < len(group.fitting):
        yield "  Several readings fit: --dialect or --model checks one of them, --reference may decide."


def _reading(one: Candidate, dialects: list[str], *, is_given: bool) -> Iterator[str]:
    name = one.reading.name + (" (given)" if is_given else "")
    yield f"  {one.verdict:<12} {name}{': ' + ', '.join(dialects) if dialects else ''}"
    if one.boxes:
        iou = f", mean IoU {one.iou:.2f} with the reference" if one.iou is not None else ""
        numbers = f"{one.in_range:.1%} of the numbers in range"
        yield f"{'':15}{numbers}, {one.beyond:.1%} of the boxes beyond their image{iou}"
    for reason in one.reasons:
        yield f"{'':15}{reason}"


def fix_lines(result: FixResult, target: str) -> Iterator[str]:
    """What `spr check --fix` wrote."""
    counts = result.counts
    yield f"{result.out}: {count_text(result.boxes, 'boxes')} in dialect {target}"
    yield f"  {counts['changed']:>12,}  rows changed"
    yield f"  {counts['unchanged']:>12,}  rows unchanged"
    if counts["refused"]:
        yield f"  {counts['refused']:>12,}  rows refused and left out"
        yield f"{'':14}  first: {one_line(result.first_refused[0])}"
    if result.lost:
        yield f"  {result.lost:>12,}  rows lost words, since {target.partition(':')[0]} lists boxes without prose"
    yield f"{result.report} says what happened to each row."
