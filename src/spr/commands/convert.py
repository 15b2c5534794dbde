"""`spr convert`: convert published weights of models that transformers does not include."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.errors import ConfigError
from spr.core.terminal import echo

convert = typer.Typer(
    name="convert", help="Convert published weights to a folder that SPR loads.", no_args_is_help=True
)


@convert.callback()
def _group() -> None:
    """Make each model a subcommand, also while there is only one."""


@convert.command()
def ferret(
    out: Annotated[Path, typer.Option(help="Output folder; must not exist.")],
    base: Annotated[str | None, typer.Option(help="Vicuna v1.3, 7B or 13B: a folder or a hub id.")] = None,
    delta: Annotated[str | None, typer.Option(help="The published delta: a folder or a hub id.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="A full checkpoint of the published code, instead of --base and --delta.")
    ] = None,
    vision: Annotated[
        str | None,
        typer.Option(
            help="CLIP ViT-L/14-336: a folder or a hub id. [default: the one named by the delta or checkpoint]"
        ),
    ] = None,
) -> None:
    """Convert Ferret, from Vicuna and the published delta or from a checkpoint in the published layout.

    Pickled weights are loaded without executing code. The folder is written completely or not at all.
    """
    if checkpoint is not None and base is None and delta is None:
        from spr.models.ported.ferret.convert import convert_checkpoint

        convert_checkpoint(checkpoint, out, vision=vision)
    elif checkpoint is None and base is not None and delta is not None:
        from spr.models.ported.ferret.convert import convert_delta

        convert_delta(base, delta, out, vision=vision)
    else:
        given = {"--base": base, "--delta": delta, "--checkpoint": checkpoint}
        got = " and ".join(flag for flag, value in given.items() if value is not None) or "none of them"
        raise ConfigError("spr convert ferret: wrong inputs", got=got, expected="--base and --delta, or --checkpoint")
    echo(f"Ferret was written to {out}. Use it with describer.model={out}")
