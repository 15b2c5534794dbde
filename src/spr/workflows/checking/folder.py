"""The folder that `spr check --out` writes: a page with images, and the findings as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from spr.core.atomic import atomic_dir
from spr.core.documents import read_json
from spr.core.outputs import check_output
from spr.core.terminal import count_text
from spr.workflows.checking.page import PageContent, PagePart, write_page
from spr.workflows.checking.result import CheckResult

PAGE, FINDINGS = "index.html", "check.json"


def check_folder(out: Path) -> None:
    """Raise `RunError` unless a report may be written to ``out``: it is new, empty, or holds an older one."""
    check_output(
        out, "a report of `spr check`", lambda folder: "spr_check" in read_json(folder / FINDINGS), folder=True
    )


def write_folder(result: CheckResult, out: Path) -> list[Path]:
    """Write the page and the JSON file; returns both paths.

    Raises:
        RunError: if ``out`` holds something else, or can't be written.
    """
    check_folder(out)
    data, target = result.data, result.target
    facts = [("layout", data.layout.title), ("rows", f"{result.rows:,}"), ("boxes", f"{result.boxes:,}")]
    if target.model is not None:
        facts.append(("model", target.model))
    if target.dialect is not None:
        facts.append(("dialect", f"{target.dialect.spec} ({target.note})"))
    if data.sizes.source is not None:
        facts.append(("images", str(data.sizes.source.folder)))
    parts = [
        PagePart(group.name, group.stated, group.candidates, group.given, group.evidence.boxes)
        for group in result.groups
    ]
    content = PageContent(
        f"{data.path.name}: {count_text(result.boxes, 'boxes')}",
        facts,
        parts,
        result.findings,
        result.notes,
        result.refuted,
        result.shown,
        data.sizes.source,
    )
    with atomic_dir(out) as folder:
        write_page(content, folder / PAGE)
        text = json.dumps(result.to_json(), indent=2, ensure_ascii=False)
        (folder / FINDINGS).write_bytes(text.encode("utf-8", "replace") + b"\n")
    return [out / PAGE, out / FINDINGS]
