"""`spr scenes` and `spr quickstart`: the embedded default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.commands.run import print_summary


def scenes(
    out: Annotated[Path, typer.Option(help="The folder to write into: images/, instances.json, expressions.json.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many scenes.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Scene i of a seed is the same whatever n is.")] = 0,
) -> None:
    """Generate scenes of coloured shapes with exact boxes, as COCO JSON and PNG, and expressions for REC."""
    from spr.embedded.scenes import write_scenes

    typer.echo(f"{n} scenes in {write_scenes(out, n, seed)}")


def quickstart(
    out: Annotated[Path, typer.Option(help="The folder for the scenes and the run.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="The seed of the scenes and of the run.")] = 0,
    scenes: Annotated[int, typer.Option(min=10, help="Scenes to train on.")] = 800,
    held_out: Annotated[int, typer.Option(min=10, help="Scenes that the figures come from.")] = 300,
    workers: Annotated[int, typer.Option(min=1, help="Processes for the stages bound to the CPU.")] = 1,
) -> None:
    """Run the whole method on generated scenes with the models that ship, and write the report."""
    from spr.embedded.quickstart import run_quickstart

    try:
        index = run_quickstart(
            out,
            seed,
            scenes=scenes,
            held_out_scenes=held_out,
            workers=workers,
            say=typer.echo,
            report=print_summary,
        )
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. What is finished stays in {out}; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"\nThe report, to be opened in a browser:  {index}")
