"""What the dataset card says about prompts: how many there are by task, and what their truth holds."""

from __future__ import annotations

from collections.abc import Iterator

from spr.config.public import public_name
from spr.core.terminal import count_text
from spr.exports.card import CardBody, plain
from spr.exports.marker import ExportPlan
from spr.exports.prompt_rows import PromptStats

_TASKS = {
    "describe": "describe a region; the truth are the objects inside it",
    "detect": "find all objects of one category in the image",
    "locate": "locate the only object of its category in the image",
    "absent": "about a category that is not in the image, in the words of the other questions; the truth is empty",
}
_LABELS = {
    "ignore": "Words don't count when boxes are matched to objects.",
    "name": "A box is matched to an object only if it is named by the object's category.",
    "synonyms": "A box is matched to an object only if it is named by the object's category or a synonym.",
    "phrase": "A box is matched to an object only if its phrase contains the object's category.",
}


def prompt_body(plan: ExportPlan, stats: PromptStats) -> CardBody:
    """What the card says."""
    count = stats.prompts.total()
    return CardBody(
        what="prompts",
        rows=count,
        held_out=stats.held_out,
        counted=count,
        tags=["grpo", "reinforcement-learning", "visual-grounding", "region-description", "spr"],
        intro=list(_intro(plan, count)),
        statistics=list(_statistics(stats)),
        creation="Regions were grown around random objects of images with many objects, until enough objects were "
        "inside (paper, Sec. 3.1). No model took part: prompts and truths come from the annotations.",
        models={"describer": plan.labels.describer},
    )


def _intro(plan: ExportPlan, count: int) -> Iterator[str]:
    yield (
        f"{count_text(count, 'prompts')} for reinforcement learning of a multimodal LLM that localizes what it "
        f"describes, in the format of {plan.format.reader}. Each has an image, a prompt, and the annotated objects "
        "that an answer should place (*truth*), for the spatial rewards of Spatial Preference Rewarding "
        "([arXiv 2510.14374](https://arxiv.org/abs/2510.14374)). There are no answers: the trainer generates them."
    )
    if plan.prompts is not None:
        yield (
            "The truth is JSON that `spr.rewards.Truth.from_json` reads: the objects, with boxes in pixels of the "
            "original image, its size, the dialect of answers, and how they are matched. "
            f"{_LABELS[plan.prompts.labels]}"
        )
        if plan.prompts.tokenizer is not None:
            yield f"It names the tokenizer that decodes answers: `{public_name(plan.prompts.tokenizer)}`."
        elif plan.labels.dialect.special_tokens is not None:
            fix = "give `make` the tokenizer" if plan.format.decodes else "the page on RL trainers says what to set"
            yield (
                "**Boxes of this dialect may be special tokens.** Most trainers remove these from the text of an "
                f"answer before the reward gets it: {fix}."
            )


def _statistics(stats: PromptStats) -> Iterator[str]:
    yield "\n## Tasks\n\n| task | prompts | objects per prompt | what is asked |\n|---|---|---|---|"
    for task, count in stats.prompts.items():
        yield f"| `{task}` | {count:,} | {stats.objects[task] / count:.1f} | {_TASKS[task]} |"
    if stats.unused_synonyms:
        names = plain(", ".join(stats.unused_synonyms))
        yield f"\nNo prompt is about these categories, for which there are synonyms: {names}."
