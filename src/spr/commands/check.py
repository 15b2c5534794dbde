"""`spr check`: which scale and axis order the boxes of data are in, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.terminal import echo


def check(
    data: Annotated[
        Path, typer.Argument(help="COCO, LLaVA, ms-swift, LLaMA-Factory, TRL, MDETR or Qwen-VL data: JSON or Parquet.")
    ],
    dialect: Annotated[
        str | None,
        typer.Option(
            help="Dialect that the boxes should be in, such as qwen2_5_vl (`spr doctor` lists them), or pixels."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model that is trained, instead of --dialect: a folder, an id of the Hub, a family."),
    ] = None,
    min_pixels: Annotated[int | None, typer.Option(min=1, help="The trainer's resize setting.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="The trainer's resize setting.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder or tar file with the images. (default: the folder of DATA, if it has the first one)"),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="COCO JSON with the true boxes of the same images, to compare with.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder with tokenizer.json, or an id of the Hub in its cache. (default: that of --model)"),
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="The trainer's limit of tokens per row.")] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Context length in tokens. (default: that of the model's config.json)")
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        str | None,
        typer.Option(
            "--format",
            help="coco | mdetr | llava | qwen_vl | ms_swift | llamafactory | trl (default: recognised by content)",
        ),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write the data anew with the boxes in the dialect --to, into the file --out.")
    ] = False,
    to: Annotated[str | None, typer.Option(help="Dialect that --fix writes.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder for a page and the findings as JSON; with --fix, the new data file.")
    ] = None,
) -> None:
    """Check grounding data before training: which scale and axis order its boxes are in, and what is wrong with them.

    Ends with exit code 1 if the reading given by --dialect or --model is refuted, or no known one fits. Nothing is
    changed in place.
    """
    from spr.workflows.checking import check as checking
    from spr.workflows.checking import fix as fix_module
    from spr.workflows.checking import fixing, folder, summary

    fixing.check_options(fix=fix, to=to, out=out)
    if out is not None and fix:
        fix_module.check_out(data, out)
    elif out is not None:
        folder.check_folder(out)
    result = checking.check_data(
        data,
        layout=format,
        dialect=dialect,
        model=model,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        images=images,
        reference=reference,
        tokenizer=tokenizer,
        max_length=max_length,
        context=context,
    )
    for line in summary.lines(result):
        echo(line)
    if fix and to is not None and out is not None:
        echo()
        for line in summary.fix_lines(fixing.fix_checked(result, to, out), to):
            echo(line)
    elif out is not None:
        echo()
        for path in folder.write_folder(result, out):
            echo(path)
    if result.exit_code:
        raise typer.Exit(result.exit_code)
