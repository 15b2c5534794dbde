import pytest
from hypothesis import given
from hypothesis import strategies as st

from spr.grounding import final_answer
from spr.grounding.answer import UNFINISHED_REASONING


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        ("a dog [1, 2, 3, 4]", "a dog [1, 2, 3, 4]"),
        ("  a dog \n", "  a dog \n"),
        ("<think>It is [9, 9, 9, 9].</think>\n\na dog [1, 2, 3, 4]", "a dog [1, 2, 3, 4]"),
        ("It is [9, 9, 9, 9].</think>a dog", "a dog"),  # the chat template has written the opening tag
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>a</think><answer> d </answer> bye", "d"),
        ("<answer>d</answer>", "d"),
        ("so <answer>d</answer> bye <answer>e</answer>", "e"),
        ("<answer>d", "d"),
        ("d</answer>", "d</answer>"),
        ("<THINK>a</Think>b", "b"),
        ("<think></think>", ""),
        ("<ref>a dog</ref><box>(1,2),(3,4)</box>", "<ref>a dog</ref><box>(1,2),(3,4)</box>"),
        ("2 < 3", "2 < 3"),
    ],
)
def test_only_the_answer_remains(generated, answer):
    assert final_answer(generated) == (answer, None)


@pytest.mark.parametrize("generated", ["<think>", "<think>a dog [1, 2, 3, 4]", "<think>a</think>b<think>c"])
def test_unclosed_reasoning_is_no_answer(generated):
    assert final_answer(generated) == ("", UNFINISHED_REASONING)


@given(st.text())
def test_text_without_tags_is_unchanged(text):
    assert final_answer(text.replace("<", "")).text == text.replace("<", "")
