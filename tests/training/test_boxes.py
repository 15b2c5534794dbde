"""The numbers of changed boxes, their tokens, and answers that were cut."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from spr.core.errors import ConfigError
from spr.grounding import DIALECTS, get_dialect
from spr.models.families import FAMILIES
from spr.training.boxes import box_ranges, changed_numbers, token_weights
from spr.training.encoding import PairEncoder
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee

TRAINABLE = [name for name, family in FAMILIES.items() if family.trainable]
SIZE = (640, 480)
CHOSEN = "a cat [0.10, 0.20, 0.50, 0.60] and [0.1, 0.1, 0.9, 0.9]"
REJECTED = "a cat [0.10, 0.20, 0.55, 0.60] and [0.1, 0.1, 0.9, 0.9], 0.50 of it"


@pytest.fixture
def encoder_of(trainable_folder, settings, tmp_path):
    def make(model_type, *, dialect="llava", **changes):
        folder, config = str(trainable_folder(model_type)), settings(**changes)
        return load_trainee(folder, config, torch.device("cpu"), features=tmp_path, dialect=dialect).encoder

    return make


@pytest.fixture
def pair(pairs_folder):
    first = next(iter(trl_pairs(pairs_folder)))
    return dataclasses.replace(first, chosen=CHOSEN, rejected=REJECTED)


@pytest.mark.parametrize("key", [key for key, dialect in DIALECTS.items() if dialect.writes_boxes])
def test_the_numbers_of_a_box_are_found_in_every_dialect(key):
    dialect = get_dialect(key)
    (box,) = box_ranges(dialect.example, dialect, SIZE)
    numbers = [dialect.example[start:end] for start, end in box]
    assert len(numbers) == (2 if key == "kosmos2" else 4)
    assert all(number.replace(".", "").isdigit() for number in numbers)


def test_a_box_has_changed_if_the_other_answer_does_not_contain_it():
    def changed(text, other, key="ferret"):
        return [text[start:end] for start, end in changed_numbers(text, other, get_dialect(key), SIZE)]

    one, two = "a [1, 2, 3, 4], b [5, 6, 7, 8]", "b [5, 6, 7, 8], a [1, 2, 3, 5]"
    assert changed(one, two) == ["1", "2", "3", "4"]  # the order does not matter, and shared numbers count as well
    assert changed(two, one) == ["1", "2", "3", "5"]
    assert changed(one, one) == []
    assert changed("a [1, 2, 3, 4], [1, 2, 3, 4]", "[1,2,3,4]") == []  # spaces are not numbers
    assert changed("a [1, 2, 3, 4]", "a [01, 2, 3, 4]") == ["1", "2", "3", "4"]  # written in another way
    assert changed("a [1, 2, 3, 4]", "1, 2, 3, 4") == ["1", "2", "3", "4"]  # not a box
    assert changed("a [1, 2, 3, 4]", "") == ["1", "2", "3", "4"]
    assert changed("<loc0001><loc0002><loc0003><loc0004> a", "", "paligemma") == [
        "0002",
        "0001",
        "0004",
        "0003",
    ]  # y before x


def test_a_token_that_shares_one_character_with_a_number_has_the_weight():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[12": 1, ",": 2, "345]": 3, "b": 4}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoded = tokenizer.encode("a [12 , 345] b")
    assert encoded.offsets == [(0, 1), (2, 5), (6, 7), (8, 12), (13, 14)]
    assert token_weights(encoded.offsets, [(3, 5), (8, 11)], 2.5).tolist() == [1, 2.5, 1, 2.5, 1]
    assert token_weights(encoded.offsets, [(5, 6), (7, 8)], 2.5).tolist() == [1] * 5  # between the tokens


@pytest.mark.parametrize("model_type", TRAINABLE)
def test_the_weight_is_on_the_tokens_of_changed_numbers_alone(model_type, encoder_of, pair):
    encoder = encoder_of(model_type, box_token_weight=5)
    (planned,), _ = encoder.plan([pair], 4096)
    answers = (planned.chosen, planned.chosen_weights), (planned.rejected, planned.rejected_weights)
    for (ids, weights), numbers in zip(answers, ("0.100.200.500.60", "0.100.200.550.60"), strict=True):
        assert weights.dtype == torch.float32
        assert set(weights.tolist()) == {1.0, 5.0}
        heavy = encoder.processor.tokenizer.decode(ids[weights == 5], clean_up_tokenization_spaces=False)
        assert heavy.replace(" ", "") == numbers


def test_a_weight_of_one_adds_no_weights_and_changes_no_key(encoder_of, pair):
    plain, heavy, heavier = (encoder_of("llava_onevision", box_token_weight=weight) for weight in (1, 3, 5))
    planned = [encoder.plan([pair], 4096)[0][0] for encoder in (plain, heavy, heavier)]
    assert plain.dialect is None
    assert (planned[0].chosen_weights, planned[0].rejected_weights) == (None, None)
    assert all(torch.equal(one.chosen, planned[0].chosen) for one in planned)
    assert len({one.key for one in planned}) == 3  # so that the reference is computed again
    other = encoder_of("llava_onevision", box_token_weight=5, dialect="ferret").plan([pair], 4096)[0][0]
    assert other.key == planned[2].key  # the same numbers are found
    blind = encoder_of("llava_onevision", box_token_weight=5, dialect="qwen2_vl").plan([pair], 4096)[0][0]
    assert blind.key == planned[0].key  # no box is found, so all weights are 1


def test_the_boxes_are_read_in_the_models_own_dialect_unless_another_is_given(encoder_of):
    assert encoder_of("ferret", box_token_weight=2, dialect=None).dialect.key == "ferret"
    assert encoder_of("ferret", box_token_weight=2, dialect="cogvlm").dialect.key == "cogvlm"


def test_a_tokenizer_without_offsets_is_an_error_that_says_what_to_do():
    slow = SimpleNamespace(tokenizer=SimpleNamespace(is_fast=False))
    with pytest.raises(ConfigError, match="needs a tokenizer that reports which characters") as caught:
        PairEncoder(None, slow, None, None, identity="", box_weight=2, dialect=get_dialect("llava"))
    assert caught.value.fix == "set training.box_token_weight=1, or add a tokenizer.json to the model's folder"


@pytest.mark.parametrize("model_type", TRAINABLE)
def test_an_answer_that_was_cut_has_no_end_of_turn(model_type, encoder_of, pair):
    encoder = encoder_of(model_type)
    cut = dataclasses.replace(pair, rejected_complete=False)
    (whole, one), _ = encoder.plan([pair, cut], 4096)
    assert torch.equal(one.chosen, whole.chosen)
    tokenizer = encoder.processor.tokenizer
    ends = {tokenizer.eos_token_id, *map(tokenizer.convert_tokens_to_ids, FAMILIES[model_type].end_of_turn)}
    assert ends & set(whole.rejected.tolist())
    assert not ends & set(one.rejected.tolist())
    assert encoder.processor.tokenizer.decode(one.rejected).strip().endswith(REJECTED)
    assert torch.equal(one.rejected, whole.rejected[: len(one.rejected)])
    (other,), _ = encoder.plan([dataclasses.replace(pair, chosen_complete=False)], 4096)
    assert len(other.chosen) < len(whole.chosen)
    assert torch.equal(other.rejected, whole.rejected)
    assert len({whole.key, one.key, other.key}) == 3


def test_the_weights_of_an_answer_that_was_cut_are_those_of_its_own_tokens(encoder_of, pair):
    encoder = encoder_of("llava_onevision", box_token_weight=5)
    (whole, one), _ = encoder.plan([pair, dataclasses.replace(pair, chosen_complete=False)], 4096)
    assert len(one.chosen_weights) == len(one.chosen) < len(whole.chosen)
    assert torch.equal(one.chosen_weights, whole.chosen_weights[: len(one.chosen)])
