"""With published vocabularies and chat templates: which tokens are trained on, and that generation gives the same."""

import dataclasses
import functools

import pytest
import torch
from transformers import GenerationConfig

from published_models import KINDS, needs_vocabularies
from spr.grounding import get_dialect
from spr.models.chat import render_answer, render_turn, user_turn
from spr.models.continuation import continue_tokens
from spr.models.describers.answer_tokens import AnswerTokens
from spr.models.describers.hf import HfDescriber
from spr.models.families import FAMILIES
from spr.models.image_processors import load_processor
from spr.training.encoding import PairEncoder
from spr.training.pairs import TrainingPair
from spr.training.vision_cache import MemoryFeatures

pytestmark = needs_vocabularies

PROMPTS = ["Where is it?", "Where is it? ", "Describe:\n", "Describe:", "犬", "[0.12, 0.20]", "\n", " lead", "a</s>b"]
ANSWERS = [
    "a bird",
    "[0.12, 0.20, 0.50, 0.60]",
    "a cat [[100,150,300,200]]",
    " a bird",
    "  two spaces",
    "a bird ",
    "a bird\n",
    "<ref>a</ref>",
    "<|box_start|>(1,2),(3,4)<|box_end|>",
    '[{"bbox_2d": [64, 63, 193, 84], "label": "a dog"}]',
    "犬 é 😀",
    "(1)",
    ":",
    "- a list",
    "ASSISTANT: me",
    "<",
]
LINE_BREAKS = ["\na bird", "\n\na bird"]
# Every answer after one prompt, and some answers after every prompt.
COMBINED = [(PROMPTS[0], answer) for answer in ANSWERS]
COMBINED += [(prompt, answer) for prompt in PROMPTS[1:] for answer in ANSWERS[1:5]]
AROUND_IMAGES = {"internvl": ["<img>", "</img>"]}  # written by the processor


@pytest.fixture(scope="module")
def processor_of(published_folder):
    @functools.cache
    def load(model_type):
        return load_processor(str(published_folder(model_type)), model_type, family=FAMILIES[model_type])

    return load


@pytest.fixture(scope="module")
def encoder_of(processor_of):
    def make(model_type, **options):
        processor, family = processor_of(model_type), FAMILIES[model_type]
        return PairEncoder(None, processor, family, MemoryFeatures(), identity="", **options)

    return make


@pytest.fixture
def pair_of(picture):
    def make(chosen, rejected="nothing", prompt="Where is it?"):
        image = picture(90, 60)
        load, digest = (lambda: image), (lambda: "")
        return TrainingPair("0", user_turn(prompt), chosen, rejected, load, digest)

    return make


def ids_of(processor, text):
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def whole_of(processor, prompt, answer):
    reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return processor.apply_chat_template([*user_turn(prompt), reply], tokenize=False)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl", "internvl", "ferret", "cogvlm"])
def test_prompt_and_answer_are_the_whole_conversation_up_to_its_end_of_turn(model_type, processor_of):
    processor, family = processor_of(model_type), FAMILIES[model_type]
    for prompt, answer in COMBINED:
        turn = render_turn(processor, family, user_turn(prompt))
        rendered = "".join(render_answer(processor, family, user_turn(prompt), answer))
        before = ids_of(processor, turn)
        ids = before + continue_tokens(processor.tokenizer, turn, rendered)[0]
        whole = ids_of(processor, whole_of(processor, prompt, answer))
        if whole[: len(before)] != before:  # CogVLM's turn ends with the prompt's own words, here with a space
            assert (model_type, prompt[-1]) == ("cogvlm", " ")
            assert processor.tokenizer.decode(ids) == processor.tokenizer.decode(whole)
            continue
        assert ids == whole[: len(ids)], (prompt, answer)
        # Only what the template writes after the end of turn is left out.
        assert processor.tokenizer.decode(whole[len(ids) :]).strip() == ""
        assert ids[-1] == processor.tokenizer.eos_token_id


def test_llava_answers_end_with_the_end_of_text_where_the_template_writes_a_space(processor_of):
    # LLaVA-1.5 was trained with </s> after each answer; the template of the converted checkpoints has a space there.
    processor, family = processor_of("llava"), FAMILIES["llava"]
    for prompt, answer in [*COMBINED, *((PROMPTS[0], answer) for answer in LINE_BREAKS)]:
        turn = render_turn(processor, family, user_turn(prompt))
        rendered = render_answer(processor, family, user_turn(prompt), answer)
        assert rendered == (" ", answer, "</s>")
        assert turn + " " + answer + " " == whole_of(processor, prompt, answer)
        ids = continue_tokens(processor.tokenizer, turn, "".join(rendered))[0]
        expected = ids_of(processor, turn + " " + answer)
        assert ids_of(processor, turn) + ids == [*expected, processor.tokenizer.eos_token_id]


def test_llava_onevision_answers_follow_the_prompt_of_generation(processor_of):
    # A whole conversation has "assistant \n", of which " \n" is one token; generation starts with "assistant\n".
    processor, family = processor_of("llava_onevision"), FAMILIES["llava_onevision"]
    for prompt, answer in COMBINED:
        turn = render_turn(processor, family, user_turn(prompt))
        assert turn.endswith("<|im_start|>assistant\n")
        rendered = "".join(render_answer(processor, family, user_turn(prompt), answer))
        ids = ids_of(processor, turn) + continue_tokens(processor.tokenizer, turn, rendered)[0]
        written = whole_of(processor, prompt, answer).replace("assistant \n", "assistant\n")
        assert ids == ids_of(processor, written), (prompt, answer)


@pytest.mark.parametrize("model_type", ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_a_line_break_that_would_merge_with_the_prompts_keeps_its_own_token(model_type, processor_of):
    # Tokenized as a whole, "assistant\n" and "\na bird" have the token "\n\n", which no generation from the prompt has.
    processor, family = processor_of(model_type), FAMILIES[model_type]
    turn = render_turn(processor, family, user_turn("Where is it?"))
    answers = dict(zip(LINE_BREAKS, (["Ċ", "a", "Ġbird"], ["ĊĊ", "a", "Ġbird"]), strict=True))
    for answer, tokens in answers.items():
        rendered = "".join(render_answer(processor, family, user_turn("Where is it?"), answer))
        ids, places = continue_tokens(processor.tokenizer, turn, rendered, offsets=True)
        assert processor.tokenizer.convert_ids_to_tokens(ids) == [*tokens, "<|im_end|>"]
        assert [rendered[begin:end] for begin, end in places] == [
            *(token.replace("Ċ", "\n").replace("Ġ", " ") for token in tokens),
            "<|im_end|>",
        ]
        whole = ids_of(processor, turn + rendered)
        assert whole[: len(ids_of(processor, turn))] != ids_of(processor, turn)


def test_a_merge_across_the_border_does_not_add_the_space_that_llama_puts_before_a_text(processor_of):
    tokenizer = processor_of("llava").tokenizer
    ids, places = continue_tokens(tokenizer, "USER: x ASSISTANT:", ": a bird</s>", offsets=True)
    assert tokenizer.convert_ids_to_tokens(ids) == [":", "▁a", "▁bird", "</s>"]
    assert places[0] == (0, 1)
    whole = tokenizer("USER: x ASSISTANT:: a bird</s>", add_special_tokens=False)["input_ids"]
    assert "::" in tokenizer.convert_ids_to_tokens(whole)


@pytest.mark.parametrize("model_type", KINDS)
def test_decoding_an_answers_tokens_gives_the_answer(model_type, processor_of):
    processor, family = processor_of(model_type), FAMILIES[model_type]
    reader = AnswerTokens.of(processor.tokenizer, family, get_dialect(family.dialect), GenerationConfig())
    for prompt, answer in [*COMBINED, *((PROMPTS[0], answer) for answer in LINE_BREAKS)]:
        turn = render_turn(processor, family, user_turn(prompt))
        rendered = "".join(render_answer(processor, family, user_turn(prompt), answer))
        ids, _ = continue_tokens(processor.tokenizer, turn, rendered)
        assert reader.decode(ids) == answer, prompt


@pytest.mark.parametrize("model_type", KINDS)
def test_generation_of_the_trained_tokens_stops_at_the_end_of_turn(
    model_type, published_folder, encoder_of, pair_of, ask, picture
):
    answer = "a bird [0.12, 0.20, 0.50, 0.60]"
    (one,), dropped = encoder_of(model_type).plan([pair_of(answer)], 4096)
    assert not dropped
    describer = HfDescriber(published_folder(model_type), device="cpu", dtype="float32", max_new_tokens=60)
    tokens = one.chosen.tolist()
    assert tokens[-1] in describer._ends
    assert not describer._ends & set(tokens[:-1])
    step = 0

    def force(_module, _args, logits):
        nonlocal step
        logits[:, -1] = -1000.0
        logits[:, -1, tokens[step] if step < len(tokens) else 0] = 0.0
        step += 1
        return logits

    handle = describer.model.get_output_embeddings().register_forward_hook(force)
    describer.temperature = 0
    (found,) = describer.describe([ask(picture(90, 60), "Where is it?")])
    handle.remove()
    assert step == len(tokens)
    assert (found.text, found.finish_reason) == (answer, "stop")


@pytest.mark.parametrize("model_type", KINDS)
def test_prompts_are_counted_as_the_processor_encodes_them(model_type, encoder_of, pair_of):
    encoder = encoder_of(model_type)
    processor = encoder.processor
    encoder.model = torch.nn.Module()
    encoder._positions = lambda prompt, _vision: torch.zeros(1, len(prompt))
    planned, dropped = encoder.plan([pair_of("a bird", prompt=prompt) for prompt in PROMPTS], 4096)
    assert not dropped
    for one in planned:
        prompt = encoder.process(one).prompt.tolist()  # raises if the counts differ
        image = encoder._image_token
        first = prompt.index(image)
        around = set(processor.tokenizer.convert_tokens_to_ids(AROUND_IMAGES.get(model_type, [])))
        text = [token for k, token in enumerate(prompt) if (token != image or k == first) and token not in around]
        bos = [processor.tokenizer.bos_token_id] if processor.tokenizer.bos_token else []
        assert text == bos + ids_of(processor, one.turn)


@pytest.mark.parametrize(("model_type", "end"), [("llava", "</s>"), ("qwen2_5_vl", "<|im_end|>")])
def test_an_answer_that_contains_the_end_of_turn_is_dropped(model_type, end, encoder_of, pair_of):
    pairs = [pair_of(f"a{end} bird"), pair_of("a bird", end), pair_of("a bird")]
    pairs = [dataclasses.replace(pair, pair_id=str(number)) for number, pair in enumerate(pairs)]
    planned, dropped = encoder_of(model_type).plan(pairs, 4096)
    assert dropped == [("0", "answer_has_end_of_turn"), ("1", "answer_has_end_of_turn")]
    assert [one.pair.pair_id for one in planned] == ["2"]


@pytest.mark.parametrize("model_type", KINDS)
def test_an_answer_that_was_cut_gets_no_end(model_type, encoder_of, pair_of):
    cut = dataclasses.replace(pair_of("a bird [0.1"), chosen_complete=False)
    (one,), _ = encoder_of(model_type).plan([cut], 4096)
    (whole,), _ = encoder_of(model_type).plan([pair_of("a bird [0.1")], 4096)
    assert one.chosen.tolist() == whole.chosen.tolist()[:-1]
    assert one.rejected.tolist() == whole.rejected.tolist()


@pytest.mark.parametrize("model_type", KINDS)
def test_box_weights_cover_the_numbers_of_the_changed_box(model_type, encoder_of, pair_of, processor_of):
    dialect = get_dialect("llava")
    encoder = encoder_of(model_type, box_weight=3.0, dialect=dialect)
    changed = pair_of("a cat [0.10, 0.20, 0.50, 0.60] on a mat", "a cat [0.10, 0.20, 0.50, 0.61] on a mat")
    (one,), _ = encoder.plan([changed], 4096)
    tokens = processor_of(model_type).tokenizer.convert_ids_to_tokens(one.chosen[one.chosen_weights == 3.0])
    # One token per digit in both vocabularies; Llama's space is a token of its own, Qwen's too.
    assert "".join(token.strip("▁Ġ") for token in tokens) == "0.100.200.500.60"
