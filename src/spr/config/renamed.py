"""Config fields of SPR 0.1 that have a new name, for error messages."""

from __future__ import annotations

RENAMED: dict[str, str] = {
    "describer.adapter": "describer.backend",
    "describer.attention": "describer.attn_implementation",
    "scorer.adapter": "scorer.backend",
    "detector.adapter": "detector.backend",
    "training.attention": "training.attn_implementation",
    "training.batch_size": "training.per_device_train_batch_size",
    "training.checkpoint_every": "training.save_steps",
    "training.epochs": "training.num_train_epochs",
    "training.features": "training.vision_cache",
    "training.gradient_accumulation": "training.gradient_accumulation_steps",
    "training.log_every": "training.logging_steps",
    "training.loss": "training.loss_type",
    "training.prefix": "training.prefix_sharing",
    "training.schedule": "training.lr_scheduler_type",
    "training.trackers": "training.report_to",
    "training.warmup": "training.warmup_ratio",
    "training.lora.alpha": "training.lora.lora_alpha",
    "training.lora.dropout": "training.lora.lora_dropout",
    "training.lora.rank": "training.lora.r",
    "training.lora.targets": "training.lora.target_modules",
}
"""Old dotted name → new dotted name."""
