"""The config section `training`: preference training of a LoRA adapter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spr.config.section import DType, Float, Int, Section


class LoraSection(Section):
    """The adapter: on the linear layers of the language model only (METHOD §6)."""

    r: Int = Field(default=128, ge=1)
    """[seed]"""
    lora_alpha: Float = Field(default=256, gt=0)
    """The adapter's output is scaled by alpha over rank [seed]."""
    lora_dropout: Float = Field(default=0.0, ge=0, lt=1)
    """Of the adapter's inputs [ours: none, so that the answers' log-probabilities are exact]."""
    target_modules: tuple[str, ...] | None = None
    """Names of the language model's linear layers, such as `q_proj`; null: all that the family has."""


class TrainingConfig(Section):
    """Pairs → LoRA adapter (METHOD §6)."""

    runtime_fields = frozenset(
        {
            "save_steps",
            "logging_steps",
            "report_to",
            "device",
            "vision_cache",
            "gradient_checkpointing",
            "prefix_sharing",
        }
    )

    loss_type: Literal["dpo", "ipo", "sft"] = "dpo"
    """`dpo` [paper]; `ipo`; `sft`: fine-tuning on the chosen answers alone, the paper's ablation."""
    beta: Float = Field(default=0.1, gt=0)
    """How far the policy may go from the reference; 0.1 [ours], the paper gives none."""
    nll_weight: Float = Field(default=0.0, ge=0)
    """Adds this times the chosen answers' mean negative log-likelihood a token [ours: none]."""
    learning_rate: Float = Field(default=1e-5, gt=0)
    """Peak: 1e-5 for Ferret and CogVLM, 2e-7 for LLaVA-OneVision [seed]."""
    per_device_train_batch_size: Int = Field(default=2, ge=1)
    """Pairs a forward pass and a process [seed: batch size 2]."""
    gradient_accumulation_steps: Int = Field(default=1, ge=1)
    """Forward passes a step [ours]."""
    num_train_epochs: Int = Field(default=1, ge=1)
    """[ours]"""
    max_steps: Int | None = Field(default=None, ge=1)
    """Ends the training early; the schedule ends there, too."""
    warmup_ratio: Float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises [ours]."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """What the learning rate does after that: fall to 0 along a cosine [ours], or a line, or stay."""
    weight_decay: Float = Field(default=0.0, ge=0)
    """AdamW's [ours: none]."""
    max_grad_norm: Float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; null: never [ours]."""
    lora: LoraSection = LoraSection()
    dtype: DType = "auto"
    """Of the frozen weights and all products; `auto` is what they are stored in. The adapter's own weights and their
    gradients are always float32."""
    load_in_4bit: bool = False
    """Frozen weights in 4 bits (QLoRA); needs bitsandbytes and a GPU."""
    attn_implementation: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention kernel; `flash_attention_2` knows no shared prefix."""
    gradient_checkpointing: bool = False
    """Keeps one activation a layer, and computes the others again: less memory, a third more time."""
    prefix_sharing: Literal["auto", "shared", "separate"] = "auto"
    """One sequence a pair, image and prompt once (`shared`), or two; `auto`: shared where that is proven equal."""
    vision_cache: Literal["auto", "none", "memory", "disk"] = "auto"
    """Where the frozen vision tower's outputs are kept between the reference pass and the epochs; `auto`: in memory, at
    most a quarter of what is free, and what finds no room is computed anew."""
    max_length: Int | None = Field(default=None, ge=1)
    """Pairs of which an answer with its prompt has more tokens are dropped, never cut; null: what the model reads."""
    save_steps: Int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    logging_steps: Int = Field(default=1, ge=1)
    """Steps between lines of the log."""
    report_to: tuple[str, ...] = ()
    """Of Accelerate: `tensorboard`, `wandb`, `trackio`; `RUN/training/log.jsonl` is always written."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, …"""
