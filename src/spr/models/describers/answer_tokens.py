"""The tokens that end an answer, and its text: without control tokens, but with the markup of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spr.grounding import Dialect
from spr.models.families import Family, is_grounding_token


@dataclass(frozen=True, slots=True, eq=False)
class AnswerTokens:
    """How a model's answers end, and how their token ids become text.

    Attributes:
        tokenizer: The model's tokenizer.
        ends: Ids that end the answer: of the generation config, of the tokenizer and of the family.
        hidden: Ids of special tokens that are not part of a box markup.
        stop_strings: Texts that end the answer, from the generation config.
    """

    tokenizer: Any
    ends: frozenset[int]
    hidden: frozenset[int]
    stop_strings: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Any, family: Family | None, dialect: Dialect, generation_config: Any) -> AnswerTokens:
        """Those of a model, given its ``GenerationConfig``. Its sampling settings are not used."""
        saved = generation_config.eos_token_id
        ends = set(saved if isinstance(saved, list) else [saved]) | {tokenizer.eos_token_id}
        vocabulary = tokenizer.get_vocab()
        ends |= {vocabulary.get(token) for token in (family.end_of_turn if family else ())}
        special = {k: str(token) for k, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        hidden = frozenset(k for k, token in special.items() if not is_grounding_token(token, dialect))
        stops = generation_config.stop_strings or []
        stop_strings = (stops,) if isinstance(stops, str) else tuple(stops)
        return cls(tokenizer, frozenset(ends - {None}), hidden, stop_strings)

    def turn(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids before the first one that ends the answer; all of them if there is none."""
        return ids[: next((k for k, token in enumerate(ids) if token in self.ends), len(ids))]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode an answer up to its end of turn, without special tokens except those of a box markup."""
        kept = [token for token in self.turn(ids) if token not in self.hidden]
        # skip_special_tokens would remove the markup of boxes.
        return str(self.tokenizer.decode(kept, clean_up_tokenization_spaces=False))

    def before_stop_string(self, text: str) -> str:
        """The text before the first stop string in it."""
        for stop in self.stop_strings:
            text = text.partition(stop)[0]
        return text
