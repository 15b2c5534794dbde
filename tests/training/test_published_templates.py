"""Which tokens are trained on, with published tokenizers and chat templates: in SPR, and in TRL 1.16.

SPR's tokens are those that generation gives: they follow the generation prompt and end the turn. TRL trains on what
follows the common beginning of the generation prompt and of the whole conversation, and adds no end token.
"""

import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from spr.models.families import FAMILIES
from spr.models.image_processors import load_processor
from spr.training.encoding import PairEncoder
from spr.training.pairs import trl_pairs
from spr.training.vision_cache import MemoryFeatures

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
TOKENIZERS = {
    "llava": ("llama2", LLAMA, ["<image>"]),
    "llava_onevision": ("qwen3", QWEN, ["<image>", "<video>"]),
    "qwen2_5_vl": ("qwen3", QWEN, []),
}
# Templates of Video-LLaVA and of LLaVA-NeXT on Mistral, on one user turn and its answer.
VIDEO_LLAVA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:\n' }}{% endif %}"
)
LLAVA_NEXT_MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ ' [/INST]' }}{% else %}{{ ' ' + m['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}"
)
CASES = {  # family, template, SPR's tokens of the answer "a bird", and TRL's
    "llava_1_5": ("llava", None, "▁a ▁bird </s>", "▁ ▁a ▁bird ▁"),
    "video_llava": ("llava", VIDEO_LLAVA, "a ▁bird </s>", "▁▁ <0x0A> a ▁bird"),
    "llava_next_mistral": ("llava", LLAVA_NEXT_MISTRAL, "▁a ▁bird </s>", "▁ ▁a ▁bird </s> ▁▁"),
    "llava_onevision": ("llava_onevision", None, "a Ġbird <|im_end|>", "ĠĊ a Ġbird <|im_end|>"),
    "qwen2_5_vl": ("qwen2_5_vl", None, "a Ġbird <|im_end|>", "a Ġbird <|im_end|> Ċ"),
}


@pytest.fixture(scope="module")
def processor_of(mllm_folder, tmp_path_factory):
    """The name of a case → its processor, with the published tokenizer and template."""

    def make(name):
        if not PUBLISHED.is_dir():
            pytest.skip("the published tokenizers are not part of the repository")
        model_type, template, *_ = CASES[name]
        vocabulary, roles, added = TOKENIZERS[model_type]
        folder = tmp_path_factory.mktemp("published") / name
        shutil.copytree(mllm_folder(model_type), folder, ignore=shutil.ignore_patterns("*.safetensors"))
        words = PreTrainedTokenizerFast(tokenizer_file=str(PUBLISHED / vocabulary / "tokenizer.json"), **roles)
        words.add_special_tokens({"additional_special_tokens": added})
        words.save_pretrained(folder)
        template = template or (PUBLISHED / "templates" / f"{name}.jinja").read_text()
        (folder / "chat_template.jinja").write_text(template)
        return load_processor(str(folder), model_type, family=FAMILIES[model_type])

    return make


@pytest.mark.parametrize("name", CASES)
def test_the_trained_tokens_are_those_that_generation_gives(name, processor_of, pairs_folder):
    model_type, _, ours, _ = CASES[name]
    processor = processor_of(name)
    encoder = PairEncoder(None, processor, FAMILIES[model_type], MemoryFeatures(), identity="")
    (one,), _ = encoder.plan(list(trl_pairs(pairs_folder))[1:2], 4096)
    assert processor.tokenizer.convert_ids_to_tokens(one.chosen) == ours.split()
    prompt = processor.apply_chat_template(one.pair.messages, add_generation_prompt=True, tokenize=False)
    assert one.turn == prompt
    # Generation continues the tokens of the prompt; the end of the turn stops it.
    assert one.chosen.tolist().index(processor.tokenizer.eos_token_id) == len(one.chosen) - 1


@pytest.mark.parametrize("name", CASES)
def test_trl_trains_on_what_follows_the_common_beginning(name, processor_of, pair_rows):
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    processor = processor_of(name)
    batch = DataCollatorForVisionPreference(processor)([dict(pair_rows[1])])
    ids = batch["input_ids"][0][batch["completion_mask"][0].bool()]
    assert processor.tokenizer.convert_ids_to_tokens(ids) == CASES[name][3].split()
