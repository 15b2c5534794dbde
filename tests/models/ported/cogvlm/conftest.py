"""A tiny CogVLM whose weights depend on a seed and the tensor names; the published code ran on the same weights."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from spr.models.ported.cogvlm.configuration import CogVLMConfig
from spr.models.ported.cogvlm.modeling import CogVLMForCausalLM

SEED = 20251125
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "image_size": 42,
    "patch_size": 14,
    "num_positions": 10,
}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
IMAGE = 11  # tokens of an image: (42 / 14)² = 9 patches, and the begin and end tokens


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal values that depend only on the name."""
    numbers = np.random.default_rng([SEED, zlib.crc32(name.encode())]).standard_normal(shape)
    return torch.from_numpy(numbers.astype(np.float32))


def fill(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        numbers = draw(name, tuple(parameter.shape))
        is_scale = "norm" in name and name.endswith("weight")
        with torch.no_grad():
            parameter.copy_(1 + 0.1 * numbers if is_scale else 0.2 * numbers)


@pytest.fixture
def make_cogvlm() -> Callable[..., CogVLMForCausalLM]:
    def make(attention: str = "sdpa", **changes) -> CogVLMForCausalLM:
        config = CogVLMConfig(vocab_size=24, **SIZES, vision_config=VISION, **changes)
        config._attn_implementation = attention
        model = CogVLMForCausalLM(config).eval()
        fill(model)
        return model

    return make


@pytest.fixture
def cogvlm(make_cogvlm) -> CogVLMForCausalLM:
    return make_cogvlm()


@pytest.fixture(scope="session")
def pixels() -> torch.Tensor:
    return draw("pixels", (2, 3, 42, 42))


@pytest.fixture(scope="session")
def rows() -> Callable[..., dict[str, torch.Tensor]]:
    """``(row, padding before, words)`` for each row → a batch with one image and ``words`` words per row."""
    words = np.random.default_rng([SEED, 1]).integers(3, 24, (2, 24)).tolist()

    def make(*wanted: tuple[int, int, int], image: bool = True) -> dict[str, torch.Tensor]:
        ids, types, mask = [], [], []
        for row, before, count in wanted:
            tokens = IMAGE if image else 0
            ids.append([0] * before + [1] + [0] * tokens + words[row][:count])
            types.append([0] * (before + 1) + [1] * tokens + [0] * count)
            mask.append([0] * before + [1] * (1 + tokens + count))
        named = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        return {name: torch.tensor(numbers) for name, numbers in named.items()}

    return make


@pytest.fixture(scope="session")
def published() -> dict[str, torch.Tensor]:
    """Outputs of the published code: `SEED`, `draw` and `fill` made the weights, `rows` and `pixels` the inputs.

    Its last form, which is CogVLM2's, was run with what CogVLM-17B has otherwise: as many key heads as query heads,
    angles of base 10000, no bias in the visual expert, no convolution behind the vision tower. The rotary kernel and
    xformers' attention were written out in plain torch.
    """
    numbers = json.loads((Path(__file__).parent / "published.json").read_text())
    shapes = numbers.pop("shapes")
    return {name: torch.tensor(flat).view(shapes[name]) for name, flat in numbers.items()}
