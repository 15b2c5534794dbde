"""The command `spr`: each command calls one function; heavy imports happen inside, so that `--help` is instant."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from spr import __version__
from spr.errors import ConfigError, GroundingError, SprError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spr.pipeline.runner import StageSummary

app = typer.Typer(
    name="spr",
    help="Spatial Preference Rewarding: teach multimodal LLMs to place what they describe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spr {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a config that ships with SPR.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Config fields, such as regions.per_image=2.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The run folder; one that holds a run goes on where it stopped.")] = ...,  # type: ignore[assignment]
    until: Annotated[
        str | None, typer.Option(help="The last stage to run. [default: pairs; regions without a describer]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes for the stages bound to the CPU.")] = 1,
) -> None:
    """Run all due stages of an experiment into a run folder."""
    from spr.config import load_config
    from spr.pipeline import runner

    if until is not None:
        _check_name("--until", until, runner.STAGE_NAMES)
    try:
        made = load_config(config, overrides or ())
        summaries = runner.run(made, out, until=until, workers=workers, report=_print_summary)
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. Finished shards are in {out}; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    if summaries[-1].name == "pairs":
        from spr.report.pairs import describe_pairs

        for line in describe_pairs(out):
            typer.echo(line)
    typer.echo(f"\nLook at it:  spr show {out / summaries[-1].name}")


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="RUN, RUN/STAGE or a .parquet file.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many rows.")] = 3,
    skip: Annotated[int, typer.Option(min=0, help="Rows to pass over first.")] = 0,
    draw: Annotated[
        Path | None, typer.Option(help="Draw the rows over their images into this PNG (objects and regions).")
    ] = None,
) -> None:
    """Show rows of a stage, readable, or drawn over their images."""
    from spr.report import rows

    if draw is not None:
        from spr.report.sheet import draw_sheet

        drawn = draw_sheet(path, draw, n=n, skip=skip)
        typer.echo(f"{drawn} rows drawn into {draw}")
        return
    for line in rows.show(path, n=n, skip=skip):
        typer.echo(line)


@app.command()
def text(
    source: Annotated[str, typer.Option("--from", help="The dialect of the input.")],
    target: Annotated[str, typer.Option("--to", help="The dialect to write.")],
    size: Annotated[str, typer.Option(help="Width and height of the image in pixels, such as 640x480.")],
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first malformed piece.")] = False,
) -> None:
    """Convert grounded text between dialects, line by line, from standard input to standard output.

    A dialect is a key (`spr doctor` lists them), with options where it has some: `llava_onevision:padded=true`,
    `qwen2_5_vl:max_pixels=1003520`. Problems go to standard error, each with its line and offset.
    """
    from spr import grounding

    dialects = grounding.get_dialect(source), grounding.get_dialect(target)
    made = grounding.convert_lines(_input_lines(), *dialects, _parse_size(size), strict=strict)
    number = 1
    try:
        for number, converted in enumerate(made, start=1):
            for problem in converted.problems:
                typer.echo(f"line {number}, {problem}", err=True)
            typer.echo(converted.text)
            number += 1
    except GroundingError as error:
        error.add_note(f"  line:     {number}")
        raise


@app.command()
def scenes(
    out: Annotated[Path, typer.Option(help="The folder to write into: images/, instances.json, expressions.json.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many scenes.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Scene i of a seed is the same whatever n is.")] = 0,
) -> None:
    """Generate scenes of coloured shapes with exact boxes, as COCO JSON and PNG, and expressions for REC."""
    from spr.scenes.generate import write_scenes

    typer.echo(f"{n} scenes in {write_scenes(out, n, seed)}")


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="The folder for the scenes and the run.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="The seed of the scenes and of the run.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes for the stages bound to the CPU.")] = 1,
) -> None:
    """Run as much of the method as there is on generated scenes, and draw what came out."""
    import json

    from spr.scenes.generate import write_scenes

    data = out / f"scenes-{seed}"
    if not (data / "instances.json").is_file():
        write_scenes(data, 200, seed)
    typer.echo(f"Scenes:  {data}")
    # JSON texts are YAML texts, whatever is in the path.
    paths = {"path": data / "instances.json", "images": data / "images"}
    overrides = [f"annotations.{name}={json.dumps(str(path))}" for name, path in paths.items()] + [f"seed={seed}"]
    run("quickstart", overrides, out=out / "run", workers=workers)
    show(out / "run" / "regions", n=12, draw=out / "regions.png")
    show(out / "run" / "pairs", n=12, draw=out / "pairs.png")


@app.command()
def doctor() -> None:
    """Show what is installed, which devices there are and which configs and dialects ship."""
    from spr.report.doctor import diagnose

    for line in diagnose():
        typer.echo(line)


def _input_lines() -> Iterator[str]:
    # Undecodable bytes become U+FFFD: a model's output may hold anything, and one bad byte must not stop the rest.
    for line in sys.stdin.buffer if sys.stdin is not None else ():
        yield line.decode("utf-8", errors="replace")


def _parse_size(text_wh: str) -> tuple[int, int]:
    width, _, height = text_wh.lower().replace("×", "x").partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise ConfigError("--size is not an image size", got=text_wh, expected="WIDTHxHEIGHT in pixels, as 640x480")
    return int(width), int(height)


def _check_name(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        import difflib

        near = difflib.get_close_matches(value, known, n=1)
        fix = f"did you mean `{near[0]}`?" if near else None
        raise ConfigError(f"{option} is not known", got=value, expected=" | ".join(known), fix=fix)


def _print_summary(summary: StageSummary) -> None:
    when = "done before" if summary.done_before else f"{summary.seconds:.1f} s"
    typer.echo(f"{summary.name}: {summary.rows:,} {summary.unit} ({when})")
    for name, count in summary.counts.items():
        typer.echo(f"  {count:>12,}  {name}")
    for reason, count in summary.dropped.items():
        typer.echo(f"  {count:>12,}  dropped {reason}")


def main() -> NoReturn:
    """Run the command line; a problem that the user can mend is printed without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that can't show a character must not stop a conversion.
            stream.reconfigure(errors="replace")
    try:
        app()
    except SprError as error:
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        typer.echo(f"spr: {error}{notes}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader (`head`, say) left; nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(0)
