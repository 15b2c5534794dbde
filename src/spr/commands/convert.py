"""`spr convert`: published weights of models that transformers lacks → folders that the describer loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.errors import ConfigError

convert = typer.Typer(
    name="convert", help="Convert published weights to safetensors folders, once.", no_args_is_help=True
)


@convert.callback()
def _group() -> None:
    """Keep the name of the model a command of its own."""


@convert.command()
def ferret(
    out: Annotated[Path, typer.Option(help="The folder to write; must not be there yet.")],
    base: Annotated[str | None, typer.Option(help="Vicuna v1.3, 7B or 13B: a folder, or an id of the hub.")] = None,
    delta: Annotated[str | None, typer.Option(help="The published delta: a folder, or an id of the hub.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="A whole checkpoint of the published code, in place of base and delta.")
    ] = None,
    vision: Annotated[
        str | None, typer.Option(help="CLIP ViT-L/14-336; by default what the delta or checkpoint names.")
    ] = None,
) -> None:
    """Make Ferret from Vicuna and the published delta, or from a checkpoint in the published layout.

    Pickled weights are opened without running code. The folder is written whole, or not at all.
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
        raise ConfigError("spr convert ferret lacks its input", got=got, expected="--base and --delta, or --checkpoint")
    typer.echo(f"Ferret is in {out}: use it as describer.model={out}")
