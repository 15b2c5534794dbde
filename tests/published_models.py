"""Tiny models of the real classes with the vocabularies and chat templates of published ones, for rehearsals."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from spr.models.custom_models import load_config
from spr.models.families import FAMILIES
from spr.models.image_processors import load_processor
from tiny_mllms import CHAT_ML, MAKERS

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "tokenizers"
needs_vocabularies = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the published vocabularies are not part of the repository"
)
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
INTERNVL_NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
# ChatML with the role of each message; InternVL's puts the image on a line of its own.
CHAT_ML_ROLES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{% if part['type'] == 'image' %}"
    "<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}" + CHAT_ML["answer"] + "{% endif %}"
)
ONLY_BOXES = ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"]


@dataclass(frozen=True)
class Kind:
    """A vocabulary, the special tokens that the model adds to it, and the chat template: a file, a text or none."""

    vocabulary: str
    roles: dict[str, str]
    added: tuple[str, ...] = ()
    template: str | None = None
    named: dict[str, str] | None = None

    def read_template(self) -> str | None:
        if self.template is None or "{" in self.template:
            return self.template
        folder, _, name = self.template.partition("/")
        if folder == "trl":
            return trl_template(name)
        return (PUBLISHED / "templates" / f"{self.template}.jinja").read_text()


def trl_template(name: str) -> str:
    """A publisher's chat template, as TRL ships it."""
    package = find_spec("trl")
    if package is None or package.origin is None:
        pytest.skip("TRL, which ships published chat templates, is not installed")
    path = Path(package.origin).parent / "chat_templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this version of TRL has no template {name}")
    return path.read_text()


KINDS = {
    "llava": Kind("llama2", LLAMA, ("<image>",), "llava_1_5"),
    "ferret": Kind("llama2", LLAMA, ("<region_fea>", "<image>")),
    "cogvlm": Kind("llama2", LLAMA),
    "llava_onevision": Kind("qwen3", QWEN, ("<image>", "<video>"), "llava_onevision"),
    "qwen2_5_vl": Kind("qwen3", QWEN, (), "qwen2_5_vl"),
    "qwen3_vl": Kind("qwen3", QWEN, (), "trl/qwen3_vl"),
    "internvl": Kind("qwen3", QWEN, (*INTERNVL_NAMED.values(), *ONLY_BOXES), CHAT_ML_ROLES, INTERNVL_NAMED),
}
"""By ``model_type``. Qwen's vocabulary already has the tokens of Qwen2-VL to Qwen3-VL."""


def real_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    file = PUBLISHED / kind.vocabulary / "tokenizer.json"
    words = PreTrainedTokenizerFast(tokenizer_file=str(file), extra_special_tokens=kind.named or {}, **kind.roles)
    words.add_special_tokens({"additional_special_tokens": [*kind.added]})
    return words


def make_published(folder: Path, model_type: str) -> None:
    """A tiny model of the family's class, with the published vocabulary, and the folder's files around it."""
    MAKERS[model_type](folder)
    kind = KINDS[model_type]
    words = real_tokenizer(kind)
    config = load_config(str(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder, config=config, dtype=torch.float32)
    model.resize_token_embeddings(len(words), mean_resizing=False)
    old = load_processor(str(folder), model_type, family=FAMILIES[model_type])
    for name in vars(config):
        if isinstance(number := getattr(config, name), int) and name.endswith(("token_id", "token_index")):
            token = old.tokenizer.convert_ids_to_tokens(number)
            if token is not None and token in words.get_vocab():
                setattr(model.config, name, words.convert_tokens_to_ids(token))
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    template = kind.read_template()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory) -> Callable[[str], Path]:
    """A family's ``model_type`` → folder of a tiny model with a published vocabulary, created once."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            folder = tmp_path_factory.mktemp("published") / model_type
            torch.manual_seed(0)
            make_published(folder, model_type)
            made[model_type] = folder
        return made[model_type]

    return make
