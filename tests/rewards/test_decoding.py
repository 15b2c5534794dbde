"""Generated tokens as text."""

import pytest

from rl_samples import RIGHT, truth
from spr.core.errors import RewardError, SprError
from spr.grounding import DIALECTS, parse
from spr.rewards import trl
from spr.rewards.adapter import needed_tokens
from spr.rewards.decoding import Decoder, load_decoder, without_end


def test_the_markup_and_the_reasoning_stay_and_other_special_tokens_go(tokenizer):
    text = f"<think>A dog?</think>{RIGHT}"
    ids = tokenizer(f"{text}<|im_end|><|endoftext|><|endoftext|>")["input_ids"]
    assert Decoder(tokenizer).decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>A dog?</think>dog(0,0),(500,500)"


def test_reasoning_marked_with_special_tokens_stays(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    assert Decoder(other).decode(other("<think>A dog?</think>no<|im_end|>")["input_ids"]) == "<think>A dog?</think>no"


def test_a_processor_is_taken_for_its_tokenizer(tokenizer):
    class Processor:
        def __init__(self):
            self.tokenizer = tokenizer

    assert Decoder(Processor()).tokenizer is tokenizer
    with pytest.raises(RewardError, match=r"`tokenizer` is not a tokenizer(?s:.*)int"):
        Decoder(7)


def test_a_tokenizer_is_loaded_once_and_a_missing_one_is_named(model_folder, tmp_path):
    assert load_decoder(str(model_folder)) is load_decoder(str(model_folder))
    with pytest.raises(SprError, match="no-such-folder"):
        load_decoder(str(tmp_path / "no-such-folder"))


def test_tokens_are_decoded_only_where_the_dialect_needs_them(tmp_path):
    # The tokenizer does not exist: a dialect in plain text never asks for it.
    missing = str(tmp_path / "no-such-folder")
    given = {"completions": ['[{"bbox_2d": [0, 0, 500, 500]}]'], "completion_ids": [[1]]}
    assert trl.f1(**given, truth=[truth("qwen3_vl", tokenizer=missing)]) == [1]
    with pytest.raises(SprError, match="no-such-folder"):
        trl.f1(**given, truth=[truth(tokenizer=missing)])


def test_a_batch_may_mix_dialects(tokenizer):
    reward = trl.make("f1", tokenizer=tokenizer)
    completions = ['[{"bbox_2d": [0, 0, 500, 500]}]', "dog(0,0),(500,500)", "no dog"]
    ids = [tokenizer(text)["input_ids"] for text in ("", RIGHT, "no dog")]
    assert reward(completions=completions, completion_ids=ids, truth=[truth("qwen3_vl"), truth(), truth()]) == [1, 1, 0]


def test_dialects_that_need_special_tokens():
    found = [key for key in DIALECTS if needed_tokens(key) is not None]
    assert found == [
        "kosmos2",
        "qwen_vl",
        "qwen2_vl",
        "internvl",
        "minicpm_v",
        "deepseek_vl2",
        "deepseek_ocr",
        "rex_omni",
    ]


@pytest.mark.parametrize("key", [key for key in DIALECTS if needed_tokens(key) is None])
def test_other_dialects_read_the_same_without_the_tokens_that_decoding_removes(key):
    dialect = DIALECTS[key]
    pattern = None if dialect.servers_keep_tokens else dialect.special_tokens
    text = dialect.example if pattern is None else __import__("re").sub(pattern, "", dialect.example)
    whole, rest = parse(dialect.example, dialect, (1000, 1000)), parse(text, dialect, (1000, 1000))
    assert (rest.boxes, rest.points, rest.problems) == (whole.boxes, whole.points, ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog<|im_end|>", "a dog"),
        ("a dog <|im_end|>\n<|endoftext|><|endoftext|>", "a dog "),
        (RIGHT, RIGHT),
        (f"{RIGHT}<end_of_turn>", RIGHT),
        ("a <|im_end|> dog", "a <|im_end|> dog"),
        ("a dog\n", "a dog\n"),
        ("", ""),
        ("<|im_end|>", ""),
        ("<" * 100_000, "<" * 100_000),
    ],
)
def test_tokens_that_end_a_turn_are_removed_from_the_end(text, expected):
    assert without_end(text) == expected
