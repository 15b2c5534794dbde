"""In float64, every family's describer gives the answers of transformers' own `generate` for the same seeds.

Tiny models of the real classes. Their logits are rescaled so that answers differ by seed, and end at different steps.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import pytest
import torch
from PIL import Image

from generate_reference import Reference
from spr.config import DescriberConfig
from spr.embedded.scenes import make_scene
from spr.models.describers.hf import HfDescriber
from spr.models.describers.shared_prompts import sharing_configs
from spr.models.questions import EMBEDDED_PROMPT
from tiny_mllms import all_makers

NEW_TOKENS, BATCH = 12, 4
SETTINGS = {
    "nucleus": {"temperature": 1.0, "top_p": 0.95},
    "all tokens": {"temperature": 0.7, "top_p": 1.0},
    "greedy": {"temperature": 0.0, "top_p": 1.0},
}
RISE = {"nucleus": 2.3, "all tokens": 2.0, "greedy": 1.3}  # of the logits of ends
PROMPTS = ["Where is it?", "Where is he?", "What is in the picture, and where is all that?", "a"]
TASKS = ["<OD>", "<OCR>", "<REGION_TO_DESCRIPTION><loc_1><loc_2>", "<CAPTION>"]
MODELS = tuple(all_makers())
FEW = ("llava_onevision", "qwen2_5_vl", "gemma3", "qwen3_5")  # of different attention and positions
USES_GENERATE = frozenset({"florence2"})
"""Models whose answers come from `generate`, because the describer's own loop can't run them."""


class VaryEnds:
    """Rescales logits to one spread, and raises those of the ends, so that about one step in ten ends an answer."""

    def __init__(self, vocabulary, ends):
        self.ids = torch.tensor([token for token in sorted(ends) if token < vocabulary])
        self.rise = RISE["nucleus"]
        self._larger = math.log(vocabulary / 112 / len(self.ids))

    def __call__(self, _module, _inputs, logits):
        scaled = 1.5 * (logits - logits.mean(-1, keepdim=True)) / logits.std(-1, keepdim=True)
        return scaled.index_copy(-1, self.ids, scaled[..., self.ids] + self.rise + self._larger)

    def __deepcopy__(self, memo):
        return self  # the copied model follows


@contextmanager
def wide_masks(model_type) -> Iterator[None]:
    """Kosmos-2 makes its mask in the default dtype, which must hold the lowest number of float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if model_type == "kosmos-2" else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass
class Case:
    """A describer in float64, requests to it, and their reference answers by setting."""

    describer: HfDescriber
    ends: VaryEnds
    requests: list
    _known: dict = field(default_factory=dict)

    def expected(self, setting):
        """The reference answer of each request, with its number of tokens."""
        self.ends.rise = RISE[setting]
        if setting not in self._known:
            reference = Reference.of(self.describer, NEW_TOKENS)
            with wide_masks(self.describer.name):
                self._known[setting] = reference.answers(self.requests, **SETTINGS[setting])
        return self._known[setting]

    def check(self, setting, order, batch_size):
        """Assert that these requests, in this order and with this batch size, get their reference answers."""
        expected = self.expected(setting)
        describer = self.describer.with_sampling(**SETTINGS[setting], batch_size=batch_size)
        with wide_masks(self.describer.name):
            answers = describer.describe([self.requests[k] for k in order])
        assert answers == [expected[k][0] for k in order]


@pytest.fixture(scope="module")
def case(mllm_folder, ask, picture):
    """The name of a tiny model → its case, made once."""
    made = {}

    def make(name):
        if name not in made:
            loaded = HfDescriber(mllm_folder(name), device="cpu", dtype="float32")
            loaded.model.set_experts_implementation("eager")  # the default has no kernel for float64
            head = loaded.model.get_output_embeddings()
            ends = VaryEnds(head.weight.shape[0], loaded._ends)
            head.register_forward_hook(ends)
            section = DescriberConfig(model=name, max_new_tokens=NEW_TOKENS, batch_size=BATCH)
            describer = HfDescriber.around(loaded.model.double(), loaded.processor, section, name=name)
            describer._trained = False  # as one that was loaded
            prompts = TASKS if describer.family.prompt_pattern else PROMPTS
            made[name] = Case(describer, ends, mixed(ask, picture, prompts))
        return made[name]

    return make


def mixed(ask, picture, prompts):
    """Fourteen requests: six samples of one prompt, other prompts of its image, other images; in mixed order."""
    first, second, other = picture(100, 80), picture(100, 80, 200), picture(60, 130, 90)
    asked = [(first, 0, seed) for seed in range(6)]
    asked += [(first, 1, 0), (first, 1, 7), (first, 2, 16)]
    asked += [(second, 0, 0), (second, 0, 2**63 - 1), (other, 2, 25), (other, 2, 8), (other, 3, 34)]
    random.Random(0).shuffle(asked)
    return [ask(image, prompts[k], seed) for image, k, seed in asked]


def check_varied(one, setting):
    """Assert that answers differ by seed and prompt, and that some end early and others at the limit."""
    answers = one.expected(setting)
    assert len({answer.text for answer, _ in answers}) >= (2 if setting == "greedy" else 8)
    if setting == "greedy":
        return
    assert len({length for _, length in answers}) >= 3
    assert {answer.finish_reason for answer, _ in answers} == {"stop", "length"}
    samples = [
        answer.text for (answer, _), request in zip(answers, one.requests, strict=True) if request.seed in range(6)
    ]
    assert len(set(samples)) >= 3


SLOW = pytest.mark.slow
IN_ALL_SETTINGS = [
    pytest.param(name, setting, marks=() if setting == "nucleus" else SLOW) for setting in SETTINGS for name in MODELS
]


@pytest.mark.parametrize(("name", "setting"), IN_ALL_SETTINGS)
def test_answers_are_those_of_generate(name, setting, case):
    one = case(name)
    check_varied(one, setting)
    with patch.object(one.describer.model, "generate", wraps=one.describer.model.generate) as generate:
        one.check(setting, range(len(one.requests)), BATCH)
    # The describer's own loop also begins in `generate`, which prepares its inputs, but takes its own steps.
    whole = [call for call in generate.call_args_list if "custom_generate" not in call.kwargs]
    assert bool(whole) == (name in USES_GENERATE)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else SLOW) for name in MODELS])
def test_the_other_requests_and_their_order_change_no_answer(name, case):
    one = case(name)
    count = len(one.requests)
    mixed_again = random.Random(1).sample(range(count), count)
    for order, batch_size in ((range(count)[::-1], 3), (mixed_again, 16), (mixed_again[:5], 2), ([count - 1], BATCH)):
        one.check("nucleus", order, batch_size)
    one.check("nucleus", [0] * 5, 2)  # the same request several times


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else SLOW) for name in MODELS])
def test_prompts_that_are_kept_once_for_their_samples_change_no_answer(name, case, monkeypatch):
    monkeypatch.setattr("spr.models.describers.rows.LEAST_SAVED", 0)  # tiny models save too little
    one = case(name)
    for setting, batch_size in (("nucleus", BATCH), ("greedy", 16)):
        one.check(setting, range(len(one.requests)), batch_size)


@pytest.mark.parametrize(("dtype", "shared"), [("float32", True), ("bfloat16", False)])
def test_prompts_are_kept_once_only_where_sums_are_exact_enough(dtype, shared, ask, picture, monkeypatch):
    monkeypatch.setattr("spr.models.describers.rows.LEAST_SAVED", 0)
    found = []
    monkeypatch.setattr(
        "spr.models.describers.rows.sharing_configs", lambda *given: found.append(sharing_configs(*given)) or found[-1]
    )
    describer = HfDescriber("embedded/describer", device="cpu", dtype=dtype, max_new_tokens=4)
    image = picture(100, 80)
    describer.describe([ask(image, "Describe the image and locate its objects.", seed) for seed in range(3)])
    assert [configs is not None for configs in found] == [shared]


@pytest.mark.parametrize("name", FEW)
def test_samples_of_one_prompt_read_it_once(name, case, ask, picture):
    one, image, read = case(name), picture(100, 80), []
    describer, requests = one.describer, [ask(image, PROMPTS[0], seed) for seed in range(6)]
    one.expected("nucleus")
    answers = Reference.of(describer, NEW_TOKENS).answers(requests, **SETTINGS["nucleus"])
    hook = describer.model.get_submodule(describer.family.decoder).register_forward_pre_hook(
        lambda _module, _inputs, given: read.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    try:
        describer.with_sampling(**SETTINGS["nucleus"], batch_size=8).describe(requests)
    finally:
        hook.remove()
    assert [rows for rows, tokens in read if tokens > 1] == [1]
    # No step computes an answer that has ended; the token that ends it counts.
    counts = [length + (answer.finish_reason == "stop") for answer, length in answers]
    assert len(set(counts)) > 2
    steps = [rows for rows, tokens in read if tokens == 1]
    assert steps == [sum(count > k for count in counts) for k in range(1, max(counts))]


def test_the_embedded_describer_gives_the_answers_of_generate(ask):
    loaded = HfDescriber("embedded/describer", device="cpu", dtype="float32")
    section = DescriberConfig(model="embedded/describer", max_new_tokens=60, batch_size=BATCH)
    describer = HfDescriber.around(loaded.model.double(), loaded.processor, section, name="embedded")
    scenes = [Image.fromarray(make_scene(5, index).image) for index in range(2)]
    prompts = [
        "Describe the region [0.1, 0.2, 0.6, 0.7] and locate its objects.",
        EMBEDDED_PROMPT.format(expression="the red circle"),
    ]
    requests = [ask(scene, prompt, seed) for seed in range(3) for prompt in prompts for scene in scenes]
    expected = Reference.of(describer, 60).answers(requests, temperature=1.0, top_p=0.95)
    assert len({length for _, length in expected}) > 2
    assert describer.describe(requests) == [answer for answer, _ in expected]
