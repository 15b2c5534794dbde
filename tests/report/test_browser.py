"""The report as a reader meets it: opened from disk in headless Chromium, with the mouse and with the keyboard."""

import io
import re

import pytest
from PIL import Image
from playwright.sync_api import expect

from spr.records import Span
from spr.report.page import write_report

pytestmark = pytest.mark.browser

PAIRS = 45
CUP, SECOND_CUP = (20.0, 20.0, 40.0, 40.0), (50.0, 20.0, 70.0, 40.0)
EVIL = "<img src=x onerror=window.hacked=1> </script><script>window.hacked=1</script>"
LONG = "a dog " * 17_000


@pytest.fixture(scope="module")
def report(make_module_run):
    """Pairs 0 to 44; 1 is hostile, 2 long, 3 has no image, 4 a phrase with two boxes; trained and with results."""
    maker = make_module_run(pairs=PAIRS)
    row = maker.regions[1].to_row()
    row["objects"] = [{**item, "category": EVIL} for item in row["objects"]]
    row |= {"file_name": "<b>1.png", "query_id": f"1/0{EVIL}"}
    maker.regions[1] = type(maker.regions[1]).from_row(row)
    for k, side in ((2, "a"), (3, "b")):
        maker.change("candidates", k, query_id=row["query_id"])
        maker.change("scores", k, query_id=row["query_id"])
        assert maker.candidates[k].candidate_id == f"1/0/{side}"
    spans = (Span(EVIL, 0, len(EVIL), ((20.0, 20.0, 40.0, 40.0),)),)
    maker.change("candidates", 3, plain_text=EVIL, spans=spans, text=EVIL, raw_text=EVIL)
    maker.change(
        "pairs", 1, query_id=row["query_id"], file_name="<b>1.png", rejected=EVIL, rejected_spans=spans, prompt=EVIL
    )
    maker.change("candidates", 5, plain_text=LONG, spans=())
    maker.change("pairs", 2, rejected=LONG, rejected_spans=())
    both = (Span("two cups", 0, 8, (CUP, SECOND_CUP)),)
    maker.change("candidates", 9, plain_text="two cups", spans=both)
    maker.change("pairs", 4, rejected_spans=both)
    (maker.images / "3.png").unlink()
    maker.change("pairs", 40, split="holdout")
    maker.drops["pairs"] = (
        "query",
        [("gone-1", "chosen_without_box"), ("gone-2", "chosen_without_box"), (EVIL, "not_renderable")],
        ["cups/1.png", None, EVIL],
    )
    maker.log_training([{"event": "step", "step": k, "loss": 1 / k, "accuracy": 0.5} for k in range(1, 50)])
    return write_report(maker.write())


@pytest.fixture
def open_page(browser, report):
    """Opens the report; afterwards there was no error, no request but for its own files, and nothing was hacked."""
    contexts, errors, requests = [], [], []

    def open_it(address="", **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on(
            "console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.as_uri() + address)
        page.wait_for_selector(".card, #status:not(:empty)")
        return page

    yield open_it
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.hacked") is None
        context.close()
    assert errors == []
    folder = report.parent.as_uri() + "/"
    assert [url for url in requests if not url.startswith((folder, "data:"))] == []
    assert requests


def ids(page):
    return [text.split("/")[0] for text in page.locator(".card > h3").all_inner_texts()]


def status(page):
    return page.locator("#status").inner_text()


def wait_for_status(page, text):
    # Not `wait_for_function`: it evaluates texts in the page, which the page's own policy forbids.
    expect(page.locator("#status")).to_have_text(re.compile(f"^{re.escape(text)}"))


def wait_for_first(page, name):
    expect(page.locator(".card > h3").first).to_have_text(re.compile(f"^{name}/0"))


def test_it_opens_from_disk_with_its_first_pairs_drawn(open_page):
    page = open_page()
    assert status(page) == "1 to 10 of 45 pairs"
    assert ids(page) == [str(k) for k in range(10)]
    assert page.locator("svg.plot").count() > 10
    # Each picture's own image is loaded, but for the one that is missing.
    pictures = page.locator(".view img")
    # Two of each of ten pairs, but for pairs 1 and 3, whose files are not there.
    assert pictures.count() == 16
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
    assert (
        pictures.evaluate_all(
            "nodes => Promise.all(nodes.map(n => n.decode())).then(() => nodes.map(n => n.naturalWidth))"
        )
        == [100] * 16
    )
    assert page.locator(".card").nth(3).locator(".gap").first.inner_text() == "No image: image missing"


def test_filters_and_sorting_with_the_mouse(open_page):
    page = open_page()
    form = page.locator("#filters")
    # Mugs lie in even pairs: 23 of 45 (pair 1 is odd).
    label = form.locator('[name=category] option:has-text("mug")').inner_text()
    assert label == "mug (23)"
    form.locator("[name=category]").select_option(label=label)
    wait_for_status(page, "1 to 10 of 23 matching pairs, out of 45")
    assert ids(page)[:3] == ["0", "2", "4"]
    # Margins are 0.1 + k/100: at least 0.40 from pair 30 on; of those 30, 32, … 44 have mugs.
    form.locator("[name=from]").fill("0.395")
    wait_for_status(page, "1 to 8 of 8 matching pairs")
    form.locator("[name=to]").fill("0.425")
    wait_for_status(page, "1 to 2 of 2 matching pairs")
    assert ids(page) == ["30", "32"]
    form.locator("button[type=reset]").click()
    wait_for_status(page, "1 to 10 of 45 pairs")
    form.locator("[name=sort]").select_option("-margin")
    wait_for_first(page, 44)
    assert ids(page)[:3] == ["44", "43", "42"]
    # Chosen kinds go round full, crop, crop_objects: crop is every third, from 1.
    form.locator("[name=chosenKind]").select_option("crop")
    wait_for_status(page, "1 to 10 of 15 matching pairs")
    assert ids(page)[:2] == ["43", "40"]
    form.locator("[name=rejectedKind]").select_option("full")
    wait_for_status(page, "None of the 45 pairs matches")
    assert page.locator(".card").count() == 0


def test_held_out_pairs_are_marked_and_can_be_selected(open_page):
    page = open_page()
    page.locator("#filters [name=split]").select_option("holdout")
    wait_for_status(page, "1 to 1 of 1 matching pair, out of 45")
    assert page.locator(".card h3 .held-out").inner_text() == "held out, not trained on"
    page.locator("#filters [name=split]").select_option("train")
    wait_for_status(page, "1 to 10 of 44 matching pairs")
    assert page.locator(".card .held-out").count() == 0


def test_finding_by_id_or_file(open_page):
    page = open_page()
    page.locator("[name=find]").fill("17.PNG")
    wait_for_status(page, "1 to 1 of 1 matching pair")
    assert ids(page) == ["17"]


def test_pages_turn_with_the_mouse(open_page):
    page = open_page()
    pager = page.locator(".pager").first
    pager.locator("text=Next").click()
    wait_for_status(page, "11 to 20 of")
    assert ids(page)[0] == "10"
    pager.locator("text=Last").click()
    wait_for_status(page, "41 to 45 of")
    # There is no next page, and the button says so.
    assert pager.locator("text=Next").get_attribute("aria-disabled") == "true"
    pager.locator("text=Next").click(force=True)
    assert status(page).startswith("41 to 45 of")
    pager.locator("input").fill("3")
    pager.locator("input").press("Enter")
    wait_for_status(page, "21 to 30 of")
    pager.locator("text=First").click()
    wait_for_status(page, "1 to 10 of")
    page.locator("[name=per]").select_option("50")
    wait_for_status(page, "1 to 45 of 45")
    assert not pager.is_visible()


def test_everything_with_the_keyboard_alone(open_page):
    page = open_page()
    page.locator("[name=category]").focus()
    for _ in range(8):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "per"
    page.keyboard.press("Shift+Tab")
    # The second sort order: largest margin first.
    page.keyboard.press("ArrowDown")
    wait_for_first(page, 44)
    page.locator(".pager").first.locator("text=Next").focus()
    page.keyboard.press("Enter")
    wait_for_status(page, "11 to 20 of")
    page.keyboard.press("ArrowRight")
    wait_for_status(page, "21 to 30 of")
    expect(page.locator(".card").first).to_be_focused()
    page.keyboard.press("ArrowLeft")
    wait_for_status(page, "11 to 20 of")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.querySelector('h3').textContent").startswith("33")
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.querySelector('h3').textContent").startswith("34")
    # Letters typed into a field are not shortcuts.
    page.locator("[name=find]").focus()
    page.keyboard.type("j")
    assert page.evaluate("document.activeElement.value") == "j"


def lit(card, selector):
    return card.locator(f"{selector}.lit").count()


def test_phrase_and_box_stand_out_together_under_the_pointer(open_page):
    page = open_page()
    card = page.locator(".card").first
    card.scroll_into_view_if_needed()
    assert lit(card, ".mark") == 0
    card.locator(".chosen .phrase").first.hover()
    # The cup of both answers, its box in both pictures, and the object itself in both.
    assert lit(card, ".chosen .phrase") == 1
    assert lit(card, ".rejected .phrase") == 1
    assert lit(card, ".chosen .answer") == 1
    assert lit(card, ".rejected .answer") == 1
    assert lit(card, ".object") == 2
    dimmed = card.locator(".chosen .answer:not(.lit)").first
    assert float(dimmed.evaluate("node => getComputedStyle(node).opacity")) < 0.5
    # The rejected answer's dog hits nothing: its box and its phrase, and nothing else. Boxes have no inside to point at
    # but for their outline.
    card.locator(".rejected .answer").nth(1).locator(".box").hover(position={"x": 1, "y": 1})
    assert card.locator(".rejected .phrase.lit").all_inner_texts() == ["a dog"]
    assert lit(card, ".mark") == 1
    page.mouse.move(5, 5)
    assert lit(card, ".phrase") == 0


def test_a_phrase_with_two_boxes_lights_both_and_each_of_them_the_phrase_and_the_other(open_page):
    page = open_page()
    card = page.locator(".card").nth(4)
    assert card.locator(".rejected .chip").all_inner_texts() == ["1", "2"]
    card.locator(".rejected .phrase").focus()
    assert lit(card, ".rejected .answer") == 2
    card.locator(".rejected .answer").first.focus()
    assert lit(card, ".rejected .phrase") == 1
    assert lit(card, ".rejected .answer") == 2
    # Of the other answer, only the cup that this box lies on.
    assert card.locator(".chosen .phrase.lit").all_inner_texts() == ["a cup"]


def test_phrase_and_box_stand_out_together_in_focus_and_when_kept(open_page):
    page = open_page()
    card = page.locator(".card").first
    card.locator(".chosen .phrase").nth(1).focus()
    assert lit(card, ".chosen .answer") == 1
    assert (
        card.locator(".chosen .answer.lit").get_attribute("aria-label").startswith("Box 2: a second cup; on object 2")
    )
    page.keyboard.press("Enter")
    page.locator("[name=find]").focus()
    assert lit(card, ".chosen .answer") == 1
    assert card.locator("[aria-pressed=true]").count() == 1
    card.locator(".chosen .answer").first.focus()
    assert card.locator(".chosen .phrase.lit").all_inner_texts() == ["a cup"]
    page.keyboard.press("ArrowRight")
    assert card.locator(".chosen .phrase.lit").all_inner_texts() == ["a second cup"]
    assert status(page).startswith("1 to 10")
    page.keyboard.press("Escape")
    assert card.locator("[aria-pressed=true]").count() == 0


def test_phrases_boxes_and_tags_share_a_colour_and_bars_show_the_scores(open_page):
    page = open_page()
    card = page.locator(".card").first
    colour = "node => getComputedStyle(node).getPropertyValue('--k').trim()"
    for name in ("chosen", "rejected"):
        phrase = card.locator(f".{name} .phrase").first.evaluate(colour)
        assert phrase == card.locator(f".{name} .answer").first.evaluate(colour)
        assert phrase == card.locator(f".{name} .tag").first.evaluate(colour)
    assert card.locator(".chosen .chip").all_inner_texts() == ["1", "2"]
    assert card.locator(".rejected .chip").all_inner_texts() == ["1", "a"]
    # S of the chosen candidate is 0.3 + 0.1, and its bar is that part of its width.
    bars = card.locator(".bits .bar.chosen i")
    assert [bar.evaluate("node => node.style.width") for bar in bars.all()] == [
        "25%",
        "35%",
        "30%",
        "60%",
        "40%",
        "100%",
    ]


def test_bars_of_negative_scores_start_at_zero_and_extend_to_the_left(browser, make_module_run):
    """Scores of -0.25, 0.5 and 1 on a scale from -0.25 to 1: zero is at 20 %, the ends are at 0, 60 and 100 %."""
    maker = make_module_run(pairs=1)
    maker.change("scores", 0, s_crop=-0.25, s_local=0.5)
    page = browser.new_page()
    page.goto(write_report(maker.write()).as_uri())
    bars = page.locator(".card .bar.chosen")
    ends = []
    for number in range(3):
        bar, fill = (bars.nth(number).locator(at).bounding_box() for at in ("xpath=.", "i"))
        ends.append([(edge - bar["x"]) / bar["width"] for edge in (fill["x"], fill["x"] + fill["width"])])
        zero = bars.nth(number).locator(".zero").bounding_box()
        assert (zero["x"] - bar["x"]) / bar["width"] == pytest.approx(0.2, abs=0.01)
    assert ends[0] == pytest.approx([0, 0.2], abs=0.01)
    assert ends[1] == pytest.approx([0.2, 0.6], abs=0.01)
    page.close()


def test_a_table_that_is_wider_than_the_phone_has_a_shadow_at_its_edge(open_page):
    """The shadow is where the table continues: at its right edge first, at its left edge once it is scrolled."""
    page = open_page(viewport={"width": 390, "height": 800})
    table = page.locator("#scores .scroll")
    table.scroll_into_view_if_needed()
    assert table.evaluate("node => node.scrollWidth > node.clientWidth")

    def darkness():
        """Of the column of pixels at the left and at the right edge, between two lines of text."""
        with Image.open(io.BytesIO(table.screenshot())) as picture:
            grey = picture.convert("L")
            return [min(grey.getpixel((x, y)) for y in (2, grey.height - 2)) for x in (1, grey.width - 2)]

    left, right = darkness()
    assert right < left - 15
    table.evaluate("node => node.scrollTo(node.scrollWidth, 0)")
    left, right = darkness()
    assert left < right - 15


def test_objects_and_boxes_before_refinement_can_be_switched(open_page):
    page = open_page()
    card = page.locator(".card").first
    assert card.locator(".object").first.is_visible()
    assert not card.locator(".was").first.is_visible()
    page.locator("[name=objects]").uncheck()
    page.locator("[name=before]").check()
    assert not card.locator(".object").first.is_visible()
    assert card.locator(".was").first.is_visible()


def test_text_from_models_and_datasets_is_shown_as_text(open_page):
    page = open_page()
    card = page.locator(".card").nth(1)
    assert card.locator(".rejected .phrase").first.inner_text() == EVIL
    assert card.locator("h3").first.inner_text().startswith(f"1/0{EVIL}")
    assert card.locator("img[src=x], script").count() == 0
    assert EVIL in page.locator("#pairs").inner_text()
    card.locator("summary").nth(1).click()
    assert EVIL in card.locator("details pre").first.inner_text()
    page.locator("#drop-filter select").select_option(label="pairs, query: not renderable (1)")
    assert page.locator("#drops li").all_inner_texts() == [f"{EVIL} {EVIL}"]


def test_a_description_of_100_kb_is_shortened_and_can_be_seen_whole(open_page):
    page = open_page()
    card = page.locator(".card").nth(2)
    assert len(card.locator(".rejected .text").inner_text()) == 2000
    assert "The first 2,000 of 102,000 characters" in card.inner_text()
    card.locator(".rejected button.more").click()
    expect(card.locator(".rejected button.more")).to_have_count(0)
    assert len(card.locator(".rejected .text").evaluate("node => node.textContent")) == 102_000


def test_dropped_ids_are_listed_by_reason(open_page):
    page = open_page()
    assert page.locator("#drop-filter option").all_inner_texts() == [
        "pairs, query: chosen without box (2)",
        "pairs, query: not renderable (1)",
    ]
    assert page.locator("#drops li").all_inner_texts() == ["gone-1 cups/1.png", "gone-2"]


def test_the_address_keeps_the_filters(open_page):
    page = open_page()
    page.locator("[name=sort]").select_option("-margin")
    page.locator("[name=chosenKind]").select_option("full")
    wait_for_status(page, "1 to 10 of 15")
    page.locator(".pager").first.locator("text=Next").click()
    wait_for_status(page, "11 to 15 of 15")
    address = page.evaluate("location.hash")
    again = open_page(address)
    wait_for_status(again, "11 to 15 of 15")
    assert ids(again) == ids(page) == ["12", "9", "6", "3", "0"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen_and_sides_stand_below_each_other(open_page, scheme):
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    tops = (
        page.locator(".card")
        .first.locator(".side")
        .evaluate_all("nodes => nodes.map(n => n.getBoundingClientRect().top)")
    )
    assert tops[1] > tops[0] + 100
    # Letters in the plots, as they come out on the screen.
    scale = page.locator("svg.plot").first.evaluate("node => node.getBoundingClientRect().width / 360")
    assert 11 * scale > 10
    page.locator(".card").first.locator(".chosen .phrase").first.tap()
    assert lit(page.locator(".card").first, ".chosen .answer") == 1


def test_dark_and_light_differ_as_the_system_wants(open_page):
    grounds = [
        open_page(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert grounds == ["rgb(251, 251, 249)", "rgb(20, 23, 26)"]


def test_every_image_and_field_has_an_accessible_name(open_page):
    page = open_page()
    assert page.locator("img:not([alt])").count() == 0
    assert (
        page.locator("svg.plot:not([aria-label]), svg.marks:not([aria-label]), .answer:not([aria-label])").count() == 0
    )
    unnamed = "nodes => nodes.filter(n => !n.labels.length).map(n => n.name)"
    assert page.locator("input, select").evaluate_all(unnamed) == []
    assert page.locator("html").get_attribute("lang") == "en"
