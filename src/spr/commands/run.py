"""`spr run`, `spr show` and `spr doctor`: stages into a run folder, and a look at what is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spr.core.errors import ConfigError

if TYPE_CHECKING:
    from spr.pipeline.runner import StageSummary


def run(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a config that ships with SPR.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Config fields, such as regions.per_image=2.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The run folder; one that holds a run goes on where it stopped.")] = ...,  # type: ignore[assignment]
    until: Annotated[
        str | None, typer.Option(help="The last stage to run. [default: pairs; regions without a describer]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes for the stages bound to the CPU.")] = 1,
) -> None:
    """Run all due stages of an experiment into a run folder."""
    from spr.config import load_config
    from spr.pipeline import runner

    if until is not None:
        check_name("--until", until, runner.STAGE_NAMES)
    try:
        made = load_config(config, overrides or ())
        summaries = runner.run(made, out, until=until, workers=workers, report=print_summary)
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. Finished shards are in {out}; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    if summaries[-1].name == "pairs":
        from spr.runs.pair_stats import PairStats
        from spr.runs.reader import Run

        for line in PairStats.of_run(Run(out)).lines():
            typer.echo(line)
    typer.echo(f"\nLook at it:  spr show {out / summaries[-1].name}")


def show(
    path: Annotated[Path, typer.Argument(help="RUN, RUN/STAGE or a .parquet file.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many rows.")] = 3,
    skip: Annotated[int, typer.Option(min=0, help="Rows to pass over first.")] = 0,
    draw: Annotated[
        Path | None, typer.Option(help="Draw the rows over their images into this PNG (objects and regions).")
    ] = None,
) -> None:
    """Show rows of a stage, readable, or drawn over their images."""
    from spr.report import show as rows

    if draw is not None:
        from spr.report.contact_sheet import draw_sheet

        drawn = draw_sheet(path, draw, n=n, skip=skip)
        typer.echo(f"{drawn} rows drawn into {draw}")
        return
    for line in rows.show(path, n=n, skip=skip):
        typer.echo(line)


def doctor() -> None:
    """Show what is installed, which devices there are and which configs and dialects ship."""
    from spr.report.doctor import diagnose

    for line in diagnose():
        typer.echo(line)


def check_name(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `ConfigError`, with the nearest known name, if an option's value is not one of these."""
    if value not in known:
        import difflib

        near = difflib.get_close_matches(value, known, n=1)
        fix = f"did you mean `{near[0]}`?" if near else None
        raise ConfigError(f"{option} is not known", got=value, expected=" | ".join(known), fix=fix)


def print_summary(summary: StageSummary) -> None:
    """Say what a stage has made and dropped."""
    when = "done before" if summary.done_before else f"{summary.seconds:.1f} s"
    typer.echo(f"{summary.name}: {summary.rows:,} {summary.unit} ({when})")
    for name, count in summary.counts.items():
        typer.echo(f"  {count:>12,}  {name}")
    for reason, count in summary.dropped.items():
        typer.echo(f"  {count:>12,}  dropped {reason}")
