"""The adapter folder: PEFT loads it, it names its model, and it is written as a whole."""

import json
import os

import pytest
import torch
from accelerate import Accelerator
from peft import AutoPeftModel, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from spr.core.atomic import recover
from spr.core.errors import InputError, RunError
from spr.models.errors import ModelError
from spr.models.loading import load_adapter
from spr.training import trainer as trainer_module
from spr.training.checkpoint import TrainingState, merge_adapter
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee, renamed_properties
from spr.training.trainer import train


@pytest.fixture
def trained(trainable_folder, pairs_folder, settings, tmp_path, monkeypatch):
    """A run folder, and the model as it was in memory at the end."""
    seen = []

    def spy(*arguments, **options):
        seen.append(load_trainee(*arguments, **options))
        return seen[0]

    monkeypatch.setattr(trainer_module, "load_trainee", spy)
    folder = str(trainable_folder("qwen2_5_vl"))
    train(trl_pairs(pairs_folder), folder, settings(per_device_train_batch_size=3), tmp_path / "run", revision="v2")
    return tmp_path / "run", seen[0].model.peft


def test_peft_loads_the_very_tensors_that_were_trained(trained, trainable_folder):
    run, ours = trained
    expected = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    plain = AutoModelForImageTextToText.from_pretrained(trainable_folder("qwen2_5_vl"))
    with renamed_properties():
        loaded = dict(PeftModel.from_pretrained(plain, run / "adapter").named_parameters())
    assert len(expected) == 28
    assert all(torch.equal(loaded[name], p) for name, p in expected.items())
    assert all(torch.equal(loaded[name], p) for name, p in ours.named_parameters())
    assert {t.dtype for t in load_file(run / "adapter" / "adapter_model.safetensors").values()} == {torch.float32}


def test_the_adapter_names_its_model_its_class_and_its_revision(trained, trainable_folder):
    raw = json.loads((trained[0] / "adapter" / "adapter_config.json").read_text())
    assert raw["base_model_name_or_path"] == str(trainable_folder("qwen2_5_vl"))
    assert raw["auto_mapping"]["base_model_class"] == "Qwen2_5_VLForConditionalGeneration"
    assert raw["revision"] == "v2"
    assert (raw["r"], raw["lora_alpha"], raw["bias"]) == (4, 8, "none")


def test_peft_finds_the_model_by_itself(trained):
    with renamed_properties():
        found = AutoPeftModel.from_pretrained(trained[0] / "adapter")
    assert type(found.get_base_model()).__name__ == "Qwen2_5_VLForConditionalGeneration"


def test_an_adapter_whose_files_are_damaged_is_named(trained, tmp_path):
    adapter, out = trained[0] / "adapter", tmp_path / "merged"
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "lora_A" in name)
    save_file({**tensors, name: tensors[name][:, :-1].contiguous()}, weights)
    with pytest.raises(ModelError, match=r"is damaged[\s\S]*repeat the `spr train`"):
        merge_adapter(adapter, out)
    with pytest.raises(ModelError, match="is damaged"):
        load_adapter(None, adapter)
    (adapter / "spr.json").unlink()  # as in an adapter of another program
    with pytest.raises(InputError, match="does not fit"):
        merge_adapter(adapter, out)
    weights.write_bytes(b"nothing")
    with pytest.raises(InputError, match="does not fit"):
        merge_adapter(adapter, out)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match=r"adapter_config\.json can't be read"):
        merge_adapter(adapter, out)
    assert not out.exists()


def test_an_adapter_that_lacks_a_tensor_is_not_merged_in_part(trained, tmp_path):
    weights = trained[0] / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    del tensors[next(name for name in tensors if "lora_B" in name)]
    save_file(tensors, weights)
    (trained[0] / "adapter" / "spr.json").unlink()
    with pytest.raises(InputError, match="does not fit"):
        merge_adapter(trained[0] / "adapter", tmp_path / "merged")


def test_a_damaged_adapter_is_written_again_from_the_last_checkpoint(trained, trainable_folder, pairs_folder, settings):
    run, _ = trained
    before = {path.name: path.read_bytes() for path in (run / "adapter").iterdir()}
    data = before["adapter_model.safetensors"]
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    damages = [("adapter_model.safetensors", data[:-9]), ("adapter_model.safetensors", flipped)]
    damages += [("adapter_config.json", None), ("adapter_model.safetensors", None)]
    for name, content in damages:
        path = run / "adapter" / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        lines = []
        arguments = str(trainable_folder("qwen2_5_vl")), settings(per_device_train_batch_size=3), run
        summary = train(trl_pairs(pairs_folder), *arguments, revision="v2", report=lines.append)
        assert not summary.done_before
        assert f"{run / 'adapter'} is written again: {name} missing or changed since the training." in lines
        assert {path.name: path.read_bytes() for path in (run / "adapter").iterdir()} == before
        assert train(trl_pairs(pairs_folder), *arguments, revision="v2").done_before


def test_files_have_the_permissions_that_the_umask_leaves(trained, tmp_path):
    run, _ = trained
    (tmp_path / "merged-before").mkdir()
    merge_adapter(run / "adapter", tmp_path / "merged")
    merge_adapter(run / "adapter", tmp_path / "merged")  # the same again: done before
    mask = os.umask(0)
    os.umask(mask)
    written = [*(run / "adapter").iterdir(), *(tmp_path / "merged").iterdir()]
    assert len(written) > 6
    assert {path.stat().st_mode & 0o777 for path in written} == {0o666 & ~mask}
    with pytest.raises(RunError, match="holds the output of another `spr merge`"):
        merge_adapter(run / "adapter", tmp_path / "merged", revision="other")
    (tmp_path / "merged" / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"merged is damaged[\s\S]*config\.json"):
        merge_adapter(run / "adapter", tmp_path / "merged")


def test_an_adapter_that_no_training_wrote_is_left_unchanged(trainable_folder, pairs_folder, settings, tmp_path):
    mine = tmp_path / "adapter" / "adapter_model.safetensors"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(RunError, match=r"adapter is not an adapter that `spr train` wrote"):
        train(trl_pairs(pairs_folder), str(trainable_folder("qwen2_5_vl")), settings(), tmp_path)
    assert mine.read_text() == "mine"


def test_an_adapter_is_replaced_as_a_whole_wherever_writing_the_new_one_fails(
    trainable_folder, settings, stir, tmp_path, monkeypatch
):
    trainee = load_trainee(str(trainable_folder("llava")), settings(), torch.device("cpu"), features=tmp_path)
    state, folder = TrainingState(Accelerator(cpu=True), trainee.model, None), tmp_path / "adapter"

    def content():
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    state.save_adapter(folder)
    before = content()
    stir(trainee.model)
    sync, failures = os.fsync, 0
    while content() == before:
        left = failures

        def failing(descriptor):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError("no space left on device")
            sync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            try:
                state.save_adapter(folder)
            except RunError:
                failures += 1
    after = content()
    assert failures > 2
    assert set(after) == set(before)
    assert after["adapter_model.safetensors"] != before["adapter_model.safetensors"]
    state.save_adapter(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_of_a_process_killed_between_two_renames_is_found_again(trainable_folder, settings, tmp_path):
    trainee = load_trainee(str(trainable_folder("llava")), settings(), torch.device("cpu"), features=tmp_path)
    state, folder = TrainingState(Accelerator(cpu=True), trainee.model, None), tmp_path / "adapter"
    state.save_adapter(folder)
    before = (folder / "adapter_model.safetensors").read_bytes()
    folder.rename(tmp_path / ".adapter.999999999.spr-old")
    recover(folder)
    assert (folder / "adapter_model.safetensors").read_bytes() == before
