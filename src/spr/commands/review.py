"""`spr review`: accept, reject and correct pairs in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.terminal import echo


def review(
    run: Annotated[Path, typer.Argument(help="A run folder with finished pairs.")],
    reviewer: Annotated[
        str | None, typer.Option(help="Whose decisions they are.", show_default="the page asks for the name")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: any free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the page's address.")] = False,
    corrections: Annotated[
        Path | None,
        typer.Option(
            "--import", help="Read corrections from Label Studio (its export as JSON) or FiftyOne (samples.json)."
        ),
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Print the state of the review and how far reviewers agree, and stop.")
    ] = False,
) -> None:
    """Accept, reject and correct pairs on a local page. `spr train` and `spr export` honour the decisions."""
    from spr.core.errors import ConfigError
    from spr.runs.reviews import check_reviewer

    check_reviewer(reviewer)
    without_page = "--import" if corrections is not None else "--summary" if summary else None
    given = {
        "--port": port != 0,
        "--no-browser": no_browser,
        "--reviewer": corrections is None and reviewer is not None,
    }
    unused = [name for name, is_given in given.items() if is_given]
    if without_page and unused:
        raise ConfigError(f"{without_page} opens no page", got=unused[0], fix=f"leave {unused[0]} out")
    if corrections is not None:
        from spr.workflows.corrections import import_corrections

        for line in import_corrections(run, corrections, reviewer).lines():
            echo(line)
        if not summary:
            return
    if summary:
        from spr.runs.reviews import read_summary

        for line in read_summary(run).lines():
            echo(line)
        return
    from spr.core.local_server import open_browser
    from spr.workflows.review import review as serve

    def ready(address: str) -> None:
        echo(f"Review:  {address}")
        if no_browser or not open_browser(address):
            echo("Open this address in a browser on this machine. Ctrl-C stops; every decision is saved at once.")

    try:
        serve(run, reviewer=reviewer, port=port, ready=ready)
    except KeyboardInterrupt:
        echo(f"\nStopped. The decisions are in {run / 'reviews.jsonl'}; `spr review {run} --summary` counts them.")
