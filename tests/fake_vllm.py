"""A stand-in for vLLM's offline engine: real signatures and real image processing, and answers made from a hash.

Arguments are checked against `vllm_signatures.json`, read from the source of vLLM 0.33.0 by `vllm_signatures.py`. As in
vLLM, images go through the processor that the model's folder names, and the placeholder in the token ids is replaced by
what that processor writes for the image.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from spr.models.custom_models import load_config
from spr.models.describers.vllm import _ENVIRONMENT
from spr.models.image_processors import load_processor

SIGNATURES = json.loads(Path(__file__).with_name("vllm_signatures.json").read_text())


class VLLMValidationError(Exception):
    """vLLM's error for a request that it refuses; it is not a ValueError."""


class EngineDeadError(Exception):
    """vLLM's error for an engine whose process has ended."""


def check_call(name: str, positional: tuple, keywords: dict, *, more: tuple[str, ...] = ()) -> None:
    """Raise `TypeError` as a call of the real function would."""
    signature = SIGNATURES[name]
    known = [*signature["positional"], *signature["keywords"], *more]
    unknown = [key for key in keywords if key not in known]
    if unknown or len(positional) > len(signature["positional"]):
        raise TypeError(f"{name}() got an unexpected argument: {unknown or positional}")


class SamplingParams:
    """The fields of vLLM's class, with those of its checks that concern SPR."""

    def __init__(self, **fields):
        unknown = fields.keys() - set(SIGNATURES["SamplingParams"])
        if unknown:
            raise TypeError(f"SamplingParams() got an unexpected argument: {unknown}")
        defaults = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 16, "seed": None, "stop": None, "detokenize": True}
        self.__dict__.update({**defaults, "stop_token_ids": None, "skip_special_tokens": True, **fields})
        if not 0 <= self.temperature <= 2:
            raise VLLMValidationError(f"temperature must be in [0, 2], got {self.temperature}.")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise OverflowError("the seed must fit into 64 bits")
        if self.stop and not self.detokenize:
            raise VLLMValidationError("stop strings are only supported when detokenize is True.")


class LoRARequest:
    """vLLM's name, number and folder of an adapter."""

    def __init__(self, *given, **named):
        fields = dict(zip(SIGNATURES["LoRARequest"], given, strict=False)) | named
        if fields.keys() - set(SIGNATURES["LoRARequest"]):
            raise TypeError("LoRARequest() got an unexpected argument")
        self.__dict__.update({"lora_path": "", **fields})
        if self.lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {self.lora_int_id}")


def output(request_id, prompt_ids, ids, finish_reason, stop_reason):
    """A `RequestOutput` with one `CompletionOutput`."""
    parts = {"index": 0, "text": "", "token_ids": ids, "cumulative_logprob": None, "logprobs": None}
    parts |= {"finish_reason": finish_reason, "stop_reason": stop_reason}
    assert parts.keys() <= set(SIGNATURES["CompletionOutput"])
    fields = {"request_id": str(request_id), "prompt_token_ids": prompt_ids, "outputs": [SimpleNamespace(**parts)]}
    assert fields.keys() <= set(SIGNATURES["RequestOutput"]["positional"])
    return SimpleNamespace(**fields, finished=True)


class LLM:
    """vLLM's offline engine.

    ``made`` are the engines that exist or existed. ``write`` replaces the answers: it takes the expanded prompt and the
    sampling parameters, and returns token ids. ``seen`` are the last call's prompts as the model would get them.
    """

    made: list["LLM"] = []  # noqa: RUF012 (emptied by `fake_vllm`)
    write: Callable | None = None

    def __init__(self, *given, **named):
        check_call("LLM", given, named, more=tuple(SIGNATURES["EngineArgs"]))
        self.options = dict(zip(("model",), given, strict=False)) | named
        self.alive, self.loras, self.seen = True, [], []
        self.llm_engine = SimpleNamespace(add_lora=self._add_lora, engine_core=SimpleNamespace(shutdown=self._shutdown))
        source = self.options["model"]
        config = load_config(source, revision=self.options.get("revision"))
        # Without SPR's changes for the family: the processor as saved.
        self.processor = load_processor(source, config.model_type, family=None, revision=self.options.get("revision"))
        size = (self.options.get("mm_processor_kwargs") or {}).get("size")
        if size is not None:
            self.processor.image_processor.size = size
        self.max_model_len = self.options.get("max_model_len") or config.get_text_config().max_position_embeddings
        if self.options.get("enable_lora") and self.options["max_lora_rank"] not in SIGNATURES["MaxLoRARanks"]:
            raise ValueError("max_lora_rank is not one of the literal values")
        LLM.made.append(self)

    def _shutdown(self, *given, **named):
        check_call("EngineCoreClient.shutdown", given, named)
        self.alive = False

    def _add_lora(self, request):
        if not self.options.get("enable_lora"):
            raise RuntimeError("LoRA is not enabled.")
        rank = json.loads((Path(request.lora_path) / "adapter_config.json").read_text())["r"]
        if rank > self.options["max_lora_rank"]:
            raise ValueError(f"LoRA rank {rank} is greater than max_lora_rank {self.options['max_lora_rank']}.")
        self.loras.append(request)
        return True

    def generate(self, *given, **named):
        check_call("LLM.generate", given, named)
        if not self.alive:
            raise EngineDeadError("EngineCore encountered an issue.")
        prompts, sampling = given
        lora = named.get("lora_request")
        if len(prompts) != len(sampling):
            raise VLLMValidationError("The lengths of prompts and params must be the same.")
        if lora is not None and lora not in self.loras:
            raise VLLMValidationError("Got lora_request but LoRA is not enabled!")
        self.seen = [self._expand(prompt) for prompt in prompts]
        parts = zip(self.seen, sampling, strict=True)
        return [self._answer(number, prompt, params, lora) for number, (prompt, params) in enumerate(parts)]

    def _expand(self, prompt):
        if prompt.keys() - set(SIGNATURES["TokensPrompt"]):
            raise TypeError(f"not a TokensPrompt: {prompt.keys()}")
        ids, image = prompt["prompt_token_ids"], prompt["multi_modal_data"]["image"]
        assert image.mode == "RGB"
        token = self.processor.image_token
        inputs = self.processor(images=[image], text=[token], add_special_tokens=False, return_tensors="pt")
        place = self.processor.tokenizer.convert_tokens_to_ids(token)
        assert ids.count(place) == 1
        start = ids.index(place)
        whole = [*ids[:start], *inputs["input_ids"][0].tolist(), *ids[start + 1 :]]
        if len(whole) >= self.max_model_len:
            raise VLLMValidationError(
                f"The decoder prompt (length {len(whole)}) is longer than the maximum model length of "
                f"{self.max_model_len}. Make sure that `max_model_len` is no smaller"
            )
        return SimpleNamespace(ids=whole, inputs=inputs, image=image)

    def _answer(self, number, prompt, params, lora):
        tokenizer = self.processor.tokenizer
        if LLM.write is not None:
            written = LLM.write(prompt, params)
        else:
            seed = params.seed if params.temperature > 0 else 0
            parts = [seed, prompt.ids, lora and lora.lora_path, hashlib.sha256(prompt.image.tobytes()).hexdigest()]
            word = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:6]
            written = [*tokenizer(f"thing {word}", add_special_tokens=False)["input_ids"], params.stop_token_ids[0]]
        ids = []
        for token in written[: params.max_tokens]:
            ids.append(token)
            if token in params.stop_token_ids:
                return output(number, prompt.ids, ids, "stop", None if token == tokenizer.eos_token_id else token)
            text = tokenizer.decode(ids) if params.detokenize else ""
            for stop in params.stop or ():
                if stop in text:
                    return output(number, prompt.ids, ids, "stop", stop)
        return output(number, prompt.ids, ids, "length", None)


@pytest.fixture
def fake_vllm(monkeypatch):
    """Make `import vllm` give the stand-in; returns its class `LLM`."""
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        monkeypatch.setitem(sys.modules, name, module)
    package = modules["vllm"]
    package.__version__, package.LLM, package.SamplingParams = SIGNATURES["version"], LLM, SamplingParams
    modules["vllm.lora.request"].LoRARequest = LoRARequest
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(LLM, "write", None)
    for name in _ENVIRONMENT:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return LLM
