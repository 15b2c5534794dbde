"""Ids, pixels and regions equal those of the published code; prompts, images and regions must match."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from spr.core.errors import InputError
from spr.grounding import render_box
from spr.models.families import FAMILIES
from spr.models.image_processors import encode
from spr.models.ported.ferret.configuration import FerretConfig
from spr.models.ported.ferret.processing import FerretProcessor
from spr.models.ported.ferret.regions import RegionError, draw_points, region_mask
from spr.models.ported.ferret.tokenizer import make_tokenizer, read_pieces

HERE = Path(__file__).parent
# The published code tokenized these prompts with the slow Llama tokenizer of transformers 4.31.0, with −200
# for the image; the small vocabulary was trained for these tests with SentencePiece 0.2.0.
CASES = json.loads((HERE / "tokenizer_cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny):
    return make_tokenizer(tiny.save_tokenizer(tmp_path_factory.mktemp("words")), 601, 600)


@pytest.fixture(scope="module")
def processor(tmp_path_factory, tiny):
    folder = tiny.save_tokenizer(tmp_path_factory.mktemp("processor"))
    config = FerretConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14},
        image_token_index=601,
        region_token_index=600,
    )
    return FerretProcessor.for_config(config, folder)


@pytest.mark.parametrize("case", CASES["prompts"], ids=lambda case: case["question"][:20] or "empty")
def test_prompts_are_written_and_cut_as_in_the_published_code(case, words, processor):
    turn = FAMILIES["ferret"].turn.replace("{image}", "<image>").replace("{prompt}", case["question"])
    assert turn == case["prompt"]
    content = [{"type": "image"}, {"type": "text", "text": case["question"]}]
    messages = [{"role": "user", "content": content}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == turn
    assert words(turn)["input_ids"] == [601 if k == -200 else k for k in case["ids"]]


@pytest.mark.parametrize("case", CASES["answers"], ids=lambda case: case["text"][:8])
def test_texts_are_tokenized_and_decoded_as_in_the_published_code(case, words):
    assert words(case["text"], add_special_tokens=False)["input_ids"] == case["ids"]
    assert words.decode(case["ids"]) == case["text"]


def test_a_second_question_follows_the_end_token_of_the_first_answer(processor):
    turns = [("user", "A?"), ("assistant", "B."), ("user", "C?")]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text.endswith("Follow instructions.  USER: A? ASSISTANT: B.</s>USER: C? ASSISTANT:")


def test_the_vocabulary_is_read_by_id():
    pieces = read_pieces(HERE / "tokenizer.model")
    assert len(pieces) == 600
    assert [piece.text for piece in pieces[:4]] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert not pieces[5].mergeable  # a byte
    assert pieces[300].mergeable


def test_the_tokenizer_survives_being_saved(words, tmp_path):
    words.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for case in CASES["prompts"]:
        assert again(case["prompt"])["input_ids"] == words(case["prompt"])["input_ids"]
    assert (again.pad_token_id, again.eos_token_id, again.padding_side) == (0, 2, "left")


def test_pixels_are_those_of_the_published_code(processor, answers):
    noise = np.random.default_rng([11, 3]).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    inputs = processor(images=Image.fromarray(noise), text="<image>", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 56, 56)
    # Every eighth pixel was kept.
    np.testing.assert_allclose(inputs["pixel_values"][0, :, ::8, ::8], answers["pixels"], atol=1e-6)


def test_an_image_has_one_token_per_patch_and_regions_are_read_from_the_prompt(processor, picture):
    box = render_box((10, 20, 40, 60), "ferret", (80, 100), region=True)
    texts = [
        f"<image>\nWhat is {box}?",
        "No image here.",
        "<image>\nWhat is [500, 500] <region_fea> by [0, 0] <region_fea>?",
    ]
    inputs = encode(processor, texts, [picture(80, 100), picture(50, 40)])
    counts = (inputs["input_ids"] == processor.image_token_id).sum(-1)
    assert counts.tolist() == [16, 0, 16]
    # 10 of 80 is 125 of 1000; 40 of 80 is 500: columns 10 to 40, rows 20 to 60.
    expected = draw_points(region_mask((10, 20, 40, 60), (80, 100)), 512)
    assert inputs["region_points"].shape == (2, 2, 512, 2)
    assert torch.equal(inputs["region_points"][0, 0], expected)
    assert inputs["region_points"][0, 1].unique().tolist() == [-1]
    assert inputs["region_points"][1, 1].max() <= 5
    assert inputs["region_sizes"].tolist() == [[80, 100], [50, 40]]


def test_given_regions_go_before_those_of_the_prompt(processor, picture):
    text = "<image>\n[1, 1, 2, 2] <region_fea> or <region_fea> or <region_fea>"
    mask = np.zeros((100, 80), dtype=bool)
    mask[90, 70] = True
    regions = [[(10, 20, 40, 60), mask, (5, 5)]]
    inputs = processor(images=picture(80, 100), text=text, regions=regions, return_tensors="pt")
    assert torch.equal(inputs["region_points"][0, 0], draw_points(region_mask(regions[0][0], (80, 100)), 512))
    assert inputs["region_points"][0, 1].unique(dim=0).tolist() == [[70, 90]]
    again = processor(images=picture(80, 100), text=text, regions=regions, generator=torch.Generator().manual_seed(9))
    assert not torch.equal(again["region_points"], inputs["region_points"])


def test_prompts_without_regions_have_none(processor, picture):
    inputs = encode(processor, ["<image> [1, 2, 3, 4]"], [picture(80, 100)])
    assert inputs.keys() == {"input_ids", "attention_mask", "pixel_values"}


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ([[(1, 2, 3, 4)]], r"fewer regions[\s\S]*1 region, 2 <region_fea>"),
        ([[(1, 2, 3, 4)] * 3], r"more regions[\s\S]*3 regions, 2 <region_fea>"),
        ([None, None], "differ in number"),
        ([[(1, 2, 3, 4), (90, 0, 95, 9)]], "no area within the image"),
    ],
)
def test_regions_must_match_their_tokens(regions, words, processor, picture):
    with pytest.raises(RegionError, match=words):
        processor(images=picture(80, 100), text="<image> <region_fea> <region_fea>", regions=regions)


@pytest.mark.parametrize(
    ("texts", "images", "words"),
    [
        (["<image> a", "<image> b"], 1, r"1 image for prompts with \[1, 1\]"),
        (["a"], 1, r"1 image for prompts with \[0\]"),
        (["<image> a"], 0, "0 images"),
        (["<image> <image> a"], 2, "at most one <image> per prompt"),
    ],
)
def test_images_must_match_the_prompts(texts, images, words, processor, picture):
    with pytest.raises(InputError, match=words):
        processor(images=[picture(30, 30)] * images, text=texts)


def test_a_region_needs_an_image_before_it(processor, picture):
    with pytest.raises(RegionError, match="no image"):
        processor(text="[1, 2, 3, 4] <region_fea>")
    with pytest.raises(RegionError, match="before the image"):
        processor(images=picture(30, 30), text="[1, 2, 3, 4] <region_fea> <image>")


def test_a_saved_processor_loads_unchanged(mllm_folder):
    processor = FerretProcessor.from_pretrained(mllm_folder("ferret"))
    assert processor.image_tokens == 9
    assert (processor.patch_size, processor.region_points) == (14, 512)
