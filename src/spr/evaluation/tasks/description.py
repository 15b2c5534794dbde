"""Descriptions of held-out regions: how many objects are placed, how well, and how much of it is made up (METHOD §5.4).

Accuracy alone rewards saying little: recall, objects named and words stand beside it, always.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spr.core import boxes as bx
from spr.evaluation.inference import Load, Question, answered, ask
from spr.evaluation.metrics import Bools, Floats, Share, reaches
from spr.evaluation.predictions import Answers, dialect_of, read_predictions
from spr.evaluation.questions import REGION, check_prompt, default_prompt, region_prompt
from spr.evaluation.result import Result
from spr.grounding import Dialect, GroundedText, parse
from spr.grounding.localization import localization_score
from spr.models.protocols import Describer
from spr.records import RegionQuery

TASK = "description"
RECALLS = (0.5, 0.75, 0.9)
UNMATCHED = 0.5
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def evaluate_description(
    describer: Describer,
    queries: Sequence[RegionQuery],
    load: Load,
    *,
    prompt: str | None = None,
    samples: int = 1,
    seed: int = 0,
) -> Result:
    """Ask a model about each region of whole images (the training prompt) and score what it says.

    Args:
        describer: Greedy, or sampling at the temperature that is wanted.
        queries: Held-out regions.
        load: Where the images come from.
        prompt: The question, with ``{region}``; None for the wording that the pipeline trains on.
        samples: Answers a region, each with its own seed.
        seed: Of the samples.

    Raises:
        ConfigError: if the prompt lacks ``{region}``.
    """
    asked = check_prompt(prompt or default_prompt("description", describer.dialect), REGION)
    texts = [region_prompt(asked, query, describer.dialect) for query in queries]
    questions = [
        Question(item_id(query, number, samples), query.file_name, (query.width, query.height), text, query)
        for query, text in zip(queries, texts, strict=True)
        for number in range(samples)
    ]
    answers = ask(describer, questions, load, seed=seed)
    result = score_description(queries, answers, describer.dialect, samples=samples)
    said = {"model": describer.name, "prompt": asked, "temperature": getattr(describer, "temperature", None)}
    said |= {"top_p": getattr(describer, "top_p", None), "seed": seed}
    kept = tuple(answered(question, text, describer) for question, text in zip(questions, answers.texts, strict=True))
    return replace(result, protocol={**result.protocol, **said}, predictions=kept)


def item_id(query: RegionQuery, number: int, samples: int) -> str:
    """The id of a region's answer: the query's own, with ``#number`` where there are several."""
    return f"{query.query_id}#{number}" if samples > 1 else query.query_id


def description_from_file(
    queries: Sequence[RegionQuery], path: Path, dialect: Dialect | None = None, *, samples: int = 1
) -> Result:
    """`score_description` of a file of predictions (`read_predictions`)."""
    answers = read_predictions(path, [item_id(query, k, samples) for query in queries for k in range(samples)])
    result = score_description(queries, answers, dialect_of(answers, dialect, path), samples=samples)
    return replace(result, protocol={**result.protocol, "model": answers.model, "predictions": path.name})


def score_description(
    queries: Sequence[RegionQuery], answers: Answers, dialect: Dialect, *, samples: int = 1
) -> Result:
    """Figures of answers that are there.

    - ``s_loc``: mean localization score of the answer's own boxes (METHOD §4), 0..1.
    - ``recall@0.5``, ``@0.75``, ``@0.9``: share of the objects inside the regions that some box of the answer overlaps
      that much.
    - ``unmatched_boxes``: share of the answers' boxes whose IoU with every object of the image is under 0.5.
    - ``objects_named``: share of the objects inside whose category the answer names, each as often as it is named.
    - ``objects_placed``: share of the objects inside of which a box with the object's name has an IoU of at least 0.5;
      each box places one object.
    - ``phrases``, ``boxes``, ``words``: mean number of each an answer.

    Args:
        queries: Q regions.
        answers: ``samples`` for each, one region after another.
        dialect: How the model writes boxes.
        samples: Answers a region.
    """
    rows: list[list[float]] = []
    problems = {kind: list(ids) for kind, ids in answers.problems.items()}
    unread, malformed, ids = [], [], []
    texts = iter(answers.texts)
    for query in queries:
        for number in range(samples):
            name, text = item_id(query, number, samples), next(texts)
            grounded = parse(text or "", dialect, (query.width, query.height))
            rows.append(_measure(query, grounded))
            ids.append(name)
            if text is not None and not grounded.boxes:
                unread.append(name)
            if grounded.problems:
                malformed.append(name)
    problems |= {"no_box": unread, "malformed": malformed}
    columns = np.asarray(rows, dtype=np.float64).reshape(-1, len(_COLUMNS)).T
    table = dict(zip(_COLUMNS, columns, strict=True))
    objects = table["objects"]
    shares: dict[str, Share] = {"s_loc": Share.mean(table["s_loc"])}
    for threshold in RECALLS:
        shares[f"recall@{threshold}"] = Share.ratio(table[f"recall@{threshold}"], objects)
    shares["unmatched_boxes"] = Share.ratio(table["unmatched_boxes"], table["boxes"])
    for name in ("objects_named", "objects_placed"):
        shares[name] = Share.ratio(table[name], objects)
    shares |= {name: Share.mean(table[name]) for name in ("phrases", "boxes", "words")}
    said: dict[str, Any] = {
        "dialect": dialect.spec,
        "samples": samples,
        "s_loc": "the answer's own boxes, no detector; an IoU counts when over 0.5",
        "names": "category words in order within a phrase, plural s allowed",
        "ci95": "bootstrap over images",
    }
    images = tuple(query.image_id for query in queries for _ in range(samples))
    return Result(TASK, said, tuple(ids), images, shares, {}, problems)


_COLUMNS = (
    "s_loc",
    "objects",
    *(f"recall@{threshold}" for threshold in RECALLS),
    "boxes",
    "unmatched_boxes",
    "objects_named",
    "objects_placed",
    "phrases",
    "words",
)


def _measure(query: RegionQuery, grounded: GroundedText) -> list[float]:
    """The numbers of `_COLUMNS` of one answer."""
    inside = query.inside
    truth = bx.as_boxes([item.box for item in inside])
    said = bx.as_boxes(grounded.boxes)
    overlaps = bx.iou_matrix(truth, said) if len(said) and len(truth) else np.zeros((len(truth), len(said)))
    best = overlaps.max(axis=1, initial=0.0)
    anywhere = bx.iou_matrix(bx.as_boxes([item.box for item in query.objects]), said) if len(said) else np.zeros((1, 0))
    phrases = [span.phrase for span in grounded.spans]
    owners = [number for number, span in enumerate(grounded.spans) for _ in span.boxes]
    names = [item.category for item in inside]
    same = np.array([[names_category(phrases[k], name) for k in owners] for name in names], dtype=bool)
    return [
        localization_score(inside, grounded.boxes).score,
        len(inside),
        *(float(reaches(best, threshold).sum()) for threshold in RECALLS),
        len(said),
        float((~reaches(anywhere.max(axis=0, initial=0.0), UNMATCHED)).sum()),
        count_named(names, phrases if phrases else [grounded.plain_text]),
        placed(overlaps, same.reshape(overlaps.shape)),
        len(phrases),
        len(_WORD.findall(grounded.plain_text)),
    ]


def placed(overlaps: Floats, same: Bools, threshold: float = 0.5) -> int:
    """How many objects are placed by a box of their own name, each box placing one: best IoU first.

    Args:
        overlaps: IoU ``(objects, boxes)``.
        same: bool ``(objects, boxes)``: whether the box's phrase names the object.
        threshold: What the IoU must reach.

    >>> overlaps = np.array([[0.9, 0.6], [0.8, 0.0]])  # the first box is the first object's, so the second has none
    >>> placed(overlaps, np.ones((2, 2), bool)), placed(overlaps, np.array([[0, 1], [1, 1]], bool))
    (1, 2)
    """
    usable = np.where(same & reaches(overlaps, threshold), overlaps, 0.0)
    count = 0
    while usable.size and usable.max() > 0:
        row, column = np.unravel_index(int(usable.argmax()), usable.shape)
        usable[row, :] = 0.0
        usable[:, column] = 0.0
        count += 1
    return count


def count_named(categories: Sequence[str], phrases: Sequence[str]) -> int:
    """How many of the objects' categories are named, where a phrase names one object.

    >>> count_named(["dog", "dog", "cat"], ["a brown dog", "the cat", "two cats"])
    2
    """
    free = list(phrases)
    count = 0
    for category in categories:
        found = next((k for k, phrase in enumerate(free) if names_category(phrase, category)), None)
        if found is not None:
            del free[found]
            count += 1
    return count


def names_category(phrase: str, category: str) -> bool:
    """Whether the words of a category stand in a phrase one after another; case and a plural s don't matter.

    >>> names_category("two Wine glasses", "wine glass"), names_category("a hotdog", "dog")
    (True, False)
    >>> names_category("a dining table", "Dining Table/Desk")  # Objects365 gives alternatives
    True
    """
    words = [_singular(word) for word in _WORD.findall(phrase.lower())]
    for name in category.lower().replace("_", " ").split("/"):
        wanted = [_singular(word) for word in _WORD.findall(name)]
        width = len(wanted)
        if wanted and any(words[k : k + width] == wanted for k in range(len(words) - width + 1)):
            return True
    return False


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
