"""The files of docs/rl-trainers.md: with stand-ins for the trainers, and with those trainers that are installed.

The live tests skip where their trainer is not installed: ms-swift, verl with tensordict, or a checkout of EasyR1 (its
import name is also verl), VLM-R1 (src/open-r1-multimodal/src) or Visual-RFT (src/virft/src). Each needs an environment
of its own, with another transformers than the rest of these tests, so run this file alone there:
`PYTHONPATH=src:tests python -m pytest --noconftest -p tiny_language_model tests/rewards/test_trainer_files.py`.
"""

import importlib
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from rl_samples import RIGHT, truth
from spr.core.errors import RewardError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rl-trainers.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
SIGNATURES = json.loads((ROOT / "tests" / "trainer_signatures.json").read_text(encoding="utf-8"))
VLM_R1 = "src/open-r1-multimodal/src/open_r1/grpo_spr.py"
VISUAL_RFT = "src/virft/src/open_r1/grpo_spr.py"
JSON = '[{"bbox_2d": [0, 0, 500, 500], "label": "dog"}]'
LOOSE = '[{"bbox_2d": [0, 0, 500, 350], "label": "dog"}]'  # IoU 0.7

pytestmark = pytest.mark.filterwarnings("ignore")  # of other people's packages


def written(title, folder):
    path = folder / Path(title).name
    path.write_text(FILES[title], encoding="utf-8")
    return path


def run_file(title, folder, name="users_file"):
    spec = importlib.util.spec_from_file_location(name, written(title, folder))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed(name):
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_no_file_has_more_than_five_lines():
    assert set(FILES) == {"rewards.py", "plugin.py", "reward.py", "reward_easyr1.py", VLM_R1, VISUAL_RFT}
    lengths = {title: sum(1 for line in text.splitlines() if line) for title, text in FILES.items()}
    assert max(lengths.values()) <= 5
    told = {title: int(lines) for title, lines in re.findall(r"`(\w+\.py)`, (\d) lines", PAGE)}
    assert told == {Path(title).name: count for title, count in lengths.items()}


def test_the_table_has_the_recorded_versions():
    assert f"| {SIGNATURES['trl']['version'].removesuffix('.0')} |" in PAGE
    for trainer in ("ms-swift", "verl"):
        assert f"| {SIGNATURES[trainer]['version']} |" in PAGE
    assert SIGNATURES["easyr1"]["version"] in PAGE


def test_the_file_for_trl(tmp_path):
    boxes = run_file("rewards.py", tmp_path).boxes
    values = [
        boxes(completions=[LOOSE], truth=[truth("qwen3_vl")], trainer_state=SimpleNamespace(global_step=step))
        for step in (0, 1000)
    ]
    assert (boxes.__name__, values) == ("boxes", [[1.0], [pytest.approx(0.2)]])


@pytest.fixture
def fresh():
    """Forget the reward classes that were made with or without ms-swift's base class."""
    from spr.rewards import ms_swift

    ms_swift.__getattr__.cache_clear()
    yield
    ms_swift.__getattr__.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_the_plug_in_for_ms_swift(tmp_path, monkeypatch):
    class ORM:
        pass

    swift, rewards = ModuleType("swift"), ModuleType("swift.rewards")
    rewards.orms, rewards.ORM = {"format": object()}, ORM
    monkeypatch.setitem(sys.modules, "swift", swift)
    monkeypatch.setitem(sys.modules, "swift.rewards", rewards)
    run_file("plugin.py", tmp_path)
    assert list(rewards.orms) == ["format", "spr_f1", "spr"]
    reward = rewards.orms["spr"](args=SimpleNamespace())
    assert type(reward).__name__ == "spr"
    assert isinstance(reward, ORM)
    values = reward([JSON, LOOSE], truth=[truth("qwen3_vl")] * 2, trainer_state=SimpleNamespace(global_step=1000))
    assert values == pytest.approx([1, 0.2])


def test_the_files_for_verl_and_easyr1(tmp_path):
    given = {"data_source": "spr", "ground_truth": truth("qwen3_vl"), "extra_info": {}}
    assert run_file("reward.py", tmp_path).compute_score(solution_str=LOOSE, **given)["score"] == pytest.approx(0.2)
    module = run_file("reward_easyr1.py", tmp_path)
    assert (module.REWARD_NAME, module.REWARD_TYPE) == ("spr", "batch")
    [result] = module.compute_score([{"response": LOOSE, "response_length": 9, "ground_truth": truth("qwen3_vl")}])
    assert result == pytest.approx({"overall": 0.2, "precision": 1, "recall": 1, "duplicates": 0, "valid": 1})


@pytest.mark.parametrize(("title", "script"), [(VLM_R1, "grpo_jsonl"), (VISUAL_RFT, "grpo")])
def test_the_scripts_for_vlm_r1_and_visual_rft(title, script, tmp_path, monkeypatch):
    names = SIGNATURES["vlm-r1" if title == VLM_R1 else "visual-rft"]["names"]
    stand_in, started = ModuleType(script), []
    for name in names:
        setattr(stand_in, name, object())
    stand_in.reward_funcs_registry = {"format": None}
    stand_in.TrlParser = lambda kinds: SimpleNamespace(parse_args_and_config=lambda: kinds)
    stand_in.main = lambda *arguments: started.append(arguments)
    monkeypatch.setitem(sys.modules, script, stand_in)
    run_file(title, tmp_path)
    model = stand_in.GRPOModelConfig if title == VLM_R1 else stand_in.ModelConfig
    assert started == [(stand_in.GRPOScriptArguments, stand_in.GRPOConfig, model)]
    own = {name: function for name, function in stand_in.reward_funcs_registry.items() if function is not None}
    assert set(own) == ({"spr"} if title == VLM_R1 else {"accuracy_iou", "accuracy_confidence", "format"})
    completions = [[{"role": "assistant", "content": JSON}]]
    for function in own.values():
        assert function(prompts=[[]], completions=completions, solution=[truth("qwen3_vl")], problem=["?"]) == [1]


needs_swift = pytest.mark.skipif(not installed("swift.rewards"), reason="ms-swift is not installed")


@needs_swift
@pytest.mark.usefixtures("fresh")
def test_ms_swift_loads_the_plug_in_and_scores_the_rows_of_a_file(tmp_path):
    import torch
    from swift.dataset import load_dataset
    from swift.rewards import ORM
    from swift.rl_core.data import GRPOSample
    from swift.rl_core.grpo_algorithm import score_completions
    from swift.rlhf_trainers.utils import resolve_reward_funcs
    from swift.utils import import_external_file

    import_external_file(str(written("plugin.py", tmp_path)))
    functions, names = resolve_reward_funcs(["spr_f1", "spr", "format"], args=SimpleNamespace())
    assert names == ["f1", "spr", "Format"]
    assert isinstance(functions[0], ORM)
    row = {"messages": [{"role": "user", "content": "<image>Locate the dog."}], "images": ["7.jpg"], "truth": truth()}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    found, _ = load_dataset([str(tmp_path / "train.jsonl")], num_proc=1, remove_unused_columns=False)
    samples = []
    for answer in (RIGHT, f"<think>{RIGHT}", "no dog"):
        messages = [*found[0]["messages"], {"role": "assistant", "content": answer}]
        samples.append(GRPOSample.from_row({**found[0], "messages": messages}))
    state, device = SimpleNamespace(global_step=500), torch.device("cpu")
    scores = score_completions(samples, functions, None, False, device, trainer_state=state)
    assert scores[:, :2].tolist() == [[1, 1], [0, 0], [0, 0]]
    del samples[0].extra["truth"]
    with pytest.raises(RewardError, match="no column `truth`"):
        score_completions(samples[:1], functions, None, False, device, trainer_state=state)


@needs_swift
@pytest.mark.usefixtures("fresh")
def test_ms_swift_trains_with_the_plug_in(model_folder, tokenizer, tmp_path, monkeypatch):
    import torch
    from swift.pipelines import rlhf_main
    from transformers import Qwen2ForCausalLM
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    def generate(_, input_ids=None, **given):
        start = given["inputs"] if input_ids is None else input_ids
        texts = [f"{RIGHT if number % 2 else 'no dog'}<|im_end|>" for number in range(len(start))]
        ids = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
        return GenerateDecoderOnlyOutput(sequences=torch.cat([start, ids], dim=1))

    monkeypatch.setattr(Qwen2ForCausalLM, "generate", generate)
    row = {"messages": [{"role": "user", "content": "Locate the dog."}], "truth": truth()}
    (tmp_path / "train.jsonl").write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    given = {
        "rlhf_type": "grpo",
        "model": model_folder,
        "model_type": "qwen2",
        "template": "chatml",
        "tuner_type": "full",
        "torch_dtype": "float32",
        "attn_impl": "eager",
        "dataset": tmp_path / "train.jsonl",
        "external_plugins": written("plugin.py", tmp_path),
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "max_completion_length": 128,
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": tmp_path / "out",
    }
    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    rlhf_main([*arguments, "--reward_funcs", "spr_f1", "spr"])
    [log] = (tmp_path / "out").glob("*/logging.jsonl")
    line = json.loads(log.read_text(encoding="utf-8").splitlines()[0])
    assert (line["rewards/f1/mean"], line["rewards/spr/mean"]) == (0.5, 0.5)


has_easyr1 = installed("verl.workers.reward.function")
needs_verl = pytest.mark.skipif(
    has_easyr1 or not (installed("verl.trainer.ppo.reward") and installed("tensordict")), reason="verl is not installed"
)
needs_easyr1 = pytest.mark.skipif(not (has_easyr1 and installed("tensordict")), reason="EasyR1 is not on the path")


def verl_data(tokenizer, answers, truths):
    """What verl's and EasyR1's reward managers take: padded tokens, and a row per answer."""
    import numpy as np
    import torch
    from tensordict import TensorDict
    from verl.protocol import DataProto

    texts = [f"{answer}<|im_end|>" for answer in answers]
    encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    prompts = torch.ones((len(answers), 2), dtype=torch.long)
    batch = {
        "prompts": prompts,
        "responses": encoded["input_ids"],
        "response_mask": encoded["attention_mask"],
        "attention_mask": torch.cat([prompts, encoded["attention_mask"]], dim=1),
    }
    rows = {
        "data_source": ["spr"] * len(answers),
        "reward_model": [{"ground_truth": value, "style": "rule"} for value in truths],
        "ground_truth": truths,
        "extra_info": [{"index": k} for k in range(len(answers))],
    }
    columns = {name: np.array(values, dtype=object) for name, values in rows.items()}
    return DataProto(batch=TensorDict(batch, batch_size=len(answers)), non_tensor_batch=columns)


def verl_manager(tokenizer, overrides):
    from hydra import compose, initialize_config_module
    from verl.trainer.ppo.reward import load_reward_manager

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=overrides)
    return load_reward_manager(config, tokenizer, reward_router_address=None, reward_model_tokenizer=None)


OWN_FUNCTION = ["reward.custom_reward_function.path=pkg://spr.rewards.verl", "reward.custom_reward_function.name="]
OWN_MANAGER = [
    "reward.reward_manager.source=importlib",
    "reward.reward_manager.name=RewardManager",
    "reward.reward_manager.module.path=pkg://spr.rewards.verl",
]


def run_verl(manager, data):
    return manager.loop.run_until_complete(manager.run_single(data))


@needs_verl
def test_verl_loads_the_function_and_scores_an_answer(tokenizer, tmp_path):
    path = written("reward.py", tmp_path)
    kwargs = '+reward.custom_reward_function.reward_kwargs.reward="0.8*f1@0.75 + 0.2*format"'
    assert f"`'{kwargs}'`" in PAGE
    for overrides in (
        [f"reward.custom_reward_function.path={path}", "reward.custom_reward_function.name=compute_score"],
        [OWN_FUNCTION[0], OWN_FUNCTION[1] + "compute_score", kwargs],
    ):
        result = run_verl(verl_manager(tokenizer, overrides), verl_data(tokenizer, [LOOSE], [truth("qwen3_vl")]))
        assert result["reward_score"] == pytest.approx(0.2)
        assert result["reward_extra_info"] == pytest.approx(
            {"score": 0.2, "precision": 1, "recall": 1, "duplicates": 0, "valid": 1}
        )
    manager = verl_manager(tokenizer, [OWN_FUNCTION[0], OWN_FUNCTION[1] + "iou"])
    assert run_verl(manager, verl_data(tokenizer, [LOOSE], [truth("qwen3_vl")]))["reward_score"] == pytest.approx(0.7)
    with pytest.raises(RewardError, match=r"Column `reward_model\.ground_truth` is not JSON"):
        run_verl(manager, verl_data(tokenizer, [LOOSE], ["a dog"]))


@needs_verl
def test_verl_keeps_special_tokens_with_the_reward_manager(tokenizer):
    function = [OWN_FUNCTION[0], OWN_FUNCTION[1] + "f1"]
    for words in OWN_MANAGER:
        assert words in PAGE
    stripping = verl_manager(tokenizer, function)
    with pytest.raises(RewardError, match=r"special token(?s:.*)pkg://spr.rewards.verl"):  # noqa: PT012
        for _ in range(16):
            run_verl(stripping, verl_data(tokenizer, [RIGHT], [truth()]))
    manager = verl_manager(tokenizer, [*function, *OWN_MANAGER])
    scores = [run_verl(manager, verl_data(tokenizer, [text], [truth()]))["reward_score"] for text in ("no dog", RIGHT)]
    assert scores == [0, 1]


@needs_verl
def test_verls_batch_manager_calls_the_function_for_batches(tokenizer):
    from verl.workers.reward_manager.batch import BatchRewardManager

    from spr.rewards.verl import make

    manager = BatchRewardManager(tokenizer, 0, make("0.8*f1@0.75 + 0.2*format", batch=True))
    data = verl_data(tokenizer, [JSON, LOOSE, "no dog"], [truth("qwen3_vl")] * 3)
    found = manager(data, return_dict=True)
    assert found["reward_tensor"].sum(dim=1).tolist() == pytest.approx([1, 0.2, 0])
    assert found["reward_extra_info"]["valid"] == [1, 1, 0]


@needs_easyr1
@pytest.mark.parametrize("kind", ["batch", "sequential"])
def test_easyr1_loads_the_file_and_scores_answers(kind, tokenizer, tmp_path):
    from verl.workers.reward.config import RewardConfig
    from verl.workers.reward.function import AutoRewardManager

    path = written("reward_easyr1.py", tmp_path)
    path.write_text(path.read_text().replace('"batch"', f'"{kind}"'))

    def scores(answers, value, *, skip):
        config = RewardConfig(reward_function=f"{path}:compute_score", skip_special_tokens=skip)
        config.post_init()
        manager = AutoRewardManager(config, tokenizer)
        tensor, metrics = manager.compute_reward(verl_data(tokenizer, answers, [value] * len(answers)))
        assert set(metrics) == {"overall", "precision", "recall", "duplicates", "valid"}
        return tensor.sum(dim=1).tolist()

    assert scores([JSON, LOOSE, "no dog"], truth("qwen3_vl"), skip=True) == pytest.approx([1, 0.2, 0])
    assert scores([RIGHT, "no dog"], truth(), skip=False) == [1, 0]
    assert scores(["There is no dog.", ""], truth(objects=()), skip=False) == [1, 0]
    with pytest.raises(RewardError, match=r"special token(?s:.*)worker.reward.skip_special_tokens=false"):
        scores([RIGHT] * 16, truth(), skip=True)


@needs_easyr1
def test_easyr1_takes_the_adapters_own_file(tokenizer):
    from verl.workers.reward.config import RewardConfig
    from verl.workers.reward.function import AutoRewardManager

    import spr.rewards.easyr1

    config = RewardConfig(reward_function=f"{spr.rewards.easyr1.__file__}:iou")
    config.post_init()
    tensor, _ = AutoRewardManager(config, tokenizer).compute_reward(verl_data(tokenizer, [LOOSE], [truth("qwen3_vl")]))
    assert tensor.sum().item() == pytest.approx(0.7)


@pytest.mark.skipif(not installed("open_r1.vlm_modules"), reason="VLM-R1 is not on the path")
def test_vlm_r1_trains_with_the_reward(model_folder, tokenizer, tmp_path, monkeypatch):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Their models need another transformers than the trainer.
    for name, kind in (("internvl_module", "InvernVLModule"), ("glm_module", "GLMVModule")):
        module = ModuleType(f"open_r1.vlm_modules.{name}")
        setattr(module, kind, object)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    from open_r1.trainer import GRPOConfig, VLMGRPOTrainer
    from open_r1.vlm_modules import VLMBaseModule

    from spr.rewards.vlm_r1 import make

    class Text(VLMBaseModule):
        """A language model, where VLM-R1 has modules for vision-language models."""

        def get_vlm_key(self):
            return "text"

        def get_model_class(self, *_):
            return AutoModelForCausalLM

        def get_processing_class(self):
            return AutoTokenizer

        def get_vision_modules_keywords(self):
            return []

        get_custom_multimodal_keywords = get_non_generate_params = get_vision_modules_keywords
        get_custom_processing_keywords = get_vision_modules_keywords

        def prepare_prompt(self, processing_class, inputs):
            return [processing_class.apply_chat_template(row["prompt"], tokenize=False) for row in inputs]

        def prepare_model_inputs(self, processing_class, prompts_text, _, **options):
            return processing_class(prompts_text, **options), None

    answers = [JSON, f"<think>A dog?</think><answer>{LOOSE}</answer>", "no dog", f"<think>{JSON}"]

    def generate(input_ids=None, **_):
        encoded = tokenizer([f"{text}<|im_end|>" for text in answers], padding=True, padding_side="right")
        return torch.cat([input_ids, torch.tensor(encoded["input_ids"])], dim=1)

    row = {"problem": "Locate the dog.", "prompt": [{"role": "user", "content": "Locate the dog."}]}
    row["solution"] = f"<answer> {truth('qwen3_vl')} </answer>"
    trainer = VLMGRPOTrainer(
        str(model_folder),
        make("0.8*f1@0.75 + 0.2*format", name="spr"),
        GRPOConfig(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=4,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
        ),
        Text(),
        train_dataset=Dataset.from_list([row] * 4),
        attn_implementation="eager",
        torch_dtype="float32",
    )
    trainer.model.generate = generate
    trainer.train()
    assert trainer.state.log_history[0]["rewards/spr"] == pytest.approx((1 + 0.2 + 0 + 0) / 4)


@pytest.mark.skipif(not installed("open_r1.grpo_lisa"), reason="Visual-RFT is not on the path")
def test_visual_rft_trains_with_the_rewards(model_folder, tokenizer, tmp_path):
    import torch
    from datasets import Dataset
    from open_r1.trainer import Qwen2VLGRPOTrainer
    from transformers import BatchFeature, Qwen2ForCausalLM
    from trl import GRPOConfig

    from spr.rewards.vlm_r1 import f1, iou

    answers = [JSON, f"<think>A dog?</think><answer>{LOOSE}</answer>", "no dog", f"<think>{JSON}"]

    class Model(Qwen2ForCausalLM):
        """A language model that does not look at images."""

        def forward(self, *arguments, pixel_values=None, image_grid_thw=None, **given):  # noqa: ARG002
            return super().forward(*arguments, **given)

        def generate(self, input_ids, **_):
            encoded = tokenizer([f"{text}<|im_end|>" for text in answers], padding=True, padding_side="right")
            starts = input_ids.repeat_interleave(len(answers), dim=0)
            return torch.cat([starts, torch.tensor(encoded["input_ids"] * len(input_ids))], dim=1)

    class Processor:
        """The tokenizer, with images of one patch."""

        def __call__(self, text, images, **options):
            found = tokenizer(text, **options)
            patches = {"pixel_values": torch.zeros(len(images), 1), "image_grid_thw": torch.ones(len(images), 3)}
            return BatchFeature({**found, **patches})

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    content = [{"type": "text", "text": "Locate the dog."}]
    row = {"image": "7.jpg", "problem": "Locate the dog.", "solution": truth("qwen3_vl")}
    arguments = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "remove_unused_columns": False,
    }
    trainer = Qwen2VLGRPOTrainer(
        Model.from_pretrained(model_folder),
        [iou, f1],
        GRPOConfig(str(tmp_path), **arguments),
        train_dataset=Dataset.from_list([row | {"prompt": [{"role": "user", "content": content}]}] * 4),
    )
    trainer.processing_class = Processor()
    trainer.train()
    log = trainer.state.log_history[0]
    assert (log["rewards/iou"], log["rewards/f1"]) == pytest.approx(((1 + 0.7) / 4, 2 / 4))
