"""How a model is asked to locate an object."""

from __future__ import annotations

from spr.grounding import Dialect

EXPRESSION = "{expression}"
"""The placeholder of a question for what is to be located."""
EMBEDDED_PROMPT = "Where is {expression}?"  # the wording that the embedded describer was trained on


def locate_prompt(dialect: Dialect, model: str) -> str:
    """The question of a model's family, with `EXPRESSION`; ``model`` is its name in the config, empty if unknown.

    >>> from spr.grounding import get_dialect
    >>> locate_prompt(get_dialect("paligemma"), "google/paligemma2-3b-mix-448")
    'detect {expression}'
    """
    return EMBEDDED_PROMPT if model.startswith("embedded/") else dialect.rec_prompt
