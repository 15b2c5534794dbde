import pytest

from spr.evaluation.tasks import description as description_task
from spr.models import questions
from tools.embedded.texts import PROMPTS, description, object_list
from tools.embedded.vocabulary import END, IDS, START, TOKENS, UNKNOWN, encode, make_tokenizer

BOXES = [[0.12, 0.34, 0.56, 0.78], [0, 0, 1, 1], [0.5, 0.25, 0.75, 0.99]]
NAMES = ["red circle", "orange star", "white ring"]


def test_evaluation_asks_the_embedded_describer_what_it_was_trained_on() -> None:
    assert PROMPTS["rec"] == questions.EMBEDDED_PROMPT
    assert PROMPTS["full"] == description_task.EMBEDDED_PROMPT


def test_every_token_is_unique_and_has_its_fixed_id() -> None:
    assert len(set(TOKENS)) == len(TOKENS)
    assert (TOKENS[101], TOKENS[102]) == (".", END)
    # OWL-ViT uses the largest id of a query as its end: no word of a query may have a larger one.
    words = encode(f"a small red circle. the large {' '.join(NAMES)} left right above below of")
    assert max(words) < IDS[END]


@pytest.mark.parametrize(
    "text",
    [
        description(NAMES, BOXES),
        PROMPTS["crop_objects"].format(objects=object_list(NAMES, BOXES)),
        PROMPTS["full"].format(region="[0.10, 0.20, 0.30, 0.40]"),
        PROMPTS["crop"],
        PROMPTS["rec"].format(expression="the small blue star left of the cross"),
        "[0.10, 0.20, 0.30, 0.40]",
    ],
)
def test_decoded_texts_equal_the_originals_in_lower_case(text: str) -> None:
    tokenizer = make_tokenizer(chat=True)
    ids = tokenizer(text)["input_ids"]
    assert IDS[UNKNOWN] not in ids
    assert ids == encode(text)
    assert tokenizer.decode(ids) == text.lower()


def test_a_coordinate_is_one_token_and_a_box_six() -> None:
    assert [TOKENS[i] for i in encode("[0.12, 0.34, 1.00, 0.78]")] == ["[", "0.12", "0.34", "1.00", "0.78", "]"]


def test_unknown_words_do_not_break_a_text() -> None:
    assert [TOKENS[i] for i in encode("a mauve circle")] == ["a", UNKNOWN, "circle"]


def test_start_and_end_tokens_are_added_only_on_request() -> None:
    assert make_tokenizer(START)("red circle")["input_ids"] == [IDS[START], *encode("red circle"), IDS[END]]
    assert make_tokenizer(chat=True)("red circle")["input_ids"] == encode("red circle")


def test_the_chat_template_puts_the_image_before_the_question_and_ends_an_answer() -> None:
    tokenizer = make_tokenizer(chat=True)
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is the red circle?"}]}
    asked = tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    assert asked == "<|user|><image>Where is the red circle?<|assistant|>"
    answer = {"role": "assistant", "content": "[0.10, 0.20, 0.30, 0.40]"}
    told = tokenizer.apply_chat_template([user, answer], tokenize=False)
    assert told == asked + "[0.10, 0.20, 0.30, 0.40]<|end|>"
