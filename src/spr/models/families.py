"""One table of the families of multimodal LLMs: how each is loaded, prompted and trained.

A new family is one entry here, or an entry point of the group ``spr.families`` in another package.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from spr.core.errors import closest
from spr.core.registry import Registry
from spr.grounding import DIALECTS, Dialect, get_dialect
from spr.grounding.geometry import Resized
from spr.models.loading import ModelError
from spr.models.thinking import Thinking

# In transformers 5 the experts of a layer are one tensor and not linear layers, so LoRA's matrices don't fit them.
# Mixtures of experts get adapters on the attention, which all tokens pass.
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_LLAMA_LINEAR = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class CustomModel:
    """Classes of a model that transformers does not have, as ``"module:name"``; they are imported when first used.

    ``load_processor`` takes a folder or hub id, a config and ``revision=``, and returns a processor that pads on the
    left. ``architectures`` of config.json identify published folders without a ``model_type``.
    """

    config: str
    model: str
    load_processor: str
    architectures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerMasks:
    """How the language model's types of layers differ in their attention; it takes one mask for each type.

    Layers of type ``sliding_attention`` see only the last ``sliding_window`` positions.

    Attributes:
        both_directions: Types of layers in which the tokens of one image attend to each other in both directions.
        setting: Field of the language model's config that must be ``vision`` for this; None if it is always so.
        token_types: Name of the model's input that is 1 for the tokens of an image, and 0 for all others.
    """

    both_directions: tuple[str, ...]
    token_types: str
    setting: str | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """Models that share one model class, and what SPR must know of them that their files don't state.

    Nothing outside of an entry decides by the name of a family: what differs between families is a field.

    Attributes:
        model_type: ``model_type`` of their configs, and the key in `FAMILIES`.
        models: The names that people know them by.
        dialect: Key of `spr.grounding.DIALECTS`.
        turn: The user's turn and the start of the answer for folders without a chat template, from the model's card.
            ``{image}`` stands for the image, ``{prompt}`` for the user's text. Without ``{image}``, the processor
            inserts the image itself.
        end_of_turn: Tokens that end an answer, in addition to those of the generation config.
        markup_tokens: True if the published vocabularies have one token for each special token of the dialect; False
            if the models write them as text, or it is not known.
        pads_square: True if the model was trained on images padded to a square while its saved processor crops them.
        max_aspect: Ratio of the longer to the shorter side above which the image processor refuses an image.
        custom: The model's own classes, for families that transformers does not have.
        target_modules: Default LoRA targets: names of linear layers of the language model, with as many parent names
            as are needed to tell them from layers that get no adapter.
        language_model: Path of the language model, or of its list of layers, inside the model. Nothing outside of it
            is ever trained.
        shared_prefix: True if a test shows that one sequence per pair (image and prompt once, then both answers) gives
            the same log-probabilities and gradients as two sequences.
        joined_features: True if the model takes the image features as one tensor instead of a list.
        bidirectional_prompt: True for prefix language models, in which prompt tokens attend to each other in both
            directions. They read ``token_type_ids``: 0 for the prompt, 1 for the answer.
        trainable: False for models that can only be describers.
        encoder_decoder: True for models whose encoder reads the prompt; generated sequences begin with the answer.
        equal_lengths: True if the prompts of a batch must have the same number of tokens, because the model counts
            padding as positions.
        prompt_pattern: Regular expression that every prompt begins with, for models that only do a fixed set of tasks.
        thinking: How models that can reason are told to; None for families without reasoning.
        counts_image_tokens: True if the processor's ``_get_num_multimodal_tokens`` gives the number of image tokens in
            a prompt without the image.
        count_function: Function, as ``"module:name"``, that gives this number where the processor has no such method,
            from the processor, the image's height and its width.
        positions: The positions of the prompt's tokens: ``text``: 0, 1, 2, …; ``one_based``: 1, 2, 3, …; ``grid``: by
            the model's ``get_rope_index``, for image tokens with a row and a column; ``own``: by the model's
            ``prompt_positions``.
        image_grid: Name of the processor's output with an image's size in patches, for positions by ``grid``.
        resized_geometry: True if the image processor resizes images as Qwen2-VL's does, to multiples of ``patch_size``
            × ``merge_size`` between the limits of its ``size``. Dialects in pixels of the resized image follow it.
        row_projections: Names of the linear layers before and after the attention of a decoder layer. With them,
            training skips the rows of the last layer that nothing reads; empty for layers that are built differently.
        deep_features: True if image features are also added to the first layers of the language model.
        starts_with_bos: True if the processor puts the beginning-of-text token, or if there is none the end-of-text
            token, before prompts that do not start with it.
        bidirectional_image: True if all tokens that the processor writes for an image, also those between its rows,
            attend to each other in both directions. The model reads ``mm_token_type_ids``: 1 for them, 0 for others.
        vllm: How vLLM 0.33 runs the family (``describer.backend: vllm``): ``adapter``: with the same prompt tokens and
            image sizes as transformers, and with LoRA adapters; ``merged``: likewise, but an adapter must be merged
            first; None: not.
        layer_masks: How the layers' attention differs; None if all layers have the same mask.
        image_markup: What the processor writes in place of the prompt's placeholder, with one image token; None if it
            writes image tokens alone.
        processor_class: Name of the processor class, for families that transformers' table of processors lacks.
        image_processor: Function, as ``"module:name"``, that loads the image processor where transformers has it for
            torchvision only. It takes a folder or hub id and ``revision=``.
    """

    model_type: str
    models: str
    dialect: str
    turn: str
    end_of_turn: tuple[str, ...] = ()
    markup_tokens: bool = True
    pads_square: bool = False
    max_aspect: float | None = None
    custom: CustomModel | None = None
    target_modules: tuple[str, ...] = _LLAMA_LINEAR
    language_model: str = "model.language_model"
    shared_prefix: bool = False
    joined_features: bool = False
    bidirectional_prompt: bool = False
    trainable: bool = True
    encoder_decoder: bool = False
    equal_lengths: bool = False
    prompt_pattern: str | None = None
    thinking: Thinking | None = None
    counts_image_tokens: bool = True
    count_function: str | None = None
    positions: Literal["text", "one_based", "grid", "own"] = "text"
    image_grid: str = "image_grid_thw"
    resized_geometry: bool = False
    row_projections: tuple[str, ...] = ("q_proj", "o_proj")
    deep_features: bool = False
    starts_with_bos: bool = False
    bidirectional_image: bool = False
    vllm: Literal["adapter", "merged"] | None = None
    layer_masks: LayerMasks | None = None
    image_markup: str | None = None
    processor_class: str | None = None
    image_processor: str | None = None

    @property
    def decoder(self) -> str:
        """Path of the module whose ``layers`` are the decoder's, such as ``model.language_model``."""
        return self.language_model.removesuffix(".layers")


_VICUNA = "USER: {image}\n{prompt} ASSISTANT:"
_CHAT_ML = "<|im_start|>user\n{image}{prompt}<|im_end|>\n<|im_start|>assistant\n"
_CHAT_ML_END = ("<|im_end|>",)
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
        target_modules=_ATTENTION,
        vllm=None,
    ),
    _QWEN(
        "qwen3_5",
        "Qwen3.5 0.8B to 27B",
        dialect="qwen3_vl",
        turn=_QWEN_TURN + _QWEN_EMPTY,
        thinking=Thinking("enable_thinking", _QWEN_EMPTY),
        target_modules=(*_GATED_DELTA_NET, *_LLAMA_LINEAR),
        shared_prefix=False,
        vllm=None,
    ),
    _QWEN(
        "qwen3_5_moe",
        "Qwen3.5 35B-A3B, 122B-A10B, 397B-A17B",
        dialect="qwen3_vl",
        turn=_QWEN_TURN + _QWEN_EMPTY,
        thinking=Thinking("enable_thinking", _QWEN_EMPTY),
        target_modules=(*_GATED_DELTA_NET, *_ATTENTION),
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
        target_modules=(*_ATTENTION, "gate_up_proj", "down_proj"),
    ),
    _GLM(
        "glm4v_moe",
        "GLM-4.5V, GLM-4.6V",
        turn=_GLM_TURN.replace("{prompt}", "{prompt}/nothink"),
        thinking=Thinking("enable_thinking", _GLM_EMPTY),
        target_modules=_ATTENTION,
    ),
    _GLM(
        "glm46v",
        "GLM-4.6V in its own class",
        turn=_GLM_TURN.replace("{prompt}", "{prompt}/nothink"),
        thinking=Thinking("enable_thinking", _GLM_EMPTY),
        # The language model is GLM-4.1V's or, with experts, GLM-4.5V's.
        target_modules=_ATTENTION,
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


def is_grounding_token(token: str, *dialects: Dialect) -> bool:
    """Whether a special token is part of the markup of a dialect: a registered one, or one of ``dialects``.

    >>> tuple(is_grounding_token(token) for token in ("<loc0123>", "<|box_end|>", "</ref>", "<|im_end|>", "<image>"))
    (True, True, True, False, False)
    """
    patterns = (dialect.special_tokens for dialect in (*DIALECTS.values(), *dialects))
    return any(pattern is not None and re.fullmatch(pattern, token) for pattern in patterns)


def choose_dialect(dialect: str | Dialect | None, model_type: str, image_processor: Any) -> Dialect:
    """The dialect of a model, given by key, or its family's dialect if None; a `Dialect` is returned unchanged.

    The image processor may be None before it is loaded.

    One in pixels of the resized image (Qwen2.5-VL) is set up to match the image processor of families with a
    `Family.resized_geometry`; for other families, its options must say how large the images become.

    Raises:
        ModelError: if ``dialect`` is None and the family is not in `FAMILIES`, or if it is not known to how many pixels
            the family resizes an image.
        GroundingError: for an unknown key.
    """
    if isinstance(dialect, Dialect):
        return dialect
    if dialect is None:
        if model_type not in FAMILIES:
            what = "The dialect of this model family is unknown"
            raise unknown_family(model_type, what, instead="set describer.dialect")
        dialect = FAMILIES[model_type].dialect
    chosen = get_dialect(dialect)
    if not isinstance(chosen.geometry, Resized):
        return chosen
    if model_type in FAMILIES and FAMILIES[model_type].resized_geometry:
        if image_processor is None:
            return chosen
        factor, size = image_processor.patch_size * image_processor.merge_size, image_processor.size
        geometry = Resized(factor=factor, min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"])
        return dataclasses.replace(chosen, geometry=geometry)
    if chosen == DIALECTS.get(chosen.key):
        what = f"It is not known to how many pixels models of type {model_type} resize their images"
        fix = f"give the settings, as in describer.dialect={chosen.key}:min_pixels=3136,max_pixels=12845056"
        raise ModelError(what, got=f"dialect {chosen.key}", expected="a dialect relative to the image", fix=fix)
    return chosen
