"""How preference pairs are computed: one sequence per pair, [prompt | chosen | rejected], image and prompt only once.

`collate` turns encoded pairs into tensors, and `PairModel` computes the log-probabilities of their answers.

Most of a sequence is prompt. `Batch.begin` is the number of leading rows (tokens) that are plain causal and predict no
answer token. `PrefixShortcuts` saves work on them for one forward pass, without changing the result:

- Attention: a kernel with a mask computes every block, while a causal kernel skips the blocks above the diagonal. So
  the leading rows run without a mask (`attend`).
- Last layer: nothing reads the output of the leading rows, so they need keys and values only. Their queries,
  attention, output projection and MLP are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spr.models.families import Family
from spr.training.layer_masks import layer_masks
from spr.training.loss import token_logps
from spr.training.vision_cache import Features, compute_features, image_outputs

KERNEL = "spr_causal_beginning"
"""Name of `attend` in the attention kernels of transformers."""


# ── from encoded pairs to tensors ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """A pair as the model reads it.

    Attributes:
        prompt: ``(P,)`` int64, the prompt's tokens including the image placeholders.
        positions: ``(axes, P)`` int64, the positions of the prompt's tokens; three axes for the Qwen-VL families, else
            one.
        chosen, rejected: ``(R,)`` int64, the answers' tokens including the end of turn, unless the answer was cut.
        features: Those of the image; None if the prompt has no image.
        chosen_weights, rejected_weights: ``(R,)`` float32, the weights of the tokens; None if all are 1.
        image_tokens: ``(P,)`` bool, true for the prompt's tokens that attend to each other in both directions; None if
            all are causal.
    """

    pair_id: str
    prompt: Tensor
    positions: Tensor
    chosen: Tensor
    rejected: Tensor
    features: Features | None
    chosen_weights: Tensor | None = None
    rejected_weights: Tensor | None = None
    image_tokens: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B pairs as S sequences of at most T tokens; S is B if the prefix is shared, else 2 B.

    Attributes:
        input_ids: ``(S, T)`` int64, padded on the right.
        positions: ``(axes, S, T)`` int64.
        mask: If the prefix is shared, ``(S, 1, T, T)`` bool, true where the row's token attends to the column's. Else
            ``(S, T)`` int64, 1 for tokens and 0 for padding.
        begin: Number of leading rows before the first one that predicts an answer token, over all sequences. The mask
            is plain causal there, unless there are ``image_tokens``.
        token_types: ``(S, T)`` int64, 0 for the prompt and 1 for the answers.
        rows, columns: ``(N,)`` int64, sequence and token index of the hidden states that predict the answer tokens.
        labels: ``(N,)`` int64, the predicted answer tokens.
        owners: ``(N,)`` int64, the answer that each belongs to: chosen answers are 0 to B − 1, rejected B to 2 B − 1.
        tokens: Number of tokens in all sequences, without padding.
        features: Image features, one per sequence whose prompt has an image.
        weights: ``(N,)`` float32, the weights of the answer tokens; None if all are 1.
        image_tokens: ``(S, T)`` bool, true for tokens that attend to each other in both directions; None if all are
            causal. A mask of shape ``(S, 1, T, T)`` allows for them.
    """

    pair_ids: tuple[str, ...]
    input_ids: Tensor
    positions: Tensor
    mask: Tensor
    begin: int
    token_types: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor
    owners: Tensor
    tokens: int
    features: tuple[Features, ...] = field(repr=False)
    weights: Tensor | None = None
    image_tokens: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        names = ("input_ids", "positions", "mask", "token_types", "rows", "columns", "labels", "owners")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        for name in ("weights", "image_tokens"):
            tensor = getattr(self, name)
            moved[name] = None if tensor is None else tensor.to(device, non_blocking=True)
        return replace(self, features=tuple(part.to(device) for part in self.features), **moved)


def collate(pairs: Sequence[EncodedPair], pad: int, *, shared: bool) -> Batch:
    """Lay out pairs as tensors, with the token id ``pad`` for padding.

    If ``shared``, a pair is one sequence, [prompt | chosen | rejected]: the rejected answer attends to the prompt but
    not to the chosen answer, and both answers start at the position after the prompt. Else a pair is two sequences:
    first [prompt | chosen] of all pairs, then [prompt | rejected].
    """
    count = len(pairs)
    chosen = [(owner, pair.chosen, pair.chosen_weights) for owner, pair in enumerate(pairs)]
    rejected = [(count + owner, pair.rejected, pair.rejected_weights) for owner, pair in enumerate(pairs)]
    if shared:
        sequences = [(pair, answers) for pair, *answers in zip(pairs, chosen, rejected, strict=True)]
    else:
        sequences = [(pair, [answer]) for pair, answer in zip([*pairs, *pairs], chosen + rejected, strict=True)]
    lengths = [len(pair.prompt) + sum(len(ids) for _, ids, _ in answers) for pair, answers in sequences]
    size = len(sequences), max(lengths)
    input_ids = torch.full(size, pad)
    positions = torch.zeros(len(pairs[0].positions), *size, dtype=torch.int64)
    token_types = torch.zeros(size, dtype=torch.int64)
    image_tokens = torch.zeros(size, dtype=torch.bool)
    if shared:
        mask = torch.ones(size[1], size[1], dtype=torch.bool).tril().repeat(count, 1, 1, 1)
    else:
        mask = torch.zeros(size, dtype=torch.int64)
    rows, columns, labels, owners, weights = [], [], [], [], []
    for row, (pair, answers) in enumerate(sequences):
        prompt = end = len(pair.prompt)
        input_ids[row, :prompt], positions[:, row, :prompt] = pair.prompt, pair.positions
        if pair.image_tokens is not None:
            image_tokens[row, :prompt] = pair.image_tokens
        for owner, answer, weight in answers:
            start, end = end, end + len(answer)
            input_ids[row, start:end] = answer
            positions[:, row, start:end] = pair.positions.max() + 1 + torch.arange(len(answer))
            if shared:
                mask[row, 0, start:, prompt:start] = False
            rows.append(torch.full_like(answer, row))
            # The prompt's last token predicts the first token of every answer.
            columns.append(torch.cat([torch.tensor([prompt - 1]), torch.arange(start, end - 1)]))
            labels.append(answer)
            owners.append(torch.full_like(answer, owner))
            weights += [] if weight is None else [weight]
        token_types[row, prompt:end] = 1
        if shared:
            # Padding attends to itself only: a row without any column would be NaN.
            mask[row, 0, end:, :end] = False
            mask[row, 0, end:, end:] = torch.eye(size[1] - end, dtype=torch.bool)
        else:
            mask[row, :end] = 1
    if shared:
        mask |= (image_tokens[:, :, None] & image_tokens[:, None])[:, None]
    return Batch(
        pair_ids=tuple(pair.pair_id for pair in pairs),
        input_ids=input_ids,
        positions=positions,
        mask=mask,
        begin=min(len(pair.prompt) for pair in pairs) - 1,
        token_types=token_types,
        rows=torch.cat(rows),
        columns=torch.cat(columns),
        labels=torch.cat(labels),
        owners=torch.cat(owners),
        tokens=sum(lengths),
        features=tuple(pair.features for pair, _ in sequences if pair.features is not None),
        weights=torch.cat(weights) if weights else None,
        image_tokens=image_tokens if pairs[0].image_tokens is not None else None,
    )


# ── less work for the prompt ──────────────────────────────────────────────────────────────────────────────────────────


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    last_attention: nn.Module | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention whose leading rows are causal and need no mask.

    It has the signature of an attention kernel of transformers: query ``(S, heads, T, D)``, key and value
    ``(S, key heads, T, D)``. The mask ``(S, 1, M, T)`` is that of the last M rows; the rows before them are causal, and
    are skipped if the module is ``last_attention``. Returns ``(S, T, heads, D)``, zero in skipped rows, and None in
    place of the attention weights.
    """
    leading = 0 if attention_mask is None else query.shape[2] - attention_mask.shape[2]
    if not leading:
        return _sdpa(module, query, key, value, attention_mask, **options), None
    end = _sdpa(module, query[:, :, leading:], key, value, attention_mask, **options)
    if module is last_attention:
        return nn.functional.pad(end, (0, 0, 0, 0, leading, 0)), None
    begin = _sdpa(module, *(part[:, :, :leading] for part in (query, key, value)), None, **options)
    return torch.cat([begin, end], dim=1), None


def _sdpa(module: nn.Module, *parts: Tensor | None, **options: Any) -> Tensor:
    output: Tensor = sdpa_attention_forward(module, *parts, **options)[0]
    return output


class PrefixShortcuts:
    """Context in which a language model saves work on the leading rows of its sequences.

    On exit, the model's hooks and its attention kernel are as they were before. The context can be entered again:
    gradient checkpointing recomputes activations in the backward pass under the context of their forward pass. With
    ``split_attention``, the model is given the mask of the rows from ``begin`` on only, which needs `attend`.
    """

    def __init__(self, model: Any, family: Family, begin: int, *, split_attention: bool) -> None:
        self._language_model = language_model(model, family)
        self._begin, self._split_attention = begin, split_attention
        last = self._language_model.layers[-1]
        projections = [getattr(last.self_attn, name) for name in family.row_projections]
        self._last_attention: nn.Module | None = last.self_attn if projections else None
        self._row_wise: list[Any] = [*projections, last.mlp] if projections else []
        self._hooks: list[RemovableHandle] = []
        self._kernel: str | None = None

    def __enter__(self) -> Self:
        for part in self._row_wise:
            self._hooks.append(part.register_forward_pre_hook(self._skip_rows, prepend=True))
            self._hooks.append(part.register_forward_hook(self._fill_rows))
        if self._split_attention:
            ALL_ATTENTION_FUNCTIONS.register(KERNEL, partial(attend, last_attention=self._last_attention))
            # The model is given its mask; transformers only asks that a kernel has a function to make one.
            ALL_MASK_ATTENTION_FUNCTIONS.register(KERNEL, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
            config = self._language_model.config
            self._kernel, config._attn_implementation = config._attn_implementation, {"": KERNEL}
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._split_attention:
            self._language_model.config._attn_implementation = {"": self._kernel}

    def _skip_rows(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Contiguous: layers with experts change its shape with `view`.
        return (inputs[0][:, self._begin :].contiguous(), *inputs[1:])

    def _fill_rows(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return nn.functional.pad(output, (0, 0, self._begin, 0))


def language_model(model: Any, family: Family) -> Any:
    """The module of a transformers model that holds the language model's ``layers``."""
    return model.get_submodule(family.decoder)


# ── the model ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class PairModel(nn.Module):
    """A multimodal LLM with its adapter; its forward pass returns the log-probabilities of pairs.

    DDP, FSDP or DeepSpeed wrap it as a whole, because everything that a training step computes happens in its forward
    pass. It takes a `peft.PeftModel` around a transformers model, or a transformers model, and keeps it as ``peft``,
    which can be used as usual between two forward passes.
    """

    def __init__(self, model: nn.Module, family: Family, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.peft: Any = model
        self.family = family
        self._shortcuts: AbstractContextManager[Any] = nullcontext()
        for module in self.peft.modules():
            if isinstance(module, BaseTunerLayer):
                # PEFT casts the adapter's inputs to float32; autocast casts the adapter's weights instead.
                module.cast_input_dtype_enabled = self.base.dtype != torch.bfloat16
        if gradient_checkpointing:
            options = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), self._shortcuts)}
            self.base.activation_checkpointing_enable(options)

    @property
    def base(self) -> Any:
        """The transformers model, with the adapter's layers in place."""
        unwrap: Any = getattr(self.peft, "get_base_model", None)
        return self.peft if unwrap is None else unwrap()

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of the language model; the frozen parts stay in evaluation mode."""
        super().train(mode)
        for name, part in self.base.model.named_children():
            if not self.family.language_model.endswith(f".{name}"):
                part.eval()
        return self

    def forward(self, batch: Batch | None = None, vision: dict[str, Tensor] | None = None) -> Any:
        """The fields of `PairLogps` for a batch, or of `Features` for one image's vision inputs from the processor.

        They are tuples, because modules that wrap this one look for tensors in tuples.
        """
        if vision is not None:
            return compute_features(self.base, vision, deep=self.family.deep_features)
        return self._logps(batch) if batch is not None else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the model computes."""
        # Casts the adapter's float32 weights to bfloat16 if the frozen weights are bfloat16. There is no cast to
        # float16, where the unscaled gradients of an untrained adapter would underflow.
        bfloat16 = self.base.dtype == torch.bfloat16
        return torch.autocast(self.base.device.type, torch.bfloat16) if bfloat16 else nullcontext()

    def _logps(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        base = self.base
        positions = batch.positions[0] if batch.positions.shape[0] == 1 else batch.positions
        extra: dict[str, Any] = {"token_type_ids": batch.token_types} if self.family.bidirectional_prompt else {}
        config, rules = language_model(base, self.family).config, self.family.layer_masks
        kernel = config._attn_implementation
        causal = batch.mask.dim() == 4 and rules is None and batch.image_tokens is None
        split = causal and batch.begin > 0 and kernel == "sdpa"
        masks = {"": batch.mask[:, :, batch.begin :] if split else batch.mask}
        if rules is not None:
            images = batch.input_ids == base.config.image_token_id
            if batch.mask.dim() == 4:
                masks = layer_masks(rules, config, batch.mask, batch.positions[0], images)
            else:  # the model makes its masks
                extra[rules.token_types] = images.int()
        elif batch.image_tokens is not None:
            extra["mm_token_type_ids"] = batch.image_tokens.int()
        if batch.mask.dim() == 4 and kernel == "eager":
            # Eager attention adds its mask to the scores.
            least = torch.finfo(base.dtype).min
            masks = {k: torch.zeros_like(m, dtype=base.dtype).masked_fill(~m, least) for k, m in masks.items()}
        self._shortcuts = nullcontext()
        if batch.begin > 0:
            self._shortcuts = PrefixShortcuts(base, self.family, batch.begin, split_attention=split)
        if batch.features:
            extra["mm_encoder_outputs"] = {"image": image_outputs(batch.features, joined=self.family.joined_features)}
        with self.autocast(), self._shortcuts:
            hidden = base.model(
                input_ids=batch.input_ids,
                attention_mask=masks.get("", masks),
                position_ids=positions,
                use_cache=False,
                **extra,
            ).last_hidden_state
        softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
        # On a GPU, autocast leaves the output of a LayerNorm in float32.
        predicting = hidden[batch.rows, batch.columns].to(base.lm_head.weight.dtype)
        logps = token_logps(predicting, batch.labels, base.lm_head, softcap=softcap)
        count = len(batch.pair_ids)
        if batch.weights is None:
            tokens = torch.bincount(batch.owners, minlength=2 * count)
        else:
            logps = logps * batch.weights
            tokens = batch.weights.new_zeros(2 * count).index_add(0, batch.owners, batch.weights)
        sums = logps.new_zeros(2 * count).index_add(0, batch.owners, logps)
        return sums[:count], sums[count:], tokens[:count], tokens[count:]


def why_not_shared(model: Any, family: Family) -> str | None:
    """The reason why a transformers model can't compute image and prompt once per pair; None if it can."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if "linear_attention" in kinds:
        return "linear attention carries one state through all tokens, so that the second answer would see the first"
    if not family.shared_prefix:
        return f"no test shows that it gives the same result for {model.config.model_type}"
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return f"attention implementation {model.config._attn_implementation} does not support custom masks"
    if kinds - {"full_attention"} and family.layer_masks is None:
        return f"its layers are of types {', '.join(sorted(kinds))}"
    return None
