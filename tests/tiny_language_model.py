"""A byte tokenizer with the special tokens of Qwen2-VL's markup, and a language model of a few thousand weights."""

import pytest

from rl_samples import MARKUP

ENDS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra `models`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `models`")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *MARKUP)
    vocabulary = {token: number for number, token in enumerate([*alphabet, *special])}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.add_special_tokens(list(special))
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, padding_side="left", additional_special_tokens=list(special[1:]), **ENDS
    )
    made.chat_template = CHAT
    return made


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory):
    """The tokenizer and a model, saved as transformers saves them."""
    torch = pytest.importorskip("torch", reason="needs the extra `models`")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny-language-model")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
