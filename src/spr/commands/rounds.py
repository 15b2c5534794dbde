"""`spr rounds`: several rounds of describing and training, each with the adapter of the round before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spr.core.terminal import echo


def rounds(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a config that ships with SPR.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Config fields, such as regions.per_image=2.")
    ] = None,
    n: Annotated[
        int, typer.Option("--n", "-n", min=1, help="Number of rounds; a greater one later adds rounds.")
    ] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="The folder of the rounds. Interrupted rounds in it are resumed.")] = ...,  # type: ignore[assignment]
    data: Annotated[
        str,
        typer.Option(
            help="What each round describes. same: the regions of the first round, with other seeds; fresh: the next "
            "annotations.max_images images."
        ),
    ] = "same",
    evaluate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.YAML",
            help="How each round is evaluated: a list `evaluate`, as in the file of `spr sweep`. (default: "
            "descriptions of the first round's held-out regions)",
        ),
    ] = None,
    stop: Annotated[
        str,
        typer.Option(
            help="When to stop early. interval: the metric gets worse, and the 95 % interval of its paired "
            "difference to the round before excludes 0; value: it gets worse by any amount; never."
        ),
    ] = "interval",
    metric: Annotated[
        str | None,
        typer.Option(
            help="The metric of --stop, such as s_loc or rec:acc@0.9. (default: the first metric of the first task)"
        ),
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(help="Take over from this run every finished stage whose inputs and settings agree (repeatable)."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes for stages that load no model.")] = 1,
) -> None:
    """Describe, score, pair, train and evaluate in rounds, each with the adapter of the round before."""
    from spr.commands.run import print_summary
    from spr.config import load_config, read_section
    from spr.workflows import rounds as workflow

    loaded = load_config(config, overrides or ())
    evaluations = () if evaluate is None else read_section(workflow.RoundsEvaluation, evaluate).evaluate
    options: dict[str, Any] = {
        "data": data,
        "stop": stop,
        "metric": metric,
        "evaluations": evaluations,
        "reuse": reuse or (),
    }
    try:
        outcome = workflow.rounds(loaded, out, n=n, **options, workers=workers, report=echo, report_stage=print_summary)
    except KeyboardInterrupt:
        echo(f"\nInterrupted. What is finished is kept in {out}; run the same command to resume.", err=True)
        raise typer.Exit(130) from None
    echo()
    for line in workflow.table(outcome):
        echo(line)
    echo(f"\n{out / 'table.json'}  (beside it: {out / 'table.csv'})")
