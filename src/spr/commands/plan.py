"""`spr plan`: how long a run will take, worked out from a small sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.terminal import echo


def plan(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a config that ships with SPR.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Config fields, such as regions.per_image=2.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Images to plan for. (default: annotations.max_images of the config)")
    ] = None,
    within: Annotated[
        str | None, typer.Option(help="A wished time, such as 24h, 90min or 2d: how many processes or GPUs reach it.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes for stages that load no model. (default: 1; on Ray, all CPUs)"),
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Images to measure on. (default: what takes about two minutes)")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the calibration in this folder: its run is in run/. (default: delete it)")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the plan and what was measured into this JSON file.")] = None,
) -> None:
    """Run a small sample of a config, and work out time, disk space and memory for many images.

    Measures in one process of this machine. Images and annotations are only read.
    """
    from spr.config import load_config
    from spr.workflows import plan as plans
    from spr.workflows import plan_report as report
    from spr.workflows.calibration import calibrate, calibration_folder

    wished = None if within is None else plans.parse_duration(within)
    loaded = load_config(config, overrides or ())
    if json is not None:
        report.check_json(json)
    wanted = images or loaded.annotations.max_images
    try:
        with calibration_folder(keep) as folder:
            measured = calibrate(loaded, folder, wanted, sample=sample, say=echo)
    except KeyboardInterrupt:
        echo("\nInterrupted. Nothing is kept.", err=True)
        raise typer.Exit(130) from None
    setup = plans.own_setup(measured, loaded, workers)
    found = plans.plan(measured, loaded, wanted, setup)
    echo()
    for line in report.lines(measured, loaded, found, images):
        echo(line)
    reached = None
    if wished is None:
        for line in report.more_lines(measured, loaded, found, workers):
            echo(line)
    else:
        reached = (wished, *plans.reach(measured, loaded, found, wished, workers))
        for line in report.within_lines(loaded, *reached):
            echo(line)
    if json is not None:
        report.write_json(json, measured, found, reached)
        echo(f"\n{json}")
