"""A CogVLM folder in the published layout: what loads, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from spr.models.custom_models import load_config, register_custom_models
from spr.models.describers.hf import HfDescriber
from spr.models.errors import ModelError
from spr.models.image_processors import encode, load_processor
from spr.models.ported.cogvlm.modeling import CogVLMForCausalLM
from spr.models.ported.cogvlm.processing import CogVLMProcessor


@pytest.fixture
def folder(mllm_folder, tmp_path):
    """A tiny CogVLM in the published layout; tests may change its files."""
    return shutil.copytree(mllm_folder("cogvlm"), tmp_path / "cogvlm")


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def spoil(tensors):
    del tensors["model.layers.0.mlp.vision_mlp.up_proj.weight"]
    del tensors["model.vision.boi"]
    tensors["model.vision.conv.weight"] = torch.zeros(2, 2)
    tensors["lm_head.weight"] = torch.zeros(7, 32)


def test_tensors_that_are_missing_left_over_or_misshapen_are_listed(folder):
    change(folder, spoil)
    with pytest.raises(ModelError) as raised:
        HfDescriber(folder, device="cpu")
    for line in (
        "2 missing: model.layers.0.mlp.vision_mlp.up_proj.weight, model.vision.boi",
        "1 unexpected: model.vision.conv.weight",
        "1 misshapen: lm_head.weight (7, 32) for (112, 32)",
    ):
        assert line in str(raised.value)


def test_a_folder_of_pickles_loads_and_is_converted_once(folder, mllm_folder, ask, picture):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for k, part in enumerate((names[::2], names[1::2]), 1):
        torch.save({name: tensors[name] for name in part}, folder / f"pytorch_model-0000{k}-of-00002.bin")
    options = {"device": "cpu", "temperature": 0, "max_new_tokens": 8}
    request = ask(picture(60, 50))
    answer = HfDescriber(folder, **options).describe([request])
    assert answer == HfDescriber(mllm_folder("cogvlm"), **options).describe([request])
    files = sorted(folder.glob("model*"))
    assert [path.name for path in files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    times = [path.stat().st_mtime_ns for path in files]
    HfDescriber(folder, **options)
    assert [path.stat().st_mtime_ns for path in files] == times


def test_a_cogvlm2_folder_is_recognized(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_multi_query_heads": 2}))
    with pytest.raises(ModelError, match="This is the config of CogVLM2"):
        HfDescriber(folder, device="cpu")


def test_registering_twice_is_harmless_and_saved_copies_load_with_the_auto_classes(folder, tmp_path):
    register_custom_models()
    register_custom_models()
    config = load_config(folder)
    assert config.vision_config.model_type == "cogvlm_vision"
    assert not hasattr(config, "auto_map")
    assert load_config(folder, expected=["llava", "cogvlm"]).model_type == "cogvlm"
    with pytest.raises(ModelError, match=r"another kind of model[\s\S]*cogvlm[\s\S]*llava or paligemma"):
        load_config(folder, expected=["llava", "paligemma"])
    model = CogVLMForCausalLM.from_pretrained(folder, config=config)
    model.save_pretrained(tmp_path / "copy")
    assert AutoConfig.from_pretrained(tmp_path / "copy").model_type == "cogvlm"
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "copy")
    assert type(again) is CogVLMForCausalLM
    assert "auto_map" not in json.loads((tmp_path / "copy" / "config.json").read_text())


def test_a_folder_without_a_tokenizer_or_with_a_broken_one_says_where_to_get_one(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("spr.models.ported.cogvlm.processing.TOKENIZER", "nobody/vicuna")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"tokenizer of .*cogvlm can't be loaded[\s\S]*put nobody/vicuna's"):
        HfDescriber(folder, device="cpu")
    (folder / "tokenizer.model").write_bytes(b"no such model")
    with pytest.raises(ModelError, match=r"tokenizer of .*cogvlm can't be loaded[\s\S]*tokenizer_config\.json"):
        HfDescriber(folder, device="cpu")


@pytest.mark.parametrize(
    ("version", "turn"),
    [
        ("base", "<unk>Where is it?"),
        ("chat", "<unk>Question: Where is it? Answer:"),
        ("vqa", "<unk>Question: Where is it? Short answer:"),
    ],
)
def test_the_template_of_the_config_formats_the_prompt(folder, version, turn):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "template_version": version}))
    describer = HfDescriber(folder, device="cpu")
    assert describer.render("Where is it?") == turn
    said = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Here."}]},
    ]
    assert describer.processor.apply_chat_template(said) == turn + " Here.</s>"
    said.append({"role": "user", "content": "And that?"})
    later = describer.processor.apply_chat_template(said)
    assert later == turn + " Here.\n" + turn.removeprefix("<unk>").replace("Where is it?", "And that?")


def test_a_template_next_to_the_weights_has_precedence(folder):
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<unk>Q: {{ m['content'][1]['text'] }}{% endfor %}"
    )
    assert HfDescriber(folder, device="cpu").render("Where?") == "<unk>Q: Where?"


def test_an_image_token_written_in_a_prompt_is_plain_text(folder):
    assert HfDescriber(folder, device="cpu").render("an <unk> word") == "<unk>an   word"


def test_ids_and_types_are_those_of_the_published_code(folder, picture):
    processor = load_processor(folder, "cogvlm")
    words = processor.tokenizer
    inputs = encode(processor, ["<unk>ab", "<unk>abcd"], [picture(60, 50), picture(30, 90)])
    ab = words("ab", add_special_tokens=False)["input_ids"]
    image, bos = [words.unk_token_id] * 11, words.bos_token_id
    assert inputs["input_ids"][0].tolist() == [words.pad_token_id] * 2 + [bos, *image, *ab]
    assert inputs["token_type_ids"].tolist() == [[0] * 3 + [1] * 11 + [0] * 2, [0] + [1] * 11 + [0] * 4]
    assert inputs["attention_mask"].tolist() == [[0] * 2 + [1] * 14, [1] * 16]
    assert inputs["pixel_values"].shape == (2, 3, 42, 42)
    # The begin-of-text token is there once, also if the prompt contains it.
    assert encode(processor, ["<s><unk>ab"], [picture(60, 50)])["input_ids"][0].tolist() == [bos, *image, *ab]
    alone = processor(text="ab", padding=False)
    assert alone["input_ids"].tolist() == [[bos, *ab]]
    assert "pixel_values" not in alone


def test_pixels_are_resized_bicubically_and_normalized_as_published(folder, picture):
    processor, image = load_processor(folder, "cogvlm"), picture(60, 130)
    pixels = encode(processor, ["<unk>"], [image])["pixel_values"][0]
    small = torch.from_numpy(np.asarray(image.resize((42, 42), Image.Resampling.BICUBIC)).astype(np.float32)) / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    torch.testing.assert_close(pixels, ((small - mean) / deviation).permute(2, 0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        (["<unk>a", "b"], 2, "2 images, 1 prompt with <unk>"),
        (["<unk>a", "<unk>b"], 1, "1 image, 2 prompts with <unk>"),
        (["a"], 1, "1 image, 0 prompts with <unk>"),
        (["<unk>a"], 0, "0 images, 1 prompt with <unk>"),
        (["a <unk>"], 1, "one image, before the text"),
        (["<unk><unk>a"], 2, "one image, before the text"),
    ],
)
def test_images_that_do_not_match_the_prompts_are_refused(texts, images, message, folder, picture):
    processor = load_processor(folder, "cogvlm")
    with pytest.raises(ModelError, match=message):
        processor(images=[picture(60, 50)] * images, text=texts)


def test_a_processor_survives_saving(folder, tmp_path, picture):
    processor = load_processor(folder, "cogvlm")
    processor.save_pretrained(tmp_path)
    again = CogVLMProcessor.from_pretrained(tmp_path)
    assert (again.num_image_tokens, again.image_token) == (11, "<unk>")
    assert again.chat_template == processor.chat_template
    image = picture(60, 50)
    for name, tensor in encode(processor, ["<unk>ab"], [image]).items():
        assert torch.equal(tensor, encode(again, ["<unk>ab"], [image])[name])
