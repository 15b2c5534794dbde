"""Tiny models of every family, loaded from disk: batches, padding, seeds, templates and errors."""

import dataclasses
import importlib.util
import itertools
import json
import shutil

import pytest
import torch
from transformers import AutoModelForImageTextToText

from spr.core.errors import ConfigError, SprError
from spr.grounding import get_dialect
from spr.models.batching import DeviceMemoryError
from spr.models.custom_models import load_config
from spr.models.describers.hf import HfDescriber
from spr.models.errors import ModelError
from spr.models.families import FAMILIES
from spr.models.image_processors import encode
from spr.models.protocols import Answer

OTHER_PROMPT = "Describe the yellow square in the middle, and all that is around it."
SMALL = {"device": "cpu", "dtype": "float32", "max_new_tokens": 10, "batch_size": 3}


@pytest.fixture(scope="module")
def describer(mllm_folder):
    """A family's describer, loaded once, which takes any prompt; temperature 1, top-p 0.95."""
    loaded = {}

    def get(family):
        if family not in loaded:
            loaded[family] = HfDescriber(mllm_folder(family), **SMALL)
            loaded[family].family = dataclasses.replace(FAMILIES[family], prompt_pattern=None)
        return loaded[family]

    return get


@pytest.fixture
def requests(ask, picture):
    images = [picture(100, 80), picture(60, 130, 200), picture(50, 50, 90)]
    prompts = ["Where is it?", "What is in the picture, and where is all that?", "a"]
    return [ask(image, prompt, seed) for seed, (image, prompt) in enumerate(zip(images, prompts, strict=True))]


def show_ids(model, monkeypatch):
    """Return ids up to the end of the turn as answers: unlike decoded text, they are complete and never empty."""
    monkeypatch.setattr(
        model, "decode", lambda ids: str(list(itertools.takewhile(lambda k: k not in model._ends, ids)))
    )


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_different_sizes_gives_the_answers_of_single_requests(
    family, temperature, describer, requests, monkeypatch
):
    model = describer(family)
    monkeypatch.setattr(model, "temperature", temperature)
    show_ids(model, monkeypatch)
    together = model.describe(requests)
    assert together == [model.describe([request])[0] for request in requests]
    assert model.describe(requests[::-1]) == together[::-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_plain_generate_without_padding(
    family, describer, requests, mllm_folder, monkeypatch
):
    model = describer(family)
    config = load_config(mllm_folder(family))
    plain = AutoModelForImageTextToText.from_pretrained(mllm_folder(family), config=config, dtype=torch.float32).eval()
    monkeypatch.setattr(model, "temperature", 0)
    show_ids(model, monkeypatch)
    for request, answer in zip(requests, model.describe(requests), strict=True):
        inputs = encode(model.processor, [model.render(request.prompt)], [request.image])
        # The folder's generation config sets a repetition penalty, which must have no effect.
        options = {"do_sample": False, "top_k": None, "repetition_penalty": 1.0, "max_new_tokens": 10}
        options |= {"num_beams": 1, "no_repeat_ngram_size": 0}
        ids = plain.generate(**inputs, **options, eos_token_id=sorted(model._ends), pad_token_id=0)
        start = 1 if FAMILIES[family].encoder_decoder else inputs["input_ids"].shape[1]
        assert model.decode(ids[0, start:].tolist()) == answer.text


@pytest.mark.parametrize("family", FAMILIES)
def test_seed_image_and_prompt_determine_the_answer(family, describer, ask, picture, monkeypatch):
    model, image = describer(family), picture(90, 70)
    show_ids(model, monkeypatch)
    seeds = model.describe([ask(image, seed=1), ask(image, seed=2), ask(image, seed=1), ask(image, seed=2**63 - 1)])
    assert seeds[0] == seeds[2]
    assert len(set(seeds)) == 3
    monkeypatch.setattr(model, "temperature", 0.2)
    others = [ask(image, seed=1), ask(picture(90, 70, 255), seed=1), ask(image, OTHER_PROMPT, seed=1)]
    assert len(set(model.describe(others))) == 3
    monkeypatch.setattr(model, "temperature", 0)
    greedy = model.describe([ask(image, seed=1), ask(image, seed=2), ask(picture(90, 70, 255))])
    assert greedy[0] == greedy[1] != greedy[2]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 190), (200, 1), (2, 1000), (1500, 1)])
def test_very_small_and_very_long_images_are_handled(family, size, describer, ask, picture, monkeypatch):
    model = describer(family)
    show_ids(model, monkeypatch)
    refused = max(size) > (FAMILIES[family].max_aspect or float("inf")) * min(size)
    answers = model.describe([ask(picture(60, 60)), ask(picture(*size))])
    assert [answer == Answer("") for answer in answers] == [False, refused]


def forced(rows):
    """A logits processor that makes the model write the ids of each row, and then the last of them again."""
    steps = itertools.count()

    def process(_, scores):
        step, forced_scores = next(steps), torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(rows):
            forced_scores[row, ids[min(step, len(ids) - 1)]] = 0
        return forced_scores

    return process


def write(model, rows, monkeypatch):
    """Make the model write the given ids in the next call."""
    generate = model.model.generate
    monkeypatch.setattr(model, "temperature", 0)
    monkeypatch.setattr(
        model.model, "generate", lambda **given: generate(**{**given, "logits_processor": [forced(rows)]})
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_ends_with_its_turn_or_is_truncated(family, describer, requests, monkeypatch):
    model = describer(family)
    if FAMILIES[family].equal_lengths:  # else they would be generated one after the other
        requests = [dataclasses.replace(request, prompt="a") for request in requests]
    (word,) = model.processor.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    end = max(model._ends)
    # Ten tokens are the limit: the turns end after 3, at the tenth token, and not before the limit.
    write(model, [[word] * 3 + [end], [word] * 9 + [end], [word] * 11], monkeypatch)
    answers = model.describe(sorted(requests, key=lambda request: -model._prompts([request])[0].length))
    assert [answer.finish_reason for answer in answers] == ["stop", "stop", "length"]
    assert [answer.text for answer in answers] == [model.decode([word] * k) for k in (3, 9, 10)]


@pytest.mark.parametrize("padding", ["its own token", "the end of turn"])
def test_an_answer_can_end_at_a_stop_string_of_the_model(padding, mllm_folder, tmp_path, requests, monkeypatch):
    folder = copy(mllm_folder("llava"), tmp_path)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "stop_strings": ["END", "."]}))
    model = HfDescriber(folder, **SMALL)
    ids, end = model.processor.tokenizer, max(model._ends)
    if padding == "the end of turn":
        model.model.generation_config.pad_token_id = end
    texts = ["a cup. is", "where", "what is it"]
    rows = [ids(text, add_special_tokens=False)["input_ids"] for text in texts]
    write(model, [rows[0], [*rows[1], end], rows[2]], monkeypatch)
    answers = model.describe(sorted(requests, key=lambda request: -model._prompts([request])[0].length))
    assert [answer.finish_reason for answer in answers] == ["stop_string", "stop", "length"]
    assert [answer.text for answer in answers][:2] == ["a cup", "where"]


def test_only_refused_images_and_no_requests_at_all_are_fine(describer, ask, picture):
    assert describer("qwen3_vl").describe([ask(picture(201, 1))]) == [Answer("")]
    assert describer("qwen3_vl").describe([]) == []


def test_a_model_that_only_does_tasks_is_not_asked_a_question(mllm_folder, ask, picture):
    model = HfDescriber(mllm_folder("florence2"), **SMALL)
    model.describe([ask(picture(60, 60), "<REGION_TO_DESCRIPTION><loc_1><loc_2><loc_3><loc_4>")])
    with pytest.raises(ModelError, match=r"Where is it[\s\S]*one of its tasks[\s\S]*prompts\.full"):
        model.describe([ask(picture(60, 60), "<OD>"), ask(picture(60, 60), "Where is it?")])


def test_a_task_of_florence_2_is_read_as_the_question_that_stands_for_it(mllm_folder, picture):
    # The questions are those of `processing_florence2.py`; the image comes first, in 5 tokens here.
    processor = HfDescriber(mllm_folder("florence2"), **SMALL).processor
    for task, question in (("<OD>", "Locate the objects with category name in the image."), ("<NEW>it", "<NEW>it")):
        ids = encode(processor, [task], [picture(60, 60)])["input_ids"][0]
        assert processor.tokenizer.decode(ids) == "<image>" * 5 + f"<s>{question}</s>"


def test_box_tokens_are_kept_and_end_of_turn_tokens_are_removed(describer):
    qwen = describer("qwen2_vl")
    written = "<|object_ref_start|>a cup<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
    ids = qwen.processor.tokenizer(written + "<|vision_start|> ok<|im_end|><|endoftext|>x")["input_ids"]
    assert qwen.decode(ids) == written + " ok"
    paligemma = describer("paligemma")
    ids = paligemma.processor.tokenizer("<bos><loc0001><loc0002><loc0003><loc0004> cup<eos><pad>")["input_ids"]
    assert paligemma.decode(ids) == "<loc0001><loc0002><loc0003><loc0004> cup"
    llava = describer("llava")
    assert llava.decode(llava.processor.tokenizer("a cup [0.1, 0.2]</s><pad>")["input_ids"]) == "a cup [0.1, 0.2]"
    assert llava.decode([]) == ""


def test_a_placeholder_written_in_a_prompt_is_not_another_image(describer, ask, picture):
    image = picture(60, 60)
    answers = describer("llava_onevision").describe([ask(image, "is this an <image> or a <video>?", seed=3)])
    assert answers == describer("llava_onevision").describe([ask(image, "is this an   or a  ?", seed=3)])


def test_an_answer_in_the_models_dialect_knows_the_resized_image(describer):
    assert describer("qwen2_5_vl").dialect == get_dialect("qwen2_5_vl", min_pixels=4 * 784, max_pixels=16 * 784)
    assert describer("llava_onevision").dialect is get_dialect("llava_onevision")


def test_the_name_identifies_the_weights(describer):
    name, revision = describer("internvl").name.split("@")
    assert name == "internvl"
    assert len(revision) == 12


def test_out_of_memory_halves_the_batch(mllm_folder, requests, monkeypatch):
    model = HfDescriber(mllm_folder("llava"), **SMALL)
    expected, generate, sizes = model.describe(requests), model.model.generate, []

    def limited(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("full")
        return generate(**inputs)

    monkeypatch.setattr(model.model, "generate", limited)
    assert model.describe(requests) == expected
    assert sizes == [3, 1, 1, 1]
    monkeypatch.setattr(model.model, "generate", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(DeviceMemoryError):
        model.describe(requests)


def copy(folder, to):
    shutil.copytree(folder, to / folder.name)
    return to / folder.name


def test_without_a_chat_template_that_of_the_family_is_used(mllm_folder, tmp_path, requests):
    folder = copy(mllm_folder("qwen2_vl"), tmp_path)
    (folder / "chat_template.jinja").unlink()
    model = HfDescriber(folder, **SMALL)
    turn = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    turn += "<|vision_start|><|image_pad|><|vision_end|>Where?<|im_end|>\n<|im_start|>assistant\n"
    assert model.render("Where?") == turn
    assert all(answer.text for answer in model.describe(requests))


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ messages[0]['content'] }", "TemplateSyntaxError"),
        ("{{ raise_exception('no images') }}", "no images"),
        ("{{ 'USER: ' + messages[0]['content'] }}", "TypeError"),
        ("{{ messages[0]['parts'][0] }}", "UndefinedError"),
    ],
)
def test_a_chat_template_that_fails_is_named_with_its_error(template, error, mllm_folder, tmp_path):
    folder = copy(mllm_folder("qwen2_vl"), tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=f"(?s)The chat template of {folder} can't write a conversation.*{error}"):
        HfDescriber(folder, **SMALL)


def test_a_tokenizer_of_another_model_is_refused(mllm_folder, tmp_path):
    folder = copy(mllm_folder("qwen2_5_vl"), tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    # Without the tokens of boxes, which the JSON dialect doesn't need, the later ids are lower.
    content["added_tokens"] = [token for token in content["added_tokens"] if "_ref_" not in token["content"]]
    content["added_tokens"] = [token for token in content["added_tokens"] if "_box_" not in token["content"]]
    before = HfDescriber(mllm_folder("qwen2_5_vl"), **SMALL).processor.image_token_id
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="disagree on the token of an image") as caught:
        HfDescriber(folder, **SMALL)
    assert caught.value.expected == before


def test_a_chat_template_without_the_image_is_refused(mllm_folder, tmp_path):
    folder = copy(mllm_folder("llava"), tmp_path)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'][1]['text'] }}{% endfor %}")
    with pytest.raises(ModelError, match="does not insert the image once"):
        HfDescriber(folder, **SMALL)


def test_a_folder_that_is_not_an_mllm_is_refused(mllm_folder, tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        HfDescriber(tmp_path / "nowhere", **SMALL)
    folder = copy(mllm_folder("llava"), tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        HfDescriber(folder, **SMALL)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(ModelError, match=r"not a multimodal LLM[\s\S]*model_type bert"):
        HfDescriber(folder, **SMALL)


def test_a_dialect_can_be_named(mllm_folder):
    assert HfDescriber(mllm_folder("llava"), dialect="shikra", **SMALL).dialect is get_dialect("shikra")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_4_bits_without_bitsandbytes_gives_one_clear_error(mllm_folder):
    with pytest.raises(SprError, match="bitsandbytes"):
        HfDescriber(mllm_folder("llava"), load_in_4bit=True)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"device_map": "auto"}]
)
def test_invalid_options_are_refused(options, mllm_folder):
    with pytest.raises(ConfigError):
        HfDescriber(mllm_folder("llava"), **{**SMALL, **options})
