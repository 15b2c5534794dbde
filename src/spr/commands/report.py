"""`spr report`: a run as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="A run folder with finished pairs.")],
    out: Annotated[
        Path | None, typer.Option(help="The report's folder; an earlier report is replaced. [default: RUN/report]")
    ] = None,
    max_pairs: Annotated[int, typer.Option(min=1, help="Pairs in the gallery; the numbers are of all.")] = 10_000,
) -> None:
    """Write an HTML report of a run: counts, plots, training, results and a gallery of the pairs."""
    from spr.report.page import write_report

    index = write_report(run, out, max_pairs=max_pairs, say=typer.echo)
    typer.echo(f"Report:  {index}")
