"""The models of gpu_cases.py: published sizes, random weights that are made on the device, and what a case is given."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from transformers import initialization

from dpo_cases import CASES, make_pairs, make_processor
from spr.core.errors import SprError
from spr.models.describers.hf import HfDescriber
from spr.models.ported.ferret.modeling import FerretForConditionalGeneration
from spr.models.protocols import Answer, DescribeRequest
from spr.records import TRUNCATED, RegionObject, RegionQuery
from spr.training.checkpoint import TrainingState

PHOTO = (640, 480)
"""Width and height of the images, as in COCO."""


def _text(width: int, inner: int, layers: int, heads: int, kv: int, words: int) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = dict(zip(names, (width, inner, layers, heads, kv), strict=True))
    return {**sizes, "vocab_size": words, "max_position_embeddings": 32_768}


def _qwen_vision(depth: int, width: int, inner: int, heads: int, out: int, whole: list[int]) -> dict[str, Any]:
    sizes = {"depth": depth, "hidden_size": width, "intermediate_size": inner, "num_heads": heads}
    return {**sizes, "out_hidden_size": out, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": whole}


_TINY_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_TINY_LLAVA: dict[str, Any] = {"side": 28, "rank": 8, "tiles": 2, "picture": (56, 42), "vision": _TINY_VISION}
_TINY_LLAVA |= {"text": _text(32, 64, 2, 4, 2, 600), "pairs": 6, "batch": 2, "answer": 12}
_FERRET_TEXT = {"vocab_size": 32_002, "max_position_embeddings": 2048}
SIZES: dict[str, dict[str, Any]] = {
    "llava-onevision-0.5b": {
        "real": {**CASES["0.5b"], "tiles": 6, "picture": PHOTO, "pairs": 12, "batch": 2, "answer": 120},
        "tiny": _TINY_LLAVA,
    },
    "llava-onevision-7b": {
        "real": {**CASES["7b"], "tiles": 6, "picture": PHOTO, "pairs": 8, "batch": 1, "answer": 120},
        "tiny": {**_TINY_LLAVA, "pairs": 3, "batch": 1},
    },
    "qwen2.5-vl-7b": {
        "real": {
            "pairs": 12,
            "batch": 2,
            "answer": 120,
            "side": 560,
            "rank": 128,
            "picture": PHOTO,
            "mrope": [16, 24, 24],
            "vision": _qwen_vision(32, 1280, 3420, 16, 3584, [7, 15, 23, 31]),
            "text": _text(3584, 18_944, 28, 28, 4, 152_064),
        },
        "tiny": {
            "pairs": 6,
            "batch": 2,
            "answer": 12,
            "side": 56,
            "rank": 8,
            "picture": (112, 84),
            "mrope": [1, 1, 2],
            "vision": _qwen_vision(2, 32, 64, 4, 32, [1]),
            "text": _text(32, 64, 2, 4, 2, 600),
        },
    },
    "ferret-7b": {
        "real": {"text_config": _FERRET_TEXT, "answer": 120},  # the config's defaults are Ferret-7B's
        "tiny": {
            "answer": 12,
            "text_config": {**_text(32, 64, 2, 4, 4, 32_002), "max_position_embeddings": 2048},
            "vision_config": {**_TINY_VISION, "image_size": 84, "patch_size": 14},
            "region_points": 32,
            "region_stages": [16, 4],
            "region_neighbors": [8, 4],
        },
    },
    "matmul": {"real": {"side": 8192}, "tiny": {"side": 256}},
    "describe": {
        "real": {"images": 12, "batch": 12, "tokens": 48, "rounds": 2},
        "tiny": {"images": 6, "batch": 6, "tokens": 4, "rounds": 1},
    },
    "memory": {"real": {"batch": 16, "fits": 2}, "tiny": {"batch": 8, "fits": 2}},
    "score": {
        "real": {"size": "real", "images": 256, "rounds": 3},
        "tiny": {"size": "tiny", "images": 8, "rounds": 1},
    },
}
"""Sizes by model or case: ``real``, and ``tiny`` for a rehearsal on the CPU.

In training, ``batch`` is pairs per step. With one pair of LLaVA-OneVision-7B, TRL keeps about 40 GiB for the backward
pass (6.2 MB per token, counted by the tensors that autograd saves), besides 21 GiB of weights, adapter and optimizer:
two pairs would not fit into 80 GB.
"""


class NotPossibleError(Exception):
    """The case can't be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a case is given.

    Attributes:
        tiny: Whether it is a rehearsal: on the CPU, with tiny sizes.
        dtype: Of the weights: bfloat16 on the GPU.
        folder: An empty folder, which is removed afterwards.
        rows: The rows that are there, by case.
    """

    tiny: bool
    dtype: torch.dtype
    folder: Path
    rows: Mapping[str, Mapping[str, Any]]

    @property
    def device(self) -> str:
        """``cpu`` in a rehearsal, else ``cuda``."""
        return "cpu" if self.tiny else "cuda"

    @property
    def dtype_name(self) -> str:
        """``bfloat16`` or ``float32``."""
        return str(self.dtype).removeprefix("torch.")

    def sizes(self, name: str) -> dict[str, Any]:
        """The sizes of a model or case."""
        return dict(SIZES[name]["tiny" if self.tiny else "real"])

    def seconds(self, work: Callable[[], object], rounds: int) -> float:
        """Median time of one call, after a first one that is not counted."""
        times = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            work()
            if not self.tiny:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def allocated(self) -> float | None:
        """GiB of the device's memory that tensors take now; None in a rehearsal."""
        return None if self.tiny else torch.cuda.memory_allocated() / 2**30

    def peak(self) -> float | None:
        """GiB of the device's memory that tensors took at most; None in a rehearsal."""
        return None if self.tiny else torch.cuda.max_memory_allocated() / 2**30


@contextmanager
def plain_initialization() -> Iterator[None]:
    """Within this context, transformers draws from normal distributions where it would draw from truncated ones.

    These need the inverse error function, which not every build of PyTorch has for bfloat16 on a GPU.
    """

    def normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Any = None, **_: float) -> Tensor:
        return torch.nn.init.normal_(tensor, mean, std, generator=generator)

    with patch.dict(initialization.TORCH_INIT_FUNCTIONS, trunc_normal_=normal):
        yield


def build(config: Any, device: Any, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """A frozen model of random weights, made on the device; they are the same in each process."""
    torch.manual_seed(0)
    model_class = FerretForConditionalGeneration if config.model_type == "ferret" else hf.AutoModelForImageTextToText
    make = getattr(model_class, "from_config", None) or model_class._from_config
    with torch.device(device), plain_initialization():
        model = make(config, dtype=dtype, attn_implementation=attention)
    return model.eval().requires_grad_(False)


@contextmanager
def random_weights(run: Run) -> Iterator[dict[str, float | None]]:
    """Within this context, the library builds models instead of loading their weights.

    The dict that it gives has the GiB of the device's memory that the newest one takes, ``weights_gib``.
    """
    found: dict[str, float | None] = {}

    def load(_source: Any, config: Any, *, device: Any, attn_implementation: str, **_: Any) -> Any:
        model = build(config, device, run.dtype, attn_implementation)
        found["weights_gib"] = run.allocated()
        return model

    with patch("spr.training.trainee.load_mllm", load), patch("spr.models.describers.hf.load_mllm", load):
        yield found


def use(run: Run, model: str) -> None:
    """Write what the library reads of a model besides its weights."""
    CASES[model] = run.sizes(model)
    make_processor(model, run.folder / "model")


def training(run: Run, model: str, **changes: Any) -> argparse.Namespace:
    """Make pairs of a model, and return what the trainers of dpo_trainers.py are given."""
    sizes = {name: run.sizes(model)[name] for name in ("pairs", "batch", "answer")}
    make_pairs(model, sizes["pairs"], sizes["answer"], sizes["batch"], 1, run.folder)
    options = {"case": model, "device": run.device, "dtype": run.dtype_name, "accumulate": 1, "features": "memory"}
    options |= {"prefix": "shared", "checkpointing": False, "profile": False, "load_in_4bit": False}
    return argparse.Namespace(**options | sizes | changes)


@contextmanager
def without_saving() -> Iterator[None]:
    """Within this context, a training writes neither a checkpoint nor its adapter: 5 GB for a model of 7B.

    They are written after the last step that is timed.
    """

    def save(_self: Any, folder: Any, step: int, *_: Any) -> Any:
        return folder / f"step-{step}"

    with patch.multiple(TrainingState, save=save, save_adapter=lambda *_: {}):
        yield


def make_requests(count: int) -> list[DescribeRequest]:
    """Requests about regions of different photographs, which are noise."""
    width, height = PHOTO
    window = (0.0, 0.0, float(width), float(height))
    region = (RegionObject("1", "thing", window, inside=True),)
    prompt = "Describe the region [0.12, 0.20, 0.80, 0.91] of the image, and give the box of each object that you name."
    requests = []
    for k in range(count):
        noise = Image.effect_noise(PHOTO, 20 + k)
        query = RegionQuery(f"{k}/0", str(k), f"{k}.jpg", width, height, window, "1", region)
        requests.append(DescribeRequest(Image.merge("RGB", [noise] * 3), prompt, k, query, window))
    return requests


def describer_of(run: Run, model: str, batch_size: int) -> HfDescriber:
    """A describer whose answers all have the same number of tokens."""
    use(run, model)
    tokens = run.sizes("describe")["tokens"]
    with random_weights(run):
        options = {"device": run.device, "batch_size": batch_size, "max_new_tokens": tokens}
        describer = HfDescriber(run.folder / "model", **options)
    head = describer.model.get_output_embeddings().weight
    # Random weights give a nearly uniform distribution. Scaled, its entropy is about 4 nats, as in a trained model.
    head *= 3.6 / (float(head.float().std()) * head.shape[1] ** 0.5)
    # With a logit of 0, a token that ends the answer has a probability below 1e-5.
    vocabulary = describer.processor.tokenizer.get_vocab()
    head[[k for token, k in vocabulary.items() if token.startswith("<|")]] = 0
    return describer


def check_lengths(answers: list[Answer]) -> None:
    """Raise `SprError` if an answer ended before its last token, which would make the counts of tokens wrong."""
    short = [answer.finish_reason for answer in answers if answer.finish_reason != TRUNCATED]
    if short:
        raise SprError(
            "Answers ended early", got=f"{len(short)} of {len(answers)}, reasons {sorted(set(short), key=str)}"
        )
