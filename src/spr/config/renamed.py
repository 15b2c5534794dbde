"""Config fields under other names, for error messages: those of SPR 0.1, and those that users of other tools try."""

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

ALSO_KNOWN_AS: dict[str, str] = {
    "annotations.file": "annotations.path",
    "annotations.image_dir": "annotations.images",
    "annotations.image_folder": "annotations.images",
    "annotations.json": "annotations.path",
    "describer.max_tokens": "describer.max_new_tokens",
    "describer.model_name_or_path": "describer.model",
    "describer.url": "describer.base_url",
    "training.bf16": "training.dtype",
    "training.fp16": "training.dtype",
    "training.lora_alpha": "training.lora.lora_alpha",
    "training.lora_dropout": "training.lora.lora_dropout",
    "training.lora_r": "training.lora.r",
    "training.lora_rank": "training.lora.r",
    "training.lora_target_modules": "training.lora.target_modules",
    "training.lr": "training.learning_rate",
    "training.max_seq_length": "training.max_length",
    "training.steps": "training.max_steps",
    "training.target_modules": "training.lora.target_modules",
    "training.torch_dtype": "training.dtype",
}
"""Names that other tools use → dotted names here."""
