"""`spr report`: an HTML page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.terminal import echo


def report(
    run: Annotated[Path, typer.Argument(help="A run folder with finished pairs.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report; an earlier report is replaced.", show_default="RUN/report"),
    ] = None,
    max_pairs: Annotated[
        int, typer.Option(min=1, help="Number of pairs in the gallery; the statistics include all pairs.")
    ] = 10_000,
) -> None:
    """Write an HTML report of a run: counts, plots, training, results and a gallery of the pairs."""
    from spr.report.page import write_report

    index = write_report(run, out, max_pairs=max_pairs, say=echo)
    echo(f"Report:  {index}")
