"""Images that have changed since a run began are named, and the same images in another folder can be accepted."""

import os
import shutil
import tarfile

import pytest
from PIL import Image

from spr.config import make_config
from spr.core.errors import RunError
from spr.core.images import ImageSource
from spr.pipeline.runner import run
from spr.runs.images import check_images
from spr.runs.store import read_table


def recorded(out):
    return {row.pop("file_name"): row for row in read_table(out / "images.parquet").to_pylist()}


@pytest.fixture
def config(dataset):
    def make(**annotations):
        return make_config(dataset.config(annotations={"max_images": 5, **annotations}))

    return make


def set_time(path, seconds):
    os.utime(path, ns=(seconds * 10**9, seconds * 10**9))


def test_a_changed_image_stops_the_run_and_is_named(config, dataset, tmp_path):
    out = tmp_path / "run"
    run(config(), out, until="objects")
    first, second, *_ = recorded(out)
    assert len(recorded(out)) == 5
    for name, row in recorded(out).items():
        info = (dataset.images / name).stat()
        assert row == {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "sha256": None}
    set_time(dataset.images / first, 86_400)
    (dataset.images / second).unlink()  # dropped by the stage that needs it
    with pytest.raises(RunError, match=f"1 of 5 images have changed since {out}") as caught:
        run(config(), out, until="regions")
    assert caught.value.got.startswith(f"'{first}': ")
    assert caught.value.got.endswith(" bytes of 1970-01-02 00:00:00")
    assert str(out / "images.parquet") in caught.value.fix
    assert not (out / "regions").exists()
    (out / "images.parquet").unlink()
    run(config(), out, until="regions")
    assert recorded(out)[first]["mtime_ns"] == 86_400 * 10**9


def test_a_file_of_another_size_has_changed_even_if_its_time_is_the_same(config, dataset, tmp_path):
    run(config(hash_images=True), tmp_path / "run", until="objects")
    for name in recorded(tmp_path / "run"):
        path = dataset.images / name
        before = path.stat()
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(RunError, match="5 of 5 images have changed") as caught:
        check_images(tmp_path / "run", config().annotations)
    assert caught.value.got.endswith("; and 2 more")


def test_with_hashes_a_copied_folder_is_accepted_and_an_edited_image_is_not(config, dataset, tmp_path):
    out = tmp_path / "run"
    run(config(hash_images=True), out, until="objects")
    before = recorded(out)
    assert all(len(row["sha256"]) == 64 for row in before.values())
    for name in before:
        shutil.copyfile(dataset.images / name, tmp_path / "copy")
        shutil.copyfile(tmp_path / "copy", dataset.images / name)
        set_time(dataset.images / name, 1000)
    run(config(), out, until="regions")  # the hashes serve as long as they are there
    assert recorded(out) == {name: {**row, "mtime_ns": 1000 * 10**9} for name, row in before.items()}
    edited = dataset.images / next(iter(before))
    data = bytearray(edited.read_bytes())
    data[-20] ^= 1
    edited.write_bytes(data)
    with pytest.raises(RunError, match="1 of 5 images have changed"):
        run(config(), out, until="regions")


def test_asking_for_hashes_later_adds_them_and_objects_made_again_are_recorded_again(config, dataset, tmp_path):
    out = tmp_path / "run"
    run(config(), out, until="objects")
    run(config(hash_images=True), out, until="objects")
    hashes = {name: row["sha256"] for name, row in recorded(out).items()}
    assert None not in hashes.values()
    name = next(iter(hashes))
    size_wh = ImageSource(dataset.images).load(name).size
    Image.new("RGB", size_wh, "red").save(dataset.images / name)
    assert ImageSource(dataset.images).load(name).getpixel((0, 0)) == (255, 0, 0)
    shutil.rmtree(out / "objects")
    run(config(hash_images=True), out, until="objects")
    assert {other for other, row in recorded(out).items() if row["sha256"] != hashes[other]} == {name}


@pytest.mark.parametrize("content", [b"", b"PAR1", "another table"])
def test_a_damaged_record_names_the_file_to_delete(content, config, tmp_path):
    out = tmp_path / "run"
    run(config(), out, until="objects")
    if isinstance(content, str):
        shutil.copyfile(out / "dropped.parquet", out / "images.parquet")
    else:
        (out / "images.parquet").write_bytes(content)
    with pytest.raises(RunError, match=r"images\.parquet is damaged") as caught:
        run(config(), out, until="objects")
    assert caught.value.fix.startswith(f"delete {out / 'images.parquet'}")


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_in_an_empty_folder_no_image_is_looked_for(config, tmp_path, folder, monkeypatch):
    (tmp_path / "empty").mkdir()
    annotations = {"images": str(tmp_path / folder), "check_images": False}
    monkeypatch.setattr(ImageSource, "identity", lambda *_: pytest.fail("looked for an image"))
    run(config(**annotations), tmp_path / "run", until="objects")
    assert list(recorded(tmp_path / "run").values()) == [{"size": None, "mtime_ns": None, "sha256": None}] * 5


def test_images_outside_an_empty_folder_are_recorded_if_they_are_allowed(config, dataset, tmp_path):
    (dataset.images / "inner").mkdir()
    for image in dataset.coco["images"]:
        image["file_name"] = f"../{image['file_name']}"
    dataset.write()
    run(config(images=str(dataset.images / "inner"), allow_outside_images=True), tmp_path / "run", until="objects")
    assert all(row["size"] for row in recorded(tmp_path / "run").values())


def test_images_in_a_tar_file_are_recorded(config, dataset, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for path in sorted(dataset.images.iterdir()):
            tar.add(path, path.name)
    run(config(images=str(tmp_path / "images.tar")), tmp_path / "run", until="objects")
    found = recorded(tmp_path / "run")
    assert {name: row["size"] for name, row in found.items()} == {
        name: (dataset.images / name).stat().st_size for name in found
    }
