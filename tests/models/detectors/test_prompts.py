"""Prompts and their tokens, with the word pieces of BERT, which GroundingDINO reads."""

from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer

from spr.models.detectors.prompts import PhrasePrompt, phrase_prompts, text_prompts

VOCABULARY = Path(__file__).parents[4] / "shared" / "data" / "tokenizers" / "bert" / "vocab.txt"
LIMIT = 254  # the 256 tokens of GroundingDINO without [CLS] and [SEP]


@pytest.fixture(scope="module")
def tokenizer():
    if not VOCABULARY.is_file():
        pytest.skip("the vocabulary of BERT is not part of the repository")
    return BertTokenizer(vocab=str(VOCABULARY))


def written(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(list(ids)))


def test_phrases_are_joined_by_dots_as_in_training(tokenizer):
    ((prompt,),) = phrase_prompts(tokenizer, [("A dog", "a red cup")], LIMIT)
    assert list(prompt.ids) == tokenizer("a dog . a red cup .", add_special_tokens=False)["input_ids"]
    assert prompt.phrases == ("A dog", "a red cup")
    assert prompt.places == ((0, 2), (3, 6))


def test_each_phrase_has_its_own_word_pieces(tokenizer):
    phrases = ("two skateboarders", "a teddy-bear", "Żółty café", "一只猫", "the child's t-shirt", "a 3.5 mm plug")
    ((prompt,),) = phrase_prompts(tokenizer, [phrases], LIMIT)
    assert prompt.phrases == phrases
    pieces = [written(tokenizer, prompt.ids[a:b]) for a, b in prompt.places]
    assert pieces == [" ".join(tokenizer.tokenize(phrase)) for phrase in phrases]
    assert pieces[:2] == ["two skate ##board ##ers", "a teddy - bear"]
    # Between the phrases there is a dot each, and nothing else.
    after = [prompt.ids[b] for _, b in prompt.places]
    assert written(tokenizer, after) == ". . . . . ."
    assert [a for a, _ in prompt.places] == [0, *(b + 1 for _, b in prompt.places[:-1])]


def test_a_box_belongs_to_the_phrase_of_its_best_word_piece_and_has_its_score(tokenizer):
    ((prompt,),) = phrase_prompts(tokenizer, [("two skateboarders", "a cup")], LIMIT)
    #                 two  skate ##board ##ers  .   a    cup   .
    rows = [[0.10, 0.20, 0.60, 0.10, 0.05, 0.30, 0.55, 0.99], [0.10, 0.20, 0.30, 0.10, 0.95, 0.10, 0.50, 0.10]]
    assert [prompt.phrase(row) for row in rows] == ["two skateboarders", "a cup"]
    # [CLS] comes before these tokens, [SEP] and padding after them; they and the dots do not count.
    padded = torch.tensor([[0.9, *row, 0.8, 0.0] for row in rows])
    assert prompt.scores(padded).tolist() == pytest.approx([0.60, 0.50])


def test_phrases_beyond_the_limit_are_asked_in_further_prompts(tokenizer):
    # "the cat 7" and its dot are 4 tokens: 63 phrases have 252 tokens, and 64 have more than 254.
    phrases = tuple(f"the cat {k}" for k in range(200))
    ((first, *others), (alone,)) = phrase_prompts(tokenizer, [phrases, ("a dog",)], LIMIT)
    assert len(first.phrases) == 63
    assert [len(prompt.phrases) for prompt in others] == [63, 63, 11]
    assert sum((prompt.phrases for prompt in (first, *others)), ()) == phrases
    assert {len(prompt.ids) <= LIMIT for prompt in (first, *others)} == {True}
    assert alone.phrases == ("a dog",)


def test_a_prompt_is_filled_to_the_last_token(tokenizer):
    # 3 + 3 tokens with the dots.
    ((both,),) = phrase_prompts(tokenizer, [("a cat", "a dog")], 6)
    assert both.phrases == ("a cat", "a dog")
    ((first, second),) = phrase_prompts(tokenizer, [("a cat", "a dog")], 5)
    assert (first.phrases, second.phrases) == (("a cat",), ("a dog",))


def test_a_phrase_that_is_longer_than_a_prompt_is_split_between_words(tokenizer):
    phrase = " ".join(["a red cat"] * 100)
    ((first, second),) = phrase_prompts(tokenizer, [(phrase,)], LIMIT)
    assert (len(first.ids), len(second.ids)) == (254, 48)
    assert f"{first.phrases[0]} {second.phrases[0]}" == phrase


def test_phrases_without_words_are_left_out(tokenizer):
    assert phrase_prompts(tokenizer, [("...", "", "\x07", "a cat"), ("?",), ()], LIMIT)[1:] == [[], []]
    ((prompt,), _) = phrase_prompts(tokenizer, [("...", "\x07", "a cat"), ()], LIMIT)
    assert prompt == PhrasePrompt(tuple(tokenizer.convert_tokens_to_ids(["a", "cat", "."])), ("a cat",), ((0, 2),))


def test_a_text_is_asked_as_it_is_with_a_final_dot(tokenizer):
    (one,), (other,) = text_prompts(tokenizer, ["A red cat, a dog", "a dog."], LIMIT, 0.25)
    assert written(tokenizer, one.ids) == "a red cat , a dog ."
    assert written(tokenizer, other.ids) == "a dog ."
    assert text_prompts(tokenizer, ["", " . , !"], LIMIT, 0.25) == [[], []]


def phrase(tokenizer, text, probs):
    """The phrase for these scores of the text's tokens."""
    ((prompt,),) = text_prompts(tokenizer, [text], LIMIT, 0.25)
    assert len(prompt.spans) == len(probs)
    return prompt.phrase(probs)


def test_a_phrase_of_a_text_consists_of_the_words_above_the_threshold_around_the_best(tokenizer):
    text = "a red cat on the dog"
    assert phrase(tokenizer, text, [0.1, 0.3, 0.9, 0.2, 0.3, 0.8]) == "red cat"
    assert phrase(tokenizer, text, [0.1, 0.1, 0.2, 0.1, 0.3, 0.8]) == "the dog"
    # No word is above the threshold: the best word is used.
    assert phrase(tokenizer, text, [0.1, 0.1, 0.2, 0.1, 0.1, 0.1]) == "cat"


def test_a_phrase_of_a_text_ends_at_punctuation_and_consists_of_whole_words(tokenizer):
    assert phrase(tokenizer, "a cat, a dog", [0.9, 0.9, 0.9, 0.3, 0.95]) == "a dog"
    # "skateboarders" is "skate", "##board" and "##ers".
    assert phrase(tokenizer, "the skateboarders", [0.1, 0.1, 0.1, 0.9]) == "skateboarders"
    assert phrase(tokenizer, "a t-t.", [0.9, 0.1, 0.1, 0.8, 0.99]) == "a"
