"""The documentation as a reader meets it: in Chromium, on a desktop and on a phone, opened from disk."""

from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs the extra `docs`")

from mkdocs.commands.build import build
from mkdocs.config import load_config
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """All pages but the modules' docstrings, which take longer than everything else."""
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), plugins=["search"])
    build(config)
    return folder


@pytest.fixture
def open_page(browser, site):
    """Opens a page; afterwards there was no error, and no request but for the site's own files."""
    contexts, problems = [], []

    def open_it(name, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda asked: problems.append(asked.url) if asked.url.startswith("http") else None)
        page.goto((site / name).as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert problems == []


def test_on_a_phone_the_menu_leads_to_another_page(open_page):
    page = open_page("index.html", **PHONE)
    menu = page.get_by_role("navigation", name="Navigation")
    page.locator("label.md-header__button[for=__drawer]").click()
    page.locator("label.md-nav__title", has_text="Start").click()  # from the pages of its group to the groups
    page.locator(".md-nav--primary > ul > li > label", has_text="Reference").click()
    menu.get_by_text("Config fields", exact=True).click()
    expect(page.get_by_role("heading", name="Config fields", level=1)).to_be_visible()
    assert page.url.endswith("/config-fields.html")


def test_no_page_is_wider_than_a_phone(open_page, site):
    page = open_page("index.html", **PHONE)
    wide = {}
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri(), wait_until="domcontentloaded")
        width = page.evaluate("document.documentElement.scrollWidth")
        wide |= {path.name: width} if width > 390 else {}
    assert wide == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_code_has_colours_and_a_copy_button_in_both_palettes(open_page, scheme):
    page = open_page("dialects.html", color_scheme=scheme)
    block = page.locator(".language-python").first
    colours = block.locator("code span").evaluate_all("all => [...new Set(all.map(x => getComputedStyle(x).color))]")
    assert len(colours) >= 3
    expect(block.get_by_role("button", name="Copy to clipboard")).to_have_count(1)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_palette_can_be_changed(open_page):
    page = open_page("index.html", color_scheme="light")
    body = page.locator("body")
    expect(body).to_have_attribute("data-md-color-scheme", "default")
    page.get_by_title("Switch to light mode").click()
    page.get_by_title("Switch to dark mode").click()
    expect(body).to_have_attribute("data-md-color-scheme", "slate")


def test_the_pictures_of_the_start_page_are_shown(open_page):
    page = open_page("index.html")
    shown = page.locator(".pictures img").evaluate_all("all => all.map(x => x.naturalWidth)")
    assert len(shown) == 2
    assert min(shown) > 100
