"""The default question of each benchmark."""

from __future__ import annotations

from typing import Literal

from spr.config import PromptsConfig
from spr.core.errors import ConfigError
from spr.grounding import Dialect, render_box
from spr.records import RegionQuery

EXPRESSION, REGION = "{expression}", "{region}"

GROUNDING = "What are the locations of {phrases}?"
"""The question about a sentence's phrases, Ferret's; ``{phrases}`` are lower case, divided by a comma and a space."""

EMBEDDED: dict[str, str] = {
    "rec": "Where is {expression}?",
    "description": "Describe the region {region} and locate its objects.",
}
"""What the embedded describer was trained on (`tools.embedded.texts.PROMPTS`)."""


def default_prompt(task: Literal["rec", "description"], dialect: Dialect, model: str = "") -> str:
    """The question of a task, for models of a dialect.

    Args:
        task: ``rec`` or ``description``.
        dialect: How the model writes boxes.
        model: The model as it was asked for: those that ship with the package have their own wording.
    """
    if model.startswith("embedded/"):
        return EMBEDDED[task]
    return dialect.rec_prompt if task == "rec" else dialect.description_prompt or PromptsConfig().full


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
