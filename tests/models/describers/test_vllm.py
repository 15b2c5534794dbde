"""vLLM's offline engine as a describer, with a stand-in for the engine that has vLLM's real signatures."""

import gc
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from spr.config import DescriberConfig, load_config, make_config
from spr.config.describer import _OF_HF, _OF_OPENAI
from spr.core.errors import SprError
from spr.grounding.geometry import Resized
from spr.models import registry
from spr.models.chat import render_turn, user_turn
from spr.models.describers.hf import HfDescriber
from spr.models.describers.vllm import VllmDescriber, check_version, gpu_options
from spr.models.errors import ModelError
from spr.models.families import FAMILIES
from spr.models.image_processors import encode, load_processor
from spr.models.protocols import Answer
from spr.pipeline.runner import run
from spr.runs.store import StageStore

RUN_BY_VLLM = [name for name, family in FAMILIES.items() if family.vllm is not None]
PROMPTS = ["Where is it?", "What is in [0, 1, 2, 3]?\nAnd where is all that?", "a"]
PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "tokenizers"


@pytest.fixture(autouse=True)
def engine(fake_vllm):
    yield fake_vllm
    registry.release()


@pytest.fixture
def requests(ask, picture):
    images = [picture(100, 80), picture(60, 130, 200), picture(300, 40, 90)]
    return [ask(image, prompt, seed) for seed, (image, prompt) in enumerate(zip(images, PROMPTS, strict=True))]


def words(describer, text):
    return describer.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def assert_same_inputs(describer, requests):
    """The engine's prompt ids and pixels are those that transformers' model gets without vLLM."""
    plain = HfDescriber(describer.engine.options["model"], device="cpu", dtype="float32")
    describer.describe(requests)
    assert len(describer.engine.seen) == len(requests)
    for request, seen in zip(requests, describer.engine.seen, strict=True):
        expected = encode(plain.processor, [plain.render(request.prompt)], [request.image])
        assert seen.ids == expected["input_ids"][0].tolist()
        torch.testing.assert_close(seen.inputs["pixel_values"], expected["pixel_values"], atol=0, rtol=0)
    assert (describer.name, describer.dialect) == (plain.name, plain.dialect)


@pytest.mark.parametrize("family", RUN_BY_VLLM)
def test_prompts_and_pixels_are_those_of_the_backend_hf(family, mllm_folder, requests):
    assert_same_inputs(VllmDescriber(mllm_folder(family)), requests)


@pytest.mark.parametrize(
    ("family", "tokenizer", "tokens", "template"),
    [
        ("llava", "llama2", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}, "llava_1_5"),
        ("llava", "llama2", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}, None),
        ("qwen2_5_vl", "qwen3", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, "qwen2_5_vl"),
        ("llava_onevision", "qwen3", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, "llava_onevision"),
    ],
)
def test_so_they_are_with_published_tokenizers_and_templates(
    family, tokenizer, tokens, template, mllm_folder, requests, tmp_path
):
    if not PUBLISHED.is_dir():
        pytest.skip("the published tokenizers are not here")
    folder = tmp_path / "model"
    shutil.copytree(mllm_folder(family), folder)
    published = PreTrainedTokenizerFast(tokenizer_file=str(PUBLISHED / tokenizer / "tokenizer.json"), **tokens)
    if family != "qwen2_5_vl":
        published.add_tokens(["<image>", "<video>"], special_tokens=True)
    published.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        shutil.copy(PUBLISHED / "templates" / f"{template}.jinja", folder / "chat_template.jinja")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = len(published)  # weights are not read by the stand-in
    name = "image_token_index" if "image_token_index" in config else "image_token_id"
    config[name] = published.convert_tokens_to_ids("<|image_pad|>" if family == "qwen2_5_vl" else "<image>")
    (folder / "config.json").write_text(json.dumps(config))
    plain = ids_without_vllm(folder, family)
    describer = VllmDescriber(folder)
    describer.describe(requests)
    for request, seen in zip(requests, describer.engine.seen, strict=True):
        assert seen.ids == plain(request)


def ids_without_vllm(folder, family):
    """The prompt ids of the backend `hf`, without loading a model."""
    processor = load_processor(folder, family, family=FAMILIES[family])

    def ids(request):
        text = render_turn(processor, FAMILIES[family], user_turn(request.prompt))
        return encode(processor, [text], [request.image])["input_ids"][0].tolist()

    return ids


def test_the_engine_resizes_images_as_the_dialect_assumes(mllm_folder, ask, picture, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(mllm_folder("qwen2_5_vl"), folder)
    saved = json.loads((folder / "preprocessor_config.json").read_text())
    saved["size"] = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 9}
    (folder / "preprocessor_config.json").write_text(json.dumps(saved))
    describer = VllmDescriber(folder, dialect="qwen2_5_vl:max_pixels=100000")
    assert describer.dialect.geometry == Resized(factor=28, min_pixels=3136, max_pixels=7056)
    assert describer.engine.options["mm_processor_kwargs"] == {"size": {"shortest_edge": 3136, "longest_edge": 7056}}
    describer.describe([ask(picture(640, 480))])
    rows, columns = describer.engine.seen[0].inputs["image_grid_thw"][0, 1:].tolist()
    canvas = describer.dialect.geometry.canvas((640, 480))
    assert (14 * columns, 14 * rows) == canvas[-2:] == (84, 56)


def test_settings_reach_the_engine(mllm_folder):
    settings = {"dtype": "bfloat16", "max_model_len": 900, "gpu_memory_utilization": 0.4, "num_gpus": 2}
    describer = VllmDescriber(mllm_folder("llava"), **settings)
    assert describer.engine.options == {
        "model": str(mllm_folder("llava")),
        "revision": None,
        "tokenizer_revision": None,
        "dtype": "bfloat16",
        "load_format": "safetensors",
        "trust_remote_code": False,
        "generation_config": "vllm",
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "seed": 0,
        "max_model_len": 900,
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.4,
    }
    # The folder's config names float32, which vLLM's own `auto` would load in 16 bits.
    assert VllmDescriber(mllm_folder("llava")).engine.options["dtype"] == "float32"


def test_the_engine_runs_in_this_process_quietly_unless_the_user_says_otherwise(mllm_folder, monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    VllmDescriber(mllm_folder("llava"))
    assert {name: value for name, value in os.environ.items() if name.startswith("VLLM_")} == {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }


def test_several_gpus_share_a_model_and_several_processes_share_a_gpu():
    assert gpu_options(1, None) == {}
    assert gpu_options(4, 0.8) == {"tensor_parallel_size": 4, "gpu_memory_utilization": 0.8}
    assert gpu_options(0.25, None) == {"gpu_memory_utilization": 0.225}


def test_each_request_has_its_seed_and_all_sampling_settings(engine, mllm_folder, ask, picture, monkeypatch):
    got = []

    def write(_, params):
        got.append(params)
        return [params.stop_token_ids[0]]

    monkeypatch.setattr(engine, "write", write)
    settings = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 33}
    describer = VllmDescriber(mllm_folder("qwen2_vl"), **settings)
    describer.describe([ask(picture(60, 60), seed=seed) for seed in (5, 2**63 - 1)])
    assert [params.seed for params in got] == [5, 2**63 - 1]
    assert {(params.temperature, params.top_p, params.max_tokens) for params in got} == {(0.7, 0.9, 33)}
    # The end of turn of the family and of the tokenizer, and that of the folder's generation config.
    tokenizer = describer.processor.tokenizer
    assert got[0].stop_token_ids == sorted({4, tokenizer.convert_tokens_to_ids("<|im_end|>")})


def test_answers_come_in_the_order_of_the_requests_and_depend_on_seed_prompt_and_image(
    mllm_folder, ask, picture, requests
):
    describer = VllmDescriber(mllm_folder("internvl"))
    answers = describer.describe(requests)
    assert describer.describe(requests[::-1]) == answers[::-1]
    image = picture(60, 60)
    others = [ask(image), ask(image, seed=1), ask(image, "a"), ask(picture(60, 60, 9)), ask(image)]
    told = describer.describe(others)
    assert len(set(told)) == 4
    assert told[0] == told[4]
    assert describer.describe([]) == []


def test_an_answer_keeps_the_markup_of_boxes_and_the_reason_of_its_end(
    engine, mllm_folder, ask, picture, monkeypatch, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(mllm_folder("qwen2_vl"), folder)
    generation = json.loads((folder / "generation_config.json").read_text()) | {"stop_strings": ["END"]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    texts = [
        "<|object_ref_start|>a cup<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|><|im_end|>",
        "<|vision_start|>a cup<|im_end|>",
        "one END two",
        "a long answer that the limit cuts",
        "<|im_end|>",
    ]
    describer = VllmDescriber(folder, max_new_tokens=20, dialect="qwen2_vl")
    written = iter([words(describer, text) for text in texts])
    monkeypatch.setattr(engine, "write", lambda *_: next(written))
    answers = describer.describe([ask(picture(60, 60), seed=seed) for seed in range(len(texts))])
    assert answers[1:] == [
        Answer("a cup", "stop"),
        Answer("one ", "stop_string"),
        Answer("a long answer that t", "length"),
        Answer("", "stop"),
    ]
    described = VllmDescriber(folder, max_new_tokens=40)
    written = iter([words(described, texts[0])])
    assert described.describe([ask(picture(60, 60))]) == [Answer(texts[0].removesuffix("<|im_end|>"), "stop")]


def test_an_image_that_the_family_refuses_has_an_empty_answer(mllm_folder, ask, picture):
    describer = VllmDescriber(mllm_folder("qwen3_vl"))
    answers = describer.describe([ask(picture(60, 60)), ask(picture(201, 1)), ask(picture(60, 60))])
    assert answers[1] == Answer("")
    assert answers[0] == answers[2] != Answer("")
    assert len(describer.engine.seen) == 2


def test_a_model_that_reasons_is_asked_to_and_its_reasoning_is_marked(mllm_folder, tmp_path, ask, picture):
    folder = shutil.copytree(mllm_folder("qwen3_vl"), tmp_path / "qwen3_vl")
    template = (folder / "chat_template.jinja").read_text()
    # As the Thinking models of Qwen3-VL, whose template always opens the block of reasoning.
    opened = template.replace("<|im_start|>assistant\n", "{{ '<|im_start|>assistant\n<think>\n' }}")
    assert opened != template
    (folder / "chat_template.jinja").write_text(opened)
    for thinking, end in ((False, "<think>\n\n</think>\n\n"), (True, "<think>\n")):
        describer = VllmDescriber(folder, thinking=thinking)
        (answer,) = describer.describe([ask(picture(60, 60))])
        ids = describer.engine.seen[-1].ids
        assert describer.processor.tokenizer.decode(ids).endswith("assistant\n" + end)
        assert answer.text.startswith("<think>") == thinking
    with pytest.raises(ModelError, match="can't be told to reason"):
        VllmDescriber(mllm_folder("qwen3_vl"), thinking=True)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("paligemma", "only the image tokens of PaliGemma, PaliGemma 2 attend in both directions"),
        ("ferret", "vLLM does not have Ferret"),
        ("cogvlm", "vLLM does not have CogVLM"),
        ("qwen3_5", "no test shows that vLLM gives Qwen3.5"),
    ],
)
def test_families_that_vllm_runs_otherwise_are_refused(family, why, engine, mllm_folder):
    with pytest.raises(ModelError, match=why) as raised:
        VllmDescriber(mllm_folder(family))
    assert "use describer.backend: hf" in str(raised.value)
    assert not engine.made


def test_embedded_models_and_other_families_are_refused(tmp_path):
    with pytest.raises(ModelError, match="made for a CPU"):
        VllmDescriber("embedded/describer")
    config = {"model_type": "idefics3", "architectures": ["Idefics3ForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="it is not known whether vLLM gives this family"):
        VllmDescriber(tmp_path, dialect="qwen2_vl")


def test_options_of_other_backends_are_refused_in_the_config():
    hf = {
        "batch_size": 8,
        "device": "cuda:1",
        "device_map": "auto",
        "attn_implementation": "eager",
        "load_in_4bit": True,
    }
    server = {"base_url": "http://x/v1", "api_key_env": "KEY", "concurrency": 4, "connect_timeout": 1, "timeout": 2}
    other = {**hf, **server, "retries": 3, "request_fields": {"a": 1}}
    assert other.keys() == {*_OF_HF, *_OF_OPENAI}
    for name, value in other.items():
        with pytest.raises(ValueError, match=f"describer.{name} can't be used with backend: vllm"):
            DescriberConfig(backend="vllm", model="x", **{name: value})
    for name, value in {"max_model_len": 5, "gpu_memory_utilization": 0.5}.items():
        with pytest.raises(ValueError, match=f"describer.{name} can't be used with backend: hf"):
            DescriberConfig(model="x", **{name: value})
    # A saved config names all fields: its defaults are not the user's.
    DescriberConfig(**DescriberConfig(backend="vllm", model="x").model_dump())


def test_a_temperature_that_vllm_would_change_or_refuse_is_an_error():
    for temperature in (0, 0.01, 2):
        assert DescriberConfig(backend="vllm", model="x", temperature=temperature).temperature == temperature
    for temperature in (0.005, 2.5):
        with pytest.raises(ValueError, match=r"from 0\.01 to 2"):
            DescriberConfig(backend="vllm", model="x", temperature=temperature)


@pytest.mark.parametrize("version", ["0.32.9", "0.20.0", "0.1.dev1"])
def test_an_old_vllm_is_refused(version):
    for new in ("0.33.0", "0.34.0rc1+cu130", "1.0"):
        check_version(new)
    with pytest.raises(SprError, match=r"too old[\s\S]*0.33 or newer"):
        check_version(version)


def test_a_missing_vllm_is_one_clear_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "vllm")
    monkeypatch.setattr(registry, "find_spec", lambda _: None)
    section = DescriberConfig(backend="vllm", model="owner/name")
    for load in (registry.load_describer, lambda section: registry.check_loadable([section])):
        with pytest.raises(SprError, match=r"`vllm` needs the package vllm[\s\S]*spatial-preference-rewarding\[vllm\]"):
            load(section)


def make_adapter(base, folder, targets=r".*language_model.*\.(q_proj|down_proj)", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a deprecated name of transformers
        model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
        peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "target_modules": targets, **options})).save_pretrained(
            folder
        )
    return str(folder)


def test_an_adapter_of_the_language_model_is_applied_to_each_request(mllm_folder, requests, tmp_path):
    adapter = make_adapter(mllm_folder("qwen2_5_vl"), tmp_path / "adapter", rank_pattern={"down_proj": 12})
    plain, tuned = (
        VllmDescriber(mllm_folder("qwen2_5_vl")),
        VllmDescriber(mllm_folder("qwen2_5_vl"), peft_adapter=adapter),
    )
    assert {key: tuned.engine.options[key] for key in ("enable_lora", "max_lora_rank")} == {
        "enable_lora": True,
        "max_lora_rank": 16,
    }
    assert [(lora.lora_int_id, lora.lora_path) for lora in tuned.engine.loras] == [(1, adapter)]
    assert all(a != b for a, b in zip(plain.describe(requests), tuned.describe(requests), strict=True))
    assert tuned.name.startswith(f"{plain.name}+adapter@")
    assert "enable_lora" not in plain.engine.options


@pytest.mark.parametrize(
    ("family", "options", "why"),
    [
        ("qwen2_5_vl", {"targets": r".*\.(q_proj|qkv)"}, r"outside of the language model: .*visual"),
        ("llava", {"targets": r".*(q_proj|linear_1)"}, r"outside of the language model"),
        ("qwen2_5_vl", {"use_dora": True}, "it has use_dora"),
        ("qwen2_5_vl", {"r": 513}, "its rank is 513"),
        ("llava_onevision", {}, "no LoRA for LLaVA-OneVision"),
    ],
)
def test_an_adapter_that_vllm_would_not_apply_as_a_whole_is_refused(
    family, options, why, engine, mllm_folder, tmp_path
):
    adapter = make_adapter(mllm_folder(family), tmp_path / "adapter", **options)
    with pytest.raises(ModelError, match=rf"vLLM can't apply the adapter[\s\S]*{why}[\s\S]*spr merge"):
        VllmDescriber(mllm_folder(family), peft_adapter=adapter)
    assert not engine.made


def test_a_prompt_that_is_too_long_and_an_engine_that_died_are_clear_errors(mllm_folder, ask, picture):
    describer = VllmDescriber(mllm_folder("llava"), max_model_len=30)
    with pytest.raises(SprError, match=r"vLLM refused a request[\s\S]*maximum model length of 30[\s\S]*max_model_len"):
        describer.describe([ask(picture(60, 60), "a" * 40)])
    describer.engine.alive = False
    with pytest.raises(SprError, match=r"vLLM's engine failed[\s\S]*EngineDeadError"):
        describer.describe([ask(picture(60, 60))])


def test_an_engine_that_does_not_start_is_a_clear_error(mllm_folder, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Engine core initialization failed. See root cause above.")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", fail)
    with pytest.raises(ModelError, match=r"vLLM can't load .*llava[\s\S]*initialization failed[\s\S]*max_model_len"):
        VllmDescriber(mllm_folder("llava"))


def test_an_interrupted_call_closes_the_engine(engine, mllm_folder, ask, picture, monkeypatch):
    describer = VllmDescriber(mllm_folder("llava"))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        describer.describe([ask(picture(60, 60))])
    assert not describer.engine.alive
    with pytest.raises(SprError, match="has been shut down"):
        describer.describe([ask(picture(60, 60))])


def test_releasing_the_models_shuts_the_engine_down(engine, mllm_folder):
    section = DescriberConfig(backend="vllm", model=str(mllm_folder("llava")))
    assert registry.load_describer(section) is registry.load_describer(section)
    assert [made.alive for made in engine.made] == [True]
    registry.release()
    gc.collect()
    assert [made.alive for made in engine.made] == [False]


def test_weights_of_a_folder_are_recorded_and_its_dialect_is_known(mllm_folder, make_dataset, tmp_path):
    data = make_dataset(tmp_path / "data", images=1)
    config = make_config(data.config(describer={"backend": "vllm", "model": str(mllm_folder("llava"))}))
    assert list(registry.local_weights(config, ["describer"])) == ["describer.model"]
    assert registry.expected_dialect(config.describer).key == "llava"
    missing = DescriberConfig(backend="vllm", model=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match="no such model folder"):
        registry.check_loadable([missing])


def test_the_pipeline_runs_with_it_to_the_same_candidates_each_time(mllm_folder, make_dataset, tmp_path):
    data = make_dataset(tmp_path / "data", images=3)
    describer = {"backend": "vllm", "model": str(mllm_folder("qwen2_5_vl"))}
    fakes = {"scorer": {"backend": "fake"}, "detector": {"backend": "fake"}}
    config = make_config(data.config(describer=describer, **fakes))
    candidates = []
    for name in ("run", "again"):
        run(config, tmp_path / name, until="candidates")
        stored = StageStore(tmp_path / name / "candidates").tables()
        candidates.append([row for table in stored for row in table.to_pylist()])
    assert candidates[0] == candidates[1]
    assert len(candidates[0]) == 6 * 3
    assert {row["finish_reason"] for row in candidates[0]} == {"stop"}
    assert {row["prompt_kind"] for row in candidates[0]} == {"full", "crop", "crop_objects"}
    saved = load_config(tmp_path / "run" / "config.yaml")
    assert saved.describer == config.describer
