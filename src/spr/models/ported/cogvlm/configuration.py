"""The config of CogVLM-17B, with the field names of the published config.json."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from spr.models.loading import ModelError


@strict
class CogVLMVisionConfig(PreTrainedConfig):  # type: ignore[misc]
    """EVA2-CLIP-E, the vision tower; the defaults are CogVLM-17B's at 490 × 490."""

    model_type = "cogvlm_vision"
    base_config_key = "vision_config"
    attribute_map: ClassVar[dict[str, str]] = {"num_attention_heads": "num_heads", "num_channels": "in_channels"}

    hidden_size: int = 1792
    """Features a patch."""
    intermediate_size: int = 15360
    """Hidden features of a layer's MLP."""
    num_hidden_layers: int = 63
    """Layers; all of them are used."""
    num_heads: int = 16
    """Attention heads."""
    image_size: int = 490
    """Side of the image in pixels: 490, or 224 for base-224."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    num_positions: int = 1226
    """(image_size / patch_size)² + 1, the class token's included."""
    in_channels: int = 3
    """Colours."""
    hidden_act: str = "gelu"
    """Activation of the MLP."""
    layer_norm_eps: float = 1e-6
    """Added to the variance in the layers' norms."""
    dropout_prob: float = 0.0
    """Of the attention's output, in training."""

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return int(self.image_size // self.patch_size) ** 2


@strict
class CogVLMConfig(PreTrainedConfig):  # type: ignore[misc]
    """CogVLM-17B: a Vicuna-7B with a second expert for image tokens, and a vision tower. Defaults are the published.

    Raises:
        ModelError: for the config of a CogVLM2, which is another model under the same class name.
    """

    model_type = "cogvlm"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {"vision_config": SubConfigSpec(CogVLMVisionConfig)}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    """Of the vision tower."""
    vocab_size: int = 32000
    """Tokens."""
    hidden_size: int = 4096
    """Features a token."""
    intermediate_size: int = 11008
    """Hidden features of an expert's MLP, and of the adapter's."""
    num_hidden_layers: int = 32
    """Decoder layers."""
    num_attention_heads: int = 32
    """Attention heads."""
    hidden_act: str = "silu"
    """Activation of the experts' MLPs."""
    max_position_embeddings: int = 2048
    """Longest text; an image takes three positions of it."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    rms_norm_eps: float = 1e-5
    """Added to the mean square in the norms."""
    rope_theta: float = 10000.0
    """Base of the rotary angles."""
    template_version: Literal["base", "chat", "vqa"] = "chat"
    """What is written around the user's text: nothing (grounding and base models), or question and answer."""
    use_cache: bool = True
    """Whether keys and values are kept while generating."""
    tie_word_embeddings: bool = False
    """The output layer has its own weights."""
    pad_token_id: int | None = 0
    """Stands for image tokens and padding."""
    bos_token_id: int | None = 1
    """Begins a text."""
    eos_token_id: int | list[int] | None = 2
    """Ends an answer."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse what only looks like a CogVLM-17B."""
        if "num_multi_query_heads" in kwargs:
            raise ModelError(
                "This is a CogVLM2, whose classes have the same names",
                got="num_multi_query_heads in config.json",
                expected="CogVLM-17B: cogvlm-grounding-generalist, cogvlm-chat or cogvlm-base",
                fix="choose one of those",
            )
        kwargs.pop("auto_map", None)  # Names code files that are never run, and that lie beside no saved copy.
        super().__post_init__(**kwargs)

    @property
    def image_seq_length(self) -> int:
        """Tokens of an image: its patches, and the marks of its beginning and end."""
        return int(self.vision_config.num_patches) + 2  # type: ignore[union-attr]
