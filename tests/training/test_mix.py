"""`training.mix`: rows of other data in the batches, supervised or as preferences, with and without an image."""

import json

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from spr.config import TrainingConfig
from spr.config.training import MixSection
from spr.core.errors import InputError, RunError
from spr.models.chat import render_turn
from spr.models.errors import ModelError
from spr.models.families import FAMILIES
from spr.models.image_features import Features
from spr.training.batches import collate
from spr.training.checkpoint import TrainingState
from spr.training.loss import PairLogps, pair_losses
from spr.training.mix import read_mix, rows_of_epoch
from spr.training.pairs import trl_pairs
from spr.training.schedule import steps_of_training
from spr.training.trainee import load_trainee
from spr.training.trainer import train

TALK = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well, and you?"}]
ROWS = [
    {"messages": TALK},
    {"prompt": "Name a colour.", "completion": "Red."},
    {"prompt": "Say hello.", "chosen": "Hello.", "rejected": "No."},
    {"images": ["a.png"], "messages": [{"role": "user", "content": "<image>\nWhat is it?"}, TALK[1]]},
]


@pytest.fixture
def mix(tmp_path, picture):
    folder = tmp_path / "mix"
    folder.mkdir()
    picture(40, 30).save(folder / "a.png")

    def make(rows=ROWS, **fields):
        (folder / "mix.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return MixSection(path=folder / "mix.jsonl", **{"share": 0.5, **fields})

    return make


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_id(pairs):
    return {pair.pair_id: pair for pair in pairs}


def test_each_of_trls_formats_becomes_a_row(mix):
    talk, completion, preference, picture = (by_id(read_mix(mix(), 10, 0)[0])[f"mix/{k}"] for k in range(4))
    assert [pair.supervised for pair in (talk, completion, preference, picture)] == [True, True, False, True]
    assert (talk.chosen, talk.rejected, talk.has_image) == ("Well, and you?", "", False)
    assert talk.messages == [{"role": "user", "content": [{"type": "text", "text": "How are you?"}]}]
    assert completion.chosen == "Red."
    assert (preference.chosen, preference.rejected) == ("Hello.", "No.")
    # `<image>` in the text is the place of the row's image, which the chat template inserts.
    assert picture.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    assert picture.load().size == (40, 30)
    assert all(pair.mixed for pair in (talk, completion, preference, picture))


def test_a_dataset_folder_and_a_parquet_file_give_the_same_rows(mix, tmp_path):
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in ROWS[1:2]] * 3
    dataset = datasets.Dataset.from_list(rows)
    dataset.save_to_disk(str(tmp_path / "folder"))
    dataset.to_parquet(str(tmp_path / "rows.parquet"))
    expected = [(pair.pair_id, pair.messages, pair.chosen) for pair in read_mix(mix(rows), 9, 0)[0]]
    for path in (tmp_path / "folder", tmp_path / "rows.parquet"):
        found, _ = read_mix(MixSection(path=path), 9, 0)
        assert [(pair.pair_id, pair.messages, pair.chosen) for pair in found] == expected


def test_rows_are_chosen_by_the_seed_and_their_number(mix):
    many = mix([{"prompt": str(k), "completion": "ok"} for k in range(50)])
    all_ids = [pair.pair_id for pair in read_mix(many, 50, 0)[0]]
    assert sorted(all_ids) == sorted(f"mix/{k}" for k in range(50))
    assert [pair.pair_id for pair in read_mix(many, 7, 0)[0]] == all_ids[:7]
    assert [pair.pair_id for pair in read_mix(many, 50, 1)[0]] != all_ids


def test_rows_of_another_split_are_left_out(mix):
    rows = [{**ROWS[1], "split": "train"}, {**ROWS[1], "split": "test"}]
    assert [pair.pair_id for pair in read_mix(mix(rows), 9, 0)[0]] == ["mix/0"]
    with pytest.raises(InputError, match="has no row to train on"):
        read_mix(mix(rows[1:]), 9, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": TALK[:1]}, "`messages` of line 2 .* is not a conversation with an answer"),
        ({"messages": TALK[::-1]}, "`messages` of line 2 .* is not a conversation"),
        ({"messages": "hello"}, "`messages` of line 2"),
        ({"prompt": "a", "chosen": "b"}, "line 2 of .* is in none of TRL's formats"),
        ({"prompt": 7, "completion": "b"}, "The prompt of line 2 of .* can't be read"),
        ({"prompt": "a", "completion": {"x": 1}}, "`completion` of line 2 of .* is not an answer"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "completion": "b"}, "line 2 of .* places an"),
    ],
)
def test_a_row_that_can_not_be_read_is_named_by_its_line(mix, row, message):
    with pytest.raises(InputError, match=message):
        read_mix(mix([ROWS[1], row]), 9, 0)


@pytest.mark.parametrize(
    ("content", "message", "fix"),
    [
        (None, "There is nothing at", "check the path given to training.mix.path"),
        ("", "can't be read as pairs", None),
        ('{"conversations": []}\n', "is in none of TRL's formats", "rename `conversations` to `messages`"),
        ('{"text": "a"}\n', "is in none of TRL's formats", "docs/training.md"),
    ],
)
def test_a_file_of_another_layout_is_refused_before_the_model_is_opened(
    tmp_path, settings, pairs_folder, content, message, fix
):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        train(trl_pairs(pairs_folder), "no/such-model", settings(mix={"path": path}), tmp_path / "out")
    assert fix is None or fix in caught.value.fix


def test_a_share_is_between_0_and_1(tmp_path):
    for share in (0, 1, -0.1):
        with pytest.raises(ValidationError):
            TrainingConfig(mix={"path": tmp_path, "share": share})


# ── the order ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_epoch_has_all_pairs_and_the_next_rows():
    # 4 pairs, then 5 rows, of which 2 are in an epoch.
    steps = steps_of_training(
        [1] * 9,
        batch_size=2,
        batches_per_step=1,
        epochs=3,
        max_steps=None,
        seed=0,
        members=lambda epoch: [*range(4), *(4 + row for row in rows_of_epoch(epoch, 5, 2))],
    )
    epochs = [sorted(k for step in steps[start : start + 3] for batch in step for k in batch) for start in (0, 3, 6)]
    assert epochs == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 6, 7], [0, 1, 2, 3, 4, 8]]


# ── the loss ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("loss", ["dpo", "ipo", "bco_pair", "mpo"])
def test_supervised_rows_have_the_nll_of_their_answer_and_no_reward(loss):
    policy = PairLogps(*(torch.tensor(values) for values in ([-6.0, -2.0], [-1.0, -3.0], [4, 2], [1, 3])))
    policy.chosen.requires_grad_()
    reference = torch.tensor([-7.0, 0.0]), torch.tensor([-1.0, 0.0])
    config = TrainingConfig(loss_type=loss)
    alone = pair_losses(policy, reference, config)
    mixed = pair_losses(policy, reference, config, supervised=torch.tensor([False, True]))
    assert mixed.loss.tolist() == [alone.loss[0].item(), 1.0]  # 2 / 2 tokens
    assert mixed.margins.tolist() == [alone.margins[0].item(), 0.0]
    mixed.loss[1].backward()
    assert policy.chosen.grad.tolist() == [0.0, -0.5]


# ── the model ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model_type", ["llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_a_prompt_without_image_has_the_log_probabilities_of_the_plain_model(
    model_type, trainable_folder, settings, mix, tmp_path
):
    config = settings(mix=mix())
    trainee = load_trainee(str(trainable_folder(model_type)), config, torch.device("cpu"), features=tmp_path)
    rows = sorted(read_mix(mix(), 9, 0)[0], key=lambda pair: pair.pair_id)
    planned, dropped = trainee.encoder.plan(rows, 10_000)
    assert dropped == []
    compute = lambda vision: Features(*trainee.model(vision=vision))  # noqa: E731
    encoded = [trainee.encoder.finish(pair, trainee.encoder.process(pair), compute) for pair in planned]
    with torch.no_grad():
        together = PairLogps(*trainee.model(collate(encoded, trainee.encoder.pad, shared=trainee.shared)))
        assert torch.isfinite(together.chosen).all()
        for k, part in enumerate(encoded[:3]):
            ids = torch.cat([part.prompt, part.chosen])[None]
            logits = trainee.model.base(input_ids=ids).logits[0, len(part.prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, part.chosen[:, None]).sum()
            alone = PairLogps(*trainee.model(collate([part], trainee.encoder.pad, shared=trainee.shared)))
            assert alone.chosen.item() == pytest.approx(expected.item(), abs=2e-4)
            assert together.chosen[k].item() == pytest.approx(expected.item(), abs=2e-4)


def test_families_that_need_an_image_leave_out_rows_without_one(
    trainable_folder, settings, mix, pairs_folder, tmp_path
):
    assert FAMILIES["paligemma"].bidirectional_prompt
    folder, config = str(trainable_folder("paligemma")), settings(mix=mix(), max_steps=1)
    summary = train(trl_pairs(pairs_folder), folder, config, tmp_path / "out")
    assert summary.dropped["no_image"] == 3
    # They take no place: of four rows, the one with an image is found although one row is asked for.
    (pair,), dropped = read_mix(config.mix, 1, 0, without_image=False)
    assert pair.has_image
    assert dropped == [(f"mix/{k}", "no_image") for k in range(4) if f"mix/{k}" != pair.pair_id]


# ── the training ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def trained(trainable_folder, settings, pairs_folder, mix, tmp_path):
    model = str(trainable_folder("llava_onevision"))

    def run(name, rows=ROWS, share=0.4, **changes):
        said = []
        config = settings(mix=mix(rows, share=share), num_train_epochs=2, **changes)
        summary = train(trl_pairs(pairs_folder), model, config, tmp_path / name, seed=3, report=said.append)
        lines = [json.loads(line) for line in (tmp_path / name / "training" / "log.jsonl").read_text().splitlines()]
        return summary, [line for line in lines if line["event"] == "step"], said

    return run


def test_rows_are_counted_and_their_loss_is_logged_beside_that_of_the_pairs(trained):
    summary, steps, said = trained("out")
    assert summary.pairs == 6
    # 6 pairs with a share of 0.4: 4 rows in each of two epochs, in batches of two: 5 steps per epoch.
    assert "training.mix: 4 rows in each epoch, beside 6 pairs" in said
    assert len(steps) == 10
    assert steps[-1]["epoch"] == 2.0
    assert sum(step["mix_rows"] for step in steps) == 8
    for step in steps:
        assert ("mix_loss" in step) == (step["mix_rows"] > 0)
        assert ("pair_loss" in step) == ("margin" in step) == (step["mix_rows"] < 2)
        own, mixed = step.get("pair_loss", 0.0), step.get("mix_loss", 0.0)
        assert step["loss"] == pytest.approx((own * (2 - step["mix_rows"]) + mixed * step["mix_rows"]) / 2)
    first = next(step for step in steps if step["mix_rows"] == 2)
    assert first["mix_loss"] > 0


def test_a_file_with_too_few_rows_is_said_to_be(trained):
    _, steps, said = trained("out", rows=ROWS[:2])
    assert "Warning: training.mix: only 2 of its rows can be used, 25.0 % of an epoch instead of 40.0 %" in said
    assert sum(step["mix_rows"] for step in steps) == 4


def test_the_reference_holds_preferences_only(trained, tmp_path):
    trained("out")
    table = pq.read_table(tmp_path / "out" / "training" / "reference.parquet")
    assert {name for name in table["pair_id"].to_pylist() if name.startswith("mix/")} == {"mix/2"}


def test_without_any_row_to_train_on_the_reason_is_said_with_what_to_do(trained):
    with pytest.raises(InputError, match=r"No row of .* can be trained on") as caught:
        trained("out", rows=[{"images": ["../a.png"], **ROWS[1]}])
    assert caught.value.got == "dropped: path_outside_images"
    assert "training.mix.images" in caught.value.fix


def test_a_row_whose_messages_the_chat_template_refuses_is_named(trained, monkeypatch):
    def refuse(processor, family, messages):
        if messages[0]["role"] == "system":
            raise ModelError("The chat template can't write a conversation", got="no system role", fix="correct it")
        return render_turn(processor, family, messages)

    monkeypatch.setattr("spr.training.encoding.render_turn", refuse)
    system = {"role": "system", "content": "Be brief."}
    with pytest.raises(ModelError, match="The chat template can't write a conversation") as caught:
        trained("out", rows=[*ROWS, {"messages": [system, *TALK]}], share=0.5)
    assert caught.value.got == "mix/4: no system role"


def test_rows_that_can_not_be_trained_on_are_listed_with_their_reason(trained, tmp_path):
    rows = [*ROWS, {"images": ["a.png", "a.png"], **ROWS[1]}, {"images": ["gone.png"], **ROWS[1]}]
    summary, _, _ = trained("out", rows=rows, share=0.5)
    assert summary.dropped == {"several_images": 1, "image_missing": 1}
    dropped = pq.read_table(tmp_path / "out" / "training" / "dropped.parquet").to_pylist()
    assert {(row["id"], row["reason"]) for row in dropped} == {
        ("mix/4", "several_images"),
        ("mix/5", "image_missing"),
    }


def test_another_file_does_not_resume_the_training(trained):
    trained("out")
    with pytest.raises(RunError, match="pairs: "):
        trained("out", rows=[ROWS[0], {**ROWS[1], "completion": "Blue."}, *ROWS[2:]])


@pytest.mark.parametrize("loss", ["dpo", "bco_pair"])
def test_a_training_that_is_resumed_has_the_same_losses_and_weights(loss, trained, tmp_path, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        changes = {"loss_type": loss, "save_steps": 3}
        _, whole, _ = trained("whole", **changes)
        save = TrainingState.save

        def save_then_stop(self, folder, step, *arguments):
            path = save(self, folder, step, *arguments)
            if step == 3:
                raise KeyboardInterrupt
            return path

        monkeypatch.setattr(TrainingState, "save", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            trained("cut", **changes)
        monkeypatch.setattr(TrainingState, "save", save)
        _, resumed, _ = trained("cut", **changes)
    finally:
        torch.set_num_threads(before)
    names = ("step", "epoch", "loss", "pair_loss", "mix_loss", "margin", "grad_norm", "reward_shift")
    assert [[step.get(name) for name in names] for step in resumed] == [
        [step.get(name) for name in names] for step in whole
    ]
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_without_a_mix_nothing_changes(trainable_folder, settings, pairs_folder, tmp_path):
    train(trl_pairs(pairs_folder), str(trainable_folder("llava_onevision")), settings(), tmp_path / "out", seed=3)
    lines = [json.loads(line) for line in (tmp_path / "out" / "training" / "log.jsonl").read_text().splitlines()]
    assert not any(name.startswith("mix") or name == "pair_loss" for line in lines for name in line if name != "mix")


def test_options_of_a_mix_without_a_file_are_refused():
    with pytest.raises(ValidationError, match=r"set mix\.path too"):
        TrainingConfig(mix={"share": 0.2})
    assert TrainingConfig.model_validate(TrainingConfig().model_dump()).mix.path is None
