"""Objects → pairs about absent objects, and about present ones as their counterpart (our choice, `pairing.negatives`).

A model that is trained on pairs about present objects only may answer each question with a box. Here, "it is not there"
is the chosen answer about an absent object, and a box of another object is the rejected one; about a present object
it is the other way round. Nothing is generated: the texts come from the annotations, and there are no scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from spr.config import Config, PairingConfig
from spr.core.errors import GroundingError
from spr.core.progress import advance
from spr.core.randomness import stable_hash
from spr.core.reasons import DROP_REASONS
from spr.grounding import Dialect, GroundedText, get_dialect, parse, render
from spr.grounding.markup import Brackets
from spr.grounding.names import readable_names
from spr.models.questions import EXPRESSION, locate_prompt
from spr.pipeline.stage import Drops, OnDrop, Stage
from spr.records import Box, ImageObject, ImageObjects, QuestionKind, QuestionPair, Span
from spr.records.schemas import NEGATIVES, from_table, to_table
from spr.runs.store import StageOutput

NAME = "negatives"


def make_questions(
    images: Iterable[ImageObjects],
    dialect: Dialect,
    pairing: PairingConfig,
    *,
    model: str = "",
    seed: int = 0,
    on_drop: OnDrop = lambda *_: None,
) -> list[QuestionPair]:
    """The pairs about absent objects, and about present ones, of images.

    Args:
        images: The images, which determine the order of the pairs.
        dialect: How the model writes boxes.
        pairing: How many questions per image, about which categories, and in which words.
        model: The model's name in the config, for its own wording.
        seed: Seed of the choice of present objects and of wrong boxes.
        on_drop: Called for each image that has fewer questions than wanted.
    """
    prompt = pairing.locate_prompt or locate_prompt(dialect, model)
    questions: list[QuestionPair] = []
    for image in images:
        advance()
        try:
            made = _questions_about(image, dialect, pairing, prompt, seed)
        except GroundingError:
            made = "not_renderable"
        if isinstance(made, str):
            on_drop("image", image.image_id, made)
        else:
            questions += made
    return questions


def _questions_about(
    image: ImageObjects, dialect: Dialect, pairing: PairingConfig, prompt: str, seed: int
) -> list[QuestionPair] | str:
    """The pairs of an image, or the reason why it has none."""
    askable = image.askable
    if askable is None or not image.objects:
        return "no_absent_category"
    absent: tuple[str, ...] = getattr(askable, pairing.negatives_from)[: pairing.negatives]
    if not absent:
        return "no_absent_category"

    def rank(kind: str, name: str) -> int:
        return stable_hash(seed, kind, image.image_id, name)

    by_category: dict[str, list[ImageObject]] = {}
    for item in image.objects:
        by_category.setdefault(item.category, []).append(item)
    single = [own[0] for name, own in by_category.items() if name in askable.single and len(own) == 1]
    if pairing.positives:
        if not single:
            return "no_present_category"
        absent = absent[: len(single)]
    present = sorted(single, key=lambda item: rank("present", item.category))[: len(absent)]
    wrong = [min(image.objects, key=lambda item: rank(f"wrong box of {name}", item.id)) for name in absent]
    names = readable_names([*by_category, *absent])
    words = dict(zip([*by_category, *absent], names, strict=True))
    asked: list[tuple[QuestionKind, str, Box]] = [
        ("absent", name, item.box) for name, item in zip(absent, wrong, strict=True)
    ]
    asked += [("present", item.category, item.box) for item in present if pairing.positives]
    pairs, numbers = [], {"absent": 0, "present": 0}
    for kind, category, box in asked:
        there, located = located_at(words[category], box, dialect, (image.width, image.height))
        refusal = pairing.absent_answer.replace("{category}", words[category])
        answers: dict[str, Any] = {"chosen": there, "chosen_spans": (located,)}
        answers |= {"rejected": refusal, "rejected_spans": ()}
        if kind == "absent":
            answers = {"chosen": refusal, "chosen_spans": (), "rejected": there, "rejected_spans": (located,)}
        if parse(refusal, dialect, (image.width, image.height)).boxes:
            return "not_renderable"
        pairs.append(
            QuestionPair(
                query_id=f"{image.image_id}/{kind}-{numbers[kind]}",
                image_id=image.image_id,
                file_name=image.file_name,
                width=image.width,
                height=image.height,
                category=category,
                expression=f"the {words[category]}",
                prompt=prompt.replace(EXPRESSION, f"the {words[category]}"),
                **answers,
                kind=kind,
                split=image.split,
            )
        )
        numbers[kind] += 1
    return pairs


def located_at(name: str, box: Box, dialect: Dialect, size_wh: tuple[int, int]) -> tuple[str, Span]:
    """The answer that an object is in a box, and its phrase with the box (xyxy pixels of the image).

    Models that write brackets answer with the box alone; the others label it.

    Raises:
        GroundingError: if the name can't be written in the dialect.

    >>> located_at("dog", (10, 15, 30, 20), get_dialect("llava"), (100, 100))[0]
    '[0.10, 0.15, 0.30, 0.20]'
    >>> located_at("dog", (10, 15, 30, 20), get_dialect("qwen3_vl"), (100, 100))[0]
    '[{"bbox_2d": [100, 150, 300, 200], "label": "dog"}]'
    """
    phrase = "" if isinstance(dialect.markup, Brackets) else name
    span = Span(phrase, 0, len(phrase), (box,))
    return render(GroundedText(phrase, (span,)), dialect, size_wh), span


def process(tables: Mapping[str, pa.Table], config: Config) -> StageOutput:
    """`make_questions` on a shard of the table `objects`; the table `candidates` says how the model writes boxes."""
    drops = Drops()
    images, dialects = from_table(tables["objects"], ImageObjects), tables["candidates"]["dialect"]
    questions: list[QuestionPair] = []
    if len(dialects):
        model = config.describer.model if config.describer is not None else None
        questions = make_questions(
            images,
            get_dialect(dialects[0].as_py()),
            config.pairing,
            model=model or "",
            seed=config.seed,
            on_drop=drops.add,
        )
    else:
        for image in images:
            advance()
            drops.add("image", image.image_id, "no_candidate_in_shard")
    return StageOutput(to_table(questions, QuestionPair), drops.table(NAME, "image"))


def _wanted(config: Config) -> bool:
    return config.pairing.negatives > 0


FIELDS = ("negatives", "negatives_from", "positives", "locate_prompt", "absent_answer")
"""The fields of `pairing` that this stage depends on; the stage `pairs` depends on the others."""

STAGE = Stage(
    NAME,
    version=1,
    unit="questions",
    kind="image",
    schema=NEGATIVES,
    process=process,
    reasons=DROP_REASONS[NAME],
    inputs=("candidates", "objects"),
    sections=("seed", *(f"pairing.{name}" for name in FIELDS)),
    wanted=_wanted,
)
