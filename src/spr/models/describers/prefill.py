"""The first step of generation: prompts go through the model once, by the preparations of its own `generate`.

`generate` is called with a decoding method of ours, so that encoders, positions and masks are those of the family's own
code. The method runs the model on the prompts and keeps what further steps need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicCache

_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


@dataclass(slots=True, eq=False)
class Prefilled:
    """Prompts that the model has read.

    Attributes:
        model: The (inner) model that generates.
        logits: The next token's, ``(prompts, vocabulary)``, float32.
        cache: The prompts' keys, values and states.
        mask: ``(prompts, tokens)``, on the CPU; False for the padding before a prompt.
        input_ids: ``(prompts, tokens)``.
        positions: Positions of the next tokens, ``(…, prompts, 1)``; None if the model counts the cache's columns.
        config: How sequences end.
        criteria: Conditions on their tokens that end sequences, apart from their length and their last token.
        processors: What `generate` would apply to the logits.
        settings: Further arguments of the model's `prepare_inputs_for_generation`.
        token_types: The kinds of the next tokens, ``(1, 1)``, by the argument's name.
    """

    model: Any
    logits: Tensor
    cache: Any
    mask: Tensor
    input_ids: Tensor
    positions: Tensor | None
    config: GenerationConfig
    criteria: StoppingCriteriaList
    processors: LogitsProcessorList
    settings: dict[str, Any]
    token_types: dict[str, Tensor]

    @property
    def lengths(self) -> list[int]:
        """Numbers of tokens without padding."""
        return [int(number) for number in self.mask.sum(1).tolist()]


def prefill(model: Any, inputs: Mapping[str, Any], **options: Any) -> Prefilled:
    """Run a model on prompts, padded on the left. ``options`` are further ones of `generate`."""
    found: list[Prefilled] = []

    def method(
        inner: Any,
        input_ids: Tensor,
        *,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **arguments: Any,
    ) -> Tensor:
        prepared = inner.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **arguments)
        outputs = inner(**prepared, return_dict=True)
        mask = arguments.get("attention_mask")
        positions = prepared.get("position_ids")
        settings = {k: v for k, v in arguments.items() if isinstance(v, bool | int)}
        types = {name: prepared[name] for name in _TOKEN_TYPES if prepared.get(name) is not None}
        found.append(
            Prefilled(
                model=inner,
                logits=outputs.logits[:, -1].float(),
                cache=arguments.get("past_key_values"),
                mask=(torch.ones_like(input_ids) if mask is None else mask).bool().cpu(),
                input_ids=input_ids,
                positions=None if positions is None else positions[..., -1:] + 1,
                config=generation_config,
                criteria=StoppingCriteriaList(c for c in stopping_criteria if hasattr(c, "stop_strings")),
                processors=logits_processor,
                settings=settings,
                # Those of text: the kinds of the last token of a prompt, and 0 where images have others.
                token_types={
                    name: types[name][:1, -1:] if name == _TOKEN_TYPES[0] else types[name].new_zeros(1, 1)
                    for name in types
                },
            )
        )
        return input_ids

    model.generate(**inputs, custom_generate=method, **options)
    return found[0]


def why_not_resumed(prompts: Prefilled) -> str | None:
    """Why further steps can't be done from these prompts; None if they can."""
    cache = prompts.cache
    if not isinstance(cache, DynamicCache):
        return f"its cache is a {type(cache).__name__}"
    if cache.get_seq_length() != prompts.mask.shape[1]:
        return "it does not keep the keys of its prompts"
    return None if bool(prompts.mask[:, -1].all()) else "its prompts are padded on the right"


def other_processors(prompts: Prefilled) -> str | None:
    """The processors of logits that `generate` would apply, apart from a minimum number of new tokens; None if none."""
    known = (
        () if prompts.config.min_new_tokens is None else (MinNewTokensLengthLogitsProcessor, MinLengthLogitsProcessor)
    )
    return ", ".join(type(item).__name__ for item in prompts.processors if type(item) not in known) or None
