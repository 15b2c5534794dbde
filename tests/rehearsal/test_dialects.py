"""The numbers and markup of each dialect survive each published vocabulary, there and back."""

import functools
import random

import pytest
from transformers import GenerationConfig

from published_models import KINDS, PUBLISHED, needs_vocabularies, real_tokenizer
from spr.core.errors import GroundingError
from spr.grounding import DIALECTS, GroundedText, parse, render
from spr.models.continuation import continue_tokens
from spr.models.describers.answer_tokens import AnswerTokens
from spr.models.families import FAMILIES
from spr.models.token_counts import load_counter
from spr.records import Span

pytestmark = needs_vocabularies
PHRASES = ["a dog", "A Dog", "the child’s T-shirt", "café", "two red cups", "犬", "x"]
TURNS = {"llama2": "USER: <image>\nWhere? ASSISTANT:", "qwen3": "<|im_start|>assistant\n"}


@functools.cache
def tokenizer(model_type):
    return real_tokenizer(KINDS[model_type])


def answers(dialect, count):
    """Grounded answers with boxes, or points if the dialect has no boxes, anywhere in the image."""
    draw = random.Random(3)
    for _ in range(count):
        width, height = draw.choice([(640, 480), (333, 500), (1920, 1080), (50, 70)])
        phrases = draw.sample(PHRASES, 2)
        plain = " near ".join(phrases)
        spans = []
        for phrase in phrases:
            xs, ys = (sorted(draw.uniform(0, side) for _ in range(2)) for side in (width, height))
            start = plain.index(phrase)
            boxes, points = ((xs[0], ys[0], xs[1], ys[1]),), tuple(zip(xs, ys, strict=True))
            found = {"boxes": boxes} if dialect.writes_boxes else {"points": points}
            spans.append(Span(phrase, start, start + len(phrase), **found))
        try:
            yield render(GroundedText(plain, tuple(spans)), dialect, (width, height)), (width, height)
        except GroundingError:
            continue  # words that the dialect would read otherwise


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))
# One for each vocabulary: Llama's, Qwen's, and Qwen's with InternVL's markup as special tokens.
@pytest.mark.parametrize("model_type", ["llava", "qwen3_vl", "internvl"])
def test_a_dialects_answers_come_back_as_they_were(model_type, dialect):
    words, family, seen = tokenizer(model_type), FAMILIES[model_type], 0
    reader = AnswerTokens.of(words, family, dialect, GenerationConfig())
    turn = TURNS[KINDS[model_type].vocabulary]
    before = " " if turn.endswith(":") else ""
    for text, size in answers(dialect, 30):
        ids, _ = continue_tokens(words, turn, before + text + words.eos_token)
        assert reader.decode(ids) == text
        assert parse(reader.decode(ids), dialect, size).spans == parse(text, dialect, size).spans
        seen += 1
    assert seen > 20


@pytest.mark.parametrize("model_type", ["llava", "qwen3_vl"])
def test_each_digit_is_a_token_so_that_numbers_have_a_token_per_place(model_type):
    # Of the vocabularies that merge digits, `training.box_token_weight` would still cover each number.
    words = tokenizer(model_type)
    for text in ("0.12", "[0.12, 1.00]", "[[100,150,300,800]]", "(7),(1000)", '"bbox_2d": [64, 63, 193, 84]'):
        pieces = words.tokenize(text)
        digits = [piece for piece in pieces if any(char.isdigit() for char in piece)]
        assert "".join(digits) == "".join(char for char in text if char.isdigit())
        assert all(len(piece) == 1 for piece in digits)


@pytest.mark.parametrize("vocabulary", ["llama2", "qwen3"])
def test_planned_lengths_are_those_of_the_tokenizer(vocabulary):
    kind = next(kind for kind in KINDS.values() if kind.vocabulary == vocabulary)
    count = load_counter(PUBLISHED / vocabulary / "tokenizer.json")
    texts = ["a dog [0.10, 0.15, 0.30, 0.20]", "犬 é 😀", "", " a\n\nb"]
    expected = [len(ids) for ids in real_tokenizer(kind)(texts, add_special_tokens=False)["input_ids"]]
    assert count(texts) == expected
