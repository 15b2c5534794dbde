"""`spr sweep`: several settings of one experiment, and one table of the results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.terminal import echo


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.YAML", help="The sweep: config or run, grid, evaluations.")],
    out: Annotated[Path, typer.Option(help="The sweep's folder. An interrupted sweep in it is resumed.")],
    workers: Annotated[int, typer.Option(min=1, help="Number of processes for stages that load no model.")] = 1,
) -> None:
    """Train and evaluate several settings, and show one table with intervals."""
    from spr.commands.run import print_summary
    from spr.config import read_section
    from spr.workflows import sweep as sweeps

    plan = read_section(sweeps.Sweep, file)
    try:
        rows = sweeps.sweep(plan, out, workers=workers, report=echo, report_stage=print_summary)
    except KeyboardInterrupt:
        echo(f"\nInterrupted. What is finished is kept in {out}; run the same command to resume.", err=True)
        raise typer.Exit(130) from None
    echo()
    for line in sweeps.table(rows, plan):
        echo(line)
    echo(f"\n{out / 'table.json'}  (beside it: {out / 'table.csv'})")
    if any(row.error for row in rows):
        raise typer.Exit(1)
