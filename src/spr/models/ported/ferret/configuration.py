"""The configuration of a Ferret model."""

from __future__ import annotations

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from spr.models.ported.ferret.published import CLIP_L_336, is_published, nested_config


@strict
class FerretConfig(PreTrainedConfig):  # type: ignore[misc]
    """The configuration of a Ferret model. The defaults are those of Ferret-7B.

    Attributes:
        vision_config: Config of the CLIP vision tower.
        text_config: Config of the Llama language model; its vocabulary contains both tokens below.
        image_token_index: Id of the placeholder of one image patch; it follows the published vocabulary.
        region_token_index: Id of ``<region_fea>``, whose embedding is replaced by a region's.
        vision_feature_layer: The layer of the vision tower whose hidden states are used, without the class token.
        region_points: Points sampled per region.
        region_stages: Points kept by the farthest-point sampling of each round.
        region_neighbors: Neighbours gathered by each kept point, per round.
        region_pooling: How the features of a point's neighbours are pooled.
    """

    model_type = "ferret"
    attribute_map = {"image_token_id": "image_token_index", "region_token_id": "region_token_index"}  # noqa: RUF012
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model", init_kwargs=CLIP_L_336),
        "text_config": SubConfigSpec(
            config_class=AutoConfig, model_type="llama", init_kwargs={"vocab_size": 32002, "rms_norm_eps": 1e-6}
        ),
    }

    vision_config: Any = None
    text_config: Any = None
    image_token_index: int = 32001
    region_token_index: int = 32000
    vision_feature_layer: int = -2
    region_points: int = 512
    region_stages: list[int] | tuple[int, ...] = (128, 32)
    region_neighbors: list[int] | tuple[int, ...] = (24, 24)
    region_pooling: Literal["max", "mean"] = "max"
    tie_word_embeddings: bool = False

    @classmethod
    def get_config_dict(cls, source: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The config of a folder as a dict; a published config is converted to the nested form."""
        found, rest = super().get_config_dict(source, **kwargs)
        return (nested_config(found, source) if is_published(found) else found), rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A config from a dict of this class or of a published folder (``FERRETLlamaForCausalLM``)."""
        if is_published(config_dict):
            config_dict = nested_config(config_dict, kwargs.get("name_or_path"))
        return super().from_dict(config_dict, **kwargs)
