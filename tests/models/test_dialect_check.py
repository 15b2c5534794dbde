"""Tokenizers and chat templates that lose a dialect's numbers or markup are refused before anything is computed."""

import json
import shutil

import pytest
from tokenizers import AddedToken, normalizers

from spr.config import LoraSection, TrainingConfig
from spr.grounding import DIALECTS, get_dialect, parse
from spr.models.describers.hf import HfDescriber
from spr.models.dialect_check import check_dialect
from spr.models.dialect_samples import sample_texts
from spr.models.errors import ModelError
from spr.models.families import FAMILIES
from spr.models.image_processors import load_processor
from spr.training.trainee import open_model
from tiny_mllms import tokenizer


@pytest.fixture
def processor_of(mllm_folder):
    def load(model_type):
        return load_processor(str(mllm_folder(model_type)), model_type, family=FAMILIES[model_type])

    return load


def check(processor, model_type, dialect=None, **options):
    family = FAMILIES[model_type]
    check_dialect("org/model", processor, family, get_dialect(dialect or family.dialect), **options)


def normalize(processor, *steps):
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(list(steps))


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))
def test_the_samples_of_each_dialect_have_boxes_from_edge_to_edge(dialect):
    example, drawn = sample_texts(dialect)
    assert example == dialect.example
    spans = parse(drawn, dialect, (640, 480)).spans
    boxes = [box for span in spans for box in (span.boxes if dialect.writes_boxes else [(*p, *p) for p in span.points])]
    assert len(boxes) == 4
    step = max(dialect.max_error((640, 480)))
    assert min(box[0] for box in boxes) <= step
    assert max(box[2] for box in boxes) >= 640 - 2 * step


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_tiny_models_keep_every_dialect(model_type, processor_of):
    processor = processor_of(model_type)
    for dialect in DIALECTS:
        check(processor, model_type, dialect, trains=False)


def test_a_tokenizer_that_rounds_or_joins_numbers_is_refused(processor_of):
    processor = processor_of("llava")
    normalize(processor, normalizers.Replace(", 0.", " 0."))
    with pytest.raises(ModelError, match="does not keep the dialect `llava`") as caught:
        check(processor, "llava")
    assert caught.value.got == "a dog [0.10 0.15 0.30 0.20]"
    assert caught.value.expected == "a dog [0.10, 0.15, 0.30, 0.20]"
    assert "tokenizer.json" in caught.value.fix


def test_a_tokenizer_in_lower_case_is_refused(processor_of):
    processor = processor_of("llava")
    normalize(processor, normalizers.Lowercase())
    with pytest.raises(ModelError, match="does not keep the dialect `llava`") as caught:
        check(processor, "llava")
    assert caught.value.got.startswith("a dog [0.00, 0.12")
    assert caught.value.expected.startswith("A Dog [0.00, 0.12")


def test_a_tokenizer_without_digits_is_refused(processor_of):
    # Numbers become the unknown token, which decoding leaves out.
    processor = processor_of("cogvlm")
    normalize(processor, normalizers.Replace("0", "é"))
    with pytest.raises(ModelError, match="does not keep the dialect `cogvlm`"):
        check(processor, "cogvlm")


def test_markup_that_decoding_would_remove_is_refused(processor_of):
    processor = processor_of("llava")
    processor.tokenizer.backend_tokenizer.add_special_tokens([AddedToken("[", special=True, normalized=False)])
    with pytest.raises(ModelError, match="does not keep the dialect `llava`") as caught:
        check(processor, "llava")
    assert "[" not in caught.value.got


def test_special_markup_of_the_dialect_is_kept(processor_of):
    processor = processor_of("internvl")
    special = {str(token) for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    assert {"<ref>", "</ref>", "<box>", "</box>"} <= special
    check(processor, "internvl", trains=True)


def test_a_tokenizer_that_splits_the_tokens_of_its_own_family_is_not_the_models(processor_of):
    processor = processor_of("paligemma")
    bare = ["<pad>", "<eos>", "<bos>", "<image>"]
    processor.tokenizer = tokenizer(bare, bos="<bos>", eos="<eos>", pad="<pad>")
    with pytest.raises(ModelError, match="splits special tokens of its dialect") as caught:
        check(processor, "paligemma")
    assert caught.value.got.startswith("<loc0153> → < l o c 0 1 5 3 >; <loc0102> →")
    assert caught.value.got.endswith("more")
    assert "PaliGemma" in caught.value.expected


def test_tokens_of_another_familys_dialect_may_be_split_because_their_text_survives(processor_of):
    check(processor_of("llava"), "llava", "paligemma", trains=True)
    check(processor_of("llava"), "llava", "florence2", trains=True)


@pytest.mark.parametrize(
    ("before", "after"), [("{{ part['text'] }}", "{{ part['text'] | lower }}"), ("{{ part['text'] }}", "")]
)
def test_a_chat_template_that_changes_or_drops_the_prompts_text_is_refused(before, after, processor_of):
    processor = processor_of("llava_onevision")
    processor.chat_template = processor.chat_template.replace(before, after)
    with pytest.raises(ModelError, match="drops or changes the text of a prompt"):
        check(processor, "llava_onevision")


def test_a_chat_template_that_changes_the_answers_text_is_refused_for_training(processor_of):
    processor = processor_of("internvl")
    text = "{{ part['text'] if message['role'] == 'user' else part['text'] | replace('<', '&lt;') }}"
    processor.chat_template = processor.chat_template.replace("{{ part['text'] }}", text)
    check(processor, "internvl")  # a describer gives answers, and renders none
    with pytest.raises(ModelError, match="drops or changes the text of an answer") as caught:
        check(processor, "internvl", trains=True)
    assert "&lt;ref>a dog" in caught.value.got


def test_an_end_of_turn_of_several_tokens_is_refused_for_training(processor_of):
    processor = processor_of("llava_onevision")
    processor.tokenizer = tokenizer(["<|endoftext|>", "<|im_start|>", "<image>", "<video>"], eos="<|endoftext|>")
    processor.tokenizer.pad_token = "<|endoftext|>"  # noqa: S105 (a token of text)
    check(processor, "llava_onevision")
    with pytest.raises(ModelError, match="not be trained to end with a token that ends generation") as caught:
        check(processor, "llava_onevision", trains=True)
    assert caught.value.got.startswith("'<|im_end|>', tokens: ")
    assert caught.value.got.endswith("m _ e n d | >")


@pytest.fixture
def lower_case_folder(mllm_folder, tmp_path):
    """A model whose tokenizer reads digits as letters."""
    folder = tmp_path / "model"
    shutil.copytree(mllm_folder("llava"), folder)
    words = json.loads((folder / "tokenizer.json").read_text())
    words["normalizer"] = {"type": "Replace", "pattern": {"String": "5"}, "content": "S"}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    return folder


def test_describers_and_trainings_check_before_they_load_weights(lower_case_folder):
    (lower_case_folder / "model.safetensors").unlink()  # would be the next error
    with pytest.raises(ModelError, match="does not keep the dialect `llava`"):
        HfDescriber(lower_case_folder, device="cpu")
    settings = TrainingConfig(device="cpu", lora=LoraSection(r=4, lora_alpha=8))
    with pytest.raises(ModelError, match="does not keep the dialect `llava`"):
        open_model(str(lower_case_folder), settings)
    # The dialect of the config is checked: one without decimals has other numbers.
    with pytest.raises(ModelError, match="does not keep the dialect `ferret`"):
        open_model(str(lower_case_folder), settings, dialect="ferret")
