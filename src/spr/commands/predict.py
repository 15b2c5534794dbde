"""`spr predict`: ask a model about images, on the command line or on a local page."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spr.core.errors import ConfigError, SprError
from spr.core.terminal import echo

if TYPE_CHECKING:
    from spr.records import Box


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]... [KEY=VALUE]...",
            help="Image files, or folders of them; and options of the model, such as describer.device=cuda:1 or "
            "prompts.full='…{region}…'.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model id or folder, or embedded/describer. (default: the model of the adapter)"),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A run, one of its trainings, or the folder of a PEFT adapter.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="X1,Y1,X2,Y2", help="Describe this region; pixels of the image.")
    ] = None,
    find: Annotated[str | None, typer.Option(help="Locate what this expression refers to: 'the red cup'.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this question as it is.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed, where describer.temperature is not 0. By default 0.")
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(help="Draw the boxes into this PNG; for several images, or a folder, into PNGs in this folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per image.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Open a local page for asking, instead of IMAGE.")] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the page of --serve. (default: any free one)")
    ] = None,
) -> None:
    """Ask a model about images: what is in a region, where something is, or any question.

    Without --region, --find and --prompt, the model describes the whole image. Boxes are in pixels of the image.
    """
    from spr.workflows import predict as asking

    texts = [text for text in inputs or () if _is_override(text)]
    sources = [Path(text) for text in inputs or () if text not in texts]
    unused: dict[str, Any] = {"--port": port}
    if serve:
        unused = {"IMAGE": sources, "--region": region, "--find": find, "--prompt": prompt, "--draw": draw}
        unused |= {"--json": as_json, "--seed": seed}
    given = [name for name, value in unused.items() if value not in (None, False, [])]
    if given:
        what = "A page with --serve asks for this itself" if serve else "--port has no effect without --serve"
        raise ConfigError(what, got=", ".join(given), fix=f"leave out {given[0]}")
    settings, prompts = asking.model_settings(model, adapter, texts)
    if seed is not None and settings.temperature == 0:
        fix = "set describer.temperature=1, or leave --seed out"
        raise ConfigError("--seed has no effect on greedy decoding", got=f"--seed {seed}", fix=fix)
    if serve:
        _serve(settings, prompts, port or 0)
        return
    if not sources:
        raise ConfigError("There is no image to ask about", fix="give a file or a folder, or --serve for a page")
    question = asking.Question(None if region is None else _box(region), find, prompt)
    files = asking.image_files(sources)
    one = files == sources and len(files) == 1
    drawings = None if draw is None else asking.drawings(draw, files, one=one)
    failed: list[Path] = []

    def failure(path: Path, error: SprError) -> None:
        if one:
            raise error
        failed.append(path)
        echo(f"{path}: {error}", err=True)

    answers = asking.ask_files(files, settings, question, prompts, seed=seed or 0, drawings=drawings, failure=failure)
    for path, answer in answers:
        if as_json:
            line = json.dumps({"image": str(path), **answer.to_json()})
            echo(line.replace("\x7f", "\\u007f"))  # ASCII without control characters, which `echo` leaves as it is
            continue
        if not one:
            echo(f"{path}  {answer.size_wh[0]}x{answer.size_wh[1]}")
        for text in asking.report_lines(answer):
            echo(text)
    if draw is not None and not as_json:
        echo(f"\nDrawn into {draw}")
    if failed:
        raise SprError(f"{len(failed):,} of {len(files):,} images have no answer", fix="see the messages above")


def _is_override(text: str) -> bool:
    key, sign, _ = text.partition("=")
    return bool(sign) and key.startswith(("describer.", "prompts."))


def _box(text: str) -> Box:
    try:
        x1, y1, x2, y2 = (float(part) for part in text.replace(",", " ").split())
    except ValueError:
        expected = "four numbers in pixels, such as 10,20,110,220"
        raise ConfigError("--region is not a box", got=text, expected=expected) from None
    return x1, y1, x2, y2


def _serve(settings: Any, prompts: Any, port: int) -> None:
    from spr.workflows.predict_page import open_page

    server = open_page(settings, prompts, port)
    echo(f"Open this address in a browser on this machine; it works until you press Ctrl-C:\n\n  {server.address}\n")
    with contextlib.suppress(KeyboardInterrupt):
        server.serve()
    echo("\nThe page is closed.")
