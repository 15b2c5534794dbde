"""The configuration of CogVLM-17B, with the field names of the published config.json."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from spr.models.errors import ModelError


@strict
class CogVLMVisionConfig(PreTrainedConfig):  # type: ignore[misc]
    """The configuration of the vision tower, EVA2-CLIP-E. The defaults are those of CogVLM-17B at 490 × 490."""

    model_type = "cogvlm_vision"
    base_config_key = "vision_config"
    attribute_map: ClassVar[dict[str, str]] = {"num_attention_heads": "num_heads", "num_channels": "in_channels"}

    hidden_size: int = 1792
    """Width of a patch's hidden state."""
    intermediate_size: int = 15360
    """Hidden width of the MLPs."""
    num_hidden_layers: int = 63
    """Number of layers; all are used."""
    num_heads: int = 16
    """Attention heads."""
    image_size: int = 490
    """Side of the image in pixels: 490, or 224 for base-224."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    num_positions: int = 1226
    """(image_size / patch_size)² + 1, including the class token."""
    in_channels: int = 3
    """Number of colour channels."""
    hidden_act: str = "gelu"
    """Activation of the MLPs."""
    layer_norm_eps: float = 1e-6
    """Epsilon of the layer norms."""
    dropout_prob: float = 0.0
    """Dropout of the attention's output, in training."""

    @property
    def num_patches(self) -> int:
        """Number of patches per image."""
        return int(self.image_size // self.patch_size) ** 2


@strict
class CogVLMConfig(PreTrainedConfig):  # type: ignore[misc]
    """The configuration of CogVLM-17B: Vicuna-7B with a second expert for image tokens, and a vision tower.

    The defaults are those of the published models.

    Raises:
        ModelError: for the config of CogVLM2, a different model with the same class name.
    """

    model_type = "cogvlm"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {"vision_config": SubConfigSpec(CogVLMVisionConfig)}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    """Config of the vision tower."""
    vocab_size: int = 32000
    """Size of the vocabulary."""
    hidden_size: int = 4096
    """Width of a token's hidden state."""
    intermediate_size: int = 11008
    """Hidden width of the experts' MLPs and of the projector."""
    num_hidden_layers: int = 32
    """Number of decoder layers."""
    num_attention_heads: int = 32
    """Attention heads."""
    hidden_act: str = "silu"
    """Activation of the experts' MLPs."""
    max_position_embeddings: int = 2048
    """Maximum number of positions; an image takes three."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights."""
    rms_norm_eps: float = 1e-5
    """Epsilon of the RMS norms."""
    rope_theta: float = 10000.0
    """Base of the rotary embedding."""
    template_version: Literal["base", "chat", "vqa"] = "chat"
    """The prompt format: the user's text alone (`base`; grounding and base models), or question and answer."""
    use_cache: bool = True
    """Whether generation uses a key-value cache."""
    tie_word_embeddings: bool = False
    """False: the output layer has its own weights."""
    pad_token_id: int | None = 0
    """Id of padding, also used for image tokens."""
    bos_token_id: int | None = 1
    """Id of the token at the start of a text."""
    eos_token_id: int | list[int] | None = 2
    """Id of the token that ends an answer."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse the config of CogVLM2."""
        if "num_multi_query_heads" in kwargs:
            raise ModelError(
                "This is the config of CogVLM2, whose classes have the same names",
                got="num_multi_query_heads in config.json",
                expected="CogVLM-17B: cogvlm-grounding-generalist, cogvlm-chat or cogvlm-base",
                fix="choose one of those",
            )
        kwargs.pop("auto_map", None)  # Names of remote code files, which are never used.
        super().__post_init__(**kwargs)

    @property
    def image_seq_length(self) -> int:
        """Tokens per image: its patches, and a begin and an end token."""
        return int(self.vision_config.num_patches) + 2  # type: ignore[union-attr]
