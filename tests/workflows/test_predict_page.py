"""The local page of `spr predict --serve`, in headless Chromium."""

import os
import threading

import pytest
from PIL import Image
from playwright.sync_api import expect

from spr.config import PromptsConfig
from spr.grounding import get_dialect
from spr.models.protocols import Answer
from spr.workflows.predict_page import open_page

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=window.hacked=1>"
# Two boxes in thousandths, of which the first has no phrase: 40, 20, 200, 100 and 0, 0, 40, 20 of 400 × 200 pixels.
TEXT = "(100,100),(500,500) and <|object_ref_start|>😀 " + EVIL
TEXT += "<|object_ref_end|><|box_start|>(0,0),(100,100)<|box_end|>, (1,2"


class Fixed:
    name = "fixed<b>@1"
    dialect = get_dialect("qwen2_vl")

    def __init__(self):
        self.asked = []

    def describe(self, requests):
        self.asked += requests
        return [Answer(TEXT.replace("(100,100),(500,500)", "<|box_start|>(100,100),(500,500)<|box_end|>"), "stop")]


@pytest.fixture
def opened(browser):
    """The describer, and the page in a browser; afterwards nothing was requested elsewhere, and nothing hacked."""
    describer, errors, requests = Fixed(), [], []
    with open_page(describer, PromptsConfig(full="What is in {region}?")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        context = browser.new_context(viewport={"width": 900, "height": 900})
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(server.address)
        yield describer, page
        assert page.evaluate("window.hacked") is None
        context.close()
        server.shutdown()
        thread.join()
    assert errors == []
    assert [url for url in requests if not url.startswith((server.address, "blob:"))] == []


def choose(page, tmp_path, size=(400, 200)):
    Image.new("RGB", size, "steelblue").save(tmp_path / "photo.png")
    page.locator("#file").set_input_files(tmp_path / "photo.png")
    expect(page.locator("#status")).to_have_text("photo.png")


def test_an_expression_is_asked_and_its_boxes_are_drawn(opened, tmp_path):
    describer, page = opened
    assert page.locator("header code").inner_text() == "fixed<b>@1"
    page.locator("button").click()
    expect(page.locator("#status")).to_have_text("Choose an image first.")
    choose(page, tmp_path)
    page.get_by_label("Find").check()
    page.locator("#text").fill("the red cup")
    page.locator("#text").press("Enter")
    expect(page.locator("#status")).to_have_text("2 boxes")
    assert describer.asked[0].prompt == describer.dialect.rec_prompt.replace("{expression}", "the red cup")
    assert describer.asked[0].image.size == (400, 200)
    texts = page.locator("#boxes li").all_inner_texts()
    assert texts == ["the red cup: 40.0, 20.0, 200.0, 100.0", f"😀 {EVIL}: 0.0, 0.0, 40.0, 20.0"]
    assert page.locator("#answer b").last.inner_text() == f"😀 {EVIL}"
    assert page.locator("#problems li").count() == 1
    # On the screen, the box lies on the image where its numbers say.
    image, box = page.locator("#image").bounding_box(), page.locator("#marks .box").first.bounding_box()
    scale = image["width"] / 400
    assert box["x"] - image["x"] == pytest.approx(40 * scale, abs=2)
    assert box["width"] == pytest.approx(160 * scale, abs=4)


def test_a_region_is_drawn_by_dragging_or_typed(opened, tmp_path):
    describer, page = opened
    choose(page, tmp_path)
    page.get_by_label("Describe a region").check()
    frame = page.locator("#image").bounding_box()
    scale = frame["width"] / 400
    # From the lower right to the upper left.
    page.mouse.move(frame["x"] + 300 * scale, frame["y"] + 150 * scale)
    page.mouse.down()
    page.mouse.move(frame["x"] + 100 * scale, frame["y"] + 50 * scale, steps=3)
    page.mouse.up()
    page.locator("button").click()
    expect(page.locator("#status")).to_have_text("2 boxes")
    numbers = [float(part) for part in page.locator("#text").input_value().split(", ")]
    assert numbers == pytest.approx([100, 50, 300, 150], abs=1)
    assert describer.asked[0].prompt.startswith("What is in <|box_start|>(2")
    page.locator("#text").fill("0, 0, 400, 100")
    page.locator("#text").press("Enter")
    expect(page.locator("#status")).to_have_text("2 boxes")
    assert describer.asked[1].prompt == "What is in <|box_start|>(0,0),(1000,500)<|box_end|>?"
    page.locator("#text").fill("0, 0, 401, 100")
    page.locator("#text").press("Enter")
    expect(page.locator("#status")).to_contain_text("extends beyond its image")
    assert page.locator("#result").is_hidden()


def test_a_file_that_is_no_image_is_refused_with_a_reason(opened, tmp_path):
    _, page = opened
    (tmp_path / "a.png").write_bytes(b"no image")
    page.locator("#file").set_input_files(tmp_path / "a.png")
    expect(page.locator("#status")).to_have_text("The browser can't show this image.")
    page.locator("button").click()
    expect(page.locator("#status")).to_contain_text("cannot identify image file")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(opened, tmp_path, scheme):
    _, page = opened
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=scheme)
    choose(page, tmp_path, (1600, 900))
    page.locator("button").click()
    expect(page.locator("#status")).to_have_text("2 boxes")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 23, 26)"}[scheme]
    if shots := os.environ.get("SHOTS"):
        page.screenshot(path=f"{shots}/{scheme}.png", full_page=True)
