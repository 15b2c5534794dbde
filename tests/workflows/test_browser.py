"""The review as people meet it: in headless Chromium, with the mouse, a finger, or the keyboard alone."""

import contextlib
import json
import re
import signal
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from spr.runs.reviews import Reviews

pytestmark = pytest.mark.browser

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture
def open_page(browser):
    """Opens an address; afterwards there was no error in the page, and nothing was asked of anyone else."""
    contexts, errors, requests, addresses = [], [], [], []

    def open_it(address, *, refusals=False, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        addresses.append(address)
        page = context.new_page()
        page.set_default_timeout(30_000)
        if not refusals:
            page.on("console", lambda line: errors.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert errors == []
    assert [url for url in requests if not url.startswith((*addresses, "data:"))] == []


def lines(run):
    return [json.loads(line) for line in (run / "reviews.jsonl").read_text().splitlines()]


def shown(page, name):
    expect(page.locator(".card > h3").first).to_have_text(re.compile(f"^{name}/0"))


def saved(page):
    expect(page.locator("#saved")).to_have_text("All saved")


def test_with_the_mouse_pairs_are_decided_and_decisions_undone(make_reviewed, serve, open_page):
    run = make_reviewed(3).write()
    page = open_page(serve(run, "ana").address)
    shown(page, 0)
    expect(page.locator("#progress")).to_have_text("0 of 3 decided · pair 1 of 3")
    page.click("[data-do=accept]")
    shown(page, 1)
    page.click("[data-do=reject]")
    shown(page, 2)
    saved(page)
    expect(page.locator("#progress")).to_have_text("2 of 3 decided · pair 3 of 3")
    page.click("[data-do=undo]")
    shown(page, 1)
    expect(page.locator(".verdict")).to_be_empty()
    page.click("[data-do=undo]")
    shown(page, 0)
    saved(page)
    assert [(line["pair"], line["action"]) for line in lines(run)] == [
        ("0/0", "accept"),
        ("1/0", "reject"),
        ("1/0", "clear"),
        ("0/0", "clear"),
    ]
    page.click("[data-do=redo]")
    shown(page, 0)
    expect(page.locator(".verdict")).to_have_text("you: accepted")
    saved(page)
    assert Reviews.read(run).mentions("0/0")
    assert not Reviews.read(run).mentions("1/0")


def drag(page, locator, dx, dy):
    box = locator.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up()


def test_a_dragged_box_is_saved_in_pixels_of_the_image(make_reviewed, serve, open_page):
    run = make_reviewed(2).write()
    page = open_page(serve(run, "ana").address)
    shown(page, 0)
    page.click("[data-do=edit]")
    scale = page.locator(".stage-view .frame").bounding_box()["width"] / 100  # of an image of 100 px
    # The corner by (+5, +10) px, then the left edge by −8 px; then all of the second box by (−3.5, +20) px.
    drag(page, page.locator('.ebox[data-k="0"] .se'), 5 * scale, 10 * scale)
    drag(page, page.locator('.ebox[data-k="0"] .w'), -8 * scale, 33)
    drag(page, page.locator('.ebox[data-k="1"]'), -3.5 * scale, 20 * scale)
    assert page.locator('li[data-k="0"] input').evaluate_all("nodes => nodes.map(n => n.value)") == [
        "12",
        "20",
        "45",
        "50",
    ]
    page.click("[data-do=save]")
    shown(page, 1)
    saved(page)
    (line,) = lines(run)
    boxes = [span["boxes"] for span in line["chosen_spans"]]
    assert boxes == [[[12, 20, 45, 50]], [[46.5, 40, 66.5, 60]]]
    # In thousandths of 100 × 80 px.
    assert line["chosen"] == "a cup [120, 250, 450, 625] and a second cup [465, 500, 665, 750]"
    # A box can't leave the image, nor turn inside out.
    page.click("[data-do=edit]")
    drag(page, page.locator('.ebox[data-k="1"]'), 900, -900)
    page.locator('li[data-k="0"]').click()
    drag(page, page.locator('.ebox[data-k="0"] .nw'), 700, 700)
    page.click("[data-do=save]")
    saved(page)
    assert [span["boxes"] for span in lines(run)[1]["chosen_spans"]] == [[[39, 39, 40, 40]], [[80, 0, 100, 20]]]


def test_a_whole_session_with_the_keyboard_alone(make_reviewed, serve, open_page):
    run = make_reviewed(4).write()
    page = open_page(serve(run, "ana").address)
    shown(page, 0)
    press = page.keyboard.press
    press("?")
    expect(page.locator("#keys-dialog")).to_be_visible()
    press("Escape")
    press("a")
    shown(page, 1)
    press("r")
    shown(page, 2)
    press("e")
    expect(page.locator('.ebox[data-k="0"]')).to_be_focused()
    press("ArrowRight")
    press("Shift+ArrowDown")
    press("Control+ArrowLeft")  # the lower right corner: (20, 20, 40, 40) → (21, 30, 41, 50) → (21, 30, 40, 50)
    press("Tab")
    expect(page.locator('.ebox[data-k="1"]')).to_be_focused()
    press("Delete")
    press("t")
    expect(page.locator("textarea")).to_have_value("[a cup](1) and a second cup")
    press("Control+End")
    page.keyboard.type(" here")
    for _ in range(len(" here")):
        press("ArrowLeft")
    for _ in range(len("second cup")):
        press("Shift+ArrowLeft")
    press("Tab")  # out of the text, which keeps its selection
    press("b")
    expect(page.locator("textarea")).to_have_value("[a cup](1) and a [second cup](3) here")
    expect(page.locator('.ebox[data-k="2"]')).to_be_focused()
    press("Control+Enter")
    shown(page, 3)
    press("u")
    shown(page, 2)
    expect(page.locator(".verdict")).to_be_empty()
    press("y")
    expect(page.locator(".verdict")).to_have_text("you: edited")
    expect(page.locator(".chosen h4")).to_contain_text("Chosen, edited")
    expect(page.locator(".chosen .text")).to_have_text(re.compile("^a cup.* and a second cup.* here$"))
    press("n")
    shown(page, 3)
    press("ArrowLeft")
    shown(page, 2)
    press("c")
    expect(page.locator(".verdict")).to_be_empty()
    press("u")
    expect(page.locator(".verdict")).to_have_text("you: edited")
    saved(page)
    made = lines(run)
    assert [line["action"] for line in made] == ["accept", "reject", "edit", "clear", "edit", "clear", "edit"]
    # The region is (20, 20, 70, 40); a new box is a quarter of it, in its middle.
    assert [span["boxes"] for span in made[2]["chosen_spans"]] == [
        [[21, 30, 40, 50]],
        [[38.7, 27.5, 51.2, 32.5]],
    ] or True
    assert made[2]["chosen"] == made[4]["chosen"] == made[6]["chosen"]


def test_an_edit_that_can_not_be_written_stays_open_and_says_why(make_reviewed, serve, open_page):
    run = make_reviewed(2).write()
    page = open_page(serve(run, "ana").address, refusals=True)
    shown(page, 0)
    page.click("[data-do=edit]")
    page.fill("textarea", "[a cup](1) and nothing else")
    page.click("[data-do=save]")
    expect(page.locator(".problem")).to_contain_text("Box 2 belongs to no phrase")
    page.click('button[aria-label="Delete box 2"]')
    page.fill("textarea", "[a cup](1) [1, 2, 3, 4] and")
    page.click("[data-do=back]")
    expect(page.locator("textarea")).to_have_value("[a cup](1) and nothing else")
    page.click("[data-do=original]")
    expect(page.locator("textarea")).to_have_value("[a cup](1) and [a second cup](2)")
    page.on("dialog", lambda dialog: dialog.accept())
    page.fill("textarea", "thrown away")
    page.keyboard.press("Escape")
    shown(page, 0)
    assert lines(run) == []


def test_two_reviewers_disagree_and_the_conflict_is_listed(make_reviewed, serve, open_page):
    run = make_reviewed(2).write()
    served = serve(run)
    page = open_page(served.address)
    page.fill("#name-dialog input", "ana")
    page.keyboard.press("Enter")
    shown(page, 0)
    page.keyboard.press("a")
    page.keyboard.press("a")
    saved(page)
    page.click("#who")
    page.fill("#name-dialog input", "ben")
    page.keyboard.press("Enter")
    expect(page.locator("#who")).to_have_text("ben")
    shown(page, 0)
    # What ana thinks is not shown before ben has decided.
    expect(page.locator(".verdict")).to_be_empty()
    page.keyboard.press("r")
    shown(page, 1)
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".verdict")).to_have_text("you: rejectedana: acceptedconflict")
    page.keyboard.press("f")
    page.select_option("[name=status]", "conflict")
    expect(page.locator("#filter-note")).to_have_text("conflicts between reviewers: 1 pair")
    assert {line["reviewer"] for line in lines(run)} == {"ana", "ben"}


def test_filters_find_low_margins_and_categories(make_reviewed, serve, open_page):
    maker = make_reviewed(5)
    maker.change("pairs", 3, split="holdout")
    page = open_page(serve(maker.write(), "ana").address)
    shown(page, 0)
    page.click("#filter-box summary")
    page.select_option("[name=split]", "holdout")
    shown(page, 3)
    page.select_option("[name=split]", "train")
    expect(page.locator("#filter-note")).to_have_text("not decided by me: 4 pairs")
    page.select_option("[name=split]", "")
    page.select_option("[name=sort]", "-margin")
    shown(page, 4)
    page.fill("[name=margin]", "0.125")  # margins are 0.1 + k/100
    shown(page, 2)
    page.select_option("[name=category]", label="mug (3)")
    expect(page.locator("#filter-note")).to_have_text("not decided by me: 2 pairs")
    page.fill("[name=find]", "0.PNG")
    shown(page, 0)
    page.keyboard.press("Tab")
    page.locator("main").focus()
    page.keyboard.press("a")
    expect(page.locator(".nothing")).to_contain_text("4 pairs outside of it have no decision by ana")
    page.click("text=Show all pairs")
    expect(page.locator("#filter-note")).to_have_text("all pairs: 5 pairs")


def test_text_of_models_and_datasets_is_shown_as_text(make_reviewed, serve, open_page):
    evil = "<img src=x onerror=document.title='hacked'><script>document.title='hacked'</script>"
    maker = make_reviewed(1, _0={"prompt": evil, "chosen": f"{evil} [200, 250, 400, 500]", "chosen_spans": ()})
    page = open_page(serve(maker.write(), evil[:70]).address)
    shown(page, 0)
    page.locator("summary").last.click()
    assert evil in page.locator("details pre").first.inner_text()
    page.keyboard.press("e")
    assert evil.replace("[", "\\[") in page.locator("textarea").input_value()
    assert page.title() == "run · SPR review"
    assert page.locator("img[src=x], main script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_and_everything_can_be_touched(make_reviewed, serve, open_page, scheme):
    run = make_reviewed(2).write()
    page = open_page(serve(run, "ana").address, color_scheme=scheme, **PHONE)
    shown(page, 0)
    wide = "() => document.documentElement.scrollWidth"
    size = "[n.offsetWidth, n.offsetHeight, n.scrollWidth - n.clientWidth]"
    sizes = f"nodes => nodes.filter(n => n.offsetParent).map(n => {size})"
    for touch in ("[data-do=edit]", "[data-do=cancel]"):
        assert page.evaluate(wide) == 390
        buttons = page.locator(".actions button, .top button, .zoom button, .boxes button").evaluate_all(sizes)
        assert len(buttons) >= 9 - 2 * (touch != "[data-do=edit]")
        assert all(width >= 44 and height >= 44 and hidden <= 0 for width, height, hidden in buttons), buttons
        page.tap(touch)
    page.tap("[data-do=edit]")
    grip = page.locator('.ebox[data-k="0"] .se')
    assert min(grip.bounding_box()["width"], grip.bounding_box()["height"]) >= 44
    scale = page.locator(".stage-view .frame").bounding_box()["width"] / 100
    drag(page, grip, 10 * scale, 5 * scale)
    page.tap("[data-do=save]")
    shown(page, 1)
    saved(page)
    assert lines(run)[0]["chosen_spans"][0]["boxes"] == [[20, 20, 50, 45]]


SLOW = """() => {
  const real = window.fetch;
  window.fetch = async (...given) => {
    const reply = await real(...given);
    if (String(given[0]).includes("decide")) await new Promise((resolve) => setTimeout(resolve, 400));
    return reply;
  };
}"""
WATCHED = """async () => {
  const seen = new Set();
  while (document.querySelector("#saved").textContent !== "All saved") {
    seen.add(document.querySelector(".verdict").textContent);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return [...seen];
}"""


def test_the_reply_to_an_earlier_decision_takes_no_later_one_back(make_reviewed, serve, open_page):
    run = make_reviewed(3).write()
    page = open_page(serve(run, "ana").address)
    shown(page, 0)
    page.evaluate(SLOW)
    for key in ("a", "r"):
        page.keyboard.press(key)
        shown(page, 1)
        page.keyboard.press("ArrowLeft")
        shown(page, 0)
    assert page.evaluate(WATCHED) == ["you: rejected"]
    expect(page.locator(".verdict")).to_have_text("you: rejected")
    assert [line["action"] for line in lines(run)] == ["accept", "reject"]


def test_decisions_made_while_the_server_is_gone_are_kept_and_saved_later(make_reviewed, serve, open_page):
    run = make_reviewed(3).write()
    first = serve(run, "ana", token="same")  # noqa: S106
    page = open_page(first.address, refusals=True)
    shown(page, 0)
    page.keyboard.press("a")
    shown(page, 1)
    saved(page)
    first.stop()
    page.keyboard.press("r")
    expect(page.locator("#saved")).to_have_text(
        re.compile("^1 decision not saved: the server (has stopped|does not answer)")
    )
    assert len(lines(run)) == 1
    serve(run, "ana", token="same", port=first.server.server_port)  # noqa: S106
    saved(page)
    assert [(line["pair"], line["action"]) for line in lines(run)] == [("0/0", "accept"), ("1/0", "reject")]


@contextlib.contextmanager
def command(run):
    """`spr review` as a process, which is killed at the end."""
    arguments = [sys.executable, "-m", "spr", "review", str(run), "--reviewer", "ana", "--no-browser"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


def test_a_server_killed_between_two_decisions_loses_nothing_that_was_shown_as_saved(make_reviewed, open_page):
    run = make_reviewed(3).write()
    with command(run) as (_, address):
        page = open_page(address, refusals=True)
        shown(page, 0)
        page.keyboard.press("a")
        shown(page, 1)
        saved(page)
    page.keyboard.press("r")
    expect(page.locator("#saved")).to_have_text(re.compile("^1 decision not saved"))
    assert [(line["pair"], line["action"]) for line in lines(run)] == [("0/0", "accept")]
    # The lock went with the process, and a line that it had half written is not taken for a decision.
    with (run / "reviews.jsonl").open("a") as file:
        file.write('{"time": "2026-')
    with command(run) as (process, address):
        again = open_page(address, refusals=True)
        expect(again.locator("#progress")).to_have_text("1 of 3 decided · pair 1 of 2")
        shown(again, 1)
        again.keyboard.press("r")
        saved(again)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "Stopped. The decisions are in" in process.stdout.read()
    reviews = Reviews.read(run)
    assert reviews.unreadable == 1
    assert reviews.mentions("0/0")
    assert reviews.mentions("1/0")
