"""On paper: what Ferret and CogVLM need of a GPU's memory and time, for a batch of descriptions and a training step.

The real models stand on torch's meta device, which knows shapes and no numbers, and the trainer's own module runs on
them: one sequence a pair, the head on the answers' tokens alone, LoRA in float32 on bfloat16 weights, AdamW. Autocast
knows no such device; what it does to the adapter's weights is done by hand. Every tensor is followed from its making to
its end, which gives the peak; every matrix product is counted by its dtype.

By hand: attention is taken as a fused kernel's, which keeps its inputs, its output and a float32 number a row, and
computes the whole square, for a mask of its own lets it skip nothing. Left out: what CUDA and its libraries take, and
the allocator's gaps (1 to 2 GiB). Times are what a card's arithmetic allows (or, token by token, its memory) at the
share of its data sheet's peaks that is assumed; they are no measurement.

    python benchmarks/sizes.py [--batch 8] [--pairs 2] [--prompt 140] [--answer 200] [--new 512] [--rank 128]
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections import Counter
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spr.config import LoraSection
from spr.models.families import FAMILIES
from spr.models.ported.cogvlm.configuration import CogVLMConfig
from spr.models.ported.cogvlm.experts import Routing
from spr.models.ported.cogvlm.modeling import CogVLMForCausalLM
from spr.models.ported.ferret.configuration import FerretConfig
from spr.models.ported.ferret.modeling import FerretForConditionalGeneration
from spr.training.batches import EncodedPair, collate
from spr.training.pair_model import PairModel
from spr.training.trainee import add_adapter
from spr.training.vision_cache import Features

META, HALF, GIB = torch.device("meta"), torch.bfloat16, 2**30
VICUNA_13B = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
CARDS = {
    "A100 80 GB": {"bfloat16": 312e12, "memory": 2.0e12},
    "H100 80 GB": {"bfloat16": 989e12, "memory": 3.35e12},
}
"""Dense operations a second, and bytes a second, by their maker's data sheets."""
MATH_SHARE, MEMORY_SHARE = 0.4, 0.6
"""What is assumed to be reached of the peaks."""
RESERVE = 2.0
"""GiB that CUDA, its libraries and the allocator's gaps are given when it is said what a card must hold."""
ANSWER_TOKEN = 5


class Ledger(TorchDispatchMode):
    """Follows every storage on the meta device, and counts matrix products by dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.flops: Counter[str] = Counter()
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count(out)
        operation = flop_registry.get(func._overloadpacket)
        if operation is not None:
            self.flops[str(args[0].dtype).removeprefix("torch.")] += operation(*args, **(kwargs or {}), out_val=out)
        return out

    def count(self, tensors: Any) -> None:
        """Take tensors in, as long as they live."""
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, Tensor) or not tensor.is_meta:
                continue
            storage = tensor.untyped_storage()
            if storage in self._seen:
                continue
            self._seen.add(storage)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.live -= size

    def restart(self) -> None:
        """Look for the peak from here on."""
        self.peak, self.flops = self.live, Counter()


class Fused(torch.autograd.Function):
    """Attention that keeps what a fused kernel keeps, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Heads ``(B, H, L, D)`` → ``(B, H, L, D)``."""
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:3], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """One gradient of each input's shape."""
        del gradients
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def fused(_: nn.Module, query: Tensor, key: Tensor, value: Tensor, __: Any, **___: Any) -> tuple[Tensor, None]:
    """The kernel, as transformers calls it."""
    return Fused.apply(query, key, value).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("fused_on_paper", fused)
ALL_MASK_ATTENTION_FUNCTIONS.register("fused_on_paper", sdpa_mask)


def build(name: str) -> Any:
    """The model at its real size, in bfloat16 and frozen, without memory."""
    config: Any
    if name == "cogvlm-17b":
        config, kind = CogVLMConfig(), CogVLMForCausalLM
    else:
        text = {"vocab_size": 32002, "max_position_embeddings": 2048, **(VICUNA_13B if name == "ferret-13b" else {})}
        config, kind = FerretConfig(text_config=text), FerretForConditionalGeneration
    with META:
        model = kind(config).to(HALF).requires_grad_(False).eval()
    for part in (config, getattr(config, "text_config", config)):
        part._attn_implementation = "fused_on_paper"
    return model


def image_tokens(model: Any) -> int:
    """Tokens that an image takes in a prompt, one region among Ferret's."""
    if model.config.model_type == "cogvlm":
        return int(model.config.image_seq_length)
    vision = model.config.vision_config
    return (vision.image_size // vision.patch_size) ** 2 + 1


def known_places(model: Any, rows: int, tokens: int) -> ExitStack:
    """What depends on the ids' values is given instead: embeddings with the images in place, and who reads them."""
    hidden = model.config.get_text_config().hidden_size
    stack = ExitStack()

    def embeds(*_: Any, **__: Any) -> Tensor:
        return torch.empty(rows, tokens, hidden, dtype=HALF, device=META)

    stack.enter_context(patch("torch.bincount", lambda owners, minlength: owners.new_empty(minlength)))
    if model.config.model_type == "cogvlm":
        order = torch.empty(rows * tokens, dtype=torch.int64, device=META)
        routing = Routing(order, order, rows * (model.config.image_seq_length - 1))
        stack.enter_context(patch.object(type(model.model), "_embed", embeds))
        stack.enter_context(patch("spr.models.ported.cogvlm.modeling.route", lambda _: routing))
    else:
        stack.enter_context(patch.object(type(model.model), "embed_inputs", embeds))
    return stack


def vision_flops(model: Any) -> float:
    """Operations of one image through vision tower and projector."""
    side = model.config.vision_config.image_size
    with Ledger() as ledger, torch.no_grad():
        model.get_image_features(torch.empty(1, 3, side, side, device=META, dtype=HALF))
    return float(sum(ledger.flops.values()))


def describe(model: Any, options: argparse.Namespace) -> dict[str, float]:
    """A batch: its prompts at once, then a token of each at a time."""
    text = model.config.get_text_config()
    rows, length, new = options.batch, image_tokens(model) + options.prompt, options.new
    decoder, cache = model.model.language_model, DynamicCache(config=text)
    ledger = Ledger()
    ledger.count([*model.parameters(), *model.buffers()])
    weights = ledger.live
    with known_places(model, rows, length), ledger, torch.no_grad():
        mask = torch.empty(rows, 1, length, length, dtype=torch.bool, device=META)
        places = torch.empty(rows, length, dtype=torch.int64, device=META)
        embeds = torch.empty(rows, length, text.hidden_size, dtype=HALF, device=META)
        decoder(inputs_embeds=embeds, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
    a_token = 4 * text.num_hidden_layers * text.hidden_size  # keys and values, two bytes each
    filled = rows * (length + new) * a_token
    attention = 4 * rows * length**2 * text.hidden_size * text.num_hidden_layers
    read = [p for name, p in model.named_parameters() if "vision" not in name]
    return {
        "weights": weights / GIB,
        "keys and values": filled / GIB,
        "memory": max(ledger.peak, weights + filled) / GIB,
        "prompt flops": sum(ledger.flops.values()) + attention + rows * vision_flops(model),
        "bytes a token": sum(p.nbytes for p in read) + rows * (length + new / 2) * a_token,
    }


def cast_linear(weight: Tensor, given: Tensor) -> Tensor:
    """A linear layer under autocast."""
    return nn.functional.linear(given, weight.to(given.dtype))


def train(model: Any, options: argparse.Namespace, *, checkpointing: bool) -> dict[str, float]:
    """A step of `spr train` on pairs whose features are there, after a first one that made AdamW's moments."""
    family = FAMILIES[model.config.model_type]
    lora = LoraSection(r=options.rank, lora_alpha=2 * options.rank)
    adapted = PairModel(add_adapter(model, lora, family), family, gradient_checkpointing=checkpointing)
    for module in adapted.modules():
        if isinstance(module, nn.Linear) and module.weight.requires_grad:
            module.forward = partial(cast_linear, module.weight)  # type: ignore[method-assign]
    adapted.train()
    length = image_tokens(model) + options.prompt
    prompt, answer = torch.zeros(length, dtype=torch.int64), torch.full((options.answer,), ANSWER_TOKEN)
    hidden = model.config.get_text_config().hidden_size
    features = Features(torch.empty(image_tokens(model), hidden, dtype=HALF, device=META))
    pair = EncodedPair("", prompt, torch.arange(length)[None], answer, answer, features)
    batch = collate([pair] * options.pairs, 0, shared=True).to(META)
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, foreach=True, capturable=False)
    ledger = Ledger()
    ledger.count([*adapted.parameters(), *adapted.buffers()])
    start = ledger.live
    autocast = patch.object(PairModel, "_autocast", lambda _: nullcontext())
    with autocast, known_places(model, *batch.input_ids.shape), ledger:
        for _ in range(2):
            ledger.restart()
            chosen, rejected, *_ = adapted(batch)
            (rejected - chosen).sum().backward()
            step = ledger.peak
            ledger.restart()
            optimizer.step()
            update = ledger.peak
            optimizer.zero_grad()
        ledger.restart()
        chosen, rejected, *_ = adapted(batch)
        kept, ahead = ledger.live, Counter(ledger.flops)
        (rejected - chosen).sum().backward()
        work = Counter(ledger.flops)
    if set(work) - {"bfloat16"}:
        raise SystemExit(f"Products ran in other precisions, too: {dict(work)}")
    layers, tokens = len(model.get_submodule(family.decoder).layers), batch.tokens
    square = 4 * options.pairs * (tokens // options.pairs) ** 2 * hidden * layers
    trained = sum(parameter.numel() for parameter in parameters)
    return {
        "adapter's parameters": trained,
        "weights": (start - 4 * trained) / GIB,
        "adapter, gradients, AdamW": 16 * trained / GIB,
        "kept for the backward pass": (kept - start - 8 * trained) / GIB,
        "peak of the passes": step / GIB,
        "peak of the update": update / GIB,
        "memory": max(step, update) / GIB,
        "flops": work["bfloat16"] + (4.5 if checkpointing else 3.5) * square,
        "reference flops": ahead["bfloat16"] + square + options.pairs * vision_flops(model),
    }


def seconds(made: dict[str, dict[str, float]], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Each card's times by these figures."""
    times = {}
    for card, peaks in CARDS.items():
        half, told = MATH_SHARE * peaks["bfloat16"], made["describe"]
        found = {"describe a batch": told["prompt flops"] / half}
        found["describe a batch"] += options.new * told["bytes a token"] / (MEMORY_SHARE * peaks["memory"])
        found["reference, a batch"] = made["step"]["reference flops"] / half
        for name in ("step", "step with checkpointing"):
            found[name] = made[name]["flops"] / half
        times[card] = found
    return times


def main() -> None:
    """Print a table a model, and all figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["ferret-7b", "ferret-13b", "cogvlm-17b"], help="which")
    parser.add_argument("--batch", type=int, default=8, help="descriptions a batch")
    parser.add_argument("--pairs", type=int, default=2, help="pairs a training step")
    parser.add_argument("--prompt", type=int, default=140, help="tokens of a prompt's words")
    parser.add_argument("--answer", type=int, default=200, help="tokens of an answer that is trained on")
    parser.add_argument("--new", type=int, default=512, help="longest description, in tokens")
    parser.add_argument("--rank", type=int, default=128, help="of the adapter")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    for name in options.models:
        made = {
            "describe": describe(build(name), options),
            "step": train(build(name), options, checkpointing=False),
            "step with checkpointing": train(build(name), options, checkpointing=True),
        }
        times = seconds(made, options)
        print(f"\n{name}: {sum(p.numel() for p in build(name).parameters()) / 1e9:.3f} billion parameters")
        for part, figures in made.items():
            print(f"  {part}")
            for label, number in figures.items():
                print(f"    {label:30} {shown(label, number)}")
            print(f"    {'a card must have, GiB':30} {figures['memory'] + RESERVE:8.1f}")
        for card, found in times.items():
            print(f"  {card}: " + ", ".join(f"{label} {number:.3g} s" for label, number in found.items()))
        result[name] = {**made, "seconds": times}
    print(json.dumps({"options": vars(options), "models": result}))


def shown(label: str, number: float) -> str:
    """A figure with its unit."""
    if label.endswith("parameters"):
        return f"{number / 1e6:8.1f} million"
    if label.endswith("flops"):
        return f"{number / 1e12:8.1f} T"
    return f"{number / GIB:8.1f} GiB" if label == "bytes a token" else f"{number:8.1f} GiB"


if __name__ == "__main__":
    main()
