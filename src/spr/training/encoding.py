"""From a preference pair to what the model reads.

`PairEncoder` encodes pairs: `plan` before the training starts, `process` in threads ahead of the model, and `finish`
with the vision tower.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spr.core.errors import ConfigError, SprError
from spr.core.images import ImageProblem
from spr.core.progress import advance
from spr.grounding import Dialect
from spr.grounding.text import Range
from spr.models.chat import RenderedAnswer, image_token_ids, render_answer, render_turn
from spr.models.continuation import continue_tokens
from spr.models.errors import ModelError
from spr.models.families import Family
from spr.models.image_features import Features
from spr.models.image_processors import count_image_tokens, encode
from spr.training.batches import EncodedPair
from spr.training.boxes import changed_numbers, token_weights
from spr.training.pairs import TrainingPair
from spr.training.vision_cache import FeatureStore, MemoryFeatures, feature_key

NO_IMAGE = ""
"""The key of the features of a prompt without an image."""
NOT_VISION = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
"""Outputs of processors that are not inputs of the vision tower."""


@dataclass(frozen=True, slots=True, eq=False)
class PlannedPair:
    """A pair that can be trained on, with its prompt as rendered by the chat template.

    The answers' tokens are ``(R,)`` int64, and their weights ``(R,)`` float32, or None if all are 1; ``prompt_tokens``
    counts the prompt's with those of the image; ``key`` is the hex digest of prompt, answers, image and weights.
    """

    pair: TrainingPair
    turn: str
    chosen: Tensor
    rejected: Tensor
    prompt_tokens: int
    key: str
    chosen_weights: Tensor | None = None
    rejected_weights: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens of the prompt and both answers."""
        return self.prompt_tokens + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedPair:
    """A pair's image and prompt after the processor.

    ``prompt`` are ``(P,)`` int64 tokens, ``positions`` ``(axes, P)`` int64. ``vision`` are the inputs of the vision
    tower, empty once the features are kept, under ``key``. ``image_tokens`` is ``(P,)`` bool, true for the tokens that
    attend to each other in both directions; None if there are none.
    """

    prompt: Tensor
    positions: Tensor
    vision: dict[str, Tensor]
    key: str
    image_tokens: Tensor | None = None


class PairEncoder:
    """Encodes pairs for a transformers model, with its processor from `spr.models.image_processors.load_processor`.

    To `plan` only, the model may be None. ``identity`` identifies both in the features' keys. With a `MemoryFeatures`
    store, processed pairs are kept as well.
    ``box_weight`` is `training.box_token_weight`; other values than 1 need the ``dialect`` of the boxes in the answers.

    Raises:
        ConfigError: if ``box_weight`` is not 1, and the tokenizer does not report which characters a token stands for.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        family: Family,
        store: FeatureStore,
        *,
        identity: str,
        box_weight: float = 1.0,
        dialect: Dialect | None = None,
    ) -> None:
        self.model, self.processor, self.family = model, processor, family
        self.box_weight, self.dialect = box_weight, dialect
        if box_weight != 1 and not processor.tokenizer.is_fast:
            message = "`training.box_token_weight` needs a tokenizer that reports which characters a token stands for"
            fix = "set training.box_token_weight=1, or add a tokenizer.json to the model's folder"
            raise ConfigError(message, got=type(processor.tokenizer).__name__, expected="a fast tokenizer", fix=fix)
        self.store, self.identity = store, identity
        self.pad = processor.tokenizer.pad_token_id
        self._image_token = int(processor.tokenizer.convert_tokens_to_ids(processor.image_token))
        vocabulary, ends = processor.tokenizer.get_vocab(), [processor.tokenizer.eos_token, *family.end_of_turn]
        self._ends = torch.tensor([vocabulary[end] for end in ends if end in vocabulary])
        self._image_markup = family.image_markup or processor.image_token
        markup = processor.tokenizer(self._image_markup, add_special_tokens=False)["input_ids"]
        special = {k for k, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
        markup = [token for token in markup if token in special]
        self._image_tokens = torch.tensor([self._image_token, *markup, *image_token_ids(processor)])
        self._kept: dict[str, ProcessedPair] = {}

    def plan(
        self, pairs: Iterable[TrainingPair], max_length: int, *, with_rejected: bool = True
    ) -> tuple[list[PlannedPair], list[tuple[str, str]]]:
        """Tokenize answers, count the tokens of prompts, and drop the pairs that can't be trained on.

        Returns the remaining pairs in order, and ``(pair_id, reason)`` for each dropped one; the reasons are keys of
        `spr.core.reasons.DROP_REASONS`. ``max_length`` is the maximum number of tokens of a
        prompt with one answer.
        """
        planned: list[PlannedPair] = []
        dropped: list[tuple[str, str]] = []
        for pair in pairs:
            advance()
            try:
                result = self._plan(pair, max_length, with_rejected)
            except ImageProblem as problem:
                result = problem.reason
            except ModelError as error:  # the chat template refuses its messages
                got = f"{pair.pair_id}: {error.got}"
                raise ModelError(error.what, got=got, expected=error.expected, fix=error.fix) from error
            if isinstance(result, PlannedPair):
                planned.append(result)
            else:
                dropped.append((pair.pair_id, result))
        return planned, dropped

    def _plan(self, pair: TrainingPair, max_length: int, with_rejected: bool) -> PlannedPair | str:
        if pair.excluded is not None:
            return pair.excluded
        with_rejected = with_rejected and not pair.supervised
        if not pair.chosen.strip() or (with_rejected and not pair.rejected.strip()):
            return "empty_answer"
        if with_rejected and pair.chosen == pair.rejected:
            return "answers_equal"
        turn = render_turn(self.processor, self.family, pair.messages)
        rendered = [
            render_answer(self.processor, self.family, pair.messages, answer) for answer in (pair.chosen, pair.rejected)
        ]
        if rendered[0].reasoning == rendered[1].reasoning:
            turn += rendered[0].reasoning
            rendered = [answer._replace(before="") if answer.reasoning else answer for answer in rendered]
        if not pair.chosen_complete:
            rendered[0] = rendered[0]._replace(end="")
        if not pair.rejected_complete:
            rendered[1] = rendered[1]._replace(end="")
        (chosen, chosen_weights), (rejected, rejected_weights) = (
            self._answer_ids(turn, answer, numbers)
            for answer, numbers in zip(rendered, self._changed_numbers(pair, rendered), strict=True)
        )
        answers = (chosen, rejected) if with_rejected else (chosen,)
        if any(torch.isin(ids, self._image_tokens).any() for ids in answers):
            return "answer_has_image_token"
        bodies = [ids[:-1] if said.end else ids for ids, said in zip(answers, rendered, strict=False)]
        if any(torch.isin(ids, self._ends).any() for ids in bodies):
            return "answer_has_end_of_turn"
        prompt_tokens = self._count_prompt(pair, turn)
        if prompt_tokens + max(map(len, answers)) > max_length:
            return "too_long"
        content: list[Any] = [turn, *map("".join, rendered), pair.digest()]
        if pair.supervised:
            content.append("supervised")
        if not (pair.chosen_complete and pair.rejected_complete):
            content.append({"complete": [pair.chosen_complete, pair.rejected_complete]})
        weights = chosen_weights, rejected_weights
        if any((part != 1).any() for part in weights if part is not None):
            content.append({"weights": [part.tolist() for part in weights if part is not None]})
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return PlannedPair(pair, turn, chosen, rejected, prompt_tokens, key, *weights)

    def _changed_numbers(
        self, pair: TrainingPair, rendered: Sequence[RenderedAnswer]
    ) -> tuple[list[Range] | None, list[Range] | None]:
        """Where the numbers of the changed boxes are in the two rendered answers."""
        if self.box_weight == 1 or self.dialect is None:
            return None, None
        if pair.mixed:  # all tokens weigh the same
            return [], []
        size_wh = pair.size_wh or pair.load().size
        chosen, rejected = (answer.text for answer in rendered)
        found = [changed_numbers(*texts, self.dialect, size_wh) for texts in ((chosen, rejected), (rejected, chosen))]
        starts = [len(answer.before) for answer in rendered]
        first, second = (
            [(start + begin, start + end) for begin, end in ranges] for start, ranges in zip(starts, found, strict=True)
        )
        return first, second

    def _answer_ids(
        self, turn: str, answer: RenderedAnswer, numbers: Sequence[Range] | None
    ) -> tuple[Tensor, Tensor | None]:
        """The answer's tokens after the prompt, and their weights if ``numbers`` are given, which are places in it."""
        weighted = numbers is not None
        ids, places = continue_tokens(self.processor.tokenizer, turn, "".join(answer), offsets=weighted)
        weights = token_weights(places or [], numbers, self.box_weight) if numbers is not None else None
        return torch.tensor(ids), weights

    @property
    def trains_without_image(self) -> bool:
        """Whether the model's family can be trained on prompts without an image.

        Not prefix language models, nor the ported ones, whose layers need the image's place.
        """
        return self.family.custom is None and not self.family.bidirectional_prompt

    def _words(self, turn: str) -> list[int]:
        """The tokens of a prompt, without those of an image."""
        bos = self.processor.tokenizer.bos_token
        special = not (bos and turn.startswith(bos))
        return list(self.processor.tokenizer(turn, add_special_tokens=special)["input_ids"])

    def _count_prompt(self, pair: TrainingPair, turn: str) -> int:
        if not pair.has_image:
            return len(self._words(turn))
        if self.family.counts_image_tokens:
            width, height = pair.size_wh or pair.load().size
            (counted,) = count_image_tokens(self.processor, self.family, [(height, width)])
            marked = turn.replace(self.processor.image_token, self._image_markup)
            return len(self._words(marked)) - 1 + counted
        return int(encode(self.processor, [turn], [pair.load()])["input_ids"].shape[1])

    def process(self, planned: PlannedPair) -> ProcessedPair:
        """Load the image and run the processor. Bound to the CPU; threads may run it ahead of the model."""
        if (kept := self._kept.get(planned.pair.pair_id)) is not None:
            return kept
        if not planned.pair.has_image:
            prompt = torch.tensor(self._words(planned.turn))
            positions = torch.arange(len(prompt)).repeat(3 if self.family.positions == "grid" else 1, 1)
            none = torch.zeros_like(prompt, dtype=torch.bool) if self.family.bidirectional_image else None
            return ProcessedPair(prompt, positions, {}, NO_IMAGE, none)
        inputs = encode(self.processor, [planned.turn], [planned.pair.load()])
        prompt = inputs["input_ids"][0]
        vision = {name: tensor for name, tensor in inputs.items() if name not in NOT_VISION}
        if len(prompt) != planned.prompt_tokens:
            message = f"The prompt of pair {planned.pair.pair_id} has another number of tokens than counted before"
            fix = "the image has changed since the training began; restore it or start the training again"
            raise SprError(message, got=len(prompt), expected=planned.prompt_tokens, fix=fix)
        # The key covers all vision inputs, because Ferret's features also depend on the regions in the prompt.
        key = feature_key(vision, self.identity)
        image_tokens = inputs["mm_token_type_ids"][0] == 1 if self.family.bidirectional_image else None
        return ProcessedPair(prompt, self._positions(prompt, vision), vision, key, image_tokens)

    def _positions(self, prompt: Tensor, vision: dict[str, Tensor]) -> Tensor:
        """The positions of the prompt's tokens, ``(axes, P)``."""
        model, ids = self.model.model, prompt[None]
        match self.family.positions:
            case "grid":
                types, name = (ids == self._image_token).int(), self.family.image_grid
                positions, _ = model.get_rope_index(ids, mm_token_type_ids=types, **{name: vision[name]})
                return torch.as_tensor(positions[:, 0])
            case "own":
                return torch.as_tensor(model.prompt_positions(ids))
            case "one_based":
                return torch.arange(len(prompt))[None] + 1
            case "text":
                return torch.arange(len(prompt))[None]

    def finish(
        self, planned: PlannedPair, processed: ProcessedPair, compute: Callable[[dict[str, Tensor]], Features]
    ) -> EncodedPair:
        """Add the image's features, from the store or from ``compute``, which runs the vision tower."""
        answers = planned.chosen, planned.rejected
        weights = planned.chosen_weights, planned.rejected_weights
        name, places = planned.pair.pair_id, (processed.prompt, processed.positions)
        if processed.key == NO_IMAGE:
            return EncodedPair(name, *places, *answers, None, *weights, image_tokens=processed.image_tokens)
        features: Features | None = self.store.get(processed.key)
        if features is None:
            features = compute(processed.vision)
            self.store.put(processed.key, features)
        # Only if the features are kept too: without its vision inputs they can't be computed again.
        if isinstance(self.store, MemoryFeatures) and self.store.get(processed.key) is not None:
            self._kept[name] = replace(processed, vision={})
        return EncodedPair(name, *places, *answers, features, *weights, image_tokens=processed.image_tokens)


def plan_digest(planned: Sequence[PlannedPair]) -> str:
    """Hex digest of the pairs' texts and images, in order."""
    return hashlib.sha256("".join(pair.key for pair in planned).encode()).hexdigest()[:16]


def context_length(config: Any, max_length: int | None) -> int:
    """Maximum number of tokens of a prompt with an answer: ``max_length``, but at most the model's context length."""
    limit = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2**31)
    return min(max_length or limit, limit)


def processor_digest(processor: Any, family: Family) -> str:
    """Hex digest of what determines the encoding: tokenizer, image processor and chat template."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    images = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    turn = processor.chat_template or family.turn
    return hashlib.sha256("\0".join([words, images, str(turn), type(processor).__name__]).encode()).hexdigest()[:16]
