"""What gpu.py measures: one function per case, each run in a process of its own.

Models have the published sizes and random weights, which are made on the device: nothing but configs, tokenizers and
processors is read from or written to disk, except by `four_bits`. Tokenizers have one token per byte; the vocabulary of
the model is the real one.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers as hf
from PIL import Image
from torch import Tensor

from bench_describe import make_requests
from bench_dpo import a_pair
from bench_score import request_for, set_threshold
from dpo_cases import CASES, make_model, make_pairs, make_processor
from dpo_counts import our_work, sizes_of, trl_work
from dpo_trainers import ours, peaks, settings_of, trl
from score_models import make_tables, save_clip, save_dino
from spr.config import LoraSection, TrainingConfig
from spr.core.errors import SprError
from spr.models.batching import DeviceMemoryError
from spr.models.describers.hf import HfDescriber
from spr.models.detectors.grounding_dino import GroundingDinoDetector
from spr.models.families import FAMILIES
from spr.models.image_processors import encode
from spr.models.ported.ferret.configuration import FerretConfig
from spr.models.ported.ferret.modeling import FerretForConditionalGeneration
from spr.models.ported.ferret.regions import draw_points, region_mask
from spr.models.protocols import View
from spr.models.scorers.clip import ClipScorer
from spr.records import Candidate
from spr.records.schemas import from_table
from spr.training.batches import EncodedPair, collate
from spr.training.loss import PairLogps, pair_losses
from spr.training.pair_model import PairModel
from spr.training.pairs import trl_pairs
from spr.training.trainee import add_adapter
from spr.training.trainer import train
from spr.training.vision_cache import Features, compute_features

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
_TINY_LLAVA = {"side": 28, "rank": 8, "tiles": 2, "picture": (56, 42), "vision": _TINY_VISION}
_TINY_LLAVA["text"] = _text(32, 64, 2, 4, 2, 600)
_FERRET_TEXT = {"vocab_size": 32_002, "max_position_embeddings": 2048}
SIZES: dict[str, dict[str, Any]] = {
    "llava-onevision-0.5b": {"real": {**CASES["0.5b"], "tiles": 6, "picture": PHOTO}, "tiny": _TINY_LLAVA},
    "llava-onevision-7b": {"real": {**CASES["7b"], "tiles": 6, "picture": PHOTO}, "tiny": _TINY_LLAVA},
    "qwen2.5-vl-7b": {
        "real": {
            "side": 560,
            "rank": 128,
            "picture": PHOTO,
            "mrope": [16, 24, 24],
            "vision": _qwen_vision(32, 1280, 3420, 16, 3584, [7, 15, 23, 31]),
            "text": _text(3584, 18_944, 28, 28, 4, 152_064),
        },
        "tiny": {
            "side": 56,
            "rank": 8,
            "picture": (112, 84),
            "mrope": [1, 1, 2],
            "vision": _qwen_vision(2, 32, 64, 4, 32, [1]),
            "text": _text(32, 64, 2, 4, 2, 600),
        },
    },
    "ferret-7b": {
        "real": {"text_config": _FERRET_TEXT},  # the config's defaults are Ferret-7B's
        "tiny": {
            "text_config": {**_text(32, 64, 2, 4, 4, 32_002), "max_position_embeddings": 2048},
            "vision_config": {**_TINY_VISION, "image_size": 84, "patch_size": 14},
            "region_points": 32,
            "region_stages": [16, 4],
            "region_neighbors": [8, 4],
        },
    },
    "matmul": {"real": {"side": 8192}, "tiny": {"side": 256}},
    "dpo": {"real": {"pairs": 12, "answer": 120}, "tiny": {"pairs": 6, "answer": 12}},
    "describe": {
        "real": {"images": 12, "batch": 12, "tokens": 48, "rounds": 2},
        "tiny": {"images": 6, "batch": 6, "tokens": 4, "rounds": 1},
    },
    "score": {
        "real": {"size": "real", "images": 256, "rounds": 3},
        "tiny": {"size": "mid", "images": 2, "rounds": 1},
    },
}
"""Sizes by model or case: ``real``, and ``tiny`` for a rehearsal on the CPU."""


class NotPossibleError(Exception):
    """The case can't be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a case is given: whether it is a rehearsal, an empty folder, and the rows that are there, by case."""

    tiny: bool
    folder: Path
    rows: Mapping[str, Mapping[str, Any]]

    @property
    def device(self) -> str:
        """``cpu`` in a rehearsal, else ``cuda``."""
        return "cpu" if self.tiny else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """float32 in a rehearsal, else bfloat16."""
        return torch.float32 if self.tiny else torch.bfloat16

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

    def peak(self) -> float | None:
        """GiB of the device's memory at their largest; None in a rehearsal."""
        return None if self.tiny else torch.cuda.max_memory_allocated() / 2**30


def build(config: Any, device: Any, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """A frozen model of random weights, which are the same in each process."""
    torch.manual_seed(0)
    model_class = FerretForConditionalGeneration if config.model_type == "ferret" else hf.AutoModelForImageTextToText
    make = getattr(model_class, "from_config", None) or model_class._from_config
    with torch.device(device):
        model = make(config, dtype=dtype, attn_implementation=attention)
    return model.eval().requires_grad_(False)


@contextmanager
def random_weights(run: Run) -> Iterator[None]:
    """Within this context, the library builds models instead of loading their weights."""

    def load(_source: Any, config: Any, *, device: Any, attn_implementation: str, **_: Any) -> Any:
        return build(config, device, run.dtype, attn_implementation)

    with patch("spr.training.trainee.load_mllm", load), patch("spr.models.describers.hf.load_mllm", load):
        yield


def use(run: Run, model: str) -> None:
    """Write what the library reads of a model besides its weights."""
    CASES[model] = run.sizes(model)
    make_processor(model, run.folder / "model")


def training(run: Run, model: str, **changes: bool) -> argparse.Namespace:
    """Make pairs of a model, and return what the trainers of dpo_trainers.py are given: 2 pairs per step."""
    sizes = run.sizes("dpo")
    make_pairs(model, sizes["pairs"], sizes["answer"], 2, 1, run.folder)
    options = {"case": model, "device": run.device, "batch": 2, "accumulate": 1, "features": "memory"}
    options |= {"prefix": "shared", "checkpointing": False, "profile": False, "load_in_4bit": False}
    return argparse.Namespace(**options | sizes | changes)


# ── the cases ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def matmul(run: Run) -> dict[str, Any]:
    """The rate of a square matrix product, and of a copy within the device's memory."""
    side = run.sizes("matmul")["side"]
    first, second = (torch.randn(side, side, device=run.device, dtype=run.dtype) for _ in range(2))
    out = torch.empty_like(first)
    seconds = run.seconds(lambda: [torch.mm(first, second, out=out) for _ in range(10)], 3) / 10
    copying = run.seconds(lambda: [out.copy_(first) for _ in range(10)], 3) / 10
    made = {"side": side, "tflops": 2 * side**3 / seconds / 1e12, "copy_gb_per_s": 2 * out.nbytes / copying / 1e9}
    if not run.tiny:
        free, total = torch.cuda.mem_get_info()
        made |= {"device": torch.cuda.get_device_name(), "memory_gib": total / 2**30, "free_gib": free / 2**30}
    return made


def dpo(run: Run, model: str, trainer: str, *, checkpointing: bool = False) -> dict[str, Any]:
    """A preference training step of 2 pairs, by ``ours`` or ``trl``; one epoch, the reference pass included.

    ``counted_tflop`` is the work of a pair by the formulas of dpo_counts.py, without what checkpointing computes again.
    ``share`` is that work by the time and the rate of `matmul`.
    """
    use(run, model)
    given = training(run, model, checkpointing=checkpointing)
    with random_weights(run):
        found = (ours if trainer == "ours" else trl)(given, run.folder)
    memory = peaks(run.device)
    seconds = a_pair(found, 1, 0)
    made: dict[str, Any] = {
        "s_per_pair": seconds,
        "peak_gib": memory.get("device"),
        "host_gib": memory["host"],
        "reference_s_per_pair": a_pair(found, 0, 0),
        "first_loss": found["losses"][0][0],
        "losses": found["losses"],
        "step_seconds": [wall for wall, _ in found["steps"]],
    }
    name = f"dpo {model}{' checkpointing' if checkpointing else ''} ours"
    own = found if trainer == "ours" else run.rows.get(name, {})
    if "prompt" in own:
        made |= {"prompt": own["prompt"], "patches": own["patches"]}
        counts = sizes_of(model, given.answer, prompt=own["prompt"], patches=own["patches"])
        work = our_work(counts, 1) if trainer == "ours" else trl_work(counts, 1, fused=not run.tiny)
        made["counted_tflop"] = 2 * sum(work.values()) / 1e12
        if "tflops" in run.rows.get("matmul", {}):
            made["share"] = made["counted_tflop"] / seconds / run.rows["matmul"]["tflops"]
    if trainer == "trl" and "losses" in own:
        made |= agreement(own["losses"], found["losses"], run.tiny)
        made["times_ours"] = seconds / own["s_per_pair"]
        if memory.get("device"):
            made["memory_of_ours"] = memory["device"] / own["peak_gib"]
    return made


def dpo_checkpointing(run: Run, model: str, trainer: str) -> dict[str, Any]:
    """`dpo` with gradient checkpointing."""
    return dpo(run, model, trainer, checkpointing=True)


def agreement(ours: list[list[float]], theirs: list[list[float]], exact: bool) -> dict[str, Any]:
    """How far two trainings are apart: losses in absolute terms, sums of log-probabilities relatively.

    ``agree`` allows 1e-4 in float32. In bfloat16 it allows 2 % of the log-probabilities; their rounding, times beta,
    is in the losses after the first step, which is log 2 for both.
    """
    pairs = [(one, other) for one, other in zip(ours, theirs, strict=True)]
    loss = max(abs(one[0] - other[0]) for one, other in pairs)
    logps = max(abs(a - b) / abs(b) for one, other in pairs for a, b in zip(one[1:], other[1:], strict=True))
    first = abs(pairs[0][0][0] - pairs[0][1][0])
    agree = max(loss, logps) <= 1e-4 if exact else logps <= 2e-2 and first <= 2e-2
    return {"loss_apart": loss, "first_loss_apart": first, "logps_apart": logps, "agree": agree}


def describer_of(run: Run, model: str, batch_size: int) -> HfDescriber:
    """A describer whose answers all have the same number of tokens."""
    use(run, model)
    tokens = run.sizes("describe")["tokens"]
    with random_weights(run):
        options = {"device": run.device, "batch_size": batch_size, "max_new_tokens": tokens}
        describer = HfDescriber(run.folder / "model", **options)
    describer.model.generation_config.min_new_tokens = tokens
    head = describer.model.lm_head.weight
    # Random weights give a nearly uniform distribution. Scaled, its entropy is about 4 nats, as in a trained model.
    head *= 3.6 / (float(head.std()) * head.shape[1] ** 0.5)
    return describer


def describe(run: Run, model: str) -> dict[str, Any]:
    """New tokens per second of `HfDescriber` with 1 and 6 answers per image, and of `generate` on the same inputs."""
    sizes = run.sizes("describe")
    describer = describer_of(run, model, sizes["batch"])
    made: dict[str, Any] = {}
    for samples in (1, 6):
        images = make_requests(sizes["images"] // samples)
        requests = [replace(each, seed=seed) for each in images for seed in range(samples)]
        prepared, begun = [], time.perf_counter()
        for start in range(0, len(requests), sizes["batch"]):
            batch = requests[start : start + sizes["batch"]]
            inputs = encode(describer.processor, [describer.render(r.prompt) for r in batch], [r.image for r in batch])
            prepared.append({name: _to(tensor, run) for name, tensor in inputs.items()})
        made[f"k{samples}_prepare_s"] = time.perf_counter() - begun

        def bare(batches: list[dict[str, Tensor]]) -> None:
            for inputs in batches:
                describer.model.generate(**inputs, do_sample=True, temperature=1.0, top_p=0.95, top_k=0)

        tokens = len(requests) * sizes["tokens"]
        with_describer = run.seconds(lambda asked=requests: describer.describe(asked), sizes["rounds"])
        with_generate = run.seconds(lambda batches=prepared: bare(batches), sizes["rounds"])
        made |= {
            f"k{samples}_tokens_per_s": tokens / with_describer,
            f"k{samples}_generate_tokens_per_s": tokens / with_generate,
            f"k{samples}_ratio": with_generate / with_describer,
        }
        made["prompt"] = prepared[0]["input_ids"].shape[1]
    return made | {"batch": describer._run.size, "peak_gib": run.peak()}


def _to(tensor: Tensor, run: Run) -> Tensor:
    return tensor.to(run.device, run.dtype if tensor.is_floating_point() else None)


def score_clip(run: Run) -> dict[str, Any]:
    """Crops per second of `ClipScorer`, two views each, and of CLIP's image encoder on the same pixels."""
    sizes = run.sizes("score")
    save_clip(run.folder, sizes["size"])
    scorer = ClipScorer(run.folder, device=run.device, dtype=str(run.dtype).removeprefix("torch."))
    crops = [request.image.crop((0, 0, 400, 400)) for request in make_requests(sizes["images"])]
    views = [View(crop, region) for crop in crops for region in (None, (50.0, 50.0, 250.0, 200.0))]
    calls = record(scorer.model.vision_model.embeddings, lambda: scorer.embed_views(views))

    @torch.inference_mode()
    def bare() -> None:
        for (pixels,), _ in calls:
            scorer.model.get_image_features(pixel_values=pixels)

    return rates(run, len(crops), lambda: scorer.embed_views(views), bare)


def score_dino(run: Run) -> dict[str, Any]:
    """Images per second of `GroundingDinoDetector`, and of its model on the same inputs; in float32, as published."""
    sizes = run.sizes("score")
    for part in ("dino", "images"):
        (run.folder / part).mkdir()
    save_dino(run.folder / "dino", sizes["size"])
    tables = make_tables(run.folder / "images", max(1, sizes["images"] // 8), 1)
    detector = GroundingDinoDetector(run.folder / "dino", device=run.device, dtype="float32")
    set_threshold(detector, tables, run.folder / "images")
    images = [Image.open(path) for path in sorted((run.folder / "images").iterdir())]
    candidates = from_table(tables["candidates"], Candidate)
    requests = [request_for(candidate, image) for candidate, image in zip(candidates, images, strict=True)]
    calls = record(detector.model, lambda: detector.detect(requests))

    @torch.inference_mode()
    def bare() -> None:
        for _, inputs in calls:
            detector.model(**inputs)

    return rates(run, len(requests), lambda: detector.detect(requests), bare)


def record(module: torch.nn.Module, work: Callable[[], object]) -> list[tuple[Any, dict[str, Any]]]:
    """The positional and keyword arguments of a module's calls while ``work`` runs."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    hook = module.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    work()
    hook.remove()
    return calls


def rates(run: Run, count: int, work: Callable[[], object], bare: Callable[[], object]) -> dict[str, Any]:
    """Items per second of the library and of bare forward passes."""
    own, other = (run.seconds(each, run.sizes("score")["rounds"]) for each in (work, bare))
    return {"per_s": count / own, "bare_per_s": count / other, "ratio": other / own, "peak_gib": run.peak()}


def ferret_step(run: Run) -> dict[str, Any]:
    """A training step of Ferret's size on 2 pairs with one image and one region each; the reference pass included."""
    model = build(FerretConfig(**run.sizes("ferret-7b")), run.device, run.dtype)
    config, answer = model.config, run.sizes("dpo")["answer"]
    side = config.vision_config.image_size
    points = draw_points(region_mask((10, 10, side - 20, side - 20), (side, side)), config.region_points)
    vision = {"pixel_values": torch.randn(1, 3, side, side), "region_points": points[None, None]}
    patches = (side // config.vision_config.patch_size) ** 2
    letters = torch.randint(100, 30_000, (140,), generator=torch.Generator().manual_seed(0))
    image, region = (torch.full((n,), t) for n, t in ((patches, config.image_token_id), (1, config.region_token_id)))
    prompt = torch.cat([letters[:90], image, letters[90:], region])
    family = FAMILIES["ferret"]
    pairs = PairModel(add_adapter(model, LoraSection(), family), family).train()
    with torch.no_grad():
        features = Features(*compute_features(model, {**vision, "region_sizes": torch.tensor([[side, side]])}))
    answers = letters[:answer], letters.flip(0)[:answer]
    encoded = EncodedPair("1", prompt, torch.arange(len(prompt))[None], *answers, features)
    batch = collate([encoded] * 2, 0, shared=True).to(model.device)
    optimizer = torch.optim.AdamW([part for part in pairs.parameters() if part.requires_grad], lr=1e-5)
    losses = []

    def step() -> None:
        with torch.no_grad(), pairs.peft.disable_adapter():
            before = PairLogps(*pairs(batch))
        after = PairLogps(*pairs(batch))
        loss = pair_losses(after, (before.chosen, before.rejected), TrainingConfig()).loss.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    seconds = run.seconds(step, 4)
    return {"s_per_pair": seconds / 2, "peak_gib": run.peak(), "first_loss": losses[0], "prompt": len(prompt)}


def memory_describe(run: Run, model: str) -> dict[str, Any]:
    """A describer that gets memory for 2 requests at a time and starts with 8, and then for less than one."""
    describer = describer_of(run, model, 8)
    requests, weights = make_requests(8), reserved(run)
    expected = describer.with_sampling(temperature=describer.temperature, batch_size=2).describe(requests)
    needed = reserved(run, peak=True) - weights
    with limited(run, describer.model, "generate", weights + 1.3 * needed, most=2):
        answers = describer.describe(requests)
    after = describer._run.size
    with limited(run, describer.model, "generate", weights + 0.1 * needed, most=0):
        message = refused(lambda: describer.describe(requests[:1]))
    same = sum(one == other for one, other in zip(answers, expected, strict=True))
    made = {"batch_before": 8, "batch_after": after, "same_answers": same, "message": message}
    return made | {"weights_gib": weights / 2**30, "needed_by_2_gib": needed / 2**30}


def memory_train(run: Run, model: str) -> dict[str, Any]:
    """A training whose first step does not fit, and which is then resumed with enough memory."""
    use(run, model)
    settings = settings_of(training(run, model))
    folder, said = run.folder / "out", list[str]()
    forward, stack = PairModel.forward, ExitStack()

    def watched(self: PairModel, batch: Any = None, vision: Any = None) -> Any:
        if torch.is_grad_enabled() and batch is not None and not run.tiny:
            stack.enter_context(limited(run, self, "forward", reserved(run) + 2**25, most=0))
        elif torch.is_grad_enabled() and batch is not None:
            raise torch.OutOfMemoryError("no memory is left, as a rehearsal")
        return forward(self, batch, vision)

    def attempt() -> Any:
        pairs = trl_pairs(run.folder / "pairs")
        return train(iter(pairs), str(run.folder / "model"), settings, folder, report=said.append)

    with random_weights(run):
        with stack, patch.object(PairModel, "forward", watched):
            message = refused(attempt)
        computed = sum("Reference" in line for line in said)
        steps = attempt().steps
    again = sum("Reference" in line for line in said) - computed
    return {"message": message, "steps_after": steps, "reference_again": again, "peak_gib": run.peak()}


def reserved(run: Run, *, peak: bool = False) -> int:
    """Bytes of the device's memory that torch holds now, or held at most; an invented number in a rehearsal."""
    if run.tiny:
        return 2**21 if peak else 2**20
    if peak:
        return torch.cuda.max_memory_reserved()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_reserved()


@contextmanager
def limited(run: Run, module: Any, method: str, limit: float, *, most: int) -> Iterator[None]:
    """Allow this process ``limit`` bytes of the device; in a rehearsal, a method fails for over ``most`` rows."""
    if not run.tiny:
        reserved(run)
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    plain = getattr(module, method)

    def fails(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > most:
            raise torch.OutOfMemoryError("no memory is left, as a rehearsal")
        return plain(**inputs)

    with patch.object(module, method, fails):
        yield


def refused(work: Callable[[], object]) -> str:
    """The message of the `DeviceMemoryError` that the work must raise."""
    try:
        work()
    except DeviceMemoryError as error:
        return str(error)
    raise SprError("The work fits into the limited memory", fix="lower the limit of this case")


def four_bits(run: Run, model: str) -> dict[str, Any]:
    """A training step on weights in 4 bits; these are read from disk, since they are quantized while loading."""
    if run.tiny or importlib.util.find_spec("bitsandbytes") is None:
        raise NotPossibleError("a rehearsal has no GPU" if run.tiny else "bitsandbytes is not installed")
    CASES[model] = run.sizes(model)
    make_model(model, run.folder / "model", run.dtype, torch.device(run.device))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    found = ours(training(run, model, load_in_4bit=True), run.folder)
    return {"s_per_pair": a_pair(found, 1, 0), "peak_gib": run.peak(), "losses": found["losses"]}
