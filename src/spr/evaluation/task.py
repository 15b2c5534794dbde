"""Benchmark tasks: the `Task` base class, the registry of tasks, and `evaluate`.

A task is one class in one file of `spr.evaluation.tasks`. Evaluating it means to load its items, get their answers from
a model or from a predictions file, and score them.
"""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from spr.config import DescriberConfig
from spr.core.errors import ConfigError
from spr.core.images import ImageSource
from spr.core.progress import Progress
from spr.core.registry import Registry
from spr.evaluation.answer_fields import Item
from spr.evaluation.inference import LoadImage, Question, answer_record, ask, check_images, image_loader
from spr.evaluation.predictions import UNUSABLE, Answers, Prediction, read_predictions
from spr.evaluation.result import Result
from spr.grounding import Dialect, get_dialect
from spr.models.protocols import Describer

Items = TypeVar("Items")
_FAILING = 0.1  # the share of items without a usable answer above which the metrics are doubtful


@dataclass(frozen=True, slots=True)
class Option:
    """Annotates a field of a `Task` as an option: ``areas: Annotated[Areas, Option("The help.")] = "pixels"``.

    An option that ``asks`` only changes what a model is asked, and is refused together with a predictions file.
    """

    help: str
    asks: bool = False


class TaskOption(NamedTuple):
    """An option of a task: its name, its type without the annotation, and its default (`MISSING` if required)."""

    name: str
    hint: Any
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a ``Literal``; empty for other types."""
        return get_args(self.hint) if get_origin(self.hint) is Literal else ()


@dataclass(frozen=True, kw_only=True)
class Task(ABC, Generic[Items]):
    """A benchmark: which file it reads, what it asks a model, and how it scores the answers.

    A subclass is a frozen, keyword-only dataclass. Its fields that are annotated with an `Option` are the task's
    options: texts, numbers, paths or a ``Literal`` of texts, required unless they have a default. ``spr evaluate TASK``
    offers them under their names, and shows the first paragraph of the docstring as its help. Add the class to `TASKS`;
    from another package, through an entry point of the group ``spr.tasks``.

    Raises:
        ConfigError: if an option has an unknown value.
    """

    name: ClassVar[str]
    """The task's name in result files, the same as in `TASKS`."""
    reads_boxes: ClassVar[bool] = True
    """Whether scoring needs to know the dialect of the answers."""
    reads_points: ClassVar[bool] = False
    """Whether answers can be in a dialect that has points but no boxes."""
    higher_is_better: ClassVar[tuple[str, ...]] = ()
    """Metrics whose increase is better. A metric in neither list has no direction."""
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    """Metrics whose decrease is better."""

    def __post_init__(self) -> None:
        for own in self.options():
            value = getattr(self, own.name)
            if own.choices and value not in own.choices:
                raise ConfigError(f"{own.flag} is not known", got=repr(value), expected=" | ".join(own.choices))

    @classmethod
    def options(cls) -> list[TaskOption]:
        """The options of the task, in the order of its fields."""
        hints = get_type_hints(cls, include_extras=True)
        return [
            TaskOption(own.name, hints[own.name].__origin__, own.default, extra)
            for own in fields(cls)
            for extra in getattr(hints[own.name], "__metadata__", ())
            if isinstance(extra, Option)
        ]

    @property
    def samples_per_item(self) -> int:
        """Answers per item. More than one needs a model that samples."""
        return 1

    @abstractmethod
    def load(self, path: Path) -> Items:
        """Read the items of the benchmark, or raise `InputError`, naming the row that is not valid."""

    @abstractmethod
    def ids(self, items: Items) -> Sequence[str]:
        """The ids of the answers that `score` expects, in order."""

    def about(self, items: Items) -> Sequence[Item]:
        """What the items are about, one per id of `ids`; by default, only the ids are known.

        With file names, missing images are found before the model is loaded. With questions and labels, a field of a
        predictions file that repeats them is not taken for the answer.
        """
        return [Item(name) for name in self.ids(items)]

    def images(self, items: Items) -> ImageSource | LoadImage | None:  # noqa: ARG002
        """The image folder or the images that belong to the items; None if only ``--images`` can tell."""
        return None

    @abstractmethod
    def questions(self, items: Items, dialect: Dialect, model: str) -> tuple[str, list[Question]]:
        """What a model is asked. Neighbouring questions about the same image share one decoded image.

        Args:
            items: What `load` returned.
            dialect: How the model writes boxes.
            model: The model as the user named it; empty if unknown.

        Returns:
            The question with its placeholders in braces, which the result records, and one question per id of `ids`.
        """

    @abstractmethod
    def score(self, items: Items, answers: Answers) -> Result:
        """The metrics of the answers, one per id of `ids`; `Answers.resolve_dialect` is the dialect of their boxes.

        Raises:
            ConfigError: if an option does not fit the dialect, or the dialect is needed and not known.
        """


TASKS: Registry[type[Task[Any]]] = Registry(
    "task",
    "spr.tasks",
    {
        "rec": "spr.evaluation.tasks.rec:Rec",
        "multi-rec": "spr.evaluation.tasks.multi_rec:MultiRec",
        "detection": "spr.evaluation.tasks.detection:Detection",
        "phrase-grounding": "spr.evaluation.tasks.phrase_grounding:PhraseGrounding",
        "pointing": "spr.evaluation.tasks.pointing:Pointing",
        "referring": "spr.evaluation.tasks.referring:Referring",
        "pope": "spr.evaluation.tasks.pope:Pope",
        "amber": "spr.evaluation.tasks.amber:Amber",
        "description": "spr.evaluation.tasks.description:Description",
    },
)
"""The tasks of ``spr evaluate``, by name."""


def evaluate(
    task: Task[Any] | str,
    annotations: Any,
    *,
    describer: Describer | DescriberConfig | None = None,
    predictions: Path | str | None = None,
    images: Path | str | ImageSource | LoadImage | None = None,
    dialect: Dialect | str | None = None,
    seed: int | None = None,
    answer_field: str | None = None,
    id_field: str | None = None,
) -> Result:
    """Evaluate a model, or a file of its answers, on a benchmark.

    Args:
        task: A task with its options, such as ``Rec(areas="share")``, or the name of one with its default options.
        annotations: The path of the task's file, or items that ``task.load`` returned.
        describer: The model to ask. A config section is loaded only after the annotations have been read.
        predictions: A file of answers, read instead of asking a model (`read_predictions`).
        images: The folder that the file names are relative to, or a function from a `Question` to its image.
        dialect: How the answers in ``predictions`` write boxes; None for what the file says.
        seed: Seed of sampled answers, 0 by default.
        answer_field: The field of the answers in ``predictions``, where several are known (`read_predictions`).
        id_field: The field of the ids in ``predictions``.

    Returns:
        The metrics with their confidence intervals. `Result.notes` says if more than 10 % of the items have no usable
        answer or boxes on another scale, or if no answer could be read. ``result.write(path)`` writes what
        ``spr evaluate --out`` writes.

    Raises:
        ConfigError: unless there is either a model or a predictions file, or if an option has no effect, or the task
            needs boxes, which the dialect doesn't have.
        InputError: if a file can't be read or does not fit the task, if no image can be read (checked before the model
            is loaded), or if no answer of a predictions file can be used.
    """
    if isinstance(task, str):
        task = TASKS.find(task, "task")()
    if describer is not None and predictions is None:
        if dialect is not None:
            raise ConfigError("`dialect` is only for predictions", got=dialect, fix="set the describer's dialect")
        fields = {"--answer-field": answer_field, "--id-field": id_field}
        unused = [f"{flag} {name}" for flag, name in fields.items() if name is not None]
        if unused:
            raise ConfigError("An option is only for predictions", got=", ".join(unused), fix="remove it")
        if task.samples_per_item > 1 and getattr(describer, "temperature", None) == 0:
            got = "0, which gives the same answer each time"
            raise ConfigError("--samples needs a --temperature above 0", got=got, expected="such as 1.0")
        items = _load(task, annotations)
        answers, kept, how = _ask(task, items, describer, images, seed or 0)
    elif predictions is not None and describer is None:
        asks = [own.flag for own in task.options() if own.option.asks and getattr(task, own.name) != own.default]
        refuse_with_predictions(*asks, images=images, seed=seed)
        if dialect is not None and not task.reads_boxes:
            what = f"--dialect has no effect, because the task {task.name} reads no boxes"
            raise ConfigError(what, got=dialect, fix="remove it")
        known = get_dialect(dialect) if isinstance(dialect, str) else dialect
        path, kept = Path(predictions), ()
        with _without_garbage_collection():
            items = _load(task, annotations)
            how_read: dict[str, Any] = {"answer_field": answer_field, "id_field": id_field, "dialect": known}
            answers = read_predictions(path, task.about(items), **how_read)
        if answers.dialect is not None:
            check_dialect(task, answers.resolve_dialect())
        how = {"model": answers.model, "predictions": path.name}
    else:
        got, expected = "neither" if describer is None else "both", "a model (--model) or --predictions"
        raise ConfigError("An evaluation needs a model or a predictions file", got=got, expected=expected)
    with _without_garbage_collection(), Progress("scoring", len(answers.texts), "answers"):
        result = task.score(items, answers)
    if isinstance(annotations, str | Path):
        how["annotations"] = Path(annotations).name
    more: dict[str, Any] = {
        "predictions": kept,
        "matched": answers.matched,
        "notes": tuple(dict.fromkeys((*result.notes, *_notes(task, items, answers, result)))),
    }
    return replace(result, protocol={**result.protocol, **how}, **more)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Don't look for cycles meanwhile: many small objects that all stay in use make each search long, for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _notes(task: Task[Any], items: Any, answers: Answers, result: Result) -> tuple[str, ...]:
    """What makes the metrics doubtful (`Result.notes`)."""
    n, notes, problems = len(answers.texts), [], answers.problems
    failed = n - answers.usable
    if failed > _FAILING * n:
        kinds = ", ".join(f"{len(problems[kind])} {kind}" for kind in UNUSABLE if problems.get(kind))
        notes.append(f"{failed:,} of {n:,} items ({failed / n * 100:.1f} %) have no usable answer ({kinds})")
    doubled = len(set(problems.get("doubled", ())))
    if doubled > _FAILING * n:
        notes.append(f"{doubled:,} of {n:,} items ({doubled / n * 100:.1f} %) have several different answers")
    scale = len(result.problems.get("scale", ()))
    if scale > _FAILING * n:
        share = f"{scale:,} of {n:,} answers ({scale / n * 100:.1f} %)"
        notes.append(f"{share} have boxes with numbers from 0 to 1, unlike their dialect: check the dialect")
    without = {name for name, text in zip(task.ids(items), answers.texts, strict=True) if text is None}
    read = len(result.ids)
    if without:
        read = sum(name not in without and name.rsplit("#", 1)[0] not in without for name in result.ids)
    nothing = {
        "no_box": "has a box that its dialect can read",
        "no_point": "has a point that its dialect can read",
        "neither": "means yes or no",
    }
    for kind, what in nothing.items():
        if read and len(result.problems.get(kind, ())) == read:
            notes.append(f"none of the {read:,} answers {what}")
    return tuple(notes)


def _load(task: Task[Any], annotations: Any) -> Any:
    if not isinstance(annotations, str | Path):
        return annotations
    with Progress(f"reading {Path(annotations).name}"):
        return task.load(Path(annotations))


def _ask(
    task: Task[Items], items: Items, describer: Describer | DescriberConfig, images: Any, seed: int
) -> tuple[Answers, tuple[Prediction, ...], dict[str, Any]]:
    """A model's answers, the records of them that a result keeps, and how the model was asked."""
    own = task.images(items) if images is None else None
    load, model = image_loader(images if own is None else own), ""
    if isinstance(describer, DescriberConfig):
        from spr.models.registry import check_loadable, expected_dialect, load_describer

        # Everything that can be refused without the model's weights is refused before they are loaded.
        if not callable(images):  # a user's function may be slow, or answer each question once
            check_images(load, task.about(items))
        check_loadable([describer])
        expected = expected_dialect(describer)
        if expected is not None:
            check_dialect(task, expected)
            task.questions(items, expected, describer.model or "")
        model, describer = describer.model or "", load_describer(describer)
    check_dialect(task, describer.dialect)
    prompt, questions = task.questions(items, describer.dialect, model)
    answers = ask(describer, questions, load, seed=seed)
    rows = zip(questions, answers.raw, answers.texts, answers.finish_reasons, strict=True)
    kept = tuple(answer_record(*row, describer) for row in rows)
    how = {"model": describer.name, "dialect": describer.dialect.spec, "prompt": prompt, "seed": seed}
    how |= {setting: getattr(describer, setting, None) for setting in ("temperature", "top_p")}
    how |= {own.name: getattr(task, own.name) for own in task.options() if own.option.asks and own.name != "prompt"}
    return answers, kept, how


def check_dialect(task: Task[Any] | type[Task[Any]], dialect: Dialect) -> None:
    """Raise `ConfigError` if a task needs boxes, and the dialect has none, such as Molmo's."""
    if task.reads_boxes and not task.reads_points and not dialect.writes_boxes:
        what = f"The task {task.name} needs boxes, and the dialect `{dialect.key}` has only points"
        fix = "use `spr evaluate pointing`; if the answers do have boxes, name the dialect that they are written in"
        raise ConfigError(what, got=dialect.key, expected="a dialect with boxes", fix=fix)


def refuse_with_predictions(*flags: str, **options: Any) -> None:
    """Raise `ConfigError` if an option that only matters to a model is set (not None) beside a predictions file."""
    unused = [*flags, *(f"--{name}" for name, value in options.items() if value is not None)]
    if unused:
        fix = "remove it, or ask a model instead (--model)"
        raise ConfigError("An option has no effect on a predictions file", got=", ".join(unused), fix=fix)


def check_prompt(prompt: str, placeholder: str) -> str:
    """Return the prompt, or raise `ConfigError` if it lacks its placeholder."""
    if placeholder not in prompt:
        fix, expected = f"put {placeholder} where it belongs", f"a question with {placeholder}"
        raise ConfigError(f"--prompt lacks {placeholder}", got=repr(prompt), expected=expected, fix=fix)
    return prompt
