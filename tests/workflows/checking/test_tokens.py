"""Tokens of rows, with the embedded describer's tokenizer and with real ones; transformers is the oracle of counts."""

import functools
import json
import shutil
from pathlib import Path

import pytest

from published_models import PUBLISHED
from spr.core.errors import ConfigError, InputError
from spr.grounding import get_dialect
from spr.grounding.geometry import Resized
from spr.models.families import FAMILIES
from spr.models.loading import model_source
from spr.workflows.checking import tokens as checked
from spr.workflows.checking.conversation import Conversation, conversation_of, without_images
from spr.workflows.checking.image_tokens import ImageTokens
from spr.workflows.checking.rows import Batch, DataRow
from spr.workflows.checking.tokens import TokenChecks, open_token_checks, split_tokens

LOAD = functools.cache(checked.load_tokenizer)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(checked, "load_tokenizer", LOAD)


@pytest.fixture(scope="module")
def qwen3():
    folder = PUBLISHED / "qwen3"
    if not folder.is_dir():
        pytest.skip(f"the real tokenizers are not at {PUBLISHED}")
    return folder


@pytest.fixture(scope="module")
def describer():
    return Path(model_source("embedded/describer"))


@functools.cache
def of_transformers(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def row(number, prompt="Where is the dog?", answer="a dog", image="a.jpg", size=(640, 480)):
    return DataRow(number, f"d.jsonl, line {number}", image, size, prompt, answer, (), ())


def check(folder, rows, **options):
    checks = open_token_checks(tokenizer=folder, folder=folder, **options)
    checks.add(Batch(rows))
    return checks


def kinds(checks):
    return {finding.kind: finding for finding in checks.findings()}


def length(folder, answer, prompt="Where is the dog?", *, image=True):
    """Tokens of a conversation by transformers."""
    tokenizer = of_transformers(folder)
    parts = [{"type": "image"}, {"type": "text", "text": prompt}], [{"type": "text", "text": answer}]
    question, reply = parts if image else (prompt, answer)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return len(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])


def test_rows_one_token_over_the_limit_are_cut_and_rows_at_the_limit_are_not(describer):
    answer = "a red dog [0.10, 0.20, 0.30, 0.40]"
    exact = length(describer, answer)
    assert kinds(check(describer, [row(1, answer=answer)], max_length=exact)) == {}
    found = kinds(check(describer, [row(1, answer="a"), row(2, answer=answer)], max_length=exact - 1))
    assert list(found) == ["answer_cut"]
    cut = found["answer_cut"]
    assert (cut.count, cut.of, cut.things) == (1, 2, "rows")
    assert cut.places[0].startswith(f"d.jsonl, line 2: {exact} tokens: image 0, prompt ")
    assert f"the limit of {exact - 1} tokens (max_length)" in cut.message


def test_counts_of_a_real_tokenizer_are_those_of_transformers(qwen3):
    answer = '[{"bbox_2d": [100, 150, 300, 200], "label": "ein Hund, größer"}] ' * 3
    for prompt in ("Where is the dog?", "  Wo? \n", "犬はどこ"):
        exact = length(qwen3, answer, prompt, image=False)
        assert kinds(check(qwen3, [row(1, prompt, answer)], max_length=exact)) == {}
        assert set(kinds(check(qwen3, [row(1, prompt, answer)], max_length=exact - 1))) == {"answer_cut"}


def test_an_answer_of_which_nothing_is_left_is_told_from_one_that_is_cut(describer):
    long = "the dog and the cat and the bird " * 10
    prompt = length(describer, "", long)
    found = kinds(check(describer, [row(1, long, "a dog"), row(2, "a", "a dog " * 60)], max_length=prompt - 3))
    assert {kind: one.places[0].partition(":")[0] for kind, one in found.items()} == {
        "answer_lost": "d.jsonl, line 1",
        "answer_cut": "d.jsonl, line 2",
    }


def test_image_tokens_count_and_alone_can_exceed_the_limit(tmp_path, qwen3):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(qwen3 / name, tmp_path / name)
    shutil.copy(PUBLISHED / "templates" / "qwen2_5_vl.jinja", tmp_path / "chat_template.jinja")
    settings = {"min_pixels": 3136, "max_pixels": 1003520, "patch_size": 14, "merge_size": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    family, dialect = FAMILIES["qwen2_5_vl"], get_dialect("qwen2_5_vl")
    options = {"family": family, "dialect": dialect}
    # 1920 × 1080 becomes 1316 × 728: 47 · 26 squares of 28 px, instead of the one placeholder.
    texts = length(tmp_path, "a dog")
    exact = texts - 1 + 47 * 26
    rows = [row(1, size=(1920, 1080))]
    assert kinds(check(tmp_path, rows, max_length=exact, **options)) == {}
    found = kinds(check(tmp_path, rows, max_length=exact - 1, **options))
    answer = len(checked.load_tokenizer(tmp_path / "tokenizer.json").encode("a dog<|im_end|>\n").ids)
    assert found["answer_cut"].places == (
        f"d.jsonl, line 1: {exact:,} tokens: image 1,222, prompt {exact - 1222 - answer}, answer {answer}",
    )
    assert set(kinds(check(tmp_path, rows, max_length=1000, **options))) == {"image_too_long"}
    # The trainer's setting instead of the processor's: 1920 × 1080 becomes 588 × 336: 21 · 12 squares.
    assert kinds(check(tmp_path, rows, max_length=texts - 1 + 252, max_pixels=200704, **options)) == {}
    two = [row(1, "<image>\n<image>\nWhich differs?", size=(1920, 1080))]
    found = kinds(check(tmp_path, two, max_length=2 * 1222, **options))
    assert "image 2,444" in found["answer_lost"].places[0]


def test_the_models_context_is_a_limit(describer):
    checks = check(describer, [row(1, answer="a dog " * 600)], max_length=5000)
    assert checks.context == 1024
    assert "the limit of 1,024 tokens (the model's context)" in kinds(checks)["answer_cut"].message
    assert "max_length 5,000 is above the model's context of 1,024 tokens." in checks.notes()
    assert "image processor is not known" in " ".join(checks.notes())


def test_markup_that_is_several_tokens_is_named_with_its_pieces(qwen3):
    checks = check(qwen3, [row(1, answer="<ref>a dog</ref><box>[[1, 2, 3, 4]]</box>")], dialect=get_dialect("internvl"))
    split = kinds(checks)["markup_split"]
    assert (split.count, split.of, split.things) == (4, 4, "tokens")
    assert split.places[0] == "`<ref>` → `<` `ref` `>`"
    assert "markup_split" not in kinds(check(qwen3, [], dialect=get_dialect("qwen2_vl")))
    # MiniCPM-V 4 writes its markup as text: nothing is split that the publisher's vocabulary has.
    family = FAMILIES["minicpmv4_6"]
    assert not family.markup_tokens
    assert kinds(check(qwen3, [], dialect=get_dialect(family.dialect), family=family)) == {}


def test_tokens_of_the_data_are_tested_beside_those_of_the_samples(qwen3):
    rows = [row(k, answer=f"<loc{k:04d}><loc0000><loc0010><loc0020> dog") for k in range(700, 720)]
    split = kinds(check(qwen3, rows, dialect=get_dialect("paligemma")))["markup_split"]
    assert split.count == split.of > 20


def test_a_tokenizer_that_changes_the_dialect_is_reported(tmp_path, qwen3):
    from tokenizers import Tokenizer, normalizers

    tokenizer = Tokenizer.from_file(str(qwen3 / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    changed = kinds(check(tmp_path, [], dialect=get_dialect("ferret")))["text_changed"]
    assert changed.count == 1
    assert "a dog [0, 0" in changed.places[0]


def test_rows_that_cannot_be_too_long_are_not_encoded(describer, monkeypatch):
    monkeypatch.setattr(checked, "MEASURED", 2)
    checks = open_token_checks(tokenizer=describer, folder=describer, max_length=100)
    encoded = []
    real = checks.tokenizer

    class Watched:
        def encode_batch_fast(self, texts, **options):
            encoded.extend(texts)
            return real.encode_batch_fast(texts, **options)

        def __getattr__(self, name):
            return getattr(real, name)

    checks.tokenizer = Watched()
    checks.add(Batch([row(k, answer="a dog") for k in range(1, 6)]))
    checks.add(
        Batch([row(6, answer="a dog " * 50), row(7, answer="犬" * 12), DataRow(8, "p", "a", None, "", "", (), ())])
    )
    assert len(encoded) == 4  # the first two, the long one, and the one beyond ASCII
    assert {kind: one.count for kind, one in kinds(checks).items()} == {"answer_cut": 1}
    assert [one.number for one in checks.examples()] == [6]
    assert "Tokens per row of the first 2 rows:" in checks.notes()[-1]


def test_without_a_tokenizer_there_is_no_check_unless_one_was_asked_for(tmp_path):
    assert open_token_checks(tokenizer=None, model="no/such-model") is None
    assert open_token_checks(tokenizer=None) is None
    with pytest.raises(ConfigError, match="--max-length needs a tokenizer"):
        open_token_checks(tokenizer=None, max_length=10)
    with pytest.raises(InputError, match="no tokenizer on this machine"):
        open_token_checks(tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="can't be read"):
        open_token_checks(tokenizer=tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava_1_5", ("USER: <image>\n", " ASSISTANT: ", " ")),
        ("llava_onevision", ("<|im_start|>user <image>\n", "<|im_end|><|im_start|>assistant \n", "<|im_end|>")),
    ],
)
def test_published_templates_are_rendered_without_a_processor(tmp_path, name, expected):
    template = PUBLISHED / "templates" / f"{name}.jinja"
    if not template.is_file():
        pytest.skip(f"the real templates are not at {PUBLISHED}")
    shutil.copy(template, tmp_path / "chat_template.jinja")
    found = conversation_of(tmp_path, None)
    assert (found.start, found.middle, found.end) == expected
    assert "<image>" in found.image


def test_templates_are_found_in_each_place_and_broken_ones_are_passed_over(tmp_path):
    assert conversation_of(tmp_path, None) == Conversation()
    text_only = "{% for m in messages %}[{{ m.role }}]{{ m.content + eos_token }}{% endfor %}"
    config = {"chat_template": text_only, "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert conversation_of(tmp_path, None).text("q", "a") == "[user]q</s>[assistant]a</s>"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": text_only}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert conversation_of(tmp_path, None).text("q", "a") == "[user]q</s>[assistant]a</s>"
    for broken in ("{{ raise_exception('no') }}", "{% if %}", "{{ messages[7].content }}", "hello"):
        (tmp_path / "chat_template.jinja").write_text(broken)
        assert conversation_of(tmp_path, None) == Conversation()
        assert conversation_of(tmp_path, FAMILIES["llava"]).start == "USER: <image>\n"


def test_placeholders_of_images_are_removed_from_prompts_and_counted():
    assert without_images("What is <b>this</b>?") == ("What is <b>this</b>?", 0)
    assert without_images("Picture 1: <img>a b.jpg</img>\nWhere?") == ("Picture 1: \nWhere?", 1)
    assert without_images("<|vision_start|><|image_pad|><|vision_end|>Where?") == ("Where?", 1)
    assert without_images("<image><image>\n Which?") == ("Which?", 2)


def test_image_tokens_follow_the_processor_or_the_dialect(tmp_path):
    assert ImageTokens.of_resize(Resized()).number((640, 480)) == 23 * 17
    assert ImageTokens.of_model(tmp_path, None, None) is None
    by_dialect = ImageTokens.of_model(tmp_path, None, get_dialect("qwen2_5_vl"), max_pixels=28 * 28 * 16)
    assert by_dialect.number((1000, 1000)) == 16
    size = {"shortest_edge": 65536, "longest_edge": 16777216}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": size, "patch_size": 16, "merge_size": 2}))
    by_processor = ImageTokens.of_model(tmp_path, FAMILIES["qwen3_vl"], get_dialect("qwen3_vl"))
    assert by_processor.number((640, 480)) == 20 * 15
    assert (by_processor.number(None), by_processor.unknown) == (0, 1)


def test_the_models_own_processor_counts_where_images_are_not_resized_as_by_qwen(mllm_folder):
    folder = mllm_folder("llava")
    counter = ImageTokens.of_model(folder, FAMILIES["llava"], get_dialect("llava"))
    from spr.models.image_processors import count_image_tokens, load_processor

    processor = load_processor(str(folder), "llava", family=FAMILIES["llava"])
    assert counter.number((640, 480)) == count_image_tokens(processor, FAMILIES["llava"], [(480, 640)])[0] > 0


def test_split_tokens_are_those_of_more_than_one_id(qwen3):
    tokenizer = checked.load_tokenizer(qwen3 / "tokenizer.json")
    assert split_tokens(tokenizer, ["<|box_start|>", "<box>"]) == {"<box>": ["<", "box", ">"]}
    assert TokenChecks(tokenizer).limit is None
