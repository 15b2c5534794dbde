"""`spr scenes` and `spr quickstart`: generated scenes and the embedded models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.commands.run import print_summary
from spr.core.terminal import count_text, echo


def scenes(
    out: Annotated[Path, typer.Option(help="Output folder for images/, instances.json and expressions.json.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Number of scenes.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Random seed. Scene i of a seed does not depend on -n.")] = 0,
) -> None:
    """Generate scenes of coloured shapes as PNG and COCO JSON with exact boxes, and referring expressions."""
    from spr.embedded.scenes import write_scenes

    echo(f"{count_text(n, 'scenes')} in {write_scenes(out, n, seed)}")


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the scenes and the run.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the scenes and the run.")] = 0,
    scenes: Annotated[int, typer.Option(min=10, help="Number of scenes for training.")] = 540,
    held_out: Annotated[int, typer.Option(min=10, help="Number of scenes for evaluation.")] = 300,
    workers: Annotated[int, typer.Option(min=1, help="Processes for the CPU-bound stages.")] = 1,
) -> None:
    """Run the whole method on generated scenes with the embedded models, and write the report."""
    _import_ahead(out)
    from spr.embedded.quickstart import run_quickstart

    try:
        sizes = {"scenes": scenes, "held_out_scenes": held_out, "workers": workers}
        index = run_quickstart(out, seed, **sizes, say=echo, report=print_summary)
    except KeyboardInterrupt:
        echo(f"\nInterrupted. Finished parts stay in {out}; run the same command again to continue.", err=True)
        raise typer.Exit(130) from None
    echo(f"\nReport (open in a browser): {index}")


def _import_ahead(out: Path) -> None:
    """Let the server of the worker processes import PyTorch while this process does, unless the run has got further."""
    from spr.config import load_config
    from spr.pipeline.engines.local import start_server
    from spr.pipeline.stage import STAGES

    if not (out / "run" / "scores").exists():
        start_server(load_config("quickstart"), STAGES.values())
