"""Images in tar files in object storage: the same as on a disk, with few requests, and errors for what changes."""

import gzip
import io
import tarfile

import pytest
from PIL import Image

from spr.core import remote_images
from spr.core.errors import InputError, StorageError
from spr.core.images import ImageProblem, ImageSource

SIZE = (64, 32)


def picture(red):
    sink = io.BytesIO()
    Image.new("RGB", SIZE, (red, 0, 0)).save(sink, "PNG")
    return sink.getvalue()


def tar_of(members):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("SPR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_images, "_known", {})


def red(place, name):
    return ImageSource(place).load(name, SIZE).getpixel((0, 0))[0]


def test_members_are_found_in_a_tar_file_and_in_a_folder_of_them(bucket):
    for patch in range(2):
        members = {f"patch{patch}/{k}.png": picture(10 * patch + k) for k in range(5)}
        (bucket / "shards" / f"patch{patch}.tar").write_bytes(tar_of(members))
    place = bucket / "shards"
    ImageSource(place).prepare()
    assert [red(place, f"images/v2/patch1/{k}.png") for k in range(5)] == [10, 11, 12, 13, 14]
    assert red(place / "patch0.tar", "patch0/3.png") == 3
    assert ImageSource(place).identity("patch1/2.png")[0] == len(picture(12))
    assert ImageSource(place).has("patch1/2.png")
    with pytest.raises(ImageProblem) as caught:
        red(place, "patch2/0.png")
    assert caught.value.reason == "image_missing"
    assert "a member of one of 2 tar files" in caught.value.expected
    with pytest.raises(InputError, match="has no path of its own"):
        ImageSource(place).path("patch1/2.png")


def test_an_object_beside_tar_files_has_precedence(bucket):
    (bucket / "mixed" / "a.tar").write_bytes(tar_of({"a.png": picture(1), "b.png": picture(2)}))
    (bucket / "mixed" / "a.png").write_bytes(picture(3))
    assert [red(bucket / "mixed", name) for name in ("a.png", "b.png")] == [3, 2]


def test_a_second_process_asks_for_no_header_and_each_image_is_one_request(bucket, s3):
    (bucket / "one.tar").write_bytes(tar_of({f"{k}.png": picture(k) for k in range(30)}))
    source = ImageSource(bucket / "one.tar")
    source.prepare()
    remote_images._known.clear()
    s3.calm()
    source.prepare()
    source.read_bytes("0.png")
    before = s3.count("^GET .*one.tar")
    for k in range(1, 30):
        assert source.read_bytes(f"{k}.png") == picture(k)
    assert s3.count("^GET .*one.tar") - before == 29


def test_a_changed_or_compressed_tar_file_is_an_error(bucket):
    path = bucket / "one.tar"
    path.write_bytes(tar_of({"a.png": picture(1)}))
    assert red(path, "a.png") == 1
    path.write_bytes(tar_of({"b.png": picture(2), "a.png": picture(3)}))
    with pytest.raises(StorageError, match="has changed while it was read"):
        red(path, "a.png")
    remote_images._known.clear()
    assert red(path, "a.png") == 3
    (bucket / "packed.tar.gz").write_bytes(gzip.compress(tar_of({"a.png": picture(1)})))
    with pytest.raises(InputError, match="is a compressed tar file") as caught:
        ImageSource(bucket / "packed.tar.gz").prepare()
    assert caught.value.fix == "download it, decompress it with gzip -d, and upload the tar file"
    # One that is also there without compression is ignored, as in a local folder.
    (bucket / "both" / "a.tar").write_bytes(tar_of({"a.png": picture(4)}))
    (bucket / "both" / "a.tar.gz").write_bytes(gzip.compress(tar_of({"a.png": picture(5)})))
    assert red(bucket / "both", "a.png") == 4
    assert remote_images.remote_tars(bucket / "both").compressed == ()
    (bucket / "cut.tar").write_bytes(tar_of({"a.png": picture(1)})[:560])
    with pytest.raises(InputError, match=r"cut\.tar can't be read as a tar file"):
        ImageSource(bucket / "cut.tar").prepare()
