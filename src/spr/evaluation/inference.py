"""Asking a model: items with images and prompts in, raw answers out, in batches; what can't be read is named."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from spr.core.images import ImageProblem, ImageSource
from spr.core.progress import Progress
from spr.core.randomness import stable_hash
from spr.evaluation.predictions import Answers, Prediction
from spr.grounding import Problem, parse
from spr.models.protocols import Describer, DescribeRequest
from spr.records import RegionQuery, Size, Span

AT_ONCE = 256
"""Questions handed to the model together: enough to fill its batches, few enough for the memory."""
_AHEAD, _THREADS = 64, 4


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What a model is asked.

    Attributes:
        id: The item's.
        file_name: The image, relative to the images' folder.
        size_wh: Its width and height in pixels; None where the annotations don't say.
        prompt: The user's turn.
        query: The region that is asked about, if there is one.
    """

    id: str
    file_name: str
    size_wh: Size | None
    prompt: str
    query: RegionQuery | None = None


Load = Callable[[Question], Image.Image]
"""The image of a question, RGB; raises `ImageProblem`."""


def from_folder(images: Path) -> Load:
    """Images of a folder, turned as the annotations' size says; as they are stored where these give none."""

    def load(question: Question) -> Image.Image:
        if question.size_wh is not None:
            return ImageSource(images).load(question.file_name, question.size_wh)
        try:
            with Image.open(ImageSource(images).path(question.file_name)) as image:
                size_wh = image.size
        except (OSError, Image.DecompressionBombError):
            size_wh = 1, 1  # loading says what is wrong with the file
        return ImageSource(images, "ignore").load(question.file_name, size_wh)

    return load


def ask(describer: Describer, questions: Sequence[Question], load: Load, *, seed: int = 0) -> Answers:
    """The model's answers, one a question, in their order.

    Each image is decoded while the model answers others; images that can't be read leave their questions unanswered,
    under the problem ``image``.

    Args:
        describer: The model; greedy or sampled, as it was made.
        questions: In an order in which questions about one image follow each other, so that it is decoded once.
        load: Where the images come from.
        seed: A sampled answer is decided by this and the question's id.
    """
    answers = Answers([None] * len(questions), dialect=describer.dialect.spec, model=describer.name)
    decoded = _decoded(questions, load)
    done = 0
    with Progress("answers", len(questions), "answers") as progress:
        while group := list(islice(decoded, AT_ONCE)):
            asked: list[tuple[int, DescribeRequest]] = []
            for k, image in enumerate(group, start=done):
                question = questions[k]
                if isinstance(image, ImageProblem):
                    answers.note("image", f"{question.id} ({question.file_name}: {image.reason})")
                    continue
                own_seed = stable_hash(seed, "evaluate", question.id) >> 1
                asked.append((k, DescribeRequest(image, question.prompt, own_seed, question.query)))
            for (k, _), text in zip(asked, describer.describe([request for _, request in asked]), strict=True):
                answers.texts[k] = text
            done += len(group)
            progress.advance(len(group))
    return answers


def answered(question: Question, text: str | None, describer: Describer) -> Prediction:
    """A question with its answer, read, as a line of a file of predictions."""
    size_wh = question.size_wh
    spans: tuple[Span, ...] = ()
    problems: tuple[Problem, ...] = ()
    if size_wh is not None:
        grounded = parse(text or "", describer.dialect, size_wh)
        spans, problems = grounded.spans, grounded.problems
    return Prediction(
        question.id,
        text,
        question.prompt,
        question.file_name,
        tuple(box for span in spans for box in span.boxes),
        tuple(span.phrase for span in spans for _ in span.boxes),
        tuple(str(problem) for problem in problems),
        describer.name,
        describer.dialect.spec,
    )


def _decoded(questions: Sequence[Question], load: Load) -> Iterator[Image.Image | ImageProblem]:
    """Each question's image, a few ahead of what is asked for; neighbours with one image share it."""
    waiting: deque[Future[Image.Image | ImageProblem]] = deque()
    last: tuple[str, Future[Image.Image | ImageProblem]] | None = None
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="decode") as pool:
        for question in questions:
            if last is None or last[0] != question.file_name:
                last = question.file_name, pool.submit(_try, load, question)
            waiting.append(last[1])
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _try(load: Load, question: Question) -> Image.Image | ImageProblem:
    try:
        return load(question)
    except ImageProblem as problem:
        return problem
