"""Pickled weights become safetensors completely, once, and without running code in them."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from spr.models.errors import ModelError
from spr.models.ported.tensor_files import Shards, convert_pickles


class Evil:
    def __reduce__(self):
        return (print, ("this ran",))


def test_one_pickle_becomes_one_file(tmp_path):
    shared = torch.arange(4.0)
    torch.save({"a": shared, "b": shared, "c": torch.ones(2, 3).T}, tmp_path / "pytorch_model.bin")
    assert convert_pickles(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "a": [0, 1, 2, 3],
        "b": [0, 1, 2, 3],
        "c": [[1, 1], [1, 1], [1, 1]],
    }
    assert not convert_pickles(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "pytorch_model.bin"]


def test_the_index_of_shards_is_written_last(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(b"half a file")
    with pytest.raises(ModelError, match="can't be loaded safely"):
        convert_pickles(tmp_path)
    assert not (tmp_path / "model.safetensors.index.json").exists()
    # After another download, the folder is converted again.
    torch.save({"b": torch.ones(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    assert convert_pickles(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 20},  # 5 numbers of 4 bytes
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }


def test_code_in_a_pickle_is_not_run(tmp_path, capsys):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    with pytest.raises(ModelError, match=r"can't be loaded safely[\s\S]*without running code"):
        convert_pickles(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can't be loaded safely"):
        convert_pickles(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("content", "got"), [([torch.zeros(1)], "list"), ({"a": torch.zeros(1), "epoch": 3}, "epoch")])
def test_anything_but_named_tensors_is_refused(content, got, tmp_path):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=rf"holds more than tensors[\s\S]*{got}"):
        convert_pickles(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    for k in (1, 2):
        torch.save({"a": torch.zeros(2)}, tmp_path / f"pytorch_model-0000{k}-of-00002.bin")
    with pytest.raises(ModelError, match="contain tensor a"):
        convert_pickles(tmp_path)


def test_folders_without_pickles_and_hub_ids_are_not_changed(tmp_path):
    assert not convert_pickles(tmp_path)
    assert not convert_pickles("THUDM/cogvlm-chat-hf")
    assert not list(tmp_path.iterdir())


def test_the_remains_of_an_interrupted_conversion_are_not_used(tmp_path):
    for k, name in ((1, "a"), (2, "b")):
        torch.save({name: torch.full((2,), float(k))}, tmp_path / f"pytorch_model-0000{k}-of-00002.bin")
    save_file({"a": torch.zeros(2)}, tmp_path / "model-00001-of-00002.safetensors")
    shards = Shards(tmp_path)
    assert shards.pickled
    assert {name: shards[name].tolist() for name in shards} == {"a": [1, 1], "b": [2, 2]}
    assert convert_pickles(tmp_path)
    again = Shards(tmp_path)
    assert not again.pickled
    assert {name: again[name].tolist() for name in again} == {"a": [1, 1], "b": [2, 2]}
