"""Features of images: what tells them apart, and where they are kept."""

import pytest
import torch

from spr.models.image_features import Features
from spr.training.vision_cache import (
    DiskFeatures,
    MemoryFeatures,
    feature_key,
    free_memory,
    open_store,
)

PLAIN = Features(torch.arange(6.0).reshape(3, 2))
DEEP = Features(torch.ones(2, 2), (torch.full((2, 2), 3.0), torch.full((2, 2), 4.0)))


def equal(one, other):
    return (
        other is not None
        and torch.equal(one.tokens, other.tokens)
        and len(one.deep) == len(other.deep)
        and all(torch.equal(a, b) for a, b in zip(one.deep, other.deep, strict=True))
    )


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_is_kept_comes_back_to_the_bit(kind, tmp_path):
    store = open_store(kind, tmp_path)
    assert store.get("aabb") is None
    half = Features(PLAIN.tokens.bfloat16() / 3)
    for key, features in (("aabb", PLAIN), ("ccdd", DEEP), ("eeff", half)):
        store.put(key, features)
    assert equal(PLAIN, store.get("aabb"))
    assert equal(DEEP, store.get("ccdd"))
    assert equal(half, store.get("eeff"))
    assert store.get("eeff").tokens.dtype == torch.bfloat16


def test_none_keeps_nothing(tmp_path):
    store = open_store("none", tmp_path)
    store.put("aabb", PLAIN)
    assert store.get("aabb") is None
    assert not list(tmp_path.iterdir())


def test_memory_that_is_full_keeps_what_it_has_and_takes_what_still_fits():
    store = MemoryFeatures(limit=PLAIN.nbytes + DEEP.nbytes - 1)
    assert (PLAIN.nbytes, DEEP.nbytes) == (24, 48)
    store.put("aabb", PLAIN)
    store.put("aabb", PLAIN)  # counts once
    store.put("ccdd", DEEP)
    assert equal(PLAIN, store.get("aabb"))
    assert store.get("ccdd") is None
    store.put("eeff", Features(PLAIN.tokens + 1))
    assert store.get("eeff") is not None


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"a/b": "4000", "a": "9000"}, 4000),
        ({"a/b": "9000", "a": "4000"}, 4000),  # a job's limit holds for its steps, too
        ({"a/b": "max", "": "5000"}, 5000),
        ({"a/b": "4000 3000"}, 1000),
        ({"a/b": "4000 3000 500"}, 1500),  # of files that were read, which make room
        ({"a/b": "4000 4100"}, 0),
        ({"elsewhere": "10"}, None),
        ({}, None),
    ],
)
def test_free_memory_is_what_the_machine_has_or_the_container_has_left(limits, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 80_000}))
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("1:name=systemd:/other\n0::/a/b\n")
    for name, limit in limits.items():
        (groups / name).mkdir(parents=True, exist_ok=True)
        most, used, cached = [*limit.split(), "0", "0"][:3]
        (groups / name / "memory.max").write_text(f"{most}\n")
        (groups / name / "memory.current").write_text(f"{used}\n")
        (groups / name / "memory.stat").write_text(f"anon 7\ninactive_file {cached}\nactive_file 9\n")
    assert free_memory(groups, own) == (80_000 if expected is None else expected)
    assert free_memory(groups, tmp_path / "none") == 80_000


def test_automatic_features_take_a_quarter_of_the_free_memory_among_a_machines_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("spr.training.vision_cache.free_memory", lambda: 4 * 24 * 2)
    alone = open_store("auto", tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    shared = open_store("auto", tmp_path)
    for store, room in ((alone, 2), (shared, 1)):
        for key in "abc":
            store.put(key, PLAIN)
        assert [store.get(key) is not None for key in "abc"] == [k < room for k in range(3)]


def test_another_run_reads_what_is_on_disk_and_another_process_not_what_is_in_memory(tmp_path):
    DiskFeatures(tmp_path).put("aabb", PLAIN)
    MemoryFeatures().put("aabb", PLAIN)
    assert equal(PLAIN, DiskFeatures(tmp_path).get("aabb"))
    assert MemoryFeatures().get("aabb") is None


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", None])
def test_a_damaged_file_counts_as_none_and_is_written_anew(damage, tmp_path):
    store = DiskFeatures(tmp_path)
    store.put("aabb", PLAIN)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    assert store.get("aabb") is None
    store.put("aabb", PLAIN)
    assert equal(PLAIN, store.get("aabb"))


@pytest.mark.parametrize(
    "other",
    [
        {"pixel_values": torch.ones(1, 3, 2, 2)},
        {"pixel_values": torch.zeros(1, 3, 4, 1)},  # the same bytes in another shape
        {"pixel_values": torch.zeros(1, 3, 2, 2, dtype=torch.int32)},
        {"pixels": torch.zeros(1, 3, 2, 2)},
        {"pixel_values": torch.zeros(1, 3, 2, 2), "image_sizes": torch.tensor([[2, 2]])},
    ],
)
def test_a_key_changes_with_values_shape_type_name_and_sizes(other):
    first = {"pixel_values": torch.zeros(1, 3, 2, 2)}
    assert feature_key(first, "m") == feature_key({"pixel_values": torch.zeros(1, 3, 2, 2)}, "m")
    assert feature_key(other, "m") != feature_key(first, "m")


def test_a_key_changes_with_what_makes_the_features_and_not_with_the_order_of_the_inputs():
    one, two = torch.zeros(2), torch.ones(2)
    assert feature_key({"a": one, "b": two}, "m") == feature_key({"b": two, "a": one}, "m")
    assert feature_key({"a": one, "b": two}, "m") != feature_key({"a": two, "b": one}, "m")
    assert feature_key({"a": one}, "m") != feature_key({"a": one}, "n")
