"""Finding the phrase of a box in dialects that do not mark phrases."""

from __future__ import annotations

import pytest

from spr.grounding import parse, render, replace_boxes
from spr.grounding.phrases import find_phrase

SIZE = (1000, 1000)
B = "[1, 2, 3, 4]"


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("a dog", "a dog"),
        ("There is a brown dog", "a brown dog"),
        ("and a dog", "a dog"),
        ("with the two men", "the two men"),
        ("all the people", "all the people"),
        ("The man is standing next to his old car", "his old car"),
        ("A man riding a horse", "a horse"),
        ("a man wearing sunglasses", "sunglasses"),
        ("There are people", "people"),
        ("In the image, several children", "several children"),
        ("a group of people", "a group of people"),
        ("several pieces of luggage", "several pieces of luggage"),
        ("a cup of the coffee", "a cup of the coffee"),
        ("to the left of the dog", "the dog"),
        ("in front of the house", "the house"),
        ("on top of a table", "a table"),
        ("a standing lamp", "a standing lamp"),
        ("The dog is located at", "The dog"),
        ("the dog, sitting on", "the dog"),
        ("the dog:", "the dog"),
        ('the sign "Stop"', "Stop"),
        ("a wall (left of the door", "the door"),
        ("(a cat", "a cat"),
        ("(a cat)", "a cat"),
        ("The man is near (a cat)", "a cat"),
        ("It rained. (a cat)", "a cat"),
        ("a dog [sic]", "a dog"),
        ("a tall man (on the left)", "a tall man"),
        ("**Person** (left side)", "Person"),
        ("the **man (left)**", "man"),
        ("a dog [1] (see below)", "a dog"),
        ("一只狗（左）", "一只狗"),
        ("- a cat", "a cat"),
        ("1. a cat", "a cat"),
        ("The end. Dogs", "Dogs"),
        ("the man's hat", "the man's hat"),
        ("A man-made lake", "A man-made lake"),
        ("桌子上有一只狗", "桌子上有一只狗"),
        ("这里，一只狗", "一只狗"),
        ("der große Hund", "der große Hund"),
        ("ein Mann, eine Frau", "eine Frau"),
        ("🐕 a dog", "a dog"),
        ("İstanbul", "İstanbul"),
        ("a\u00a0dog", "a\u00a0dog"),
        ("a man on the left", "a man"),
        ("people in the background", "people"),
        ("There is a tree in the middle", "a tree"),
        ("two dogs in the foreground", "two dogs"),
        ("A dog is sitting in the corner", "A dog"),
        ("boats in the far distance", "boats"),
        ("a sign on the right side", "a sign"),
        ("A man on the left and a woman on the right", "a woman"),
        ("In the background", "the background"),
        ("It rained. In the corner", "the corner"),
        ("a man, in the background", "the background"),
        ("the left", "the left"),
        ("The bounding box of the person is", "the person"),
        ("The bounding boxes of two dogs are", "two dogs"),
        ("The location of the cat is", "the cat"),
        ("The bounding box coordinates of the red car are", "the red car"),
        ("a box of chocolates", "a box of chocolates"),
        ("a hot dog stand", "a hot dog stand"),
        ("a tv stand", "a tv stand"),
        ("the hot dog stand", "the hot dog stand"),
        ("his drink", "his drink"),
        ("The dogs stand", "The dogs"),
        ("two men walk", "two men"),
        ("the people walk", "the people"),
        ("a dog stands", "a dog"),
        ("a salt and pepper shaker", "a salt and pepper shaker"),
        ("a wooden and metal bench", "a wooden and metal bench"),
        ("a man and two dogs", "two dogs"),
        ("a cat and dog", "dog"),
        ("a dog and black cat", "black cat"),
        ("on", ""),
        ("It rained. It is on", "It"),
        ("A dog. On", ""),
        ("", ""),
        ("  ", ""),
        ("...", ""),
    ],
)
def test_the_phrase_before_a_box_is_found(text: str, phrase: str) -> None:
    start, end = find_phrase(text, 0, len(text))
    assert text[start:end] == phrase


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("The picture shows a street\nred car", "red car"),
        ("The picture shows a street\r\nred car", "red car"),
        ("# A street\n- red car", "red car"),
        ("## Red car", "Red car"),
        ("> a dog", "a dog"),
        ("| red car |", "red car"),
        ("on the table • red car", "red car"),
        ("a wall\n", "a wall"),
    ],
)
def test_a_phrase_does_not_extend_past_its_line_bullet_or_heading(text: str, phrase: str) -> None:
    start, end = find_phrase(text, 0, len(text.rstrip()))
    assert text[start:end] == phrase


@pytest.mark.parametrize(
    ("text", "plain", "phrases"),
    [
        (f"{B}: a man\n{B}: a dog", "a man\na dog", ["a man", "a dog"]),
        (f"{B} a man\n{B} a dog", "a man\na dog", ["a man", "a dog"]),
        (f"- {B} a man riding a horse\n- {B} dogs", "- a man riding a horse\n- dogs", ["a man", "dogs"]),
        (f"1. {B} - **Man**\n2. {B} - **Dog**", "1. **Man**\n2. **Dog**", ["Man", "Dog"]),
        (f"{B} a man and {B} a dog.", "a man and a dog.", ["a man", "a dog"]),
        (f"Here they are:\n{B} a man", "Here they are:\na man", ["a man"]),
        (f"{B}: is there", "is there", [""]),
    ],
)
def test_boxes_before_their_words_ground_the_words_after_them_and_are_reported(
    text: str, plain: str, phrases: list[str]
) -> None:
    grounded = parse(text, "ferret", SIZE)
    assert (grounded.plain_text, [span.phrase for span in grounded.spans]) == (plain, phrases)
    assert all(problem.reason.startswith("box before its words: ") for problem in grounded.problems)
    assert len(grounded.problems) == len(phrases)
    assert render(grounded, "ferret", SIZE) == text


@pytest.mark.parametrize(
    ("text", "phrase"),
    [(f"The man\n{B} smiles", "The man"), (f"Dog:\n{B}\n", "Dog"), (f"two dogs\n{B}\n{B}", "two dogs")],
)
def test_a_box_that_was_wrapped_to_the_next_line_belongs_to_the_words_before_it(text: str, phrase: str) -> None:
    assert [span.phrase for span in parse(text, "ferret", SIZE, strict=True).spans] == [phrase]


def test_a_box_between_words_that_could_be_of_either_is_reported_only() -> None:
    grounded = parse(f"{B} people near the bus {B} now.", "ferret", SIZE)
    assert [span.phrase for span in grounded.spans] == ["", "the bus"]
    assert [problem.reason for problem in grounded.problems] == ["box without a phrase: kept without one"]


def test_a_phrase_after_its_box_is_removed_with_it() -> None:
    text = "- [1, 2, 3, 4] a man\n- [5, 6, 7, 8] a man\n"
    edited = replace_boxes(parse(text, "ferret", SIZE), [(1, 2, 3, 4), None], remove_phrases=True)
    assert render(edited, "ferret", SIZE) == "- [1, 2, 3, 4] a man\n"
    edited = replace_boxes(parse(text, "ferret", SIZE), [None, (5, 6, 7, 8)])
    assert render(edited, "ferret", SIZE) == "- a man\n- [5, 6, 7, 8] a man\n"


def test_a_phrase_does_not_extend_past_the_previous_box() -> None:
    assert find_phrase("dogs cats", 4, 9) == (5, 9)


def test_a_phrase_in_a_text_without_spaces_or_punctuation_stays_short() -> None:
    start, end = find_phrase("x" * 10_000, 0, 10_000)
    assert (start, end) == (9840, 10_000)


@pytest.mark.parametrize(
    "text",
    [
        f"two dogs {B} {B} run",
        f"two dogs {B}{B} run",
        f"two dogs {B} and {B} run",
        f"two dogs {B}, {B} run",
        f"two dogs {B}, and {B} run",
        f"two dogs {B} & {B} run",
    ],
)
def test_several_boxes_after_one_phrase_belong_to_it(text: str) -> None:
    grounded = parse(text, "ferret", SIZE, strict=True)
    assert grounded.plain_text == "two dogs run"
    assert [(span.phrase, len(span.boxes)) for span in grounded.spans] == [("two dogs", 2)]


def test_the_plain_text_reads_naturally() -> None:
    text = f"A dog {B} and a cat {B}, both asleep, lie on  the mat{B}. It{B}'s late {B}!"
    grounded = parse(text, "ferret", SIZE)
    assert grounded.plain_text == "A dog and a cat, both asleep, lie on  the mat. It's late!"


@pytest.mark.parametrize(
    ("text", "plain", "phrase"),
    [
        (f"- **Person** ({B})", "- **Person**", "Person"),
        (f"a dog ( {B} ) runs", "a dog runs", "a dog"),
        (f"dogs ({B}, {B}) run", "dogs run", "dogs"),
        (f"dogs ({B}) and ({B}) run", "dogs run", "dogs"),
        (f"一只狗（{B}）。", "一只狗。", "一只狗"),
        (f"a dog ({B} is big) runs", "a dog ( is big) runs", "a dog"),
        (f"a dog ({B}", "a dog (", "a dog"),
        (f"a dog {B} () runs", "a dog () runs", "a dog"),
    ],
)
def test_a_bracket_that_contains_only_the_box_is_removed_with_it(text: str, plain: str, phrase: str) -> None:
    grounded = parse(text, "ferret", SIZE, strict=True)
    assert (grounded.plain_text, [span.phrase for span in grounded.spans]) == (plain, [phrase])


def test_a_bracket_around_tagged_boxes_is_removed_with_them() -> None:
    text = "A dog (<box>(1,2),(3,4)</box>) and (<box>(1,2),(3,4)</box><ref>) it</ref>"
    assert parse(text, "qwen_vl", SIZE).plain_text == "A dog () it"


def test_an_answer_of_ferrets_gives_the_phrases_that_a_person_would_choose() -> None:
    text = (
        f"There are people {B} standing in the service area {B} of the airport, which appears to be a runway. A man {B}"
        f" is walking down the stairs {B} of an unloading ramp. Another man {B} is holding his baggage {B} and bending"
        f" over. There's also a woman {B} dressed in a sleeveless black top {B} with a black and white headband {B}."
    )
    assert [span.phrase for span in parse(text, "ferret", SIZE, strict=True).spans] == [
        "people",
        "the service area",
        "A man",
        "the stairs",
        "Another man",
        "his baggage",
        "a woman",
        "a sleeveless black top",
        "a black and white headband",
    ]
