"""The embedded weights are small, load without a network, and are as accurate as their model cards say."""

import json
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, OwlViTForObjectDetection, SiglipImageProcessorPil

from spr.embedded.scenes import make_scene
from spr.embedded.sprites import CATEGORIES
from spr.grounding import parse
from tools.embedded.evaluate_describer import (
    DIALECT,
    answers_to,
    hits,
    open_describer,
    placed_boxes,
    region_questions,
    view,
    window_size,
)
from tools.embedded.evaluate_detector import detect
from tools.embedded.models import IMAGE_TOKENS, weights_folder
from tools.embedded.texts import PROMPTS
from tools.embedded.vocabulary import IMAGE

MODELS = ("describer", "scorer", "detector")
SQUARE, HALF = {"height": 112, "width": 112}, [0.5, 0.5, 0.5]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError("the network is blocked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def files(model: str) -> list[Path]:
    return [path for path in weights_folder(model).iterdir() if path.is_file()]


def test_all_weights_together_are_under_25_megabytes_and_safetensors_only() -> None:
    every = [path for model in MODELS for path in files(model)]
    assert sum(path.stat().st_size for path in every) < 25_000_000
    assert not [path for path in every if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_comes_with_its_card_and_its_figures(model: str) -> None:
    assert (weights_folder(model) / "README.md").exists()
    figures = json.loads((weights_folder(model) / "figures.json").read_text())
    assert figures["n"] >= 300
    for value in figures["metrics"].values():
        low, high = value["ci95"]
        assert low <= high


def test_the_describer_describes_a_region_and_finds_an_object() -> None:
    describer = open_describer(weights_folder("describer"))
    scenes = [make_scene(123, index) for index in range(4)]
    questions = [q for q in region_questions(scenes, 123) if q.kind != "crop"]
    answers = answers_to(describer, [view(scenes[q.scene], q.window) for q in questions], [q.prompt for q in questions])
    placed = {"full": 0, "crop_objects": 0}
    asked = 0
    for question, answer in zip(questions, answers, strict=True):
        grounded = parse(answer, DIALECT, window_size(question.window))
        assert grounded.problems == ()
        said = placed_boxes(grounded.spans, question.window)
        placed[question.kind] += hits(scenes[question.scene], question.objects, said, 0.5)
        asked += len(question.objects) if question.kind == "full" else 0
    assert placed["full"] >= 0.4 * asked
    assert placed["crop_objects"] >= 0.7 * asked


def test_the_describer_gives_the_same_answer_alone_and_in_a_batch() -> None:
    describer = open_describer(weights_folder("describer"))
    images = [Image.fromarray(make_scene(123, index).image) for index in range(3)]
    prompts = [PROMPTS["full"].format(region="[0.10, 0.10, 0.60, 0.60]"), PROMPTS["crop"], "Where is the red circle?"]
    together = answers_to(describer, images, prompts)
    assert together == [answers_to(describer, [i], [p])[0] for i, p in zip(images, prompts, strict=True)]


def test_the_scorer_prefers_the_right_description_of_a_picture() -> None:
    folder = weights_folder("scorer")
    model, processor = CLIPModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    scene = make_scene(123, 0)
    names = [scene.category(k) for k in range(len(scene))]
    right = "A " + ", a ".join(names[:6]) + "."
    wrong = "A green ring, a black diamond and a yellow heart."
    inputs = processor(text=[right, wrong], images=[Image.fromarray(scene.image)], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image[0]
    assert logits[0] > logits[1]


def test_the_detector_finds_most_objects_of_a_scene() -> None:
    assert OwlViTForObjectDetection.from_pretrained(weights_folder("detector")).dtype == torch.float32
    scenes = [make_scene(123, index) for index in range(3)]
    placed = objects = 0
    for scene, (boxes, scores, labels) in zip(scenes, detect(weights_folder("detector"), scenes), strict=True):
        said = [(CATEGORIES[k], tuple(box)) for box, score, k in zip(boxes, scores, labels, strict=True) if score > 0.2]
        every = [int(i) for i in scene.annotated.nonzero()[0]]
        placed += hits(scene, every, said, 0.5)
        objects += len(every)
    assert placed >= 0.7 * objects


def test_the_general_processor_gives_the_embedded_model_its_65_tokens_and_one_square_image() -> None:
    from spr.models.image_processors import encode, load_processor

    folder = weights_folder("describer")
    processor, tokenizer = load_processor(folder, "llava_onevision"), AutoTokenizer.from_pretrained(folder)
    images = [Image.fromarray(make_scene(7, 0).image), Image.fromarray(make_scene(7, 1).image[:60, :90])]
    prompts = ["Where is the red circle?", PROMPTS["crop"]]
    content = [[{"type": "image"}, {"type": "text", "text": prompt}] for prompt in prompts]
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": c}], add_generation_prompt=True, tokenize=False)
        for c in content
    ]
    assert all(text.count(IMAGE) == 1 for text in texts)
    expanded = [text.replace(IMAGE, IMAGE * IMAGE_TOKENS) for text in texts]
    expected = tokenizer(expanded, padding=True, return_tensors="pt", return_token_type_ids=False)
    inputs = encode(processor, texts, images)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values", "image_sizes"}
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
    assert inputs["image_sizes"].tolist() == [[112, 112], [60, 90]]
    pixels = SiglipImageProcessorPil(size=SQUARE, image_mean=HALF, image_std=HALF, resample=Image.Resampling.BILINEAR)
    assert torch.equal(inputs["pixel_values"][:, 0], pixels(images=images, return_tensors="pt")["pixel_values"])
