"""Asking a model: questions about images in, raw answers out, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from PIL import Image

from spr.core.errors import ConfigError, InputError
from spr.core.images import ImageProblem, ImageSource
from spr.core.ordered_map import ordered_map
from spr.core.paths import exists
from spr.core.progress import Progress, advance, counted
from spr.core.randomness import stable_hash
from spr.evaluation.answer_fields import Item
from spr.evaluation.predictions import Answers, Prediction
from spr.grounding import GroundedText, parse
from spr.grounding.answer import UNFINISHED_REASONING
from spr.models.protocols import Describer, DescribeRequest, check_answer
from spr.records import RegionQuery, Size

_AT_ONCE = 256  # questions per call of the model: enough to fill its batches, and their images fit into memory
_AHEAD = 32  # images decoded before they are needed


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A question to a model about an image, or about a region of it (``query``).

    ``file_name`` is relative to the image folder; ``size_wh`` is None if the annotations don't give it.
    """

    id: str
    file_name: str
    size_wh: Size | None
    prompt: str
    query: RegionQuery | None = None


LoadImage: TypeAlias = Callable[[Question], Image.Image]
"""Returns the RGB image of a question; raises `ImageProblem` if it can't be read."""


def image_loader(images: Path | str | ImageSource | LoadImage | None) -> LoadImage:
    """The function that loads a question's image from a folder or an `ImageSource`; a function is returned unchanged.

    An image that is not in the folder of its name, such as ``val2017/1.jpg``, may be in the image folder itself. EXIF
    orientation is applied where the annotated size asks for it, and if there is no annotated size.
    """
    if callable(images):
        return images
    if images is None:
        fix = "give --images FOLDER, the folder that the annotations' file names are relative to"
        raise ConfigError("A model needs the images", fix=fix)
    source = images if isinstance(images, ImageSource) else ImageSource(Path(images))
    if not exists(source.folder):
        raise ConfigError("--images is not a folder or a tar file", got=source.folder, fix="check the path")
    source.prepare()
    return partial(_load_by_name, source)


def _load_by_name(source: ImageSource, question: Question) -> Image.Image:
    name = PurePosixPath(question.file_name).name
    try:
        return source.load(question.file_name, question.size_wh)
    except ImageProblem as problem:
        if problem.reason != "image_missing" or not source.has(name):
            raise
    return source.load(name, question.size_wh)


def check_images(load: LoadImage, items: Sequence[Item]) -> None:
    """Raise `InputError`, naming the first path tried, if no item's image can be read. Stops at the first that can."""
    first, names = None, {item.file_name: item for item in items if item.file_name}
    for name, item in names.items():
        try:
            load(Question(item.id, name, item.size_wh, item.question))
            return
        except ImageProblem as problem:
            first = first or problem
    if first is not None:
        raise no_image(first, len(names))


def no_image(first: ImageProblem, count: int) -> InputError:
    """The error for a benchmark of which no image can be read."""
    got = first.what if first.got is None else f"{first.what}: {first.got}"
    fix = "check --images, the folder that the annotations' file names are relative to"
    what = "The image can't be read" if count == 1 else f"None of the {count:,} images can be read"
    return InputError(what, got=got, expected=first.expected, fix=fix)


def ask(describer: Describer, questions: Sequence[Question], load: LoadImage, *, seed: int = 0) -> Answers:
    """Ask a model all questions; its answers are in the order of the questions.

    The next images are decoded in threads while the model works; neighbouring questions about the same image share one.
    If an image can't be read, its questions have no answer (None), and the problem ``image`` lists them. Answers that
    the token limit cut are kept, and the problem ``truncated`` lists them. A sampled answer depends only on the seed
    and on the question's id. Raises `InputError` if no image can be read.
    """
    answers = Answers(dialect=describer.dialect, model=describer.name)
    failed: dict[str, ImageProblem] = {}
    decoded = enumerate(_decoded(questions, load))
    with Progress("asking", len(questions), "answers"):
        while batch := list(islice(decoded, _AT_ONCE)):
            asked: dict[int, DescribeRequest] = {}
            for k, (question, image) in batch:
                if isinstance(image, ImageProblem):
                    failed.setdefault(question.file_name, image)
                    answers.note("image", f"{question.id} ({question.file_name}: {image.reason})")
                else:
                    own_seed = stable_hash(seed, "evaluate", question.id) >> 1
                    asked[k] = DescribeRequest(image, question.prompt, own_seed, question.query)
            with counted(len(asked)):
                given = zip(asked, describer.describe(list(asked.values())), strict=True)
            found = {k: check_answer(answer, describer) for k, answer in given}
            for k, (question, _) in batch:
                answer = found.get(k)
                if answer is None:
                    answers.add(question.id, None)
                    continue
                answers.add(question.id, answer.text, answer.finish_reason)
                if answer.truncated:
                    answers.note("truncated", question.id)
            advance(len(batch) - len(asked))
    if failed and len(answers.problems["image"]) == len(questions):
        raise no_image(next(iter(failed.values())), len(failed))
    return answers


def answer_record(
    question: Question, raw: str | None, text: str | None, finish_reason: str | None, describer: Describer
) -> Prediction:
    """One line of the ``.answers.jsonl`` beside a result: the question, what the model generated, and its boxes.

    The boxes are read from ``text``, the answer without the reasoning before it.
    """
    size_wh = question.size_wh
    grounded = parse(text or "", describer.dialect, size_wh) if size_wh is not None else GroundedText("")
    phrases = tuple(span.phrase for span in grounded.spans for _ in span.boxes)
    problems = (UNFINISHED_REASONING,) if raw is not None and text is None else tuple(map(str, grounded.problems))
    read = grounded.boxes, phrases, problems
    asked = question.id, raw, question.prompt, question.file_name
    return Prediction(*asked, *read, describer.name, describer.dialect.spec, finish_reason)


def _decoded(questions: Sequence[Question], load: LoadImage) -> Iterator[tuple[Question, Image.Image | ImageProblem]]:
    """Each question with its image, or with the reason why the image can't be used."""

    def work(group: list[Question]) -> Image.Image | ImageProblem:
        try:
            return load(group[0])
        except ImageProblem as problem:
            return problem

    groups = (list(group) for _, group in groupby(questions, key=lambda question: question.file_name))
    for group, image in ordered_map(work, groups, ahead=_AHEAD):
        for question in group:
            yield question, image
