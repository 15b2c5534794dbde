"""Wrong input is dropped with a reason or gives one clear error, and finished work is kept."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from accelerate.tracking import GeneralTracker, register_tracker_class

from spr.core.errors import ConfigError, InputError, SprError
from spr.core.images import ImageProblem
from spr.training.checkpoint import TrainingState
from spr.training.loss import dpo
from spr.training.pairs import trl_pairs
from spr.training.trainer import train


def losses_of(out):
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["event"] == "step"]


@pytest.fixture
def model(trainable_folder):
    return str(trainable_folder("llava_onevision"))


@pytest.fixture
def files(pair_rows, tmp_path):
    """The pairs as a .jsonl file with images beside it."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for number, row in enumerate(pair_rows):
        row["images"][0].save(folder / f"{number}.png")
        question = row["prompt"][0]["content"][1]["text"]
        answers = {side: row[side][0]["content"][0]["text"] for side in ("chosen", "rejected")}
        lines.append({"image": f"{number}.png", "prompt": question, **answers})
    return folder, lines


def write(folder, lines):
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "pairs.jsonl"


def test_pairs_that_can_not_be_trained_on_are_listed_with_their_reasons(files, model, settings, tmp_path):
    folder, lines = files
    lines[1]["chosen"] = "  "
    lines[2]["rejected"] = lines[2]["chosen"]
    lines[3]["chosen"] = "<image>"
    (folder / "4.png").unlink()
    lines[5]["chosen"] = "a " * 3000
    source = write(folder, [*lines, {**lines[0], "prompt": "Another?"}])
    summary = train(trl_pairs(source), model, settings(), tmp_path / "run")
    assert summary.pairs == 2
    reasons = ["empty_answer", "answers_equal", "answer_has_image_token", "image_missing", "too_long"]
    assert summary.dropped == dict.fromkeys(reasons, 1)
    rows = pq.read_table(tmp_path / "run" / "training" / "dropped.parquet").to_pylist()
    assert [row["reason"] for row in rows] == reasons
    assert [(row["id"], row["file_name"]) for row in rows] == [(str(k), None) for k in range(1, 6)]


def test_no_pair_left_says_why_and_where_to_look(files, model, settings, tmp_path):
    folder, lines = files
    for line in lines:
        line["chosen"] = ""
    with pytest.raises(InputError, match="No pair is left to train on") as caught:
        train(trl_pairs(write(folder, lines)), model, settings(), tmp_path / "run")
    assert caught.value.got == "dropped: empty_answer 6"
    assert "dropped.parquet" in caught.value.fix
    for line in lines:
        line |= {"chosen": "a", "image": "/dev/zero"}
    with pytest.raises(InputError, match="No pair is left to train on") as caught:
        train(trl_pairs(write(folder, lines)), model, settings(), tmp_path / "run")
    assert caught.value.got == "dropped: path_outside_images 6"
    assert "--allow-outside-images" in caught.value.fix
    with pytest.raises(InputError, match="No pair is left to train on") as caught:
        train([], model, settings(), tmp_path / "none")
    assert caught.value.got == "dropped: there were no pairs"


def test_an_image_that_vanishes_during_the_training_ends_it_with_its_checkpoint_kept(
    files, model, settings, tmp_path, monkeypatch
):
    folder, lines = files
    source, out = write(folder, lines), tmp_path / "run"
    # What is kept in memory outlives its image.
    config = settings(per_device_train_batch_size=1, num_train_epochs=4, save_steps=1, vision_cache="none")
    train(trl_pairs(source), model, config, tmp_path / "whole", seed=2)
    image, save = (folder / "3.png").read_bytes(), TrainingState.save

    def save_then_delete(*arguments):
        path = save(*arguments)
        (folder / "3.png").unlink(missing_ok=True)
        return path

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", save_then_delete)
        with pytest.raises(ImageProblem, match=r"3\.png"):
            train(trl_pairs(source), model, config, out, seed=2)
    kept = list((out / "training" / "checkpoints").glob("*/checkpoint.json"))
    assert kept
    assert not (out / "adapter").exists()
    (folder / "3.png").write_bytes(image)
    train(trl_pairs(source), model, config, out, seed=2)
    assert losses_of(out) == losses_of(tmp_path / "whole")


def test_a_gradient_that_is_not_finite_stops_the_training_before_the_weights_are_spoilt(
    model, pairs_folder, settings, tmp_path, add_loss
):
    def huge(inputs, settings):
        return dpo(inputs, settings) * 1e38  # finite, but the norm of its gradient is not

    config = settings(max_grad_norm=None, loss_type=add_loss("huge", huge))
    with pytest.raises(SprError, match="The gradient norm of step 1 is not finite") as caught:
        train(trl_pairs(pairs_folder), model, config, tmp_path)
    (saved,) = (tmp_path / "training").glob("not-finite-step-1.pt")
    names = torch.load(saved, weights_only=True)["pair_ids"]
    assert caught.value.got.startswith(f"pairs {', '.join(names)};")
    assert losses_of(tmp_path) == []
    assert not (tmp_path / "adapter").exists()


def test_no_room_in_the_reference_pass_says_what_to_lower(model, pairs_folder, settings, tmp_path, forward_passes):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    forward_passes(full)
    with pytest.raises(SprError, match="A batch of the reference pass does not fit") as caught:
        train(trl_pairs(pairs_folder), model, settings(per_device_train_batch_size=2), tmp_path)
    assert (
        "lower training.per_device_train_batch_size (now 2), training.max_length, or set training.load_in_4bit=true"
        in (caught.value.fix)
    )


def test_no_room_for_a_step_of_one_pair_names_what_is_left_to_lower(model, pairs_folder, settings, tmp_path, add_loss):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    name = add_loss("full", full)
    with pytest.raises(SprError, match="A training step does not fit") as caught:
        train(
            trl_pairs(pairs_folder),
            model,
            settings(per_device_train_batch_size=1, gradient_checkpointing=True, loss_type=name),
            tmp_path,
        )
    assert "batch_size" not in caught.value.fix
    assert "gradient_checkpointing" not in caught.value.fix
    assert caught.value.fix.startswith("lower training.max_length, training.lora.r")


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("tensorbord", "names an unknown tracker", "did you mean `tensorboard`?"),
        ("everything", "names an unknown tracker", None),
        ("dvclive", "is not installed", "pip install dvclive"),
    ],
)
def test_a_tracker_that_is_not_there_is_an_error_before_a_model_is_loaded(
    name, what, fix, pairs_folder, settings, tmp_path
):
    with pytest.raises(ConfigError, match=what) as caught:
        train(trl_pairs(pairs_folder), "no/such-model", settings(report_to=(name,)), tmp_path / "run")
    assert (caught.value.fix or "").startswith(fix or "")
    assert not (tmp_path / "run").exists()


def test_trackers_are_told_each_steps_figures_and_the_config(model, pairs_folder, settings, tmp_path):
    told = []

    class Notes(GeneralTracker):
        name = "notes"
        requires_logging_directory = False

        def __init__(self, run_name, **_):
            super().__init__()
            self.run_name = run_name

        @property
        def tracker(self):
            return told

        def store_init_configuration(self, values):
            told.append(("config", values))

        def log(self, values, step, **_):
            told.append((step, values["loss"]))

        def finish(self):
            told.append("end")

    register_tracker_class(Notes)
    train(
        trl_pairs(pairs_folder), model, settings(per_device_train_batch_size=3, report_to=("notes",)), tmp_path, seed=5
    )
    assert told[0][1]["seed"] == 5
    assert told[1:3] == losses_of(tmp_path)
    assert told[3:] == ["end"]


def test_a_model_that_is_no_multimodal_llm_can_not_be_trained(pairs_folder, settings, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SprError, match="bert") as caught:
        train(trl_pairs(pairs_folder), str(tmp_path / "model"), settings(), tmp_path / "run")
    assert "llava_onevision" in str(caught.value)
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("model_type", "why"),
    [("paligemma", "no test shows"), ("qwen3_5", "linear attention"), ("qwen3_5_moe", "linear attention")],
)
def test_a_prefix_that_must_be_shared_and_can_not_be_is_refused(
    model_type, why, trainable_folder, pairs_folder, settings, tmp_path
):
    with pytest.raises(SprError, match="The prefix can't be shared") as caught:
        train(trl_pairs(pairs_folder), str(trainable_folder(model_type)), settings(prefix_sharing="shared"), tmp_path)
    assert why in caught.value.got
    assert caught.value.fix == "set training.prefix_sharing=auto"
