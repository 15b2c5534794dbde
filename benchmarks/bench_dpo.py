"""Preference training beside TRL's `DPOTrainer`: seconds a pair and peak memory, on the same model, adapter and pairs.

    python benchmarks/bench_dpo.py --case small     # a light language model with a long vocabulary
    python benchmarks/bench_dpo.py --case heavy     # the proportions of a 7B: most of the work in the language model

Each trainer runs in a process of its own, one after the other, on one thread. Both take the same steps from the same
adapter, and must see the same losses. The first step is left out of the times. Prints tables and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from datasets import Dataset, Image, List
from PIL import Image as Pictures
from tokenizers import Tokenizer, models, pre_tokenizers

from spr.sections import LoraSection, TrainingConfig
from spr.training.pairs import trl_pairs
from spr.training.schedule import steps_of_training
from spr.training.setup import load_trainee
from spr.training.trainer import train

SPECIAL = ("<pad>", "<eos>", "<image>", "<video>", "<unk>", "<user>", "<assistant>")
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {% for part in m['content'] %}{% if part['type'] == 'image' %}<image> "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
CASES: dict[str, dict[str, Any]] = {
    "small": {
        "vision": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6},
        "text": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "vocab_size": 32_000},
    },
    "heavy": {
        "vision": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
        "text": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 4_000},
    },
}
SIDE, PATCH, ANSWER, QUESTION, BATCH = 378, 14, 120, 60, 2
SETTINGS = TrainingConfig(
    device="cpu",
    dtype="float32",
    batch_size=BATCH,
    learning_rate=1e-4,
    schedule="constant",
    warmup=0.0,
    lora=LoraSection(rank=128, alpha=256),
)


def make(case: str, pairs: int, folder: Path, accumulate: int) -> None:
    """A random model of the case and pairs about noise, on disk."""
    sizes = CASES[case]
    count = sizes["text"]["vocab_size"]
    words = [*SPECIAL, *(f"w{k}" for k in range(count - len(SPECIAL)))]
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    vocabulary = {word: k for k, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, names["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **names,
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )
    images = hf.LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=[[SIDE, SIDE]]
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(
            **sizes["vision"], image_size=SIDE, patch_size=PATCH, vision_use_head=False
        ),
        text_config=hf.Qwen2Config(
            **sizes["text"], num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=8192
        ),
        image_token_index=2,
        video_token_index=3,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[SIDE, SIDE]],
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = hf.LlavaOnevisionForConditionalGeneration(config)
    for part in (model, tokenizer, images):
        part.save_pretrained(folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(TEMPLATE)
    processor = {"num_image_tokens": (SIDE // PATCH) ** 2, "vision_feature_select_strategy": "full"}
    processor |= {"vision_aspect_ratio": "anyres_max_9", "processor_class": "LlavaOnevisionProcessor"}
    (folder / "model" / "processor_config.json").write_text(json.dumps(processor))
    draw = np.random.default_rng(0)

    def said(length: int) -> list[dict[str, str]]:
        return [{"type": "text", "text": " ".join(f"w{k}" for k in draw.integers(0, count - len(SPECIAL), length))}]

    rows = [
        {
            "images": [Pictures.fromarray(draw.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))],
            "prompt": [{"role": "user", "content": [{"type": "image", "text": ""}, *said(QUESTION)]}],
            "chosen": [{"role": "assistant", "content": said(ANSWER)}],
            "rejected": [{"role": "assistant", "content": said(ANSWER)}],
        }
        for _ in range(pairs)
    ]
    # In the order in which our trainer takes them, so that TRL's, reading from first to last, takes the same steps.
    sizes_of = {"batch_size": BATCH // accumulate, "batches_a_step": accumulate}
    steps = steps_of_training([1] * pairs, **sizes_of, epochs=1, max_steps=None, seed=0)
    order = [k for step in steps for batch in step for k in batch]
    given = Dataset.from_list(rows).cast_column("images", List(Image()))
    given.save_to_disk(str(folder / "pairs"))
    given.select(order).save_to_disk(str(folder / "ordered"))


def ours(folder: Path, epochs: int, features: str, accumulate: int) -> dict[str, Any]:
    """Our trainer: the reference pass, and each step after the first."""
    changes = {"epochs": epochs, "features": features, "batch_size": BATCH // accumulate}
    settings = SETTINGS.model_copy(update={**changes, "gradient_accumulation": accumulate})
    marks: dict[str, float] = {}
    out = folder / f"ours-{os.getpid()}"
    train(
        trl_pairs(folder / "pairs"),
        str(folder / "model"),
        settings,
        out,
        report=lambda line: marks.setdefault(line.split()[0], time.perf_counter()),
    )
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    begun = marks["Reference"]
    whole = time.perf_counter() - begun
    in_steps = steps[-1]["seconds"]
    return {
        "losses": [step["loss"] for step in steps],
        "reference": whole - in_steps,
        "steps": [b["seconds"] - a["seconds"] for a, b in pairwise(steps)],
    }


def trl(folder: Path, epochs: int) -> dict[str, Any]:
    """TRL's trainer: each step after the first."""
    from datasets import load_from_disk
    from torch.utils.data import SequentialSampler
    from trl import DPOConfig, DPOTrainer

    warnings.simplefilter("ignore")
    trainee = load_trainee(str(folder / "model"), SETTINGS, torch.device("cpu"), features=folder / "features")
    peft = trainee.model.peft
    values = {name: p.detach().clone() for name, p in peft.named_parameters() if p.requires_grad}
    arguments = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=BATCH,
        num_train_epochs=epochs,
        learning_rate=SETTINGS.learning_rate,
        lr_scheduler_type="constant",
        beta=SETTINGS.beta,
        logging_steps=1,
        logging_first_step=True,
        max_length=None,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to=[],
        activation_checkpointing=False,
        disable_tqdm=True,
    )
    config, processor = peft.peft_config["default"], trainee.encoder.processor
    base = peft.unload()
    del trainee, peft
    trainer = DPOTrainer(
        model=base,
        args=arguments,
        train_dataset=load_from_disk(str(folder / "ordered")),
        processing_class=processor,
        peft_config=config,
    )
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(values[name])
    trainer._get_train_sampler = lambda *_: SequentialSampler(trainer.train_dataset)
    marks: list[float] = []

    class Clock(hf.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"losses": losses, "reference": 0.0, "steps": list(np.diff(marks))}


def child(arguments: list[str]) -> dict[str, Any]:
    """A trainer in a process of its own, with its peak memory."""
    command = [sys.executable, __file__, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def counted(case: str) -> dict[str, float]:
    """Multiply-adds a pair in one epoch, in billions, from the shapes: matrix products, attention left out."""
    sizes = CASES[case]
    text, vision = sizes["text"], sizes["vision"]
    width, inner = text["hidden_size"], text["intermediate_size"]
    kv = width // 8 * 2
    layer = 2 * width * width + 2 * width * kv + 3 * width * inner
    rank = SETTINGS.lora.rank
    outs = [(width, width), (width, kv), (width, kv), (width, width), (width, inner), (width, inner), (inner, width)]
    adapter = sum(rank * (a + b) for a, b in outs)
    language, lora = text["num_hidden_layers"] * layer, text["num_hidden_layers"] * adapter
    patches = 2 * (SIDE // PATCH) ** 2
    seen = vision["hidden_size"]
    tower = vision["num_hidden_layers"] * (4 * seen**2 + 2 * seen * vision["intermediate_size"])
    head = width * text["vocab_size"]
    prompt = patches + SIDE // PATCH + QUESTION
    both, shared = 2 * (prompt + ANSWER), prompt + 2 * ANSWER
    # Reference and forward once each; backward is one more through frozen weights, and two more through the adapter's.
    theirs = both * (3 * language + (1 + 3) * lora - lora) + 4 * patches * tower + 3 * both * head
    own = shared * (3 * language + 3 * lora) + patches * tower * 2 + 3 * 2 * ANSWER * head
    return {"trl": theirs / 1e9, "ours": own / 1e9, "ratio": theirs / own}


def main() -> None:
    """Make the case, run both trainers, print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="small")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--features", choices=("none", "memory"), default="memory")
    parser.add_argument("--accumulate", type=int, choices=(1, 2), default=1, help="our batches a step of two pairs")
    parser.add_argument("--child", choices=("ours", "trl"))
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.child:
        torch.set_num_threads(1)
        options = given.epochs, given.features, given.accumulate
        made = ours(given.folder, *options) if given.child == "ours" else trl(given.folder, given.epochs)
        unit = 1 if sys.platform == "darwin" else 1024
        made["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
        made["cpu"] = time.process_time()
        print(json.dumps(made))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(given.case, given.pairs, folder, given.accumulate)
        rest = ["--folder", place, "--epochs", str(given.epochs), "--features", given.features]
        rest += ["--accumulate", str(given.accumulate)]
        found = {name: child(["--child", name, *rest]) for name in ("ours", "trl")}
    for run in found.values():
        # The reference pass is once for all epochs; a step's time is that of the steps after the first.
        step = float(np.mean(run["steps"]))
        run["seconds_a_pair"] = step / BATCH * given.epochs + run["reference"] / given.pairs
    a, b = found["ours"], found["trl"]
    worst = max(abs(x - y) / y for x, y in zip(a["losses"], b["losses"], strict=True))
    what = f"{given.case}, {given.epochs} epochs, features {given.features}, our batches a step {given.accumulate}"
    print(f"{what}: losses differ by {worst:.1e} at most")
    print(f"{'':<6}{'s a pair':>10}{'reference':>11}{'a step':>9}{'peak GiB':>10}")
    for name, run in found.items():
        cells = run["seconds_a_pair"], run["reference"] / given.pairs, np.mean(run["steps"]) / BATCH, run["peak_gib"]
        print(f"{name:<6}{cells[0]:>10.2f}{cells[1]:>11.2f}{cells[2]:>9.2f}{cells[3]:>10.2f}")
    speed, memory = b["seconds_a_pair"] / a["seconds_a_pair"], a["peak_gib"] / b["peak_gib"]
    counts = counted(given.case)
    print(f"TRL over ours {speed:.2f} (counted, one epoch {counts['ratio']:.2f}); memory ours over TRL's {memory:.2f}")
    line = {
        "benchmark": "dpo",
        "case": given.case,
        "epochs": given.epochs,
        "features": given.features,
        "accumulate": given.accumulate,
    }
    print(
        json.dumps(
            {**line, "speedup": speed, "memory": memory, "counted": counts, "loss_difference": worst, "runs": found}
        )
    )


if __name__ == "__main__":
    main()
