"""`spr evaluate`, `spr compare` and `spr lvis-questions`: benchmarks, from a model or from a file of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spr.commands.run import check_name
from spr.core.errors import ConfigError

if TYPE_CHECKING:
    from spr.evaluation.result import Result
    from spr.models.protocols import Describer

_SHOWN = 5


def evaluate(
    task: Annotated[str, typer.Argument(help="rec, phrase-grounding, referring, pope or description.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Of the model, such as describer.batch_size=32."),
    ] = None,
    annotations: Annotated[
        Path, typer.Option(help="The task's file; for description RUN, RUN/regions or a file.")
    ] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="The result, JSON; its items and answers are written beside it.")] = ...,  # type: ignore[assignment]
    images: Annotated[Path | None, typer.Option(help="The images' folder, for a model.")] = None,
    model: Annotated[str | None, typer.Option(help="A model id or folder, or embedded/describer.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="A PEFT adapter to put onto it: RUN/adapter.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="A file of answers instead of a model: JSON lines with id and answer.")
    ] = None,
    dialect: Annotated[str | None, typer.Option(help="How the answers write boxes. [default: as they say]")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="The question, with {expression}, {phrases}, {question} or {region}.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    samples: Annotated[int, typer.Option(min=1, help="description: answers a region.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of sampled answers.")] = 0,
    protocol: Annotated[
        str, typer.Option(help="rec, phrase-grounding: read answers as spr or as ferret does.")
    ] = "spr",
    areas: Annotated[str, typer.Option(help="rec: sizes by pixels (COCO's) or by share of the image.")] = "pixels",
    boxes: Annotated[
        str, typer.Option(help="phrase-grounding: a phrase's boxes count merged, or any of them.")
    ] = "merged",
    entities: Annotated[
        Path | None, typer.Option(help="phrase-grounding: the folder with Annotations/ and Sentences/.")
    ] = None,
    parser: Annotated[str, typer.Option(help="pope: how answers are read, ferret or exact.")] = "ferret",
    region: Annotated[str, typer.Option(help="referring: places as box or as point.")] = "box",
) -> None:
    """Evaluate a model, or a file of its answers, on a benchmark."""
    from spr.evaluation.task import TASKS, Request
    from spr.grounding import get_dialect

    check_name("TASK", task, tuple(TASKS))
    asked = model is not None or any(text.startswith("describer.") for text in overrides or ())
    if asked == (predictions is not None):
        got = "both" if asked else "neither"
        raise ConfigError("A model or a file of predictions is needed", got=got, expected="--model or --predictions")
    known = None if dialect is None else get_dialect(dialect)
    request = Request(
        annotations=annotations,
        images=images,
        predictions=predictions,
        dialect=known,
        model=model or "",
        prompt=prompt,
        protocol=protocol,
        samples=samples,
        seed=seed,
        entities=entities,
        boxes=boxes,
        parser=parser,
        region=region,
        areas=areas,
    )
    if samples > 1 and asked and temperature == 0:
        raise ConfigError("--samples need a --temperature", got="0, which always answers alike", expected="such as 1.0")
    describer = _describer(model, adapter, dialect, temperature, overrides or []) if asked else None
    result = TASKS[task](request, describer)
    made = result.write(out)
    for line in summary(result):
        typer.echo(line)
    beside = ", ".join(str(out.parent / made[key]) for key in ("items", "answers") if key in made)
    typer.echo(f"\n{out}  (beside it: {beside})")


def compare(
    results: Annotated[
        list[Path], typer.Argument(help="Results of spr evaluate, or run folders; the first is the base.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write the comparison as JSON, too.")] = None,
) -> None:
    """Compare results on the same items: differences, with paired bootstrap intervals and p-values."""
    import json

    from spr.core.atomic import write_atomically
    from spr.evaluation import compare as comparing

    made = comparing.compare(results)
    for comparison in made:
        for line in comparing.table(comparison):
            typer.echo(line)
        typer.echo("")
    if out is not None:
        text = json.dumps([comparison.to_json() for comparison in made], indent=2, ensure_ascii=False)
        write_atomically(out, (text + "\n").encode())


def lvis_questions(
    annotations: Annotated[Path, typer.Option(help="LVIS v1 JSON.")],
    out: Annotated[Path, typer.Option(help="The file to write, JSON lines.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many questions.")] = 2667,
    seed: Annotated[int, typer.Option(min=0, help="Decides objects, wrong names and points.")] = 0,
    min_area: Annotated[float, typer.Option(min=0, help="Leave out objects with smaller boxes, px².")] = 0.0,
) -> None:
    """Make the question file of the task `referring` from LVIS's annotations."""
    from spr.evaluation.lvis_questions import write_lvis_questions

    written = write_lvis_questions(annotations, out, n, seed=seed, min_area=min_area)
    typer.echo(f"{written:,} questions in {out}")


def summary(result: Result) -> list[str]:
    """A result as lines of text: figures with intervals, then each problem with its count and some of its ids."""
    from spr.evaluation.predictions import PROBLEMS

    lines = [f"{result.task}: {len(result.ids):,} items"]
    for name, measured in result.metrics.items():
        value, ci = measured["value"], measured["ci95"]
        shown = "–" if value is None else f"{value:.4f}"
        lines.append(f"  {name:<18} {shown:>9}" + (f"   [{ci[0]:.4f}, {ci[1]:.4f}]" if ci else ""))
    for kind, ids in result.problems.items():
        if ids:
            more = ", …" if len(ids) > _SHOWN else ""
            lines.append(f"  {len(ids):,} {kind} ({PROBLEMS[kind]}): {', '.join(ids[:_SHOWN])}{more}")
    return lines


def _describer(
    model: str | None, adapter: Path | None, dialect: str | None, temperature: float, overrides: list[str]
) -> Describer:
    """The model of the options, set up as a config's describer would be."""
    from spr.config import apply_overrides, make_config
    from spr.models.registry import load_describer

    for text in overrides:
        if not text.startswith("describer."):
            raise ConfigError("An option of the model is malformed", got=text, expected="describer.KEY=VALUE")
    given = {"model": model, "dialect": dialect, "temperature": temperature}
    section = {name: value for name, value in given.items() if value is not None}
    if adapter is not None:
        section["peft_adapter"] = str(adapter)
    raw = apply_overrides({"annotations": {"path": "-", "images": "-"}, "describer": section}, overrides)
    describer = make_config(raw, "the model's options").describer
    if describer is None:
        raise ConfigError("The model's options make no model", got="describer=null", fix="give --model")
    return load_describer(describer)
