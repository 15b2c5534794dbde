"""Pairs about pictures of several sizes, in TRL's format, and tiny models whose chat templates know assistants."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value

from spr.config import LoraSection, TrainingConfig, make_config
from spr.config.backends import LOSSES
from spr.pipeline.runner import run as run_pipeline
from spr.training.loss import dpo
from spr.training.pair_model import PairModel

# As published, but with the line break before the next turn: TRL would train on one after the answer's end.
CHAT_ML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{% if part['type'] == 'image' %}"
    "IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>"
    "{{ '\n' if add_generation_prompt or not loop.last }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}USER: {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% else %}"
    "ASSISTANT: {{ m['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
TEMPLATES = {
    "llava": VICUNA,
    "llava_onevision": CHAT_ML.replace("IMAGE", "<image>\n"),
    "qwen2_vl": CHAT_ML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    "qwen2_5_vl": CHAT_ML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    "qwen3_vl": CHAT_ML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    **dict.fromkeys(("internvl", "internvl3_5", "internvl3_5_moe"), CHAT_ML.replace("IMAGE", "<IMG_CONTEXT>\n")),
}
SIZES = [(60, 44), (44, 90), (130, 50), (64, 64), (50, 110), (84, 56)]
ANSWERS = [
    ("a cat [0.10, 0.20, 0.50, 0.60]", "a dog"),
    ("a bird", "a bird [0.1, 0.1, 0.9, 0.9] on a tree"),
    ("two men", "two women"),
    ("a red car [0.25, 0.25, 0.75, 0.80] and a bus", "a car"),
    ("it", "something else entirely"),
    ("a lamp [0.5, 0.5, 0.6, 0.9]", "a lamp [0.1, 0.5, 0.2, 0.9]"),
]


def text(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content, "image": None}]


@pytest.fixture(scope="session")
def pair_rows(picture) -> list[dict]:
    """Six pairs with answers of unequal lengths, about pictures of different sizes."""
    rows = []
    for number, ((width, height), (chosen, rejected)) in enumerate(zip(SIZES, ANSWERS, strict=True)):
        question = f"Describe region {number} and place all that you name" + "." * number
        prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        answers = {
            side: [{"role": "assistant", "content": [{"type": "text", "text": said}]}]
            for side, said in (("chosen", chosen), ("rejected", rejected))
        }
        rows.append({"images": [picture(width, height, tint=40 * number)], "prompt": prompt, **answers})
    return rows


@pytest.fixture(scope="session")
def pairs_folder(pair_rows, tmp_path_factory) -> Path:
    """The pairs as a dataset on disk."""
    part = {"type": Value("string"), "text": Value("string")}
    message = List({"role": Value("string"), "content": List(part)})
    features = Features({"images": List(Image()), "prompt": message, "chosen": message, "rejected": message})
    filled = [
        {
            "images": row["images"],
            **{
                name: [
                    {"role": turn["role"], "content": [{"text": None, **part} for part in turn["content"]]}
                    for turn in row[name]
                ]
                for name in ("prompt", "chosen", "rejected")
            },
        }
        for row in pair_rows
    ]
    folder = tmp_path_factory.mktemp("pairs") / "dataset"
    Dataset.from_list(filled, features=features).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="session")
def trainable_folder(mllm_folder, tmp_path_factory) -> Callable[[str], Path]:
    """A family's ``model_type`` → a tiny model whose chat template writes answers, too."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            folder = tmp_path_factory.mktemp("trainable") / model_type
            shutil.copytree(mllm_folder(model_type), folder)
            if model_type in TEMPLATES:
                (folder / "chat_template.jinja").write_text(TEMPLATES[model_type])
            made[model_type] = folder
        return made[model_type]

    return make


@pytest.fixture
def run_with_pairs(mllm_folder, make_dataset, tmp_path):
    """A training section → a run on a local disk with its pairs, whose descriptions are made up."""

    def make(training: dict) -> Path:
        data = make_dataset(tmp_path / "data", images=4)
        describer = {"backend": "fake", "model": str(mllm_folder("llava_onevision"))}
        fakes = {"scorer": {"backend": "fake"}, "detector": {"backend": "fake"}}
        run_pipeline(make_config(data.config(describer=describer, training=training, **fakes)), tmp_path / "run")
        return tmp_path / "run"

    return make


@pytest.fixture
def settings() -> Callable[..., TrainingConfig]:
    """A small adapter on the CPU; keywords change fields."""

    def make(**changes) -> TrainingConfig:
        lora = LoraSection(r=4, lora_alpha=8)
        return TrainingConfig(**{"device": "cpu", "lora": lora, "learning_rate": 1e-2, "dtype": "float32", **changes})

    return make


@pytest.fixture
def stir() -> Callable[[torch.nn.Module], None]:
    """Sets the adapter's B matrices, so that the model differs from its reference."""

    def change(model: torch.nn.Module) -> None:
        draw = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if "lora_B" in name:
                    parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw))

    return change


class WatchedLoss:
    """DPO, with something that happens before the Nth loss is computed."""

    name = "watched"

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.calls, self.number, self.happens = 0, 0, lambda: None

    def at(self, number: int, happens: Callable[[], object]) -> None:
        self.forget()
        self.number, self.happens = number, happens

    def __call__(self, inputs, settings):
        self.calls += 1
        if self.calls == self.number:
            self.happens()
        return dpo(inputs, settings)


@pytest.fixture(scope="session")
def registered_loss():
    """The loss that `loss_type: watched` names."""
    loss = WatchedLoss()
    LOSSES.register(loss.name, loss)
    yield loss
    LOSSES.unregister(loss.name)


@pytest.fixture
def watched(registered_loss):
    """The loss `watched`, in which nothing happens unless the test says so."""
    registered_loss.forget()
    yield registered_loss
    registered_loss.forget()


@pytest.fixture
def add_loss():
    """Registers a loss for the test, which a config then names."""
    names = []

    def add(name, loss):
        LOSSES.register(name, loss)
        names.append(name)
        return name

    yield add
    for name in names:
        LOSSES.unregister(name)


@pytest.fixture
def forward_passes(monkeypatch):
    """Calls a function before each forward pass over pairs."""

    def before(happens: Callable[[], object]) -> None:
        forward = PairModel.forward

        def watched(self, batch=None, vision=None):
            if batch is not None:
                happens()
            return forward(self, batch, vision)

        monkeypatch.setattr(PairModel, "forward", watched)

    return before
