"""`spr report`: an HTML page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.errors import ConfigError
from spr.core.terminal import echo


def report(
    run: Annotated[Path, typer.Argument(help="A run folder with finished pairs.")],
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[RESULT]...", help="More results, after --compare.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report; an earlier report is replaced.", show_default="RUN/report"),
    ] = None,
    max_pairs: Annotated[
        int, typer.Option(min=1, help="Number of pairs in the gallery; the statistics include all pairs.")
    ] = 10_000,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Leave the images out of the gallery, to share the report without them.")
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="RESULT",
            help="Show this result of spr evaluate, and those after it, instead of the run's; the first is the base.",
        ),
    ] = None,
) -> None:
    """Write an HTML report of a run: counts, plots, training, results and a gallery of the pairs."""
    from spr.report.page import write_report

    if more and compare is None:
        raise ConfigError("Only one run can be reported", got=more[0], fix="add --compare before results")
    files = [] if compare is None else [compare, *(more or ())]
    index = write_report(run, out, max_pairs=max_pairs, images=not no_images, compare=files, say=echo)
    echo(f"Report:  {index}")
