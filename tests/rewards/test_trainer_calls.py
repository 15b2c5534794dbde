"""The adapters, called as the trainers call them; `tests/trainer_signatures.json` records how."""

import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rl_samples import RIGHT, truth
from spr.core.errors import RewardError
from spr.rewards import REWARDS, get_reward

SIGNATURES = json.loads((Path(__file__).parents[1] / "trainer_signatures.json").read_text(encoding="utf-8"))
CALLS = [(trainer, name) for trainer, calls in SIGNATURES.items() for name in calls if name not in ("version", "names")]
MODULES = {"visual-rft": "vlm_r1"}
COLUMNS = {"trl": "truth", "ms-swift": "truth", "verl": "reward_model.ground_truth", "easyr1": "ground_truth"}
STEPS = ("trl", "ms-swift")
JSON = '```json\n[{"bbox_2d": [0, 0, 500, 500], "label": "dog"}]\n```'
ANSWERS = [
    JSON,
    f"<think>\n{JSON}\n</think><answer>There is no dog.</answer>",
    '<think>A dog?</think><answer>[{"bbox_2d": [0, 0, 500, 500]}, {"bbox_2d": [0, 0, 500, 500]}]</answer>',
    f"<think>{JSON}",
]


def module(trainer):
    return importlib.import_module(f"spr.rewards.{MODULES.get(trainer, trainer.replace('-', '_'))}")


def make(call, reward, **options):
    trainer, _ = call
    if call == ("verl", "batch"):
        options["batch"] = True
    made = module(trainer).make(reward, **options)
    return made(args=None) if trainer == "ms-swift" else made


def score(call, reward, answers, truths, *, step=0):
    """The rewards of the answers, from a function called with the arguments that the trainer gives."""
    trainer, name = call
    shape = SIGNATURES[trainer][name]
    messages = [[{"role": "assistant", "content": answer}] for answer in answers]
    count = range(len(answers))
    values = {
        "prompts": [[{"role": "user", "content": "Locate the dog."}] for _ in count],
        "completions": messages,
        "completion_ids": [[1, 2, 3] for _ in count],
        "data_sources": ["spr" for _ in count],
        "solution_strs": answers,
        "ground_truths": truths,
        "extra_infos": [{"index": k, "rollout_reward_scores": {}} for k in count],
    }
    columns = {"query_id": [f"7/{k}" for k in count], COLUMNS.get(trainer, "solution"): truths}
    if "trainer_state" in shape["keys"]:
        columns["trainer_state"] = SimpleNamespace(global_step=step)
    inputs = [
        {"response": answer, "response_length": 9, "ground_truth": value}
        for answer, value in zip(answers, truths, strict=True)
    ]
    if call == ("easyr1", "batch"):
        return [item["overall"] for item in reward(inputs)]
    if call == ("easyr1", "sequential"):
        return [reward(item)["overall"] for item in inputs]
    if call == ("verl", "naive"):
        rows = zip(answers, truths, strict=True)
        values = [{"data_source": "spr", "solution_str": a, "ground_truth": t, "extra_info": {"i": 0}} for a, t in rows]
        assert set(values[0]) == set(shape["keywords"])
        return [reward(**item)["score"] for item in values]
    if call == ("verl", "batch"):
        return [item["score"] for item in reward(**{key: values[key] for key in shape["keywords"]})]
    assert shape["more"]
    positional = [answers][: shape["positional"]]
    return reward(*positional, **{key: values[key] for key in shape["keywords"]}, **columns)


@pytest.fixture(params=CALLS, ids=[" ".join(call) for call in CALLS])
def call(request):
    return request.param


def test_the_answer_after_the_reasoning_is_scored(call):
    # F1: 1; no box; one of two boxes for one object, 2 · 1 / (2 + 1); reasoning that is not closed is no answer.
    values = score(call, make(call, "f1"), ANSWERS, [truth("qwen3_vl")] * 4)
    assert values == pytest.approx([1, 0, 2 / 3, 0])
    values = score(call, make(call, "0.75*f1@0.9 + 0.25*rejection"), ANSWERS, [truth("qwen3_vl", ())] * 4)
    assert values == pytest.approx([0, 1, 0, 0])


def test_a_prompt_that_opens_the_reasoning_makes_an_answer_without_its_end_no_answer(call):
    answers = [JSON, f"A dog?</think>{JSON}"]
    assert score(call, make(call, "f1", opens_thinking=True), answers, [truth("qwen3_vl")] * 2) == [0, 1]


def test_a_threshold_follows_the_trainers_step_or_is_refused(call):
    answer = '[{"bbox_2d": [0, 0, 500, 350], "label": "dog"}]'  # IoU 0.7
    if call[0] not in STEPS:
        with pytest.raises(RewardError, match=r"tells rewards no step(?s:.*)f1@0.5:0.9/1000"):
            make(call, "0.5*f1@0.5:0.9/1000 + 0.5*iou")
        return
    reward = make(call, "f1@0.5:0.9/1000")
    values = [score(call, reward, [answer], [truth("qwen3_vl")], step=step)[0] for step in (0, 499, 501, 5000)]
    assert values == [1, 1, 0, 0]


def test_a_trainer_of_trl_without_steps_refuses_a_schedule():
    reward = make(("trl", "GRPO"), "f1@0.5:0.9/1000")
    with pytest.raises(RewardError, match="gives no step"):
        reward(completions=[JSON], truth=[truth("qwen3_vl")])


WRONG = {
    "not JSON": ("the dog", "is not JSON"),
    "another object": ('{"solution": [0, 0, 1, 1]}', "has no key `spr_truth`"),
    "a number": (7, "is not a truth"),
    "nothing": (None, "is not a truth"),
    "an unknown dialect": (truth("qwen3_vl").replace("qwen3_vl", "qwen3"), "[Uu]nknown dialect"),
    "a box outside of the image": (truth("qwen3_vl").replace("320", "700"), "box of object 0"),
    "no size": (truth("qwen3_vl").replace('"width": 640, ', ""), "has no key `width`"),
}


@pytest.mark.parametrize(("value", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_truth_is_an_error_that_names_the_column(call, value, message):
    column = COLUMNS.get(call[0], "solution")
    with pytest.raises(RewardError, match=f"(?s)Column `{column}`.*{message}"):
        score(call, make(call, "f1"), ANSWERS[:2], [truth("qwen3_vl"), value])


@pytest.mark.parametrize("trainer", ["trl", "ms-swift", "vlm-r1", "visual-rft"])
def test_a_missing_column_is_an_error_that_names_it_and_those_there_are(trainer):
    reward = make((trainer, "GRPO"), "f1")
    column = COLUMNS.get(trainer, "solution")
    with pytest.raises(RewardError, match=rf"no column `{column}`(?s:.*)answer, image(?s:.*)spr export"):
        reward(completions=[JSON], answer=["a dog"], image=[None])
    with pytest.raises(RewardError, match=f"`{column}` has another length(?s:.*)2 truths"):
        reward(completions=[JSON, JSON], **{column: [truth("qwen3_vl")]})
    with pytest.raises(RewardError, match=f"`{column}` is not a list"):
        reward(completions=[JSON], **{column: truth("qwen3_vl")})


@pytest.mark.parametrize("trainer", ["vlm-r1", "visual-rft"])
def test_a_solution_may_stand_in_answer_tags(trainer):
    # VLM-R1's make_conversation_from_jsonl wraps it.
    values = score(
        (trainer, "GRPO"), make((trainer, "GRPO"), "f1"), [JSON], [f"<answer> {truth('qwen3_vl')} </answer>"]
    )
    assert values == [1]


STRIPPED = "dog(0,0),(500,500)"


def test_markup_without_its_special_tokens_is_an_error_where_the_trainer_removes_them(call):
    if call[0] == "ms-swift":  # decodes with special tokens
        assert score(call, make(call, "f1"), [RIGHT, "no dog"], [truth()] * 2) == [1, 0]
        return
    with pytest.raises(RewardError, match=r"special token of dialect `qwen2_vl`(?s:.*)dog\(0,0\)(?s:.*)fix: "):
        score(call, make(call, "f1"), [STRIPPED] * 16, [truth()] * 16)
    # Where one answer has them, those without them are answers without boxes; then in all batches that follow.
    reward = make(call, "f1")
    assert score(call, reward, [RIGHT, "no dog"], [truth()] * 2) == [1, 0]
    assert score(call, reward, ["no dog"], [truth()]) == [0]
    assert score(call, make(call, "f1", special_tokens="kept"), ["no dog"], [truth()]) == [0]
    # A right answer without boxes has no special tokens.
    assert score(call, make(call, "f1"), ["There is no dog."], [truth(objects=())]) == [1]


def test_a_reward_works_again_after_the_error_about_special_tokens(call):
    reward = make(call, "f1")
    if call[0] == "ms-swift":
        assert score(call, reward, [STRIPPED], [truth()]) == [1]
        return
    with pytest.raises(RewardError, match="special token"):
        score(call, reward, [STRIPPED] * 16, [truth()] * 16)
    assert score(call, reward, [JSON], [truth("qwen3_vl")]) == [1]
    assert score(call, reward, [RIGHT, "no dog"], [truth()] * 2) == [1, 0]


HOSTILE = [
    "",
    " \n",
    "<|im_end|>",
    "</think>" * 500,
    "<answer>" * 500,
    "[[" * 5000,
    '[{"bbox_2d": [1e999, NaN, -1, null]}]',
    '[{"bbox_2d": [9, 9, 1, 1]}, {"bbox_2d": ["a"]}, 7, {"label": {"label": []}}]',
    "\x00\ud800\u202e" * 50,
    "(1,2),(3,4)" * 2000,
    "<|box_start|>" * 500,
]


@pytest.mark.parametrize("dialect", ["qwen3_vl", "glm_v", "qwen2_vl", "ferret", "molmo"])
def test_no_answer_raises(call, dialect):
    options = {} if call[0] == "ms-swift" else {"special_tokens": "kept"}
    reward = make(call, "0.5*f1 + 0.2*iou + 0.1*format + 0.1*s_loc + 0.1*map", **options)
    values = score(call, reward, HOSTILE, [truth(dialect, labels="name")] * len(HOSTILE))
    assert all(0 <= value <= 1 for value in values)


@pytest.mark.parametrize("trainer", ["trl", "ms_swift", "verl", "easyr1", "vlm_r1"])
def test_every_reward_is_an_attribute_of_the_module(trainer):
    adapter = importlib.import_module(f"spr.rewards.{trainer}")
    assert set(REWARDS) <= set(dir(adapter))
    for name in REWARDS:
        assert getattr(adapter, name).__name__ == name
        assert getattr(adapter, name) is getattr(adapter, name)
    with pytest.raises(AttributeError, match="did you mean `f1`"):
        _ = adapter.f2
    assert not hasattr(adapter, "__path__")


@pytest.mark.parametrize("trainer", ["trl", "verl", "easyr1", "vlm_r1"])
def test_rewards_pickle(trainer):
    adapter = importlib.import_module(f"spr.rewards.{trainer}")
    spec = "0.12345678*f1@0.75 + 0.5*iou"
    made = adapter.make(spec, opens_thinking=True, special_tokens="kept")
    copied = pickle.loads(pickle.dumps(made))  # noqa: S301 - its own
    assert type(copied) is type(made)
    assert copied.options() == made.options()
    assert copied.reward == get_reward(spec)


def test_a_reward_of_ms_swift_pickles_with_the_arguments_of_the_trainer():
    from spr.rewards import ms_swift

    given = {"beta": 0.04}
    for made in (ms_swift.f1(given), ms_swift.make("0.5*f1@0.75 + 0.5*iou", name="both", opens_thinking=True)(given)):
        copied = pickle.loads(pickle.dumps(made))  # noqa: S301 - its own
        assert (copied.args, copied.options(), copied.reward) == (given, made.options(), made.reward)


@pytest.mark.parametrize("response", [None, float("nan"), []])
def test_an_answer_that_is_no_text_does_not_say_that_nothing_is_there(response):
    from spr.rewards import easyr1, trl, verl

    nothing = truth("qwen3_vl", ())
    assert trl.f1(completions=[response], truth=[nothing]) == [0]
    assert verl.f1("spr", response, nothing)["score"] == 0
    assert easyr1.f1({"response": response, "ground_truth": nothing})["overall"] == 0


def test_the_adapters_need_only_the_base_install():
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'datasets', 'trl', 'swift', 'verl'): sys.modules[name] = None\n"
        "from spr.rewards import Truth, easyr1, ms_swift, trl, verl, vlm_r1\n"
        "truth = Truth((), 'qwen3_vl', (640, 480)).to_json()\n"
        "given = {'completions': ['There is no dog.'], 'truth': [truth]}\n"
        "print(trl.f1(**given), ms_swift.f1()(**given), vlm_r1.f1(given['completions'], [truth]))\n"
        "print(easyr1.f1({'response': 'No dog.', 'ground_truth': truth}), verl.f1('spr', 'No dog.', truth))\n"
        "given['truth'] = [truth.replace('qwen3_vl', 'rex_omni')]\n"
        "trl.make('f1', tokenizer='x')(**given, completion_ids=[[1]])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "[1.0] [1.0] [1.0]"
    assert "pip install 'spatial-preference-rewarding[models]'" in done.stderr


def test_wrong_options_are_refused():
    from spr.rewards import trl

    with pytest.raises(RewardError, match="did you mean `f1`"):
        trl.make("f2")
    with pytest.raises(RewardError, match="did you mean `kept`"):
        trl.make("f1", special_tokens="keep")
    with pytest.raises(TypeError):
        trl.make("f1", tokeniser="x")


def test_verl_passes_the_options_of_compute_score():
    from spr.rewards.verl import compute_score

    given = {"data_source": "spr", "solution_str": '[{"bbox_2d": [0, 0, 500, 350]}]', "ground_truth": truth("qwen3_vl")}
    assert compute_score(**given, extra_info={})["score"] == 1
    assert compute_score(**given, reward="0.5*f1@0.75 + 0.5*iou", reward_router_address=None)["score"] == (
        pytest.approx(0.35)
    )
    assert compute_score(**given) == {"score": 1, "precision": 1, "recall": 1, "duplicates": 0, "valid": 1}
    with pytest.raises(TypeError):
        compute_score(**given, rewards="iou")


def test_completions_may_have_parts_and_several_turns():
    from spr.rewards import trl

    parts = [
        {"role": "assistant", "content": [{"type": "text", "text": JSON[:20]}, {"type": "text", "text": JSON[20:]}]}
    ]
    turns = [
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "tool", "content": "[]"},
        {"role": "assistant", "content": JSON},
    ]
    nothing = [{"role": "assistant", "content": None}]
    completions = [parts, turns, nothing, []]
    assert trl.f1(completions=completions, truth=[truth("qwen3_vl")] * 4) == [1, 1, 0, 0]


def test_trl_logs_the_means_of_a_batch_and_the_boxes():
    from spr.rewards import trl

    metrics, columns = {}, {}
    trl.iou(
        completions=ANSWERS[:3],
        truth=[truth("qwen3_vl")] * 3,
        log_metric=metrics.__setitem__,
        log_extra=columns.__setitem__,
    )
    assert metrics == pytest.approx(
        {"spr/precision": 0.5, "spr/recall": 2 / 3, "spr/duplicates": 1 / 3, "spr/valid": 2 / 3}
    )
    dog = [0.0, 0.0, 320.0, 240.0]
    assert [json.loads(text) for text in columns["iou boxes"]] == [[dog], [], [dog, dog]]
