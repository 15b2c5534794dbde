"""The file of reference log-probabilities: reused where it fits, refused or completed where it does not."""

import dataclasses
import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from spr.core.errors import ConfigError, InputError, RunError, SprError
from spr.training.pair_model import PairModel
from spr.training.pairs import trl_pairs
from spr.training.reference import ReferenceFile
from spr.training.trainer import train

IDENTITY = {"model": "m@1", "dtype": "torch.float32", "four_bits": "False", "processor": "aa"}


def planned(name, key):
    return SimpleNamespace(pair=SimpleNamespace(pair_id=name), key=key)


ONE, TWO = planned("1", "k1"), planned("2", "k2")


@pytest.fixture
def file(tmp_path):
    file = ReferenceFile(tmp_path / "reference.parquet", IDENTITY)
    file.add([ONE], [(-1.25, -2.5)])
    file.save()
    return file.path


def test_what_was_saved_is_known_again_to_the_bit(file):
    third = -1 / 3
    again = ReferenceFile(file, IDENTITY)
    again.add([TWO], [(third, third)])
    again.save()
    last = ReferenceFile(file, IDENTITY)
    assert last.missing([ONE, TWO]) == []
    assert last.of(ONE) == (-1.25, -2.5)
    assert last.of(TWO) == (third, third)


def test_a_pair_whose_content_has_changed_is_missing(file):
    changed = planned("1", "another digest")
    assert ReferenceFile(file, IDENTITY).missing([ONE, changed, TWO]) == [changed, TWO]


@pytest.mark.parametrize("name", list(IDENTITY))
def test_another_model_type_processor_or_quantisation_is_refused_by_name(name, file):
    with pytest.raises(RunError, match="belongs to another reference model") as caught:
        ReferenceFile(file, {**IDENTITY, name: "other"})
    assert caught.value.got == f"{name}: {IDENTITY[name]}, now other"


@pytest.mark.parametrize("content", [b"", b"PAR1 nothing of the kind"])
def test_a_damaged_file_says_that_it_may_be_deleted(content, file):
    file.write_bytes(content)
    with pytest.raises(RunError, match="delete this file; it will be computed again"):
        ReferenceFile(file, IDENTITY)


def test_a_table_of_something_else_is_no_reference(file):
    pq.write_table(pq.read_table(file).replace_schema_metadata({}), file)
    with pytest.raises(RunError, match="not a file of reference log-probabilities"):
        ReferenceFile(file, IDENTITY)


@pytest.mark.parametrize(("version", "got"), [(None, "1 (none is given)"), ("3", 3)])
def test_a_file_of_another_version_says_so_and_what_to_do(version, got, file, tmp_path):
    metadata = {"identity": json.dumps(IDENTITY)} | ({} if version is None else {"format_version": version})
    pq.write_table(pq.read_table(file).replace_schema_metadata(metadata), file)
    with pytest.raises(RunError, match="was written by another version of SPR") as caught:
        ReferenceFile(file, IDENTITY)
    assert (caught.value.got, caught.value.expected) == (got, 2)
    assert caught.value.fix == "use the SPR version that wrote it, or delete this file to compute it again"
    with pytest.raises(RunError, match="was written by another version of SPR") as caught:
        ReferenceFile(tmp_path / "mine.parquet", IDENTITY).import_from(file)
    assert caught.value.fix == "use the SPR version that wrote it, or leave --reference out"


def test_anothers_file_is_taken_over_and_left_as_it_is(file, tmp_path):
    mine = ReferenceFile(tmp_path / "mine" / "reference.parquet", IDENTITY)
    before = file.read_bytes()
    mine.import_from(file)
    mine.add([TWO], [(0.0, 0.0)])
    mine.save()
    assert file.read_bytes() == before
    assert ReferenceFile(mine.path, IDENTITY).missing([ONE, TWO]) == []


def test_anothers_file_that_is_not_there_or_does_not_fit_names_the_flag(file, tmp_path):
    mine = ReferenceFile(tmp_path / "mine.parquet", {**IDENTITY, "model": "other"})
    with pytest.raises(InputError, match="There is no file") as caught:
        mine.import_from(tmp_path / "nowhere.parquet")
    assert caught.value.fix == "check the path given to --reference"
    with pytest.raises(RunError, match="leave --reference out"):
        mine.import_from(file)
    assert not mine.path.exists()


@pytest.fixture
def counted(monkeypatch):
    """How many pairs the reference was computed of, a training at a time."""
    counts = []
    real = ReferenceFile.add

    def add(self, pairs, logps):
        counts.append(len(pairs))
        real(self, pairs, logps)

    monkeypatch.setattr(ReferenceFile, "add", add)
    return counts


def steps_of(out):
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines if line["event"] == "step"]


def test_another_seed_and_rate_compute_nothing_and_train_as_if_they_had(
    trainable_folder, pairs_folder, settings, counted, tmp_path
):
    model, pairs = str(trainable_folder("llava_onevision")), list(trl_pairs(pairs_folder))
    train(pairs, model, settings(per_device_train_batch_size=3), tmp_path / "a")
    assert sum(counted) == 6
    counted.clear()
    other = settings(per_device_train_batch_size=3, learning_rate=1e-3, beta=0.3)
    known = tmp_path / "a" / "training" / "reference.parquet"
    train(pairs, model, other, tmp_path / "b", seed=9, reference=known)
    assert counted == []
    train(pairs, model, other, tmp_path / "c", seed=9)
    assert sum(counted) == 6
    assert steps_of(tmp_path / "b") == steps_of(tmp_path / "c")


def test_only_the_pair_that_has_changed_is_computed_again(trainable_folder, pairs_folder, settings, counted, tmp_path):
    model, pairs = str(trainable_folder("llava_onevision")), list(trl_pairs(pairs_folder))
    train(pairs, model, settings(), tmp_path / "a")
    counted.clear()
    pairs[2] = dataclasses.replace(pairs[2], rejected="three women")
    pairs[4] = dataclasses.replace(pairs[4], digest=lambda: "another image")
    train(pairs, model, settings(), tmp_path / "b", reference=tmp_path / "a" / "training" / "reference.parquet")
    assert sum(counted) == 2


@pytest.mark.parametrize(("change", "named"), [("dtype", "dtype: torch.float32, now torch.bfloat16"), ("words", None)])
def test_another_type_or_template_of_the_same_model_is_refused(
    change, named, trainable_folder, pairs_folder, settings, tmp_path
):
    folder, pairs = trainable_folder("llava"), list(trl_pairs(pairs_folder))
    train(pairs, str(folder), settings(), tmp_path / "a")
    known = tmp_path / "a" / "training" / "reference.parquet"
    dtype = "bfloat16" if change == "dtype" else "float32"
    template = folder / "chat_template.jinja"
    before = template.read_text()
    try:
        if change == "words":
            template.write_text(before.replace("USER:", "HUMAN:"))
        with pytest.raises(RunError, match="belongs to another reference model") as caught:
            train(pairs, str(folder), settings(dtype=dtype), tmp_path / "b", reference=known)
    finally:
        template.write_text(before)
    assert (named or "processor: ") in caught.value.got
    assert not (tmp_path / "b" / "training" / "reference.parquet").exists()


def test_fine_tuning_needs_no_reference(trainable_folder, pairs_folder, settings, counted, tmp_path):
    train(
        trl_pairs(pairs_folder),
        str(trainable_folder("llava")),
        settings(loss_type="sft", per_device_train_batch_size=3),
        tmp_path,
    )
    assert counted == []
    assert not (tmp_path / "training" / "reference.parquet").exists()
    assert len(steps_of(tmp_path)) == 2


def test_a_reference_file_for_a_loss_that_uses_none_is_refused_before_a_model_is_loaded(settings, tmp_path):
    with pytest.raises(ConfigError, match="The loss `sft` uses no reference"):
        train([], "no/such-model", settings(loss_type="sft"), tmp_path, reference=tmp_path / "reference.parquet")


def test_a_reference_that_is_not_finite_stops_before_a_step_and_is_not_kept(
    trainable_folder, pairs_folder, settings, tmp_path, monkeypatch
):
    forward = PairModel.forward

    def broken(self, batch=None, vision=None):
        if batch is None:
            return forward(self, batch, vision)
        count = len(batch.pair_ids)
        return torch.full((count,), float("nan")), torch.zeros(count), torch.ones(count), torch.ones(count)

    monkeypatch.setattr(PairModel, "forward", broken)
    with pytest.raises(SprError, match="log-probability of the reference is not finite"):
        train(trl_pairs(pairs_folder), str(trainable_folder("llava")), settings(), tmp_path)
    assert (tmp_path / "training" / "not-finite-reference.pt").is_file()
    assert not (tmp_path / "training" / "reference.parquet").exists()
