"""A tiny CogVLM that has learned to write boxes goes the whole way: describe, score, refine, pair; then it trains."""

import random
import shutil
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from spr.config import make_config
from spr.grounding import get_dialect, parse
from spr.models.cogvlm.modeling import CogVLMForCausalLM
from spr.models.families import FAMILIES
from spr.models.image_processors import encode, load_processor
from spr.models.native import load_config
from spr.pipeline.runner import run
from spr.store import StageStore

STEPS, ROWS, PEAK = 160, 12, 4e-3


def description(draw: random.Random) -> str:
    """One of 64 answers: two objects, each with a box."""
    corners = [(draw.randint(1, 4), draw.randint(1, 2)) for _ in range(2)]
    boxes = [f"[[{x}00,{y}00,{x + 3}00,{y + 4}00]]" for x, y in corners]
    return f"a cup {boxes[0]} and a box {boxes[1]}"


def with_labels(processor, questions, answers, images):
    """What the model reads, and labels that leave all but the answers out."""
    texts = [f"<unk>{question} {answer}</s>" for question, answer in zip(questions, answers, strict=True)]
    inputs = encode(processor, texts, images)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, answer in enumerate(answers):
        count = len(processor.tokenizer(f" {answer}</s>", add_special_tokens=False)["input_ids"])
        labels[row, -count:] = inputs["input_ids"][row, -count:]
    return inputs, labels


@pytest.fixture(scope="module")
def writer(mllm_folder, picture, tmp_path_factory):
    """The folder of a CogVLM that learned to answer whole images and crops with `description`."""
    folder = shutil.copytree(mllm_folder("cogvlm"), tmp_path_factory.mktemp("writer") / "cogvlm")
    torch.manual_seed(0)
    draw = random.Random(0)
    model = CogVLMForCausalLM.from_pretrained(folder, config=load_config(folder))
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.3)
    processor = load_processor(folder, "cogvlm")
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    images = [picture(60, 50, tint) for tint in (0, 120, 240)]
    for _ in range(STEPS):
        numbers = [",".join(f"{draw.randint(0, 999):03}" for _ in range(4)) for _ in range(ROWS)]
        questions = [draw.choice([f"Describe [[{four}]].", "Describe."]) for four in numbers]
        answers = [description(draw) for _ in questions]
        inputs, labels = with_labels(processor, questions, answers, [draw.choice(images) for _ in questions])
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def sequence_logps(model, inputs, labels):
    """Each answer's log-probability, summed over its tokens."""
    logits = model(**inputs, use_cache=False).logits[:, :-1].log_softmax(-1)
    aims = labels[:, 1:]
    logps = logits.gather(-1, aims.clamp(min=0)[..., None])[..., 0]
    return (logps * (aims != -100)).sum(-1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's
def test_from_annotations_to_pairs_to_a_trained_adapter(writer, make_dataset, clip_folder, owlv2_folder, tmp_path):
    data = make_dataset(tmp_path / "data", images=4)
    prompts = {"full": "Describe {region}.", "crop": "Describe.", "crop_objects": "Describe.{objects}"}
    config = make_config(
        data.config(
            prompts=prompts,
            describer={
                "model": str(writer),
                "samples": {"full": 2, "crop": 2, "crop_objects": 0},
                "max_new_tokens": 64,
            },
            scorer={"model": str(clip_folder)},
            detector={"adapter": "owlv2", "model": str(owlv2_folder), "box_threshold": 0.1},
            pairing={"unmatched": "keep_box"},
        )
    )
    run(config, tmp_path / "run")
    tables = StageStore(tmp_path / "run" / "candidates").tables()
    candidates = [row for table in tables for row in table.to_pylist()]
    assert {row["prompt_kind"] for row in candidates} == {"full", "crop"}
    assert any(span["boxes"] for row in candidates for span in row["spans"])
    pairs = [row for table in StageStore(tmp_path / "run" / "pairs").tables() for row in table.to_pylist()]
    assert pairs
    for pair in pairs:
        chosen = parse(pair["chosen"], get_dialect("cogvlm"), (pair["width"], pair["height"]))
        assert any(span.boxes for span in chosen.spans)
        assert pair["chosen_score"] >= pair["rejected_score"]

    # One pair, a few steps of preference training of the language expert, the base model as its own reference.
    torch.manual_seed(0)
    model = CogVLMForCausalLM.from_pretrained(writer, config=load_config(writer)).eval()
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=FAMILIES["cogvlm"].lora_targets))
    pair, processor = pairs[0], load_processor(writer, "cogvlm")
    with data.images.joinpath(pair["file_name"]).open("rb") as file:
        image = Image.open(file).convert("RGB")
    inputs, labels = with_labels(processor, [pair["prompt"]] * 2, [pair["chosen"], pair["rejected"]], [image] * 2)
    with torch.no_grad(), model.disable_adapter():
        reference = sequence_logps(model, inputs, labels)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        chosen, rejected = 0.1 * (sequence_logps(model, inputs, labels) - reference)
        loss = -torch.nn.functional.logsigmoid(chosen - rejected)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    # A fresh adapter changes nothing: −log σ(0) = log 2.
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert all(after < before for before, after in pairwise(losses))
