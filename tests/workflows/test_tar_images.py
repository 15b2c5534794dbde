"""A run whose images are in tar files gives what it gives for a folder, in every command that opens images."""

import os
import subprocess
import tarfile

import pytest

from run_folders import FAKES, files, rows
from spr.config import make_config
from spr.core.errors import InputError, RunError
from spr.core.images import ImageSource
from spr.evaluation.task import evaluate
from spr.exports.writing import export
from spr.models.fakes import FakeDescriber
from spr.pipeline.runner import run
from spr.report.contact_sheet import draw_sheet
from spr.report.page import write_report
from spr.runs.images import check_images
from spr.training.pairs import run_pairs
from spr.workflows.check import check
from spr.workflows.predict import image_files, open_image


@pytest.fixture(scope="module")
def places(make_dataset, tmp_path_factory):
    """A dataset, its images as they are in Objects365, and these in one tar file and in two."""
    dataset = make_dataset(tmp_path_factory.mktemp("tars") / "data", images=10)
    for number, image in enumerate(dataset.coco["images"]):
        old, patch = image["file_name"], f"patch{number % 2}"
        image["file_name"] = f"images/v2/{patch}/{old}"
        (dataset.images / "images" / "v2" / patch).mkdir(parents=True, exist_ok=True)
        (dataset.images / old).rename(dataset.images / image["file_name"])
    dataset.write()
    split = dataset.folder / "tars"
    split.mkdir()
    for patch in ("patch0", "patch1"):
        subprocess.run(["tar", "-cf", split / f"{patch}.tar", "-C", dataset.images / "images/v2", patch], check=True)
    subprocess.run(["tar", "-cf", dataset.folder / "images.tar", "-C", dataset.images, "."], check=True)
    return dataset, {"folder": dataset.images, "tar": dataset.folder / "images.tar", "tars": split}


def config(dataset, place, **sections):
    return make_config(
        dataset.config(annotations={"images": str(place), **sections.pop("annotations", {})}, **sections)
    )


@pytest.fixture(scope="module")
def runs(places, tmp_path_factory):
    dataset, found = places
    out = tmp_path_factory.mktemp("runs")
    for name, place in found.items():
        run(config(dataset, place, shard_rows=4, **FAKES), out / name)
    return {name: out / name for name in found}


def shards(out):
    return {name: data for name, data in files(out).items() if "/part-" in name or "/dropped" in name}


def test_every_shard_has_the_same_bytes(runs):
    expected = shards(runs["folder"])
    assert len(expected) > 10
    assert len(rows(runs["folder"], "pairs")) > 5
    assert shards(runs["tar"]) == expected
    assert shards(runs["tars"]) == expected


def test_worker_processes_read_from_tar_files(places, runs, tmp_path):
    dataset, found = places
    run(config(dataset, found["tars"], shard_rows=4, **FAKES), tmp_path / "run", until="objects", workers=2)
    assert shards(tmp_path / "run").items() <= shards(runs["folder"]).items()


def test_a_changed_tar_file_stops_the_run_and_hashes_accept_a_copy(places, tmp_path):
    dataset, found = places
    copy = tmp_path / "images.tar"
    copy.write_bytes(found["tar"].read_bytes())
    settings = config(dataset, copy, annotations={"hash_images": True})
    run(settings, tmp_path / "run", until="objects")
    os.utime(copy, ns=(5, 5))
    check_images(tmp_path / "run", settings.annotations)  # other times, the same content
    run(config(dataset, copy), tmp_path / "plain", until="objects")
    os.utime(copy, ns=(6, 6))
    with pytest.raises(RunError, match="10 of 10 images have changed"):
        check_images(tmp_path / "plain", settings.annotations)
    data = bytearray(copy.read_bytes())
    with tarfile.open(copy) as tar:
        member = next(info for info in tar if info.isfile())
    data[member.offset_data + member.size - 5] ^= 1
    copy.write_bytes(data)
    with pytest.raises(RunError, match="1 of 10 images have changed") as caught:
        check_images(tmp_path / "run", settings.annotations)
    assert member.name.removeprefix("./") in caught.value.got


def test_exports_with_copies_are_the_same_and_paths_are_refused(runs, tmp_path):
    for name in ("folder", "tars"):
        export(runs[name], tmp_path / name, "fiftyone", images="copy")
    first, second = (files(tmp_path / name) for name in ("folder", "tars"))
    copies = {name for name in first if name.endswith(".png")}
    assert len(copies) == 10
    assert {name: second[name] for name in copies} == {name: first[name] for name in copies}
    with pytest.raises(InputError, match="An image in a tar file has no path of its own") as caught:
        export(runs["tars"], tmp_path / "paths", "fiftyone", images="path")
    assert "--images copy" in caught.value.fix
    assert not (tmp_path / "paths").exists()


def test_report_drawing_training_and_evaluation_read_from_tar_files(places, runs, tmp_path):
    for name in ("folder", "tar"):
        write_report(runs[name], tmp_path / name)
        draw_sheet(runs[name] / "pairs", tmp_path / f"{name}.png", n=3)
    pictures = [
        {k: v for k, v in files(tmp_path / name).items() if k.startswith("thumbs/")} for name in ("folder", "tar")
    ]
    assert len(pictures[0]) > 5
    assert pictures[0] == pictures[1]
    assert (tmp_path / "folder.png").read_bytes() == (tmp_path / "tar.png").read_bytes()
    digests = [
        [pair.digest() for pair in run_pairs(runs[name], ImageSource(places[1][name]))] for name in ("folder", "tar")
    ]
    assert digests[0] == digests[1]
    results = [evaluate("description", runs[name], describer=FakeDescriber()) for name in ("folder", "tar")]
    given = evaluate("description", runs["folder"], describer=FakeDescriber(), images=places[1]["tars"])
    assert results[0].metrics == results[1].metrics == given.metrics


def test_predict_opens_a_member_by_the_path_of_its_tar_file(places):
    dataset, found = places
    name = dataset.coco["images"][0]["file_name"]
    expected = open_image(found["folder"] / name)
    for path in (found["tar"] / name, found["tar"] / name.rpartition("/")[2]):
        assert image_files([path]) == [path]
        assert open_image(path) == expected
    with pytest.raises(InputError, match="There is no image"):
        image_files([found["tar"] / "gone.png"])


def test_doctor_names_the_tar_files_and_the_command_for_compressed_ones(places, tmp_path):
    dataset, found = places

    def line(place):
        return next(item for item in check(config(dataset, place)) if item[1] == "annotations.images")

    size = sum(path.stat().st_size for path in found["tars"].iterdir()) / 1e3
    assert line(found["tars"]) == ("ok", "annotations.images", f"{found['tars']}, 2 tar files, {size:.1f} kB")
    subprocess.run(["gzip", "-k", found["tar"]], check=True)
    compressed = found["tar"].with_name("images.tar.gz")
    expected = f"{compressed}: {compressed} is a compressed tar file; gzip -d {compressed}"
    assert line(compressed) == ("MISSING", "annotations.images", expected)
    assert line(tmp_path / "gone")[::2] == ("MISSING", f"{tmp_path / 'gone'} is neither a folder nor a tar file")
    with pytest.raises(InputError, match="is a compressed tar file"):
        run(config(dataset, compressed), tmp_path / "run")
