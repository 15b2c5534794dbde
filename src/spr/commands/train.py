"""`spr train` and `spr merge`: preference pairs → a LoRA adapter → merged weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from spr.commands.export import REVIEWS_HELP
from spr.core.paths import is_dir
from spr.core.terminal import echo


def train(
    config: Annotated[str, typer.Argument(help="Config file (YAML), or the name of a preset.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Config fields to override, such as training.learning_rate=1e-5."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Run folder. An interrupted training resumes from its latest checkpoint.")
    ] = ...,  # type: ignore[assignment]
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Train on these pairs instead of the run's own: a dataset folder, or a .parquet, .jsonl or .json file "
            "in TRL's preference format."
        ),
    ] = None,
    allow_outside_images: Annotated[
        bool,
        typer.Option(
            "--allow-outside-images",
            help="Also open images that --pairs names by an absolute path or outside of its folder. Only for data that "
            "you trust.",
        ),
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(help="Reuse the reference log-probabilities of another run: its training/reference.parquet."),
    ] = None,
    reviews: Annotated[str, typer.Option(help=REVIEWS_HELP)] = "use",
) -> None:
    """Train a LoRA adapter on preference pairs. For several GPUs, use `accelerate launch -m spr train …`."""
    from spr.config import load_config, load_training
    from spr.runs.reviews import check_mode
    from spr.training.run import run

    mode = check_mode(reviews)
    load = load_config if pairs is None else load_training
    loaded = load(config, overrides or ())
    options: dict[str, Any] = {
        "pairs": pairs,
        "allow_outside_images": allow_outside_images,
        "reference": reference,
        "reviews": mode,
    }
    summary = run(loaded, out, **options, report=echo)
    if int(os.environ.get("RANK", "0")) != 0:
        return
    when = "done before" if summary.done_before else f"{summary.seconds:.1f} s"
    echo(f"training: {summary.steps:,} steps on {summary.pairs:,} pairs ({when})")
    for reason, count in summary.dropped.items():
        echo(f"  {count:>12,}  dropped {reason}")
    for name in ("loss", "margin", "accuracy"):
        echo(f"  {summary.last[name]:>12.4f}  {name} of the last step")
    echo(f"\nAdapter (PEFT format):  {out / 'adapter'}")


def merge(
    run: Annotated[Path, typer.Argument(help="Run folder, or the folder of an adapter in PEFT's format.")],
    out: Annotated[Path, typer.Option(help="New folder for the merged model.")],
    model: Annotated[str | None, typer.Option(help="Base model. Default: the one that the adapter names.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the base model on the Hub.")] = None,
) -> None:
    """Merge an adapter into its model. The result loads without PEFT."""
    from spr.models.loading import model_source
    from spr.training.checkpoint import merge_adapter

    adapter = run / "adapter" if is_dir(run / "adapter") else run
    merge_adapter(adapter, out, model=None if model is None else model_source(model), revision=revision)
    echo(f"Merged model:  {out}")
