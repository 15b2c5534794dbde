"""`spr scenes` and `spr quickstart`: the embedded default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.commands.run import run, show


def scenes(
    out: Annotated[Path, typer.Option(help="The folder to write into: images/, instances.json, expressions.json.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many scenes.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Scene i of a seed is the same whatever n is.")] = 0,
) -> None:
    """Generate scenes of coloured shapes with exact boxes, as COCO JSON and PNG, and expressions for REC."""
    from spr.scenes.generate import write_scenes

    typer.echo(f"{n} scenes in {write_scenes(out, n, seed)}")


def quickstart(
    out: Annotated[Path, typer.Option(help="The folder for the scenes and the run.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="The seed of the scenes and of the run.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes for the stages bound to the CPU.")] = 1,
) -> None:
    """Run as much of the method as there is on generated scenes, and draw what came out."""
    import json

    from spr.scenes.generate import write_scenes

    data = out / f"scenes-{seed}"
    if not (data / "instances.json").is_file():
        write_scenes(data, 200, seed)
    typer.echo(f"Scenes:  {data}")
    # JSON texts are YAML texts, whatever is in the path.
    paths = {"path": data / "instances.json", "images": data / "images"}
    overrides = [f"annotations.{name}={json.dumps(str(path))}" for name, path in paths.items()] + [f"seed={seed}"]
    run("quickstart", overrides, out=out / "run", workers=workers)
    show(out / "run" / "regions", n=12, draw=out / "regions.png")
    show(out / "run" / "pairs", n=12, draw=out / "pairs.png")
