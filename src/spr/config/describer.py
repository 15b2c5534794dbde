"""The config section `describer`: the model that describes regions and is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from spr.config.backends import DESCRIBERS, name_in
from spr.config.section import BatchSize, DType, Float, Int, Processes, Section

ObjectOrder: TypeAlias = Literal["reading", "id", "shuffled"]
DropOrKeep: TypeAlias = Literal["drop", "keep"]


_OF_VLLM = ("gpu_memory_utilization", "max_model_len")
_OF_HF = ("batch_size", "device", "device_map", "attn_implementation", "load_in_4bit")
_OF_OPENAI = ("base_url", "api_key_env", "concurrency", "connect_timeout", "timeout", "retries", "request_fields")


class SamplesConfig(Section):
    """Number of descriptions to sample per query and kind of prompt (paper, Sec. 3.2; two of each are our choice)."""

    full: Int = Field(default=2, ge=0)
    """Descriptions from the whole image, with the region given by its coordinates."""
    crop: Int = Field(default=2, ge=0)
    """Descriptions from a crop of the region."""
    crop_objects: Int = Field(default=2, ge=0)
    """Descriptions from the crop, with a numbered list of the objects inside the region."""


class DescriberConfig(Section):
    """The multimodal LLM that describes regions and is trained (paper, Sec. 3.2)."""

    runtime_fields = frozenset(
        {"batch_size", "device", "num_processes", "num_gpus", "device_map"}
        | {"base_url", "api_key_env", "concurrency", "connect_timeout", "timeout", "retries"}
        | {"gpu_memory_utilization"}
    )
    later_fields = frozenset({"seed"})

    backend: Annotated[str, name_in(DESCRIBERS)] = "hf"
    """`hf`: an image-text-to-text model of transformers; `vllm`: such a model in vLLM's offline engine; `openai`: a
    model behind an OpenAI-compatible server (vLLM, SGLang, `transformers serve`); `fake`: descriptions made from the
    annotations, with random errors."""
    model: str | None = None
    """Model id or folder, or `embedded/describer`, the small model that ships with SPR. For `openai`, the name of the
    model on the server. Not used by `fake`."""
    revision: str | None = None
    """Revision of the model on the Hugging Face Hub."""
    peft_adapter: str | None = None
    """Folder of a PEFT adapter to load into the model, such as `adapter/` of an earlier run."""
    dialect: str | None = None
    """The format in which the model writes boxes; null uses that of its model family. Required for `openai`."""
    samples: SamplesConfig = SamplesConfig()
    crop_factor: Float = Field(default=1.5, ge=1)
    """Factor by which both sides of the region are enlarged for the crop (supplement, Sec. 1)."""
    object_order: ObjectOrder = "reading"
    """Order of the objects listed in `crop_objects` prompts (our choice): `reading`: left to right, then top to bottom;
    `id`: by annotation id; `shuffled`. Models follow the list, so an order unlike that of answers to other prompts
    tells chosen from rejected answers, which training then learns instead of the boxes."""
    seed: Int | None = Field(default=None, ge=0, lt=2**63)
    """Seed of the sampled answers and of `shuffled` lists, so that the same regions can be described again; null uses
    the config's `seed` (our choice)."""
    temperature: Float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 means greedy decoding (our choice)."""
    top_p: Float = Field(default=0.95, gt=0, le=1)
    """Cumulative probability of nucleus sampling, up to 1 (our choice)."""
    max_new_tokens: Int = Field(default=512, ge=1)
    """Maximum number of tokens per answer (our choice)."""
    thinking: bool = False
    """Let models that can reason do so before each answer (our choice): Qwen3.5, GLM-V, Gemma 4, Kimi K2.5,
    MiniCPM-V and the Thinking models of Qwen3-VL. The reasoning counts towards `max_new_tokens`, and is not part of the
    answer. Off, they answer at once, as they are trained to: pairs hold final answers. For `openai`, true is sent as
    `chat_template_kwargs: {enable_thinking: true}`, which vLLM and SGLang pass on; false leaves it to the server."""
    truncated: DropOrKeep = "drop"
    """What to do with answers that `max_new_tokens` cut (our choice): `drop` them, counted as `truncated_answer`, or
    `keep` them as candidates; training then adds no end of turn to them."""
    malformed_crops: DropOrKeep = "drop"
    """What to do with answers about a crop that contain coordinates that can't be read, and so can't be mapped to the
    original image (our choice): `drop` them, counted as `box_not_mapped`, or `keep` these coordinates as they are."""
    batch_size: BatchSize = 16
    """Answers that are generated at once; halved if the device runs out of memory. `auto` begins with 16 and doubles
    while the memory of a GPU allows it; on a CPU it stays 16."""
    dtype: DType = "auto"
    """Data type of the weights; `auto` keeps that of the checkpoint."""
    device: str = "auto"
    """Device of the model, such as `cpu` or `cuda:1`; `auto` uses a GPU if there is one."""
    num_processes: Processes = "auto"
    """Processes that load the model; each takes whole shards. `auto`: as many as `num_gpus` allows on the GPUs of the
    machine or cluster, and one where there is no GPU. On CPUs, processes share the threads."""
    num_gpus: Float = Field(default=1, gt=0)
    """GPUs of each process: below 1, processes share a GPU; 2 and more, whole numbers only, need `device_map`, or vLLM,
    which splits the model."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """Distribute a large model over all devices of the machine, as in Accelerate; not together with `device`."""
    attn_implementation: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention implementation of transformers; `flash_attention_2` needs the package flash-attn and a GPU."""
    load_in_4bit: bool = False
    """Load the weights in 4 bits (NF4), with the package bitsandbytes."""
    base_url: str | None = None
    """`openai`: URL of the server, such as `http://127.0.0.1:8000/v1`."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """`openai`: name of the environment variable that holds the API key. The key itself is never written anywhere."""
    concurrency: Int = Field(default=32, ge=1)
    """`openai`: number of concurrent requests."""
    connect_timeout: Float = Field(default=10.0, gt=0)
    """`openai`: timeout in seconds for opening a connection."""
    timeout: Float = Field(default=300.0, gt=0)
    """`openai`: timeout in seconds for an answer, including its time in the server's queue; then it is retried."""
    retries: Int = Field(default=8, ge=0)
    """`openai`: number of retries after a temporary failure, with exponential backoff; 8 take about 3 minutes."""
    request_fields: dict[str, Any] = Field(default={})
    """`openai`: additional fields for each request, such as `skip_special_tokens: false`; null removes a field."""
    gpu_memory_utilization: Float | None = Field(default=None, gt=0, le=1)
    """`vllm`: share of each GPU's memory for the weights and the cache, 0..1; null leaves it to vLLM (0.92)."""
    max_model_len: Int | None = Field(default=None, ge=1)
    """`vllm`: maximum number of tokens of a prompt with its image and its answer; null uses the model's own limit. A
    lower one needs less memory. A longer prompt is an error."""

    def __hash__(self) -> int:
        # Loaded models are cached by section. The hash of pydantic does not support dict fields.
        return hash(self.model_dump_json())

    @model_validator(mode="after")
    def _has_what_its_backend_needs(self) -> Self:
        if self.backend in ("hf", "vllm", "openai") and self.model is None:
            raise ValueError("describer.model is missing: give a model id or folder, or set backend: fake")
        if self.device_map is not None and self.device != "auto":
            raise ValueError("describer.device and describer.device_map are both given: remove one of them")
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise ValueError("describer.num_gpus is not valid above 1 unless it is a whole number")
        if self.num_gpus > 1 and self.backend == "hf" and self.device_map is None:
            raise ValueError("describer.num_gpus above 1 needs describer.device_map: auto, which splits the model")
        if self.device_map is not None and self.num_gpus <= 1 and self.num_processes not in ("auto", 1):
            raise ValueError(
                "describer.device_map gives one process all GPUs: set describer.num_gpus, or remove num_processes"
            )
        if self.backend == "openai" and self.base_url is None:
            raise ValueError("describer.base_url is missing: give the server's URL, such as http://127.0.0.1:8000/v1")
        if self.backend == "openai" and self.dialect is None:
            raise ValueError(
                "describer.dialect is missing: a server does not report the format in which its model writes boxes"
            )
        return self

    @model_validator(mode="after")
    def _has_no_ignored_option(self) -> Self:
        if self.backend == "vllm":
            defaults = {name: field.default for name, field in type(self).model_fields.items()}
            others = [name for name in (*_OF_HF, *_OF_OPENAI) if getattr(self, name) != defaults[name]]
        else:
            own = self.backend in ("hf", "openai", "fake")  # a describer of another package may use them
            others = [name for name in _OF_VLLM if own and getattr(self, name) is not None]
        if others:
            named = ", ".join(f"describer.{name}" for name in others)
            raise ValueError(
                f"{named} can't be used with backend: {self.backend}; remove it, or choose another backend"
            )
        if self.backend == "fake" and self.thinking:
            raise ValueError("describer.thinking can't be used with backend: fake; remove it")
        if self.thinking and "chat_template_kwargs" in self.request_fields:
            raise ValueError(
                "describer.thinking and chat_template_kwargs in describer.request_fields are both given: remove one"
            )
        if self.backend == "vllm" and not (self.temperature == 0 or 0.01 <= self.temperature <= 2):
            raise ValueError("describer.temperature must be 0, or from 0.01 to 2, with backend: vllm")
        return self

    @field_validator("base_url")
    @classmethod
    def _is_a_url(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://localhost")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("not a URL such as http://127.0.0.1:8000/v1")
        if parts.username is not None:
            raise ValueError(
                "the URL contains credentials, which would be saved with the run: use describer.api_key_env"
            )
        if parts.port == 0:
            raise ValueError("port 0 is not a valid port")
        return value

    @field_validator("request_fields")
    @classmethod
    def _sets_no_reserved_field(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in ("model", "messages", "stream", "n"):
            if name in value:
                raise ValueError(f"`{name}` is reserved: SPR sets it itself")
        return value
