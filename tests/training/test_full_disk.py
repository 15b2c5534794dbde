"""A disk without space, simulated by a limit on the size of files, gives one clear error and leaves what was there."""

import contextlib
import resource
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from spr.core.atomic import atomic_file
from spr.core.errors import RunError, SprError
from spr.models.loading import clear_write_errors
from spr.models.ported.tensor_files import convert_pickles
from spr.training.checkpoint import TrainingState, merge_adapter
from spr.training.log import TrainingLog
from spr.training.stopping import check_finite
from spr.training.trainee import load_trainee


@contextlib.contextmanager
def full_disk(free=2000):
    """Files can't grow over ``free`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path):
    model = torch.nn.Linear(60, 60)
    state = TrainingState(Accelerator(cpu=True), model, torch.optim.AdamW(model.parameters()))
    state.save(tmp_path, 1, {}, {})
    before = contents(tmp_path)
    with full_disk(), pytest.raises(RunError, match=r"step-000002 can't be written[\s\S]*free some disk space"):
        state.save(tmp_path, 2, {}, {})
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_an_adapter_and_a_merged_model_that_do_not_fit(trainable_folder, settings, tmp_path):
    trainee = load_trainee(str(trainable_folder("llava")), settings(), torch.device("cpu"), features=tmp_path)
    state, adapter = TrainingState(Accelerator(cpu=True), trainee.model, None), tmp_path / "adapter"
    with full_disk(), pytest.raises(RunError, match="adapter can't be written"):
        state.save_adapter(adapter)
    assert not list(tmp_path.iterdir())
    state.save_adapter(adapter)
    with full_disk(), pytest.raises(RunError, match="merged can't be written"):
        merge_adapter(adapter, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_tensors_that_do_not_fit(tmp_path):
    refused = pytest.raises(RunError, match="a can't be written")
    with full_disk(), refused, atomic_file(tmp_path / "a") as file, clear_write_errors(tmp_path / "a"):
        save_file({"x": torch.zeros(9999)}, file.name)
    torch.save({"x": torch.zeros(9999)}, tmp_path / "pytorch_model.bin")
    before = contents(tmp_path)
    with full_disk(), pytest.raises(RunError, match="can't be written"):
        convert_pickles(tmp_path)
    assert contents(tmp_path) == before


def test_the_reason_is_told_although_the_batch_can_not_be_saved(tmp_path):
    names = ("input_ids", "positions", "mask", "labels", "owners")
    batch = SimpleNamespace(pair_ids=("a", "b"), **dict.fromkeys(names, torch.zeros(999)))
    with (
        full_disk(),
        pytest.raises(SprError, match=r"The loss of step 3 is not finite[\s\S]*pairs b; the batch can't be"),
    ):
        check_finite(torch.tensor([0.0, torch.nan]), batch, 3, "loss", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_batch_without_a_dense_mask_is_saved(tmp_path):
    names = ("input_ids", "positions", "labels", "owners")
    batch = SimpleNamespace(pair_ids=("a", "b"), mask=None, **dict.fromkeys(names, torch.zeros(9)))
    with pytest.raises(SprError, match=r"not finite[\s\S]*pairs b; the batch is in"):
        check_finite(torch.tensor([0.0, torch.nan]), batch, 3, "loss", tmp_path)
    assert torch.load(tmp_path / "not-finite-step-3.pt")["mask"] is None


def test_a_line_of_the_log_that_does_not_fit(tmp_path):
    (tmp_path / "log.jsonl").write_text("{}\n" * 700)
    log = TrainingLog(tmp_path / "log.jsonl", 9, 3)
    with full_disk(), pytest.raises(RunError, match=r"log\.jsonl can't be written"):
        log.event("start", text="x" * 100)
