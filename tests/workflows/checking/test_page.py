"""The page: which images it shows, and where it draws their boxes."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from spr.core.images import ImageSource
from spr.workflows.checking.boxes import BoxChecks
from spr.workflows.checking.evidence import Evidence
from spr.workflows.checking.findings import Finding
from spr.workflows.checking.gallery import FLAGGED, IMAGES, Gallery
from spr.workflows.checking.page import PageContent, PagePart, write_page
from spr.workflows.checking.readings import Reading
from spr.workflows.checking.rows import Batch, DataRow

PIXELS, THOUSAND = Reading.of_stated("xyxy_pixels"), Reading.of_dialect("qwen3_vl")


def row(number, *boxes, image="a.jpg", size=(200, 100), labels=None):
    labels = ("dog",) * len(boxes) if labels is None else labels
    return DataRow(number, f"d.jsonl, line {number}", image, size, "", "", boxes, labels)


def part(rows, given=None, name="boxes in texts"):
    evidence = Evidence(given)
    evidence.add(Batch(rows))
    return PagePart(name, None, evidence.candidates(), given, evidence.boxes)


def content(rows, given=None, images=None, **changes):
    gallery, checks, found = Gallery(), BoxChecks(Evidence(given).readings), part(rows, given)
    gallery.add(Batch(rows))
    checks.add(Batch(rows))
    reading = found.chosen.reading
    shown = gallery.choose(checks.examples(reading))
    return PageContent(
        "d.jsonl", [("rows", "3")], [found], checks.findings(reading), shown=shown, images=images, **changes
    )


class Page(HTMLParser):
    """The page's elements that hold something; unclosed ones are an error."""

    EMPTY = ("meta", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.marks, self.attributes = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def rectangles(self, name):
        found = [values for tag, values in self.attributes if tag == "rect" and values.get("class") == name]
        return [tuple(float(one[key]) for key in ("x", "y", "width", "height")) for one in found]

    def of(self, tag):
        return [values for found, values in self.attributes if found == tag]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (200, 100), (10, 120, 40)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    return ImageSource(folder)


def written(tmp_path, *arguments, **options):
    path = write_page(content(*arguments, **options), tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def test_boxes_are_drawn_where_the_given_reading_places_them(tmp_path, images):
    page, text = written(tmp_path, [row(1, (100, 200, 500, 1000), (0, 0, 1000, 900))], THOUSAND, images)
    assert page.rectangles("line") == [(20, 20, 80, 80), (0, 0, 200, 90)]
    assert [values["viewbox"] for values in page.of("svg")] == ["0 0 200 100"]
    assert "[100, 200, 500, 1000]" in text
    assert "The given reading, xyxy, 0–1000, fits." in text


def test_beside_a_wrong_reading_the_best_one_is_drawn(tmp_path, images):
    boxes = [(10, 10, 190, 90), (100, 50, 199, 99), (5, 40, 60, 98)]
    page, text = written(tmp_path, [row(k, box, image="a.jpg") for k, box in enumerate(boxes, 1)], THOUSAND, images)
    assert len(page.of("svg")) == 1  # three boxes don't refute it, and nothing fits better
    gone = [(200, 100, 900, 400), (900, 900, 1000, 1000), (0, 0, 640, 640)]
    page, text = written(tmp_path, [row(k, box) for k, box in enumerate(gone, 1)], PIXELS, images)
    first, second = page.of("svg")
    assert "pixels" in first["aria-label"]
    assert second["aria-label"] == "3 boxes as xyxy, 0–1000"
    assert page.rectangles("line")[-3:] == [(40, 10, 140, 30), (180, 90, 20, 10), (0, 0, 128, 64)]
    assert "best fitting: xyxy, 0–1000" in text
    assert "d.jsonl, line 1: [200, 100, 900, 400] in an image of 200 × 100 pixels" in text


def test_boxes_beyond_the_image_widen_the_view_up_to_a_fifth_and_far_ones_are_counted(tmp_path, images):
    boxes = [(10, 10, 220, 90), (-20, 20, 50, 50), (10, 10, 900, 90), (700, 700, 900, 900)]
    page, text = written(tmp_path, [row(1, *boxes)] + [row(k, (5, 5, 150, 80)) for k in range(2, 202)], PIXELS, images)
    assert page.of("svg")[0]["viewbox"] == "-20 0 260 100"
    assert page.rectangles("line")[:3] == [(10, 10, 210, 80), (-20, 20, 70, 30), (10, 10, 230, 80)]
    assert "1 box far outside" in text
    wrong = [values["class"] for values in page.of("g") if values["class"].endswith(" wrong")]
    assert wrong == ["c0 wrong", "c1 wrong", "c2 wrong"]


def test_swapped_corners_are_drawn_sorted_and_named(tmp_path, images):
    page, text = written(tmp_path, [row(1, (150, 80, 50, 20))], PIXELS, images)
    assert page.rectangles("line")[0] == (50, 20, 100, 60)
    assert "<b>inverted</b>" in text
    assert "<span>inverted</span>" in text


def test_the_image_is_in_the_page_once(tmp_path, images):
    page, text = written(tmp_path, [row(1, (200, 100, 900, 400)), row(2, (0, 0, 900, 900))], PIXELS, images)
    (image,), uses = page.of("image"), page.of("use")
    assert [values["href"] for values in uses] == [f"#{image['id']}"]
    data = base64.b64decode(image["href"].removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.size == (200, 100)
    assert not re.search(r"""(?:src|href)="(?!data:|#)|<script|<link|url\(""", text)


@pytest.mark.parametrize(
    ("image", "why"),
    [("missing.jpg", "image missing"), ("broken.jpg", "image unreadable"), ("../a.jpg", "path outside images")],
)
def test_images_that_can_not_be_opened_are_an_empty_canvas_with_the_reason(tmp_path, images, image, why):
    page, text = written(tmp_path, [row(1, (10, 10, 60, 60), image=image)], PIXELS, images)
    assert f"Not drawn: {why}." in text
    assert not page.of("image")
    assert [values["width"] for values in page.of("rect") if values.get("class") == "canvas"] == ["200"]
    assert page.rectangles("line") == [(10, 10, 50, 50)]


def test_rows_without_an_image_or_a_size_are_drawn_on_a_square(tmp_path):
    page, text = written(tmp_path, [row(1, (100, 100, 900, 900), image=None, size=None)], THOUSAND)
    assert "size unknown: drawn on a square" in text
    assert "Not drawn: no image." in text
    assert page.rectangles("line") == [(100, 100, 800, 800)]
    page, text = written(tmp_path, [row(1, (100, 100, 900, 900), size=None)], THOUSAND)
    assert "Not drawn: images were left out." in text
    assert "The sizes of the images are not known." in text


def test_the_size_of_an_image_is_read_if_no_row_states_it(tmp_path, images):
    page, text = written(tmp_path, [row(1, (100, 100, 900, 900), size=None)], THOUSAND, images)
    assert page.rectangles("line") == [(20, 10, 160, 80)]
    assert "200 × 100" in text


@pytest.mark.parametrize("size", [(0, 0), (-5, 7), (10**15, 10**15), (1, 10_000)])
def test_sizes_that_can_not_be_true_are_drawn_somehow(tmp_path, images, size):
    boxes = (1e308, -1e308, 5, 5), (0, 0, 0, 0), (1, 2, 3, 4)
    page, _ = written(tmp_path, [row(1, *boxes, size=size)], PIXELS, images)
    assert len(page.of("svg")) >= 1
    assert all(float(number) == float(number) for one in page.of("svg") for number in one["viewbox"].split())


def test_text_of_strangers_is_only_text(tmp_path, images):
    evil = '</bdi><script>alert(1)</script>"\udc80\u202e'
    rows = [row(1, (10, 10, 60, 60), image=evil, labels=(evil,))]
    finding = Finding("beyond", "are strange", 1, 2, "boxes", (evil,))
    made = content(rows, PIXELS, images)
    made.findings, made.refuted, made.notes, made.title = [finding], [evil], [evil], evil
    path = write_page(made, tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    Page(text)
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)") >= 6


def test_data_without_boxes_have_a_page_too(tmp_path):
    made = PageContent("d.jsonl", [], [part([])])
    text = write_page(made, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "No row has boxes." in text
    assert "0 boxes" in text


def test_readings_that_can_not_be_told_apart_are_named(tmp_path):
    _, text = written(tmp_path, [row(1, (10, 10, 60, 60))])
    assert "The data can't tell" in text


def test_many_boxes_are_cut_off_in_the_legend(tmp_path):
    rows = [row(1, *[(k, k, k + 20, k + 20) for k in range(70)])]
    page, text = written(tmp_path, rows, PIXELS)
    assert page.of("svg")[0]["aria-label"] == "60 boxes as xyxy, pixels"
    assert "xyxy, pixels; 10 boxes more" in text
    assert "52 boxes more" in text


def gallery_of(rows, size=100):
    gallery = Gallery()
    for start in range(0, len(rows), size):
        gallery.add(Batch(rows[start : start + size]))
    return gallery


def test_the_choice_is_the_same_for_any_batches_and_spread_over_the_data():
    rows = [row(k, (1, 1, 9, 9), image=f"{k}.jpg") for k in range(1, 5001)]
    choices = [[one.image for one in gallery_of(rows, size).choose({})] for size in (100, 1777, 5000)]
    assert choices[0] == choices[1] == choices[2]
    numbers = [int(name.removesuffix(".jpg")) for name in choices[0]]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == IMAGES
    assert np.histogram(numbers, bins=4, range=(0, 5000))[0].min() >= 2


def test_all_rows_of_an_image_are_together_also_far_apart():
    rows = [row(k, (k % 7, 1, 9, 9), image=f"{k % 1000}.jpg") for k in range(1, 4001)]
    for shown in gallery_of(rows).choose({}):
        assert [one.number % 1000 for one in shown.rows] == [int(shown.image.removesuffix(".jpg"))] * 4
        assert shown.whole


def test_rows_with_findings_come_first_one_of_each_kind_in_turn():
    rows = [row(k, (1, 1, 9, 9), image=f"{k}.jpg") for k in range(1, 3001)]
    flagged = {"beyond": rows[:40], "tiny": rows[100:102]}
    shown = gallery_of(rows).choose(flagged)
    kinds = [kind for one in shown for kind in one.kinds]
    assert (kinds.count("beyond"), kinds.count("tiny")) == (FLAGGED - 2, 2)
    assert len(shown) == IMAGES
    for one in shown:
        assert one.whole or [row.image for row in one.rows] == [one.image]


def test_rows_without_boxes_are_not_shown_and_rows_without_an_image_are_shown_alone():
    rows = [row(1), row(2, (1, 1, 9, 9), image=None), row(3, (1, 1, 9, 9), image=None)]
    assert [[one.number for one in shown.rows] for shown in gallery_of(rows).choose({})] == [[2], [3]]
    assert Gallery().choose({}) == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_nothing_sticks_out_and_images_are_seen(tmp_path, images, browser, width):
    rows = [
        row(k, (200, 100, 900, 400), (-50, 0, 900, 900), image=name) for k, name in enumerate(("a.jpg", "b.jpg"), 1)
    ]
    rows.append(row(3, (1, 1, 60, 60), image="an extraordinarily-long_name" * 9 + ".jpg", labels=("word" * 60,)))
    path = write_page(content(rows, PIXELS, images), tmp_path / "page.html")
    page = browser.new_page(viewport={"width": width, "height": 900})
    errors = []
    page.on("console", lambda line: errors.append(line.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    heights = page.evaluate("[...document.querySelectorAll('svg')].map(one => one.getBoundingClientRect().height)")
    assert len(heights) == 6
    assert min(heights) > 40
    pixel = page.locator("svg").nth(1).screenshot()  # the image is used from the first panel
    with Image.open(io.BytesIO(pixel)) as shot:
        colours = {colour for _, colour in shot.convert("RGB").quantize(16).convert("RGB").getcolors(100_000)}
    assert any(abs(r - 10) < 30 and abs(g - 120) < 30 and abs(b - 40) < 30 for r, g, b in colours)
    page.close()
    assert errors == []
