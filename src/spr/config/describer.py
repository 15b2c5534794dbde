"""The config section `describer`: the model that describes regions and is trained."""

from __future__ import annotations

from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from spr.config.backends import DESCRIBERS, check_backend
from spr.config.section import DType, Float, Int, Section


class SamplesConfig(Section):
    """Number of descriptions to sample per query, by kind of prompt (paper, Sec. 3.2; two of each are our choice)."""

    full: Int = Field(default=2, ge=0)
    """From the whole image, with the region given by its coordinates."""
    crop: Int = Field(default=2, ge=0)
    """From a crop of the region."""
    crop_objects: Int = Field(default=2, ge=0)
    """From the crop, with a numbered list of the objects inside."""


class DescriberConfig(Section):
    """The multimodal LLM that describes regions and is trained (paper, Sec. 3.2)."""

    runtime_fields = frozenset(
        {"batch_size", "device", "device_map"}
        | {"base_url", "api_key_env", "concurrency", "connect_timeout", "timeout", "retries"}
    )

    backend: str = "hf"
    """`hf`: an image-text-to-text model of transformers; `openai`: a model behind an OpenAI-compatible server (vLLM,
    SGLang, `transformers serve`); `fake`: descriptions made from the annotations, with random errors."""
    model: str | None = None
    """Model id or folder, or `embedded/describer`, the small model that ships with SPR. For `openai`, the model's name
    on the server. `fake` does not need one."""
    revision: str | None = None
    """Revision of the model on the Hugging Face Hub."""
    peft_adapter: str | None = None
    """Folder of a PEFT adapter to load on top of the model, such as the `adapter/` of an earlier run."""
    dialect: str | None = None
    """How the model writes boxes; null uses the dialect of its family. `openai` requires it."""
    samples: SamplesConfig = SamplesConfig()
    crop_factor: Float = Field(default=1.5, ge=1)
    """The crop is the region enlarged by this factor about its centre (supplement, Sec. 1)."""
    temperature: Float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy decoding (our choice)."""
    top_p: Float = Field(default=0.95, gt=0, le=1)
    """Cumulative probability for nucleus sampling (our choice)."""
    max_new_tokens: Int = Field(default=512, ge=1)
    """Maximum number of tokens per answer."""
    batch_size: Int = Field(default=16, ge=1)
    """Requests per batch. It is halved when the device runs out of memory."""
    dtype: DType = "auto"
    """Data type of the weights; `auto` uses the stored one."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """Distributes a large model over all devices of the machine, as in Accelerate; replaces `device`."""
    attn_implementation: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention implementation; `flash_attention_2` needs its package and a GPU."""
    load_in_4bit: bool = False
    """Load the weights in 4 bits (NF4). Needs bitsandbytes."""
    base_url: str | None = None
    """`openai`: URL of the server, such as `http://127.0.0.1:8000/v1`."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """`openai`: name of the environment variable that holds the API key. The key itself is never written anywhere."""
    concurrency: Int = Field(default=32, ge=1)
    """`openai`: number of concurrent requests."""
    connect_timeout: Float = Field(default=10.0, gt=0)
    """`openai`: timeout for opening a connection, in seconds."""
    timeout: Float = Field(default=300.0, gt=0)
    """`openai`: timeout for an answer, in seconds, including its time in the server's queue; then it is retried."""
    retries: Int = Field(default=8, ge=0)
    """`openai`: number of retries after a temporary failure, with exponential backoff; 8 cover about 3 minutes."""
    request_fields: dict[str, Any] = Field(default={})
    """`openai`: additional fields of each request, such as `skip_special_tokens: false`; null removes a field."""

    def __hash__(self) -> int:
        # Loaded models are cached by their section; pydantic's own hash would need hashable fields.
        return hash(self.model_dump_json())

    @field_validator("backend")
    @classmethod
    def _backend_exists(cls, value: str) -> str:
        return check_backend(value, DESCRIBERS)

    @model_validator(mode="after")
    def _has_what_its_backend_needs(self) -> Self:
        if self.backend in ("hf", "openai") and self.model is None:
            raise ValueError("describer.model is missing: give a model id or folder, or set backend: fake")
        if self.device_map is not None and self.device != "auto":
            raise ValueError("describer.device and describer.device_map are both given: give one")
        if self.backend == "openai" and self.base_url is None:
            raise ValueError("describer.base_url is missing: give the server's URL, such as http://127.0.0.1:8000/v1")
        if self.backend == "openai" and self.dialect is None:
            raise ValueError("describer.dialect is missing: a server does not tell how its model writes boxes")
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
