"""The folders of the embedded models are ordinary ones: transformers' Auto classes load them, without code of SPR."""

import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    AutoTokenizer,
)

from spr.core.errors import InputError
from spr.embedded.scenes import make_scene
from spr.training.checkpoint import merge_adapter
from tools.embedded.evaluate_describer import answers_to, open_describer, region_questions, view
from tools.embedded.export import export_processor, main
from tools.embedded.models import weights_folder
from tools.embedded.texts import PROMPTS
from tools.embedded.vocabulary import make_tokenizer

MODELS = ("describer", "scorer", "detector")


def generated(folder: Path, images: list[Image.Image], prompts: list[str]) -> list[str]:
    """Greedy answers as any user of transformers would get them."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    turns = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}] for prompt in prompts]
    texts = [processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    assert all(isinstance(value, torch.Tensor) for value in inputs.values())
    ids = model.generate(**inputs, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return list(processor.batch_decode(ids, skip_special_tokens=True))


@pytest.fixture(scope="module")
def asked() -> tuple[list[Image.Image], list[str]]:
    """20 questions about regions of 20 scenes, of all three kinds; crops have many shapes."""
    scenes = [make_scene(321, index) for index in range(20)]
    questions = [q for k, q in enumerate(region_questions(scenes, 321)) if q.kind == list(PROMPTS)[k // 3 % 3]]
    return [view(scenes[q.scene], q.window) for q in questions], [q.prompt for q in questions]


def test_the_describers_folder_alone_gives_the_answers_of_sprs_loading(
    asked: tuple[list[Image.Image], list[str]],
) -> None:
    images, prompts = asked
    assert len(images) >= 18
    assert len({image.size for image in images}) > 5
    answers = generated(weights_folder("describer"), images, prompts)
    assert answers == answers_to(open_describer(weights_folder("describer")), images, prompts)
    assert all(answer.endswith("].") for answer in answers)


def test_merged_weights_load_in_the_same_way(asked: tuple[list[Image.Image], list[str]], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a deprecated name of transformers
        base = AutoModelForImageTextToText.from_pretrained(weights_folder("describer"))
        adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=r".*language_model.*\.(q|v)_proj"))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    images, prompts = asked
    answers = generated(tmp_path / "merged", images[:6], prompts[:6])
    assert answers == answers_to(open_describer(tmp_path / "merged"), images[:6], prompts[:6])
    assert answers != generated(weights_folder("describer"), images[:6], prompts[:6])


def test_the_describers_processor_gives_65_tokens_and_the_squeezed_image_for_any_size() -> None:
    processor = AutoProcessor.from_pretrained(weights_folder("describer"))
    for size in ((112, 112), (40, 90), (90, 40), (300, 1), (1, 300), (113, 112), (640, 480)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        inputs = processor(images=image, text="<image>", return_tensors="pt")
        assert (inputs["input_ids"] == processor.image_token_id).sum() == inputs["input_ids"].numel() == 65
        assert processor._get_num_multimodal_tokens(image_sizes=[size])["num_image_tokens"] == [65]
        assert inputs["image_sizes"].tolist() == [list(size)]
        squeezed = np.asarray(image.resize((112, 112), Image.Resampling.BILINEAR), dtype=np.float32)
        expected = torch.from_numpy(squeezed / 127.5 - 1).permute(2, 0, 1)
        torch.testing.assert_close(inputs["pixel_values"][0, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_the_tokenizer_and_the_image_processor_load_alone(name: str) -> None:
    folder = weights_folder(name)
    text = "A red circle [0.12, 0.34, 0.56, 1.00]."
    expected = make_tokenizer()(text)["input_ids"]
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert ids == expected if name == "describer" else ids[1:-1] == expected
    pixels = AutoImageProcessor.from_pretrained(folder)(Image.new("RGB", (50, 70), "white"), return_tensors="pt")
    assert pixels["pixel_values"].shape[-3:] == (3, 112, 112)


@torch.no_grad()
def test_the_scorer_and_the_detector_work_with_the_auto_classes() -> None:
    scene = make_scene(123, 0)
    image, names = Image.fromarray(scene.image), sorted({scene.category(k) for k in range(len(scene))})
    processor = AutoProcessor.from_pretrained(weights_folder("scorer"))
    texts = [f"A {', a '.join(names)}.", "A green ring, a black diamond and a yellow heart."]
    inputs = processor(text=texts, images=image, padding=True, return_tensors="pt")
    logits = AutoModel.from_pretrained(weights_folder("scorer"))(**inputs).logits_per_image[0]
    assert logits[0] > logits[1]

    processor = AutoProcessor.from_pretrained(weights_folder("detector"))
    model = AutoModelForZeroShotObjectDetection.from_pretrained(weights_folder("detector"))
    inputs = processor(text=[names], images=image, return_tensors="pt")
    (found,) = processor.post_process_grounded_object_detection(
        model(**inputs), threshold=0.3, target_sizes=[(112, 112)], text_labels=[names]
    )
    placed = 0
    for k in np.flatnonzero(scene.annotated):
        placed += any(
            label == scene.category(k) and np.abs(box.numpy() - scene.boxes_xyxy[k]).max() < 4
            for label, box in zip(found["text_labels"], found["boxes"], strict=True)
        )
    assert placed >= 0.7 * scene.annotated.sum()


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_processors_are_what_the_export_writes(name: str, tmp_path: Path) -> None:
    export_processor(name, tmp_path)
    written = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(written) >= 3
    for path in written:
        assert path.read_bytes() == (weights_folder(name) / path.name).read_bytes(), path.name


def test_exporting_only_the_processor_keeps_the_weights_and_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        main(["scorer", "--to", str(tmp_path / "none")])
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    main(["scorer", "--to", str(tmp_path)])
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"
    assert (tmp_path / "preprocessor_config.json").exists()


def test_trls_grpo_trainer_takes_the_describers_folder(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    folder = weights_folder("describer")
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPTS["crop"]}]}]
    rows = [{"prompt": turn, "image": Image.fromarray(make_scene(7, k).image)} for k in range(4)]
    lengths: list[int] = []

    def reward(completion_ids: list[list[int]], **_: object) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return [float(len(set(ids))) for ids in completion_ids]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=24,
            max_steps=2,
            learning_rate=1e-3,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            activation_checkpointing=False,
        )
        trainer = GRPOTrainer(
            model=AutoModelForImageTextToText.from_pretrained(folder),
            processing_class=AutoProcessor.from_pretrained(folder),
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            peft_config=peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        )
        trainer.train()
    assert lengths == [24] * 8
    moved = [p for name, p in trainer.model.named_parameters() if "lora_B" in name and p.abs().sum() > 0]
    assert len(moved) >= 8  # of four layers; the frozen vision tower's may be adapted too
