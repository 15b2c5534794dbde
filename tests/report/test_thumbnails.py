"""Thumbnails by worker processes: the same report as without, whatever the images are."""

import pytest
from PIL import Image

from spr.core.errors import RunError
from spr.report import page, thumbnails
from spr.report.page import write_report


@pytest.fixture(autouse=True)
def many(monkeypatch):
    """More than one image is many, so that workers start."""
    monkeypatch.setattr(thumbnails, "_FEW", 1)
    monkeypatch.setattr(thumbnails, "_BATCH", 2)


def content(report):
    """The report's files, without the page, which says when it was written."""
    files = (path for path in report.rglob("*") if path.is_file() and path.name != "index.html")
    return {str(path.relative_to(report)): path.read_bytes() for path in files}


def test_the_report_is_the_same_for_any_number_of_workers(make_run, tmp_path):
    maker = make_run(pairs=9)
    Image.new("RGB", (1600, 1280), (200, 30, 30)).save(maker.images / "big.jpg")
    for k in (1, 4):
        maker.change("pairs", k, file_name="big.jpg", width=1600, height=1280)
    (maker.images / "3.png").unlink()
    (maker.images / "6.png").write_bytes(b"no image")
    run = maker.write()
    alone, two, three = (
        content(write_report(run, tmp_path / f"report-{workers}", workers=workers).parent) for workers in (1, 2, 3)
    )
    assert alone == two == three
    # 9 pairs, two of one image, and two images that can't be shown; numbers are those of first appearance.
    assert [name for name in sorted(alone) if name.startswith("thumbs")] == [
        f"thumbs/0000/{number:07d}.{'jpg' if number == 1 else 'png'}" for number in (0, 1, 2, 4, 6, 7)
    ]


def test_workers_write_only_what_the_gallery_shows(make_run, tmp_path):
    report = write_report(make_run(pairs=7).write(), tmp_path / "report", max_pairs=3, workers=2).parent
    assert len(list(report.glob("thumbs/*/*"))) == 3
    assert "preference pairs" in (report / "index.html").read_text(encoding="utf-8")


def test_workers_end_before_a_report_that_fails_is_removed(make_run, monkeypatch, tmp_path):
    run = make_run(pairs=30).write()

    def fail(*_, **__):
        raise RunError("no space left")

    monkeypatch.setattr(page, "pair_payload", fail)
    with pytest.raises(RunError, match="no space left"):
        write_report(run, tmp_path / "report", workers=2)
    assert [path.name for path in tmp_path.iterdir() if "report" in path.name] == []
