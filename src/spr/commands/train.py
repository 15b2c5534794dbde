"""`spr train` and `spr merge`: preference pairs → a LoRA adapter → merged weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from spr.commands.export import REVIEWS_HELP
from spr.core.paths import as_path, is_dir, is_file, is_remote
from spr.core.terminal import count_text, echo


def train(
    config: Annotated[
        str, typer.Argument(metavar="RUN|CONFIG", help="Run folder; or a config (YAML file or preset) with --out.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Config fields to override, such as training.learning_rate=1e-5."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, with CONFIG. An interrupted training resumes where it stopped.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Train beside the run's other trainings, into RUN/trainings/NAME. The reference is shared."),
    ] = None,
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
    from spr.runs.reviews import check_mode
    from spr.workflows.training import train as train_run

    mode = check_mode(reviews)
    loaded, out = _config_of(config, overrides or (), out, name, with_pairs=pairs is not None)
    options: dict[str, Any] = {
        "pairs": pairs,
        "allow_outside_images": allow_outside_images,
        "reference": reference,
        "reviews": mode,
    }
    summary = train_run(loaded, out, name=name, **options, report=echo)
    if int(os.environ.get("RANK", "0")) != 0:
        return
    from spr.runs.trainings import training_place

    when = "done before" if summary.done_before else f"{summary.seconds:.1f} s"
    echo(f"training: {count_text(summary.steps, 'steps')} on {count_text(summary.pairs, 'pairs')} ({when})")
    for reason, count in summary.dropped.items():
        echo(f"  {count:>12,}  dropped {reason}")
    for metric in ("loss", "margin", "accuracy"):
        if metric not in summary.last:  # a step of `training.mix` alone
            continue
        echo(f"  {summary.last[metric]:>12.4f}  {metric} of the last step")
    echo(f"\nAdapter (PEFT format):  {training_place(out, name) / 'adapter'}")


def _config_of(
    config: str, overrides: Sequence[str], out: Path | None, name: str | None, *, with_pairs: bool
) -> tuple[Any, Path]:
    """The config and the run folder that the arguments of `train` name."""
    from spr.config import load_config, load_training
    from spr.core.errors import ConfigError
    from spr.runs.trainings import run_config

    folder = as_path(config)
    if is_file(folder / "config.yaml") if is_remote(folder) else is_dir(folder):
        if out is not None and out.absolute() != folder.absolute():
            fix = f"leave --out out; or give {folder / 'config.yaml'} to train on the pairs of --out"
            raise ConfigError(f"{config} is a folder: it is trained in place", got=f"--out {out}", fix=fix)
        return run_config(folder, overrides, name), folder
    load = load_training if with_pairs else load_config
    loaded = load(config, overrides)
    if out is None:
        fix = "add --out RUN, or give the run folder instead of the config"
        raise ConfigError("--out is missing", got=config, expected="a run folder to train in", fix=fix)
    return loaded, out


def merge(
    run: Annotated[Path, typer.Argument(help="Run folder, or the folder of an adapter in PEFT's format.")],
    out: Annotated[Path, typer.Option(help="New folder for the merged model.")],
    name: Annotated[str | None, typer.Option(help="Merge the adapter of this training of the run.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model. Default: the one that the adapter names.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the base model on the Hub.")] = None,
) -> None:
    """Merge an adapter into its model. The result loads without PEFT."""
    from spr.models.loading import model_source
    from spr.runs.adapters import find_adapter
    from spr.training.checkpoint import merge_adapter

    merge_adapter(find_adapter(run, name), out, model=None if model is None else model_source(model), revision=revision)
    echo(f"Merged model:  {out}")
