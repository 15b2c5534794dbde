"""`spr evaluate`, with one subcommand per task, `spr compare`, `spr lvis-questions` and `spr lmms-eval-task`."""

from __future__ import annotations

import inspect
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from spr.commands.urls import with_urls
from spr.core.errors import ConfigError
from spr.core.paths import is_dir, is_file
from spr.core.terminal import count_text, echo

if TYPE_CHECKING:
    from spr.config import DescriberConfig
    from spr.evaluation.result import Result
    from spr.evaluation.task import Task

_SHOWN = 5
_DOUBTFUL = 3  # the exit code for a result with notes
_OVERRIDES = "Options of the model, such as describer.batch_size=32."


class TaskGroup(TyperGroup):
    """A group with one command per entry of `spr.evaluation.task.TASKS`."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """The names of the tasks."""
        from spr.evaluation.task import TASKS

        return list(TASKS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """The command of a task, with the task's own options."""
        from spr.evaluation.task import TASKS

        TASKS.check(cmd_name, "TASK")
        return _command(cmd_name, TASKS[cmd_name])


class TaskCommand(TyperCommand):
    """A command whose error for an unknown option names the options of its task."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; raises `ConfigError` for an unknown option."""
        from spr.evaluation.task import TASKS

        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if type(error).__name__ != "NoSuchOption":
                raise
            own = ", ".join(option.flag for option in TASKS[str(self.name)].options())
            what = f"`spr evaluate {self.name}` has no such option"
            expected = f"the options of this task ({own}) or a common one"
            fix = f"see `spr evaluate {self.name} --help`"
            raise ConfigError(what, got=getattr(error, "option_name", error), expected=expected, fix=fix) from None


evaluate = typer.Typer(
    cls=TaskGroup,
    name="evaluate",
    help="Evaluate a model, or a file of its answers, on a benchmark.",
    no_args_is_help=True,
)


def _command(name: str, task: type[Task[Any]]) -> Any:
    """The command of a task: `_evaluate` with the options of the task added, built when it is first needed."""

    def run(**values: Any) -> None:
        own = {option.name: values.pop(option.name) for option in task.options()}
        with_urls(_evaluate)(task(**own), **values)

    shared = inspect.signature(_evaluate, eval_str=True).parameters.values()
    parameters = [parameter for parameter in shared if parameter.name != "task"]
    for option in task.options():
        hint = str if option.choices else option.hint
        metavar = f"[{'|'.join(option.choices)}]" if option.choices else None
        about = typer.Option(help=option.option.help, metavar=metavar)
        default = inspect.Parameter.empty if option.default is MISSING else option.default
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(option.name, kind, default=default, annotation=Annotated[hint, about]))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = inspect.cleandoc(task.__doc__ or "").split("\n\n")[0]
    app = typer.Typer(add_completion=False)
    app.command(name, cls=TaskCommand)(run)
    return typer.main.get_command(app)


def _evaluate(
    task: Any,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=_OVERRIDES)] = None,
    *,
    annotations: Annotated[
        Path, typer.Option(help="The benchmark's file; for description, a run folder or its regions.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The result file, JSON. Items and answers are written beside it.", show_default="with --into, none"
        ),
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Add the result to this run: to its metrics.json, which the report shows.")
    ] = None,
    as_: Annotated[
        str | None, typer.Option("--as", help="The result's name in --into: before, after (training), or any other.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="The image folder, or a tar file of images.")] = None,
    allow_outside_images: Annotated[
        bool,
        typer.Option(
            "--allow-outside-images",
            help="Also open images that --annotations names outside of --images, if you trust it.",
        ),
    ] = False,
    model: Annotated[str | None, typer.Option(help="A model id or folder, or embedded/describer.")] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A PEFT adapter to load into the model: RUN, RUN/trainings/NAME or RUN/adapter.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="A file of answers instead of a model: JSON lines with id and answer.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="How the answers write boxes. By default as the model or the file says.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature. By default 0, greedy decoding.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed for sampling. By default 0.")] = None,
    answer_field: Annotated[
        str | None, typer.Option(help="The field of the answers in --predictions, such as text or choices.0.text.")
    ] = None,
    id_field: Annotated[str | None, typer.Option(help="The field of the ids in --predictions.")] = None,
) -> None:
    from spr.core.images import ImageSource
    from spr.evaluation import run_results
    from spr.evaluation import task as tasks
    from spr.evaluation.result import check_result

    if (into is None) != (as_ is None):
        given, missing = ("--as", "--into RUN") if into is None else ("--into", "--as before, --as after or --as NAME")
        raise ConfigError(f"{given} needs {missing.split()[0]}", got=as_ or into, fix=f"add {missing}")
    if out is None and into is None:
        raise ConfigError("There is no place for the result", fix="give --out FILE, or --into RUN --as NAME")
    # Before the model is loaded.
    if out is not None:
        check_result(out, answers=predictions is None)
    if into is not None and as_ is not None:
        run_results.check_target(into, as_, task.name, answers=predictions is None)
    describer = None
    if model is not None or overrides:
        describer, dialect = _describer(model, adapter, dialect, temperature or 0.0, overrides or []), None
    elif predictions is not None:
        tasks.refuse_with_predictions(adapter=adapter, temperature=temperature)
    answers: dict[str, Any] = {"describer": describer, "predictions": predictions, "dialect": dialect}
    answers |= {"answer_field": answer_field, "id_field": id_field}
    source: Path | ImageSource | None = images
    if allow_outside_images:
        if images is None:
            raise ConfigError("--allow-outside-images has no effect without --images", fix="give the image folder")
        source = ImageSource(images, allow_outside=True)
    result = tasks.evaluate(task, annotations, **answers, images=source, seed=seed)
    for line in summary(result):
        echo(line)
    if out is not None:
        written = result.write(out)
        beside = ", ".join(str(out.parent / written[key]) for key in ("items", "answers") if key in written)
        echo(f"\n{out}  (beside it: {beside})")
    if into is not None and as_ is not None:
        replaced = run_results.add_result(into, as_, result)
        echo(f"\n{into}: result {as_} of {result.task}, in {run_results.result_path(into, as_, result.task)}")
        if replaced:
            echo(f"Note: {replaced}")
        echo(f"See also:  spr report {into}  ·  spr compare {into}")
    if result.notes:
        raise typer.Exit(_DOUBTFUL)


def compare(
    results: Annotated[
        list[Path], typer.Argument(help="Result files of spr evaluate, or run folders. The first is the baseline.")
    ],
    out: Annotated[Path | None, typer.Option(help="Also write the comparison to this file, as JSON.")] = None,
) -> None:
    """Compare results on the same items: differences, with confidence intervals and p-values."""
    import json

    from spr.core.outputs import check_output, write_output
    from spr.evaluation import compare as comparing

    if out is not None:
        check_output(out, "a comparison of `spr compare`", comparing.is_comparison, folder=False)
    comparisons = comparing.compare(results)
    for comparison in comparisons:
        for line in comparing.table(comparison):
            echo(line)
        echo()
    runs = [path for path in results if is_dir(path)]
    for line in comparing.conclude(comparisons, runs[-1] if runs else None):
        echo(line)
    if out is not None:
        text = json.dumps([comparison.to_json() for comparison in comparisons], indent=2, ensure_ascii=False)
        write_output(out, (text + "\n").encode(), "a comparison of `spr compare`", comparing.is_comparison)


def lvis_questions(
    annotations: Annotated[Path, typer.Option(help="LVIS v1 JSON.")],
    out: Annotated[Path, typer.Option(help="The file to write, JSON lines.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="The number of questions.")] = 2667,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed for the choice of objects, wrong categories and points.")
    ] = 0,
    min_area: Annotated[float, typer.Option(min=0, help="Skip objects with a smaller box, in px².")] = 0.0,
) -> None:
    """Generate the question file of the task `referring` from LVIS annotations."""
    from spr.evaluation.tasks.referring import write_lvis_questions

    written = write_lvis_questions(annotations, out, n, seed=seed, min_area=min_area)
    echo(f"{count_text(written, 'questions')} in {out}")


def lmms_eval_task(
    dialect: Annotated[str, typer.Option(help="How the model's answers write boxes, such as qwen2_vl.")],
    split: Annotated[str, typer.Option(help="The split of the data set, such as val, testA or testB.")],
    out: Annotated[Path, typer.Option(help="The folder to write, for lmms-eval's --include_path.")],
    dataset: Annotated[
        str, typer.Option(help="A data set in the form of lmms-lab/RefCOCO, on the hub or a folder.")
    ] = "lmms-lab/RefCOCO",
    name: Annotated[
        str | None, typer.Option(help="The task's name.", show_default="spr_ with the data set and the split")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="The question, with {expression}.", show_default="the wording of the dialect's family"),
    ] = None,
) -> None:
    """Write a task of lmms-eval that scores RefCOCO by SPR's rules, in a stated dialect."""
    from spr.exports.lmms_eval import write_lmms_eval_task

    path = write_lmms_eval_task(out, dialect=dialect, split=split, dataset=dataset, name=name, prompt=prompt)
    echo(f"{path}  (beside it: {out / 'utils.py'})")
    echo(f"See also:  python -m lmms_eval --include_path {out} --tasks {path.stem} …")


def summary(result: Result) -> list[str]:
    """A result as lines of text: what matched, notes, metrics with intervals, problems with counts and some ids."""
    from spr.evaluation.predictions import PROBLEMS
    from spr.evaluation.result import without_interval

    split = f" (split: {result.protocol['split']})" if "split" in result.protocol else ""
    lines = [
        f"{result.task}: {count_text(len(result.ids), 'items')}{split}",
        *(f"  note: {note}" for note in result.notes),
    ]
    if (m := result.matched) is not None:
        counts = ((name, m[name], m[f"of_{name}"]) for name in ("items", "lines"))
        shares = ", ".join(f"{some:,} of {all_:,} {name} ({some / all_ * 100:.1f} %)" for name, some, all_ in counts)
        lines.insert(0, f"matched by `{m['id_field']}`: {shares}; answers in `{m['answer_field']}`")
    width = max([18, *map(len, result.metrics)])
    for name, measured in result.metrics.items():
        value, ci = measured["value"], measured["ci95"]
        shown = "–" if value is None else f"{value:.4f}"
        lines.append(f"  {name:<{width}} {shown:>9}" + (f"   [{ci[0]:.4f}, {ci[1]:.4f}]" if ci else ""))
    lines += without_interval({name: m["no_ci95"] for name, m in result.metrics.items() if m["ci95"] is None})
    for kind, ids in result.problems.items():
        if ids:
            more = ", …" if len(ids) > _SHOWN else ""
            lines.append(f"  {len(ids):,} {kind} ({PROBLEMS[kind]}): {', '.join(ids[:_SHOWN])}{more}")
    return lines


def _describer(
    model: str | None, adapter: Path | None, dialect: str | None, temperature: float, overrides: list[str]
) -> DescriberConfig:
    """The config section of the model that the options describe."""
    from spr.config import apply_overrides, make_config
    from spr.runs.adapters import find_adapter

    for text in overrides:
        if not text.startswith("describer."):
            raise ConfigError("An option of the model is malformed", got=text, expected="describer.KEY=VALUE")
    given = {"model": model, "dialect": dialect, "temperature": temperature}
    section = {name: value for name, value in given.items() if value is not None}
    for folder in () if model is None else (Path(model), Path(model) / "adapter"):
        if is_file(folder / "adapter_config.json"):
            fix = f"give the model that it was trained on as --model, and --adapter {folder}"
            raise ConfigError("--model is an adapter, not a model", got=model, fix=fix)
    if adapter is not None:
        section["peft_adapter"] = str(find_adapter(adapter))
    raw = apply_overrides({"annotations": {"path": "-", "images": "-"}, "describer": section}, overrides)
    describer = make_config(raw, "the model's options").describer
    if describer is None:
        raise ConfigError("The model's options describe no model", got="describer=null", fix="give --model")
    return describer
