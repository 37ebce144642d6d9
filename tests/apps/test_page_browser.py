"""apps.page in Chromium: upload, ask, search, click, nothing found, a broken file, a video.

    python -m pytest tests/apps/test_page_browser.py --screenshots runs/ask

drives the page of a real run, prints the seconds of each step and writes docs/pictures/page_*.png. Without
the flag nothing is written."""

import re
import shutil
import time
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.apps.conftest import HOSTILE
from tests.conftest import ROOT

pytest.importorskip("gradio", reason="the page needs Gradio: pip install -r requirements-page.txt")
playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")
WAIT = 60_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, site):
    """A function that opens a tab of the page, as a Playwright page. At the end: it asked this machine only,
    and no script of a stranger ran."""
    asked = set()
    page = browser.new_page(viewport=dict(width=1100, height=800))
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))

    def opened(name):
        page.goto(site.url)
        page.get_by_role("tab", name=name, exact=True).click()
        return page

    yield opened
    assert page.title() != "hacked"
    assert asked <= {"127.0.0.1", None}  # None: data and blob addresses
    page.close()


@pytest.fixture
def shoot(request, capsys):
    """shoot(page, "look"): with --screenshots, a picture for the docs, and the seconds since the last one."""
    began = time.perf_counter()

    def shoot(page, name):
        nonlocal began
        seconds = time.perf_counter() - began
        if request.config.getoption("--screenshots"):
            page.wait_for_function("[...document.images].every(image => image.complete)")
            path = ROOT / "docs" / "pictures" / f"page_{name}.png"
            page.screenshot(path=path, full_page=True, animations="disabled")
            Image.open(path).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)
            with capsys.disabled():
                print(f"page_{name}.png: {seconds:.1f} s")
        began = time.perf_counter()

    return shoot


def upload(page, selector, path):
    page.set_input_files(f"{selector} input[type=file]", path)


def enter(page, selector, text):
    page.fill(f"{selector} textarea, {selector} input", text)
    page.keyboard.press("Enter")


def slide(page, selector, value):
    page.fill(f"{selector} input[type=number]", value)
    page.keyboard.press("Enter")
    page.locator(f"{selector} input[type=number]").blur()


def words(bar):
    """The text of a bar, without its score."""
    return re.sub(r"^[-\d.]+\s*", "", bar.inner_text())


def said(page):
    """The text of the error that is shown, once it has faded in."""
    toast = "getComputedStyle(document.querySelector('[data-testid=toast-body]'))"
    page.get_by_test_id("toast-body").first.wait_for()
    page.wait_for_function(f"{toast}.opacity === '1'")
    return page.get_by_test_id("toast-body").first.inner_text()


def test_upload_is_scored_asked_and_mapped(tab, site, shoot):
    page = tab("Look")
    upload(page, "#photo", site.images / site.image)
    page.wait_for_selector("#bars li")
    assert page.locator("#bars li").count() >= 5
    assert page.locator("#captions li").count() == 5
    shoot(page, "look")
    enter(page, "#question", site.question)
    page.wait_for_selector("#answers li")
    answer = site.loaded.model.answer(site.images / site.image, site.question)
    assert words(page.locator("#answers li").nth(0)) == answer
    shoot(page, "ask")
    best = words(page.locator("#bars li").nth(0))
    page.locator("#where label", has_text=best).click()
    page.wait_for_selector("#map img")
    shoot(page, "map")


def test_example_is_looked_at(tab):
    page = tab("Look")
    page.locator("#examples img").first.click()
    page.wait_for_selector("#bars li")
    assert page.locator("#photo img").count() == 1


def test_search_click_and_more_like_this(tab, site, shoot):
    page = tab("Search")
    enter(page, "#text", site.text)
    page.wait_for_selector("#results img")
    assert page.locator("#results img").count() > 3
    shoot(page, "search")
    page.locator("#results img").first.click()
    page.wait_for_selector("#large img")
    name = page.locator("#name textarea, #name input").input_value()
    assert (site.images / name).exists()
    shoot(page, "result")
    page.click("#more")
    page.get_by_text(f"like {name}").wait_for()
    assert "1.00" in page.locator("#results .caption-label").first.inner_text()
    shoot(page, "like")


def test_video_among_the_results_plays_from_its_moment(tab, site):
    if site.video.parent != site.images:
        pytest.skip("the archive holds no video")
    page = tab("Search")
    enter(page, "#text", "a green rectangle")
    tile = page.locator("#results button", has_text="film.mp4")
    at = float(re.search(r"at ([\d.]+) s", tile.inner_text())[1])
    tile.click()
    played = "document.querySelector('#played video')?.currentTime"
    page.wait_for_function(f"Math.abs({played} - {at}) < 0.06")


def test_threshold_leaves_no_result(tab, site, shoot):
    page = tab("Search")
    enter(page, "#text", site.text)
    page.wait_for_selector("#results img")
    slide(page, "#threshold", "1")
    page.get_by_text("Nothing scores 1.00 or more").wait_for()
    page.wait_for_selector("#results img", state="detached")
    assert page.locator("#results img").count() == 0
    shoot(page, "nothing")


def test_broken_file_is_named_in_a_line(tab, tmp_path, shoot):
    (tmp_path / "holiday.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photograph")
    page = tab("Look")
    upload(page, "#photo", tmp_path / "holiday.jpg")
    message = said(page)
    assert "holiday.jpg" in message and "/" not in message
    shoot(page, "broken")


def test_names_and_captions_are_shown_as_text(tab, site):
    page = tab("Look")
    page.fill("#labels textarea", f"{HOSTILE}\na <b>bold</b> label")
    upload(page, "#photo", site.images / site.image)
    page.get_by_text(HOSTILE).first.wait_for()
    assert page.locator("#bars b b, #bars img, #captions img").count() == 0
    page = tab("Search")
    enter(page, "#text", "a blue line")
    page.wait_for_selector("#results img")
    assert page.locator("#results .caption-label img").count() == 0


def test_video_is_cut_searched_and_opened_at_its_moment(tab, site, shoot):
    page = tab("Watch")
    page.click("#demo")
    page.wait_for_selector("#strip img")
    count = page.locator("#strip img").count()
    assert count == page.locator("#equal img").count() > 1
    enter(page, "#moment", site.moment)
    page.wait_for_selector("#line rect")
    assert page.locator("#line rect").count() == count
    shoot(page, "watch")
    page.wait_for_selector("#moments img")
    at = float(re.search(r"at ([\d.]+) s", page.locator("#moments .caption-label").first.inner_text())[1])
    page.locator("#moments img").first.click()
    page.wait_for_function(f"Math.abs(document.querySelector('#watched video').currentTime - {at}) < 0.06")
