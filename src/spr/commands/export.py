"""`spr export`: a run's pairs as other trainers read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.commands.run import check_name

_FORMATS = ("trl", "llamafactory", "ms-swift", "llava", "rlaif-v")
_IMAGES = ("embed", "copy", "path")


def export(
    run: Annotated[Path, typer.Argument(help="A run folder with finished pairs.")],
    format: Annotated[str, typer.Option("--format", help=" | ".join(_FORMATS))],  # noqa: A002 - the option's name
    out: Annotated[Path, typer.Option(help="The folder to make; it must be new, empty, or this very export.")],
    images: Annotated[
        str | None,
        typer.Option(
            help="embed: in the rows | copy: into the folder | path: where they are. "
            "[default: embed for trl and rlaif-v, else copy]"
        ),
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="Write boxes in another dialect, such as qwen2_5_vl; `spr doctor` lists them.")
    ] = None,
    license: Annotated[  # noqa: A002 - the option's name
        str, typer.Option("--license", help="The data's licence on the card, such as cc-by-4.0.")
    ] = "other",
    name: Annotated[str | None, typer.Option(help="The data set's name on the card.")] = None,
) -> None:
    """Write a run's pairs in another trainer's format, with a data set card."""
    from spr.exports import writing

    check_name("--format", format, _FORMATS)
    if images is not None:
        check_name("--images", images, _IMAGES)
    made = writing.export(run, out, format, images=images, dialect=dialect, license_id=license, name=name)  # type: ignore[arg-type]
    state = ", done before" if made.done_before else ""
    typer.echo(f"{format}: {made.pairs:,} pairs in {out} (images: {made.images}, dialect: {made.dialect}{state})")
    for reason, count in made.left_out.items():
        typer.echo(f"  {count:>12,}  left out {reason}")
    if made.left_out:
        typer.echo(f"  {out / writing.LEFT_OUT} names them; to export anew, delete {out}.")
    typer.echo(f"Card: {out / 'README.md'}. Fill in the licence of images and annotations before you publish it.")
