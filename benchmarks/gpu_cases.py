"""What gpu.py measures: one function per case, each run in a process of its own.

Nothing but configs, tokenizers and processors is read from or written to disk, except by the scorer and the detector,
whose models are small, and by `four_bits`, since weights are quantized while loading. Tokenizers have one token per
byte; the vocabulary of the model is the real one. The cases of memory are in gpu_memory.py.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from bench_dpo import a_pair
from bench_score import request_for, set_threshold
from dpo_cases import CASES, make_model
from dpo_counts import our_work, sizes_of, trl_work
from dpo_trainers import ours, peaks, trl
from gpu_memory import memory_describe, memory_train
from gpu_models import (
    NotPossibleError,
    Run,
    build,
    check_lengths,
    describer_of,
    make_requests,
    plain_initialization,
    random_weights,
    training,
    use,
    without_saving,
)
from score_models import make_tables, save_clip, save_dino
from spr.config import LoraSection, TrainingConfig
from spr.core.errors import ConfigError
from spr.models.detectors.grounding_dino import GroundingDinoDetector
from spr.models.errors import ModelError
from spr.models.families import FAMILIES
from spr.models.image_features import compute_features
from spr.models.image_processors import encode
from spr.models.ported.ferret.configuration import FerretConfig
from spr.models.ported.ferret.regions import draw_points, region_mask
from spr.models.protocols import View
from spr.models.scorers.clip import ClipScorer
from spr.records import Candidate
from spr.records.schemas import from_table
from spr.training.batches import EncodedPair, collate
from spr.training.loss import PairLogps, pair_losses
from spr.training.pair_model import PairModel
from spr.training.trainee import add_adapter

PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H200 NVL": 835, "H100": 989, "H200": 989, "GH200": 989, "A100": 312}
PEAKS |= {"B200": 2250, "L40S": 362, "A6000": 155, "A10": 125}
"""TFLOP/s of dense bfloat16 products by NVIDIA's data sheets, by a part of the device's name: the longest that fits."""
TOLERANCE = {"float32": {"losses": 1e-4, "logps": 1e-4}, "bfloat16": {"losses": 0.02, "logps": 1e-3}}
"""How far the trainers may be apart: losses absolutely, log-probabilities of answers relatively.

The first step's loss is log 2: policy and reference agree. In bfloat16 on the CPU, a model of 16 layers of width
448 differed by 0.0036 in losses and 1e-4 in log-probabilities of answers of 119 tokens, over 4 steps; models of 7B may
round a few times as much.
"""


def datasheet_tflops(device: str) -> int | None:
    """The peak of a device by its data sheet, or None if it is not in `PEAKS`.

    >>> datasheet_tflops("NVIDIA H100 80GB HBM3"), datasheet_tflops("NVIDIA H100 PCIe"), datasheet_tflops("cpu")
    (989, 756, None)
    """
    return next((PEAKS[name] for name in sorted(PEAKS, key=len, reverse=True) if name in device), None)


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
        made |= {"memory_gib": total / 2**30, "free_gib": free / 2**30}
        made["datasheet_tflops"] = datasheet_tflops(torch.cuda.get_device_name())
    return made


def dpo(run: Run, model: str, trainer: str, *, checkpointing: bool = False, attention: str = "sdpa") -> dict[str, Any]:
    """Preference training by ``ours`` or ``trl``: time and memory per pair for one epoch, the reference pass included.

    ``counted_tflop`` is the work of a pair by the formulas of dpo_counts.py, without what checkpointing computes again.
    ``share`` is that work by the time and the rate of `matmul`, ``share_of_datasheet`` by the data sheet's.
    ``gib_beyond_weights`` are the adapter, its optimizer and what the pairs of a step need, ``pairs_per_step``.
    """
    use(run, model)
    given = training(run, model, checkpointing=checkpointing, attn_implementation=attention)
    with random_weights(run) as base, without_saving():
        found = (ours if trainer == "ours" else trl)(given, run.folder)
    memory = peaks(run.device)
    seconds = a_pair(found, 1, 0)
    made: dict[str, Any] = {
        "s_per_pair": seconds,
        "peak_gib": memory.get("device"),
        "host_gib": memory["host"],
        "reference_s_per_pair": a_pair(found, 0, 0),
        "pairs_per_step": given.batch,
        "first_loss": found["losses"][0][0],
        "losses": found["losses"],
        "step_seconds": [wall for wall, _ in found["steps"]],
    }
    if memory.get("device"):
        made |= base | {"gib_beyond_weights": memory["device"] - (base["weights_gib"] or 0)}
    name = f"dpo {model}{' checkpointing' if checkpointing else ''} ours"
    own = found if trainer == "ours" else run.rows.get(name, {})
    if "prompt" in own:
        made |= {"prompt": own["prompt"], "patches": own["patches"]}
        answer = given.answer - 1  # neither trainer learns the newline after the end of turn
        counts = sizes_of(model, answer, prompt=own["prompt"], patches=own["patches"])
        work = our_work(counts, 1) if trainer == "ours" else trl_work(counts, 1, fused=not run.tiny)
        made["counted_tflop"] = 2 * sum(work.values()) / 1e12
        for share, rate in (("share", "tflops"), ("share_of_datasheet", "datasheet_tflops")):
            if run.rows.get("matmul", {}).get(rate):
                made[share] = made["counted_tflop"] / seconds / run.rows["matmul"][rate]
    if trainer == "trl" and "losses" in own:
        made |= agreement(own["losses"], found["losses"], TOLERANCE[run.dtype_name])
        made["times_ours"] = seconds / own["s_per_pair"]
        if memory.get("device"):
            made["memory_of_ours"] = memory["device"] / own["peak_gib"]
    return made


def dpo_checkpointing(run: Run, model: str, trainer: str) -> dict[str, Any]:
    """`dpo` with gradient checkpointing."""
    return dpo(run, model, trainer, checkpointing=True)


def dpo_attention(run: Run, model: str, attention: str) -> dict[str, Any]:
    """`dpo` of our trainer with another implementation of attention, and how many times as long as with `sdpa`."""
    if attention not in get_args(TrainingConfig.model_fields["attn_implementation"].annotation):
        raise NotPossibleError(f"training.attn_implementation can't be {attention}")
    try:
        made = dpo(run, model, "ours", attention=attention)
    except (ConfigError, ImportError, ModelError) as error:
        raise NotPossibleError(" ".join(str(error).split())) from error
    usual = run.rows.get(f"dpo {model} ours", {})
    if "losses" in usual:
        made |= agreement(usual["losses"], made["losses"], TOLERANCE[run.dtype_name])
        made["times_sdpa"] = made["s_per_pair"] / usual["s_per_pair"]
    return made


def agreement(ours: list[list[float]], theirs: list[list[float]], allowed: dict[str, float]) -> dict[str, Any]:
    """How far two trainings are apart, over all steps, and whether that is allowed.

    A step is its loss and the sums of log-probabilities of the chosen and the rejected answers.
    """
    pairs = [(one, other) for one, other in zip(ours, theirs, strict=True)]
    loss = max(abs(one[0] - other[0]) for one, other in pairs)
    logps = max(abs(a - b) / abs(b) for one, other in pairs for a, b in zip(one[1:], other[1:], strict=True))
    first = max(abs(each[0][0] - math.log(2)) for each in (ours, theirs))
    agree = max(loss, first) <= allowed["losses"] and logps <= allowed["logps"]
    return {"loss_apart": loss, "first_loss_off": first, "logps_apart": logps, "allowed": allowed, "agree": agree}


def describe(run: Run, model: str) -> dict[str, Any]:
    """New tokens per second of `HfDescriber`, and of `generate` on the same inputs, with 1 and 6 answers per image.

    `generate` is given prepared tensors, and each answer's own copy of image and prompt.
    """
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
        check_lengths(describer.describe(requests))
        with_describer = run.seconds(lambda asked=requests: describer.describe(asked), sizes["rounds"])
        with_generate = run.seconds(lambda batches=prepared: bare(batches), sizes["rounds"])
        made |= {
            f"k{samples}_tokens_per_s": tokens / with_describer,
            f"k{samples}_generate_tokens_per_s": tokens / with_generate,
            f"k{samples}_ratio": with_generate / with_describer,
        }
        made["prompt"] = prepared[0]["input_ids"].shape[1]
    return made | {"sequences": sizes["batch"], "new_tokens": sizes["tokens"], "peak_gib": run.peak()}


def _to(tensor: Tensor, run: Run) -> Tensor:
    return tensor.to(run.device, run.dtype if tensor.is_floating_point() else None)


def score_clip(run: Run) -> dict[str, Any]:
    """Crops per second of `ClipScorer`, two views each, and of CLIP's image encoder on the same pixels."""
    sizes = run.sizes("score")
    save_clip(run.folder, sizes["size"])
    scorer = ClipScorer(run.folder, device=run.device, dtype=run.dtype_name)
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
    sizes = run.sizes("ferret-7b")
    answer = sizes.pop("answer")
    model = build(FerretConfig(**sizes), run.device, run.dtype)
    config = model.config
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
        features = compute_features(model, {**vision, "region_sizes": torch.tensor([[side, side]])})
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


def four_bits(run: Run, model: str) -> dict[str, Any]:
    """Our trainer on weights in 4 bits, if bitsandbytes is installed."""
    if run.tiny or importlib.util.find_spec("bitsandbytes") is None:
        raise NotPossibleError("a rehearsal has no GPU" if run.tiny else "bitsandbytes is not installed")
    CASES[model] = run.sizes(model)
    with plain_initialization():
        make_model(model, run.folder / "model", run.dtype, torch.device(run.device))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with without_saving():
        found = ours(training(run, model, load_in_4bit=True), run.folder)
    return {"s_per_pair": a_pair(found, 1, 0), "peak_gib": run.peak(), "losses": found["losses"]}


__all__ = [
    "describe",
    "dpo",
    "dpo_attention",
    "dpo_checkpointing",
    "ferret_step",
    "four_bits",
    "matmul",
    "memory_describe",
    "memory_train",
    "score_clip",
    "score_dino",
]
