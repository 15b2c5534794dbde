"""The rows of gpu.py: one JSON object per line in a file, a line per row in the terminal, and tables in Markdown."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; lines that a stopped call left incomplete are ignored."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"case", "rehearsal", "status"} <= set(row):
            rows.append(row)
    return rows


def append_row(path: Path, row: Row) -> None:
    """Add a row in one write, so that the file is complete at any moment; after a torn line, on a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        start = b""
        if file.tell():
            file.seek(-1, os.SEEK_END)
            start = b"" if file.read(1) == b"\n" else b"\n"
        file.write(start + json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def print_row(row: Row) -> None:
    """One line with the figures of a row."""
    hidden = {"case", "rehearsal", "wall_s", "time"}
    shown = [f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, int | float) and k not in hidden]
    shown += [str(row[name]) for name in ("reason", "error") if name in row]
    print(f"{row['case']:<43}{row['status']:<9}{row['wall_s']:>7.1f} s  {', '.join(shown)[:500]}", flush=True)


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def tables(rows: Sequence[Row]) -> str:
    """The rows of one file as Markdown: training, describing, scoring, the other cases, and what was not measured.

    Of several rows of a case, the last one counts.
    """
    newest = {row["case"]: row for row in rows}
    done = {name: row for name, row in newest.items() if row["status"] == "ok"}
    parts = [_environment(row) for row in _environments(list(newest.values()))]
    pairs = {name.removesuffix(" ours").removesuffix(" trl"): None for name in done if name.startswith("dpo ")}
    if pairs:
        heads = ["training, per pair", "ours, s", "TRL, s", "TRL / ours", "ours, GiB", "TRL, GiB"]
        heads += ["beyond the weights", "losses apart", "of the measured rate", "of the data sheet"]
        parts.append(_table(heads, [_training(name, done) for name in pairs]))
    described = {name: row for name, row in done.items() if name.startswith("describe ")}
    if described:
        heads = [
            "describing",
            "prompt, tokens",
            "K",
            "ours, tokens/s",
            "`generate`, tokens/s",
            "ours / `generate`",
            "GiB",
        ]
        cells = [
            [
                name.removeprefix("describe "),
                _number(row.get("prompt")),
                samples,
                _number(row.get(f"k{samples}_tokens_per_s")),
                _number(row.get(f"k{samples}_generate_tokens_per_s")),
                _number(row.get(f"k{samples}_ratio")),
                _number(row.get("peak_gib")),
            ]
            for name, row in described.items()
            for samples in ("1", "6")
        ]
        parts.append(_table(heads, cells))
    scored = {name: row for name, row in done.items() if name.startswith("score ")}
    if scored:
        heads = ["scoring", "crops/s", "bare forward passes, crops/s", "ours / bare", "GiB"]
        keys = ("per_s", "bare_per_s", "ratio", "peak_gib")
        parts.append(
            _table(heads, [[n.removeprefix("score "), *(_number(r.get(k)) for k in keys)] for n, r in scored.items()])
        )
    others = {name: row for name, row in done.items() if name.split()[0] not in ("dpo", "describe", "score")}
    if others:
        parts.append(_table(["other cases", "figures"], [[name, _figures(row)] for name, row in others.items()]))
    left = [row for row in newest.values() if row["status"] != "ok"]
    if left:
        cells = [[row["case"], row["status"], str(row.get("reason") or row.get("error") or "")] for row in left]
        parts.append(_table(["not measured", "status", "why"], cells))
    return "\n\n".join(parts)


def _environments(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Device, dtype, versions and day of the rows that have them, each combination once."""
    found: dict[tuple[str, ...], None] = {}
    for row in rows:
        if "device" in row:
            versions = [f"{name} {row[name]}" for name in VERSIONS if name in row]
            day = time.strftime("%Y-%m-%d", time.gmtime(row["time"]))
            kind = "a rehearsal: sizes are tiny, and no figure means anything" if row["rehearsal"] else ""
            found[(str(row["device"]), str(row.get("dtype", "")), ", ".join(versions), day, kind)] = None
    return list(found)


VERSIONS = ("python", "torch", "transformers", "trl", "peft", "spr")
"""The packages whose versions are in a row."""


def _environment(parts: tuple[str, ...]) -> str:
    return "; ".join(part for part in parts if part)


def _training(name: str, done: Mapping[str, Row]) -> list[str]:
    own, other = done.get(f"{name} ours", {}), done.get(f"{name} trl", {})
    beyond = [_number(row.get("gib_beyond_weights")) for row in (own, other)]
    apart = _number(other.get("loss_apart"))
    if other.get("agree") is False:
        apart += ", more than allowed"
    return [
        name.removeprefix("dpo "),
        _number(own.get("s_per_pair")),
        _number(other.get("s_per_pair")),
        _number(other.get("times_ours")),
        _number(own.get("peak_gib")),
        _number(other.get("peak_gib")),
        " / ".join(beyond),
        apart,
        " / ".join(_share(row.get("share")) for row in (own, other)),
        " / ".join(_share(row.get("share_of_datasheet")) for row in (own, other)),
    ]


def _figures(row: Row) -> str:
    hidden = {"case", "rehearsal", "status", "wall_s", "time", "device", "dtype", "losses", *VERSIONS}
    shown = []
    for name, value in row.items():
        if name not in hidden and value is not None and not isinstance(value, list | dict):
            shown.append(f"{name} {_number(value) if isinstance(value, int | float) else value}")
    return ", ".join(shown)


def _number(value: Any) -> str:
    """Three digits, all of whole numbers: ``1,234``, ``12.3``, ``0.012``; a dash if there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:#.3g}"


def _share(value: Any) -> str:
    return "–" if value is None else f"{value:.0%}"


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
