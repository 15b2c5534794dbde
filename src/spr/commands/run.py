"""`spr run` and `spr show`: run the pipeline, and look at its tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spr.core.terminal import count_text, echo

if TYPE_CHECKING:
    from spr.pipeline.runner import StageSummary


def run(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a config that ships with SPR.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Config fields, such as regions.per_image=2.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The run folder. An interrupted run in it is resumed.")] = ...,  # type: ignore[assignment]
    until: Annotated[
        str | None, typer.Option(help="The last stage to run. (default: all; without a describer: all that need none)")
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(help="Take over from this run every finished stage whose inputs and settings agree (repeatable)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes for stages that load no model. (default: 1; on Ray, all CPUs)"),
    ] = None,
) -> None:
    """Run the pipeline: annotated images to preference pairs, in a run folder."""
    from spr.config import load_config
    from spr.pipeline import runner
    from spr.pipeline.stage import STAGES

    if until is not None:
        STAGES.check(until, "--until")
    loaded = load_config(config, overrides or ())
    try:
        options: dict[str, Any] = {"until": until, "workers": workers, "reuse": reuse or ()}
        summaries = runner.run(loaded, out, **options, report=print_summary, say=echo)
    except KeyboardInterrupt:
        echo(f"\nInterrupted. Finished shards are kept in {out}; run the same command to resume.", err=True)
        raise typer.Exit(130) from None
    if any(summary.name == "pairs" for summary in summaries):
        from spr.models.token_counts import load_counter, tokenizer_file
        from spr.runs.pair_stats import pair_summary

        for line in pair_summary(out, tokenizer_file(loaded.describer), load_counter):
            echo(line)
    for summary in summaries:
        if summary.advice is not None:
            echo(f"\nNote: {summary.name}: {summary.advice}.")
    echo(f"\nTo see the rows:  spr show {out / summaries[-1].name}")


def show(
    path: Annotated[Path, typer.Argument(help="RUN, RUN/STAGE or a .parquet file.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Number of rows to show.")] = 3,
    skip: Annotated[int, typer.Option(min=0, help="Number of rows to skip first.")] = 0,
    draw: Annotated[
        Path | None, typer.Option(help="Draw the rows over their images into this PNG (objects, regions and pairs).")
    ] = None,
) -> None:
    """Print rows of a stage, or draw them over their images."""
    from spr.report import show as rows
    from spr.runs.folder import check_run_version

    check_run_version(path)
    if draw is not None:
        from spr.report.contact_sheet import draw_sheet

        drawn = draw_sheet(path, draw, n=n, skip=skip)
        echo(f"{count_text(drawn, 'rows')} drawn into {draw}")
        return
    for line in rows.show(path, n=n, skip=skip):
        echo(line)


def _print_example(summary: StageSummary, key: str) -> None:
    if key in summary.examples:
        echo(f"                  such as: {summary.examples[key]}")


def print_summary(summary: StageSummary) -> None:
    """Print the number of rows of a stage and what it dropped."""
    when = "done before" if summary.done_before else f"{summary.seconds:.1f} s"
    echo(f"{summary.name}: {count_text(summary.rows, summary.unit)} ({when})")
    if summary.reuse is not None:
        echo(f"  {summary.reuse}")
    for name, count in summary.counts.items():
        echo(f"  {count:>12,}  {name}")
        _print_example(summary, name)
    for reason, count in summary.dropped.items():
        echo(f"  {count:>12,}  dropped {reason}")
        _print_example(summary, reason)
    if summary.advice is not None:
        echo(f"  Note: {summary.advice}.")
    if summary.hint is not None:
        echo(f"  Note: {summary.hint}.")
