"""Counted work of a preference pair, from the shapes: multiply-adds of both trainers, and what each idea saves.

A token's pass through frozen weights counts once forward and once backward (their own gradient is not needed); through
the adapter once forward and twice backward. Merged into the weights of a batch, the adapter takes r multiply-adds per
weight forward and again backward instead, and its own gradients take four of the six products. Attention counts what
tokens may see: two products forward, and five backward, as fused kernels have it. Patch embedding, norms, activations
and the optimiser are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers as hf

from dpo_cases import CASES, PATCH, QUESTION, model_config
from spr.training.loss import CHUNK

FRAME = 27
"""So many of a prompt's tokens are the chat template's: letters are tokens."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Multiply-adds of a pass, and tokens.

    Attributes:
        language: Of a token through the frozen linear layers.
        adapter: Of a token through theirs of low rank.
        merging: Of the adapter's two matrices in all layers.
        head: Of a token through the output head.
        sight: Of an image through vision tower and projector.
        last: Of a token through what the last layer computes for its queries, output and MLP; part of ``language``.
        last_adapter: The same of ``adapter``.
        width: Of one product of attention, for a token that sees one token, in one layer.
        layers: Of the language model.
        words: Of the vocabulary.
        prompt: Tokens.
        answer: Tokens of each.
    """

    language: int
    adapter: int
    merging: int
    head: int
    sight: int
    last: int
    last_adapter: int
    width: int
    layers: int
    words: int
    prompt: int
    answer: int


def sizes_of(case: str, answer: int, *, prompt: int | None = None, patches: int | None = None) -> Sizes:
    """What the shapes of a case say; the model stands on the meta device.

    A prompt's tokens and an image's patches, in all of its tiles, are given if the image is not square.
    """
    config = model_config(case)
    with torch.device("meta"):
        model = hf.AutoModelForImageTextToText.from_config(config)
    text, vision, rank = config.get_text_config(), config.vision_config, CASES[case]["rank"]
    tile, width = (CASES[case]["side"] // PATCH) ** 2, vision.hidden_size
    if case.startswith("qwen"):
        tokens, seen, tower = tile // 4, patches or tile, model.model.visual
        whole, window = len(vision.fullatt_block_indexes), (vision.window_size // PATCH) ** 2
        looks = 2 * width * seen * (whole * seen + (vision.depth - whole) * window)
        projector = torch.nn.Module()
    else:
        # The image whole and as one tile, whose rows end in a newline each.
        tokens, seen, tower = 2 * tile + CASES[case]["side"] // PATCH, patches or 2 * tile, model.model.vision_tower
        looks = 2 * width * vision.num_hidden_layers * seen * tile
        projector = model.model.multi_modal_projector
    sight = looks + seen * sum(module.weight.numel() for _, module in _linear(projector))
    # Four patches are one token in Qwen's merger, whose layers are as much wider.
    sight += sum(m.weight.numel() * (seen // 4 if "merger" in name else seen) for name, m in _linear(tower))
    linear = [module for _, module in _linear(model.model.language_model)]
    last = [m for name, m in _linear(model.model.language_model.layers[-1]) if not name.endswith(("k_proj", "v_proj"))]
    return Sizes(
        language=sum(module.weight.numel() for module in linear),
        adapter=sum(rank * (module.in_features + module.out_features) for module in linear),
        merging=sum(rank * module.weight.numel() for module in linear),
        head=model.lm_head.weight.numel(),
        sight=sight,
        last=sum(module.weight.numel() for module in last),
        last_adapter=sum(rank * (module.in_features + module.out_features) for module in last),
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        words=text.vocab_size,
        prompt=prompt or tokens + QUESTION + FRAME,
        answer=answer,
    )


def _linear(part: torch.nn.Module) -> list[tuple[str, torch.nn.Linear]]:
    return [(name, module) for name, module in part.named_modules() if isinstance(module, torch.nn.Linear)]


def trl_work(sizes: Sizes, epochs: int, *, fused: bool) -> dict[str, int]:
    """TRL 1.16's: policy and reference in each epoch, two sequences a pair, the image in each.

    Args:
        sizes: Of the model.
        epochs: How often each pair is seen.
        fused: Whether the output head's kernel is Triton's, which leaves the prompt out; else it does every token.
            Either computes the logits once more in the backward pass.
    """
    length = sizes.prompt + sizes.answer
    scored = 2 * (sizes.answer if fused else length)
    work = {
        # Reference forward; policy forward and backward.
        "language": 3 * 2 * length * sizes.language,
        "attention": (2 + 2 + 5) * 2 * (length**2 // 2) * sizes.width * sizes.layers,
        "adapter": 3 * 2 * length * sizes.adapter,
        "vision": 4 * sizes.sight,
        "head": 4 * scored * sizes.head,
    }
    return {name: epochs * count for name, count in work.items()}


def our_work(
    sizes: Sizes,
    epochs: int,
    *,
    kept: bool = True,
    shared: bool = True,
    answers_only: bool = True,
    sight_once: bool = True,
    answers_last: bool = True,
    reference_once: bool = True,
    merged: bool = False,
    batch: int = 1,
) -> dict[str, int]:
    """Ours, or ours without one of its ideas.

    Args:
        sizes: Of the model.
        epochs: How often each pair is seen.
        kept: Whether the images' features are kept between the passes (``training.vision_cache``).
        shared: One sequence a pair, or two.
        answers_only: Whether the head leaves the prompt out.
        sight_once: Whether an image is seen once in all, or in each sequence of each pass, as TRL does it.
        answers_last: Whether the last layer leaves the prompt out, but for its keys and values.
        reference_once: Whether the reference is computed once, or in each epoch.
        merged: Whether the adapter is merged into the weights (float32), or has products of its own (16 bits).
        batch: Pairs that are computed at once, which share the merging.
    """
    prompt, answer = sizes.prompt, sizes.answer
    tokens = prompt + 2 * answer if shared else 2 * (prompt + answer)
    # What is seen: the prompt by itself, and by each answer, which sees itself, too.
    seen = (1 if shared else 2) * (prompt**2 // 2) + 2 * (prompt * answer + answer**2 // 2)
    references = 1 if reference_once else epochs
    # The prompt's last token predicts the answers' first ones. Two sequences' masks are transformers' own.
    left = (1 if shared else 2) * (prompt - 1) if answers_last else 0
    blind = prompt**2 // 2 if answers_last and shared else 0
    looks = 1 if kept else references + epochs
    return {
        "language": (references + 2 * epochs) * (tokens * sizes.language - left * sizes.last),
        "attention": (2 * references + 7 * epochs) * (seen * sizes.layers - blind) * sizes.width,
        "adapter": (2 if merged else 3) * epochs * (tokens * sizes.adapter - left * sizes.last_adapter)
        + (2 * epochs * sizes.merging // batch if merged else 0),
        "vision": (looks if sight_once else 2 * (references + epochs)) * sizes.sight,
        "head": (references + 2 * epochs) * (2 * answer if answers_only else tokens) * sizes.head,
    }


def logits_gib(sizes: Sizes, batch: int, width: int) -> dict[str, float]:
    """GiB of logits that live at a time: of a whole step, of TRL's largest tile, of our largest chunk.

    Args:
        sizes: Of the model.
        batch: Pairs a step.
        width: Bytes a number; our chunk is float32.
    """
    every = 2 * batch * (sizes.prompt + sizes.answer)
    return {
        "all": every * sizes.words * width / 2**30,
        "trl": min(every, 4096) * min(sizes.words, 32_768) * width / 2**30,
        "ours": min(2 * batch * sizes.answer, CHUNK) * sizes.words * 4 / 2**30,
    }
