import re

from hypothesis import given
from hypothesis import strategies as st

from spr.models.text_pieces import split


def pieces(text, limit):
    """A tokenizer whose tokens are words, single ideographs and single punctuation marks."""
    spans = [match.span() for match in re.finditer(r"[A-Za-z0-9]+|\S", text)]
    return [text[spans[run[0]][0] : spans[run[-1]][1]] if run else "" for run in split(text, spans, limit)]


def test_a_text_that_fits_is_one_piece():
    assert pieces("a b c.", 4) == ["a b c."]
    assert pieces("", 4) == [""]


def test_a_sentence_end_is_better_than_a_later_phrase_end_and_that_than_a_later_word():
    assert pieces("a b. c d, e f g h", 7) == ["a b.", "c d, e f g h"]
    assert pieces("a b c, d e f g h", 7) == ["a b c,", "d e f g h"]
    assert pieces("a b c d e f g h", 3) == ["a b c", "d e f", "g h"]


def test_the_last_of_several_sentence_ends_is_taken():
    assert pieces("a. b. c. d", 6) == ["a. b. c.", "d"]


def test_a_number_with_a_point_is_not_cut_there():
    assert pieces("x x 3.5 y y", 4) == ["x x", "3.5 y", "y"]


def test_an_abbreviation_ends_no_sentence_unless_a_capital_letter_follows():
    assert pieces("x. open 8 a.m. to six", 9) == ["x.", "open 8 a.m. to six"]
    assert pieces("x. open 8 a.m. A bird sings", 9) == ["x. open 8 a.m.", "A bird sings"]


def test_pieces_may_end_at_line_breaks_and_after_quoted_sentences():
    assert pieces("a b\nc d e f", 5) == ["a b", "c d e f"]
    assert pieces('a "b." c d e', 7) == ['a "b."', "c d e"]


def test_languages_without_spaces_are_cut_at_their_own_punctuation():
    assert pieces("一只猫。两只狗，三只鸟", 6) == ["一只猫。", "两只狗，", "三只鸟"]


def test_a_word_of_too_many_tokens_is_cut_inside():
    spans = [(k, k + 1) for k in range(10)]
    assert split("abcdefghij", spans, 4) == [range(4), range(4, 8), range(8, 10)]


@given(st.text(alphabet="ab ,.\n。", max_size=60), st.integers(1, 7))
def test_pieces_hold_every_token_once_in_order_and_never_too_many(text, limit):
    spans = [match.span() for match in re.finditer(r"\S", text)]
    runs = split(text, spans, limit)
    assert [k for run in runs for k in run] == list(range(len(spans)))
    assert all(len(run) <= limit for run in runs)
    assert len(runs) == 1 or all(runs)
