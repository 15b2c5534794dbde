"""Drawing pairs and other rows over their images."""

from itertools import combinations

import pytest
from PIL import Image

from spr.core.images import ImageSource
from spr.report import contact_sheet
from spr.report.contact_sheet import CAPTION, CHOSEN, GAP, LABEL, REJECTED, draw_pair, draw_sheet


def test_a_pair_is_drawn_with_green_and_red_boxes(make_run):
    maker = make_run(pairs=1)
    picture = draw_pair(maker.pairs[0], ImageSource(maker.images), side=200)
    # The view is 78×53 pixels: from x = 0 and y = 70, of the box that touches nothing, to the right and upper edges of
    # the region, enlarged 1.3 times (12.5..77.5 and 17..43). It is drawn below the caption, and there is text below it.
    scale = 200 / 78
    assert picture.size[0] == 200
    assert picture.size[1] >= CAPTION + round(53 * scale) + LABEL
    # The left edges of the second cup (x = 50 px) and of the box that touches nothing (y from 60 to 70 px).
    assert picture.getpixel((round(50 * scale), CAPTION + round((35 - 17) * scale))) == CHOSEN
    assert picture.getpixel((0, CAPTION + round((69 - 17) * scale))) == REJECTED


def test_a_missing_image_leaves_a_grey_picture(make_run):
    maker = make_run(pairs=1)
    (maker.images / "0.png").unlink()
    picture = draw_pair(maker.pairs[0], ImageSource(maker.images), side=200)
    assert picture.getpixel((190, CAPTION + 130)) == (60, 60, 60)


def objects(count, *, categories, box=(10, 10, 30, 30), region=None):
    items = [
        {"category": f"thing {k % categories}", "box": box, "score": None, "inside": True, "id": str(k)}
        for k in range(count)
    ]
    row = {"image_id": "7", "query_id": "7/0", "file_name": "a.png", "width": 1000, "height": 500, "objects": items}
    return row | ({"region": region} if region else {})


def test_tags_do_not_overlap(monkeypatch, tmp_path):
    """Forty boxes at the same place: each has its tag, and no tag covers another one."""
    Image.new("RGB", (1000, 500)).save(tmp_path / "a.png")
    taken = []
    free_place = contact_sheet._free_place

    def note(wanted, size, picture, others):
        x, y = free_place(wanted, size, picture, others)
        taken.append((x, y, x + size[0], y + size[1]))
        assert 0 <= x <= picture[0] - size[0]
        assert 0 <= y <= picture[1] - size[1]
        return x, y

    monkeypatch.setattr(contact_sheet, "_free_place", note)
    contact_sheet._draw_row(objects(40, categories=3), ImageSource(tmp_path), 420)
    assert len(taken) == 40
    for a, b in combinations(taken, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_the_legend_counts_labels_and_says_how_many_it_leaves_out():
    marks = list(contact_sheet._marks(objects(7, categories=2)))
    signs = contact_sheet._signs(marks)
    font = contact_sheet.ImageFont.load_default(size=12)
    assert [text for *_, text, _ in contact_sheet._legend(marks, signs, 420, font)] == [
        "1: thing 0 (4)",
        "2: thing 1 (3)",
    ]
    many = list(contact_sheet._marks(objects(300, categories=300)))
    legend = contact_sheet._legend(many, contact_sheet._signs(many), 420, font)
    assert legend[-1][2] == f"… and {300 - (len(legend) - 1)} more"
    for line, x, text, _ in legend[:-1]:
        assert line < contact_sheet.LEGEND_LINES
        assert x + font.getlength(text) <= 420


def test_answers_are_told_apart_by_numbers_and_letters(make_run):
    row = make_run(pairs=1).pairs[0].to_row()
    signs = contact_sheet._signs(list(contact_sheet._marks(row)))
    assert {sign.isdigit() for (_, rejected), sign in signs.items() if not rejected} == {True}
    assert {sign.isalpha() for (_, rejected), sign in signs.items() if rejected} == {True}
    assert [contact_sheet._letters(number) for number in (0, 25, 26, 27, 701, 702)] == [
        "a",
        "z",
        "aa",
        "ab",
        "zz",
        "aaa",
    ]


def test_regions_are_shown_enlarged(tmp_path):
    """A region of 100×50 pixels: 1.3 times its width fills the picture, so its white left edge is at 15 of 130 px."""
    Image.new("RGB", (1000, 500), (9, 9, 9)).save(tmp_path / "a.png")
    row = objects(1, categories=1, box=(450, 220, 460, 230), region=(400, 200, 500, 250))
    picture = contact_sheet._draw_row(row, ImageSource(tmp_path), 420)
    assert picture.getpixel((round(15 / 130 * 420), CAPTION + 100)) == (255, 255, 255)
    assert picture.getpixel((round(14 / 130 * 420) - 3, CAPTION + 100)) == (9, 9, 9)


@pytest.mark.parametrize(("stage", "height"), [("regions", 26 * 420 / 66), ("pairs", 53 * 420 / 78)])
def test_sheets_have_a_row_of_cells_per_line(make_run, tmp_path, stage, height):
    """Five rows in two columns are three lines of cells, each with a caption and one line of text."""
    maker = make_run(pairs=5)
    assert draw_sheet(maker.write() / stage, tmp_path / "sheet.png", n=5, columns=2) == 5
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * (420 + GAP), 3 * (CAPTION + round(height) + LABEL + GAP))
