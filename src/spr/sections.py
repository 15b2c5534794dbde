"""The sections of a config: every choice of the method, each with its default, its reason and its source.

[seed] marks what the paper's supplement says, [paper] its main text, [ours] our reading where it is silent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from spr.model_sections import DescriberConfig, DetectorConfig, SamplesConfig, ScorerConfig
from spr.section import DType, Float, Int, Section

__all__ = [
    "AnnotationsConfig",
    "DType",
    "DescriberConfig",
    "DetectorConfig",
    "Float",
    "Int",
    "LoraSection",
    "PairingConfig",
    "PromptsConfig",
    "RegionsConfig",
    "SamplesConfig",
    "ScorerConfig",
    "ScoringConfig",
    "Section",
    "TrainingConfig",
]


class AnnotationsConfig(Section):
    """Annotations → objects (METHOD §1)."""

    path: Path
    """COCO, LVIS or Objects365 JSON."""
    images: Path
    """The folder that the file names in the JSON are relative to."""
    min_area: Float = Field(default=300.0, ge=0)
    """Objects whose box area is under this, in px², are removed [seed]."""
    min_objects: Int = Field(default=9, ge=1)
    """Images with fewer objects left are dropped [seed: "containing more than eight objects"]."""
    max_images: Int | None = Field(default=10_000, ge=1)
    """How many images are sampled [seed]; null keeps all."""
    crowds: Literal["drop", "detect"] = "drop"
    """Crowd annotations are dropped, and counted; or the detector looks for their objects and replaces them [seed]."""
    crowd_nms_iou: Float = Field(default=0.5, ge=0, le=1)
    """Non-maximum suppression among what the detector finds in a crowd [ours]."""
    crowd_duplicate_iou: Float = Field(default=0.5, ge=0, le=1)
    """A find over this IoU with an object of the same category is that object, and dropped [ours]."""
    check_images: bool = True
    """Whether the sampled images are opened and decoded: finds files that are missing, truncated or of another size."""
    orientation: Literal["auto", "apply", "ignore"] = "auto"
    """What to do with EXIF rotation: `auto` rotates where only that fits the annotated size, and drops what can't be
    told; `apply` always rotates; `ignore` never does [ours]."""
    max_pixels: Int = Field(default=178_956_970, ge=1, le=178_956_970)
    """Larger images are dropped without being decoded (decompression bombs); at most what Pillow opens."""


class RegionsConfig(Section):
    """Objects → region queries (METHOD §2)."""

    per_image: Int = Field(default=1, ge=1)
    """Region queries an image, each from another start object [ours]."""
    min_inside: Int = Field(default=5, ge=1)
    """A region grows until this many objects are inside [paper: "more than 4"]."""
    min_aspect: Float = Field(default=1 / 3, ge=0, lt=1)
    """Short side over long side must be over this [seed]."""
    inside_fraction: Float = Field(default=0.5, gt=0, le=1)
    """An object is inside when at least this share of its area is [seed]."""
    distance: Literal["edge", "centre"] = "edge"
    """What "closest" means: the gap between the edges (ties by the centres), or between the centres [ours]."""
    failed_aspect: Literal["grow", "next_start"] = "grow"
    """A region with enough objects but too narrow goes on growing, or the next start object is tried [ours]."""


class PromptsConfig(Section):
    """What the model is asked. `{region}` and `{objects}` are written in the model's dialect."""

    full: str = "Describe the region {region} in detail, and give the bounding box of each object that you mention."
    """The training prompt, which is also asked of the whole image; needs `{region}`."""
    crop: str = "Describe this image in detail, and give the bounding box of each object that you mention."
    """Asked of the crop."""
    crop_objects: str = (
        "Describe this image in detail, and give the bounding box of each object that you mention. "
        "These objects are in it:\n{objects}"
    )
    """Asked of the crop, with the objects inside; needs `{objects}`."""
    object_line: str = "{index}. {category} {box}"
    """One object of the list; needs `{category}` and `{box}`."""
    object_join: str = "\n"
    """What stands between two objects of the list."""

    @field_validator("full", "crop_objects", "object_line")
    @classmethod
    def _has_its_fields(cls, value: str, info: ValidationInfo) -> str:
        needed = {"full": ("{region}",), "crop_objects": ("{objects}",), "object_line": ("{category}", "{box}")}
        for name in needed[str(info.field_name)]:
            if name not in value:
                raise ValueError(f"lacks {name}")
        return value


class ScoringConfig(Section):
    """How the scores are joined (METHOD §4)."""

    semantic_weight: Float = Field(default=0.8, ge=0, le=1)
    """λ: S = λ S_sem + (1 − λ) S_loc [paper]."""
    ground_truth: Literal["annotations", "annotations+detections"] = "annotations"
    """The objects that S_loc asks for; with detections, what the detector finds counts as one, too [ours]."""


class PairingConfig(Section):
    """Which pairs are kept (METHOD §5)."""

    unmatched: Literal["remove_box", "keep_box", "remove_phrase"] = "remove_box"
    """What refinement does to boxes that match nothing [ours]."""
    min_margin: Float = Field(default=0.0, ge=0)
    """Pairs whose scores differ by less are dropped [ours]."""
    max_length_ratio: Float | None = Field(default=None, gt=1)
    """Pairs of which one answer has more than this many times the other's words are dropped; null keeps all [ours]."""


class LoraSection(Section):
    """The adapter: on the linear layers of the language model only (METHOD §6)."""

    rank: Int = Field(default=128, ge=1)
    """[seed]"""
    alpha: Float = Field(default=256, gt=0)
    """The adapter's output is scaled by alpha over rank [seed]."""
    dropout: Float = Field(default=0.0, ge=0, lt=1)
    """Of the adapter's inputs [ours: none, so that the answers' log-probabilities are exact]."""
    targets: tuple[str, ...] | None = None
    """Names of the language model's linear layers, such as `q_proj`; null: all that the family has."""


class TrainingConfig(Section):
    """Pairs → LoRA adapter (METHOD §6)."""

    free_fields = frozenset(
        {"checkpoint_every", "log_every", "trackers", "device", "features", "gradient_checkpointing", "prefix"}
    )

    loss: Literal["dpo", "ipo", "sft"] = "dpo"
    """`dpo` [paper]; `ipo`; `sft`: fine-tuning on the chosen answers alone, the paper's ablation."""
    beta: Float = Field(default=0.1, gt=0)
    """How far the policy may go from the reference; 0.1 [ours], the paper gives none."""
    nll_weight: Float = Field(default=0.0, ge=0)
    """Adds this times the chosen answers' mean negative log-likelihood a token [ours: none]."""
    learning_rate: Float = Field(default=1e-5, gt=0)
    """Peak: 1e-5 for Ferret and CogVLM, 2e-7 for LLaVA-OneVision [seed]."""
    batch_size: Int = Field(default=2, ge=1)
    """Pairs a forward pass and a process [seed: batch size 2]."""
    gradient_accumulation: Int = Field(default=1, ge=1)
    """Forward passes a step [ours]."""
    epochs: Int = Field(default=1, ge=1)
    """[ours]"""
    max_steps: Int | None = Field(default=None, ge=1)
    """Ends the training early; the schedule ends there, too."""
    warmup: Float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises [ours]."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
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
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention kernel; `flash_attention_2` knows no shared prefix."""
    gradient_checkpointing: bool = False
    """Keeps one activation a layer, and computes the others again: less memory, a third more time."""
    prefix: Literal["auto", "shared", "separate"] = "auto"
    """One sequence a pair, image and prompt once (`shared`), or two; `auto`: shared where that is proven equal."""
    features: Literal["auto", "none", "memory", "disk"] = "auto"
    """Where the frozen vision tower's outputs are kept between the reference pass and the epochs; `auto`: in memory, at
    most a quarter of what is free, and what finds no room is computed anew."""
    max_length: Int | None = Field(default=None, ge=1)
    """Pairs of which an answer with its prompt has more tokens are dropped, never cut; null: what the model reads."""
    checkpoint_every: Int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    log_every: Int = Field(default=1, ge=1)
    """Steps between lines of the log."""
    trackers: tuple[str, ...] = ()
    """Of Accelerate: `tensorboard`, `wandb`, `trackio`; `RUN/training/log.jsonl` is always written."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, …"""
