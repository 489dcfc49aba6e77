"""The traffic report in a browser: nothing is fetched, light and dark, on a phone, whatever the urls are."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FloatRect, Page

from user_pipeline.traffic_report.page import render
from user_pipeline_tests.traffic_report.made_up import HOSTILE, report
from user_pipeline_tests.ui.conftest import CHROMIUM

# The contrast of each text with what is behind it, after WCAG 2; what is wider than the window; ids given twice.
LOOK = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = color => {
    const [r, g, b] = rgba(color).slice(0, 3).map(c => linear(c / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (rgba(color)[3] === 255) return color;
    }
    return "white";
  };
  const faint = [];
  let texts = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const [one, two] = [light(node.closest("svg") ? style.fill : style.color), light(behind(node))];
    const contrast = (Math.max(one, two) + .05) / (Math.min(one, two) + .05);
    if (contrast < 4.5) faint.push([walk.currentNode.textContent.trim(), contrast]);
    texts += 1;
  }
  const ids = [...document.querySelectorAll("[id]")].map(node => node.id);
  const wide = document.documentElement.scrollWidth - innerWidth;
  return [texts > 100, {faint, wide, twice: ids.length - new Set(ids).size}];
}"""

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CHROMIUM and "CI" not in os.environ, reason="chromium is not installed"),
]


@pytest.fixture
def requests() -> list[str]:
    return []


@pytest.fixture
def page(browser: Browser, requests: list[str]) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.on("request", lambda request: requests.append(request.url))
    yield opened
    opened.close()


def saved(directory: Path, urls: list[str] | None = None) -> str:
    file = directory / "traffic_report.html"
    file.write_text(render(report(urls)), encoding="utf-8")
    return file.as_uri()


def test_the_report_is_one_file_readable_by_day_by_night_and_on_a_phone(
    page: Page, requests: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    url = saved(tmp_path)
    page.goto(url)
    # No picture, no font, no script; and nothing that the page's policy had to keep from loading.
    assert requests == [url]
    assert said == []
    if directory := request.config.getoption("--screenshots"):
        top = FloatRect(x=60, y=0, width=1160, height=1230)
        page.screenshot(path=Path(directory) / "traffic-report.png", full_page=True, clip=top)
    page.locator("details").evaluate("details => details.open = true")
    backgrounds = set()
    for width in (1280, 390, 320):
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme="light")
        assert page.evaluate(LOOK) == [True, {"faint": [], "wide": 0, "twice": 0}], width
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(LOOK) == [True, {"faint": [], "wide": 0, "twice": 0}], width
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


def test_every_chart_has_words_for_those_who_do_not_see_it(page: Page, tmp_path: Path) -> None:
    page.goto(saved(tmp_path))
    figures = page.get_by_role("img").all()
    assert len(figures) == 4
    for figure in figures:
        assert "table" in (figure.get_attribute("aria-label") or "")
        box = figure.locator("svg").bounding_box()
        assert box is not None
        assert box["width"] > 200
    assert page.get_by_role("heading", level=1).inner_text() == "Saturday, April 15, 2017"
    assert page.locator("details tbody tr").count() == 14


def test_a_hostile_url_is_shown_as_it_is_and_does_nothing(page: Page, tmp_path: Path) -> None:
    page.goto(saved(tmp_path, HOSTILE))
    assert page.locator(".url bdi").all_inner_texts()[: len(HOSTILE)] == HOSTILE
    assert page.title() == "Traffic report of 2017-04-15"
    held = {tag: page.locator(tag).count() for tag in ("script", "img", "iframe", "h1", "style", "[onmouseover]")}
    # One style sheet is the page's, one is in each chart.
    assert held == {"script": 0, "img": 0, "iframe": 0, "h1": 1, "style": 5, "[onmouseover]": 0}
