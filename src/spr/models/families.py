"""One table of the families of multimodal LLMs: how each is loaded, prompted and trained.

A new family is one entry here, or an entry point of the group ``spr.families`` in another package.
"""

from __future__ import annotations

from functools import partial

from spr.core.errors import closest
from spr.core.registry import Registry
from spr.models.errors import ModelError
from spr.models.family import ATTENTION, LLAMA_LINEAR, CustomModel, Family, LayerMasks
from spr.models.thinking import Thinking

__all__ = [
    "FAMILIES",
    "FERRET_SYSTEM",
    "HOW_TO_ADD",
    "CustomModel",
    "Family",
    "LayerMasks",
    "Thinking",
    "unknown_family",
]

_VICUNA = "USER: {image}\n{prompt} ASSISTANT:"
_CHAT_ML = "<|im_start|>user\n{image}{prompt}<|im_end|>\n<|im_start|>assistant\n"
_CHAT_ML_END = ("<|im_end|>",)
# In transformers 5 the experts of a layer are one tensor and not linear layers, so LoRA's matrices don't fit them.
# Mixtures of experts get adapters on the attention, which all tokens pass.
# The linear attention of Qwen3.5. Left out are `in_proj_a` and `in_proj_b`, whose outputs are one number per head:
# fewer than the usual rank of an adapter.
_GATED_DELTA_NET = ("in_proj_qkv", "in_proj_z", "out_proj")
_QWEN_EMPTY = "<think>\n\n</think>\n\n"
# The Instruct models don't reason; the templates of the Thinking models always open a block.
_QWEN3_VL_THINKING = Thinking(None, _QWEN_EMPTY, always=False)
_QWEN_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_QWEN_TURN = _CHAT_ML.replace("{image}", "<|vision_start|>{image}<|vision_end|>")
_QWEN = partial(
    Family,
    end_of_turn=_CHAT_ML_END,
    max_aspect=200,
    shared_prefix=True,
    positions="grid",
    resized_geometry=True,
    vllm="adapter",
)
_MINICPM = partial(
    Family,
    dialect="minicpm_v",
    turn=_CHAT_ML.replace("{image}", "{image}\n") + _QWEN_EMPTY,
    end_of_turn=_CHAT_ML_END,
    thinking=Thinking("enable_thinking", _QWEN_EMPTY),
    count_function="spr.models.ported.minicpm_v:count_minicpm_v_tokens",
    # MiniCPM-V 2.6 has tokens for them; 4.6 and later have the vocabulary of Qwen3.5.
    markup_tokens=False,
    target_modules=(*_GATED_DELTA_NET, *LLAMA_LINEAR),
)
_GLM_EMPTY = "<think></think>\n"
_GLM_TURN = "[gMASK]<sop><|user|>\n<|begin_of_image|>{image}<|end_of_image|>{prompt}<|assistant|>\n" + _GLM_EMPTY
_GLM = partial(
    Family,
    dialect="glm_v",
    # The template closes no turn: an answer ends where the user's next turn begins.
    end_of_turn=("<|user|>",),
    max_aspect=200,
    shared_prefix=True,
    positions="grid",
)
FERRET_SYSTEM = (
    "A chat between a human and an AI that understands visuals. In images, [x, y] denotes points: top-left [0, 0], "
    "bottom-right [width-1, height-1]. Increasing x moves right; y moves down. Bounding box: [x1, y1, x2, y2]. "
    "Image size: 1000x1000. Follow instructions.  "
)
"""System text of Ferret's conversation template ``ferret_v1``. The two spaces at its end are part of the template."""

_ALL = (
    Family(
        "llava",
        "LLaVA-1.5",
        dialect="llava",
        turn=_VICUNA,
        pads_square=True,
        shared_prefix=True,
        vllm="adapter",
    ),
    Family(
        "llava_onevision",
        "LLaVA-OneVision 0.5B, 7B, 72B",
        dialect="llava_onevision",
        turn="<|im_start|>user {image}\n{prompt}<|im_end|><|im_start|>assistant\n",
        end_of_turn=_CHAT_ML_END,
        shared_prefix=True,
        vllm="merged",
    ),
    _QWEN("qwen2_vl", "Qwen2-VL", dialect="qwen2_vl", turn=_QWEN_SYSTEM + _QWEN_TURN),
    _QWEN("qwen2_5_vl", "Qwen2.5-VL", dialect="qwen2_5_vl", turn=_QWEN_SYSTEM + _QWEN_TURN),
    _QWEN(
        "qwen3_vl",
        "Qwen3-VL 2B to 32B",
        dialect="qwen3_vl",
        turn=_QWEN_TURN,
        deep_features=True,
        thinking=_QWEN3_VL_THINKING,
    ),
    _QWEN(
        "qwen3_vl_moe",
        "Qwen3-VL 30B-A3B, 235B-A22B",
        dialect="qwen3_vl",
        turn=_QWEN_TURN,
        deep_features=True,
        thinking=_QWEN3_VL_THINKING,
        target_modules=ATTENTION,
        vllm=None,
    ),
    _QWEN(
        "qwen3_5",
        "Qwen3.5 0.8B to 27B",
        dialect="qwen3_vl",
        turn=_QWEN_TURN + _QWEN_EMPTY,
        thinking=Thinking("enable_thinking", _QWEN_EMPTY),
        target_modules=(*_GATED_DELTA_NET, *LLAMA_LINEAR),
        shared_prefix=False,
        vllm=None,
    ),
    _QWEN(
        "qwen3_5_moe",
        "Qwen3.5 35B-A3B, 122B-A10B, 397B-A17B",
        dialect="qwen3_vl",
        turn=_QWEN_TURN + _QWEN_EMPTY,
        thinking=Thinking("enable_thinking", _QWEN_EMPTY),
        target_modules=(*_GATED_DELTA_NET, *ATTENTION),
        shared_prefix=False,
        vllm=None,
    ),
    Family(
        "internvl",
        # Not InternVL3.5 GPT-OSS, which writes its answers into channels.
        "InternVL3, InternVL3.5",
        dialect="internvl",
        turn=_CHAT_ML.replace("{image}", "{image}\n"),
        end_of_turn=_CHAT_ML_END,
        shared_prefix=True,
        joined_features=True,
        vllm="adapter",
    ),
    _GLM(
        "glm4v",
        "GLM-4.1V-9B-Thinking, GLM-4.6V-Flash",
        turn=_GLM_TURN,
        thinking=Thinking("enable_thinking", _GLM_EMPTY),
        target_modules=(*ATTENTION, "gate_up_proj", "down_proj"),
    ),
    _GLM(
        "glm4v_moe",
        "GLM-4.5V, GLM-4.6V",
        turn=_GLM_TURN.replace("{prompt}", "{prompt}/nothink"),
        thinking=Thinking("enable_thinking", _GLM_EMPTY),
        target_modules=ATTENTION,
    ),
    _GLM(
        "glm46v",
        "GLM-4.6V in its own class",
        turn=_GLM_TURN.replace("{prompt}", "{prompt}/nothink"),
        thinking=Thinking("enable_thinking", _GLM_EMPTY),
        # The language model is GLM-4.1V's or, with experts, GLM-4.5V's.
        target_modules=ATTENTION,
    ),
    Family(
        "gemma3",
        "Gemma 3 4B, 12B, 27B",
        dialect="gemini",
        turn="<start_of_turn>user\n{image}{prompt}<end_of_turn>\n<start_of_turn>model\n",
        end_of_turn=("<end_of_turn>",),
        shared_prefix=True,
        joined_features=True,
        image_markup="\n\n<start_of_image><image_soft_token><end_of_image>\n\n",
        layer_masks=LayerMasks(("full_attention", "sliding_attention"), "token_type_ids"),
    ),
    Family(
        "gemma4",
        "Gemma 4 E2B, E4B, 26B-A4B, 31B",
        dialect="gemini",
        turn="<|turn>user\n\n\n{image}\n\n{prompt}<turn|>\n<|turn>model\n",
        end_of_turn=("<turn|>",),
        shared_prefix=True,
        image_markup="<|image><|image|><image|>",
        # E2B and E4B have a config without this setting, and plain causal attention.
        layer_masks=LayerMasks(("sliding_attention",), "mm_token_type_ids", "use_bidirectional_attention"),
        # The templates of the larger models close an empty block, those of E2B and E4B write none.
        thinking=Thinking("enable_thinking", "<|channel>thought\n<channel|>", "<|channel>", "<channel|>", always=False),
    ),
    Family(
        "kimi_k25",
        "Kimi K2.5, K2.6",
        dialect="kimi_vl",
        turn="<|im_user|>user<|im_middle|><|media_begin|>image<|media_content|>{image}<|media_end|>\n{prompt}<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think></think>",
        end_of_turn=_CHAT_ML_END,
        # The attention alone, which has latent queries, keys and values: the experts are one tensor, not linear layers.
        target_modules=("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        shared_prefix=True,
        image_processor="spr.models.ported.kimi_k25:load_kimi_k25_images",
        thinking=Thinking("thinking", "<think></think>"),
        row_projections=("q_b_proj", "o_proj"),
    ),
    Family(
        "florence2",
        "Florence-2 base, large (converted: florence-community)",
        dialect="florence2",
        # The processor replaces the task by its question, and puts the image before it.
        turn="{prompt}",
        prompt_pattern="<[A-Z_]+>",
        trainable=False,
        encoder_decoder=True,
    ),
    Family(
        "kosmos-2",
        "Kosmos-2",
        dialect="kosmos2",
        processor_class="Kosmos2Processor",
        turn="{prompt}",
        trainable=False,
        # With padding on the left, transformers gives the answer's tokens positions that count the padding.
        equal_lengths=True,
        # Its processor always inserts 64, and has no method that counts them.
        counts_image_tokens=False,
    ),
    Family(
        "molmo2",
        "Molmo2 4B, 8B, O-7B",
        dialect="molmo2",
        turn="{image}" + _CHAT_ML.replace("{image}", ""),
        end_of_turn=_CHAT_ML_END,
        shared_prefix=True,
        starts_with_bos=True,
        bidirectional_image=True,
        image_processor="spr.models.ported.molmo2:load_molmo2_image_processor",
    ),
    _MINICPM("minicpmv4_6", "MiniCPM-V 4.6"),
    _MINICPM("minicpmv4_7", "MiniCPM-V 4.7", positions="grid", image_grid="target_sizes"),
    Family(
        "paligemma",
        "PaliGemma, PaliGemma 2",
        dialect="paligemma",
        # Not a chat model. Its processor adds the beginning-of-text token after the image and a newline at the end.
        turn="{image}{prompt}",
        joined_features=True,
        bidirectional_prompt=True,
        positions="one_based",
        # Its processor does not count the beginning-of-text token and the newline.
        counts_image_tokens=False,
    ),
    Family(
        "ferret",
        "Ferret 7B, 13B",
        dialect="ferret",
        turn=FERRET_SYSTEM + _VICUNA,
        custom=CustomModel(
            "spr.models.ported.ferret.configuration:FerretConfig",
            "spr.models.ported.ferret.modeling:FerretForConditionalGeneration",
            "spr.models.ported.ferret.processing:load_ferret_processor",
        ),
        shared_prefix=True,
    ),
    Family(
        "cogvlm",
        "CogVLM-17B (grounding-generalist, chat, base)",
        dialect="cogvlm",
        # Of the grounding models. cogvlm-chat uses "Question: … Answer:", set by its config's template_version.
        turn="{image}{prompt}",
        custom=CustomModel(
            "spr.models.ported.cogvlm.configuration:CogVLMConfig",
            "spr.models.ported.cogvlm.modeling:CogVLMForCausalLM",
            "spr.models.ported.cogvlm.processing:load_cogvlm_processor",
            architectures=("CogVLMForCausalLM",),
        ),
        # The layers of the language expert. Those of the visual expert stay frozen.
        target_modules=(
            "language_expert_query_key_value",
            "language_expert_dense",
            "language_mlp.gate_proj",
            "language_mlp.up_proj",
            "language_mlp.down_proj",
        ),
        language_model="model.layers",
        shared_prefix=True,
        counts_image_tokens=False,
        positions="own",
        row_projections=(),
    ),
)

FAMILIES: Registry[Family] = Registry("model family", "spr.families", {family.model_type: family for family in _ALL})
"""The families by ``model_type``."""


HOW_TO_ADD = "docs/how-to/add-a-model-family.md"
"""The page that shows how a family is added."""


def unknown_family(model_type: str, what: str, *, why: str | None = None, instead: str | None = None) -> ModelError:
    """The error for a model whose family is not in the table; it names the family with the most similar name.

    ``what`` can't be done, ``why`` not, if there is more to say, and what the user can do ``instead`` of adding it.

    >>> unknown_family("llava_1_5", "The model can't be trained").expected.partition(";")[0]
    'the nearest is llava (LLaVA-1.5)'
    """
    near = closest(model_type.lower(), FAMILIES)
    nearest = f"the nearest is {near} ({FAMILIES[near].models}); " if near is not None else ""
    got = f"model_type {model_type}" + (f": {why}" if why is not None else "")
    fix = (f"{instead}, or " if instead is not None else "") + f"add the family: {HOW_TO_ADD} shows how"
    return ModelError(what, got=got, expected=f"{nearest}known are {', '.join(FAMILIES)}", fix=fix)
