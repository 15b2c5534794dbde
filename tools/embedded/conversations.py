"""Batches for the describer: views of scenes, each with several questions and answers.

The turns of a view follow its image one after the other. An attention mask separates them, and each starts at the same
position, so that every turn is processed as if it were alone, with one forward pass per image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spr.core import boxes as bx
from spr.embedded.scenes import SIZE
from spr.embedded.sprites import CATEGORIES
from tools.embedded.corpus import Corpus
from tools.embedded.texts import PROMPTS, box_text, description, object_list
from tools.embedded.train_vision import CROP, Views, gather_views
from tools.embedded.views import WHOLE, boxes_in_view
from tools.embedded.vocabulary import ASSISTANT, END, IDS, PAD, TOKENS, encode

IGNORED = -100
REC_ONLY = 0.1
"""Share of the steps, from the start, that use referring expressions only: one object is easier to find than all."""
FULL_SHARE = 0.65
"""Share of the later batches that show whole images; the others show crops."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Turn(NamedTuple):
    """A question, its answer, and the object that each token of the answer is about.

    Attributes:
        asked: Token ids of the question, up to where the answer starts.
        answer: Token ids of the answer, with its end token.
        about: For each token of the answer an index into the scene's objects, −1 for none.
    """

    asked: list[int]
    answer: list[int]
    about: list[int]


@dataclass(frozen=True, slots=True)
class Conversations:
    """A batch of B views with their turns, at most T tokens after each image.

    Attributes:
        views: The views.
        ids: int64 ``(B, T)``: the turns' tokens.
        turns: int64 ``(B, T)``: the number of a token's turn, from 1; 0 for padding.
        positions: int64 ``(B, T)``: a token's position in its turn, from 0.
        labels: int64 ``(B, T)``: the target ids of the answers, `IGNORED` elsewhere.
        about: int64 ``(B, T)``: the object that a label is about, −1 for none.
    """

    views: Views
    ids: Ints
    turns: Ints
    positions: Ints
    labels: Ints
    about: Ints


def jittered(boxes: Floats, rng: np.random.Generator, jitter: float) -> Floats:
    """Boxes with normal errors on each edge, clipped to the view.

    Args:
        boxes: Exact boxes ``(N, 4)`` in 0–1 of the view.
        rng: Random generator of the errors.
        jitter: Standard deviation of each edge's error, as a share of the box's side.
    """
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    # At most a quarter of the side, so that a box keeps its area.
    errors = np.clip(rng.normal(0, jitter, boxes.shape), -0.25, 0.25) if jitter else np.zeros(boxes.shape)
    return np.clip(boxes + sides * errors, 0, 1)


def make_turn(prompt: str, answer: str, objects: Sequence[int]) -> Turn:
    """A turn whose answer mentions ``objects`` in this order, each followed by its box."""
    ids = [*encode(answer), IDS[END]]
    closed = np.cumsum([TOKENS[i].startswith("]") for i in ids])
    before = [0, *(int(k) for k in closed[:-1])]
    about = [int(objects[k]) if k < len(objects) else -1 for k in before]
    return Turn([*encode(prompt), IDS[ASSISTANT]], ids, about)


def conversation_maker(
    corpus: Corpus, seed: int, batch_size: int, steps: int, jitter: float
) -> Callable[[int], Conversations]:
    """A function from a step to its batch. A batch shows whole images or crops, so that turns have similar lengths."""
    usable = np.flatnonzero((corpus.regions[:, 0, 2] > 0) & (corpus.targets[:, 0] >= 0))

    def make(step: int) -> Conversations:
        rng = np.random.default_rng([seed, step])
        rows = rng.choice(usable, size=batch_size)
        if step < REC_ONLY * steps:
            samples = [(WHOLE, _questions(corpus, int(row), rng, jitter)) for row in rows]
        elif rng.random() < FULL_SHARE:
            samples = [_whole(corpus, int(row), rng, jitter) for row in rows]
        else:
            samples = [_crop(corpus, int(row), rng, jitter) for row in rows]
        views = gather_views(corpus, rows, np.stack([window for window, _ in samples]))
        return Conversations(views, *pack([turns for _, turns in samples]))

    return make


def _questions(corpus: Corpus, row: int, rng: np.random.Generator, jitter: float) -> list[Turn]:
    """The turns of all expressions of a scene."""
    turns: list[Turn] = []
    for target, question in zip(corpus.targets[row], corpus.questions[row], strict=True):
        if target >= 0:
            exact = corpus.boxes[row, [target]].astype(np.float64) / SIZE
            turn = make_turn("", box_text(jittered(exact, rng, jitter)[0]), [int(target)])
            asked = [int(i) for i in question[question != IDS[PAD]]]
            turns.append(turn._replace(asked=[*asked, IDS[ASSISTANT]]))
    return turns


def _whole(corpus: Corpus, row: int, rng: np.random.Generator, jitter: float) -> tuple[Floats, list[Turn]]:
    """The window of a whole scene, and the turns of one region and of all expressions."""
    region, inside, names = _region(corpus, row, rng)
    answer = description(names, list(jittered(corpus.boxes[row, inside].astype(np.float64) / SIZE, rng, jitter)))
    turn = make_turn(PROMPTS["full"].format(region=box_text(region / SIZE)), answer, list(inside))
    return WHOLE, [turn, *_questions(corpus, row, rng, jitter)]


def _crop(corpus: Corpus, row: int, rng: np.random.Generator, jitter: float) -> tuple[Floats, list[Turn]]:
    """The window of a crop, and its turns without and with the list of objects (exact boxes, in random order)."""
    region, inside, names = _region(corpus, row, rng)
    window = bx.grow(region, CROP, (SIZE, SIZE))
    exact = boxes_in_view(corpus.boxes[row, inside].astype(np.float64), window)[0]
    plain = make_turn(PROMPTS["crop"], description(names, list(jittered(exact, rng, jitter))), list(inside))
    order = rng.permutation(len(names)) if rng.random() < 0.7 else np.arange(len(names))
    names, exact = [names[k] for k in order], exact[order]
    prompt = PROMPTS["crop_objects"].format(objects=object_list(names, list(exact)))
    answer = description(names, list(jittered(exact, rng, jitter)))
    return window, [plain, make_turn(prompt, answer, list(inside[order]))]


def _region(corpus: Corpus, row: int, rng: np.random.Generator) -> tuple[Floats, Ints, list[str]]:
    """One region of a scene, with the indices and names of the objects inside, from left to right."""
    number = int(rng.choice(np.flatnonzero(corpus.regions[row, :, 2] > 0)))
    inside = np.flatnonzero(corpus.inside[row, number]).astype(np.int64)
    names = [CATEGORIES[kind] for kind in corpus.kinds[row, inside]]
    return corpus.regions[row, number].astype(np.float64), inside, names


def pack(samples: list[list[Turn]], multiple: int = 16) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Turns as arrays: ids, turns, positions, labels and about of `Conversations`; T is rounded up to a multiple.

    >>> ids, turns, positions, labels, about = pack([[Turn([5, 6], [7], [3]), Turn([8], [9], [-1])]], multiple=6)
    >>> ids.tolist(), turns.tolist(), positions.tolist()
    ([[5, 6, 7, 8, 9, 0]], [[1, 1, 1, 2, 2, 0]], [[0, 1, 2, 0, 1, 0]])
    >>> labels.tolist(), about.tolist()
    ([[-100, -100, 7, -100, 9, -100]], [[-1, -1, 3, -1, -1, -1]])
    """
    longest = max(sum(len(turn.asked) + len(turn.answer) for turn in turns) for turns in samples)
    shape = (len(samples), -(-longest // multiple) * multiple)
    ids, labels = np.full(shape, IDS[PAD], dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    turn_of, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    about = np.full(shape, -1, dtype=np.int64)
    for b, turns in enumerate(samples):
        start = 0
        for number, turn in enumerate(turns, start=1):
            middle = start + len(turn.asked)
            end = middle + len(turn.answer)
            ids[b, start:end] = turn.asked + turn.answer
            labels[b, middle:end] = turn.answer
            about[b, middle:end] = turn.about
            turn_of[b, start:end] = number
            positions[b, start:end] = np.arange(end - start)
            start = end
    return ids, turn_of, positions, labels, about
