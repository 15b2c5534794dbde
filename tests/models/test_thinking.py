"""Models that can reason: what their prompts end with, and what of a generated text is the answer."""

import itertools
import shutil

import pytest

from spr.config import DescriberConfig
from spr.core.errors import ConfigError
from spr.grounding import final_answer
from spr.models.chat import check_thinking, render_answer, render_turn, user_turn
from spr.models.describers.hf import HfDescriber
from spr.models.families import FAMILIES
from spr.models.image_processors import load_processor
from spr.models.loading import ModelError
from spr.models.protocols import Answer

SMALL = {"device": "cpu", "dtype": "float32", "max_new_tokens": 12}
QWEN = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Where?<|im_end|>\n<|im_start|>assistant\n"
GLM = "[gMASK]<sop><|user|>\n<|begin_of_image|><|image|><|end_of_image|>Where?<|assistant|>\n"
NO_GLM = GLM.replace("Where?", "Where?/nothink")
KIMI = (
    "<|im_user|>user<|im_middle|><|media_begin|>image<|media_content|><|media_pad|><|media_end|>\nWhere?<|im_end|>"
    "<|im_assistant|>assistant<|im_middle|>"
)
BLOCK = "<think>\n\n</think>\n\n"
TURNS = {  # family: the turn with reasoning off and on, and what an answer ends with
    "qwen3_5": (QWEN + BLOCK, QWEN + "<think>\n", "<|im_end|>"),
    "qwen3_5_moe": (QWEN + BLOCK, QWEN + "<think>\n", "<|im_end|>"),
    "glm4v": (GLM + "<think></think>\n", GLM, "<|user|>"),
    "glm4v_moe": (NO_GLM + "<think></think>\n", GLM, "<|user|>"),
    "glm46v": (NO_GLM + "<think></think>\n", GLM, "<|user|>"),
    "kimi_k25": (KIMI + "<think></think>", KIMI + "<think>", "<|im_end|>"),
}
# As published for Qwen3-VL's Thinking models: no switch, and always an open block.
ALWAYS_OPEN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# As published for the small models of Qwen3.5: reasoning is off unless it is switched on.
OFF_BY_DEFAULT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is true %}{{ '<think>\n' }}"
    "{% else %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def load(folder, template=None):
    processor = load_processor(folder, folder.name, family=FAMILIES[folder.name])
    processor.chat_template = template or processor.chat_template
    return processor


@pytest.mark.parametrize("family", TURNS)
def test_a_turn_ends_with_an_empty_block_unless_the_model_shall_reason(family, mllm_folder):
    processor, entry = load(mllm_folder(family)), FAMILIES[family]
    off, on, end = TURNS[family]
    assert render_turn(processor, entry, user_turn("Where?")) == off
    assert render_turn(processor, entry, user_turn("Where?"), thinking=True) == on
    assert "".join(render_answer(processor, entry, user_turn("Where?"), "There.")) == "There." + end


@pytest.mark.parametrize("family", TURNS)
def test_a_folder_without_a_template_gets_the_same_turn(family, mllm_folder):
    processor, entry = load(mllm_folder(family)), FAMILIES[family]
    expected = render_turn(processor, entry, user_turn("Where?"))
    processor.chat_template = None
    assert render_turn(processor, entry, user_turn("Where?")) == expected
    assert render_answer(processor, entry, user_turn("Where?"), "There.") == ("", "There.", entry.end_of_turn[0])
    with pytest.raises(ModelError, match="chat template"):
        check_thinking("m", processor, entry)


def test_templates_with_another_default_or_without_a_switch_give_the_same_turns(mllm_folder):
    off, on, _ = TURNS["qwen3_5"]
    for family, template in (("qwen3_5", OFF_BY_DEFAULT), ("qwen3_vl", ALWAYS_OPEN), ("qwen3_vl_moe", ALWAYS_OPEN)):
        processor, entry = load(mllm_folder(family), template), FAMILIES[family]
        assert render_turn(processor, entry, user_turn("Where?")) == off
        assert render_turn(processor, entry, user_turn("Where?"), thinking=True) == on
        assert render_answer(processor, entry, user_turn("Where?"), "There.") == ("", "There.", "<|im_end|>")
        check_thinking("m", processor, entry)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"])
def test_models_that_do_not_reason_get_no_block_and_refuse_to_reason(family, mllm_folder):
    processor, entry = load(mllm_folder(family)), FAMILIES[family]
    # Also if the prompt mentions one.
    assert render_turn(processor, entry, user_turn("<think>")) == QWEN.replace("Where?", "<think>")
    with pytest.raises(ModelError, match=r"can't be told to reason[\s\S]*describer\.thinking=false"):
        check_thinking("m", processor, entry)


@pytest.mark.parametrize(
    ("family", "text", "opened", "answer"),
    [
        ("qwen3_5", "I see a cat [1, 2].\n</think>\n\na cat [3, 4]", True, "a cat [3, 4]"),
        ("qwen3_5", "I see a cat [1, 2]", True, None),
        ("qwen3_5", " a\n\ncat\n", False, " a\n\ncat\n"),
        ("glm4v", "<think>I see.</think><answer>a cat</answer>", False, "a cat"),
        ("glm4v", "<answer>a cat</answer>", False, "a cat"),
        ("glm4v", "<think>I see a cat [1, 2]", False, None),
        ("gemma4", "<|channel>thought\nI see [1, 2].<channel|>a cat", False, "a cat"),
        ("gemma4", "<|channel>thought\nI see [1, 2].", False, None),
        ("gemma4", "a cat", False, "a cat"),
    ],
)
def test_the_answer_is_what_follows_the_reasoning(family, text, opened, answer):
    found = final_answer(FAMILIES[family].thinking.marked(text, opened=opened))
    assert found == (answer, None) if answer is not None else (found.text == "" and found.problem is not None)


def forced(ids):
    """A logits processor that makes the model write these ids."""
    steps = itertools.count()

    def process(_, scores):
        scores[:] = -float("inf")
        scores[:, ids[min(next(steps), len(ids) - 1)]] = 0
        return scores

    return process


def says(model, text, ask, picture, monkeypatch):
    """The answer if the model writes this text."""
    ids, generate = model.processor.tokenizer(text, add_special_tokens=False)["input_ids"], model.model.generate
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "generate", lambda **given: generate(**{**given, "logits_processor": [forced(ids)]}))
        (answer,) = model.describe([ask(picture(60, 60))])
    return answer


def test_a_describer_that_reasons_marks_where_its_answer_begins(mllm_folder, ask, picture, monkeypatch):
    for family, end in (("qwen3_5", "<|im_end|>"), ("glm4v", "<|user|>"), ("glm4v_moe", "<|user|>")):
        model = HfDescriber(mllm_folder(family), **SMALL, thinking=True)
        assert model.render("Where?") == TURNS[family][1]
        start = "" if family == "qwen3_5" else "<think>"  # which Qwen3.5's turn ends with
        whole = says(model, f"{start}hm.</think>\na cup{end}", ask, picture, monkeypatch)
        assert whole == Answer("<think>hm.</think>\na cup", "stop")
        cut = says(model, f"{start}no end", ask, picture, monkeypatch)
        assert cut.text.startswith("<think>no end")
        assert cut.finish_reason == "length"
        assert final_answer(cut.text).problem is not None
    plain = HfDescriber(mllm_folder("qwen3_5"), **SMALL)
    assert says(plain, "a cup<|im_end|>", ask, picture, monkeypatch) == Answer("a cup", "stop")


def test_a_model_that_does_not_reason_is_refused(mllm_folder, tmp_path):
    for family in ("llava", "qwen2_5_vl"):
        with pytest.raises(ModelError, match=r"can't be told to reason[\s\S]*qwen3_5"):
            HfDescriber(mllm_folder(family), **SMALL, thinking=True)
    model = HfDescriber(mllm_folder("llava"), **SMALL)
    section = DescriberConfig(model="m", thinking=True, device="cpu")
    with pytest.raises(ModelError, match="can't be told to reason"):
        HfDescriber.around(model.model, model.processor, section, name="m")
    folder = shutil.copytree(mllm_folder("qwen3_vl"), tmp_path / "qwen3_vl")
    (folder / "chat_template.jinja").write_text(ALWAYS_OPEN)
    assert HfDescriber(folder, **SMALL, thinking=True).render("Where?") == TURNS["qwen3_5"][1]


@pytest.mark.parametrize(
    "fields",
    [
        {"backend": "fake", "thinking": True},
        {"backend": "openai", "model": "m", "base_url": "http://a/v1", "dialect": "qwen3_vl", "thinking": True}
        | {"request_fields": {"chat_template_kwargs": {"enable_thinking": False}}},
    ],
)
def test_contradictory_settings_are_refused(fields):
    with pytest.raises((ConfigError, ValueError), match="thinking"):
        DescriberConfig(**fields)


def test_gemma_4_is_told_to_reason_by_a_system_turn_and_else_answers_after_an_empty_block(mllm_folder):
    folder, entry = mllm_folder("gemma4"), FAMILIES["gemma4"]
    processor = load(folder)
    turn = "<|turn>user\n\n\n<|image|>\n\nWhere?<turn|>\n<|turn>model\n"
    off, on = (render_turn(processor, entry, user_turn("Where?"), thinking=thinking) for thinking in (False, True))
    assert off == "<bos>" + turn + "<|channel>thought\n<channel|>"
    assert on == "<bos><|turn>system\n<|think|>\n<turn|>\n" + turn
    check_thinking("m", processor, entry)
    before, said, after = render_answer(processor, entry, user_turn("Where?"), "There.")
    assert (before, said, after.strip()) == ("", "There.", "<turn|>")
    # E2B's and E4B's templates write no block.
    processor.chat_template = processor.chat_template.replace("<|channel>thought\n<channel|>", "")
    assert render_turn(processor, entry, user_turn("Where?")) == "<bos>" + turn


@pytest.mark.parametrize("thinking", [False, True])
def test_what_gemma_4_writes_before_its_answer_is_not_part_of_it(thinking, mllm_folder):
    # The larger models can write an empty block although they were told not to reason.
    model = HfDescriber(mllm_folder("gemma4"), thinking=thinking, **SMALL)
    for text, answer in (
        ("<|channel>thought\n<channel|>A cup.<turn|>", "A cup."),
        ("<|channel>thought\nIt is a cup.<channel|>A cup.<turn|>", "A cup."),
        ("A cup.<turn|>", "A cup."),
        ("<|channel>thought\nIt is", ""),
    ):
        ids = model.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert final_answer(model.decode(ids)).text == answer
