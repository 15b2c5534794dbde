"""Paths in object storage: names as in pathlib, content in the store, nothing on the local disk."""

import hashlib
import os
import pickle
import time
from pathlib import Path, PurePosixPath

import pytest

from spr.core import object_store
from spr.core.errors import InputError, SprError, StorageError
from spr.core.object_url import ObjectUrl
from spr.core.paths import as_path, exists, is_dir, is_file
from spr.core.remote import ConflictError, RemotePath
from spr.core.text_input import read_text

LOCAL_ONLY = {
    "Path": Path,
    "left of /": lambda path: Path("a") / path,
    "right of /": lambda path: "a" / path,
    "fspath": os.fspath,
    "open": open,
    "os.stat": os.stat,
    "realpath": os.path.realpath,
    "PurePath": PurePosixPath,
    "rename": lambda path: path.rename("x"),
    "rename onto": lambda path: Path("x").rename(path),
    "touch": lambda path: path.touch(),
    "chmod": lambda path: path.chmod(0o600),
    "rglob": lambda path: list(path.rglob("*")),
    "append": lambda path: path.open("ab"),
    "write": lambda path: path.open("w"),
    "rmdir": lambda path: path.rmdir(),
    "symlink_to": lambda path: path.symlink_to("x"),
    "readlink": lambda path: path.readlink(),
    "owner": lambda path: path.owner(),
}


def test_names_are_those_that_pathlib_has():
    path = as_path("s3://bucket/runs//mine/./part-00000.parquet")
    assert isinstance(path, Path)
    assert str(path) == f"{path}" == path.as_posix() == "s3://bucket/runs/mine/part-00000.parquet"
    assert (path.name, path.stem, path.suffix) == ("part-00000.parquet", "part-00000", ".parquet")
    assert (path.bucket, path.key) == ("bucket", "runs/mine/part-00000.parquet")
    assert path.parent / path.name == path == path.parent.parent / "mine" / Path(path.name)
    assert path.with_name("a.json") == path.parent / "a.json"
    assert path.with_suffix(".json").name == "part-00000.json"
    assert str(path.relative_to(path.parent.parent)) == "mine/part-00000.parquet"
    assert path.is_relative_to("s3://bucket/runs")
    assert not path.is_relative_to("/bucket/runs")
    assert [str(parent) for parent in path.parents][-2:] == ["s3://bucket/runs", "s3://bucket"]
    assert as_path("s3://bucket").parent == as_path("s3://bucket/")
    assert sorted([path, path.parent]) == [path.parent, path]


def test_a_path_is_equal_to_its_copies_and_to_nothing_else():
    path = as_path("gs://bucket/a")
    assert pickle.loads(pickle.dumps(path)) == path  # noqa: S301
    assert {path: 1}[RemotePath("gs://bucket/a")] == 1
    assert path == as_path(Path("gs://bucket/a"))
    for other in (as_path("s3://bucket/a"), Path("gs:/bucket/a"), "gs://bucket/a", path.parent):
        assert path != other


@pytest.mark.parametrize("text", ["s3.json", "/a/s3:/x", "./s3:/b", "hf:name:train", "ftp://host/a", "s3:", "s3:/"])
def test_anything_else_is_a_local_path(text):
    assert not isinstance(as_path(text), RemotePath)


@pytest.mark.parametrize("text", ["s3://bucket/a/../b", "https://host/a.json?key=1"])
def test_urls_that_can_not_be_keys_are_refused(text):
    with pytest.raises(InputError):
        as_path(text)


@pytest.mark.parametrize("other", ["/etc/passwd", "..", "a/../../b", "s3://other/x"])
def test_joining_never_leaves_the_folder(other):
    path = as_path("s3://bucket/a")
    try:
        joined = path / other
    except InputError:
        return
    assert joined.is_relative_to(path)


@pytest.mark.parametrize("operation", LOCAL_ONLY)
def test_what_needs_a_local_disk_is_refused_and_leaves_no_file(tmp_path, monkeypatch, operation):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").touch()
    with pytest.raises(SprError, match="s3://bucket/a"):
        LOCAL_ONLY[operation](as_path("s3://bucket/a"))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_every_public_method_of_this_python_s_paths_is_defined_or_refused():
    path = as_path("s3://bucket/a")
    inherited = {"cwd", "home", "from_uri", "parser"}
    names = {name for name in dir(Path) if not name.startswith("_")} - inherited
    assert names <= {*vars(RemotePath), *vars(ObjectUrl)}
    with pytest.raises(StorageError, match="not on a local disk"):
        path.rglob("*")


def test_objects_are_written_read_listed_and_deleted(bucket):
    assert not exists(bucket)
    names = ["a b.json", "ü.json", "a#b?c%20d+e.json", "deep/er/x.json"]
    for name in names:
        (bucket / name).write_bytes(name.encode())
    assert [(bucket / name).read_text() for name in names] == names
    assert sorted(str(path.relative_to(bucket)) for path in bucket.below()) == sorted(names)
    assert [path.name for path in bucket.iterdir()] == ["a b.json", "a#b?c%20d+e.json", "deep", "ü.json"]
    assert [path.name for path in bucket.glob("*.json")] == ["a b.json", "a#b?c%20d+e.json", "ü.json"]
    assert list(bucket.glob("deep/*/x.json")) == [bucket / "deep" / "er" / "x.json"]
    assert is_dir(bucket / "deep")
    assert not is_file(bucket / "deep")
    assert is_file(str(bucket / "ü.json"))
    stat = (bucket / "ü.json").stat()
    assert stat.st_size == len("ü.json".encode())
    assert abs(stat.st_mtime_ns / 1e9 - time.time()) < 100
    (bucket / "ü.json").unlink()
    (bucket / "ü.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError) as caught:
        (bucket / "ü.json").read_bytes()
    assert caught.value.filename == str(bucket / "ü.json")
    with pytest.raises(FileNotFoundError):
        (bucket / "ü.json").stat()


def test_a_file_is_read_by_ranges_wherever_one_seeks(s3, bucket):
    data = bytes(range(256)) * 20_000
    path = bucket / "data"
    path.write_bytes(data)
    s3.calm()
    with path.open("rb") as file:
        file.seek(-300, os.SEEK_END)
        assert file.read(100) == data[-300:-200]
        assert file.seek(1000) == file.tell() == 1000
        assert file.peek(4)[:4] == data[1000:1004]
        file.seek(0)
        assert file.read() == data
        assert file.read(1) == b""
    assert s3.count("^GET") < 12
    assert path.read_range(5, 3) == data[5:8]
    assert path.read_range(len(data) - 2, 100) == data[-2:]
    (bucket / "text").write_text("ä\nb\n")
    with (bucket / "text").open() as file:
        assert list(file) == ["ä\n", "b\n"]
    (bucket / "empty").write_bytes(b"")
    assert (bucket / "empty").open("rb").read() == b""


def test_an_object_that_changes_while_it_is_read_is_an_error(bucket):
    path = bucket / "data"
    path.write_bytes(b"a" * 2**20)
    with path.open("rb") as file:
        assert file.read(1) == b"a"
        path.write_bytes(b"b" * 2**20)
        with pytest.raises(StorageError, match="changed while it was read"):
            file.read()


def test_a_large_object_is_put_in_parts_with_its_sha256(s3, bucket):
    path = bucket / "large"
    path.write_bytes(memoryview(b"x" * 20_000_000))
    assert s3.count("^PUT .*partNumber") == 3
    info = path.info()
    assert (info.size, info.sha256) == (20_000_000, hashlib.sha256(b"x" * 20_000_000).hexdigest())


def test_text_inputs_can_be_urls(bucket):
    (bucket / "a.txt").write_bytes("ä".encode("utf-16"))
    assert read_text(bucket / "a.txt") == "ä"
    with pytest.raises(InputError, match="no such file"):
        read_text(bucket / "b.txt")


def test_web_servers_are_read_but_not_written(s3, bucket):
    (bucket / "a b.txt").write_bytes(b"page")
    page = as_path(f"{s3.url}/{bucket.bucket}/{bucket.key}/a%20b.txt")
    assert page.read_bytes() == page.open("rb").read() == b"page"
    assert is_file(page)
    assert not is_dir(page.parent)
    with pytest.raises(StorageError, match="can't be written"):
        page.write_bytes(b"")


def test_conditional_writes_find_other_writers(bucket):
    path = bucket / "a"
    first = path.put(b"1", only="new")
    with pytest.raises(ConflictError, match="written by another program"):
        path.put(b"2", only="new")
    second = path.put(b"2", only=first)
    with pytest.raises(ConflictError):
        path.put(b"3", only=first)
    path.unlink()
    with pytest.raises(ConflictError, match="deleted"):
        path.put(b"3", only=second)


@pytest.mark.parametrize("action", ["cut after", "503 SlowDown"])
def test_a_conditional_write_whose_answer_got_lost_is_still_this_one(s3, bucket, action):
    path = bucket / "a"
    version = path.put(b"1", only="new")
    s3.inject(action, "^PUT", times=1)
    assert path.put(b"2", only=version) == path.info().version
    assert path.read_bytes() == b"2"


# ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("action", ["503 SlowDown", "500 InternalError", "cut", "cut after"])
def test_passing_faults_are_not_noticed(s3, bucket, action):
    data = os.urandom(300_000)
    (bucket / "a").write_bytes(data)
    s3.inject(action, times=3)
    assert (bucket / "a").read_bytes() == data
    s3.calm()
    s3.inject(action, times=2)
    with (bucket / "a").open("rb") as file:
        assert file.read() == data


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("503 SlowDown", "SlowDown"),
        ("hang", "no answer within 1 s"),
        ("403 AccessDenied", "AccessDenied"),
        ("507 XMinioStorageFull", "store is full"),
        ("400 QuotaExceeded", "store is full"),
    ],
)
def test_faults_that_stay_are_one_clear_error(s3, bucket, monkeypatch, action, message):
    monkeypatch.setenv(object_store.TIMEOUT_VARIABLE, "1")
    s3.inject(action)
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        (bucket / "a").write_bytes(b"1")
    assert time.monotonic() - started < 5
    assert f"{bucket / 'a'} can't be written" in str(caught.value)
    assert message in str(caught.value.got)
    assert caught.value.fix
    with pytest.raises(StorageError, match="can't be read"):
        is_file(bucket / "a")


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_not_a_missing_object():
    with pytest.raises(StorageError, match="There is no bucket s3://no-such-bucket"):
        as_path("s3://no-such-bucket/a").read_bytes()
    with pytest.raises(StorageError, match="There is no bucket"):
        as_path("s3://no-such-bucket/a").write_bytes(b"")
    with pytest.raises(StorageError, match="There is no bucket"):
        is_dir("s3://no-such-bucket/a")


def test_a_server_that_is_down_is_named(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(object_store.TIMEOUT_VARIABLE, "1")
    with pytest.raises(StorageError, match=r"check the network and the endpoint \(http://127.0.0.1:9\)"):
        (bucket / "a").read_bytes()


def test_missing_credentials_are_named_at_once(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setattr(object_store.socket, "create_connection", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    with pytest.raises(InputError, match=r"no credentials for s3://bucket(.|\n)*AWS_ACCESS_KEY_ID"):
        (bucket / "a").read_bytes()


@pytest.mark.parametrize("text", ["soon", "0", "1e9"])
def test_a_wrong_timeout_is_refused(bucket, monkeypatch, text):
    monkeypatch.setenv(object_store.TIMEOUT_VARIABLE, text)
    with pytest.raises(InputError, match=object_store.TIMEOUT_VARIABLE):
        (bucket / "a").read_bytes()


def test_without_the_extra_its_name_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    monkeypatch.setitem(__import__("sys").modules, "obstore.exceptions", None)
    monkeypatch.setattr(object_store, "_stores", {})
    with pytest.raises(SprError, match=r"spatial-preference-rewarding\[storage\]"):
        as_path("s3://bucket/a").read_bytes()
