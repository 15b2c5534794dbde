"""A training that is interrupted anywhere resumes to the same losses; damaged files are named."""

import json
import os
import signal
import subprocess

import pytest
import torch

import warm_python
from spr.config import LoraSection, TrainingConfig
from spr.core.errors import RunError
from spr.training.checkpoint import KEPT, TrainingState
from spr.training.pairs import trl_pairs
from spr.training.stopping import InterruptedTrainingError, interrupts
from spr.training.trainer import train

# One process that imports all and then has children train: each kills itself before its Nth sync of a file, N growing,
# so that every kind of file is met half-written. Nothing is computed before a child is begun, nor are threads set: the
# first two threads of a child would race for the pool that it inherits, and PyTorch would fail ("Invalid thread pool").
KILLS = """
import json, os, signal, sys
from pathlib import Path
import torch
from spr.config import TrainingConfig
from spr.training.pairs import trl_pairs
from spr.training.trainer import train
model, pairs, out, settings = sys.argv[1:5]
def work(left):
    real = os.fsync
    def fsync(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)
    os.fsync = fsync
    torch.set_num_threads(1)
    train(trl_pairs(Path(pairs)), model, TrainingConfig(**json.loads(settings)), Path(out), seed=3)
kills, steps = 0, set()
while True:
    child = os.fork()
    if not child:
        try:
            work(1 + 5 * kills)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    kills += 1
    steps |= {path.parent.name for path in Path(out).glob("training/checkpoints/*/checkpoint.json")}
print(json.dumps({"kills": kills, "steps": sorted(steps), "code": os.waitstatus_to_exitcode(status)}))
"""


def lines_of(out):
    return [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]


def losses_of(out):
    names = ("step", "epoch", "loss", "margin", "grad_norm", "learning_rate")
    return [tuple(line[name] for name in names) for line in lines_of(out) if line["event"] == "step"]


def adapter_of(out):
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the killed trainings have: threads share sums out, and a sum in another order has another last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pairs(pairs_folder):
    return list(trl_pairs(pairs_folder))


@pytest.fixture(scope="module")
def model(trainable_folder):
    return str(trainable_folder("llava_onevision"))


@pytest.fixture(scope="module")
def resumable(registered_loss):
    """Six steps of two batches, the second of an epoch with one; dropout, and a checkpoint after each."""
    lora = LoraSection(r=4, lora_alpha=8, lora_dropout=0.2)
    fields = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "save_steps": 1,
        "lora": lora,
        "loss_type": registered_loss.name,
    }
    return TrainingConfig(device="cpu", dtype="float32", learning_rate=1e-2, **fields)


@pytest.fixture(scope="module")
def whole(model, pairs, resumable, tmp_path_factory):
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    train(pairs, model, resumable, out, seed=3)
    return out


@pytest.mark.processes
def test_a_training_killed_at_any_file_it_writes_ends_with_the_losses_of_an_undisturbed_one(
    model, pairs_folder, resumable, whole, tmp_path
):
    out, raw = tmp_path / "killed", json.dumps({**resumable.model_dump(mode="json"), "loss_type": "dpo"})
    command = [*warm_python.start(), "-c", KILLS, model, str(pairs_folder), str(out), raw]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["code"] == 0, done.stderr[-3000:]
    assert told["kills"] > 3
    assert len(told["steps"]) > 2  # it was killed at several steps, not only before the first
    assert losses_of(out) == losses_of(whole)
    assert adapter_of(out) == adapter_of(whole)


def test_a_training_killed_behind_its_last_step_ends_with_that_steps_figures(
    model, pairs, resumable, whole, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save_adapter", die)
        with pytest.raises(Killed):
            train(pairs, model, resumable, tmp_path / "cut", seed=3)
    summary = train(pairs, model, resumable, tmp_path / "cut", seed=3)
    assert summary.last["loss"] == losses_of(whole)[-1][2]
    assert not summary.done_before
    assert adapter_of(tmp_path / "cut") == adapter_of(whole)
    assert train(pairs, model, resumable, tmp_path / "cut", seed=3).last == summary.last


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_end_writes_a_checkpoint_and_leaves(
    how, model, pairs, resumable, whole, watched, tmp_path
):
    # The third loss is the first of the second step: 2 + 1 batches an epoch, two a step.
    rare, out = resumable.model_copy(update={"save_steps": 100}), tmp_path / "cut"
    watched.at(3, lambda: os.kill(os.getpid(), how))
    before = signal.getsignal(how)
    with pytest.raises(InterruptedTrainingError, match="Interrupted after step 2") as caught:
        train(pairs, model, rare, out, seed=3)
    assert caught.value.exit_code == 130
    assert signal.getsignal(how) is before
    assert [path.name for path in (out / "training" / "checkpoints").iterdir()] == ["step-000002"]
    assert not (out / "adapter").exists()
    watched.forget()
    train(pairs, model, rare, out, seed=3)
    assert losses_of(out) == losses_of(whole)


def test_a_signal_in_the_reference_pass_keeps_what_was_computed(
    model, pairs, resumable, whole, tmp_path, forward_passes
):
    out, lines, passes = tmp_path / "cut", [], []

    def interrupt_second():
        passes.append(1)
        if len(passes) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    forward_passes(interrupt_second)
    with pytest.raises(InterruptedTrainingError, match="Interrupted in the reference pass"):
        train(pairs, model, resumable, out, seed=3)
    train(pairs, model, resumable, out, seed=3, report=lines.append)
    assert "Reference log-probabilities of 2 pairs" in lines  # two batches of two were kept
    assert losses_of(out) == losses_of(whole)


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    with interrupts() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def stopped(model, pairs, settings, out, step, watched):
    """A training that was interrupted in a step of two batches."""
    watched.at(2 * step - 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(InterruptedTrainingError):
        train(pairs, model, settings, out, seed=3)
    watched.forget()
    return out / "training" / "checkpoints"


def test_the_newest_checkpoints_stay_and_half_written_ones_are_swept(model, pairs, resumable, watched, tmp_path):
    (tmp_path / "training" / "checkpoints" / "step-000001").mkdir(parents=True)
    half = tmp_path / "training" / "checkpoints" / "step-000099"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    (half.parent / "notes.txt").write_text("mine")
    (half.parent / "step-backup").mkdir()
    checkpoints = stopped(model, pairs, resumable, tmp_path, 4, watched)
    assert KEPT == 2
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "notes.txt",
        "step-000003",
        "step-000004",
        "step-backup",
    ]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.pt", b""),
        ("state.pt", b"garbage"),
        ("state.pt", None),
        ("checkpoint.json", b"[" * 9999),
        ("checkpoint.json", b'{"format_version": 2, "step": "3", "fingerprint": {}, "values": {}}'),
        ("checkpoint.json", b"{"),
        ("checkpoint.json", b"[]"),
        ("checkpoint.json", b'{"format_version": 2, "step": 3}'),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(
    name, damage, model, pairs, resumable, whole, watched, tmp_path
):
    checkpoints = stopped(model, pairs, resumable, tmp_path / "cut", 3, watched)
    newest = checkpoints / "step-000003"
    data = (newest / name).read_bytes()
    (newest / name).write_bytes(data[: len(data) // 2] if damage is None else damage)
    with pytest.raises(RunError, match=r"The checkpoint .*step-000003 is damaged") as caught:
        train(pairs, model, resumable, tmp_path / "cut", seed=3)
    assert caught.value.fix.startswith(f"delete {newest};")
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    train(pairs, model, resumable, tmp_path / "cut", seed=3)
    assert losses_of(tmp_path / "cut") == losses_of(whole)


def test_a_damaged_note_of_the_end_is_named(model, pairs, settings, tmp_path):
    train(pairs, model, settings(per_device_train_batch_size=3), tmp_path)
    (tmp_path / "training" / "finished.json").write_text("[]")
    with pytest.raises(RunError, match=r"finished\.json is damaged"):
        train(pairs, model, settings(per_device_train_batch_size=3), tmp_path)


@pytest.mark.parametrize(
    ("version", "content"),
    [
        ("1 (none is given)", {"step": 2, "settings": {}, "values": {}}),  # as SPR 0.1 wrote it
        (3, {"format_version": 3}),
    ],
)
@pytest.mark.parametrize("name", ["checkpoint.json", "finished.json"])
def test_a_training_of_another_version_is_refused_and_kept(
    name, version, content, model, pairs, settings, watched, tmp_path
):
    config, folder = settings(per_device_train_batch_size=3, loss_type=watched.name), tmp_path / "training"
    if name == "finished.json":
        train(pairs, model, config, tmp_path)
        path = folder / name
    else:
        watched.at(1, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(InterruptedTrainingError):
            train(pairs, model, config, tmp_path)
        path = folder / "checkpoints" / "step-000001" / name
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="was written by another version of SPR") as caught:
        train(pairs, model, config, tmp_path)
    assert (caught.value.got, caught.value.expected) == (version, 2)
    keeping = "use the SPR version that wrote it, or add --name NAME to train beside it"
    assert caught.value.fix == f"{keeping}, or delete {folder} to train again"
    assert json.loads(path.read_text()) == content


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 0.5}, "training.learning_rate: 0.01 → 0.5"),
        ({"lora": LoraSection(r=8, lora_alpha=8, lora_dropout=0.2)}, "training.lora.r: 4 → 8"),
        ({"gradient_accumulation_steps": 1}, "batches_per_step: 2 → 1"),
        ({"seed": 4}, "seed: 3 → 4"),
        ({"pairs": 5}, "pairs: "),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_by_name_and_kept(
    change, named, model, pairs, resumable, watched, tmp_path
):
    checkpoints = stopped(model, pairs, resumable, tmp_path, 2, watched)
    change = dict(change)
    seed, count = change.pop("seed", 3), change.pop("pairs", 6)
    with pytest.raises(RunError, match="was made under another config") as caught:
        train(pairs[:count], model, resumable.model_copy(update=change), tmp_path, seed=seed)
    assert named in caught.value.got
    assert ("--reviews ignore` takes" in caught.value.fix) == ("pairs: " in caught.value.got)
    assert (checkpoints / "step-000002" / "state.pt").is_file()


def test_fields_that_decide_no_number_may_change_between_stop_and_start(
    model, pairs, resumable, whole, watched, tmp_path
):
    stopped(model, pairs, resumable, tmp_path / "cut", 2, watched)
    other = {"save_steps": 7, "logging_steps": 1, "vision_cache": "memory"}
    train(pairs, model, resumable.model_copy(update=other), tmp_path / "cut", seed=3)
    assert losses_of(tmp_path / "cut") == losses_of(whole)


def test_epochs_in_the_log_are_those_of_the_pairs_seen(model, pairs, settings, tmp_path):
    # Six pairs, two a step, three epochs; ended after four steps: 2, 4, 6 and 8 of 6 pairs.
    train(pairs, model, settings(per_device_train_batch_size=2, num_train_epochs=3, max_steps=4), tmp_path)
    assert [line[1] for line in losses_of(tmp_path)] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3])


def test_dropout_makes_a_difference_so_that_random_states_matter(model, pairs, resumable, whole, tmp_path):
    plain = resumable.model_copy(update={"lora": LoraSection(r=4, lora_alpha=8)})
    train(pairs, model, plain, tmp_path / "plain", seed=3)
    assert losses_of(tmp_path / "plain")[1:] != losses_of(whole)[1:]
