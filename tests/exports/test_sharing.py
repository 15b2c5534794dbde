"""What a shared export or report says about the images' owners: license and source, and nothing from the files."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms, ImageDraw
from PIL.PngImagePlugin import PngInfo

from spr.annotations import read_coco
from spr.core.errors import ConfigError
from spr.core.image_metadata import strip_metadata
from spr.core.images import ImageSource
from spr.exports.formats import FORMATS
from spr.exports.writing import export
from spr.report.page import write_report
from spr.runs.reader import Run

SECRET = b"Ann Owner"
SIZE = (200, 160)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def photo():
    image = Image.effect_noise(SIZE, 40).convert("RGB")
    ImageDraw.Draw(image).rectangle((20, 30, 90, 100), "red")
    return image


def exif_of(orientation=None):
    exif = Image.Exif()
    exif[0x013B] = SECRET.decode()  # Artist
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 29: SECRET.decode()})  # GPS
    if orientation:
        exif[0x0112] = orientation
    return exif


def save(path, kind):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = b"<x:xmpmeta>" + SECRET + b"</x:xmpmeta>"
    image = photo()
    if kind == "turned":
        image.transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", exif=exif_of(6), comment=SECRET)
    elif kind in ("jpeg", "progressive"):
        extra = {"exif": exif_of(), "xmp": xmp, "comment": SECRET, "icc_profile": profile}
        image.save(path, "JPEG", quality=90, progressive=kind == "progressive", **extra)
        data = path.read_bytes()
        iptc = b"\xff\xed" + (2 + 20 + len(SECRET)).to_bytes(2, "big") + b"Photoshop 3.0\0" + b"8BIM\4\4" + SECRET
        # A block of IPTC, and a second picture and a film after the end, as telephones append them.
        path.write_bytes(data[:2] + iptc + data[2:] + data + SECRET)
    elif kind == "png":
        text = PngInfo()
        text.add_text("Author", SECRET.decode(), zip=False)
        text.add_itxt("XML:com.adobe.xmp", SECRET.decode())
        image.save(path, "PNG", pnginfo=text, exif=exif_of(), icc_profile=profile)
    elif kind == "webp":
        image.save(path, "WEBP", quality=80, exif=exif_of(), xmp=xmp, icc_profile=profile)
    elif kind == "gif":
        image.convert("P").save(path, "GIF", comment=SECRET)
    else:
        image.save(path, "TIFF", artist=SECRET.decode())


KINDS = {name: f"{name}.jpg" for name in ("jpeg", "progressive", "turned")}
KINDS |= {"png": "png.png", "webp": "webp.webp", "gif": "gif.gif", "tiff": "tiff.tif"}


@pytest.fixture(scope="module")
def run_with_metadata(make_dataset, make_run, tmp_path_factory):
    dataset = make_dataset(tmp_path_factory.mktemp("metadata"), images=len(KINDS))
    for image, (kind, name) in zip(dataset.coco["images"], KINDS.items(), strict=True):
        save(dataset.images / name, kind)
        assert SECRET in (dataset.images / name).read_bytes()
        image["file_name"] = name
    return make_run(dataset), ImageSource(dataset.images)


def test_copies_have_the_pixels_and_the_colour_profile_and_no_metadata(run_with_metadata, tmp_path):
    run, source = run_with_metadata
    export(run, tmp_path / "out", "llava")
    copies = {path.stem.partition("-")[0]: path for path in (tmp_path / "out" / "images").iterdir()}
    assert set(copies) == set(KINDS)
    for kind, path in copies.items():
        data = path.read_bytes()
        assert SECRET not in data
        with Image.open(path) as copy:
            assert not copy.getexif()
            assert not {"exif", "xmp", "comment", "photoshop", "Author"} & set(copy.info)
            assert ("icc_profile" in copy.info) == (kind in ("jpeg", "progressive", "png", "webp"))
            assert np.array_equal(np.asarray(copy.convert("RGB")), np.asarray(source.load(KINDS[kind], SIZE)))
        assert path.suffix == (".png" if kind in ("turned", "gif", "tiff") else f".{KINDS[kind].rpartition('.')[2]}")


def test_rows_with_embedded_images_and_thumbnails_have_no_metadata(run_with_metadata, tmp_path):
    run, _ = run_with_metadata
    export(run, tmp_path / "trl", "trl")
    (shard,) = (tmp_path / "trl" / "data").iterdir()
    for (image,) in pq.read_table(shard, columns=["images"])["images"].to_pylist():
        assert SECRET not in image["bytes"]
    write_report(run, tmp_path / "report")
    thumbnails = [path.read_bytes() for path in (tmp_path / "report" / "thumbs").rglob("*.*")]
    assert len(thumbnails) == len(KINDS)
    assert not any(SECRET in data for data in thumbnails)


def test_large_thumbnails_are_jpeg_and_have_no_comment(make_dataset, make_run, tmp_path):
    dataset = make_dataset(tmp_path / "data", images=1)
    dataset.coco["images"][0].update(file_name="a.jpg", width=400, height=320)
    photo().resize((400, 320)).save(dataset.images / "a.jpg", comment=SECRET)
    write_report(make_run(dataset), tmp_path / "report")
    (thumbnail,) = (tmp_path / "report" / "thumbs").rglob("*.jpg")
    assert SECRET not in thumbnail.read_bytes()


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_a_file_that_ends_early_or_is_damaged_is_never_half_stripped(kind, tmp_path):
    save(tmp_path / KINDS[kind], kind)
    data = (tmp_path / KINDS[kind]).read_bytes()
    whole = strip_metadata(data)
    with Image.open(io.BytesIO(whole)) as image:
        image.load()
    assert strip_metadata(whole) == whole
    for end in range(0, len(data), 97):
        assert strip_metadata(data[:end]) in (None, whole)
    draw = np.random.default_rng(0)
    for place in draw.integers(12, len(data), 200).tolist():
        strip_metadata(data[:place] + draw.bytes(4) + data[place + 4 :])  # raises nothing


LICENSES = [
    {"id": 1, "name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/"},
    {"id": "4", "name": "All | rights\nreserved"},
    {"id": 5, "url": "http://example.org/terms"},
    {"name": "no id"},
    "not an object",
]
IMAGES = [  # what the image's entry has; the license and source that follow from it
    ({"license": 1, "flickr_url": "http://f/1", "coco_url": "http://c/1"}, LICENSES[0]["name"], "http://f/1"),
    ({"license": 4, "coco_url": "http://c/2"}, "All | rights reserved", "http://c/2"),
    ({"license": "5", "flickr_url": ""}, "http://example.org/terms", None),
    ({"license": 9, "flickr_url": 7}, "license 9", None),
    ({"license": None, "flickr_url": "javascript:alert(1)"}, None, None),
    ({"license": [1], "coco_url": "c/6.jpg"}, None, None),
    ({}, None, None),
]


@pytest.fixture(scope="module")
def credited(make_dataset, make_run, tmp_path_factory):
    dataset = make_dataset(tmp_path_factory.mktemp("licenses"), images=len(IMAGES))
    dataset.coco["licenses"] = LICENSES
    for image, (fields, *_) in zip(dataset.coco["images"], IMAGES, strict=True):
        image |= fields
    return make_run(dataset, shard_rows=2), dataset


def test_license_and_source_are_kept_through_the_run_into_the_export(credited, tmp_path):
    run, dataset = credited
    expected = {
        str(image["id"]): (text and (text if text != LICENSES[0]["name"] else f"{text} ({LICENSES[0]['url']})"), url)
        for image, (_, text, url) in zip(dataset.coco["images"], IMAGES, strict=True)
    }
    for key in ("trl", "llamafactory"):
        export(run, tmp_path / key, key)
        rows = lines_of(tmp_path / key / "images.jsonl")
        assert {row["image_id"]: (row["license"], row["source_url"]) for row in rows} == expected
        card = (tmp_path / key / "README.md").read_text(encoding="utf-8")
        assert "| Attribution License (http://creativecommons.org/licenses/by/2.0/) | 1 |" in card
        assert "| All \\| rights reserved | 1 |" in card
        assert "| none stated | 3 |" in card
    assert (tmp_path / "llamafactory" / rows[0]["path"]).is_file()


def test_licenses_that_are_no_list_and_blocks_that_need_the_slow_decoder_are_read(make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "data", images=2)
    dataset.coco["images"][0].update(license=1, flickr_url="http://f/1")
    dataset.coco["images"][1].update(id="b", license="x")  # a string id needs the slow decoder
    dataset.coco = {"licenses": {"1": "an object"}, **dataset.coco}
    dataset.write()
    read = read_coco(dataset.json)
    assert read.licenses == ["license 1", "license x"]
    assert read.source_urls == ["http://f/1", None]


def test_a_run_made_before_licenses_were_kept_is_exported(make_dataset, make_run, tmp_path):
    run = make_run(make_dataset(tmp_path / "data", images=2))
    path = Run(run).store("objects").part(0)
    pq.write_table(pq.read_table(path).drop_columns(["license", "source_url"]), path)
    assert export(run, tmp_path / "out", "ms-swift").pairs == 2
    assert {row["license"] for row in lines_of(tmp_path / "out" / "images.jsonl")} == {None}
    assert "do not state under which license" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("key", FORMATS)
def test_without_images_the_rows_name_them_and_no_file_holds_one(key, run_with_metadata, tmp_path):
    run, _ = run_with_metadata
    summary = export(run, tmp_path / "out", key, images="none")
    assert (summary.pairs + summary.prompts, summary.left_out) == (len(KINDS) - 1, {"image_needs_rewriting": 1})
    assert not (tmp_path / "out" / "images").exists()
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) < 400_000
    rows = lines_of(tmp_path / "out" / "images.jsonl")
    assert {row["path"] for row in rows} == set(KINDS.values()) - {"turned.jpg"}
    assert "images are not part of it" in (tmp_path / "out" / "README.md").read_text()


def test_no_images_is_an_option_of_both_commands(run_with_metadata, tmp_path):
    from spr.commands.export import export as export_command
    from spr.commands.report import report

    run, _ = run_with_metadata
    export_command(run, "ms-swift", tmp_path / "out", no_images=True)
    assert not (tmp_path / "out" / "images").exists()
    with pytest.raises(ConfigError, match="--no-images contradicts --images"):
        export_command(run, "ms-swift", tmp_path / "other", images="copy", no_images=True)
    report(run, out=tmp_path / "report", max_pairs=10, no_images=True)
    assert not (tmp_path / "report" / "thumbs").exists()
    assert "written with --no-images" in (tmp_path / "report" / "gallery" / "page-00000.js").read_text()


def test_neither_a_report_nor_an_export_says_where_on_which_machine_it_was_made(make_dataset, make_run, tmp_path):
    server = {"backend": "fake", "base_url": "http://inside.example/v1", "model": str(tmp_path / "ferret")}
    run = make_run(make_dataset(tmp_path / "data", images=2), describer=server)
    write_report(run, tmp_path / "report")
    export(run, tmp_path / "export", "llava")
    for folder in ("report", "export"):
        for path in (tmp_path / folder).rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                assert str(tmp_path).encode() not in data, path
                assert b"inside.example" not in data, path
    assert "base_url: not published" in (tmp_path / "report" / "index.html").read_text()
