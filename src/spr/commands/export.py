"""`spr export`: a run's pairs, or prompts, in the format of another trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.terminal import count_text, echo

REVIEWS_HELP = (
    "Pairs decided in `spr review`. use: leave out rejected ones, use edited answers | require: only accepted and "
    "edited pairs | ignore."
)
_TASKS_HELP = (
    "Prompts, separated by commas. describe: the region queries of the run | detect: all objects of a category | "
    "locate: the only object of its category | absent: a category that is not in the image."
)
_LABELS_HELP = (
    "Prompts: how words count when boxes are matched to objects. ignore: not at all | name: they are the category | "
    "synonyms: the category or a synonym | phrase: they contain the category."
)


def export(
    run: Annotated[Path, typer.Argument(help="A run folder with finished pairs; with regions, for formats grpo-….")],
    format: Annotated[  # noqa: A002 - the option's name
        str,
        typer.Option(
            "--format",
            help="Pairs: trl | llamafactory | ms-swift | llava | rlaif-v | label-studio | fiftyone. Prompts with what "
            "their answers should place, for RL: grpo-trl | grpo-ms-swift | grpo-verl | grpo-easyr1 | grpo-vlm-r1 | "
            "grpo-visual-rft. Or a format of an installed package, see `spr doctor`.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to create; it must be new, empty, or hold this same export.")],
    images: Annotated[
        str | None,
        typer.Option(
            help="embed: bytes in the rows | copy: files in the folder | path: paths of the original files | "
            "none: names only.",
            show_default="the format's own: embed in Parquet and Arrow, else copy",
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
    reviews: Annotated[str | None, typer.Option(help=REVIEWS_HELP, show_default="use")] = None,
    tasks: Annotated[str | None, typer.Option(help=_TASKS_HELP, show_default="describe")] = None,
    labels: Annotated[str | None, typer.Option(help=_LABELS_HELP, show_default="ignore")] = None,
    synonyms: Annotated[
        Path | None,
        typer.Option(help='Prompts, with --labels synonyms: a JSON file such as {"person": ["man", "woman"]}.'),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="grpo-trl: folder or Hub name of the tokenizer with which rewards decode answers.",
            show_default="the describer's, if boxes are special tokens",
        ),
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(help="Prompts: questions per image and task, without describe, 1 to 8.", show_default="1"),
    ] = None,
) -> None:
    """Write a run's pairs, or prompts for RL, in the format of another trainer, with a dataset card."""
    from spr.core.errors import ConfigError
    from spr.exports import writing
    from spr.exports.prompt_options import make_options
    from spr.runs.reviews import check_mode, effect

    mode = None if reviews is None else check_mode(reviews)
    if no_images and images not in (None, "none"):
        fix = "give one of them"
        raise ConfigError("--no-images contradicts --images", got=f"--images {images}", expected="none", fix=fix)
    images = "none" if no_images else images
    prompts = make_options(tasks, labels, synonyms, tokenizer, questions)
    options = {"dialect": dialect, "license_id": license, "name": name, "reviews": mode, "prompts": prompts}
    summary = writing.export(run, out, format, images=images, **options)  # type: ignore[arg-type]
    state = ", done before" if summary.done_before else ""
    settings = f"images: {summary.images}, dialect: {summary.dialect}{state}"
    rows = count_text(summary.prompts, "prompts") if summary.prompts else count_text(summary.pairs, "pairs")
    echo(f"{format}: {rows} in {out} ({settings})")
    if summary.questions:
        echo(f"  {summary.questions:>12,}  questions of `pairing.negatives` besides")
    if summary.held_out:
        echo(f"  {summary.held_out:>12,}  of them of held-out images, in the split `test`: don't train on them")
    if not summary.prompts and (line := effect(run, mode or "use")) is not None:
        echo(f"  {line}")
    for reason, count in summary.left_out.items():
        echo(f"  {count:>12,}  left out {reason}")
    if summary.left_out:
        echo(f"  {out / writing.LEFT_OUT} lists them. To export again, choose another --out.")
    echo(f"Card: {out / 'README.md'}. Fill in the licenses of images and annotations before you publish it.")
