"""The shapes of published models, for tests that build them on the meta device. No weights are loaded.

Each entry holds the fields of the published config.json that decide shapes, and says where they were read. Numbers of
parameters are published exactly for Qwen2.5-VL and CogVLM. For the others they are sums of published parts, worked out
here by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
}
# Qwen2-7B and Qwen2.5-7B (both 7.61B on their model cards): 28 layers with biases of queries, keys and values, a norm,
# and twice the vocabulary.
_QWEN2_LAYER = 2 * 3584**2 + 2 * 3584 * 512 + 3584 + 2 * 512 + 3 * 3584 * 18944 + 2 * 3584
QWEN2_LAYERS = 28 * _QWEN2_LAYER + 3584
# A layer of a ViT of width W with an MLP of width M: four matrices with biases, two of the MLP, two norms.
SIGLIP_LAYER = 4 * (1152**2 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
CLIP_L_LAYER = 4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
LLAMA_7B = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
CLIP_L_336 = 24 * CLIP_L_LAYER + 1024 + 3 * 14**2 * 1024 + 577 * 1024 + 4 * 1024


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        model: The id of the Hub, or the name in its paper.
        config: The config.json, as far as it decides shapes.
        source: Where it was read, and what of it was reconstructed.
        parameters: Number of parameters.
        parameters_source: Where the number was read, or of which parts it is the sum.
        adapter: Numbers of a LoRA adapter of rank 1 per decoder layer: inputs plus outputs of the layers, by hand.
        layers: Layers of the decoder.
        square: The side in pixels and the tokens of an image that is always resized to a square; None for the others.
        preprocessor: Fields of the published preprocessor_config.json.
    """

    model: str
    config: dict[str, Any]
    source: str
    parameters: int
    parameters_source: str
    adapter: dict[str, int]
    layers: int
    square: tuple[int, int] | None = None
    preprocessor: dict[str, Any] = field(default_factory=dict)


_QWEN_ADAPTER = {
    "q_proj": 3584 + 3584,
    "k_proj": 3584 + 512,
    "v_proj": 3584 + 512,
    "o_proj": 3584 + 3584,
    "gate_proj": 3584 + 18944,
    "up_proj": 3584 + 18944,
    "down_proj": 18944 + 3584,
}
_LLAMA_MLP = {"gate_proj": 4096 + 11008, "up_proj": 4096 + 11008, "down_proj": 11008 + 4096}

PUBLISHED = {
    "llava_onevision": Published(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        {
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "model_type": "llava_onevision",
            "text_config": {**QWEN2_7B, "model_type": "qwen2", "vocab_size": 152_000},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 26,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
                "vision_use_head": False,
            },
            "image_grid_pinpoints": [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)],
            "vision_aspect_ratio": "anyres_max_9",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "tie_word_embeddings": False,
        },
        "huggingface/transformers, src/transformers/models/llava_onevision/convert_llava_onevision_weights_to_hf.py "
        "(26 layers of SigLIP SO400M without its head; vocabulary padded to a multiple of 64) and the defaults of "
        "LlavaOnevisionConfig; sizes of Qwen2-7B from its config.json. The file itself was not found.",
        QWEN2_LAYERS
        + 2 * 152_000 * 3584
        + 26 * SIGLIP_LAYER
        + 3 * 14**2 * 1152
        + 1152  # patches
        + 729 * 1152  # positions
        + 2 * 1152  # final norm
        + (1152 * 3584 + 3584)
        + (3584**2 + 3584)  # projector
        + 3584,  # the token that ends a row
        "sum of Qwen2-7B's layers, twice the vocabulary of 152,000, SigLIP SO400M's first 26 layers and the projector",
        _QWEN_ADAPTER,
        28,
        preprocessor={"size": {"height": 384, "width": 384}},
    ),
    "qwen2_5_vl": Published(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "text_config": {
                **QWEN2_7B,
                "model_type": "qwen2_5_vl_text",
                "max_position_embeddings": 128_000,
                "vocab_size": 152_064,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            },
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
            "tie_word_embeddings": False,
        },
        "the config.json as embedded in kohya-ss/musubi-tuner, src/musubi_tuner/qwen_image/qwen_image_utils.py "
        "(QWEN2_5_VL_CONFIG_JSON)",
        8_292_166_656,
        "the Hub's listing of the organisation's models (numParameters); 16,584,333,312 bytes of weights in bfloat16",
        _QWEN_ADAPTER,
        28,
        preprocessor={"size": {"shortest_edge": 3136, "longest_edge": 12_845_056}, "patch_size": 14, "merge_size": 2},
    ),
    "internvl": Published(
        "OpenGVLab/InternVL3-8B-hf",
        {
            "architectures": ["InternVLForConditionalGeneration"],
            "model_type": "internvl",
            "text_config": {**QWEN2_7B, "model_type": "qwen2", "vocab_size": 151_674},
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": [448, 448],
                "patch_size": [14, 14],
                "attention_bias": True,
                "use_qk_norm": False,
                "norm_type": "layer_norm",
            },
            "downsample_ratio": 0.5,
            "image_seq_length": 256,
            "tie_word_embeddings": False,
        },
        "Ascend/MindSpeed-MM, examples/internvl3/model_8B.json (sizes, vocabulary, ratio); InternViT-300M-448px as in "
        "the defaults of InternVLVisionConfig. The config.json of the -hf repository was not found.",
        QWEN2_LAYERS
        + 2 * 151_674 * 3584
        + 24 * (CLIP_L_LAYER + 2 * 1024)  # with two factors that scale the layers' outputs
        + (3 * 14**2 * 1024 + 1024)
        + 1025 * 1024
        + 1024  # patches, positions, class token
        + 2 * 4096
        + (4096 * 3584 + 3584)
        + (3584**2 + 3584),  # norm and projector of four patches
        "sum of Qwen2.5-7B's layers, twice the vocabulary of 151,674, InternViT-300M and the projector",
        _QWEN_ADAPTER,
        28,
        preprocessor={"size": {"height": 448, "width": 448}, "crop_to_patches": True, "max_patches": 12},
    ),
    "ferret": Published(
        "Ferret-7B v1.3",
        {"model_type": "ferret", "architectures": ["FerretForConditionalGeneration"]},
        "the defaults of FerretConfig, from apple/ml-ferret (ferret/model/ferret_llama.py, builder.py) and Vicuna-7B "
        "v1.3; the authors publish weights as a difference to Vicuna's, without a config.json on the Hub",
        LLAMA_7B
        + 2 * 32_002 * 4096
        + CLIP_L_336
        + (1024 * 4096 + 4096)  # projector
        # The sampler of regions (its Sec. 3.2): two rounds of a projection of differences and of an aggregation, then
        # 32 points of 1024 numbers to one, and to the width of the language model.
        + 2 * (1026**2 + 1026)
        + 2 * (2052 * 1024 + 3 * 1024)
        + (32 * 1024**2 + 1024)
        + (1024 * 4096 + 4096),
        "sum of Vicuna-7B with two more tokens, CLIP ViT-L/14-336, the projector and the sampler of regions",
        {"q_proj": 8192, "k_proj": 8192, "v_proj": 8192, "o_proj": 8192, **_LLAMA_MLP},
        32,
        square=(336, 576),
    ),
    "cogvlm": Published(
        "zai-org/cogvlm-grounding-generalist-hf",
        {"model_type": "cogvlm", "architectures": ["CogVLMForCausalLM"]},
        "the defaults of CogVLMConfig in THUDM/CogVLM's configuration_cogvlm.py, which equal the published config.json",
        17_639_685_376,
        "the count for cogvlm-chat-hf in public comparisons of models (of the same classes and sizes); the "
        "paper (Wang et al., 2023) says 17B, of which 10B are visual",
        {"language_expert_query_key_value": 4096 + 3 * 4096, "language_expert_dense": 8192, **_LLAMA_MLP},
        32,
        square=(490, 1227),
    ),
}
"""By ``model_type``."""
