"""The loop of generation: what is read together, when rows are refilled, and prompts that are kept once."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from spr.config import DescriberConfig
from spr.models.batching import DeviceMemoryError
from spr.models.describers import cache as cache_module
from spr.models.describers import rows as rows_module
from spr.models.describers.cache import BufferedCache, BufferedLayer
from spr.models.describers.generation import Generation, Samples
from spr.models.describers.hf import HfDescriber
from spr.models.describers.shared_prompts import shared_attention

OPTIONS = {"device": "cpu", "dtype": "float32", "max_new_tokens": 12}


@pytest.fixture(scope="module")
def model(mllm_folder):
    describer = HfDescriber(mllm_folder("qwen2_5_vl"), batch_size=4, **OPTIONS)
    describer.model.double()
    return describer


@pytest.fixture
def requests(ask, picture):
    images = [picture(100, 80), picture(60, 130, 200), picture(50, 50, 90)]
    prompts = ["Where is it?", "What is in the picture, and where is all that?"]
    kinds = [(image, prompt) for image in images for prompt in prompts]
    return [ask(image, prompt, seed) for image, prompt in kinds for seed in range(3)]


@pytest.fixture
def expected(model, requests, monkeypatch):
    """The answers of the model's own `generate`."""
    with monkeypatch.context() as patch:
        patch.setattr(model, "_without_refill", "for comparison")
        return model.describe(requests)


@pytest.fixture
def read(monkeypatch):
    """The numbers of prompts and samples that are read together, and the number of rows of each step."""
    seen = {"read": [], "rows": []}
    own_read, own_step = Generation._read, rows_module.Rows.step

    def reading(self, batch):
        seen["read"].append([len(samples.numbers) for samples in batch])
        return own_read(self, batch)

    def stepping(self):
        seen["rows"].append(len(self.numbers))
        own_step(self)

    monkeypatch.setattr(Generation, "_read", reading)
    monkeypatch.setattr(rows_module.Rows, "step", stepping)
    return seen


def test_a_prompt_is_read_once_for_its_samples_and_rows_are_refilled(model, requests, expected, read):
    assert model.describe(requests) == expected
    assert sum(map(len, read["read"])) == 6
    assert max(read["rows"]) <= 4
    # With each sample on its own, and no row refilled, there would be 12 rows in each of 5 batches.
    assert sum(read["rows"]) <= 18 * 11
    assert read["rows"] != sorted(read["rows"], reverse=True)


def test_prompts_are_read_while_free_rows_hold_no_memory(model, requests, monkeypatch):
    monkeypatch.setattr(cache_module, "LEAST_RELEASED", 0)
    monkeypatch.setattr(model, "_ends", frozenset(range(0, 1000, 9)))
    caches, held = [], []
    own_add, own_read = BufferedCache.add, Generation._read

    def add(self, *arguments):
        caches.append(self)
        own_add(self, *arguments)

    def reading(self, batch):
        if caches:
            rows = {len(buffer) for layer in caches[-1].attention for buffer in layer.buffers}
            held.append((rows, len(caches[-1].starts)))
        return own_read(self, batch)

    monkeypatch.setattr(BufferedCache, "add", add)
    monkeypatch.setattr(Generation, "_read", reading)
    model.describe(requests)
    assert len(held) > 2
    assert any(used for _, used in held)
    assert all(rows == ({used} if used else set()) for rows, used in held)


def test_more_samples_than_rows_are_read_in_parts(model, ask, picture, read):
    requests = [ask(picture(50, 50), seed=seed) for seed in range(6)]
    answers = model.describe(requests)
    assert read["read"] == [[4], [2]]
    assert answers == [model.describe([request])[0] for request in requests]


def test_equal_images_are_one_prompt(model, ask, picture, read):
    model.describe([ask(picture(50, 50), seed=seed) for seed in range(2)])
    assert read["read"] == [[2]]
    model.describe([ask(picture(50, 50, tint)) for tint in (0, 1)])
    assert read["read"] == [[2], [1, 1]]


def test_images_of_equal_indices_and_different_palettes_are_two_prompts(model, ask, read):
    images = [Image.new("P", (50, 50)) for _ in range(2)]
    for image, grey in zip(images, (0, 200), strict=True):
        image.putpalette([grey] * 768)
    model.describe([ask(image) for image in images])
    assert read["read"] == [[1, 1]]


def test_greedy_answers_need_no_seed_in_range(model, ask, picture):
    requests = [ask(picture(50, 50), seed=seed) for seed in (0, 2**63)]
    first, second = model.with_sampling(temperature=0).describe(requests)
    assert first == second


def test_a_model_that_is_trained_without_a_cache_is_read_as_before_afterwards(mllm_folder, requests, read):
    describer = HfDescriber(mllm_folder("llava"), batch_size=5, **OPTIONS)
    describer.model.double()
    expected = describer.describe(requests)
    steps = len(read["rows"])
    describer.model.activation_checkpointing_enable()
    describer.model.train()
    describer.describe(requests)
    assert len(read["rows"]) == steps
    describer.model.eval()
    assert describer.describe(requests) == expected
    assert len(read["rows"]) == 2 * steps


@pytest.mark.parametrize("family", ["llava", "florence2"])  # by its own loop, and by `generate`
def test_modules_of_a_model_that_is_trained_get_no_tensors_of_inference_mode(family, mllm_folder, ask, picture):
    loaded = HfDescriber(mllm_folder(family), batch_size=5, **OPTIONS)
    loaded.model.double()
    section = DescriberConfig(model=family, max_new_tokens=12, batch_size=5)
    trained = HfDescriber.around(loaded.model, loaded.processor, section, name=family)
    requests = [ask(picture(50, 50), "<OD>" if family == "florence2" else "Where is it?", seed) for seed in range(3)]
    modes, answers = [], []
    loaded.model.get_output_embeddings().register_forward_hook(lambda *given: modes.append(given[-1].is_inference()))
    for describer, inference in ((loaded, True), (trained, False)):
        modes.clear()
        answers.append(describer.describe(requests))
        assert len(modes) > 2
        assert set(modes) == {inference}
    assert answers[0] == answers[1]


def test_a_thread_that_leaves_its_step_keeps_the_attention_of_another():
    config, cache = (SimpleNamespace(_attn_implementation="sdpa"), SimpleNamespace(attended=0, attention=[]))
    cache.begin_step = lambda: None
    with ExitStack() as other:
        with shared_attention([config], cache):
            other.enter_context(shared_attention([config], cache))
            assert config._attn_implementation != "sdpa"
        assert config._attn_implementation != "sdpa"
    assert config._attn_implementation == "sdpa"


def test_a_model_describes_in_two_threads(mllm_folder, requests, monkeypatch):
    monkeypatch.setattr(rows_module, "LEAST_SAVED", 0)
    describer = HfDescriber(mllm_folder("llava"), batch_size=5, **OPTIONS)
    describer.model.double()
    expected = describer.describe(requests)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(describer.describe, [requests] * 4)) == [expected] * 4
    assert describer.model.config.get_text_config()._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["llava", "qwen3_5", "internvl", "kosmos-2"])
@pytest.mark.parametrize("shared", [False, True])
def test_prompts_may_be_kept_once_for_all_their_samples(family, shared, mllm_folder, requests, monkeypatch):
    describer = HfDescriber(mllm_folder(family), batch_size=5, **OPTIONS)
    if family != "kosmos-2":  # which can't be run in float64
        describer.model.double()
    monkeypatch.setattr(rows_module, "LEAST_SAVED", 0 if shared else 1 << 60)
    answers, used = describer.describe(requests), rows_module._can_share.get(describer.model)
    # Kosmos-2 counts positions by the columns of its cache.
    assert used is (True if shared and family != "kosmos-2" else None)
    describer._without_refill = "for comparison"
    assert answers == describer.describe(requests)
    assert describer.model.config.get_text_config()._attn_implementation == "sdpa"


def test_a_model_whose_attention_needs_more_than_keys_keeps_a_copy_for_each_sample(mllm_folder, requests, monkeypatch):
    monkeypatch.setattr(rows_module, "LEAST_SAVED", 0)
    describer = HfDescriber(mllm_folder("kimi_k25"), batch_size=5, **OPTIONS)
    describer.model.set_experts_implementation("eager")
    describer.model.double()
    answers = describer.describe(requests)
    assert rows_module._can_share[describer.model] is False
    describer._without_refill = "for comparison"
    assert answers == describer.describe(requests)


@pytest.mark.parametrize("window", [4, 30])
def test_answers_may_be_longer_than_a_sliding_window(window, mllm_folder, requests, monkeypatch):
    describer = HfDescriber(mllm_folder("gemma3"), batch_size=5, device="cpu", dtype="float32", max_new_tokens=90)
    config = describer.model.config.get_text_config()
    config.sliding_window = window
    for module in describer.model.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = window
    describer.model.double()
    sizes = set()
    own = BufferedLayer.update

    def update(self, *states, **options):
        found = own(self, *states, **options)
        sizes.add((self.window, self.buffers[0].shape[2]))
        return found

    monkeypatch.setattr(BufferedLayer, "update", update)
    answers = describer.describe(requests[:12])
    assert max(columns for kind, columns in sizes if kind is not None) == window + 32
    assert max(columns for kind, columns in sizes if kind is None) > 90
    describer._without_refill = "for comparison"
    assert answers == describer.describe(requests[:12])


def test_a_minimum_number_of_tokens_is_kept(model, requests, monkeypatch):
    monkeypatch.setattr(model.model.generation_config, "min_new_tokens", 12)
    assert {answer.finish_reason for answer in model.describe(requests)} == {"length"}


@pytest.mark.parametrize("padding", [False, True])
def test_stop_strings_end_the_same_answers(padding, mllm_folder, tmp_path, requests):
    folder = shutil.copytree(mllm_folder("llava"), tmp_path / "llava")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "stop_strings": ["e", "o", "1"]}))
    describer = HfDescriber(folder, batch_size=4, **OPTIONS)
    describer.model.double()
    if padding:
        describer.model.generation_config.pad_token_id = max(describer._ends)
    answers = describer.describe(requests)
    assert {answer.finish_reason for answer in answers} >= {"stop_string", "length"}
    assert describer._without_refill is None
    describer._without_refill = "for comparison"
    assert answers == describer.describe(requests)


def test_answers_are_the_same_after_the_memory_ran_out(model, requests, expected, monkeypatch):
    own, steps = rows_module.Rows.step, iter(range(10**6))
    monkeypatch.setattr(model._run, "size", 8)

    def step(self):
        if len(self.numbers) > 4 and next(steps) > 1:
            raise torch.OutOfMemoryError("full")
        own(self)

    monkeypatch.setattr(rows_module.Rows, "step", step)
    assert model.describe(requests) == expected
    assert model._run.size == 4


def test_a_single_answer_that_does_not_fit_is_an_error(model, requests, monkeypatch):
    def step(_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(rows_module.Rows, "step", step)
    with pytest.raises(DeviceMemoryError, match="A single item"):
        model.describe(requests[:1])


def test_samples_are_split_in_their_order():
    samples = Samples("prompt", 3, (4, 5, 6), (7, 8, 9))
    assert [(part.numbers, part.seeds) for part in samples.split(2)] == [((4, 5), (7, 8)), ((6,), (9,))]
