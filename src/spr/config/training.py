"""The config section `training`: preference training of a LoRA adapter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from spr.config.backends import LOSSES, check_backend
from spr.config.section import DType, Float, Int, Section


class LoraSection(Section):
    """LoRA on the linear layers of the language model (supplement, Sec. 2). Names are those of PEFT's `LoraConfig`."""

    r: Int = Field(default=128, ge=1)
    """Rank (supplement, Sec. 2)."""
    lora_alpha: Float = Field(default=256, gt=0)
    """The adapter's output is scaled by `lora_alpha / r` (supplement, Sec. 2)."""
    lora_dropout: Float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability of the adapter's inputs (our choice: 0, so that log-probabilities are exact)."""
    target_modules: tuple[str, ...] | None = None
    """Names of linear layers of the language model, such as `q_proj`; null uses all that the family lists."""


class TrainingConfig(Section):
    """Preference training of a LoRA adapter (supplement, Sec. 2). Field names follow transformers and TRL."""

    runtime_fields = frozenset(
        {"save_steps", "logging_steps", "report_to", "device"}
        | {"vision_cache", "gradient_checkpointing", "prefix_sharing"}
    )

    loss_type: str = "dpo"
    """`dpo` (paper); `ipo`; `sft`: supervised fine-tuning on the chosen answers alone, the paper's ablation."""
    beta: Float = Field(default=0.1, gt=0)
    """Strength of the pull towards the reference model. The paper does not give it; 0.1 is our choice."""
    nll_weight: Float = Field(default=0.0, ge=0)
    """Weight of the per-token NLL loss on the chosen answers (our choice: 0)."""
    learning_rate: Float = Field(default=1e-5, gt=0)
    """Peak learning rate: 1e-5 for Ferret and CogVLM, 2e-7 for LLaVA-OneVision (supplement, Sec. 2)."""
    per_device_train_batch_size: Int = Field(default=2, ge=1)
    """Pairs per device per forward pass (supplement, Sec. 2: batch size 2)."""
    gradient_accumulation_steps: Int = Field(default=1, ge=1)
    """Forward passes per optimizer step (our choice)."""
    num_train_epochs: Int = Field(default=1, ge=1)
    """Number of passes over the pairs (our choice)."""
    max_steps: Int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps; the learning rate schedule ends there too. Null trains all epochs."""
    warmup_ratio: Float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises (our choice)."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up: falls to 0 along a cosine (our choice) or a line, or stays constant."""
    weight_decay: Float = Field(default=0.0, ge=0)
    """AdamW's weight decay (our choice: 0)."""
    max_grad_norm: Float | None = Field(default=1.0, gt=0)
    """Maximum norm for gradient clipping; null disables it (our choice)."""
    lora: LoraSection = LoraSection()
    dtype: DType = "auto"
    """Data type of the frozen weights and of the computation; `auto` uses the stored one. The adapter's weights and
    gradients are always float32."""
    load_in_4bit: bool = False
    """Load the frozen weights in 4 bits (QLoRA). Needs bitsandbytes and a GPU."""
    attn_implementation: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention implementation; `flash_attention_2` does not support prefix sharing."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    prefix_sharing: Literal["auto", "shared", "separate"] = "auto"
    """Compute image and prompt once per pair (`shared`) or once per answer (`separate`); `auto` shares them where tests
    show that the result is the same."""
    vision_cache: Literal["auto", "none", "memory", "disk"] = "auto"
    """Where outputs of the frozen vision tower are kept between the reference pass and the epochs; `auto` uses at most
    a quarter of the free memory and recomputes the rest."""
    max_length: Int | None = Field(default=None, ge=1)
    """Pairs with more tokens in the prompt and one answer are dropped, never truncated; null uses the model's limit."""
    save_steps: Int = Field(default=100, ge=1)
    """Steps between two checkpoints."""
    logging_steps: Int = Field(default=1, ge=1)
    """Steps between two lines of the training log."""
    report_to: tuple[str, ...] = ()
    """Trackers of Accelerate, such as `tensorboard` or `wandb`. `RUN/training/log.jsonl` is always written."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, …"""

    @field_validator("loss_type")
    @classmethod
    def _loss_exists(cls, value: str) -> str:
        return check_backend(value, LOSSES)
