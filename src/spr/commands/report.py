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
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Leave the images out of the gallery, to share the report without them.")
    ] = False,
) -> None:
    """Write an HTML report of a run: counts, plots, training, results and a gallery of the pairs."""
    from spr.report.page import write_report

    index = write_report(run, out, max_pairs=max_pairs, images=not no_images, say=echo)
    echo(f"Report:  {index}")
