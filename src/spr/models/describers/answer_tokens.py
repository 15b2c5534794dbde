"""The tokens that end an answer, and its text: without control tokens, but with the markup of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spr.grounding import Dialect
from spr.models.families import Family
from spr.models.model_dialect import control_ids
from spr.models.thinking import Thinking


@dataclass(frozen=True, slots=True, eq=False)
class AnswerTokens:
    """How a model's answers end, and how their token ids become text.

    Attributes:
        tokenizer: The model's tokenizer.
        ends: Ids that end the answer: of the generation config, of the tokenizer and of the family.
        hidden: Ids of special tokens that are not part of a box markup.
        stop_strings: Texts that end the answer, from the generation config.
        thinking: How the family reasons, if it does: the text says where the reasoning before an answer ends.
        opened: Whether the turn already begins the block of reasoning.
    """

    tokenizer: Any
    ends: frozenset[int]
    hidden: frozenset[int]
    stop_strings: tuple[str, ...]
    thinking: Thinking | None = None
    opened: bool = False

    @classmethod
    def of(
        cls, tokenizer: Any, family: Family | None, dialect: Dialect, generation_config: Any, *, turn: str = ""
    ) -> AnswerTokens:
        """Those of a model, given its ``GenerationConfig``. Its sampling settings are not used.

        ``turn`` is the text that answers follow. Reasoning is also removed from the answers of models that were told
        not to: the larger Gemma 4 can write an empty block.
        """
        saved = generation_config.eos_token_id
        ends = set(saved if isinstance(saved, list) else [saved]) | {tokenizer.eos_token_id}
        vocabulary = tokenizer.get_vocab()
        ends |= {vocabulary.get(token) for token in (family.end_of_turn if family else ())}
        how = family.thinking if family is not None else None
        marks = (how.start, how.end) if how is not None else ()
        hidden = control_ids(tokenizer, dialect, keep=marks.__contains__)
        stops = generation_config.stop_strings or []
        stop_strings = (stops,) if isinstance(stops, str) else tuple(stops)
        opened = how is not None and how.opens(turn)
        return cls(tokenizer, frozenset(ends - {None}), hidden, stop_strings, how, opened)

    def turn(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids before the first one that ends the answer; all of them if there is none."""
        return ids[: next((k for k, token in enumerate(ids) if token in self.ends), len(ids))]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode an answer up to its end of turn, without special tokens except those of a box markup.

        Reasoning before it is marked as `spr.grounding.final_answer` reads it.
        """
        kept = [token for token in self.turn(ids) if token not in self.hidden]
        # skip_special_tokens would remove the markup of boxes.
        text = str(self.tokenizer.decode(kept, clean_up_tokenization_spaces=False))
        return text if self.thinking is None else self.thinking.marked(text, opened=self.opened)

    def before_stop_string(self, text: str) -> str:
        """The text before the first stop string in it."""
        for stop in self.stop_strings:
            text = text.partition(stop)[0]
        return text
