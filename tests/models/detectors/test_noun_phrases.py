import pytest
from hypothesis import given
from hypothesis import strategies as st

from spr.models.detectors.noun_phrases import noun_phrases


def phrases(text):
    return [text[start:end] for start, end in noun_phrases(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man riding a horse.", ["A man", "a horse"]),
        ("a cat, two dogs; birds", ["a cat", "two dogs", "birds"]),
        ("The black and white cat and the dog", ["The black and white cat", "the dog"]),
        ("a group of people in front of the house", ["a group of people", "the house"]),
        ("the man the dog", ["the man", "the dog"]),
        ("a red\ncar", ["a red", "car"]),
        ('She sees "a cup" (blue) here', ["She", "a cup", "blue"]),
        ("the, a and with, the standing", []),
        ("to the left of the dog of a man", ["the dog of a man"]),
        ("一只猫，两只狗。", ["一只猫", "两只狗"]),
        ("un chat noir, la table", ["un chat noir", "la table"]),
        ("T-shirt's owner 😀", ["T-shirt's owner 😀"]),
        ("", []),
    ],
)
def test_phrases_of_a_text(text, expected):
    assert phrases(text) == expected


@given(st.text(max_size=80))
def test_phrases_are_in_order_and_without_surrounding_spaces(text):
    found = noun_phrases(text)
    assert [place for span in found for place in span] == sorted(place for span in found for place in span)
    assert all(part and part == part.strip() for part in phrases(text))
