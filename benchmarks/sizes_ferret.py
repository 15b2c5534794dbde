"""Claim: one GPU of 80 GB trains Ferret-7B and 13B, and one of 24 GB describes with 7B; from shapes, not measured.

The models are built without memory (on torch's meta device) at their real sizes. Parameters, what autograd keeps for
the backward pass, and floating-point operations are counted on them; times follow from a GPU's data sheet and the
shares of its peaks that are assumed below. It needs neither a GPU nor weights.

    python benchmarks/sizes_ferret.py [--batch 8] [--pairs 2] [--prompt 720] [--answer 200] [--new 200]
"""

from __future__ import annotations

import argparse
import json
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spr.models.ferret.configuration import FerretConfig
from spr.models.ferret.modeling import FerretForConditionalGeneration

MODELS = {
    "ferret-7b": {},
    "ferret-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
}
# Data sheets: GB, dense bfloat16 TFLOP/s, GB/s. Half of the arithmetic and 70 % of the bandwidth are assumed.
GPUS = {"RTX 4090": (24, 165, 1008), "A100 80GB": (80, 312, 2039), "H100 SXM": (80, 989, 3350)}
COMPUTE_SHARE, BANDWIDTH_SHARE = 0.5, 0.7
HALF, SINGLE = 2, 4
RANK = 128
ADAM = 3 * SINGLE + SINGLE  # float32 weight, its gradient, two moments
RESERVE = 1.5  # GB of CUDA itself and of fragments of memory
GB = 1e9


def build(text: dict[str, int]) -> FerretForConditionalGeneration:
    """The model in bfloat16, without memory."""
    config = FerretConfig(text_config={"vocab_size": 32002, "max_position_embeddings": 2048, **text})
    with torch.device("meta"):
        return FerretForConditionalGeneration(config).to(torch.bfloat16).requires_grad_(False)


def count(modules: list[torch.nn.Module]) -> int:
    """Parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


def adapted(model: FerretForConditionalGeneration) -> tuple[torch.nn.Module, int]:
    """The language model with LoRA on all of its linear layers, and the adapter's parameters, in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
        tuned = get_peft_model(model.model.language_model, lora)
    return tuned, sum(p.numel() for p in tuned.parameters() if p.requires_grad)


def inputs(rows: int, tokens: int, hidden: int) -> dict[str, object]:
    """Embeddings ``(rows, tokens, hidden)`` and a mask, as a trainer gives them to the language model."""
    embeds = torch.empty(rows, tokens, hidden, dtype=torch.bfloat16, device="meta")
    mask = torch.empty(rows, 1, tokens, tokens, dtype=torch.bool, device="meta")
    positions = torch.empty(rows, tokens, dtype=torch.long, device="meta")
    return {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions, "use_cache": False}


def forward_flops(model: FerretForConditionalGeneration, rows: int, tokens: int) -> float:
    """Of the language model on ``(rows, tokens)`` embeddings."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model.language_model(**inputs(rows, tokens, model.config.text_config.hidden_size))
    return float(counter.get_total_flops())


def vision_flops(model: FerretForConditionalGeneration, images: int) -> float:
    """Of the vision tower and the projector."""
    pixels = torch.empty(images, 3, 336, 336, dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model.get_image_features(pixels)
    return float(counter.get_total_flops())


class Kernel(torch.autograd.Function):
    """Attention as a GPU's kernels do it, for what it keeps: queries, keys, values and its output, no weights."""

    @staticmethod
    def forward(ctx, query, key, value):
        """Shapes only."""
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx, _):
        """Shapes only."""
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def kernel_attention(module, query, key, value, attention_mask, **_):
    """`Kernel` under the signature of transformers."""
    del module, attention_mask
    return Kernel.apply(query, key, value).transpose(1, 2).contiguous(), None


def training(tuned: torch.nn.Module, hidden: int, rows: int, tokens: int) -> tuple[float, float]:
    """FLOPs of a forward and backward pass, and the bytes that autograd keeps between them, parameters aside."""
    kept: dict[int, tuple[torch.Tensor, int]] = {}
    owned = {id(p) for p in tuned.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        base = tensor._base if tensor._base is not None else tensor
        if id(base) not in owned and id(tensor) not in owned:
            kept[id(base)] = base, base.numel() * base.element_size()
        return tensor

    with FlopCounterMode(display=False) as counter:
        tuned(**inputs(rows, tokens, hidden)).last_hidden_state.sum().backward()
    # Without a GPU torch would keep the weights of the attention, which its kernels compute again.
    config = tuned.base_model.model.config
    before, config._attn_implementation = config._attn_implementation, "kernel"
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tuned(**inputs(rows, tokens, hidden))
    config._attn_implementation = before
    return float(counter.get_total_flops()), float(sum(size for _, size in kept.values()))


ALL_ATTENTION_FUNCTIONS.register("kernel", kernel_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("kernel", sdpa_mask)


def main() -> None:
    """Print both tables, and one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8, help="descriptions a batch")
    parser.add_argument("--pairs", type=int, default=2, help="pairs a training step")
    parser.add_argument("--prompt", type=int, default=720, help="tokens: 576 of the image, the rest text")
    parser.add_argument("--answer", type=int, default=200, help="tokens of an answer in a pair")
    parser.add_argument("--new", type=int, default=200, help="tokens generated")
    options = parser.parse_args()
    print(f"describe: {options.batch} prompts of {options.prompt} tokens, {options.new} generated")
    print(f"train:    {options.pairs} pairs, {options.prompt} + 2 × {options.answer} tokens each (shared prefix)")
    result = {}
    for name, text in MODELS.items():
        result[name] = figures(build(text), options)
        print(f"\n{name}")
        for key, value in result[name].items():
            print(f"  {key:42} {value}")
    print(json.dumps({"options": vars(options), "models": result}))


def figures(model: FerretForConditionalGeneration, options: argparse.Namespace) -> dict[str, object]:
    """What the tables hold, for one model."""
    text = model.config.text_config
    whole, head = count([model]), count([model.lm_head])
    language = count([model.model.language_model])
    length = options.prompt + options.new
    cache = 2 * text.num_hidden_layers * text.hidden_size * HALF  # bytes a token
    weights = whole * HALF / GB
    held = options.batch * length * cache / GB
    prefill = forward_flops(model, options.batch, options.prompt) + vision_flops(model, options.batch)
    # Each step reads the weights once, and the cache as far as it is filled: half of the new tokens on average.
    step_bytes = (language + head) * HALF + options.batch * (options.prompt + options.new / 2) * cache
    peak = 3 * options.batch * options.prompt * text.intermediate_size * HALF / GB  # gate, up and their product
    tokens = options.prompt + 2 * options.answer
    reference = forward_flops(model, options.pairs, tokens) + vision_flops(model, options.pairs)
    tuned, adapter = adapted(model)
    flops, kept = training(tuned, text.hidden_size, options.pairs, tokens)
    logits = 2 * options.pairs * 2 * options.answer * text.vocab_size * SINGLE / GB  # and their gradient
    checkpoints = text.num_hidden_layers * options.pairs * tokens * text.hidden_size * HALF / GB
    one_layer = kept / GB / text.num_hidden_layers
    state = weights + adapter * ADAM / GB + logits + RESERVE
    describe = weights + held + peak + RESERVE
    train = state + kept / GB
    checkpointed = state + checkpoints + one_layer
    made: dict[str, object] = {
        "parameters, billions": round(whole / 1e9, 3),
        "adapter's parameters, millions": round(adapter / 1e6, 1),
        "weights, GB": round(weights, 1),
        "describe: cache, GB": round(held, 1),
        "describe: memory, GB": round(describe, 1),
        "describe: prefill, TFLOP": round(prefill / 1e12, 1),
        "describe: read a generated token, GB": round(step_bytes / GB, 1),
        "train: adapter, gradient, moments, GB": round(adapter * ADAM / GB, 1),
        "train: kept for the backward pass, GB": round(kept / GB, 1),
        "train: memory, GB": round(train, 1),
        "train: memory with checkpointing, GB": round(checkpointed, 1),
        "train: forward and backward, TFLOP": round(flops / 1e12, 1),
        "train: reference and vision, TFLOP": round(reference / 1e12, 1),
    }
    for gpu, (memory, tflops, bandwidth) in GPUS.items():
        compute = COMPUTE_SHARE * tflops * 1e12
        seconds = prefill / compute + options.new * step_bytes / (BANDWIDTH_SHARE * bandwidth * GB)
        step = (flops + reference) / compute
        fits = {"describes": describe < memory, "trains": train < memory, "trains checkpointed": checkpointed < memory}
        made[gpu] = ", ".join(
            [
                f"a batch {seconds:.1f} s",
                f"a step {step:.2f} s",
                *[f"{what}: {'yes' if fit else 'no'}" for what, fit in fits.items()],
            ]
        )
    return made


if __name__ == "__main__":
    main()
