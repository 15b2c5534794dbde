"""Pairs → what the model reads: tokens, positions and the image's features; and why some can't be trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spr.core.errors import SprError
from spr.core.images import ImageProblem
from spr.models.chat import render_answer, render_turn
from spr.models.families import Family
from spr.models.image_processors import encode
from spr.training.collate import EncodedPair
from spr.training.features import Features, FeatureStore, feature_key
from spr.training.pairs import TrainingPair

NOT_VISION = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


@dataclass(frozen=True, slots=True, eq=False)
class PlannedPair:
    """A pair that will be trained on.

    Attributes:
        pair: As it came.
        turn: The prompt as text.
        chosen, rejected: ``(R,)`` int64, the answers' tokens.
        prompt_tokens: How many tokens the prompt has, the image's included.
        key: Digest of prompt, answers and image.
    """

    pair: TrainingPair
    turn: str
    chosen: Tensor
    rejected: Tensor
    prompt_tokens: int
    key: str

    @property
    def length(self) -> int:
        """Tokens of prompt and both answers."""
        return self.prompt_tokens + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """What the processor makes of a pair's image and prompt; the vision inputs only until the features are there."""

    prompt: Tensor
    positions: Tensor
    vision: dict[str, Tensor]
    key: str


class PairEncoder:
    """Encodes pairs for one model.

    Args:
        model: The model of transformers.
        processor: Its processor, from `spr.models.image_processors.load_processor`.
        family: The entry of its family.
        store: Where features are kept.
        made_by: What identifies model and processor in the features' keys.
        keep: Whether what the processor made of prompt and image is kept with the features, in memory.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        family: Family,
        store: FeatureStore,
        *,
        made_by: str,
        keep: bool,
    ) -> None:
        self.model, self.processor, self.family = model, processor, family
        self.store, self.made_by, self.keep = store, made_by, keep
        self.pad = processor.tokenizer.pad_token_id
        self._kept: dict[str, Read] = {}

    def plan(
        self, pairs: Iterable[TrainingPair], max_length: int, *, with_rejected: bool = True
    ) -> tuple[list[PlannedPair], list[tuple[str, str]]]:
        """Tokenise the answers, count the prompts' tokens and find out what can't be trained on.

        Args:
            pairs: As they come.
            max_length: The most tokens of a prompt with one answer.
            with_rejected: Whether the rejected answers are trained on.

        Returns:
            What is left, in order, and ``(pair_id, reason)`` of what is dropped: `spr.core.reasons.TRAINING_REASONS` and
            `IMAGE_REASONS`.
        """
        planned: list[PlannedPair] = []
        dropped: list[tuple[str, str]] = []
        for pair in pairs:
            try:
                made = self._plan(pair, max_length, with_rejected)
            except ImageProblem as problem:
                made = problem.reason
            if isinstance(made, str):
                dropped.append((pair.pair_id, made))
            else:
                planned.append(made)
        return planned, dropped

    def _plan(self, pair: TrainingPair, max_length: int, with_rejected: bool) -> PlannedPair | str:
        if not pair.chosen.strip() or (with_rejected and not pair.rejected.strip()):
            return "empty_answer"
        if with_rejected and pair.chosen == pair.rejected:
            return "answers_equal"
        turn = render_turn(self.processor, self.family, pair.messages)
        chosen, rejected = (
            self._answer_ids(turn, render_answer(self.processor, self.family, pair.messages, answer))
            for answer in (pair.chosen, pair.rejected)
        )
        answers = (chosen, rejected) if with_rejected else (chosen,)
        if any((ids == self._image_token).any() for ids in answers):
            return "answer_has_image_token"
        prompt_tokens = self._count_prompt(pair, turn)
        if prompt_tokens + max(map(len, answers)) > max_length:
            return "too_long"
        content = json.dumps([turn, pair.chosen, pair.rejected, pair.digest()])
        return PlannedPair(pair, turn, chosen, rejected, prompt_tokens, hashlib.sha256(content.encode()).hexdigest())

    @property
    def _image_token(self) -> int:
        return int(self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token))

    def _answer_ids(self, turn: str, answer: str) -> Tensor:
        """The answer's tokens as they stand behind the prompt, where tokenising both leaves the prompt's alone."""
        tokenizer = self.processor.tokenizer
        before = tokenizer(turn, add_special_tokens=False)["input_ids"]
        whole = tokenizer(turn + answer, add_special_tokens=False)["input_ids"]
        if whole[: len(before)] == before:
            return torch.tensor(whole[len(before) :])
        return torch.tensor(tokenizer(answer, add_special_tokens=False)["input_ids"])

    def _count_prompt(self, pair: TrainingPair, turn: str) -> int:
        if hasattr(self.processor, "_get_num_multimodal_tokens") and not self.family.bidirectional_prompt:
            width, height = pair.size_wh or pair.load().size
            counted = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
            bos = self.processor.tokenizer.bos_token
            special = not (bos and turn.startswith(bos))
            words = len(self.processor.tokenizer(turn, add_special_tokens=special)["input_ids"])
            return words - 1 + int(counted["num_image_tokens"][0])
        return int(encode(self.processor, [turn], [pair.load()])["input_ids"].shape[1])

    def read(self, planned: PlannedPair) -> Read:
        """Load the image and run the processor: work for the CPU, which threads may do ahead."""
        kept = self._kept.get(planned.pair.pair_id)
        if kept is not None:
            return kept
        image = planned.pair.load()
        inputs = encode(self.processor, [planned.turn], [image])
        prompt = inputs["input_ids"][0]
        vision = {name: tensor for name, tensor in inputs.items() if name not in NOT_VISION}
        if len(prompt) != planned.prompt_tokens:
            raise SprError(
                f"The prompt of pair {planned.pair.pair_id} has another number of tokens than counted before",
                got=len(prompt),
                expected=planned.prompt_tokens,
                fix="the image has changed since the training began; start it anew",
            )
        # Ferret's features depend on the regions that the prompt names, too.
        key = feature_key(vision, self.made_by)
        return Read(prompt, self._positions(prompt, vision), vision, key)

    def _positions(self, prompt: Tensor, vision: dict[str, Tensor]) -> Tensor:
        """``(axes, P)``: where the prompt's tokens stand."""
        if hasattr(self.model.model, "get_rope_index"):
            types = (prompt == self._image_token).int()
            positions, _ = self.model.model.get_rope_index(
                input_ids=prompt[None], mm_token_type_ids=types[None], image_grid_thw=vision["image_grid_thw"]
            )
            return torch.as_tensor(positions[:, 0])
        if hasattr(self.model.model, "prompt_positions"):  # CogVLM: the patches of an image share one
            return torch.as_tensor(self.model.model.prompt_positions(prompt[None]))
        return torch.arange(len(prompt))[None] + int(self.family.bidirectional_prompt)

    def finish(self, planned: PlannedPair, read: Read, compute: Callable[[dict[str, Tensor]], Features]) -> EncodedPair:
        """Add the image's features: from the store, or from ``compute``, which runs the vision tower."""
        features: Features | None = self.store.get(read.key)
        if features is None:
            features = compute(read.vision)
            self.store.put(read.key, features)
        pair = planned.pair
        # Only with its features, for without its vision inputs they can't be made again.
        if self.keep and pair.pair_id not in self._kept and self.store.get(read.key) is not None:
            self._kept[pair.pair_id] = replace(read, vision={})
        return EncodedPair(pair.pair_id, read.prompt, read.positions, planned.chosen, planned.rejected, features)


def plan_digest(planned: Sequence[PlannedPair]) -> str:
    """What tells one plan from another: its pairs' texts and images, in their order."""
    return hashlib.sha256("".join(pair.key for pair in planned).encode()).hexdigest()[:16]


def context_length(model: Any, wanted: int | None) -> int:
    """The most tokens of a prompt with an answer: what the config says, at most what the model reads."""
    limit = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2**31)
    return min(wanted or limit, limit)


def processor_digest(processor: Any, family: Family) -> str:
    """What tells one way of encoding from another: tokenizer, image processor, chat template."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    images = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    turn = processor.chat_template or family.turn
    return hashlib.sha256("\0".join([words, images, str(turn), type(processor).__name__]).encode()).hexdigest()[:16]
