"""One question to a model about an image: what is in a region, where something is, or anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spr.config import DescriberConfig, PromptsConfig, apply_overrides, load_config, make_config
from spr.core.documents import has_surrogates
from spr.core.errors import ConfigError, InputError, SprError
from spr.core.images import FORMATS, ImageSource, to_rgb
from spr.core.paths import exists, is_dir, is_file
from spr.core.randomness import stable_hash
from spr.evaluation.expressions import Expressions
from spr.evaluation.tasks.rec import Rec
from spr.grounding import Dialect, GroundedText, final_answer, parse
from spr.grounding.text import without_surrogates
from spr.models.protocols import Describer, DescribeRequest, check_answer
from spr.models.registry import load_describer
from spr.pipeline.describe import region_prompt
from spr.records import Box, Point, Size, Span, check_box
from spr.report.contact_sheet import Mark, check_drawing, colour_of, draw_marks, write_drawing
from spr.runs.adapters import base_model, find_adapter, raw_config, run_of

COMMAND = "spr predict --draw"
_SIDE = 1000
_TOGETHER = 64  # images that are in memory at once
_CUT = "the answer was cut"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
# What a run's config says about its model besides how the candidates were sampled.
_OF_RUN = (
    *("model", "revision", "dialect", "dtype", "attn_implementation", "load_in_4bit", "max_new_tokens"),
    *("device", "device_map", "batch_size"),
)


@dataclass(frozen=True, slots=True, eq=False)
class ImageAnswer:
    """What a model answered to a question about an image.

    Attributes:
        prompt: The question as the model read it, without its chat template.
        answer: The raw answer.
        text: The answer without coordinates, its phrases with boxes in pixels of the image, and what is malformed.
        problems: What is malformed in the answer, as sentences; also if it was cut, or ends inside its reasoning.
        size_wh: Width and height of the image in pixels, after its EXIF orientation is applied.
        region: The region in question, xyxy pixels, if there is one.
        find: The expression in question, if there is one.
        finish_reason: As in `spr.models.protocols.Answer`.
        model: The model and its revision.
        dialect: The dialect of the answer.
    """

    prompt: str
    answer: str
    text: GroundedText
    problems: tuple[str, ...]
    size_wh: Size
    region: Box | None
    find: str | None
    finish_reason: str | None
    model: str
    dialect: str

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All boxes, xyxy in pixels of the image, in the order of the answer."""
        return self.text.boxes

    def label(self, span: Span) -> str:
        """What a span's boxes show: its phrase, or the expression in question if it has none."""
        return span.phrase or self.find or "(no phrase)"

    def to_json(self) -> dict[str, Any]:
        """The answer as values of JSON; coordinates are rounded to thousandths of a pixel."""
        spans = [
            {
                "phrase": span.phrase,
                "start": span.start,
                "end": span.end,
                "boxes": list(map(_rounded, span.boxes)),
                "points": list(map(_rounded, span.points)),
            }
            for span in self.text.spans
        ]
        return {
            "width": self.size_wh[0],
            "height": self.size_wh[1],
            "prompt": self.prompt,
            "region": None if self.region is None else _rounded(self.region),
            "find": self.find,
            "answer": without_surrogates(self.answer),
            "text": self.text.plain_text,
            "spans": spans,
            "problems": list(self.problems),
            "finish_reason": self.finish_reason,
            "model": self.model,
            "dialect": self.dialect,
        }


def predict(
    image: Image.Image | Path | str,
    describer: Describer | DescriberConfig,
    *,
    region: Box | None = None,
    find: str | None = None,
    prompt: str | None = None,
    prompts: PromptsConfig | None = None,
    seed: int = 0,
) -> ImageAnswer:
    """Ask a model one question about an image.

    With ``region``, the model describes it: the question is ``prompts.full`` with the region in the model's dialect, as
    in the pipeline. With ``find``, it locates what an expression refers to, in the wording of its family, as in the
    task ``rec``. ``prompt`` is asked as it is. Without any of them, the model describes the image, with
    ``prompts.crop``.

    Args:
        image: A file, or an image in memory.
        describer: The model, or its config section, such as ``DescriberConfig(model=…, temperature=0)``, which is
            loaded once per process.
        region: A box in the image, xyxy in pixels.
        find: A referring expression, such as "the red cup".
        prompt: Any question.
        prompts: The prompts; None uses the defaults, or for an embedded model those that it was trained on.
        seed: Seed of the sample if the describer's temperature is not 0.

    Raises:
        ConfigError: if several of ``region``, ``find`` and ``prompt`` are given, or one of the texts is empty.
        RecordError: if the region is not a box in the image.
        ImageProblem: if the file is not a readable image.
    """
    opened = to_rgb(image) if isinstance(image, Image.Image) else open_image(Path(image))
    return ask([opened], describer, Question(region, find, prompt), prompts, seed=seed)[0]


def open_image(path: Path) -> Image.Image:
    """Load any image file as RGB, turned upright, also one in a tar file: ``a.tar/1.jpg``; raises `ImageProblem`."""
    source, name = _place(path)
    return source.load(name)


def _place(path: Path) -> tuple[ImageSource, str]:
    tar = next((parent for parent in path.parents if is_file(parent)), None)
    folder = path.parent if tar is None else tar
    return ImageSource(folder), path.relative_to(folder).as_posix()


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask about an image: at most one of the three (see `predict`)."""

    region: Box | None = None
    find: str | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("region", "find", "prompt") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError("Only one question is possible", got=" and ".join(given), fix="give one of them")
        for text in (text for text in (self.find, self.prompt) if text is not None):
            if not text.strip() or has_surrogates(text):
                what = "is not UTF-8" if text.strip() else "is empty"
                raise ConfigError(f"`{given[0]}` {what}", got=repr(text), expected="some words")

    def check(self, size_wh: Size) -> None:
        """Raise `RecordError` if the region is not a box in an image of this size."""
        if self.region is not None:
            check_box(self.region, size_wh, where="The region")

    def text(self, size_wh: Size, dialect: Dialect, model: str, prompts: PromptsConfig) -> str:
        """The prompt for an image of ``size_wh`` pixels."""
        self.check(size_wh)
        if self.region is not None:
            return region_prompt(self.region, size_wh, dialect, prompts)
        if self.find is not None:
            whole = np.array([[0, 0, *size_wh]], dtype=np.float64)
            item = Expressions(("0",), ("",), (self.find,), whole, (size_wh,), ("",))
            return Rec().questions(item, dialect, model)[1][0].prompt
        return prompts.crop if self.prompt is None else self.prompt


def ask(
    images: Sequence[Image.Image],
    describer: Describer | DescriberConfig,
    question: Question,
    prompts: PromptsConfig | None = None,
    *,
    seed: int = 0,
) -> list[ImageAnswer]:
    """The answers to the same question about each of some RGB images (see `predict`)."""
    model = ""
    if isinstance(describer, DescriberConfig):
        model, describer = describer.model or "", load_describer(describer)
    dialect, prompts = describer.dialect, prompts or default_prompts(model)
    texts = [question.text(image.size, dialect, model, prompts) for image in images]
    own_seed = stable_hash(seed, "predict", question.find or "") >> 1
    requests = [DescribeRequest(image, text, own_seed) for image, text in zip(images, texts, strict=True)]
    answers = [check_answer(answer, describer) for answer in describer.describe(requests)]
    read = []
    for request, answer in zip(requests, answers, strict=True):
        final = final_answer(without_surrogates(answer.text))
        text = parse(final.text, dialect, request.image.size)
        problems = [final.problem] if final.problem else []
        problems += [f"{_CUT} ({answer.finish_reason})"] if answer.truncated else []
        told = (*problems, *map(str, text.problems))
        about = request.image.size, question.region, question.find, answer.finish_reason
        read.append(ImageAnswer(request.prompt, answer.text, text, told, *about, describer.name, dialect.spec))
    return read


def default_prompts(model: str) -> PromptsConfig:
    """The prompts for a model by its name: those of the embedded describer if it is one, else the defaults."""
    return load_config("quickstart").prompts if model.startswith("embedded/") else PromptsConfig()


def draw_answer(answer: ImageAnswer, image: Image.Image, *, side: int = _SIDE) -> Image.Image:
    """Draw an answer's boxes and points over its image; each phrase has its colour and number, the region is white.

    Returns an RGB picture, ``side`` pixels wide: the prompt, the image, and what the numbers stand for.
    """
    marks = [] if answer.region is None else [Mark(answer.region, (255, 255, 255), 2)]
    for span in answer.text.spans:
        label = answer.label(span)
        marks += [Mark(box, colour_of(label), 3, label) for box in span.boxes]
        marks += [Mark((x, y, x, y), colour_of(label), 3, label, is_point=True) for x, y in span.points]
    return draw_marks(to_rgb(image), marks, " ".join(answer.prompt.split()), side)


def report_lines(answer: ImageAnswer) -> Iterator[str]:
    """An answer as lines of text: its words, then each box and point with its phrase, then what is malformed."""
    if words := answer.text.plain_text.strip():
        yield words
    for span in answer.text.spans:
        for box in span.boxes:
            yield f"  [{', '.join(f'{edge:.1f}' for edge in box)}]  {answer.label(span)}"
        for x, y in span.points:
            yield f"  ({x:.1f}, {y:.1f})  {answer.label(span)}"
    if not answer.boxes and not answer.text.points:
        yield "  no boxes"
    for problem in answer.problems:
        yield f"  problem: {problem}"


def ask_files(
    files: Sequence[Path],
    describer: Describer | DescriberConfig,
    question: Question,
    prompts: PromptsConfig | None = None,
    *,
    seed: int = 0,
    drawings: Sequence[Path] | None = None,
    failure: Callable[[Path, SprError], None],
) -> Iterator[tuple[Path, ImageAnswer]]:
    """Ask the same question about each of some image files, several at a time, in their order.

    ``drawings`` are the PNG files into which the boxes are drawn, one per image. ``failure`` is called for an image
    that can't be opened, or does not contain the region.
    """
    for start in range(0, len(files), _TOGETHER):
        opened: list[tuple[int, Image.Image]] = []
        for number, path in enumerate(files[start : start + _TOGETHER], start):
            try:
                image = open_image(path)
                question.check(image.size)
            except SprError as error:
                failure(path, error)
            else:
                opened.append((number, image))
        if not opened:
            continue
        answers = ask([image for _, image in opened], describer, question, prompts, seed=seed)
        for (number, image), answer in zip(opened, answers, strict=True):
            if drawings is not None:
                write_drawing(draw_answer(answer, image), drawings[number], COMMAND)
            yield files[number], answer


def drawings(draw: Path, files: Sequence[Path], *, one: bool) -> list[Path]:
    """The PNG files of ``--draw``: the file ``draw`` for one image, else files in the folder ``draw``.

    Raises:
        ConfigError: if ``draw`` is a file, but there are several images.
        RunError: if a file is there that the same command did not draw.
    """
    if not one and is_file(draw):
        fix = "give a folder to --draw, or one image"
        raise ConfigError("Several images can't be drawn into one file", got=draw, fix=fix)
    places = [draw] if one and not is_dir(draw) else [draw / name for name in drawing_names(files)]
    for place in places:
        check_drawing(place, COMMAND)
    return places


def image_files(sources: Sequence[Path]) -> list[Path]:
    """The image files that some paths name; a folder stands for those directly in it, by name.

    Raises:
        InputError: if a path does not exist, or a folder has no images.
    """
    files: list[Path] = []
    for source in sources:
        folder, name = _place(source)
        if not exists(source) and not (is_file(folder.folder) and folder.has(name)):
            raise InputError(f"There is no image {source}", fix="check the path")
        found = [source]
        if is_dir(source):
            found = sorted(path for path in source.iterdir() if path.suffix.lower() in _SUFFIXES and is_file(path))
        if not found:
            raise InputError(f"The folder {source} has no images", expected=", ".join(FORMATS))
        files += found
    return files


def drawing_names(files: Sequence[Path]) -> list[str]:
    """A name for the drawing of each file: its own with the suffix .png, numbered where it repeats an earlier one.

    >>> drawing_names([Path("a/1.jpg"), Path("b/1.jpg"), Path("b/2.png")])
    ['1.png', '1-2.png', '2.png']
    """
    names: list[str] = []
    for path in files:
        number, name = 1, f"{path.stem}.png"
        while name in names:
            number += 1
            name = f"{path.stem}-{number}.png"
        names.append(name)
    return names


def model_settings(
    model: str | None, adapter: Path | None, overrides: Sequence[str] = ()
) -> tuple[DescriberConfig, PromptsConfig]:
    """The model and the prompts that the options of `spr predict` describe.

    An adapter of a run is used with the model and the prompts of the run; another one with the model that it names.
    ``overrides`` are ``describer.KEY=VALUE`` and ``prompts.KEY=VALUE``. Decoding is greedy unless they set a
    temperature.

    Raises:
        ConfigError: if no model is given, or an override is not valid.
        SprError: if the adapter can't be found or read.
    """
    describer: dict[str, Any] = {"temperature": 0.0}
    prompts: dict[str, Any] = {}
    for text in overrides:
        if not text.startswith(("describer.", "prompts.")):
            expected = "describer.KEY=VALUE or prompts.KEY=VALUE"
            raise ConfigError("An option of the model is malformed", got=text, expected=expected)
    if adapter is not None:
        folder = find_adapter(adapter)
        belongs = run_of(folder)
        if belongs is not None:
            own, prompts = _of_run(belongs[0])
            describer |= own if model is None else {k: v for k, v in own.items() if k in ("dialect", "max_new_tokens")}
        elif model is None:
            describer["model"] = base_model(folder)
        describer["peft_adapter"] = str(folder)
    if model is not None:
        describer["model"] = model
    prompts = prompts or default_prompts(str(describer.get("model"))).model_dump()
    raw = apply_overrides({"describer": describer, "prompts": prompts}, overrides)
    if raw["describer"] is None or (
        raw["describer"].get("model") is None and raw["describer"].get("backend") != "fake"
    ):
        raise ConfigError("There is no model to ask", fix="give --model, or --adapter with the folder of a run")
    config = make_config({"annotations": {"path": "-", "images": "-"}, **raw}, "the model's options")
    assert config.describer is not None  # noqa: S101 (for mypy)
    return config.describer, config.prompts


def _of_run(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the model and the prompts in a run's config."""
    raw = raw_config(run)
    sections = (raw.get(name) for name in ("describer", "prompts"))
    describer, prompts = (dict(section) if isinstance(section, Mapping) else {} for section in sections)
    return {name: describer[name] for name in _OF_RUN if describer.get(name) is not None}, prompts


def _rounded(place: Box | Point) -> list[float]:
    return [round(value, 3) for value in place]
