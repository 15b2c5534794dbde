"""`spr convert`: convert annotations of other formats, and weights of models that transformers does not include."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.commands.urls import with_urls
from spr.core.errors import ConfigError
from spr.core.terminal import count_text, echo

convert = typer.Typer(
    name="convert",
    help="Convert annotations of other formats, or published weights, to what SPR reads.",
    no_args_is_help=True,
)


@convert.command()
@with_urls
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
            help="CLIP ViT-L/14-336: a folder or a hub id. (default: the one named by the delta or checkpoint)"
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


@convert.command("annotations")
@with_urls
def convert_dataset(
    path: Annotated[str, typer.Argument(help="The file or folder; for hf also hf:NAME:SPLIT.")],
    source: Annotated[str, typer.Option("--from", help="yolo | voc | csv | label-studio | cvat | hf.")],
    out: Annotated[Path, typer.Option(help="The JSON file; an existing one is never replaced.")],
    target: Annotated[str, typer.Option("--to", help="The format to write: coco.")] = "coco",
    images: Annotated[
        Path | None, typer.Option(help="Image folder; hf: a new folder, into which the images are written.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split or subset, such as train (yolo, voc, cvat, hf).")] = None,
    classes: Annotated[Path | None, typer.Option(help="File with names of categories (yolo, csv, hf).")] = None,
    category: Annotated[str | None, typer.Option(help="Category of all objects (csv, hf).")] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="FIELD=NAME: which column is image, label, x1, … (csv, hf).")
    ] = None,
    box_format: Annotated[
        str | None,
        typer.Option(help="xyxy | xywh | cxcywh, in pixels, or with -normalized, from 0 to 1 (csv, hf)."),
    ] = None,
    rotated: Annotated[
        str | None, typer.Option(help="enclose | drop rotated boxes (yolo, label-studio, cvat). (default: enclose)")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Drop objects marked difficult, truncated, occluded, … (voc, csv, cvat).")
    ] = None,
    zero_based: Annotated[bool, typer.Option("--zero-based", help="Pixels are counted from 0 (voc).")] = False,
    orientation: Annotated[
        str | None,
        typer.Option(help="apply | ignore the EXIF orientation (yolo, csv, hf). (default: apply)"),
    ] = None,
    frames: Annotated[str | None, typer.Option(help="Names of a video's frames (cvat).")] = None,
    image_info: Annotated[
        Path | None, typer.Option(help="Open Images' file with licenses and addresses (csv).")
    ] = None,
) -> None:
    """Convert annotations of another format to COCO JSON, and list everything that was left out."""
    from spr.annotations import convert_annotations

    choices = {"--to": (target, ("coco",)), "--rotated": (rotated, ("enclose", "drop"))}
    choices["--orientation"] = orientation, ("apply", "ignore")
    for flag, (value, known) in choices.items():
        if value not in (None, *known):
            raise ConfigError(f"{flag} is unknown", got=value, expected=" | ".join(known))
    options = {
        "images": images,
        "split": split,
        "classes": classes,
        "category": category,
        "columns": _pairs(columns),
        "box_format": box_format,
        "rotated": rotated,
        "drop": drop or None,
        "zero_based": zero_based or None,
        "orientation": orientation,
        "frames": frames,
        "image_info": image_info,
    }
    done = convert_annotations(path, out, source=source, **options)
    echo(", ".join(count_text(count, name) for name, count in done.counts.items()))
    for note, count in done.notes.items():
        echo(f"  {count:>12,}  {note}")
    for reason, count in done.dropped.items():
        echo(f"  {count:>12,}  dropped {reason}")
        echo(f"                  such as: {done.examples[reason]}")
    echo(
        f"{'Written to' if done.written else 'Unchanged:'} {out}"
        + (", which lists what was dropped" * bool(done.dropped))
    )
    echo(f"Use it with annotations.path={out} annotations.images={done.images}")


def _pairs(texts: list[str] | None) -> dict[str, str] | None:
    pairs = {}
    for text in texts or ():
        for part in text.split(","):
            field, sign, name = part.partition("=")
            if not sign or not name:
                raise ConfigError("--columns is malformed", got=text, expected="FIELD=NAME, such as label=class")
            pairs[field.strip()] = name.strip()
    return pairs or None
