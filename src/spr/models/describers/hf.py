"""Multimodal LLMs of transformers as `Describer`: batched generation, one sample per seed (paper, Sec. 3.2)."""

from __future__ import annotations

import copy
import logging
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
    StopStringCriteria,
)

from spr.config import DescriberConfig, make_section
from spr.grounding import Dialect
from spr.models.batching import RefilledBatcher
from spr.models.chat import check_chat_template, check_image_token, check_thinking, render_turn, user_turn
from spr.models.custom_models import check_multimodal, class_name, load_config, load_mllm
from spr.models.describers.answer_tokens import AnswerTokens
from spr.models.describers.generation import Generation, Samples, no_gradients
from spr.models.describers.prompts import Prompt, group_samples, image_keys
from spr.models.describers.rows import Ending, NotResumableError
from spr.models.describers.sampling import SeededSampling, check_sampling
from spr.models.describers.shared_images import SharedImages
from spr.models.dialect_check import check_dialect
from spr.models.errors import ModelError
from spr.models.families import FAMILIES
from spr.models.image_processors import count_image_tokens, encode, load_processor
from spr.models.loading import (
    Source,
    check_adapter,
    check_vocabulary,
    device_of,
    load_adapter,
    model_source,
    placement,
    source_name,
)
from spr.models.model_dialect import choose_dialect
from spr.models.protocols import Answer, DescribeRequest
from spr.records import TRUNCATED

_log = logging.getLogger(__name__)


class HfDescriber:
    """Answers prompts about images with a model of `AutoModelForImageTextToText`, from a folder or the Hub.

    Models of other families than `spr.models.families.FAMILIES` need ``dialect``.

    Args:
        config: The config section, or a model id or folder.
        dialect: A `Dialect` to be used as it is, instead of the section's. One that is given by key is adapted to the
            model's image processor: Qwen2.5-VL's pixels are those of the resized image.
        **fields: With a model id or folder: further fields of `DescriberConfig`.

    Attributes:
        name: ``id@revision``, with ``+folder@digest`` of an adapter. The same name means the same weights.
        dialect: The dialect of its answers.
        processor: The family's processor for images and text.
        model: The model of transformers; an adapter is merged into its weights unless they are quantized.

    Raises:
        ModelError: if the model can't be loaded, or if neither a chat template nor a dialect is known for it.
        ConfigError: for a field that is unknown or out of range.
    """

    def __init__(
        self, config: DescriberConfig | Source, *, dialect: Dialect | str | None = None, **fields: Any
    ) -> None:
        if isinstance(dialect, str):
            fields["dialect"], dialect = dialect, None
        section = make_section(DescriberConfig, config, **fields)
        source, revision = model_source(section.model or ""), section.revision
        self.temperature, self.top_p = section.temperature, section.top_p
        model_config = load_config(source, revision=revision)
        model_type: str = model_config.model_type
        check_multimodal(source, model_type)
        self.family = FAMILIES.get(model_type)
        self.processor = load_processor(source, model_type, family=self.family, revision=revision)
        self.dialect = choose_dialect(dialect or section.dialect, model_type, self.processor.image_processor)
        check_image_token(source, self.processor, model_config)
        check_chat_template(source, self.processor, self.family)
        check_dialect(source, self.processor, self.family, self.dialect)
        if section.thinking:
            check_thinking(source, self.processor, self.family)
        if section.peft_adapter is not None:
            check_adapter(section.peft_adapter, class_name(model_type))
        options = placement(device_of(section.device), section.device_map, section.load_in_4bit)
        options |= {"dtype": section.dtype, "attn_implementation": section.attn_implementation}
        self.model = load_mllm(source, model_config, revision=revision, **options)
        check_vocabulary(source, self.processor.tokenizer, self.model.get_input_embeddings().num_embeddings)
        self.name = source_name(source, revision, self.model)
        if section.peft_adapter is not None:
            self.model = load_adapter(self.model, section.peft_adapter, merge=not section.load_in_4bit)
            self.name += f"+{source_name(section.peft_adapter)}"
        self._prepare(section)

    @classmethod
    def around(cls, model: Any, processor: Any, section: DescriberConfig, *, name: str) -> HfDescriber:
        """A describer of a model that is loaded already, such as one that is being trained.

        Of the section, the dialect, the sampling, `thinking`, the batch size and the number of new tokens are used. The
        model's `generation_config` is replaced. ``name`` is the describer's.
        """
        describer = cls.__new__(cls)
        describer.model, describer.processor, describer.name = model, processor, name
        describer.family = FAMILIES.get(model.config.model_type)
        describer.temperature, describer.top_p = section.temperature, section.top_p
        image_processor = processor.image_processor
        describer.dialect = choose_dialect(section.dialect, model.config.model_type, image_processor)
        if section.thinking:
            check_thinking(name, processor, describer.family)
        describer._prepare(section, trained=True)
        return describer

    def _prepare(self, section: DescriberConfig, *, trained: bool = False) -> None:
        self.thinking, self._trained = section.thinking, trained
        self._limit = section.max_new_tokens
        self._without_refill = None if self.family is not None else "its family is not known"
        self._set_generation(section.max_new_tokens)
        self._run = RefilledBatcher.of(self._answer, section, self.model.device, length=lambda prompt: prompt.length)

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Answer]:
        """One answer per request, with the reason why its generation ended.

        The reason is ``stop`` if the model generated an end-of-turn token within ``max_new_tokens``, ``stop_string`` if
        it generated one of the ``stop_strings`` of its generation_config.json, and ``length`` otherwise. Special tokens
        of a box markup are kept, others are removed. For an image that the family's processor refuses (Qwen: an aspect
        ratio above 200), the answer is empty, without a reason.
        """
        limit = self.family.max_aspect if self.family is not None else None
        sizes = [request.image.size for request in requests]
        readable = [k for k, size in enumerate(sizes) if limit is None or max(size) <= limit * min(size)]
        prompts = self._prompts([requests[k] for k in readable])
        answers = dict(zip(readable, self._run(prompts), strict=True))
        return [answers.get(k, Answer("")) for k in range(len(requests))]

    def with_sampling(
        self, *, temperature: float, top_p: float | None = None, batch_size: int | None = None
    ) -> HfDescriber:
        """A describer with other sampling settings that shares the weights; None keeps a setting."""
        other = copy.copy(self)
        other.temperature, other.top_p = temperature, self.top_p if top_p is None else top_p
        check_sampling(other.temperature, other.top_p)
        other._run = copy.copy(self._run)
        other._run.work = other._answer
        if batch_size is not None:
            other._run.size, other._run.memory = batch_size, None
        return other

    def _prompts(self, requests: Sequence[DescribeRequest]) -> list[Prompt]:
        if not requests:
            return []
        self._check_prompts(requests)
        # Samples and regions ask the same again.
        rendered = {prompt: self.render(prompt) for prompt in dict.fromkeys(request.prompt for request in requests)}
        ids = self.processor.tokenizer(list(rendered.values()), add_special_tokens=False)["input_ids"]
        words = dict(zip(rendered, map(len, ids), strict=True))
        counted = [0] * len(requests)
        if self.family is not None and self.family.counts_image_tokens:
            sizes = [request.image.size[::-1] for request in requests]
            counted = count_image_tokens(self.processor, self.family, sizes)
        return [
            Prompt(request, rendered[request.prompt], words[request.prompt] + image)
            for request, image in zip(requests, counted, strict=True)
        ]

    def _check_prompts(self, requests: Sequence[DescribeRequest]) -> None:
        pattern = self.family.prompt_pattern if self.family is not None else None
        wrong = next((r.prompt for r in requests if pattern is not None and not re.match(pattern, r.prompt)), None)
        if wrong is not None:
            what, expected = f"{self.name} can't answer this prompt", f"one of its tasks: a prompt like {pattern}"
            fix = "set prompts.full and prompts.crop to tasks; docs/florence2-kosmos2.md lists them"
            raise ModelError(what, got=wrong, expected=expected, fix=fix)

    def render(self, prompt: str) -> str:
        """The user's turn and the start of the answer as input text, with one placeholder for the image."""
        return render_turn(self.processor, self.family, user_turn(prompt), thinking=self.thinking)

    def _answer(self, prompts: Sequence[Prompt], size: int) -> Iterator[tuple[int, Answer]]:
        """Yield the index and the answer of each prompt when it is finished; ``size`` are generated at once."""
        if self._without_refill is None:
            options: dict[str, Any] = {}
            if stops := list(self._tokens.stop_strings):
                options["stopping_criteria"] = StoppingCriteriaList(
                    [StopStringCriteria(self.processor.tokenizer, stops)]
                )
            keys = image_keys(prompts)
            equal = self.family is not None and self.family.equal_lengths
            samples = group_samples(prompts, keys, equal_lengths=equal)
            generation = Generation(
                self.model,
                partial(self._inputs, keys=keys, images=self._shared_images(samples, keys, size)),
                size=size,
                ending=Ending(self._ends, self._limit, self.temperature, self.top_p),
                equal_lengths=equal,
                options=options,
                trained=self._trained,
            )
            try:
                for number, ids in generation.run(samples):
                    yield number, self._read(ids)
                return
            except NotResumableError as error:
                _log.info("%s generates in fixed batches: %s", self.name, error)
                self._without_refill = str(error) if error.lasting else None
        for start in range(0, len(prompts), size):
            yield from enumerate(self._answer_batch(prompts[start : start + size]), start)

    def _answer_batch(self, batch: Sequence[Prompt]) -> list[Answer]:
        lengths = {prompt.length for prompt in batch}
        if len(lengths) == 1 or self.family is None or not self.family.equal_lengths:
            return self._generate(batch)
        groups = [[k for k, prompt in enumerate(batch) if prompt.length == length] for length in sorted(lengths)]
        answers = {k: a for ks in groups for k, a in zip(ks, self._generate([batch[k] for k in ks]), strict=True)}
        return [answers[k] for k in range(len(batch))]

    def _inputs(
        self, batch: Sequence[Prompt], *, keys: Mapping[int, bytes] | None = None, images: SharedImages | None = None
    ) -> dict[str, Any]:
        """The model's inputs; ``keys`` of their images are needed with ``images``."""
        parts = [prompt.text for prompt in batch], [prompt.request.image for prompt in batch]
        inputs: dict[str, Any] | None = None
        if images is not None and keys is not None:
            inputs = images.inputs(*parts, [keys[id(image)] for image in parts[1]])
        inputs = inputs or encode(self.processor, *parts)
        for name, part in inputs.items():
            if isinstance(part, Tensor):
                dtype = self.model.dtype if part.is_floating_point() else None
                inputs[name] = part.to(self.model.device, dtype)
        return inputs

    def _shared_images(
        self, samples: Sequence[Samples[Prompt]], keys: Mapping[int, bytes], size: int
    ) -> SharedImages | None:
        """What reads each image once, if several prompts are about one image."""
        uses: Counter[Hashable] = Counter()
        for prompt in samples:
            uses[keys[id(prompt.prompt.request.image)]] += len(list(prompt.split(size)))
        if self.family is None or not self.family.trainable or max(uses.values(), default=0) < 2:
            return None
        return SharedImages(self.model, self.processor, self.family, uses)

    def _generate(self, batch: Sequence[Prompt]) -> list[Answer]:
        inputs = self._inputs(batch)
        # An encoder reads the prompt; its decoder begins with a start token.
        encoded = self.family is not None and self.family.encoder_decoder
        start = 1 if encoded else inputs["input_ids"].shape[1]
        processors = LogitsProcessorList()
        if self.temperature > 0:
            seeds = [prompt.request.seed for prompt in batch]
            processors.append(SeededSampling(seeds, start, temperature=self.temperature, top_p=self.top_p))
        stops = list(self._tokens.stop_strings)
        options = {"tokenizer": self.processor.tokenizer, "stop_strings": stops} if stops else {}
        with no_gradients(self._trained):
            ids = self.model.generate(**inputs, logits_processor=processors, **options)
        return [self._read(row) for row in ids[:, start:].tolist()]

    def _read(self, ids: Sequence[int]) -> Answer:
        text, tokens = self.decode(ids), self._tokens
        # Before the end of turn: a row that ended at a stop string is padded, possibly with the end-of-turn token.
        turn = self.processor.tokenizer.decode(tokens.turn(ids)) if tokens.stop_strings else ""
        if any(stop in turn for stop in tokens.stop_strings):
            return Answer(tokens.before_stop_string(text), "stop_string")
        return Answer(text, "stop" if any(token in self._ends for token in ids) else TRUNCATED)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode an answer up to its end of turn, without special tokens except those of a box markup."""
        return self._tokens.decode(ids)

    def _set_generation(self, max_new_tokens: int) -> None:
        tokenizer = self.processor.tokenizer
        own, turn = self.model.generation_config, self.render("")
        self._tokens = AnswerTokens.of(tokenizer, self.family, self.dialect, own, turn=turn)
        self._ends = self._tokens.ends
        saved = self.model.generation_config
        # A new config: the sampling settings and penalties of the model's folder must not apply.
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=saved.decoder_start_token_id,
            forced_bos_token_id=saved.forced_bos_token_id,
        )
        # Kosmos-2 generates with its language model's config.
        for module in self.model.modules():
            if isinstance(module, GenerationMixin):
                module.generation_config = config
