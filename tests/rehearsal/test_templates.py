"""Chat templates whose prompt is not the beginning of the whole conversation, above all those that know reasoning.

Small templates behave as published ones do; the published ones themselves, as TRL ships them, are tested beside them.
"""

import dataclasses
from functools import partial

import pytest
from transformers import ProcessorMixin

from published_models import KINDS, needs_vocabularies, real_tokenizer, trl_template
from spr.grounding import get_dialect
from spr.models.chat import RenderedAnswer, render_answer, render_turn, user_turn
from spr.models.dialect_check import check_dialect
from spr.models.families import FAMILIES, Family
from spr.training.encoding import PairEncoder
from spr.training.pairs import TrainingPair
from spr.training.vision_cache import MemoryFeatures
from tiny_mllms import tokenizer

CHAT_ML = Family("chat_ml", "", dialect="qwen3_vl", turn="", end_of_turn=("<|im_end|>",), counts_image_tokens=True)
GLM = dataclasses.replace(CHAT_ML, end_of_turn=("<|user|>",))
GEMMA = dataclasses.replace(CHAT_ML, end_of_turn=("<end_of_turn>",))
GEMMA_4 = dataclasses.replace(CHAT_ML, end_of_turn=("<turn|>",))
EMPTY = "<think>\n\n</think>\n\n"

TEXT = "{{ m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}"
USER = "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n" + TEXT + "<|im_end|>\n{% else %}"
END = "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
SPLIT = (
    "{% set said = " + TEXT[3:-3] + " %}{% set thought = '' %}{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
REASONED = "<|im_start|>assistant\n<think>\n{{ thought }}\n</think>\n\n{{ said }}<|im_end|>\n"
# As Qwen3 and Qwen3.5: the last answer always has a block of reasoning, perhaps an empty one.
HYBRID = USER + SPLIT + REASONED + END + "{% endif %}"
THINKING = USER + SPLIT + REASONED + END + "<think>\n{% endif %}"
NOT_THINKING = USER + SPLIT + REASONED + END + EMPTY + "{% endif %}"
# The prompt asks for no reasoning, and answers inside a conversation have no block (as Gemma 4 for its large models).
STRIPPED = USER + "<|im_start|>assistant\n" + TEXT + "<|im_end|>\n" + END + EMPTY + "{% endif %}"
# As Gemma 3: answers are trimmed.
TRIMMED = USER.replace("<|im_end|>", "<end_of_turn>") + (
    "<|im_start|>assistant\n{{ (" + TEXT[3:-3] + ") | trim }}<end_of_turn>\n" + END + "{% endif %}"
)
# As GLM-4.1V: nothing ends an answer but the start of the next turn.
OPEN = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n" + TEXT + "{% else %}<|assistant|>\n<think></think>\n"
    "" + TEXT + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Processor(ProcessorMixin):
    """A processor of texts, with a chat template."""

    image_token = "<|image_pad|>"  # noqa: S105 (a token of text)

    def __init__(self, words, template):
        self.tokenizer, self.chat_template = words, template

    def apply_chat_template(self, messages, **options):
        return self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **options)

    def _get_num_multimodal_tokens(self, image_sizes):
        return {"num_image_tokens": [1] * len(image_sizes)}


TOY = partial(
    tokenizer,
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|image_pad|>"],
    pad="<|endoftext|>",
)


@pytest.mark.parametrize(
    ("template", "family", "expected"),
    [
        (HYBRID, CHAT_ML, RenderedAnswer(EMPTY, "a bird", "<|im_end|>")),
        (THINKING, CHAT_ML, RenderedAnswer("\n</think>\n\n", "a bird", "<|im_end|>")),
        (NOT_THINKING, CHAT_ML, RenderedAnswer("", "a bird", "<|im_end|>")),
        (STRIPPED, CHAT_ML, RenderedAnswer("", "a bird", "<|im_end|>")),
        (TRIMMED, GEMMA, RenderedAnswer("", "a bird", "<end_of_turn>")),
        (OPEN, GLM, RenderedAnswer("\n<think></think>\n", "a bird", "<|user|>")),
    ],
    ids=["hybrid", "thinking", "not_thinking", "stripped", "trimmed", "open"],
)
def test_an_answer_follows_the_turn_as_generation_gives_it(template, family, expected):
    processor = Processor(TOY(eos="<|endoftext|>"), template)
    assert render_answer(processor, family, user_turn("Where?"), "a bird") == expected


@pytest.mark.parametrize("template", [HYBRID, THINKING], ids=["hybrid", "thinking"])
def test_an_answers_own_reasoning_takes_the_place_of_the_empty_one(template):
    processor = Processor(TOY(eos="<|im_end|>"), template)
    answer = "<think>\nIt flies.\n</think>\n\na bird"
    turn = render_turn(processor, CHAT_ML, user_turn("Where?"))
    rendered = render_answer(processor, CHAT_ML, user_turn("Where?"), answer)
    assert (rendered.before, rendered.end) == ("", "<|im_end|>")
    expected = "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n" + answer
    assert turn + rendered.text == expected


@pytest.mark.parametrize("answer", [" a bird", "a bird \n", "\n", "think", "</think>", "ANSWER", "im_end"])
@pytest.mark.parametrize("template", [HYBRID, THINKING, NOT_THINKING, STRIPPED], ids="htns")
def test_answers_are_written_as_they_are(template, answer):
    # "think" is also a part of the template's own text, before the answer.
    processor = Processor(TOY(eos="<|im_end|>"), template)
    rendered = render_answer(processor, CHAT_ML, user_turn("Where?"), answer)
    assert (rendered.text, rendered.end) == (answer, "<|im_end|>")


def test_a_template_that_trims_does_not_trim_the_answer():
    processor = Processor(TOY(eos="<|im_end|>"), TRIMMED)
    assert render_answer(processor, GEMMA, user_turn("Where?"), " a bird\n") == ("", " a bird\n", "<end_of_turn>")


def test_the_end_that_the_template_writes_is_used_before_the_familys_first():
    # "<|im_end|>" comes first in the entry, but the template ends answers with the other.
    family = dataclasses.replace(CHAT_ML, end_of_turn=("<|im_end|>", "<end_of_turn>"))
    processor = Processor(TOY(eos="<|endoftext|>"), TRIMMED)
    assert render_answer(processor, family, user_turn("Where?"), "a bird").end == "<end_of_turn>"


@pytest.fixture
def plan_pair():
    """A template, a family and the rejected answer → the processor and the pair as it is trained on."""

    def plan(template, family, rejected):
        template = template.replace(TEXT, "<|image_pad|>" + TEXT, 1)
        processor = Processor(TOY(eos="<|endoftext|>"), template)
        encoder = PairEncoder(None, processor, family, MemoryFeatures(), identity="")
        load, digest = (lambda: None), (lambda: "")
        pair = TrainingPair("0", user_turn("Where?"), "a bird", rejected, load, digest, size_wh=(4, 4))
        (one,), _ = encoder.plan([pair], 4096)
        answers = (processor.tokenizer.decode(ids) for ids in (one.chosen, one.rejected))
        return one.turn.removeprefix(render_turn(processor, family, pair.messages)), *answers

    return plan


@pytest.mark.parametrize(
    ("template", "family", "reasoning"),
    [(HYBRID, CHAT_ML, EMPTY), (THINKING, CHAT_ML, "\n</think>\n\n"), (OPEN, GLM, "\n<think></think>\n")],
    ids=["hybrid", "thinking", "open"],
)
def test_the_empty_reasoning_is_part_of_the_prompt_and_not_trained_on(template, family, reasoning, plan_pair):
    (end,) = family.end_of_turn
    assert plan_pair(template, family, "a dog") == (reasoning, f"a bird{end}", f"a dog{end}")


def test_reasoning_in_one_answer_of_a_pair_makes_the_empty_one_a_part_of_the_other(plan_pair):
    # Both answers have the same prompt.
    thought = "<think>\nHm.\n</think>\n\na dog"
    assert plan_pair(HYBRID, CHAT_ML, thought) == ("", f"{EMPTY}a bird<|im_end|>", f"{thought}<|im_end|>")
    own = "Hm.\n</think>\n\na dog"
    assert plan_pair(THINKING, CHAT_ML, thought) == ("", "\n</think>\n\na bird<|im_end|>", f"{own}<|im_end|>")


PUBLISHED_TEMPLATES = {  # of TRL: the family, what comes before the answer, and the end of turn
    "qwen2_5_vl": (FAMILIES["qwen2_5_vl"], "", "<|im_end|>"),
    "qwen3_vl": (FAMILIES["qwen3_vl"], "", "<|im_end|>"),
    "qwen3_5_think": (CHAT_ML, "\n</think>\n\n", "<|im_end|>"),
    "qwen3_5_nothink": (CHAT_ML, "", "<|im_end|>"),
    "glm4moe": (GLM, "\n<think></think>\n", "<|user|>"),
    "gemma3": (GEMMA, "", "<end_of_turn>"),
    "gemma4_v5": (GEMMA_4, "", "<turn|>"),
}


@needs_vocabularies
@pytest.mark.parametrize("name", PUBLISHED_TEMPLATES)
def test_published_templates_give_the_answer_and_its_end(name):
    family, before, end = PUBLISHED_TEMPLATES[name]
    words = real_tokenizer(KINDS["qwen3_vl"])
    words.add_special_tokens({"additional_special_tokens": [end], "bos_token": "<bos>"})
    processor = Processor(words, trl_template(name))
    for answer in ("a bird", " a bird\n", "a cat [[100,150,300,200]]", '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]'):
        assert render_answer(processor, family, user_turn("Where?"), answer) == (before, answer, end)


@needs_vocabularies
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen3_5_think", "qwen3_5_nothink"])
def test_published_templates_keep_boxes(name):
    processor = Processor(real_tokenizer(KINDS["qwen3_vl"]), trl_template(name))
    for dialect in ("qwen2_5_vl", "qwen3_vl", "qwen2_vl"):
        check_dialect(name, processor, CHAT_ML, get_dialect(dialect), trains=True)
