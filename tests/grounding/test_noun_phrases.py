import pytest
from hypothesis import given
from hypothesis import strategies as st

from spr.grounding.noun_phrases import noun_phrases, phrases_to_detect
from spr.records import Span


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


def test_each_phrase_is_asked_for_once_in_the_order_of_first_mention():
    text = "There is a dog and a red cup. A Dog, the  cup and\ta red CUP are on the table, a dog."
    assert phrases_to_detect(text) == ("a dog", "a red cup", "the cup", "the table")


def test_phrases_with_boxes_replace_the_noun_phrases_that_they_overlap():
    # The model marks "A man riding a horse" and "dog"; its second box has no words.
    text = "A man riding a horse and the large dog near a tree"
    marked = (
        Span("A man riding a horse", 0, 20, ((0.0, 0.0, 9.0, 9.0),)),
        Span("", 21, 21, ((1.0, 1.0, 2.0, 2.0),)),
        Span("dog", 35, 38, ((1.0, 1.0, 2.0, 2.0),)),
    )
    assert text[35:38] == "dog"
    assert phrases_to_detect(text) == ("A man", "a horse", "the large dog", "a tree")
    assert phrases_to_detect(text, marked) == ("A man riding a horse", "dog", "a tree")
    assert phrases_to_detect("walking stick", [Span("walking stick", 0, 13)]) == ("walking stick",)
    assert phrases_to_detect("") == ()
