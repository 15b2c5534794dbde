"""What models are asked, by dialect: the wording that each family's own evaluation or card uses, as data."""

from __future__ import annotations

from typing import Literal

from spr.config import PromptsConfig
from spr.core.errors import ConfigError
from spr.grounding import Dialect, render_box
from spr.records import RegionQuery

EXPRESSION, REGION = "{expression}", "{region}"

_SENTENCE = "Please provide the bounding box coordinate of the region this sentence describes: {expression}"
_JSON = "Locate {expression}, output its bbox coordinates using JSON format."

REC: dict[str, str] = {
    "ferret": "What is the location of {expression} in the image?",
    "cogvlm": "Where is {expression}? answer in [[x0,y0,x1,y1]] format.",
    "llava": _SENTENCE,
    "llava_onevision": _SENTENCE,
    "shikra": "Where is {expression} in the image? Answer with its coordinates.",
    "kosmos2": "<grounding><phrase>{expression}</phrase>",
    "qwen_vl": "Give the bounding box of {expression}.",
    "qwen2_vl": "Give the bounding box of {expression}.",
    "qwen2_5_vl": _JSON,
    "qwen3_vl": _JSON,
    "internvl": _SENTENCE.replace("{expression}", "<ref>{expression}</ref>"),
    "paligemma": "detect {expression}",
    "florence2": "<CAPTION_TO_PHRASE_GROUNDING>{expression}",
    "minicpm_v": _SENTENCE,
}
"""The question about a referring expression, by dialect; ``--prompt`` replaces it."""

GROUNDING = "What are the locations of {phrases}?"
"""The question about a sentence's phrases, Ferret's; ``{phrases}`` are lower case, divided by a comma and a space."""

EMBEDDED: dict[str, str] = {
    "rec": "Where is {expression}?",
    "description": "Describe the region {region} and locate its objects.",
}
"""What the embedded describer was trained on (`spr.embedded.texts.PROMPTS`)."""


def default_prompt(task: Literal["rec", "description"], dialect: Dialect, model: str = "") -> str:
    """The question of a task, for models of a dialect.

    Args:
        task: ``rec`` or ``description``.
        dialect: How the model writes boxes.
        model: The model as it was asked for: those that ship with the package have their own wording.
    """
    if model.startswith("embedded/"):
        return EMBEDDED[task]
    return REC[dialect.key] if task == "rec" else PromptsConfig().full


def check_prompt(prompt: str, *fields: str) -> str:
    """Return the prompt, or raise if it lacks one of its fields.

    Raises:
        ConfigError: naming what is missing.
    """
    for name in fields:
        if name not in prompt:
            fix = f"put {name} where it belongs"
            raise ConfigError(f"--prompt lacks {name}", got=repr(prompt), expected=f"a question with {name}", fix=fix)
    return prompt


def region_prompt(prompt: str, query: RegionQuery, dialect: Dialect) -> str:
    """The question about a region of the whole image, its box in the model's dialect (METHOD §3.4)."""
    region = render_box(query.region, dialect, (query.width, query.height), region=True)
    return prompt.replace(REGION, region)
