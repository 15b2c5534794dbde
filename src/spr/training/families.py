"""What the trainer must know of each family, as data: what it adapts, and what is proven of the model's forward."""

from __future__ import annotations

from dataclasses import dataclass

_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_COGVLM = (
    "language_expert_query_key_value",
    "language_expert_dense",
    "language_mlp.gate_proj",
    "language_mlp.up_proj",
    "language_mlp.down_proj",
)


@dataclass(frozen=True, slots=True)
class Trainable:
    """How a family is trained.

    Attributes:
        targets: Names of the language model's linear layers that get an adapter: the last part, or as many as tell them
            from others that don't.
        shared_prefix: Whether a test holds that one sequence a pair, with image and prompt once, gives the same
            log-probabilities and gradients as two.
        joined_features: Whether the model takes the images' features as one tensor instead of a list.
        bidirectional_prompt: Whether the prompt's tokens see each other in both directions (prefix language models),
            which the model learns from ``token_type_ids``: 0 for the prompt, 1 for the answer.
        language_model: Where the language model, or its list of layers, is in the model; nothing outside of it is ever
            trained.
    """

    targets: tuple[str, ...] = _LLAMA
    shared_prefix: bool = False
    joined_features: bool = False
    bidirectional_prompt: bool = False
    language_model: str = "model.language_model"


TRAINABLE: dict[str, Trainable] = {
    "llava": Trainable(shared_prefix=True),
    "llava_onevision": Trainable(shared_prefix=True),
    "qwen2_vl": Trainable(shared_prefix=True),
    "qwen2_5_vl": Trainable(shared_prefix=True),
    "qwen3_vl": Trainable(shared_prefix=True),
    "ferret": Trainable(shared_prefix=True),
    "internvl": Trainable(shared_prefix=True, joined_features=True),
    # The visual expert's layers stand beside these, and stay frozen.
    "cogvlm": Trainable(targets=_COGVLM, shared_prefix=True, language_model="model.layers"),
    "paligemma": Trainable(joined_features=True, bidirectional_prompt=True),
}
"""The families that can be trained, by ``model_type``."""
