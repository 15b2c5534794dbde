"""Files and folders are written completely or not at all."""

import os
from pathlib import Path

import pytest

from spr.core.atomic import atomic_dir, atomic_file, is_temporary, recover, write_atomically
from spr.core.errors import RunError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_replaces_the_previous_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["a.txt"]


def test_a_file_stays_as_it_was_if_the_block_raises(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, b"one")
    with pytest.raises(TypeError), atomic_file(path) as file:
        file.write("not bytes")
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_replaces_the_previous_one(tmp_path):
    path = tmp_path / "adapter"
    for name in ("old", "new"):
        with atomic_dir(path) as folder:
            (folder / name).write_text(name)
    assert names(path) == ["new"]
    assert names(tmp_path) == ["adapter"]


def test_a_folder_stays_as_it_was_if_the_block_raises(tmp_path):
    path = tmp_path / "adapter"
    with atomic_dir(path) as folder:
        (folder / "old").touch()
    with pytest.raises(RunError), atomic_dir(path) as folder:
        (folder / "missing").read_text()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["adapter"]


def test_recover_puts_a_folder_back_that_a_killed_process_had_renamed(tmp_path):
    # 2**22 is the largest possible process id, so no process has the next one.
    dead = 2**22 + 1
    (tmp_path / f".adapter.{dead}.spr-old").mkdir()
    (tmp_path / f".adapter.{dead}.spr-old" / "weights").touch()
    (tmp_path / f".adapter.{dead}.spr-tmp").mkdir()
    (tmp_path / f".other.{dead}.spr-tmp").mkdir()
    recover(tmp_path / "adapter")
    assert names(tmp_path) == [f".other.{dead}.spr-tmp", "adapter"]
    assert names(tmp_path / "adapter") == ["weights"]


def test_recover_does_not_touch_the_files_of_a_living_process(tmp_path):
    temporary = tmp_path / f".a.txt.{os.getppid()}.spr-tmp"
    temporary.touch()
    recover(tmp_path / "a.txt")
    assert temporary.exists()
    assert is_temporary(temporary)


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/a\.txt can't be written"):
        write_atomically(tmp_path / "file" / "a.txt", b"")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_that_the_umask_leaves(mask, tmp_path):
    before = os.umask(mask)
    try:
        with atomic_file(tmp_path / "a") as file:
            Path(file.name).unlink()  # as a library that replaces the file
            Path(file.name).touch(mode=0o600)
        with atomic_dir(tmp_path / "b") as folder:
            (folder / "c").touch(mode=0o600)
            (folder / "d").mkdir()
            (folder / "d" / "e").touch()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {name: (0o777 if name in "bd" else 0o666) & ~mask for name in "abcde"}
