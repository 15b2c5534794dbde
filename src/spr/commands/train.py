"""`spr train` and `spr merge`: pairs → a LoRA adapter → whole weights."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a config that ships with SPR.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields, such as training.learning_rate=1e-5.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The run folder; trains on its pairs, or goes on where it stopped.")] = ...,  # type: ignore[assignment]
    pairs: Annotated[
        Path | None, typer.Option(help="Pairs in TRL's preference format instead: .parquet, .jsonl or a dataset.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Another run's training/reference.parquet, so that it is not computed again.")
    ] = None,
) -> None:
    """Train a LoRA adapter on preference pairs; with several GPUs, under `accelerate launch -m spr train …`."""
    from spr.config import load_config, load_training
    from spr.models.registry import trained_model
    from spr.runs.folder import open_run
    from spr.training.pairs import run_pairs, trl_pairs
    from spr.training.trainer import train as train_adapter

    main = int(os.environ.get("RANK", "0")) == 0
    with ExitStack() as stack:
        # What can be wrong is looked for before anything is written.
        if pairs is None:
            whole = load_config(config, overrides or ())
            settings, describer, seed = whole.training, whole.describer, whole.seed
            source, model = run_pairs(out, whole.annotations), trained_model(describer)
            if main:
                stack.enter_context(open_run(out, whole))
        else:
            part = load_training(config, overrides or ())
            settings, describer, seed = part.training, part.describer, part.seed
            source, model = trl_pairs(pairs), trained_model(describer)
            if main:
                stack.enter_context(open_run(out, part))
        summary = train_adapter(
            source,
            model,
            settings,
            out,
            revision=describer.revision if describer is not None else None,
            seed=seed,
            reference=reference,
            report=typer.echo,
        )
    if not main:
        return
    when = "done before" if summary.done_before else f"{summary.seconds:.1f} s"
    typer.echo(f"training: {summary.steps:,} steps on {summary.pairs:,} pairs ({when})")
    for reason, count in summary.dropped.items():
        typer.echo(f"  {count:>12,}  dropped {reason}")
    for name in ("loss", "margin", "accuracy"):
        typer.echo(f"  {summary.last[name]:>12.4f}  {name} of the last step")
    typer.echo(f"\nThe adapter, in PEFT's format:  {out / 'adapter'}")


def merge(
    run: Annotated[Path, typer.Argument(help="The run folder, or an adapter's folder.")],
    out: Annotated[Path, typer.Option(help="A new folder for the whole model.")],
    model: Annotated[str | None, typer.Option(help="The model; by default the one that the adapter names.")] = None,
    revision: Annotated[str | None, typer.Option(help="The model's revision on the hub.")] = None,
) -> None:
    """Write the model with its adapter merged in, as a folder that loads like any model."""
    from spr.models.loading import model_source
    from spr.training.merge import merge_adapter

    adapter = run / "adapter" if (run / "adapter").is_dir() else run
    merge_adapter(adapter, out, model=None if model is None else model_source(model), revision=revision)
    typer.echo(f"The merged model:  {out}")
