"""Memory, disk and time of a config's models, worked out from their shapes. Estimates, not measurements.

With T tokens in a step (pairs per device × tokens of image, prompt and both answers), L layers of width H with MLPs of
width I, keys of width K and queries of width Q, and A parameters of the adapter:

- weights: parameters × bytes of the dtype.
- describing: weights + batch × (image, prompt and answer tokens) × 4 L K bytes of keys and values.
- training: weights + 16 A (float32 weights, gradients and AdamW's two moments; 10 A with moments in 8 bits) + what
  the backward pass needs, T × L × (16 H + 2 Q + 4 K + 8 I) bytes, or with `gradient_checkpointing` the larger of 4 A
  and T × (2 L H + one layer).
- all: `RESERVE` bytes for CUDA, its libraries and the gaps of the allocator.

The terms of the backward pass were fitted to `benchmarks/sizes.py`, which follows every tensor of the trainer's own
step; for Ferret and CogVLM the sums differ from it by at most 4 %. Times are those of the arithmetic at `MATH_SHARE` of
a card's peak, and of reading weights and keys at `MEMORY_SHARE` of its memory's peak for tokens generated one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from spr.config import DescriberConfig, DetectorConfig, ScorerConfig, TrainingConfig

GIB = 2**30
RESERVE = 2 * GIB
PROMPT, ANSWER = 140, 200
"""Tokens of a prompt's words and of an answer that are assumed."""
PHOTOGRAPH = (640, 480)
"""Width and height of the images that are assumed."""
CARDS = {"A100 80 GB": (312e12, 2.0e12), "H100 80 GB": (989e12, 3.35e12)}
"""Dense bfloat16 operations per second, and bytes per second, by the maker's data sheets."""
MATH_SHARE, MEMORY_SHARE = 0.4, 0.6
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FOUR_BITS = 0.55  # bytes per weight, with the scales of NF4


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a multimodal LLM: its decoder with gated MLPs, and the tokens of an image.

    ``parameters`` is the total; ``experts`` the number of experts per layer, of which one is trained (CogVLM: 2).
    ``dtype`` is that of the published weights. ``tied``: the output head is the embedding.
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int
    image_tokens: int
    dtype: str = "bfloat16"
    experts: int = 1
    tied: bool = False

    @property
    def linear(self) -> dict[str, int]:
        """Inputs plus outputs of each linear layer of a decoder layer, which a LoRA matrix of rank 1 has as numbers."""
        h, i, q, k = self.hidden, self.intermediate, self.queries, self.keys
        attention = {"q_proj": h + q, "k_proj": h + k, "v_proj": h + k, "o_proj": q + h}
        if self.experts > 1:
            attention = {"language_expert_query_key_value": h + q + 2 * k, "language_expert_dense": q + h}
        return attention | {"gate_proj": h + i, "up_proj": h + i, "down_proj": i + h}

    @property
    def decoder(self) -> int:
        """Parameters of the decoder layers of one expert, which each token passes."""
        h, i, q, k = self.hidden, self.intermediate, self.queries, self.keys
        return self.layers * (h * (2 * q + 2 * k) + 3 * h * i + 2 * h)

    @property
    def vision(self) -> int:
        """Parameters outside of the language model: the vision tower, the projector, and biases."""
        text = self.experts * self.decoder + (1 if self.tied else 2) * self.vocabulary * self.hidden
        return max(self.parameters - text, 0)

    def adapter(self, training: TrainingConfig) -> int:
        """Parameters of the LoRA adapter."""
        targets = training.lora.target_modules
        sizes = self.linear
        chosen = sizes if targets is None else {name: sizes.get(name.split(".")[-1], 0) for name in targets}
        return training.lora.r * self.layers * sum(chosen.values())

    def weights(self, dtype: str, *, four_bits: bool = False) -> int:
        """Bytes of the weights."""
        return int(self.parameters * (_FOUR_BITS if four_bits else _BYTES[self.dtype if dtype == "auto" else dtype]))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], parameters: int = 0) -> Shape | None:
        """The shape in a config.json of transformers, given the number of parameters; None if it has no decoder."""
        text = {**config, **(config.get("text_config") or {})}
        try:
            hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
            head = int(text.get("head_dim") or hidden // heads)
            shape = cls(
                parameters,
                int(text["num_hidden_layers"]),
                hidden,
                int(text["intermediate_size"]),
                heads * head,
                int(text.get("num_key_value_heads") or heads) * head,
                int(text["vocab_size"]),
                _image_tokens(config),
                str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "bfloat16"),
                2 if config.get("architectures") == ["CogVLMForCausalLM"] else 1,
                bool(text.get("tie_word_embeddings", False)),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None
        return shape if shape.dtype in _BYTES else replace(shape, dtype="bfloat16")


def _image_tokens(config: Mapping[str, Any]) -> int:
    """Tokens of a photograph: of a fixed square, of its pixels, or of a square and its tiles."""
    vision = config.get("vision_config") or {}
    if config.get("mm_tokens_per_image"):
        return int(config["mm_tokens_per_image"])
    patch = _side(vision.get("patch_size") or 14)
    if "spatial_merge_size" in vision or "image_size" not in vision:  # at its size, with 2 × 2 patches per token
        unit = patch * int(vision.get("spatial_merge_size") or 2)
        return round(PHOTOGRAPH[0] / unit) * round(PHOTOGRAPH[1] / unit)
    side = _side(vision["image_size"]) // patch
    if len(config.get("image_grid_pinpoints") or ()) > 1:
        # The whole image, and 2 × 2 tiles cropped to its aspect, with a token at the end of each row.
        rows = int(2 * side * PHOTOGRAPH[1] / PHOTOGRAPH[0])
        return side**2 + (rows + rows % 2) * (2 * side + 1)
    if config.get("downsample_ratio"):
        # The whole image, and a grid of up to 12 tiles with the photograph's aspect: 4 × 3.
        return 13 * int(side * float(config["downsample_ratio"])) ** 2
    return side**2


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)


_VICUNA_7B = Shape(7_090_207_756, 32, 4096, 11008, 4096, 4096, 32002, 577)
_QWEN_7B = Shape(8_292_166_656, 28, 3584, 18944, 3584, 512, 152_064, 391)
SHAPES = {
    "checkpoints/ferret-7b-v1-3": _VICUNA_7B,
    "checkpoints/ferret-13b-v1-3": Shape(13_369_759_756, 40, 5120, 13824, 5120, 5120, 32002, 577),
    "zai-org/cogvlm-grounding-generalist-hf": replace(
        _VICUNA_7B, parameters=17_639_685_376, vocabulary=32000, image_tokens=1227, experts=2
    ),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": replace(
        _QWEN_7B, parameters=8_029_890_080, vocabulary=152_000, image_tokens=2929
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": _QWEN_7B,
}
"""Shapes of the describers of the configs that ship with SPR, for machines that don't have them yet."""
OTHERS = {"openai/clip-vit-large-patch14-336": 427_944_193, "IDEA-Research/grounding-dino-base": 232_315_264}
"""Parameters of the default scorer and detector, which are published in float32."""


def describing_memory(shape: Shape, describer: DescriberConfig, weights: int | None = None) -> int:
    """Bytes of device memory for describing a batch with answers of full length."""
    tokens = _batch(describer) * (shape.image_tokens + PROMPT + describer.max_new_tokens)
    keys = tokens * 2 * shape.layers * shape.keys * _bytes(shape, describer.dtype)
    if weights is None:
        weights = shape.weights(describer.dtype, four_bits=describer.load_in_4bit)
    return weights + keys + RESERVE


def training_memory(shape: Shape, training: TrainingConfig, weights: int | None = None) -> int:
    """Bytes of device memory for a training step."""
    size, adapter = _bytes(shape, training.dtype) / 2, shape.adapter(training)
    h, i, q, k = shape.hidden, shape.intermediate, shape.queries, shape.keys
    layer = int(step_tokens(shape, training) * (16 * h + 2 * q + 4 * k + 8 * i) * size)
    kept = layer * shape.layers
    if training.gradient_checkpointing:
        kept = max(4 * adapter, layer + int(step_tokens(shape, training) * 2 * shape.layers * h * size))
    if weights is None:
        weights = shape.weights(training.dtype, four_bits=training.load_in_4bit)
    return weights + (8 + _moments(training)) * adapter + kept + RESERVE


def _moments(training: TrainingConfig) -> int:
    """Bytes per trained parameter of the optimizer's two moments."""
    return 2 if training.optim == "adamw_8bit" else 8


def step_tokens(shape: Shape, training: TrainingConfig) -> int:
    """Tokens of a forward pass of a training step, with image and prompt once per pair."""
    once = shape.image_tokens + PROMPT
    prompts = 2 if training.prefix_sharing == "separate" else 1
    return training.per_device_train_batch_size * (prompts * once + 2 * ANSWER)


def checkpoint_bytes(shape: Shape, training: TrainingConfig) -> int:
    """Bytes on disk of the adapter and of the two checkpoints that are kept."""
    return (4 + 2 * (4 + _moments(training))) * shape.adapter(training)


def vision_cache_bytes(shape: Shape, training: TrainingConfig, pairs: int) -> int:
    """Bytes of the vision tower's outputs of all pairs."""
    return pairs * shape.image_tokens * shape.hidden * _bytes(shape, training.dtype)


def describing_seconds(shape: Shape, describer: DescriberConfig, card: str) -> float:
    """Seconds for a batch of descriptions of `ANSWER` tokens."""
    math, memory = CARDS[card]
    batch = _batch(describer)
    prompt = batch * (shape.image_tokens + PROMPT)
    work = 2 * shape.decoder * prompt + 2 * shape.vision * batch * shape.image_tokens
    keys = 4 * shape.layers * shape.keys * (prompt + batch * ANSWER // 2)
    read = (shape.parameters - shape.vision - (shape.experts - 1) * shape.decoder) * 2 + keys
    return work / (MATH_SHARE * math) + ANSWER * read / (MEMORY_SHARE * memory)


def step_seconds(shape: Shape, training: TrainingConfig, card: str) -> float:
    """Seconds for a forward and backward pass of a training step, without the vision tower, which is cached."""
    tokens, adapter = step_tokens(shape, training), shape.adapter(training)
    square = 4 * tokens**2 / training.per_device_train_batch_size * shape.queries * shape.layers
    passes = 1 if training.gradient_checkpointing else 0
    work = tokens * ((4 + 2 * passes) * shape.decoder + (6 + 2 * passes) * adapter) + (3.5 + passes) * square
    return work / (MATH_SHARE * CARDS[card][0])


def reference_seconds(shape: Shape, training: TrainingConfig, card: str) -> float:
    """Seconds for the reference pass of a batch, with its images through the vision tower."""
    tokens = step_tokens(shape, training)
    square = 4 * tokens**2 / training.per_device_train_batch_size * shape.queries * shape.layers
    images = training.per_device_train_batch_size * shape.image_tokens
    work = 2 * tokens * (shape.decoder + shape.adapter(training)) + square + 2 * shape.vision * images
    return work / (MATH_SHARE * CARDS[card][0])


def model_bytes(section: ScorerConfig | DetectorConfig) -> int | None:
    """Bytes of the weights of a scorer or detector, if its size is known."""
    parameters = OTHERS.get(section.model)
    return None if parameters is None else parameters * _BYTES["float32" if section.dtype == "auto" else section.dtype]


def _batch(describer: DescriberConfig) -> int:
    default: int = DescriberConfig.model_fields["batch_size"].default
    return default if describer.batch_size == "auto" else describer.batch_size


def _bytes(shape: Shape, dtype: str) -> int:
    return _BYTES[shape.dtype if dtype == "auto" else dtype]
