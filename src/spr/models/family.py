"""What SPR knows of a family of multimodal LLMs beyond its models' own files: the fields of `Family`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spr.models.thinking import Thinking

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The linear layers of the usual attention."""
LLAMA_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder layer in Llama, Qwen2 and many others."""


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
    target_modules: tuple[str, ...] = LLAMA_LINEAR
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
