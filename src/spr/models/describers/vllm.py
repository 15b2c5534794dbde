"""vLLM's offline engine as `Describer`: all requests of a call at once, each with its own seed. Needs a GPU.

Written for vLLM 0.33, the oldest version that is accepted. vLLM is imported with the first model: that takes seconds.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import GenerationConfig

from spr.config import DescriberConfig, make_section
from spr.core.errors import SprError
from spr.core.progress import advance
from spr.core.views import pad_to_square
from spr.grounding import Dialect
from spr.models.chat import check_chat_template, check_image_token, check_thinking, render_turn, user_turn
from spr.models.custom_models import check_multimodal, class_name, load_config
from spr.models.describers.answer_tokens import AnswerTokens
from spr.models.describers.vllm_adapter import MERGE, lora_rank
from spr.models.dialect_check import check_dialect
from spr.models.errors import ModelError
from spr.models.families import FAMILIES, Family
from spr.models.image_processors import load_processor
from spr.models.loading import Source, check_adapter, check_vocabulary, model_source, source_name
from spr.models.model_dialect import choose_dialect
from spr.models.protocols import Answer, DescribeRequest

OLDEST = (0, 33)
"""The oldest version of vLLM with the signatures and the treatment of token ids that this file relies on."""

_USE_HF = "use describer.backend: hf"
_ENVIRONMENT = {
    # The scheduler runs in this process: a process of its own would outlive a worker that is killed, and keep the GPU.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",  # otherwise it sends statistics to its developers
    # For tensor parallelism: a fork of this process would copy locks that its threads hold.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


class VllmDescriber:
    """Answers prompts about images with vLLM's offline engine, which runs in this process (on several GPUs, in others).

    Prompts are the token ids that `spr.models.describers.hf.HfDescriber` gives to the model, and images have the same
    size; pixels and answers differ by rounding.

    Args:
        config: The config section, or a model id or folder.
        dialect: A `Dialect` to be used as it is, instead of the section's.
        **fields: With a model id or folder: further fields of `DescriberConfig`.

    Attributes:
        name: ``id@revision``, with ``+folder@digest`` of an adapter. The same name means the same weights.
        dialect: The dialect of its answers.

    Raises:
        ModelError: if the model can't be loaded, if vLLM does not run its family as SPR assumes, or if vLLM can't
            apply the adapter.
        SprError: if vLLM is older than 0.33.
        ConfigError: for a field that is unknown, out of range or without effect.
    """

    def __init__(
        self, config: DescriberConfig | Source, *, dialect: Dialect | str | None = None, **fields: Any
    ) -> None:
        if isinstance(dialect, str):
            fields["dialect"], dialect = dialect, None
        if not isinstance(config, DescriberConfig):
            fields = {"backend": "vllm", **fields}
        section = make_section(DescriberConfig, config, **fields)
        source, revision = model_source(section.model or ""), section.revision
        model_config = load_config(source, revision=revision)
        self.family = supported_family(section.model or "", model_config.model_type)
        self.processor = load_processor(source, model_config.model_type, family=self.family, revision=revision)
        image_processor = self.processor.image_processor
        self.dialect = choose_dialect(dialect or section.dialect, model_config.model_type, image_processor)
        check_image_token(source, self.processor, model_config)
        check_chat_template(source, self.processor, self.family)
        check_dialect(source, self.processor, self.family, self.dialect)
        self.thinking = section.thinking
        if section.thinking:
            check_thinking(source, self.processor, self.family)
        check_vocabulary(source, self.processor.tokenizer, model_config.get_text_config().vocab_size)
        self.name = source_name(source, revision, model_config)
        options = _engine_options(section, source, model_config, self.family, image_processor)
        if section.peft_adapter is not None:
            check_adapter(section.peft_adapter, class_name(model_config.model_type))
            options |= {"enable_lora": True, "max_lora_rank": lora_rank(section.peft_adapter, self.family)}
            self.name += f"+{source_name(section.peft_adapter)}"
        self._sampling = {
            "temperature": section.temperature,
            "top_p": section.top_p,
            "max_tokens": section.max_new_tokens,
            **self._read_ends(source, model_config, revision),
        }
        self._start(source, options, section.peft_adapter)

    def _read_ends(self, source: str, model_config: Any, revision: str | None) -> dict[str, Any]:
        try:
            generation = GenerationConfig.from_pretrained(source, revision=revision or "main")
        except OSError:  # the folder has no generation_config.json
            generation = GenerationConfig.from_model_config(model_config)
        tokenizer, turn = self.processor.tokenizer, self.render("")
        self._tokens = AnswerTokens.of(tokenizer, self.family, self.dialect, generation, turn=turn)
        stops = list(self._tokens.stop_strings)
        # Without stop strings vLLM need not decode: SPR decodes the ids, as those of transformers.
        return {
            "stop_token_ids": sorted(self._tokens.ends),
            "stop": stops or None,
            "detokenize": bool(stops),
            "skip_special_tokens": False,
        }

    def _start(self, source: str, options: dict[str, Any], adapter: str | None) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import vllm
        from vllm.lora.request import LoRARequest

        check_version(vllm.__version__)
        self._make_sampling = vllm.SamplingParams
        fix = "see vLLM's messages above; if memory ran out, lower describer.max_model_len or gpu_memory_utilization"
        with _clear_errors(f"vLLM can't load {source}", fix):
            self.engine = vllm.LLM(**options)
        # Runs when the last reference to this describer is dropped, and at the end of the process.
        self.close = weakref.finalize(self, self.engine.llm_engine.engine_core.shutdown)
        self._lora = None
        if adapter is not None:
            self._lora = LoRARequest("adapter", 1, str(Path(adapter).absolute()))
            with _clear_errors(f"vLLM can't apply the adapter {adapter}", MERGE):
                self.engine.llm_engine.add_lora(self._lora)

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Answer]:
        """One answer per request, with the reason why its generation ended.

        The reason is that of vLLM: ``stop`` for an end-of-turn token, ``length`` if ``max_new_tokens`` or
        ``max_model_len`` cut the answer; ``stop_string`` for one of the ``stop_strings`` of generation_config.json.
        Special tokens of a box markup are kept, others are removed. For an image that the family's processor refuses
        (Qwen: an aspect ratio above 200), the answer is empty, without a reason.

        Raises:
            SprError: if vLLM refuses a request, such as one that is longer than ``max_model_len``, or stops.
        """
        if not self.close.alive:
            fix = "load the describer again"
            raise SprError(f"vLLM's engine of {self.name} has been shut down", got="another request", fix=fix)
        limit = self.family.max_aspect
        sizes = [request.image.size for request in requests]
        readable = [k for k, size in enumerate(sizes) if limit is None or max(size) <= limit * min(size)]
        answers = dict(zip(readable, self._generate([requests[k] for k in readable]), strict=True))
        advance(len(requests))
        return [answers.get(k, Answer("")) for k in range(len(requests))]

    def _generate(self, requests: Sequence[DescribeRequest]) -> list[Answer]:
        if not requests:
            return []
        images = {id(request.image): request.image for request in requests}  # several requests share an image
        images = {key: self._as_in_training(image) for key, image in images.items()}
        prompts = [
            {
                "prompt_token_ids": self.token_ids(request.prompt),
                "multi_modal_data": {"image": images[id(request.image)]},
            }
            for request in requests
        ]
        sampling = [self._make_sampling(seed=request.seed, **self._sampling) for request in requests]
        try:
            outputs = self.engine.generate(prompts, sampling, use_tqdm=False, lora_request=self._lora)
        except Exception as error:
            raise _explain(error) from error
        except BaseException:
            # The engine would return the answers of an interrupted call with those of the next one.
            self.close()
            raise
        return [self._read(output.outputs[0]) for output in outputs]

    def render(self, prompt: str) -> str:
        """The user's turn and the start of the answer as input text, with one placeholder for the image."""
        return render_turn(self.processor, self.family, user_turn(prompt), thinking=self.thinking)

    def token_ids(self, prompt: str) -> list[int]:
        """The user's turn and the start of the answer, with one placeholder, which vLLM replaces by image tokens."""
        text, tokenizer = self.render(prompt), self.processor.tokenizer
        # Chat templates that add the beginning-of-text token must not get a second one.
        special = not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])

    def _as_in_training(self, image: Image.Image) -> Image.Image:
        # vLLM uses the saved image processor, which crops images that are not square.
        if not self.family.pads_square:
            return image
        red, green, blue = (int(255 * value) for value in self.processor.image_processor.image_mean)
        return pad_to_square(image, (red, green, blue))

    def _read(self, output: Any) -> Answer:
        text = self._tokens.decode(list(output.token_ids))
        if isinstance(output.stop_reason, str):
            return Answer(self._tokens.before_stop_string(text), "stop_string")
        return Answer(text, output.finish_reason)


def supported_family(model: str, model_type: str) -> Family:
    """The family of a model that vLLM runs with the prompts and image sizes that SPR assumes, or `ModelError`."""
    check_multimodal(model, model_type)
    family = FAMILIES.get(model_type)
    if family is not None and family.vllm is not None and not model.startswith("embedded/"):
        return family
    if model.startswith("embedded/"):
        why = "the embedded models are made for a CPU"
    elif family is None:
        why = "it is not known whether vLLM gives this family the same prompts and images as transformers"
    elif family.custom is not None:
        why = f"vLLM does not have {family.models}"
    elif family.bidirectional_prompt:
        why = f"in vLLM, only the image tokens of {family.models} attend in both directions, not the prompt's text"
    else:
        why = f"no test shows that vLLM gives {family.models} the same prompts and images as transformers"
    known = [name for name, entry in FAMILIES.items() if entry.vllm is not None]
    what = f"The describer backend `vllm` can't run {model}"
    raise ModelError(what, got=f"model_type {model_type}: {why}", expected=", ".join(known), fix=_USE_HF)


def check_version(version: str) -> None:
    """Raise `SprError` if a version of vLLM, such as ``0.33.0``, is older than `OLDEST`."""
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        fix = "pip install --upgrade 'spatial-preference-rewarding[vllm]'"
        raise SprError("vLLM is too old for SPR", got=version, expected=f"{oldest} or newer", fix=fix)


def gpu_options(num_gpus: float, memory: float | None) -> dict[str, Any]:
    """Arguments of ``vllm.LLM`` for a process's GPUs: tensor parallelism on several, a share of the memory of a part.

    ``memory`` is the share of each GPU's memory that is asked for, 0..1; None leaves it to vLLM.

    >>> gpu_options(2, None), gpu_options(0.5, None), gpu_options(0.5, 0.3)
    ({'tensor_parallel_size': 2}, {'gpu_memory_utilization': 0.45}, {'gpu_memory_utilization': 0.3})
    """
    if memory is None and 0 < num_gpus < 1:
        memory = 0.9 * num_gpus
    options = {"tensor_parallel_size": int(num_gpus)} if num_gpus > 1 else {}
    return options | ({} if memory is None else {"gpu_memory_utilization": memory})


def _engine_options(
    section: DescriberConfig, source: str, config: Any, family: Family, image_processor: Any
) -> dict[str, Any]:
    """Arguments of ``vllm.LLM``."""
    stored = getattr(config, "dtype", None)
    # vLLM's own `auto` loads float32 weights in 16 bits.
    dtype = str(stored).removeprefix("torch.") if section.dtype == "auto" and stored is not None else section.dtype
    options: dict[str, Any] = {
        "model": source,
        "revision": section.revision,
        "tokenizer_revision": section.revision,
        "dtype": dtype,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "generation_config": "vllm",  # no sampling defaults of the model's folder
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "seed": 0,
    }
    if family.resized_geometry:  # images are resized between two numbers of pixels
        size = {edge: int(image_processor.size[edge]) for edge in ("shortest_edge", "longest_edge")}
        options["mm_processor_kwargs"] = {"size": size}
    if section.max_model_len is not None:
        options["max_model_len"] = section.max_model_len
    return options | gpu_options(section.num_gpus, section.gpu_memory_utilization)


@contextmanager
def _clear_errors(what: str, fix: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # vLLM and its plugins can raise any
        raise ModelError(what, got=_in_short(error), fix=fix) from error


def _explain(error: Exception) -> SprError:
    got = _in_short(error)
    if isinstance(error, ValueError) or type(error).__name__ == "VLLMValidationError":
        fix = "if the prompt with its image is too long, raise describer.max_model_len"
        return SprError("vLLM refused a request", got=got, fix=fix)
    fix = "see its messages above; if memory ran out, lower describer.max_model_len or gpu_memory_utilization"
    return SprError("vLLM's engine failed", got=got, fix=fix)


def _in_short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
