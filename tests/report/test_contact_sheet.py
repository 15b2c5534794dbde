"""Drawing pairs over their images."""

from spr.core.images import ImageSource
from spr.report.contact_sheet import CAPTION, CHOSEN, REJECTED, draw_pair


def test_a_pair_is_drawn_with_green_and_red_boxes(make_run):
    maker = make_run(pairs=1)
    picture = draw_pair(maker.pairs[0], ImageSource(maker.images), side=200)
    # The image has 100×80 pixels, so it is drawn at twice its size, below the caption.
    assert picture.size == (200, 200 + CAPTION)
    # The left edges of the second cup (x = 50 px) and of the box that touches nothing (x = 0, y from 60 to 70 px).
    assert picture.getpixel((100, 70 + CAPTION)) == CHOSEN
    assert picture.getpixel((0, 130 + CAPTION)) == REJECTED


def test_a_missing_image_leaves_a_grey_picture(make_run):
    maker = make_run(pairs=1)
    (maker.images / "0.png").unlink()
    assert draw_pair(maker.pairs[0], ImageSource(maker.images), side=200).getpixel((120, 150 + CAPTION)) == (60, 60, 60)
