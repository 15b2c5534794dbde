"""On paper: what CogVLM-17B needs of a GPU's memory and time, for one batch of descriptions and one training step.

Nothing runs here: the real modules stand on torch's meta device, which knows shapes and no numbers. Parameters, the
tensors that the backward pass keeps and the multiplications are counted from those; keys and values, attention and the
AdamW states are worked out from the shapes. Attention is taken as a fused kernel's, which keeps its inputs, output and
one float32 number a row. Left out: the allocator's gaps, the libraries' workspaces (1 to 2 GiB in all) and the images'
loading. The times are what a card's multiplications (or, token by token, its memory) allow at the share of its peak
that is assumed; they are no measurement.

    python benchmarks/sizes_cogvlm.py [--batch 8] [--prompt 60] [--answer 200] [--new-tokens 512]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spr.models.cogvlm.configuration import CogVLMConfig
from spr.models.cogvlm.decoder import CogVLMDecoderLayer
from spr.models.cogvlm.experts import Routing
from spr.models.cogvlm.modeling import CogVLMForCausalLM
from spr.models.families import FAMILIES

GIB = 2**30
CARDS = {"A100 80 GB": (80, 312e12, 2.0e12), "H100 80 GB": (80, 989e12, 3.35e12)}
"""GB of memory, bfloat16 multiplications and additions a second, bytes a second, by their makers' data sheets."""
MATH_SHARE, MEMORY_SHARE = 0.4, 0.6
"""What is assumed to be reached of the peaks."""


class FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Heads ``(B, H, L, D)`` → ``(B, H, L, D)``."""
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:3], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One gradient of each input's shape."""
        query, key, value, *_ = ctx.saved_tensors
        return query + gradient, torch.empty_like(key), torch.empty_like(value)


def fused(_: nn.Module, query: Tensor, key: Tensor, value: Tensor, __: Any, **___: Any) -> tuple[Tensor, None]:
    """The kernel, as transformers calls it."""
    return FusedAttention.apply(query, key, value).transpose(1, 2), None


def decoder_layer(config: CogVLMConfig, rank: int) -> nn.Module:
    """One layer on the meta device: bfloat16 and frozen, with a float32 adapter."""
    ALL_ATTENTION_FUNCTIONS.register("fused_on_paper", fused)
    config._attn_implementation = "fused_on_paper"
    with torch.device("meta"):
        holder = nn.Module()
        holder.layers = nn.ModuleList([CogVLMDecoderLayer(config, 0)])
        holder.to(torch.bfloat16).requires_grad_(False)
        settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=FAMILIES["cogvlm"].lora_targets)
        inject_adapter_in_model(settings, holder)
    for name, parameter in holder.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    layer = holder.layers[0]
    layer.train()
    return layer


def layer_step(layer: nn.Module, config: CogVLMConfig, rows: int, texts: int) -> dict[str, float]:
    """One layer's forward and backward pass over ``rows`` sequences of an image and ``texts`` other tokens."""
    length = config.image_seq_length + texts
    tokens, kept = rows * length, {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not tensor.is_leaf:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.device("meta"):
        order = torch.empty(tokens, dtype=torch.int64)
        routing = Routing(order, order, rows * (config.image_seq_length - 1))
        positions = torch.empty(rows, length, dtype=torch.int64)
        states = torch.empty(rows, length, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    with FlopCounterMode(display=False) as ahead, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        output = layer(states * 1, routing, positions)
    with FlopCounterMode(display=False) as back:
        output.backward(torch.empty_like(output))
    causal = 2 * rows * length**2 * config.hidden_size  # half of what the two products of a full square need
    return {
        "kept": sum(kept.values()),
        "ahead": ahead.get_total_flops() + causal,
        "back": back.get_total_flops() + 2.5 * causal,  # five products instead of two
        "border": tokens * config.hidden_size * 2,
    }


def tower_work(model: CogVLMForCausalLM) -> float:
    """Multiplications and additions of one image through vision tower and adapter."""
    side = model.config.vision_config.image_size
    pixels = torch.empty(1, 3, side, side, device="meta", dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model.model.vision(pixels)
    return float(counted.get_total_flops())


def size(parameters: Any, wanted: Callable[[str], bool], each: int) -> float:
    """GiB of those parameters whose names are wanted."""
    return sum(tensor.numel() for name, tensor in parameters if wanted(name)) * each / GIB


def main() -> None:
    """Print both tables, and all figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="descriptions a batch")
    parser.add_argument("--pairs", type=int, default=2, help="pairs a training step")
    parser.add_argument("--prompt", type=int, default=60, help="tokens of a prompt's words")
    parser.add_argument("--answer", type=int, default=200, help="tokens of an answer that is trained on")
    parser.add_argument("--new-tokens", type=int, default=512, help="longest description, in tokens")
    parser.add_argument("--rank", type=int, default=128, help="of the adapter")
    options = parser.parse_args()

    config = CogVLMConfig()
    with torch.device("meta"):
        model = CogVLMForCausalLM(config).to(torch.bfloat16)
    parts = list(model.named_parameters())
    vision = ".vision."
    weights = {
        "vision tower and adapter": size(parts, lambda name: vision in name, 2),
        "visual expert": size(parts, lambda name: "vision_" in name and vision not in name, 2),
        "language model": size(parts, lambda name: "vision" not in name, 2),
    }
    whole = sum(weights.values())
    image = config.image_seq_length
    layers, hidden = config.num_hidden_layers, config.hidden_size
    tower = tower_work(model)
    layer = decoder_layer(config, options.rank)

    # Describing: a prompt's pass, then a token at a time, which reads the language expert and all keys and values.
    length = 1 + image + options.prompt + options.new_tokens
    cache = options.batch * length * layers * 2 * hidden * 2 / GIB
    prompt = layer_step(layer, config, options.batch, 1 + options.prompt)["ahead"] * layers + options.batch * tower
    read = weights["language model"] * GIB + options.batch * (length - options.new_tokens / 2) * layers * 4 * hidden
    peak_states = options.batch * (1 + image + options.prompt) * (3 * config.intermediate_size + 4 * hidden) * 2 / GIB
    describe = {
        "weights": whole,
        "keys and values": cache,
        "one layer's states": peak_states,
        "memory": whole + cache + peak_states,
    }

    # Training: one sequence a pair, [image and prompt | chosen | rejected].
    texts = 1 + options.prompt + 2 * options.answer
    step = layer_step(layer, config, options.pairs, texts)
    adapter = sum(p.numel() for name, p in layer.named_parameters() if "lora_" in name) * layers
    logits = options.pairs * 2 * options.answer * config.vocab_size * 4 * 3 / GIB  # logits, softmax and gradient
    states = adapter * 16 / GIB  # weights, gradients and AdamW's two moments, float32 each
    full = layers * step["kept"] / GIB
    saved = (layers * step["border"] + step["kept"]) / GIB
    frozen = whole + states + logits
    train = {
        "adapter's parameters": adapter,
        "adapter, gradients, AdamW": states,
        "kept for the backward pass": full,
        "kept with checkpointing": saved,
        "logits": logits,
        "memory": frozen + full,
        "memory with checkpointing": frozen + saved,
    }
    plain = layers * (step["ahead"] + step["back"]) + options.pairs * tower
    reference = layers * step["ahead"] + options.pairs * tower
    works = {"prompts": prompt, "step": plain, "step with checkpointing": plain + layers * step["ahead"]}
    works["reference pass"] = reference

    print(f"Weights in bfloat16: {whole:.1f} GiB ({', '.join(f'{k} {v:.1f}' for k, v in weights.items())})")
    print(f"\nDescribing {options.batch} images, {options.prompt} words of prompt, {options.new_tokens} new tokens:")
    for name, number in describe.items():
        print(f"  {name:30} {number:8.1f} GiB")
    print(f"\nOne step of {options.pairs} pairs with answers of {options.answer} tokens, rank {options.rank}:")
    for name, number in train.items():
        print(f"  {name:30} {number:,}" if name.endswith("parameters") else f"  {name:30} {number:8.1f} GiB")
    print(f"\nTimes at {MATH_SHARE:.0%} of peak multiplications and {MEMORY_SHARE:.0%} of peak memory traffic:")
    times: dict[str, dict[str, float]] = {}
    for card, (memory, peak, traffic) in CARDS.items():
        seconds = {name: work / (MATH_SHARE * peak) for name, work in works.items()}
        seconds["a token of all"] = read / (MEMORY_SHARE * traffic)
        seconds["describe"] = seconds["prompts"] + options.new_tokens * seconds["a token of all"]
        times[card] = seconds
        fits = {
            name: number * GIB < (memory - 4) * 1e9
            for name, number in (
                ("describe", describe["memory"]),
                ("train", train["memory"]),
                ("train with checkpointing", train["memory with checkpointing"]),
            )
        }
        shown = ", ".join(f"{name} {number:.3g} s" for name, number in seconds.items())
        print(f"  {card}: {shown}; fits: {', '.join(name for name, ok in fits.items() if ok) or 'nothing'}")
    tera = {name: work / 1e12 for name, work in works.items()}
    print(json.dumps({"weights": weights, "describe": describe, "train": train, "teraflops": tera, "seconds": times}))


if __name__ == "__main__":
    main()
