"""What bench_describe.py measures: models with random weights, requests, and the work that is timed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from spr.config import load_config
from spr.embedded.scenes import write_scenes
from spr.models.describers.hf import HfDescriber
from spr.models.image_processors import encode
from spr.models.protocols import DescribeRequest
from spr.pipeline.decoding import in_groups
from spr.pipeline.describe import requests_for
from spr.pipeline.runner import run
from spr.records import RegionObject, RegionQuery
from spr.records.schemas import from_table
from spr.runs.store import StageStore

PATCH, VOCABULARY = 14, 32_000
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
PROMPT = "Describe the region [0.12, 0.20, 0.80, 0.91] of the image, and give the box of each object that you name."
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0}
"""The describer's defaults as `generate` takes them."""

Work = Callable[[], Any]


def save_model(folder: Path, side: int = 224) -> None:
    """Save a mid-size LLaVA-OneVision with bytes as tokens and unused tokens up to a typical vocabulary size.

    Images have ``side`` pixels in each direction: ``(side / 14)²`` tokens, and at most as many again.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: k for k, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    tokenizer.save_pretrained(folder)
    grid = [[side, side]]
    size = {"height": side, "width": side}
    hf.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=grid).save_pretrained(folder)
    settings = {"num_image_tokens": (side // PATCH) ** 2, "vision_feature_select_strategy": "full"}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            image_size=side,
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


def make_requests(
    count: int, *, images: int | None = None, prompt: str = PROMPT, size: tuple[int, int] = (640, 480)
) -> list[DescribeRequest]:
    """Requests, by default of the size of a photograph, with seeds 0, 1, …

    Each has an image of its own, so that nothing can be shared; or they take turns with ``images`` images.
    """
    width, height = size
    window = (0.0, 0.0, float(width), float(height))
    region = (RegionObject("1", "thing", window, inside=True),)
    noise = [Image.effect_noise(size, 20 + k) for k in range(images or count)]
    pictures = [Image.merge("RGB", [grey] * 3) for grey in noise]
    requests = []
    for k in range(count):
        query = RegionQuery(f"{k}/0", str(k), f"{k}.jpg", width, height, window, "1", region)
        requests.append(DescribeRequest(pictures[k % len(pictures)], prompt, k, query, window))
    return requests


def never_end(describer: HfDescriber) -> None:
    """Make every token that ends an answer impossible, so that all answers have the same number of tokens."""
    saved = describer.model.generation_config.eos_token_id
    ends = set(saved if isinstance(saved, list) else [saved]) | describer._tokens.ends
    head = describer.model.get_output_embeddings()
    ids = [token for token in sorted(ends - {None}) if token < head.weight.shape[0]]
    head.register_forward_hook(lambda _module, _inputs, logits: logits.index_fill(-1, torch.tensor(ids), -torch.inf))


def bare(describer: HfDescriber, requests: Sequence[DescribeRequest], *, batch: int, new: int) -> dict[str, Work]:
    """``generate`` on tensors that are prepared already: sampled as the describer does by default, and greedy.

    ``encode + generate`` also prepares them, and samples.
    """

    def prepare() -> list[dict[str, torch.Tensor]]:
        prepared = []
        for start in range(0, len(requests), batch):
            part = requests[start : start + batch]
            texts = [describer.render(request.prompt) for request in part]
            inputs = encode(describer.processor, texts, [request.image for request in part])
            prepared.append({name: cast(tensor) for name, tensor in inputs.items()})
        return prepared

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(describer.model.device, describer.model.dtype if tensor.is_floating_point() else None)

    ends = {"max_new_tokens": new, "pad_token_id": describer.processor.tokenizer.pad_token_id}
    once = prepare()

    def work(prepared: list[dict[str, torch.Tensor]], **options: Any) -> None:
        for inputs in prepared:
            describer.model.generate(**inputs, **ends, **options)

    return {
        "generate": lambda: work(once, **SAMPLING),
        "greedy": lambda: work(once, do_sample=False),
        "encode + generate": lambda: work(prepare(), **SAMPLING),
    }


def ways(
    folder: Path, requests: Sequence[DescribeRequest], *, batch: int, new: int, dtype: str = "float32"
) -> dict[str, Work]:
    """The describer of a model folder (``describe``) and bare `generate`, on the same requests."""
    describer = HfDescriber(folder, device="cpu", dtype=dtype, batch_size=batch, max_new_tokens=new)
    never_end(describer)
    return {"describe": lambda: describer.describe(requests), **bare(describer, requests, batch=batch, new=new)}


def tiny_models(folder: Path) -> Iterator[tuple[str, list[DescribeRequest], Path]]:
    """Every family's tiny model of the tests: its name, requests with images of their own, and its folder."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny_mllms import all_makers

    for name, make in all_makers().items():
        torch.manual_seed(0)
        make(folder / name)
        prompt = "<OD>" if name == "florence2" else "Describe the image, and give the box of each object."
        # Small images for small models, so that preparing them has its usual share of the time.
        yield name, make_requests(4, prompt=prompt, size=(100, 80)), folder / name


def prepare_scenes(folder: Path, regions: int) -> None:
    """Generate the quickstart's scenes and select regions in them, as `spr quickstart` does."""
    write_scenes(folder / "scenes", regions, 0)
    run(quickstart(folder), folder / "run", until="regions")


def quickstart(folder: Path) -> Any:
    """The quickstart's config on the scenes in a folder."""
    data = folder / "scenes"
    paths = {"path": data / "instances.json", "images": data / "images"}
    return load_config("quickstart", [f"annotations.{name}={json.dumps(str(path))}" for name, path in paths.items()])


def embedded(folder: Path, *, part: int, parts: int, dtype: str = "auto") -> tuple[Work, int]:
    """One process's part of the descriptions that the quickstart samples, and their number.

    As in a run, the requests of several regions are handed to the describer together, as many as the pipeline does.
    """
    config = quickstart(folder)
    section = config.describer.model_copy(update={"dtype": dtype, "device": "cpu"})
    describer = HfDescriber(section)
    tables = StageStore(folder / "run" / "regions").tables()
    queries = [query for table in tables for query in from_table(table, RegionQuery)]
    items = []
    for query in queries[part::parts]:
        with Image.open(folder / "scenes" / "images" / query.file_name) as opened:
            image = opened.convert("RGB")
        items.append(
            requests_for(
                query, image, describer.dialect, section.samples, section.crop_factor, config.prompts, config.seed
            )
        )

    def pixels(item: Sequence[Any]) -> int:
        seen = {id(one.request.image): one.request.image for one in item}
        return sum(image.width * image.height for image in seen.values())

    groups = [[one.request for item in group for one in item] for group in in_groups(items, pixels)]

    def work() -> list[tuple[str, str | None]]:
        answers = [answer for group in groups for answer in describer.describe(group)]
        return [(answer.text, answer.finish_reason) for answer in answers]

    return work, sum(map(len, groups))
