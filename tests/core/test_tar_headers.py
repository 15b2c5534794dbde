"""Members of tar files are read from headers as Python's and GNU's tar read them, or the file is refused."""

import io
import random
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from spr.core.tar_headers import LOST_LINK, SPARSE, TarError, clean_name, read_members

LONG = "folder/" * 40 + "picture.jpg"
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write(path, members, *, kind="gnu", **options):
    """Write a tar file; members are (name, data) or finished `TarInfo` objects without data."""
    with tarfile.open(path, "w", format=FORMATS[kind], **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def read(data):
    data = data.read_bytes() if isinstance(data, Path) else data
    return read_members(lambda offset, length: data[offset : offset + length], len(data)).to_pylist()


def contents(path):
    """Name and content of each member, by the offsets that were read."""
    data = path.read_bytes()
    return [(row["name"].decode(), data[row["offset"] : row["offset"] + row["size"]]) for row in read(path)]


@pytest.mark.parametrize("kind", FORMATS)
def test_names_and_contents_of_every_format(tmp_path, kind):
    long = LONG if kind != "ustar" else "folder/" * 20 + "picture.jpg"  # USTAR has 155 bytes for the folder
    members = [("./a.jpg", b"a" * 700), ("b/ü 日本.png", b""), (long, b"c" * 512), ("d.json", b"{}"), ("x" * 99, b"e")]
    expected = [(clean_name(name.encode()).decode(), data) for name, data in members]
    assert contents(write(tmp_path / "a.tar", members, kind=kind)) == expected


def test_what_gnu_tar_writes(tmp_path):
    folder = tmp_path / "in" / ("long-" * 30)
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"a" * 1000)
    (folder / "hard.jpg").hardlink_to(folder / "a.jpg")
    (folder / "soft.jpg").symlink_to("a.jpg")
    (folder / "lost.jpg").symlink_to("/etc/passwd")
    with (folder / "sparse.bin").open("wb") as file:
        file.truncate(50_000_000)
        file.seek(25_000_000)
        file.write(b"x")
    (tmp_path / "in" / "z.jpg").write_bytes(b"z")
    for kind in ("gnu", "oldgnu", "posix", "pax"):
        out = tmp_path / f"{kind}.tar"
        subprocess.run(["tar", "-c", "-S", f"--format={kind}", "-f", out, "-C", tmp_path / "in", "."], check=True)
        rows = {row["name"].decode().rpartition("/")[2]: row for row in read(out)}
        data, offset = out.read_bytes(), rows["a.jpg"]["offset"]
        assert data[offset : offset + rows["a.jpg"]["size"]] == b"a" * 1000
        assert {rows[name]["offset"] for name in ("hard.jpg", "soft.jpg")} == {offset}
        assert rows["soft.jpg"]["size"] == 1000
        assert rows["lost.jpg"]["offset"] == LOST_LINK
        assert rows["sparse.bin"]["offset"] == SPARSE
        assert data[rows["z.jpg"]["offset"]] == ord("z")  # the last one: nothing was skipped wrongly
        assert {name.rpartition(b"/")[0] for name in (row["name"] for row in rows.values())} == {b"", b"long-" * 30}


def test_links_lead_to_the_last_member_of_their_target_and_not_out_of_the_tar_file(tmp_path):
    members = [
        ("real/a.jpg", b"old"),
        link("val/b.jpg", "../real/a.jpg"),
        link("c.jpg", "val/b.jpg", tarfile.LNKTYPE),
        link("loop.jpg", "loop.jpg"),
        link("out.jpg", "../../etc/passwd"),
        link("absolute.jpg", "/etc/passwd"),
        ("real/a.jpg", b"newer"),
    ]
    data = (path := write(tmp_path / "a.tar", members)).read_bytes()
    rows = {row["name"].decode(): row for row in read(path)}
    for name in ("val/b.jpg", "c.jpg"):
        assert data[rows[name]["offset"] : rows[name]["offset"] + rows[name]["size"]] == b"newer"
    assert {rows[name]["offset"] for name in ("loop.jpg", "out.jpg", "absolute.jpg")} == {LOST_LINK}


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_a_member_of_more_than_eight_gigabytes(kind):
    # The file is not written: only its headers exist, at their offsets.
    info = tarfile.TarInfo("big.bin")
    info.size = 9 * 2**30 + 5
    head = info.tobuf(FORMATS[kind])
    after = tarfile.TarInfo("a.jpg")
    start = len(head) + 9 * 2**30 + 512
    parts = {0: head, start: after.tobuf(tarfile.GNU_FORMAT) + bytes(1024)}

    def read_at(offset, length):
        at = max(place for place in parts if place <= offset)
        return parts[at][offset - at : offset - at + length]

    rows = read_members(read_at, start + 1536).to_pylist()
    assert [(row["name"], row["offset"], row["size"]) for row in rows] == [
        (b"big.bin", len(head), info.size),
        (b"a.jpg", start + 512, 0),
    ]


def test_global_pax_headers_apply_to_all_members_and_folders_are_left_out(tmp_path):
    folder = tarfile.TarInfo("images/")
    folder.type = tarfile.DIRTYPE
    path = write(tmp_path / "a.tar", [folder, ("images/a.jpg", b"a")], kind="pax", pax_headers={"comment": "x" * 600})
    assert contents(path) == [("images/a.jpg", b"a")]


def test_a_file_that_is_no_tar_file_or_ends_early_is_refused(tmp_path):
    data = write(tmp_path / "a.tar", [("a.jpg", bytes(range(250)) * 8), (LONG, b"b")]).read_bytes()
    cases = [
        (b"", "an empty file"),
        (b"\xff\xd8\xff\xe0" * 300, "no header of a tar file"),
        (bytes(10240), "no member"),
        (data[:300], "ends within a header, after 300 bytes"),
        (data[:1000], "it has 1,000 bytes, but a member ends at byte 2,512"),
        (data[:2900], "ends within a header, after 2,900 bytes"),
        (data[:2560] + b"?" + data[2561:], "a damaged header at byte 2,560"),
    ]
    for case, message in cases:
        with pytest.raises(TarError, match=message):
            read(case)
    # Without the zeros at the end, which some programs leave out, the file is complete.
    assert len(read(data[:4608])) == 2


def test_forged_lengths_cost_no_memory():
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33
    with pytest.raises(TarError, match="a name or a PAX header of 8,589,934,592 bytes"):
        read(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    negative = bytearray(tarfile.TarInfo("x").tobuf())
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    with pytest.raises(TarError, match="a negative size"):
        read(bytes(negative) + bytes(1024))


def test_damaged_tar_files_are_read_or_refused(tmp_path):
    folder = tarfile.TarInfo("images/")
    folder.type = tarfile.DIRTYPE
    draw, outcomes = random.Random(0), {"read": 0, "refused": 0}
    for kind in FORMATS:
        members = [folder, ("images/ü.jpg", b"x" * 900), link("l.jpg", "images/ü.jpg"), ("long/" * 28 + "b", b"y")]
        data = write(tmp_path / f"{kind}.tar", members, kind=kind).read_bytes()
        for _ in range(700):
            broken = bytearray(data[: draw.choice([len(data), draw.randrange(len(data))])])
            for _ in range(draw.randrange(4)):
                if broken:
                    broken[draw.randrange(len(broken))] = draw.randrange(256)
            for start in range(0, len(broken) - 511, 512):  # headers with the right checksum get further
                if draw.random() < 0.8 and any(broken[start : start + 512]):
                    broken[start + 148 : start + 156] = b" " * 8
                    total = sum(broken[start : start + 512])
                    broken[start + 148 : start + 156] = b"%06o\0 " % total
            try:
                for row in read(bytes(broken)):
                    assert row["offset"] < 0 or row["offset"] + row["size"] <= len(broken)
                outcomes["read"] += 1
            except TarError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 200


def test_members_agree_with_pythons_tarfile_on_random_tar_files(tmp_path):
    draw = np.random.default_rng(0)
    for number in range(20):
        kind = list(FORMATS)[number % 3]
        names = [f"{'d' * int(draw.integers(1, 60))}/{k % 7}é.jpg" for k in range(30)]
        path = write(tmp_path / "a.tar", [(name, draw.bytes(int(draw.integers(0, 2000)))) for name in names], kind=kind)
        with tarfile.open(path) as tar:
            expected = [(info.name, tar.extractfile(info).read()) for info in tar if info.isfile()]
        assert contents(path) == expected
