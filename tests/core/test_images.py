"""Image files: safe paths, checks against the annotations, and pixels as RGB."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spr.core import image_files, images
from spr.core.images import ImageProblem, ImageSource, Orientation
from spr.core.reasons import IMAGE_REASONS

SIZE = (64, 32)


def save(path: Path, image: Image.Image | None = None, *, orientation: int | None = None, **options: Any) -> str:
    """Save a picture, red on the left and blue on the right, and return its name."""
    if image is None:
        image = Image.new("RGB", SIZE, (255, 0, 0))
        image.paste((0, 0, 255), (SIZE[0] // 2, 0, *SIZE))
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(path, **options)
    return path.name


def reason(root: Path, name: str, size_wh: tuple[int, int] = SIZE, **options: Any) -> str:
    """Why an image is refused, by `load` and by `check`."""
    with pytest.raises(ImageProblem) as caught:
        ImageSource(root, **options).load(name, size_wh)
    with pytest.raises(ImageProblem) as checked:
        ImageSource(root, **options).check(name, size_wh)
    assert checked.value.reason == caught.value.reason
    assert repr(name) in str(caught.value)
    return caught.value.reason


def corners(image: Image.Image) -> tuple[str, str, str, str]:
    """The colours of the corners (r, b or ?), clockwise from the top left."""

    def colour(x: int, y: int) -> str:
        red, _, blue = image.getpixel((x, y))
        return "r" if red > 200 > 50 > blue else "b" if blue > 200 > 50 > red else "?"

    right, bottom = image.width - 1, image.height - 1
    return colour(0, 0), colour(right, 0), colour(right, bottom), colour(0, bottom)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tiff", "ppm"])
def test_an_image_loads_as_rgb_of_its_size(tmp_path: Path, suffix: str) -> None:
    name = save(tmp_path / f"a.{suffix}")
    ImageSource(tmp_path).check(name, SIZE)
    image = ImageSource(tmp_path).load(name, SIZE)
    assert (image.mode, image.size) == ("RGB", SIZE)
    assert corners(image) == ("r", "b", "b", "r")


def test_an_image_in_a_subfolder_or_behind_an_inner_link_loads(tmp_path: Path) -> None:
    (tmp_path / "real" / "train").mkdir(parents=True)
    save(tmp_path / "real" / "train" / "a.png")
    (tmp_path / "images").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "inner").symlink_to(tmp_path / "real" / "train")
    for name in ("train/a.png", "inner/a.png"):
        assert ImageSource(tmp_path / "images").load(name, SIZE).size == SIZE
        assert ImageSource(tmp_path / "images").path(name) == (tmp_path / "real" / "train" / "a.png").resolve()


def test_a_path_outside_the_folder_is_refused_and_never_opened(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    secret = tmp_path / "secret.png"
    os.mkfifo(secret)  # opening it would block
    (root / "link.png").symlink_to(secret)
    (root / "folder").symlink_to(tmp_path)
    (tmp_path / "images2").mkdir()
    for name in (str(secret), "../secret.png", "link.png", "folder/secret.png", "folder/images2", "a\0.png", "C:a.png"):
        assert reason(root, name) == "path_outside_images"
    for name in ("", ".", "x/..", "folder/images"):
        assert reason(root, name) == "path_outside_images"


def test_a_missing_image_is_missing(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "none.png")
    for name in ("none.png", "none/a.png", "a.png/b.png", "dangling.png"):
        assert reason(tmp_path, name) == "image_missing"


def test_a_file_that_is_not_an_image_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 32\n")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("folder.png", "empty.jpg", "page.jpg", "drawing.eps", "loop.png", "pipe.png", "n" * 300):
        assert reason(tmp_path, name) == "image_unreadable"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_unreadable(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    name = save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    assert reason(tmp_path, name, (300, 200)) == "image_unreadable"


def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for suffix in ("jpg", "png", "webp", "bmp", "gif", "tiff"):
        save(tmp_path / f"a.{suffix}")
        data = bytearray((tmp_path / f"a.{suffix}").read_bytes())
        for _ in range(60):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                broken[place] = rng.integers(0, 256)
            (tmp_path / "broken").write_bytes(broken)
            try:
                ImageSource(tmp_path).load("broken", SIZE)
                outcomes.add("fine")
            except ImageProblem as problem:
                outcomes.add(problem.reason)
    assert {"fine", "image_unreadable"} <= outcomes <= {"fine", *IMAGE_REASONS}


def png_of_size(width: int, height: int) -> bytes:
    """A PNG with a size in its header and no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size_wh", [(60_000, 60_000), (15_000, 12_000), (13_378, 13_378)])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of_size(*size_wh))
    assert reason(tmp_path, "bomb.png", size_wh) == "image_too_large"


def test_max_pixels_is_inclusive(tmp_path: Path) -> None:
    name = save(tmp_path / "a.png")
    assert ImageSource(tmp_path, max_pixels=64 * 32).load(name, SIZE).size == SIZE
    assert reason(tmp_path, name, SIZE, max_pixels=64 * 32 - 1) == "image_too_large"


def test_a_large_image_below_the_limit_gives_no_warning(tmp_path: Path) -> None:
    # Pillow warns from 89,478,485 pixels on; warnings are errors here
    (tmp_path / "large.png").write_bytes(png_of_size(10_000, 9_000))
    assert reason(tmp_path, "large.png", (10_000, 9_000)) == "image_unreadable"


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    name = save(tmp_path / "a.png")
    assert reason(tmp_path, name, (65, 32)) == "image_size_differs"
    assert reason(tmp_path, name, (32, 64)) == "image_size_differs"


# Red left, blue right, after EXIF's turn: 2 mirrors, 3 turns half, 5 transposes, 6 turns right, 7 transverses, 8 left.
TURNED = {
    2: ("b", "r", "r", "b"),
    3: ("b", "r", "r", "b"),
    4: ("r", "b", "b", "r"),
    5: ("r", "r", "b", "b"),
    6: ("r", "r", "b", "b"),
    7: ("b", "b", "r", "r"),
    8: ("b", "b", "r", "r"),
}


@pytest.mark.parametrize("tag", [5, 6, 7, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_annotated_size_decides_whether_a_quarter_turn_is_applied(tmp_path: Path, tag: int, suffix: str) -> None:
    name = save(tmp_path / f"a.{suffix}", orientation=tag)
    ImageSource(tmp_path).check(name, (64, 32))
    ImageSource(tmp_path).check(name, (32, 64))
    assert corners(ImageSource(tmp_path).load(name, (64, 32))) == ("r", "b", "b", "r")
    turned = ImageSource(tmp_path).load(name, (32, 64))
    assert (turned.size, corners(turned)) == ((32, 64), TURNED[tag])
    assert reason(tmp_path, name, (64, 64)) == "image_size_differs"


@pytest.mark.parametrize("tag", [2, 3, 4])
def test_a_half_turn_or_mirror_image_is_ambiguous(tmp_path: Path, tag: int) -> None:
    name = save(tmp_path / "a.jpg", orientation=tag)
    assert reason(tmp_path, name) == "image_orientation_ambiguous"
    assert reason(tmp_path, name, (32, 64)) == "image_size_differs"


def test_a_turned_square_is_ambiguous(tmp_path: Path) -> None:
    name = save(tmp_path / "a.jpg", Image.new("RGB", (40, 40)), orientation=6)
    assert reason(tmp_path, name, (40, 40)) == "image_orientation_ambiguous"


@pytest.mark.parametrize("tag", range(2, 9))
def test_orientation_can_be_applied_or_ignored(tmp_path: Path, tag: int) -> None:
    name = save(tmp_path / "a.jpg", orientation=tag)
    seen = (32, 64) if tag >= 5 else (64, 32)
    assert corners(ImageSource(tmp_path, orientation="apply").load(name, seen)) == TURNED[tag]
    assert corners(ImageSource(tmp_path, orientation="ignore").load(name, SIZE)) == ("r", "b", "b", "r")
    if tag >= 5:
        # The annotated size may be the stored one, as Label Studio writes it.
        upright = ImageSource(tmp_path, orientation="apply")
        assert upright.check(name, SIZE) == upright.check(name, (32, 64)) == (32, 64)
        assert corners(upright.load(name, SIZE)) == corners(upright.thumbnail(name, SIZE, 64)) == TURNED[tag]
        assert upright.thumbnail(name, SIZE, 16).size == (8, 16)
        assert reason(tmp_path, name, (64, 64), orientation="apply") == "image_size_differs"
        assert reason(tmp_path, name, (32, 64), orientation="ignore") == "image_size_differs"


@pytest.mark.parametrize("tag", [0, 1, 9, 77])
@pytest.mark.parametrize("orientation", ["auto", "apply", "ignore"])
def test_an_upright_or_unknown_orientation_changes_nothing(tmp_path: Path, tag: int, orientation: Orientation) -> None:
    name = save(tmp_path / "a.jpg", orientation=tag)
    assert corners(ImageSource(tmp_path, orientation=orientation).load(name, SIZE)) == ("r", "b", "b", "r")


def test_a_tiff_with_an_orientation_is_ambiguous(tmp_path: Path) -> None:
    name = save(tmp_path / "a.tiff", orientation=6)
    assert reason(tmp_path, name) == "image_orientation_ambiguous"


def grey16() -> Image.Image:
    # An 8-bit value v is 257 × v in 16 bits: 0, 128 × 257, 65535
    return Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))


def palette() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 128, 128, 128, 255, 255, 255])
    image.putdata([0, 1, 2])
    return image


GREYS = np.array([[0, 128, 255]], dtype=np.uint8)
MODES: dict[str, Callable[[], Image.Image]] = {
    "grey": lambda: Image.fromarray(GREYS),
    "sixteen_bits": grey16,
    "palette": palette,
    "grey_alpha": lambda: Image.merge("LA", [Image.fromarray(GREYS), Image.new("L", (3, 1), 255)]),
}


@pytest.mark.parametrize("kind", MODES)
def test_all_kinds_of_grey_images_load_alike(tmp_path: Path, kind: str) -> None:
    name = save(tmp_path / "a.png", MODES[kind]())
    ImageSource(tmp_path).check(name, (3, 1))
    pixels = np.asarray(ImageSource(tmp_path).load(name, (3, 1)))
    assert pixels.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]


def test_black_and_white_and_cmyk_load(tmp_path: Path) -> None:
    bits = save(tmp_path / "bits.png", Image.new("1", (2, 2), 1))
    assert np.asarray(ImageSource(tmp_path).load(bits, (2, 2))).min() == 255
    print_ = save(tmp_path / "print.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)))
    ImageSource(tmp_path).check(print_, (16, 16))
    assert corners(ImageSource(tmp_path).load(print_, (16, 16))) == ("r", "r", "r", "r")


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    layer.putpixel((1, 0), (10, 20, 30, 255))
    name = save(tmp_path / "a.png", layer)
    assert np.asarray(ImageSource(tmp_path).load(name, (2, 1))).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    keyed = save(tmp_path / "keyed.png", Image.new("RGB", (1, 1), (9, 9, 9)), transparency=(9, 9, 9))
    assert ImageSource(tmp_path).load(keyed, (1, 1)).getpixel((0, 0)) == (255, 255, 255)
    indexed = save(tmp_path / "indexed.png", palette(), transparency=b"\x00\xff\xff")
    assert np.asarray(ImageSource(tmp_path).load(indexed, (3, 1)))[0, :, 0].tolist() == [255, 128, 255]


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif"])
@pytest.mark.parametrize("size_wh", [(1, 1), (7, 7), (300, 3)])
def test_tiny_and_thin_images_load(tmp_path: Path, suffix: str, size_wh: tuple[int, int]) -> None:
    name = save(tmp_path / f"dot.{suffix}", Image.new("RGB", size_wh, (255, 0, 0)))
    ImageSource(tmp_path).check(name, size_wh)
    assert corners(ImageSource(tmp_path).load(name, size_wh)) == ("r", "r", "r", "r")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    name = save(tmp_path / "a.tiff", Image.new("F", SIZE, 0.5))
    assert reason(tmp_path, name) == "image_unreadable"


def test_the_image_outlives_its_file(tmp_path: Path) -> None:
    image = ImageSource(tmp_path).load(save(tmp_path / "a.png"), SIZE)
    (tmp_path / "a.png").unlink()
    written = io.BytesIO()
    image.save(written, "PNG")
    assert written.tell() > 0


def test_an_image_problem_can_be_pickled() -> None:
    problem = ImageProblem("image_missing", "a.jpg", got="x", expected="y")
    copy = pickle.loads(pickle.dumps(problem))  # noqa: S301 - our own bytes
    assert (copy.reason, copy.file_name, str(copy)) == ("image_missing", "a.jpg", str(problem))


@pytest.mark.parametrize("side", [640, 100, 33])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_thumbnail_is_the_image_scaled_down(tmp_path: Path, suffix: str, side: int) -> None:
    ramp = np.add.outer(np.arange(600) / 600 * 120, np.arange(900) / 900 * 120).astype(np.uint8)
    picture = Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], axis=-1))
    name = save(tmp_path / f"a.{suffix}", picture, **({"quality": 95} if suffix == "jpg" else {}))
    small = ImageSource(tmp_path).thumbnail(name, (900, 600), side)
    # 900×600 to a longer side of 640, 100 and 33.
    assert small.size == {640: (640, 427), 100: (100, 67), 33: (33, 22)}[side]
    whole = ImageSource(tmp_path).load(name, (900, 600)).resize(small.size, Image.Resampling.BOX)
    difference = np.abs(np.asarray(small).astype(int) - np.asarray(whole).astype(int))
    # Smooth ramps: JPEG's own scaling and another filter change no pixel by much.
    assert difference.max() <= 6


def test_a_thumbnail_is_never_larger_than_its_image_and_may_be_a_line(tmp_path: Path) -> None:
    name = save(tmp_path / "a.png")
    assert ImageSource(tmp_path).thumbnail(name, SIZE, 640).size == SIZE
    line = save(tmp_path / "b.png", Image.new("RGB", (900, 1)))
    assert ImageSource(tmp_path).thumbnail(line, (900, 1), 90).size == (90, 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_thumbnail_is_rotated_like_the_image(tmp_path: Path, suffix: str) -> None:
    big = Image.new("RGB", (640, 320), (255, 0, 0))
    big.paste((0, 0, 255), (320, 0, 640, 320))
    # Stored lying with red on the left; a quarter turn clockwise (6) brings red to the top.
    name = save(tmp_path / f"a.{suffix}", big, orientation=6)
    small = ImageSource(tmp_path).thumbnail(name, (320, 640), 64)
    assert small.size == (32, 64)
    assert corners(small) == ("r", "r", "b", "b")
    assert corners(ImageSource(tmp_path).load(name, (320, 640))) == ("r", "r", "b", "b")


def test_a_thumbnail_has_the_same_problems_as_its_image(tmp_path: Path) -> None:
    name = save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / name).read_bytes()[:300])
    for file_name, size_wh, options in (
        ("gone.jpg", SIZE, {}),
        ("cut.jpg", SIZE, {}),
        ("../a.jpg", SIZE, {}),
        (name, (32, 32), {}),
        (name, SIZE, {"max_pixels": 100}),
    ):
        with pytest.raises(ImageProblem) as caught:
            ImageSource(tmp_path, **options).thumbnail(file_name, size_wh, 16)
        assert caught.value.reason == reason(tmp_path, file_name, size_wh, **options)


# ── hostile and unusual files ─────────────────────────────────────────────────────────────────────────────────────────


def test_images_are_opened_in_one_place_only() -> None:
    package = Path(images.__file__).parents[1]
    opens = re.compile(r"Image\.open|\bimread\(|\bload_image\(|decode=True|\.convert\(\"RGB\"\)")
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if opens.search(path.read_text())}
    assert found == {"core/images.py", "core/image_pixels.py"}
    # Images of callers, in `spr.models`, become RGB by the same function.
    clear = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    assert [images.to_rgb(image).getpixel((0, 0))[0] for image in (clear, grey16())] == [255, 0]


def test_devices_sockets_and_files_without_an_end_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "maps.png").symlink_to("/proc/self/pagemap")  # a regular file of size 0 that can be read on and on
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as unix, contextlib.chdir(tmp_path):
        unix.bind("socket.png")
        with Path("huge.png").open("wb") as file:  # sparse
            file.truncate(2**40)
        allowed = ImageSource(tmp_path, allow_outside=True)
        for name in ("zero.png", "/dev/zero", "maps.png", "pipe.png", "socket.png", "../", "huge.png"):
            for read in (allowed.load, allowed.read_bytes, allowed.reads_alike):
                with pytest.raises(ImageProblem) as caught:
                    read(name)
                assert caught.value.reason == ("image_too_large" if name == "huge.png" else "image_unreadable"), name


def test_a_file_outside_is_opened_only_if_the_user_allows_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    outside = tmp_path / save(tmp_path / "a.png")
    (tmp_path / "images" / "link.png").symlink_to(outside)
    for name in (str(outside), "../a.png", "link.png"):
        assert reason(tmp_path / "images", name) == "path_outside_images"
        assert ImageSource(tmp_path / "images", allow_outside=True).load(name, SIZE).size == SIZE
    assert reason(tmp_path / "images", "a\0.png", allow_outside=True) == "path_outside_images"


def forged_jpeg(tmp_path: Path) -> bytes:
    """600 bytes whose header declares 13,056 × 13,056 pixels; Pillow fills what is missing with grey."""
    data = bytearray((tmp_path / save(tmp_path / "small.jpg", Image.new("RGB", (16, 16)))).read_bytes())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 13056, 13056)
    return bytes(data)


def with_chunks(png: bytes, at: int, count: int) -> bytes:
    empty = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    return png[:at] + empty * count + png[at:]


def test_forged_headers_and_endless_comments_cost_no_time_and_no_memory(tmp_path: Path) -> None:
    png = (tmp_path / save(tmp_path / "a.png")).read_bytes()
    jpeg, gif = (tmp_path / save(tmp_path / f"a.{suffix}") for suffix in ("jpg", "gif"))
    picture = gif.read_bytes().index(b"\x2c")
    files = {
        "forged.jpg": forged_jpeg(tmp_path),
        "comment.ppm": b"P6\n#" + b"a" * 5_000_000 + b"\n64 32\n255\n" + bytes(64 * 32 * 3),
        "before.png": with_chunks(png, 33, 400_000),
        "after.png": with_chunks(png, len(png) - 12, 400_000),
        "segments.jpg": jpeg.read_bytes()[:2] + b"\xff\xfe\x00\x02" * 1_200_000 + jpeg.read_bytes()[2:],
        "blocks.gif": gif.read_bytes()[:picture] + b"\x21\xfe\x00" * 1_600_000 + gif.read_bytes()[picture:],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        started = time.process_time()
        assert reason(tmp_path, name, (13056, 13056) if name == "forged.jpg" else SIZE) == "image_unreadable", name
        assert time.process_time() - started < 1.5, name  # twice; Pillow alone takes up to 7 s


def test_an_image_that_is_larger_than_allowed_is_never_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError

    names = [save(tmp_path / f"a.{suffix}") for suffix in ("png", "jpg", "webp", "bmp", "gif", "tiff", "ppm")]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    for name in names:
        assert reason(tmp_path, name, max_pixels=64 * 32 - 1) == "image_too_large"
    assert reason(tmp_path, names[0], max_pixels=1) == "image_too_large"


def test_images_that_pillow_decodes_pixel_by_pixel_load(tmp_path: Path) -> None:
    # A 10-bit PGM: two bytes per pixel, read one pixel at a time. 400 × 400 pixels exceed what a header may take.
    (tmp_path / "a.pgm").write_bytes(b"P5 400 400 1023\n" + struct.pack(">H", 1023) * 160_000)
    assert ImageSource(tmp_path).load("a.pgm", (400, 400)).getpixel((399, 399)) == (255, 255, 255)


def tiff(bits: int, data: bytes, size_wh: tuple[int, int], *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """An uncompressed grey TIFF in one strip."""
    width, height = size_wh
    values = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1)]
    values += [(278, height), (279, len(data)), (339, sample_format)]
    start = 8 + 2 + 12 * len(values) + 4
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in values)
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + rows + bytes(4) + data


def test_greys_of_more_than_eight_bits_are_scaled_and_unknown_ranges_refused(tmp_path: Path) -> None:
    twelve, sixteen = bytes([0x00, 0x08, 0x10, 0xFF, 0xF0]), struct.pack("<3H", 0, 32896, 65535)
    files = {
        "twelve.tiff": (tiff(12, twelve, (3, 1)), [0, 129, 255]),  # 2064 / 4095 × 255 = 128.5
        "sixteen.tiff": (tiff(16, sixteen, (3, 1)), [0, 128, 255]),
        "inverted.tiff": (tiff(16, sixteen, (3, 1), photometric=0), [255, 127, 0]),
        "sixteen.pgm": (b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32896, 65535), [0, 128, 255]),
        "ten.pgm": (b"P5 3 1 1023\n" + struct.pack(">3H", 0, 512, 1023), [0, 128, 255]),
    }
    save(tmp_path / "keyed.png", grey16(), transparency=32896)
    files["keyed.png"] = ((tmp_path / "keyed.png").read_bytes(), [0, 255, 255])
    for name, (data, greys) in files.items():
        (tmp_path / name).write_bytes(data)
        assert np.asarray(ImageSource(tmp_path).load(name, (3, 1)))[0, :, 0].tolist() == greys, name
        assert not ImageSource(tmp_path).reads_alike(name), name
    for name, data in {
        "signed.tiff": tiff(16, sixteen, (3, 1), sample_format=2),
        "wide.tiff": tiff(32, bytes(12), (3, 1), sample_format=2),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert reason(tmp_path, name, (3, 1)) == "image_unreadable"


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_an_image_without_an_annotated_size_is_turned_upright(tmp_path: Path, suffix: str) -> None:
    name = save(tmp_path / f"a.{suffix}", orientation=6)
    for source in (ImageSource(tmp_path), ImageSource(tmp_path, "apply")):
        for image in (source.load(name), source.load("row 1", data=(tmp_path / name).read_bytes())):
            assert (image.size, corners(image)) == ((32, 64), TURNED[6])
    if suffix != "tiff":
        assert corners(ImageSource(tmp_path, "ignore").load(name)) == ("r", "b", "b", "r")


def test_images_in_memory_follow_the_same_rules_as_files(tmp_path: Path) -> None:
    for data, why in (
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 32\n", "image_unreadable"),
        (b"", "image_unreadable"),
        (forged_jpeg(tmp_path), "image_unreadable"),
        (png_of_size(60_000, 60_000), "image_too_large"),
    ):
        with pytest.raises(ImageProblem, match="row 7") as caught:
            ImageSource(tmp_path).load("row 7", data=data)
        assert caught.value.reason == why


def missing(root: Path, name: str) -> str:
    with pytest.raises(ImageProblem) as caught:
        ImageSource(root).load(name)
    assert caught.value.reason == "image_missing"
    return str(caught.value.got)


def test_names_spelled_otherwise_find_the_only_file_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "train 1.v2").mkdir()
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    save(tmp_path / "train 1.v2" / decomposed)
    save(tmp_path / "b%20c.PNG", format="PNG")
    save(tmp_path / "train\\d.png")  # a zip file from Windows, unpacked elsewhere
    source = ImageSource(tmp_path)
    for wanted, found in {
        f"train 1.v2/{composed}": f"train 1.v2/{decomposed}",
        f"train%201.v2\\{decomposed}": f"train 1.v2/{decomposed}",
        "train 1.V2/caf%C3%A9.PNG": f"train 1.v2/{decomposed}",
        "b c.png": "b%20c.PNG",
        "b%20c.png": "b%20c.PNG",
        "train/d.png": "train\\d.png",
        "b%20c.PNG": "b%20c.PNG",
        "nothing.png": "nothing.png",
    }.items():
        assert source.spelled_alike(wanted) == found
        if wanted != "nothing.png":
            assert source.load(wanted, SIZE).size == source.thumbnail(wanted, SIZE, 64).size == SIZE
            assert source.read_bytes(wanted) == (tmp_path / found).read_bytes()


def test_a_missing_image_names_the_files_that_may_be_meant(tmp_path: Path) -> None:
    save(tmp_path / "a.PNG", format="PNG")
    save(tmp_path / "a.Png", format="PNG")
    save(tmp_path / "Photo.png")
    (tmp_path / "b.PNG").mkdir()
    assert sorted(missing(tmp_path, "a.png").split("alike: ")[1].split(", ")) == ["'a.PNG'", "'a.Png'"]
    assert missing(tmp_path, "photo.png").startswith("'Photo.png', in other upper and lower case")
    assert missing(tmp_path, "Photo.jpg").startswith("'Photo.png', in other")
    for name in ("b.png", "c.png", "x/y/z.png", "a.png/b.png", "%2e%2e/a.png", "%2Fetc%2Fpasswd", "/".join("a" * 900)):
        assert missing(tmp_path, name) == "None"


def test_another_spelling_does_not_lead_out_of_the_folder_and_large_folders_are_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.PNG").symlink_to(tmp_path / save(tmp_path / "a.png"))
    assert reason(tmp_path / "images", "b.png") == "path_outside_images"
    monkeypatch.setattr(image_files, "_MOST_NAMES", 3)
    for number in range(4):
        save(tmp_path / f"{number}.png")
    assert missing(tmp_path, "0.PNG") == "None"
