"""The config section `training`: preference training of a LoRA adapter."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from spr.config.backends import LOSSES, MIXTURES
from spr.config.section import AnyPath, DType, Float, Int, Section, Words, split_words
from spr.core.errors import nearest
from spr.core.paths import is_remote

EvalMetric = Literal["loss", "margin", "accuracy", "s_loc", "recall@0.5", "unmatched_boxes", "acc@0.5", "mean_iou"]
EVAL_METRICS: dict[EvalMetric, Literal["description", "rec"] | None] = {
    **dict.fromkeys(("loss", "margin", "accuracy")),
    **dict.fromkeys(("s_loc", "recall@0.5", "unmatched_boxes"), "description"),
    **dict.fromkeys(("acc@0.5", "mean_iou"), "rec"),
}
"""The metrics of the evaluation during training, each with the task of `eval_tasks` that measures it."""
EvalTasks = Annotated[tuple[Literal["description", "rec"], ...], BeforeValidator(split_words)]
LOWER_IS_BETTER: frozenset[EvalMetric] = frozenset({"loss", "unmatched_boxes"})
_EVALUATION = frozenset(
    {"eval_steps", "eval_tasks", "eval_samples"}
    | {"load_best_model_at_end", "metric_for_best_model", "early_stopping_patience"}
)


def _check_losses(value: object) -> object:
    names = [*LOSSES, *MIXTURES] if isinstance(value, str) else list(LOSSES)
    for name in [value] if isinstance(value, str) else value if isinstance(value, dict) else ():
        if name not in names:
            raise ValueError(f"there is no loss `{name}`; {nearest(str(name), names)}")
    if isinstance(value, dict):
        for name, weight in value.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < inf:
                raise ValueError(f"the weight of `{name}` is not a finite number above 0; leave out a loss of weight 0")
    if not value or not isinstance(value, str | dict):
        raise ValueError(
            "not a loss, and not a mapping from losses to their weights, such as {dpo: 0.8, bco_pair: 0.2}"
        )
    return value


class LoraSection(Section):
    """LoRA on the linear layers of the language model (supplement, Sec. 2). Names are those of PEFT's `LoraConfig`."""

    r: Int = Field(default=128, ge=1)
    """Rank (supplement, Sec. 2)."""
    lora_alpha: Float = Field(default=256, gt=0)
    """Alpha: the output of the adapter is scaled by `lora_alpha / r` (supplement, Sec. 2)."""
    lora_dropout: Float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability of the adapter's inputs (our choice: 0, for exact log-probabilities)."""
    target_modules: Words | None = None
    """Names of linear layers of the language model, such as `q_proj`; null uses all of the model family's."""


class MixSection(Section):
    """Other instruction data that is mixed into the training, so that the model forgets less (our choice)."""

    path: AnyPath | None = None
    """A .jsonl, .json or .parquet file, or a folder of a dataset, in one of TRL's formats: `prompt`, `chosen`,
    `rejected`; `prompt`, `completion`; or `messages`. Relative paths start at the current folder; null mixes nothing
    in (our choice)."""
    share: Float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows of an epoch, 0..1 (our choice)."""
    images: AnyPath | None = None
    """Folder that the rows' image paths are relative to; null for the folder of the file."""

    @field_validator("path", "images")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        return value if value is None or is_remote(value) else value.expanduser().absolute()

    @field_validator("share", "images")
    @classmethod
    def _belongs_to_a_file(cls, value: object, info: ValidationInfo) -> object:
        if value not in (0.1, None) and info.data.get("path", True) is None:
            raise ValueError(f"there is nothing to mix in: set mix.path too, or remove {info.field_name}")
        return value


class TrainingConfig(Section):
    """Preference training of a LoRA adapter (supplement, Sec. 2). Field names follow transformers and TRL."""

    runtime_fields = frozenset(
        {"save_steps", "logging_steps", "report_to", "device"}
        | {"vision_cache", "gradient_checkpointing", "prefix_sharing"}
    )

    loss_type: Annotated[str | dict[str, Float], BeforeValidator(_check_losses)] = "dpo"
    """`dpo` (paper, Sec. 3.3); `ipo`; `bco_pair`; `sft`: supervised fine-tuning on the chosen answers (ablation of the
    paper); or a sum of losses, as a mapping to their weights. `mpo` is `{dpo: 0.8, bco_pair: 0.2, sft: 1.0}`."""
    beta: Float = Field(default=0.1, gt=0)
    """β of DPO: a higher value keeps the model closer to the reference model (not given in the paper: our choice)."""
    nll_weight: Float = Field(default=0.0, ge=0)
    """Weight of the per-token NLL loss on the chosen answers, added to the loss (our choice: 0); not for `sft`."""
    anchor_weight: Float = Field(default=0.0, ge=0)
    """Weight of mDPO's anchor, which is added to the loss and keeps the reward of chosen answers positive:
    −log σ(reward − `anchor_margin`), where the reward is β times the log-ratio (our choice: 0); not for `sft`."""
    anchor_margin: Float = 0.0
    """δ of the anchor: the reward that chosen answers should exceed (0 in mDPO)."""
    box_token_weight: Float = Field(default=1.0, ge=1)
    """γ: weight of the numbers of changed boxes in the sum log π = Σ w log p over the tokens of an answer, as in
    RLHF-V. A changed box is one that the other answer does not contain (our choice: 1, all tokens weigh the same)."""
    difficulty_weight: Float = Field(default=0.0, ge=0, le=1)
    """How much more the pairs count that are hard for the reference model, 0..1. The mean weight of all pairs is 1
    (our choice: 0, all pairs weigh the same); not for `sft`."""
    learning_rate: Float = Field(default=1e-5, gt=0)
    """Peak learning rate: 1e-5 for Ferret and CogVLM, 2e-7 for LLaVA-OneVision (supplement, Sec. 2)."""
    per_device_train_batch_size: Int = Field(default=2, ge=1)
    """Pairs per device per forward pass (supplement, Sec. 2)."""
    gradient_accumulation_steps: Int = Field(default=1, ge=1)
    """Forward passes per optimizer step (our choice)."""
    num_train_epochs: Int = Field(default=1, ge=1)
    """Number of passes over the pairs (our choice)."""
    max_steps: Int | None = Field(default=None, ge=1)
    """Number of optimizer steps, at which the learning rate schedule ends too; null trains all epochs."""
    warmup_ratio: Float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps, 0..1, for the linear warm-up of the learning rate (our choice)."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate schedule after the warm-up: cosine or linear decay to 0, or constant (our choice)."""
    optim: Literal["adamw_torch", "adamw_8bit"] | None = None
    """Optimizer: AdamW (null or `adamw_torch`; supplement, Sec. 2), or `adamw_8bit`, with its moments in 8 bits, which
    saves 6 bytes per trained parameter and needs the package bitsandbytes."""
    weight_decay: Float = Field(default=0.0, ge=0)
    """Weight decay of AdamW (our choice: 0)."""
    max_grad_norm: Float | None = Field(default=1.0, gt=0)
    """Maximum norm for gradient clipping; null disables it (our choice)."""
    mix: MixSection = MixSection()
    lora: LoraSection = LoraSection()
    init_adapter: AnyPath | None = None
    """Folder of a LoRA adapter in PEFT's format, or a run with one, whose weights the training starts from and
    continues; its rank, alpha and layers must be those of `training.lora`. The reference is then the model with this
    adapter, as in iterative DPO. Null starts a new adapter, and the reference is the model without one (our choice)."""
    dtype: DType = "auto"
    """Data type of the frozen weights and of the computation; `auto` keeps that of the checkpoint. The adapter's
    weights and gradients are always float32."""
    load_in_4bit: bool = False
    """Load the frozen weights in 4 bits (QLoRA), with the package bitsandbytes and a GPU."""
    attn_implementation: Literal["sdpa", "flash_attention_2", "flex_attention", "eager"] = "sdpa"
    """Attention implementation of transformers. `flash_attention_2` and `flex_attention` need a GPU, and compute a
    shared prefix without a dense mask; `flex_attention` is for the shared prefix only."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: saves memory, takes about a third more time."""
    prefix_sharing: Literal["auto", "shared", "separate"] = "auto"
    """Compute image and prompt once per pair (`shared`) or once per answer (`separate`); `auto` shares them for models
    for which tests show that the result is the same."""
    vision_cache: Literal["auto", "none", "memory", "disk"] = "auto"
    """Where to keep outputs of the frozen vision tower between the reference pass and the epochs; `auto` uses up to a
    quarter of the free memory and recomputes the rest."""
    max_length: Int | None = Field(default=None, ge=1)
    """Maximum number of tokens of prompt and answer; longer pairs are dropped. Null uses the model's limit."""
    save_steps: Int = Field(default=100, ge=1)
    """Optimizer steps between two checkpoints."""
    logging_steps: Int = Field(default=1, ge=1)
    """Optimizer steps between two lines of the training log."""
    eval_steps: Int | None = Field(default=None, ge=1)
    """Optimizer steps between two evaluations on the held-out pairs (loss, margin, accuracy), which cost a forward pass
    each; the last step is always evaluated. Null: no evaluation. It does not change the trained weights."""
    eval_tasks: EvalTasks = ()
    """What else to evaluate then, with the adapter as it is, on held-out images of the run: `description` of regions
    (`s_loc`, `recall@0.5`, `unmatched_boxes`), `rec`: objects named by their category, if it is unique in the image
    (`acc@0.5`, `mean_iou`)."""
    eval_samples: Int = Field(default=64, ge=1)
    """Maximum number of held-out regions, and of objects for `rec`, per evaluation (our choice)."""
    load_best_model_at_end: bool = False
    """Make `RUN/adapter` of the evaluation that was best by `metric_for_best_model`, not of the last step."""
    metric_for_best_model: EvalMetric = "loss"
    """Metric of the held-out evaluation that decides which adapter is best: of the pairs, or of `eval_tasks`."""
    early_stopping_patience: Int | None = Field(default=None, ge=1)
    """Stop after so many evaluations in a row without a better `metric_for_best_model`; null never stops early."""
    report_to: Words = ()
    """Trackers of Accelerate to report to, such as `tensorboard` or `wandb`, besides `RUN/training/log.jsonl`."""
    device: str = "auto"
    """Device, such as `cpu` or `cuda`; `auto` uses a GPU if there is one."""

    @property
    def fields_without_effect(self) -> frozenset[str]:
        """Fields that the adapter does not depend on: runtime fields, and those of an evaluation that decides nothing.

        >>> "eval_steps" in TrainingConfig(eval_steps=5).fields_without_effect
        True
        >>> "eval_steps" in TrainingConfig(eval_steps=5, load_best_model_at_end=True).fields_without_effect
        False
        """
        decides = self.load_best_model_at_end or self.early_stopping_patience is not None
        return self.runtime_fields | (frozenset() if decides else _EVALUATION)

    @property
    def losses(self) -> dict[str, float]:
        """The losses that `loss_type` stands for, with their weights.

        >>> TrainingConfig(loss_type="mpo").losses
        {'dpo': 0.8, 'bco_pair': 0.2, 'sft': 1.0}
        """
        return _losses(self.loss_type)

    @field_validator("optim")
    @classmethod
    def _has_one_name(cls, value: str | None) -> str | None:
        return None if value == "adamw_torch" else value  # as in trainings of versions that knew no other

    @field_validator("init_adapter")
    @classmethod
    def _is_a_local_folder(cls, value: Path | None) -> Path | None:
        if value is not None and is_remote(value):
            raise ValueError("an adapter is read from a local folder: copy it there first")
        return None if value is None else value.expanduser().absolute()

    @field_validator("eval_tasks", "load_best_model_at_end", "early_stopping_patience")
    @classmethod
    def _needs_evaluations(cls, value: object, info: ValidationInfo) -> object:
        if value and info.data.get("eval_steps", 1) is None:
            raise ValueError(f"there are no evaluations: set eval_steps too, or remove {info.field_name}")
        return value

    @field_validator("metric_for_best_model")
    @classmethod
    def _is_evaluated(cls, value: EvalMetric, info: ValidationInfo) -> EvalMetric:
        task = EVAL_METRICS[value]
        if task is not None and task not in info.data.get("eval_tasks", (task,)):
            raise ValueError(f"`{value}` is a metric of the task {task}: add {task} to eval_tasks")
        if value in ("margin", "accuracy") and list(_losses(info.data.get("loss_type", {}))) == ["sft"]:
            raise ValueError(f"the loss `sft` uses chosen answers only, so it has no {value}: choose another metric")
        return value

    @field_validator("nll_weight")
    @classmethod
    def _adds_to_another_loss(cls, value: float, info: ValidationInfo) -> float:
        if value and "sft" in _losses(info.data.get("loss_type", {})):
            raise ValueError("the loss `sft` is this NLL loss already: set nll_weight to 0, or change loss_type")
        return value

    @field_validator("anchor_weight", "difficulty_weight")
    @classmethod
    def _has_a_reference(cls, value: float, info: ValidationInfo) -> float:
        if value and list(_losses(info.data.get("loss_type", {}))) == ["sft"]:
            raise ValueError(f"the loss `sft` uses no reference model: set {info.field_name} to 0, or change loss_type")
        return value

    @field_validator("anchor_margin")
    @classmethod
    def _belongs_to_an_anchor(cls, value: float, info: ValidationInfo) -> float:
        if value and not info.data.get("anchor_weight", 1):
            raise ValueError("there is no anchor without a weight: set anchor_weight too, or remove anchor_margin")
        return value


def _losses(loss_type: str | dict[str, float]) -> dict[str, float]:
    if isinstance(loss_type, str):
        return MIXTURES.get(loss_type, {loss_type: 1.0})
    return loss_type
