"""The rewards in TRL's own trainers and its `trl grpo` script, on a language model of a few thousand weights."""

import json
import pickle

import pytest

from rl_samples import RIGHT, truth
from spr.core.errors import RewardError
from spr.rewards import trl as rewards

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
trl = pytest.importorskip("trl", reason="needs TRL")
torch = pytest.importorskip("torch", reason="needs the extra `models`")

WRONG = "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(600,600),(900,900)<|box_end|>"
# Half of the generated answers are right. `(0,0)` twice is a duplicate.
ANSWERS = [RIGHT, WRONG, RIGHT.replace("<|box_end|>", "<|box_end|>" + RIGHT), "no dog"]


def rows(count=4, *, conversational=True, value=None):
    from datasets import Dataset

    prompt = [{"role": "user", "content": "Locate the dog."}] if conversational else "Locate the dog."
    return Dataset.from_list([{"prompt": prompt, "truth": value or truth()}] * count)


def answering(model, tokenizer, answers):
    """Let a model generate the answers in turn, whatever the prompts."""

    def generate(input_ids=None, **_):
        texts = [answers[number % len(answers)] + "<|im_end|>" for number in range(len(input_ids))]
        ids = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
        return torch.cat([input_ids, ids.to(input_ids.device)], dim=1)

    model.generate = generate
    return model


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def settings(folder, **more):
    return {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "activation_checkpointing": False,
        "disable_tqdm": True,
        **more,
    }


@pytest.mark.parametrize("trainer", ["GRPO", "RLOO"])
def test_answers_are_decoded_from_their_tokens_and_logged(trainer, tokenizer, model_folder, tmp_path):
    reward = rewards.make("f1@0.5:0.9/1000", tokenizer=tokenizer, name="boxes")
    config = getattr(trl, f"{trainer}Config")(**settings(tmp_path, num_generations=4, max_completion_length=128))
    model = answering(load(model_folder), tokenizer, ANSWERS)
    run = getattr(trl, f"{trainer}Trainer")(
        model,
        reward_funcs=[reward, rewards.make("format", tokenizer=tokenizer)],
        args=config,
        train_dataset=rows(conversational=trainer == "GRPO"),
        processing_class=tokenizer,
    )
    run.train()
    log = run.state.log_history[0]
    # F1 of the four answers: 1, 0, 2 · 1 / (2 + 1), 0. All but the last are well formed.
    assert log["rewards/boxes/mean"] == pytest.approx((1 + 0 + 2 / 3 + 0) / 4)
    assert log["rewards/format/mean"] == pytest.approx(3 / 4)
    assert log["spr/precision"] == pytest.approx((1 + 0 + 1 / 2 + 0) / 4)
    assert (log["spr/recall"], log["spr/duplicates"], log["spr/valid"]) == pytest.approx((1 / 2, 1 / 4, 3 / 4))
    extra = run._logs["extra"]
    assert set(extra) == {"boxes boxes", "format boxes"}
    assert [json.loads(text) for text in list(extra["boxes boxes"])[:4]] == [
        [[0, 0, 320, 240]],
        [[384, 288, 576, 432]],
        [[0, 0, 320, 240]] * 2,
        [],
    ]


def test_online_dpo_prefers_the_answer_with_the_higher_reward(tokenizer, model_folder, tmp_path):
    online_dpo = pytest.importorskip("trl.experimental.online_dpo")
    reward = rewards.make("f1", tokenizer=str(model_folder))
    seen = []

    def spied(**given):
        seen.append((given["trainer_state"].global_step, len(given["completions"]), given["truth"], reward(**given)))
        return seen[-1][-1]

    config = online_dpo.OnlineDPOConfig(**settings(tmp_path, per_device_train_batch_size=2, max_new_tokens=128))
    run = online_dpo.OnlineDPOTrainer(
        answering(load(model_folder), tokenizer, ANSWERS),
        ref_model=load(model_folder),
        reward_funcs=spied,
        args=config,
        train_dataset=rows(),
        processing_class=tokenizer,
    )
    run.train()
    step, count, truths, values = seen[0]
    assert (step, count, truths) == (0, 4, [truth()] * 4)
    assert values == pytest.approx([1, 0, 2 / 3, 0])
    # Two prompts with two answers each: 1 against 2/3, and 0 against 0.
    assert run.state.log_history[0]["objective/scores_margin"] == pytest.approx((1 / 3 + 0) / 2)


def test_a_dotted_name_reads_the_tokenizer_that_the_truths_name(tokenizer, model_folder, tmp_path):
    config = trl.GRPOConfig(**settings(tmp_path, max_steps=1, num_generations=4, max_completion_length=128))

    def run(value):
        trainer = trl.GRPOTrainer(
            answering(load(model_folder), tokenizer, ANSWERS),
            reward_funcs=rewards.f1,
            args=config,
            train_dataset=rows(value=value),
            processing_class=tokenizer,
        )
        trainer.train()
        return trainer.state.log_history[0]

    assert run(truth(tokenizer=str(model_folder)))["rewards/f1/mean"] == pytest.approx((1 + 2 / 3) / 4)
    with pytest.raises(RewardError, match=r"special token of dialect `qwen2_vl`.*TRL removes them(?s:.*)tokenizer"):
        run(truth())


def test_the_script_takes_dotted_names(model_folder, tmp_path, monkeypatch):
    from trl.scripts import grpo

    data = tmp_path / "data"
    data.mkdir()
    row = {"prompt": [{"role": "user", "content": "Locate the dog."}], "truth": truth("ferret")}
    (data / "train.jsonl").write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    given = settings(tmp_path / "out", max_steps=1, num_generations=2, max_completion_length=4)
    given |= {"model_name_or_path": str(model_folder), "dataset_name": str(data), "dtype": "float32"}
    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    arguments += ["--reward_funcs", "spr.rewards.trl.f1", "spr.rewards.trl.length"]
    logs, train = [], trl.GRPOTrainer.train
    monkeypatch.setattr(trl.GRPOTrainer, "train", lambda self, **given: (train(self, **given), logs.append(self.state)))
    grpo.main(*grpo.make_parser().parse_args_and_config(args=arguments))
    log = logs[0].log_history[0]
    assert (log["rewards/f1/mean"], log["rewards/length/mean"]) == (0, 1)


def test_rewards_pickle_as_the_asynchronous_trainer_requires(tokenizer):
    from trl.trainer.utils import get_callable_name, is_async_callable

    copied = pickle.loads(pickle.dumps(rewards.f1))  # noqa: S301 - its own
    assert get_callable_name(copied) == "f1"
    assert not is_async_callable(copied)
    both = rewards.make("0.5*f1@0.75 + 0.5*iou", tokenizer=tokenizer, name="both")
    copied = pickle.loads(pickle.dumps(both))  # noqa: S301 - its own
    ids = tokenizer([RIGHT])["input_ids"]
    assert copied(completions=["dog(0,0),(500,500)"], completion_ids=ids, truth=[truth()]) == [1]
    assert copied.__name__ == "both"
