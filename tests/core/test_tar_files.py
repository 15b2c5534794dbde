"""Images in tar files: found by name or by the end of the path, and read as those in a folder."""

import gzip
import io
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from spr.core import tar_index, tar_lookup, tar_members
from spr.core.errors import InputError, SprError
from spr.core.images import ImageProblem, ImageSource
from spr.core.tar_index import TarFile, cache_folder, indexes

SIZE = (64, 32)


def picture(colour=(200, 30, 40), kind="PNG"):
    sink = io.BytesIO()
    Image.new("RGB", SIZE, colour).save(sink, kind)
    return sink.getvalue()


def write(path, members):
    """Write a tar file of (name, bytes or a link's target) pairs."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def red(place, name, **options):
    """The red of an image's first pixel."""
    return ImageSource(place, **options).load(name, SIZE).getpixel((0, 0))[0]


def problem(place, name):
    with pytest.raises(ImageProblem) as caught:
        ImageSource(place).load(name, SIZE)
    return caught.value


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_method_gives_for_a_tar_file_what_it_gives_for_the_folder(tmp_path, photos):
    folder, tar = tmp_path / "images", tmp_path / "images.tar"
    (folder / "sub").mkdir(parents=True)
    names = []
    for number, path in enumerate(sorted((photos / "images").iterdir())[:12]):
        names.append(f"sub/{path.name}" if number % 2 else path.name)
        (folder / names[-1]).write_bytes(path.read_bytes())
    (folder / "alpha.png").write_bytes(picture())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE, (9, 8, 7)).save(folder / "turned.jpg", exif=exif)
    (folder / "cut.jpg").write_bytes((folder / names[0]).read_bytes()[:5000])
    (folder / "empty.jpg").touch()
    names += ["alpha.png", "turned.jpg", "cut.jpg", "empty.jpg", "gone.jpg", "../a.jpg", "sub"]
    subprocess.run(["tar", "-cf", tar, "-C", folder, "."], check=True)

    def outcome(place, method, *arguments):
        try:
            result = getattr(ImageSource(place), method)(*arguments)
        except ImageProblem as problem:
            return problem.reason
        return result.tobytes() if isinstance(result, Image.Image) else result

    reasons = set()
    for name in names:
        size_wh = outcome(folder, "header", name)[0] if (folder / name).is_file() else SIZE
        size_wh = size_wh if isinstance(size_wh, tuple) else SIZE
        for method, arguments in {
            "check": (size_wh,),
            "header": (),
            "load": (size_wh,),
            "thumbnail": (size_wh, 40),
            "reads_alike": (),
            "read_bytes": (),
            "spelled_alike": (),
            "has": (),
        }.items():
            expected, found = (outcome(place, method, name, *arguments) for place in (folder, tar))
            if name != "sub":  # a folder, which a tar file has only as part of names
                assert found == expected, (name, method)
            reasons.add(expected if isinstance(expected, str) else "fine")
    assert reasons >= {"fine", "image_missing", "image_unreadable", "path_outside_images"}
    assert problem(tar, "sub").reason == "image_missing"


def test_threads_and_processes_read_the_same_bytes(tmp_path):
    images = {f"{k}.png": picture((k, 2 * k, 3 * k)) for k in range(60)}
    for shard in range(3):
        write(tmp_path / f"{shard}.tar", list(images.items())[shard::3])
    source = ImageSource(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read_bytes, list(images) * 5)) == list(images.values()) * 5
    assert pickle.loads(pickle.dumps(source)) == source  # noqa: S301
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        assert processes.map(source.read_bytes, list(images)) == list(images.values())


def test_large_members_are_read_piece_by_piece(tmp_path, monkeypatch):
    data = {name: picture(kind=kind) for name, kind in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.tiff", "TIFF"))}
    tar = write(tmp_path / "a.tar", [("before", b"x" * 700), *data.items()])
    monkeypatch.setattr(tar_members, "_AT_ONCE", 16)
    for name, content in data.items():
        assert ImageSource(tar).read_bytes(name) == content
        assert ImageSource(tar).load(name, SIZE).size == SIZE


def test_more_tar_files_than_files_that_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_members, "_MOST_OPEN", 2)
    for shard in range(6):
        write(tmp_path / f"{shard}.tar", [(f"{shard}.png", picture((10 * shard, 0, 0)))])
    source, before = ImageSource(tmp_path), len(list(Path("/proc/self/fd").iterdir()))
    with ThreadPoolExecutor(4) as pool:
        reds = list(
            pool.map(lambda name: source.load(name, SIZE).getpixel((0, 0))[0], [f"{k % 6}.png" for k in range(60)])
        )
    assert reds == [10 * (k % 6) for k in range(60)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_objects365_is_found_in_its_tar_files(tmp_path):
    # Its JSON names images/v1/patch0/…, its archives hold patch0/… or ./patch0/…
    write(tmp_path / "patch0.tar", [("patch0/objects365_v1_00000000.jpg", picture((10, 0, 0)))])
    write(tmp_path / "patch16.tar", [("./patch16/objects365_v2_00908726.jpg", picture((20, 0, 0)))])
    assert red(tmp_path, "images/v1/patch0/objects365_v1_00000000.jpg") == 10
    assert red(tmp_path, "images/v2/patch16/objects365_v2_00908726.jpg") == 20
    assert red(tmp_path / "patch16.tar", "images/v2/patch16/objects365_v2_00908726.jpg") == 20
    assert red(tmp_path, "objects365_v2_00908726.jpg") == 20  # as the Robust Vision Challenge names them
    missing = problem(tmp_path, "images/v2/patch17/objects365_v2_00908726.jpg")
    assert missing.reason == "image_missing"
    assert missing.got.startswith(
        "'patch16.tar/patch16/objects365_v2_00908726.jpg', in other upper and lower case, in an"
    )


def test_webdataset_shards_are_found_by_the_name_or_with_the_name_of_the_shard(tmp_path):
    for shard in range(2):
        members = [
            (f"{key:04d}.{kind}", data)
            for key in range(3)
            for kind, data in (("jpg", picture((50 * shard + key, 0, 0))), ("json", b"{}"))
        ]
        write(tmp_path / f"00000{shard}.tar", [*members, (f"only{shard}.jpg", picture())])
    assert red(tmp_path, "only1.jpg") == 200
    for name in ("000001/0002.jpg", "000001.tar/0002.jpg", "train/000001/0002.jpg"):
        assert red(tmp_path, name) == 52
    # A key of several shards is ambiguous without the shard.
    missing = problem(tmp_path, "0002.jpg")
    assert missing.got == "2 files whose names are spelled alike: '000000.tar/0002.jpg', '000001.tar/0002.jpg'"


def test_a_whole_name_comes_before_the_end_of_a_path(tmp_path):
    tar = write(
        tmp_path / "a.tar",
        [
            ("x.jpg", picture((1, 0, 0))),
            ("val/x.jpg", picture((2, 0, 0))),
            ("deep/train/x.jpg", picture((3, 0, 0))),
            ("deep/train/y.jpg", picture((4, 0, 0))),
            ("twice/z.jpg", picture((5, 0, 0))),
            ("again/z.jpg", picture((6, 0, 0))),
        ],
    )
    assert [red(tar, name) for name in ("x.jpg", "./x.jpg", "val/x.jpg", "coco/val/x.jpg")] == [1, 1, 2, 2]
    assert [red(tar, name) for name in ("train/x.jpg", "train/y.jpg", "y.jpg")] == [1, 4, 4]
    assert problem(tar, "z.jpg").got.startswith("2 files whose names are spelled alike")
    assert problem(tar, "other/y.jpg").got.startswith("'a.tar/deep/train/y.jpg', in other")


def test_of_members_of_the_same_name_the_last_counts_and_links_are_followed(tmp_path):
    members = [
        ("a.png", picture((1, 0, 0))),
        ("b.png", "a.png"),
        ("./a.png", picture((2, 0, 0))),
        ("c.png", "/etc/passwd"),
    ]
    tar = write(tmp_path / "a.tar", members)
    assert [red(tar, name) for name in ("a.png", "b.png")] == [2, 2]
    assert problem(tar, "c.png").reason == "image_unreadable"
    assert problem(tar, "c.png").got == "a link to something that is not in the tar file"


def test_names_that_are_spelled_alike_and_names_that_are_not_utf_8(tmp_path):
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as file:
        for name in ("val/my photo.JPG", "cafe\u0301.png", os.fsdecode(b"gbk-\xd6\xd0.png")):
            info = tarfile.TarInfo(name)
            info.size = len(data := picture())
            file.addfile(info, io.BytesIO(data))
    source = ImageSource(tar)
    for name, found in {
        "val\\my%20photo.jpg": "a.tar/val/my photo.JPG",
        "caf\u00e9.png": "a.tar/cafe\u0301.png",
    }.items():
        assert source.load(name, SIZE).size == SIZE
        assert source.spelled_alike(name) == found
        assert not source.has(name)
        assert source.load(found, SIZE).size == SIZE
    assert source.load(os.fsdecode(b"gbk-\xd6\xd0.png"), SIZE).size == SIZE
    assert problem(tar, "\ud800.png").reason == "image_missing"
    assert problem(tar, "n" * 5000).reason == "image_missing"


def test_the_end_of_a_path_is_found_among_many_names_with_the_same_last_part(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_lookup, "_MOST_ALIKE", 3)
    members = [(f"data/{k}/image.png", picture((k, 0, 0))) for k in range(9)]
    tar = write(tmp_path / "a.tar", [*members, ("val/2/image.png", picture())])
    assert [red(tar, name) for name in ("data/7/image.png", "8/image.png", "x/data/5/image.png")] == [7, 8, 5]
    assert [problem(tar, name).reason for name in ("image.png", "2/image.png", "9/image.png")] == ["image_missing"] * 3


def test_unsafe_names_are_refused_and_never_looked_for(tmp_path):
    tar = write(tmp_path / "a.tar", [("../up.png", picture()), ("/etc/abs.png", picture())])
    for name in ("../up.png", "/etc/abs.png", "a/../up.png", "x\0.png", ""):
        assert problem(tar, name).reason == "path_outside_images"
    assert red(tar, "etc/abs.png") == 200


# ── folders with tar files ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_file_has_precedence_and_tar_files_are_indexed_only_if_one_is_missing(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(picture((1, 0, 0)))
    write(tmp_path / "more.TAR", [("a.png", picture((2, 0, 0))), ("b.png", picture((3, 0, 0)))])
    monkeypatch.setattr(tar_lookup, "indexes", lambda _: pytest.fail("indexed"))
    ImageSource(tmp_path).prepare()
    assert red(tmp_path, "a.png") == 1
    monkeypatch.undo()
    assert [red(tmp_path, name) for name in ("b.png", "more/a.png", "more.TAR/a.png")] == [3, 2, 2]
    assert problem(tmp_path, "c.png").expected == f"the file {tmp_path}/c.png; or a member of more.TAR"


def test_a_new_or_changed_tar_file_is_noticed(tmp_path):
    write(tmp_path / "a.tar", [("a.png", picture((1, 0, 0)))])
    source = ImageSource(tmp_path)
    assert red(tmp_path, "a.png") == 1
    before = source.identity("a.png")
    assert before == (len(picture((1, 0, 0))), (tmp_path / "a.tar").stat().st_mtime_ns)
    write(tmp_path / "b.tar", [("b.png", picture((2, 0, 0)))])
    assert red(tmp_path, "b.png") == 2
    write(tmp_path / "new", [("a.png", picture((3, 0, 0)))]).replace(tmp_path / "a.tar")
    os.utime(tmp_path / "a.tar", ns=(1, 1))
    os.utime(tmp_path, ns=(2, 2))
    assert (red(tmp_path, "a.png"), source.identity("a.png")) == (3, (before[0], 1))
    # One that changes in its place, without a change of the folder, stops the command: offsets are no longer right.
    with (tmp_path / "a.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"a\.tar has changed while it is read"):
        source.load("a.png", SIZE)
    assert source.identity("gone.png") is None


def test_links_to_tar_files_outside_need_permission(tmp_path):
    (tmp_path / "images").mkdir()
    outside = write(tmp_path / "a.tar", [("a.png", picture())])
    (tmp_path / "images" / "a.tar").symlink_to(outside)
    for call in (ImageSource(tmp_path / "images").prepare, lambda: red(tmp_path / "images", "a.png")):
        with pytest.raises(InputError, match=r"a\.tar is a link that leaves the image folder"):
            call()
    assert red(tmp_path / "images", "a.png", allow_outside=True) == 200
    (tmp_path / "link.tar").symlink_to(outside)
    assert red(tmp_path / "link.tar", "a.png") == 200  # chosen by the user


COMMANDS = {".gz": "gzip -d", ".bz2": "bzip2 -d", ".xz": "xz -d", ".zst": "zstd -d --rm"}


def compressed(data, suffix):
    if suffix == ".zst":
        return b"\x28\xb5\x2f\xfd" + data  # only its beginning is looked at
    return {".gz": gzip.compress, ".bz2": __import__("bz2").compress, ".xz": __import__("lzma").compress}[suffix](data)


@pytest.mark.parametrize("suffix", COMMANDS)
def test_a_compressed_tar_file_is_refused_with_the_command_that_decompresses_it(tmp_path, suffix):
    data = write(tmp_path / "plain", [("a.png", picture())]).read_bytes()
    folder = tmp_path / "my images"
    folder.mkdir()
    path = folder / f"patch16.tar{suffix}"
    path.write_bytes(compressed(data, suffix))
    for place in (path, folder):
        with pytest.raises(InputError, match="is a compressed tar file") as caught:
            ImageSource(place).prepare()
        assert caught.value.fix == f"{COMMANDS[suffix]} '{path}'"
        assert "as large" in caught.value.expected
    (folder / f"patch17.tar{suffix}").write_bytes(compressed(data, suffix))
    with pytest.raises(InputError, match="2 tar files are compressed") as caught:
        ImageSource(folder).prepare()
    assert caught.value.fix == f"{COMMANDS[suffix]} '{folder}'/*{suffix}"
    # Beside other images it is no error, but explains why one is missing.
    (folder / "b.png").write_bytes(picture())
    ImageSource(folder).prepare()
    missing = problem(folder, "a.png")
    assert "patch16.tar" in missing.expected
    assert f"{COMMANDS[suffix]} '{path}'" in missing.expected


def test_the_content_decides_whether_a_tar_file_is_compressed(tmp_path):
    data = write(tmp_path / "a.tar.gz", [("a.png", picture())]).read_bytes()
    assert red(tmp_path / "a.tar.gz", "a.png") == 200
    assert red(tmp_path, "a.png") == 200
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.tar").write_bytes(gzip.compress(data))
    for place in (tmp_path / "b", tmp_path / "b" / "b.tar"):
        with pytest.raises(InputError, match="is a compressed tar file") as caught:
            ImageSource(place).prepare()
        path = tmp_path / "b" / "b.tar"
        assert caught.value.fix == f"mv {path} {path}.gz && gzip -d {path}.gz"
    # The commands of the fix do what they promise, and a tar file beside its compressed form is enough.
    subprocess.run(caught.value.fix, shell=True, check=True)  # noqa: S602
    (tmp_path / "b" / "b.tar.gz").write_bytes(gzip.compress(data))
    ImageSource(tmp_path / "b").prepare()
    assert red(tmp_path / "b", "a.png") == 200


def test_what_is_no_place_for_images_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "empty.tar").touch()
    cut = tmp_path / "cut"
    cut.mkdir()
    data = write(cut / "whole.tar", [("a.png", picture() * 20)]).read_bytes()
    (cut / "cut.tar").write_bytes(data[:1500])
    for place, what in {
        tmp_path / "nothing": "no image folder",
        tmp_path / "a.jpg": r"a\.jpg can't be read as a tar file",
        tmp_path / "empty.tar": r"empty\.tar can't be read as a tar file",
        cut / "cut.tar": r"cut\.tar can't be read as a tar file",
        cut: r"cut\.tar can't be read as a tar file",
    }.items():
        with pytest.raises(InputError, match=what):
            ImageSource(place).prepare()
        if place.exists():
            with pytest.raises(InputError, match=what):
                red(place, "b.png")


def test_an_image_in_a_tar_file_has_no_path(tmp_path):
    tar = write(tmp_path / "a.tar", [("a.png", picture())])
    with pytest.raises(InputError, match="has no path of its own") as caught:
        ImageSource(tar).path("a.png")
    assert "--images copy" in caught.value.fix


# ── the index ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPR_CACHE", str(tmp_path / "own cache"))
    return tmp_path / "own cache" / "tars"


def cached(folder):
    return sorted(folder.glob("*.arrow"))


def test_an_index_is_made_once_and_again_when_the_tar_file_changes(tmp_path, own_cache, monkeypatch):
    tar = write(tmp_path / "a.tar", [("a.png", picture())])
    first = indexes([TarFile.at(tar)])[0]
    (kept,) = cached(own_cache)
    monkeypatch.setattr(tar_index, "read_members", lambda *_: pytest.fail("read again"))
    assert indexes([TarFile.at(tar)])[0].equals(first)
    monkeypatch.undo()
    monkeypatch.setenv("SPR_CACHE", str(own_cache.parent))
    write(tar, [("a.png", picture()), ("b.png", picture())])
    assert len(indexes([TarFile.at(tar)])[0]) == 2
    assert [path.name == kept.name for path in cached(own_cache)] == [False]  # the old one is removed


def test_a_damaged_index_is_made_again(tmp_path, own_cache):
    tar = TarFile.at(write(tmp_path / "a.tar", [(f"{k}.png", picture()) for k in range(9)]))
    expected = indexes([tar])[0].to_pylist()
    (kept,) = cached(own_cache)
    data = kept.read_bytes()
    draw = random.Random(0)
    for number in range(60):
        broken = bytearray(data[: len(data) if number % 2 else draw.randrange(len(data))])
        for _ in range(20 if broken else 0):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        kept.write_bytes(broken)
        for row in indexes([tar])[0].to_pylist():  # wrong numbers, at worst, which give no image
            assert isinstance(row["name"], bytes)
        kept.write_bytes(broken[:100])
        assert indexes([tar])[0].to_pylist() == expected


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SPR_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own" / "tars"
    monkeypatch.delenv("SPR_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "spr" / "tars"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "spr" / "tars"


def test_without_a_place_for_the_index_images_are_read_all_the_same(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPR_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tar_index, "_warned", False)
    assert red(write(tmp_path / "a.tar", [("a.png", picture())]), "a.png") == 200
    assert red(write(tmp_path / "b.tar", [("a.png", picture())]), "a.png") == 200
    assert capsys.readouterr().err.count("Note: the index of a tar file can't be kept") == 1


def test_several_processes_index_at_once(tmp_path, own_cache):
    for shard in range(4):
        write(tmp_path / f"{shard}.tar", [(f"{shard}/{k:05d}.png", picture((shard, 0, 0))) for k in range(400)])
    code = f"""
from pathlib import Path
from spr.core.images import ImageSource
source = ImageSource(Path({str(tmp_path)!r}))
source.prepare()
print([source.load(f"{{k}}/00399.png", (64, 32)).getpixel((0, 0))[0] for k in range(4)])
"""
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in started] == ["[0, 1, 2, 3]"] * 4
    assert len(cached(own_cache)) == 4
    assert not [path.name for path in own_cache.iterdir() if "spr-tmp" in path.name]


def test_damaged_tar_files_give_an_image_or_a_clear_error(tmp_path, own_cache):
    draw, outcomes = random.Random(1), set()
    sink = io.BytesIO()
    Image.frombytes("RGB", SIZE, draw.randbytes(SIZE[0] * SIZE[1] * 3)).save(sink, "PNG")
    data = write(tmp_path / "a.tar", [(f"{k}.png", sink.getvalue()) for k in range(5)]).read_bytes()
    for number in range(250):
        broken = bytearray(data if number % 2 else data[: draw.randrange(len(data))])
        for _ in range(draw.randrange(1, 5) if broken else 0):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        path = tmp_path / "broken.tar"
        path.write_bytes(draw.randbytes(2000) if number % 10 == 0 else broken)
        os.utime(path, ns=(number, number))
        for name in ("0.png", "4.png"):
            try:
                assert ImageSource(path).load(name, SIZE).size == SIZE
                outcomes.add("image")
            except SprError as error:
                outcomes.add(getattr(error, "reason", "refused"))
    assert outcomes == {"image", "refused", "image_missing", "image_unreadable"}
    assert isinstance(own_cache, Path)
