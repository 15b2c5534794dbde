"""The config section `describer`: the model that describes regions and is trained."""

from __future__ import annotations

from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from spr.config.section import DType, Float, Int, Section


class SamplesConfig(Section):
    """Descriptions sampled a query, by the kind of prompt (METHOD §3.3) [ours: two each]."""

    full: Int = Field(default=2, ge=0)
    """From the whole image, the region given by its coordinates."""
    crop: Int = Field(default=2, ge=0)
    """From the region's crop."""
    crop_objects: Int = Field(default=2, ge=0)
    """From the crop, with a numbered list of the objects inside."""


class DescriberConfig(Section):
    """The model that describes, and is trained (METHOD §3)."""

    runtime_fields = frozenset(
        {"batch_size", "device", "device_map"}
        | {"base_url", "api_key_env", "concurrency", "connect_timeout", "timeout", "retries"}
    )

    backend: Literal["hf", "openai", "fake"] = "hf"
    """`hf`: any image-text-to-text model of transformers; `openai`: a model behind an OpenAI-compatible server (vLLM,
    SGLang, `transformers serve`); `fake`: annotations, spoilt by seed."""
    model: str | None = None
    """A model id or folder, or `embedded/describer`, the small one that ships; for `openai` its name on the server;
    `fake` needs none."""
    revision: str | None = None
    """The model's revision on the hub."""
    peft_adapter: str | None = None
    """A folder with a PEFT adapter of the model, such as an earlier run's `adapter/`; put onto it."""
    dialect: str | None = None
    """How the model writes boxes; null: as its family does. `openai` needs it: no server tells."""
    samples: SamplesConfig = SamplesConfig()
    crop_factor: Float = Field(default=1.5, ge=1)
    """The crop is the region grown this much [seed]."""
    temperature: Float = Field(default=1.0, ge=0)
    """0 is greedy [ours]."""
    top_p: Float = Field(default=0.95, gt=0, le=1)
    """Nucleus sampling [ours]."""
    max_new_tokens: Int = Field(default=512, ge=1)
    """Longer answers are cut."""
    batch_size: Int = Field(default=16, ge=1)
    """Requests a batch; halved when the device's memory runs out."""
    dtype: DType = "auto"
    """`auto` is what the weights are stored in."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """Spreads a large model over the machine's devices, as accelerate does it; instead of `device`."""
    attn_implementation: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention kernel; `flash_attention_2` needs its package and a GPU."""
    load_in_4bit: bool = False
    """Weights in 4 bits (NF4); needs bitsandbytes."""
    base_url: str | None = None
    """`openai`: where the server is, such as `http://127.0.0.1:8000/v1`."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """`openai`: the environment variable that holds the server's key; the key itself is never written anywhere."""
    concurrency: Int = Field(default=32, ge=1)
    """`openai`: requests under way at once."""
    connect_timeout: Float = Field(default=10.0, gt=0)
    """`openai`: seconds until a connection stands."""
    timeout: Float = Field(default=300.0, gt=0)
    """`openai`: seconds until an answer is there, with its time in the server's queue; then it is asked again."""
    retries: Int = Field(default=8, ge=0)
    """`openai`: further tries after a failure that may pass, each after a longer wait: 8 bridge about 3 minutes."""
    request_fields: dict[str, Any] = Field(default={})
    """`openai`: further fields of each request, such as `skip_special_tokens: false`; null leaves one out."""

    def __hash__(self) -> int:
        # For the cache of loaded models: pydantic's own would need hashable fields.
        return hash(self.model_dump_json())

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.backend != "fake" and self.model is None:
            raise ValueError("describer.model is missing: give a model id or folder, or set backend: fake")
        if self.device_map is not None and self.device != "auto":
            raise ValueError("describer.device and describer.device_map are both given: give one")
        if self.backend == "openai" and self.base_url is None:
            raise ValueError("describer.base_url is missing: say where the server is, as in http://127.0.0.1:8000/v1")
        if self.backend == "openai" and self.dialect is None:
            raise ValueError("describer.dialect is missing: no server tells how its model writes boxes")
        return self

    @field_validator("base_url")
    @classmethod
    def _is_a_url(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://localhost")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("not a URL such as http://127.0.0.1:8000/v1")
        if parts.username is not None:
            raise ValueError("a URL with a password, which would be written into the run: use describer.api_key_env")
        if parts.port == 0:
            raise ValueError("port 0 is none")
        return value

    @field_validator("request_fields")
    @classmethod
    def _are_free(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in ("model", "messages", "stream", "n"):
            if name in value:
                raise ValueError(f"`{name}` is set by SPR alone")
        return value
