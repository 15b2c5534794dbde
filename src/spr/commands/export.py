"""`spr export`: a run's pairs in the format of another trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.terminal import count_text, echo

REVIEWS_HELP = (
    "Pairs decided in `spr review`. use: leave out rejected ones, use edited answers | require: only accepted and "
    "edited pairs | ignore."
)


def export(
    run: Annotated[Path, typer.Argument(help="A run folder with finished pairs.")],
    format: Annotated[  # noqa: A002 - the option's name
        str,
        typer.Option(
            "--format",
            help="trl | llamafactory | ms-swift | llava | rlaif-v | label-studio | fiftyone, or a format of "
            "an installed package, see `spr doctor`.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to create; it must be new, empty, or hold this same export.")],
    images: Annotated[
        str | None,
        typer.Option(
            help="embed: bytes in the rows | copy: files in the folder | path: paths of the original files | "
            "none: names only.",
            show_default="embed for trl and rlaif-v, else copy",
        ),
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Leave the images out, as with --images none, to share only texts.")
    ] = False,
    dialect: Annotated[
        str | None,
        typer.Option(help="Convert boxes to another dialect, such as qwen2_5_vl; `spr doctor` lists them."),
    ] = None,
    license: Annotated[  # noqa: A002 - the option's name
        str, typer.Option("--license", help="License of the dataset on its card, such as cc-by-4.0.")
    ] = "other",
    name: Annotated[str | None, typer.Option(help="Name of the dataset on its card.")] = None,
    reviews: Annotated[str, typer.Option(help=REVIEWS_HELP)] = "use",
) -> None:
    """Write a run's pairs in the format of another trainer, with a dataset card."""
    from spr.core.errors import ConfigError
    from spr.exports import writing
    from spr.runs.reviews import check_mode, effect

    mode = check_mode(reviews)
    if no_images and images not in (None, "none"):
        fix = "give one of them"
        raise ConfigError("--no-images contradicts --images", got=f"--images {images}", expected="none", fix=fix)
    images = "none" if no_images else images
    options = {"dialect": dialect, "license_id": license, "name": name, "reviews": mode}
    summary = writing.export(run, out, format, images=images, **options)  # type: ignore[arg-type]
    state = ", done before" if summary.done_before else ""
    settings = f"images: {summary.images}, dialect: {summary.dialect}{state}"
    echo(f"{format}: {count_text(summary.pairs, 'pairs')} in {out} ({settings})")
    if summary.questions:
        echo(f"  {summary.questions:>12,}  questions of `pairing.negatives` besides")
    if summary.held_out:
        echo(f"  {summary.held_out:>12,}  of them of held-out images, in the split `test`: don't train on them")
    if (line := effect(run, mode)) is not None:
        echo(f"  {line}")
    for reason, count in summary.left_out.items():
        echo(f"  {count:>12,}  left out {reason}")
    if summary.left_out:
        echo(f"  {out / writing.LEFT_OUT} lists them. To export again, choose another --out.")
    echo(f"Card: {out / 'README.md'}. Fill in the licenses of images and annotations before you publish it.")
