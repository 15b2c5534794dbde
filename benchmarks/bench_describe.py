"""Claim: `HfDescriber` reaches at least 90 % of the tokens per second of a bare batched `generate` call.

The model is a LLaVA-OneVision with about 70 million random parameters; all answers have the same number of tokens. The
describer's time includes everything it does: chat template, image processing, tokenization, sampling by seed and
decoding. The bare call gets prepared tensors. It samples with the temperature and top-p of transformers (`generate`) or
takes the most likely token (`greedy`). The three are measured in turn; a ratio compares measurements of the same round,
and the median ratio is reported.

    python benchmarks/bench_describe.py [--batch 4] [--batches 2] [--new-tokens 48] [--repeats 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from spr.models.describers.hf import HfDescriber
from spr.models.image_processors import encode
from spr.models.protocols import DescribeRequest
from spr.records import RegionObject, RegionQuery

SIDE, PATCH, VOCABULARY = 224, 14, 32_000
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
PROMPT = "Describe the region [0.12, 0.20, 0.80, 0.91] of the image, and give the box of each object that you name."


def save_model(folder: Path) -> None:
    """Save a mid-size LLaVA-OneVision with bytes as tokens and unused tokens up to a typical vocabulary size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: k for k, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    tokenizer.save_pretrained(folder)
    grid = [[SIDE, SIDE]]
    size = {"height": SIDE, "width": SIDE}
    hf.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=grid).save_pretrained(folder)
    settings = {"num_image_tokens": (SIDE // PATCH) ** 2, "vision_feature_select_strategy": "full"}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            image_size=SIDE,
            patch_size=PATCH,
            vision_use_head=False,
        ),
        text_config=hf.Qwen2Config(
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_select_strategy="full",
        image_grid_pinpoints=grid,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = hf.LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():
        # Random weights give a nearly uniform distribution. Scaled, its entropy is about 4 nats, as in a trained model.
        model.lm_head.weight *= 8
    model.save_pretrained(folder)


def make_requests(count: int) -> list[DescribeRequest]:
    """Requests with a different image each, of the size of a photograph, so that nothing can be shared."""
    window = (0.0, 0.0, 640.0, 480.0)
    region = (RegionObject("1", "thing", window, inside=True),)
    requests = []
    for k in range(count):
        noise = Image.effect_noise((640, 480), 20 + k)
        query = RegionQuery(f"{k}/0", str(k), f"{k}.jpg", 640, 480, window, "1", region)
        requests.append(DescribeRequest(Image.merge("RGB", [noise] * 3), PROMPT, k, query, window))
    return requests


def timed(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"batch": 4, "batches": 2, "new-tokens": 48, "repeats": 3, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        options = {"dtype": "float32", "batch_size": arguments.batch, "max_new_tokens": arguments.new_tokens}
        describer = HfDescriber(folder, **options)
    model, requests = describer.model, make_requests(arguments.batch * arguments.batches)
    # No answer ends early, so that all have the same number of tokens.
    model.generation_config.min_new_tokens = arguments.new_tokens
    prepared = []
    for start in range(0, len(requests), arguments.batch):
        batch = requests[start : start + arguments.batch]
        inputs = encode(describer.processor, [describer.render(r.prompt) for r in batch], [r.image for r in batch])
        prepared.append({name: tensor.to(model.device) for name, tensor in inputs.items()})

    def bare(**sampling: object) -> None:
        for inputs in prepared:
            model.generate(**inputs, **sampling)

    ways: dict[str, Callable[[], object]] = {
        "describer": lambda: describer.describe(requests),
        "generate": lambda: bare(do_sample=True, temperature=1.0, top_p=0.95, top_k=0),
        "greedy": lambda: bare(),
    }
    for work in ways.values():
        work()
    seconds = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, work in ways.items():
            seconds[name].append(timed(work))
    tokens = len(requests) * arguments.new_tokens
    speeds = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: statistics.median(b / d for b, d in zip(seconds[name], seconds["describer"], strict=True))
        for name in ("generate", "greedy")
    }
    parameters = sum(parameter.numel() for parameter in model.parameters())
    prompt = prepared[0]["input_ids"].shape[1]
    print(
        f"{parameters / 1e6:.0f} M parameters, {model.device}, {arguments.threads} threads, torch {torch.__version__}"
    )
    print(
        f"{len(requests)} requests of {prompt} tokens, {arguments.new_tokens} new ones, batch size {arguments.batch}\n"
    )
    print(f"{'':12}{'tokens/s':>10}{'describer reaches':>20}")
    for name, speed in speeds.items():
        print(f"{name:12}{speed:10.1f}{ratios[name]:20.1%}" if name in ratios else f"{name:12}{speed:10.1f}")
    print(json.dumps({"benchmark": "describe", "tokens_per_s": speeds, "ratio": ratios, "seconds": seconds}))


if __name__ == "__main__":
    main()
